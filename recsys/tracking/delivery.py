"""Delivers what waits in the outbox, and closes runs whose process is gone.

A delivery may break off anywhere and begin again: the run is found by the tag it was started with,
how far it got stands in its `run.json`, and an operation that is told twice counts once.
"""

from __future__ import annotations

import json
import platform
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from recsys.tracking.experiments import experiment_id_of
from recsys.tracking.names import (
    CLOSED_TAG,
    METRICS_A_BATCH,
    PARENT_TAG,
    STARTED_AS_TAG,
    as_stored,
)
from recsys.tracking.operations import perform, send_file, send_model, unfinished
from recsys.tracking.outbox import (
    MODEL,
    Outbox,
    OutboxError,
    delivered_as,
    is_waiting,
    known_runs,
    read_waiting,
    waiting_ids,
    waiting_runs,
)
from recsys.tracking.processes import is_gone
from recsys.tracking.reading import reported_points, run_of_id, search_runs
from recsys.tracking.store import open_client, server_name, store_errors

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run


@dataclass(frozen=True)
class Delivered:
    """A run that has arrived.

    Attributes:
        run_id: MLflow's id.
        waited_as: its id in the outbox.
        name: of the run.
        status: FINISHED, FAILED or KILLED.
    """

    run_id: str
    waited_as: str
    name: str
    status: str


def deliver(folder: Path, uri: str) -> Delivered:
    """Sends a waiting run to its server, and removes it from the outbox.

    Args:
        folder: of the run, in the outbox.
        uri: the server, with the password if it needs one. A run that no server knows yet may go
            to any.

    Raises:
        OutOfReach: the server is still away. What has arrived is kept in mind.
        InUse: its process still writes it, or another one delivers it.
        TrackingError: what the server refuses.
        OutboxError: the outbox cannot be read, or holds what the run needs first.
    """
    with Outbox(folder) as outbox:
        waiting = outbox.waiting
        if waiting.run_id is not None and server_name(uri) != waiting.uri:
            raise OutboxError(
                f"run {waiting.run_id} was begun on {waiting.uri} and can only be delivered there"
            )
        status = outbox.status()
        if status == "RUNNING":
            # The lock was free: nobody writes it any more, and nobody said how it ended.
            said = _closed(f"process {waiting.tags.get('pid', '')}")
            outbox.append({"do": "tag", "key": CLOSED_TAG, "value": said})
            outbox.append(unfinished("KILLED", said))
            status = "KILLED"
            outbox.append({"do": "end", "status": status, "time": int(time.time() * 1000)})
        client = open_client(uri)
        if waiting.run_id is None:
            found = _run_on_server(client, uri, outbox)
            outbox.note(run_id=found, uri=server_name(uri))
        run_id = outbox.waiting.run_id
        assert run_id is not None
        with store_errors(uri, f"deliver run {run_id}"):
            run = run_of_id(client, uri, run_id)  # a deleted one is said so
        _announce_children(client, uri, outbox)
        renamed = known_runs(folder.parent)
        there: dict[tuple[int, str], set[tuple[int, str]]] = {}
        for number, operation in _in_batches(outbox.operations(), outbox.waiting.delivered):
            operation = _with_ids(operation, renamed, run.info.experiment_id)
            if operation["do"] == "artifact":
                name = operation["name"]
                path, experiment = outbox.artifact_path(name), run.info.experiment_id
                with _file_with_ids(path, renamed, experiment) as sent:
                    send_file(client, uri, run_id, name, sent)
            elif operation["do"] == "model":
                send_model(client, uri, run_id, operation, outbox.artifact_path(MODEL))
            else:
                if "resumed" in operation:
                    operation = _new_points(client, uri, run_id, operation, there)
                with store_errors(uri, f"deliver run {run_id}"):
                    perform(client, run_id, operation)
            outbox.note(delivered=number)
        outbox.remove()
    return Delivered(run_id, folder.name, waiting.name, status)


def _with_ids(
    operation: dict[str, Any], renamed: Mapping[str, str], experiment_id: str
) -> dict[str, Any]:
    """An operation that names runs, and pages of them, as the server does."""
    if operation["do"] not in ("tag", "params", "model"):
        return operation
    said = _text_with_ids(json.dumps(operation), renamed, experiment_id)
    return dict(json.loads(said))


def _text_with_ids(text: str, renamed: Mapping[str, str], experiment_id: str) -> str:
    for old, new in renamed.items():
        if old != new and old in text:
            here = f"experiments/{experiment_id}/runs/{new}"
            text = text.replace(f"experiments//runs/{old}", here).replace(old, new)
    return text


@contextmanager
def _file_with_ids(path: Path, renamed: Mapping[str, str], experiment_id: str) -> Iterator[Path]:
    """A file that names runs as the server does, if it is one that a person reads."""
    if path.suffix not in (".json", ".txt", ".html"):
        yield path
        return
    text = path.read_bytes().decode(errors="surrogateescape")
    with tempfile.TemporaryDirectory() as aside:
        sent = Path(aside) / path.name
        named = _text_with_ids(text, renamed, experiment_id)
        sent.write_bytes(named.encode(errors="surrogateescape"))
        yield sent


def _announce_children(client: MlflowClient, uri: str, outbox: Outbox) -> None:
    """Gives the runs below one that wait their ids on the server: it may name them."""
    for folder in waiting_runs(outbox.folder.parent):
        with suppress(OutboxError):  # damaged, or still written
            parent = read_waiting(folder).tags.get(PARENT_TAG)
            if parent != outbox.folder.name:
                continue
            with Outbox(folder) as child:
                if child.waiting.run_id is None:
                    found = _run_on_server(client, uri, child, outbox.waiting.run_id)
                    child.note(run_id=found, uri=server_name(uri))


def _run_on_server(
    client: MlflowClient, uri: str, outbox: Outbox, parent: str | None = None
) -> str:
    """The id of the run on its server, made unless an earlier try, or the run itself, made it.

    Args:
        client: of the server.
        uri: of the server.
        outbox: of the run.
        parent: MLflow's id of the run above it; None: of one that is delivered, if there is one.
    """
    waiting, key = outbox.waiting, outbox.folder.name
    tags = {**waiting.tags, STARTED_AS_TAG: key}
    if PARENT_TAG in tags:
        if parent is None and is_waiting(outbox.folder.parent, tags[PARENT_TAG]):
            raise OutboxError(f"run {key} waits until its parent {tags[PARENT_TAG]} is delivered")
        tags[PARENT_TAG] = parent or delivered_as(outbox.folder.parent, tags[PARENT_TAG])
    doing = f"start the waiting run {key} in experiment {waiting.experiment!r}"
    with store_errors(uri, doing):
        experiment_id = experiment_id_of(client, uri, waiting.experiment, waiting.artifact_root)
        where = f"tags.{STARTED_AS_TAG} = '{key}'"
        found = search_runs(client, [experiment_id], where, "attributes.start_time ASC", 1)
    if found:
        return str(found[0].info.run_id)
    with store_errors(uri, doing, retries=0):
        made = client.create_run(experiment_id, waiting.start_time, tags, waiting.name)
    return str(made.info.run_id)


def _in_batches(
    operations: list[dict[str, Any]], first: int
) -> Iterator[tuple[int, dict[str, Any]]]:
    """Operations from `first` on, metrics that follow each other as one.

    Yields:
        How many are done with this one, and the operation.
    """
    number = first
    while number < len(operations):
        operation = operations[number]
        number += 1
        if operation["do"] == "metrics":
            points = list(operation["points"])
            for following in operations[number:]:
                same = {**following, "points": operation["points"]} == operation
                if not same or len(points) + len(following["points"]) > METRICS_A_BATCH:
                    break
                points += following["points"]
                number += 1
            operation = {**operation, "points": points}
        yield number, operation


def _new_points(
    client: MlflowClient,
    uri: str,
    run_id: str,
    operation: dict[str, Any],
    there: dict[tuple[int, str], set[tuple[int, str]]],
) -> dict[str, Any]:
    """Metrics of a resumed run, without the points that it had reported before it was resumed."""
    points = []
    for name, value, moment, step in operation["points"]:
        key = (operation["resumed"], name)
        if key not in there:
            there[key] = reported_points(client, uri, run_id, name)
        if (step, as_stored(value)) not in there[key]:
            points.append((name, value, moment, step))
    return {**operation, "points": points}


@dataclass(frozen=True)
class Closed:
    """A run that was closed.

    Attributes:
        run_id: MLflow's id.
        name: of the run.
        pid: of the process that was gone.
    """

    run_id: str
    name: str
    pid: int


def close_abandoned(
    uri: str, say: Callable[[str], None], outbox: Path | None = None
) -> list[Closed]:
    """Closes the runs of this machine that still count as running and whose process is gone.

    They become KILLED, and tag and description say why and when. Runs of other machines, and those
    of which it cannot be told from here, stay as they are; a run that was closed in error sets its
    own status when it ends.

    Args:
        uri: the store; it is not made if it does not exist.
        say: is told of each run that is closed.
        outbox: of runs that wait: how they ended is known there, and told when they are delivered.

    Raises:
        TrackingError: no store, or one that does not answer.
    """
    client = open_client(uri, create=False)
    closed = []
    where = f"attributes.status = 'RUNNING' and tags.host = '{platform.node()}'"
    with store_errors(uri, "look for runs whose process is gone"):
        everywhere = [e.experiment_id for e in client.search_experiments()]
        runs: list[Run] = []
        token: str | None = ""
        while everywhere and token is not None:
            page = client.search_runs(everywhere, where, max_results=1000, page_token=token or None)
            runs += page
            token = page.token or None
    still_waiting = set() if outbox is None else set(waiting_ids(outbox).values())
    for run in runs:
        tags, run_id = run.data.tags, run.info.run_id
        if run_id in still_waiting:
            continue
        pid = tags.get("pid", "")
        if not pid.isdecimal() or not is_gone(int(pid), tags.get("process")):
            continue
        with store_errors(uri, f"close run {run_id}"):
            said = _closed(f"process {pid}")
            client.set_tag(run_id, CLOSED_TAG, said)
            perform(client, run_id, unfinished("KILLED", said))
            client.set_terminated(run_id, "KILLED")
        closed.append(Closed(run_id, run.info.run_name, int(pid)))
        say(f"closed {run_id} ({run.info.run_name}): its process {pid} is gone")
    return closed


def _closed(what: str) -> str:
    now = datetime.now(UTC).isoformat(timespec="seconds")
    return f"{what} of {platform.node()} was gone on {now}, without having said how the run ended"
