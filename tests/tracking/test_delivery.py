"""A server goes away at any moment, a delivery breaks off at any moment: the run arrives, once."""

from __future__ import annotations

import itertools
import json
import math
import os
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from mlflow import MlflowClient

from recsys.tracking import delivery, operations, reading
from recsys.tracking import run as tracking
from recsys.tracking.delivery import close_abandoned, deliver
from recsys.tracking.environment import environment_tags
from recsys.tracking.names import NOTE_TAG
from recsys.tracking.outbox import (
    InUse,
    Outbox,
    OutboxError,
    delivered_as,
    is_waiting,
    read_waiting,
)
from recsys.tracking.processes import is_gone, process_mark
from recsys.tracking.reading import load_run
from recsys.tracking.run import TrackedRun
from recsys.tracking.store import OutOfReach, Refused, TrackingError, local_folder, store_errors
from tests.mlflow_server import answering

Start = Callable[..., TrackedRun]
WRITERS = [(tracking, "perform"), (tracking, "send_file")]


def tell(run: TrackedRun, steps: range = range(6)) -> None:
    """Something of everything that a run can say."""
    run.dataset("ml_100k", "feedbead" * 8, {"events": 5}, "somewhere", columns={"user": "long"})
    for step in steps:
        run.metrics({"train/loss": step / 7, "odd": math.nan if step % 2 else math.inf}, step)
        if step % 3 == 2:
            run.flush()
    run.tag("note", "first")
    run.artifact_text("test/table.txt", "old")
    run.artifact_text("test/table.txt", "new")
    run.artifact_frame("rows.parquet", pl.DataFrame({"rank": [1, 2]}))
    run.tag("note", "last")


def everything(uri: str, experiment: str) -> dict[str, Any]:
    """All that the store holds of the one run of an experiment."""
    client = MlflowClient(uri)
    found = client.get_experiment_by_name(experiment)
    assert found is not None
    (run,) = client.search_runs([found.experiment_id])
    points = {
        name: sorted(
            (p.step, repr(p.value)) for p in client.get_metric_history(run.info.run_id, name)
        )
        for name in run.data.metrics
    }
    folder = local_folder(run.info.artifact_uri)
    assert folder is not None
    return {
        "status": run.info.status,
        "name": run.info.run_name,
        "params": run.data.params,
        "tags": {k: v for k, v in run.data.tags.items() if k != "started_as"},
        "metrics": points,
        "inputs": [repr(one.to_dictionary()) for one in run.inputs.dataset_inputs],
        "artifacts": {
            str(path.relative_to(folder)): path.read_bytes()
            for path in folder.rglob("*")
            if path.is_file()
        },
    }


class Away:
    """From the count-th call on, wrapped functions fail, that one before or after its effect."""

    def __init__(self, count: int, after: bool, error: BaseException) -> None:
        self.count, self.after, self.error = count, after, error
        self.calls = 0
        self.failed = ""

    def wrap(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def wrapped(*arguments: Any, **named: Any) -> Any:
            self.calls += 1
            self.failed = function.__name__
            if self.calls > self.count or (self.calls == self.count and not self.after):
                raise self.error
            result = function(*arguments, **named)
            if self.calls == self.count:
                raise self.error
            return result

        return wrapped


@contextmanager
def away(count: int, after: bool, error: BaseException, places: list[Any]) -> Iterator[Away]:
    with pytest.MonkeyPatch.context() as patch:
        failing = Away(count, after, error)
        for owner, name in places:
            patch.setattr(owner, name, failing.wrap(getattr(owner, name)))
        yield failing


@pytest.fixture
def remote(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Artifacts go through the store, as with a server; one in a file is all that laws need."""
    for module in (tracking, operations, reading):
        monkeypatch.setattr(module, "local_folder", lambda _: None)
    monkeypatch.chdir(root)  # a delivered run's experiment has MLflow's own place, ./mlruns


PARAMS = {"seed": 1, "model": {"width": 8}}


@pytest.fixture
def undisturbed(start: Start, remote: None) -> dict[str, Any]:
    with start(experiment="undisturbed", params=PARAMS, tags={"seed": "1"}) as run:
        tell(run)
    return everything(run.uri, "undisturbed")


def test_a_server_that_goes_away_anywhere(
    start: Start, root: Path, undisturbed: dict[str, Any]
) -> None:
    """At every operation, whether or not it was still carried out."""
    said: list[str] = []
    for count, after in itertools.product(range(1, 50), (False, True)):
        experiment = f"away {count} {after}"
        said.clear()
        with (
            away(count, after, OutOfReach("no answer"), WRITERS) as failing,
            start(
                experiment=experiment,
                params=PARAMS,
                tags={"seed": "1"},
                outbox=root / "outbox",
                say=said.append,
            ) as run,
        ):
            tell(run)
        if failing.calls < count:
            break
        assert len(said) == 1 and "python -m pipelines.sync" in said[0]
        assert failing.calls == count  # asked once, not again for everything that follows
        arrived = deliver(root / "outbox" / run.run_id, run.uri)
        assert (arrived.run_id, arrived.status) == (run.run_id, "FINISHED")
        assert everything(run.uri, experiment) == undisturbed
        assert list((root / "outbox").iterdir()) == []
    assert count > 10


@pytest.mark.parametrize("after", [False, True])
def test_a_server_that_is_away_at_the_start(
    start: Start, root: Path, undisturbed: dict[str, Any], after: bool
) -> None:
    """Also one that made the run and could not say so."""
    said: list[str] = []
    with away(1, after, OutOfReach("no answer"), [(tracking, "_run_of"), *WRITERS]):
        if after:  # the tag that a server's run is found again by
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(tracking, "is_server", lambda _: True)
                run = start(params=PARAMS, tags={"seed": "1"}, outbox=root / "o", say=said.append)
        else:
            run = start(params=PARAMS, tags={"seed": "1"}, outbox=root / "o", say=said.append)
        with run:
            tell(run)
    assert len(said) == 1
    assert is_waiting(root / "o", run.run_id)
    arrived = deliver(root / "o" / run.run_id, run.uri)
    assert arrived.run_id != run.run_id == arrived.waited_as
    assert everything(run.uri, "recsys") == undisturbed
    assert delivered_as(root / "o", run.run_id) == arrived.run_id
    assert not is_waiting(root / "o", run.run_id)


def test_a_delivery_that_breaks_off_anywhere(
    start: Start, root: Path, undisturbed: dict[str, Any]
) -> None:
    """Between any two steps, and begun again: one run, no point twice, nothing missing."""
    with away(1, False, OutOfReach("no answer"), [(tracking, "_run_of")]):
        run = start(experiment="x", params=PARAMS, tags={"seed": "1"}, outbox=root / "o")
        with run:
            tell(run)
    kept = root / "kept"
    shutil.copytree(root / "o", kept)
    steps = [
        (delivery, "perform"),
        (delivery, "send_file"),
        (MlflowClient, "create_run"),
        (Outbox, "note"),
        (Outbox, "append"),
        (shutil, "rmtree"),
    ]
    for count in itertools.count(1):
        shutil.rmtree(root / "o")
        shutil.copytree(kept, root / "o")
        folder = root / "o" / run.run_id
        named = json.loads((folder / "run.json").read_text())
        experiment = f"broken {count}"
        (folder / "run.json").write_text(json.dumps({**named, "experiment": experiment}))
        broken = away(count, False, KeyboardInterrupt(), steps)
        with suppress(KeyboardInterrupt), broken as failing:
            deliver(folder, run.uri)
        if failing.calls < count:
            break
        if failing.failed in ("perform", "send_file"):
            assert read_waiting(folder).run_id is not None  # kept as soon as it was known
        if is_waiting(root / "o", run.run_id):
            deliver(folder, run.uri)
        assert everything(run.uri, experiment) == undisturbed
        assert delivered_as(root / "o", run.run_id) != run.run_id
    assert count > 15


# -- runs that are taken up, or end, while they wait


def test_a_waiting_run_is_resumed_where_it_waits(start: Start, root: Path, remote: None) -> None:
    """Points that come again are not doubled, whether the server had them or the outbox."""
    with start(experiment="whole", params=PARAMS) as run:
        for step in range(9):
            run.metrics({"train/loss": step / 7}, step)
            run.flush()
    params = {**PARAMS, "resume": None}
    # The first three points reach the server, the next ones wait; then the process is killed.
    with away(5, False, OutOfReach("no answer"), WRITERS):
        run = start(experiment="cut", params=params, outbox=root / "o", say=lambda _: None)
        for step in range(6):
            run.metrics({"train/loss": step / 7}, step)
            run.flush()
    with pytest.raises(InUse, match="another process writes or delivers"):
        start(run_id=run.run_id, outbox=root / "o", say=lambda _: None)
    run._outbox.close()
    said: list[str] = []
    params["resume"] = run.run_id
    for first, last in ((2, 7), (4, 9)):  # from the checkpoint on, twice
        with start(run_id=run.run_id, params=params, outbox=root / "o", say=said.append) as again:
            for step in range(first, last):
                again.metrics({"train/loss": step / 7}, step)
    assert again.run_id == run.run_id
    assert len(said) == 2 and "goes on there" in said[0]
    deliver(root / "o" / run.run_id, run.uri)
    whole, cut = everything(run.uri, "whole"), everything(run.uri, "cut")
    assert cut["metrics"] == whole["metrics"]
    assert cut["tags"]["resumed"] == "2"
    assert cut["params"] == {**whole["params"], "resume": "null"}
    changes = json.loads(cut["artifacts"]["resumed/1/changes.json"])
    assert changes["status_before"] == "RUNNING"
    assert changes["params"] == {"resume": {"from": "null", "to": run.run_id}}


@pytest.mark.parametrize("count", [1, 2, 4, 5, 6, 7])
def test_a_run_that_is_resumed_and_loses_its_server(
    start: Start, root: Path, remote: None, count: int
) -> None:
    quiet: dict[str, Any] = {"outbox": root / "o", "say": lambda _: None, "params": PARAMS}
    run = start(**quiet)
    for step in range(5):
        run.metrics({"train/loss": step / 7}, step)
    run.flush()  # and its process is killed
    reads = [(tracking, "reported_points"), *WRITERS]
    with (
        away(count, False, OutOfReach("no answer"), reads) as failing,
        start(run_id=run.run_id, **quiet) as again,
    ):
        for step in range(3, 7):
            again.metrics({"train/loss": step / 7}, step)
    assert failing.calls == count
    with start(run_id=run.run_id, **quiet) as again:
        again.metrics({"train/loss": 1.0}, 7)
    deliver(root / "o" / run.run_id, run.uri)
    found = everything(run.uri, "recsys")
    assert found["metrics"]["train/loss"] == [(step, repr(step / 7)) for step in range(8)]
    assert (found["status"], found["tags"]["resumed"]) == ("FINISHED", "2")
    assert {"resumed/1/changes.json", "resumed/2/config.yaml"} <= found["artifacts"].keys()


def test_a_waiting_run_whose_process_is_gone_is_delivered_as_killed(
    start: Start, root: Path, remote: None
) -> None:
    with away(2, False, OutOfReach("no answer"), WRITERS):
        doing = {"description": f"**Training.** {operations.NO_RESULT}"}
        run = start(outbox=root / "o", tags=environment_tags(), say=lambda _: None, **doing)
        run.metrics({"train/loss": 1.0}, 0)
        run.flush()
    folder = root / "o" / run.run_id
    with pytest.raises(InUse):  # it still writes
        deliver(folder, run.uri)
    with (folder / "journal.ndjson").open("ab") as journal:
        journal.write(b'{"do": "metr')  # what it was writing when it was killed
    run._outbox.close()
    assert deliver(folder, run.uri).status == "KILLED"
    found = everything(run.uri, "recsys")
    assert found["status"] == "KILLED" and found["metrics"] == {"train/loss": [(0, "1.0")]}
    assert f"process {os.getpid()} of " in found["tags"]["closed"]
    assert found["tags"][NOTE_TAG] == (
        f"**Training.** **KILLED:** {found['tags']['closed']}. Its last whole epoch was 0: "
        f"`python -m pipelines.train resume={run.run_id}` goes on."
    )


def test_a_waiting_run_says_on_its_page_why_it_failed(
    start: Start, root: Path, remote: None
) -> None:
    """With the id that the server gives it."""
    given: dict[str, Any] = {"outbox": root / "o", "say": lambda _: None}
    with away(1, False, OutOfReach("no"), [(tracking, "_run_of")]):
        run = start(description=f"**Training.** {operations.NO_RESULT}", **given)
    with suppress(KeyboardInterrupt), run:
        run.metrics({"train/loss": 1.0}, 3)
        raise KeyboardInterrupt
    arrived = deliver(root / "o" / run.run_id, run.uri)
    assert everything(run.uri, "recsys")["tags"][NOTE_TAG] == (
        "**Training.** **KILLED:** interrupted by Ctrl-C. Its last whole epoch was 3: "
        f"`python -m pipelines.train resume={arrived.run_id}` goes on."
    )


def test_a_child_waits_for_its_parent(start: Start, root: Path, remote: None) -> None:
    quiet: dict[str, Any] = {"outbox": root / "o", "say": lambda _: None}
    with away(1, False, OutOfReach("no answer"), [(tracking, "_run_of")]):
        parent = start(experiment="p", **quiet)
    child = start(experiment="c", parent_run_id=parent.run_id, **quiet)  # the server is back
    assert is_waiting(root / "o", child.run_id)
    child.finish()
    with pytest.raises(OutboxError, match=f"waits until its parent {parent.run_id} is delivered"):
        deliver(root / "o" / child.run_id, child.uri)
    parent.finish()
    arrived = deliver(root / "o" / parent.run_id, parent.uri)
    deliver(root / "o" / child.run_id, child.uri)
    assert everything(child.uri, "c")["tags"]["mlflow.parentRunId"] == arrived.run_id


def test_a_parent_names_its_children_as_the_server_does(
    start: Start, root: Path, remote: None
) -> None:
    """In tags, params, description and files, though it is delivered before them."""
    quiet: dict[str, Any] = {"outbox": root / "o", "say": lambda _: None}
    gone = {**environment_tags(), "process": "earlier/1/1"}
    with away(1, False, OutOfReach("no answer"), [(tracking, "_run_of")]):
        stranger = start(**quiet)
        stranger.finish()
        parent = start(**quiet, params={"below": {"first": "none"}})
    child = start(experiment="recsys", parent_run_id=parent.run_id, tags=gone, **quiet)
    other = start(experiment="recsys", tags=gone, **quiet)
    with away(1, False, OutOfReach("no answer"), WRITERS), child, other:
        child.tag("note", "last")
        other.tag("note", "a run of its own")
    with parent:
        parent._write_params({"winner": child.run_id})
        parent.tag("winner", child.run_id)
        parent.describe(f"See {child.run_id} and {other.run_id}")
        parent.artifact_json("study.json", {"best": child.run_id, "ä": 1})
        parent._write_artifact("theirs.txt", f"{child.run_id}\r\n".encode() + b"\xff")
        parent.artifact_text("code.py", child.run_id)  # not for people
    folders = {run: root / "o" / run.run_id for run in (parent, child, other)}
    with (
        away(2, False, KeyboardInterrupt(), [(MlflowClient, "create_run")]),
        suppress(KeyboardInterrupt),  # when the child is made known
    ):
        deliver(folders[parent], parent.uri)
    arrived = deliver(folders[parent], parent.uri)
    info = load_run(parent.uri, arrived.run_id)
    known = read_waiting(folders[child]).run_id
    assert known is not None and known != child.run_id
    assert info.tags["winner"] == info.params["winner"] == known
    assert info.tags[NOTE_TAG] == f"See {known} and {other.run_id}"
    assert json.loads(info.artifact("study.json").read_text()) == {"best": known, "ä": 1}
    assert info.artifact("theirs.txt").read_bytes() == f"{known}\r\n".encode() + b"\xff"
    assert info.artifact("code.py").read_text() == child.run_id
    assert read_waiting(root / "o" / stranger.run_id).run_id is None
    # It says itself, when it is delivered, how it ended.
    assert load_run(parent.uri, known).status == "RUNNING"
    assert close_abandoned(parent.uri, print, root / "o") == []
    for run in (child, other):
        sent = deliver(folders[run], run.uri)
        assert (sent.run_id, sent.status) == (known if run is child else run.run_id, "FINISHED")
    shutil.rmtree(root / "o")  # on another machine
    info = load_run(child.uri, child.run_id)
    assert (info.run_id, info.status, info.tags["note"]) == (known, "FINISHED", "last")
    assert "closed" not in info.tags
    assert len(MlflowClient(child.uri).search_runs([info.experiment_id])) == 3


def test_moments_are_those_of_the_run(
    start: Start, root: Path, remote: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    with (
        monkeypatch.context() as patch,
        away(1, False, OutOfReach("no answer"), [(tracking, "_run_of")]),
    ):
        patch.setattr(tracking.time, "time", lambda: 1_700_000_000.123)
        with start(outbox=root / "o", say=lambda _: None) as run:
            run.metrics({"train/loss": 1.0}, 0)
    arrived = deliver(root / "o" / run.run_id, run.uri)
    client = MlflowClient(run.uri)
    info = client.get_run(arrived.run_id).info
    (point,) = client.get_metric_history(arrived.run_id, "train/loss")
    assert {info.start_time, info.end_time, point.timestamp} == {1_700_000_000_123}


def test_a_run_begun_on_one_server_goes_to_no_other(start: Start, root: Path, remote: None) -> None:
    with away(1, False, OutOfReach("no answer"), WRITERS):
        run = start(outbox=root / "o", say=lambda _: None)
    run.finish()
    with pytest.raises(OutboxError, match=r"was begun on sqlite.* only be delivered there"):
        deliver(root / "o" / run.run_id, "http://127.0.0.1:9")
    with pytest.raises(TrackingError, match="which knows its beginning, not for http"):
        start(uri="http://127.0.0.1:9", run_id=run.run_id, outbox=root / "o")
    assert is_waiting(root / "o", run.run_id)


def test_a_run_that_was_deleted_meanwhile(start: Start, root: Path, remote: None) -> None:
    with away(1, False, OutOfReach("no answer"), WRITERS):
        run = start(outbox=root / "o", say=lambda _: None)
    run.finish()
    client = MlflowClient(run.uri)
    client.delete_run(run.run_id)
    with pytest.raises(TrackingError, match="is deleted; bring it back: mlflow runs restore"):
        deliver(root / "o" / run.run_id, run.uri)
    client.restore_run(run.run_id)
    assert deliver(root / "o" / run.run_id, run.uri).status == "FINISHED"


# -- servers that are away, and servers that refuse


@pytest.mark.parametrize("status", [408, 429, 500, 502, 503, 520])
def test_a_server_that_cannot_at_the_moment_is_away(start: Start, root: Path, status: int) -> None:
    said: list[str] = []
    with answering(status, b"<html>down</html>") as uri:
        with start(uri=uri, outbox=root / "o", say=said.append) as run:
            tell(run)
        with pytest.raises(OutOfReach, match=f"it answers {status}"):
            start(uri=uri)  # where nothing can wait, that is an error
    assert is_waiting(root / "o", run.run_id)
    assert len(said) == 1 and f"it answers {status}. The run goes on" in said[0]


def test_a_server_that_never_answers_is_waited_for_once(
    start: Start, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "1")
    said: list[str] = []
    with socket.create_server(("127.0.0.1", 0)) as silent:
        uri = f"http://127.0.0.1:{silent.getsockname()[1]}"
        began = time.monotonic()
        with start(uri=uri, outbox=root / "o", say=said.append) as run:
            tell(run)
        assert time.monotonic() - began < 10
    assert len(said) == 1 and "no answer in 1 s. The run goes on" in said[0]
    assert is_waiting(root / "o", run.run_id)


def test_a_server_that_hangs_up_is_away_and_no_password_is_said(start: Start, root: Path) -> None:
    said: list[str] = []
    with socket.create_server(("127.0.0.1", 0)) as port:

        def hang_up() -> None:
            with suppress(OSError):
                while True:
                    port.accept()[0].close()

        threading.Thread(target=hang_up, daemon=True).start()
        uri = f"http://me:secret@127.0.0.1:{port.getsockname()[1]}"
        with start(uri=uri, outbox=root / "o", say=said.append) as run:
            pass
    assert is_waiting(root / "o", run.run_id)
    assert len(said) == 1 and "//me:***@" in said[0] and "secret" not in said[0]


@pytest.mark.parametrize(
    ("status", "body", "words"),
    [
        (401, b"who are you", r"refuses \(401\).*MLFLOW_TRACKING_USERNAME"),
        (403, b'{"error_code": "PERMISSION_DENIED", "message": "no"}', r"refuses \(403\)"),
        (404, b"<html>no such page</html>", "is it the address of an MLflow server"),
        (404, b'{"detail": "Not Found"}', "is it the address of an MLflow server"),
        (200, b"<html>hello</html>", "is it the address of an MLflow server"),
    ],
)
def test_a_server_that_refuses_is_an_error(
    start: Start, root: Path, status: int, body: bytes, words: str
) -> None:
    with answering(status, body) as uri:
        address = uri.replace("//", "//me:secret@")
        with pytest.raises(TrackingError, match=words) as caught:
            start(uri=address, outbox=root / "o")
    assert not isinstance(caught.value, OutOfReach)
    assert "\n" not in str(caught.value) and "secret" not in str(caught.value)
    assert "//me:***@" in str(caught.value)
    assert not (root / "o").exists()


def test_an_address_that_is_not_encrypted(start: Start, root: Path) -> None:
    with answering(200) as uri, pytest.raises(TrackingError, match="no encrypted connection"):
        start(uri=uri.replace("http:", "https:"), outbox=root / "o")
    assert not (root / "o").exists()


@pytest.mark.parametrize(
    ("scheme", "package", "named"),
    [
        ("mysql", "MySQLdb", "mysqlclient"),
        ("postgresql+psycopg2", "psycopg2", "psycopg2-binary"),
        ("postgresql+psycopg", "psycopg", "'psycopg[binary]'"),
    ],
)
def test_a_database_whose_driver_is_missing(
    start: Start, root: Path, monkeypatch: pytest.MonkeyPatch, scheme: str, package: str, named: str
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(TrackingError) as caught:
        start(uri=f"{scheme}://me:secret@127.0.0.1/runs", outbox=root / "o")
    assert str(caught.value).endswith(
        f"open the tracking store in {scheme}://me:***@127.0.0.1/runs: the package {package} is "
        f"not installed (pip install {named})"
    )
    assert not (root / "o").exists()


def test_a_database_that_is_away_is_said_at_once(start: Start, root: Path) -> None:
    """MLflow itself would try for minutes; where a run can wait, it goes on."""
    pytest.importorskip("psycopg2")
    with socket.socket() as port:
        port.bind(("127.0.0.1", 0))  # nobody listens
        uri = f"postgresql+psycopg2://me:secret@127.0.0.1:{port.getsockname()[1]}/runs"
        began, said = time.monotonic(), []
        with pytest.raises(OutOfReach, match=r"psycopg2://me:\*\*\*@.*Connection refused"):
            start(uri=uri)
        with pytest.raises(OutOfReach, match="Connection refused"):
            load_run(uri, "latest")
        with start(uri=uri, outbox=root / "o", say=said.append) as run:
            tell(run)
        with pytest.raises(OutOfReach, match="Connection refused"):
            deliver(root / "o" / run.run_id, uri)
        assert time.monotonic() - began < 10
    assert is_waiting(root / "o", run.run_id)
    assert len(said) == 1 and "secret" not in said[0] and "The run goes on" in said[0]


def test_what_a_database_says_in_the_middle() -> None:
    from mlflow.exceptions import MlflowException
    from mlflow.protos.databricks_pb2 import BAD_REQUEST, TEMPORARILY_UNAVAILABLE

    def kind(said: str, code: int = TEMPORARILY_UNAVAILABLE, uri: str = "postgresql://h/r") -> type:
        with pytest.raises(TrackingError) as caught, store_errors(uri, "write"):
            raise MlflowException(said, error_code=code)
        return caught.type

    assert kind("server closed the connection unexpectedly") is OutOfReach
    assert kind("FATAL:  the database system is shutting down") is OutOfReach
    assert kind('FATAL:  password authentication failed for user "me"') is Refused
    assert kind("duplicate key", BAD_REQUEST) is TrackingError
    assert kind("database is locked", uri="sqlite:///runs.db") is TrackingError


def test_a_login_that_lapses_in_the_middle_costs_nothing(
    start: Start, root: Path, undisturbed: dict[str, Any]
) -> None:
    with (
        away(4, False, Refused("refuses (401)"), WRITERS),
        start(
            experiment="x", params=PARAMS, tags={"seed": "1"}, outbox=root / "o", say=lambda _: None
        ) as run,
    ):
        tell(run)
    deliver(root / "o" / run.run_id, run.uri)
    assert everything(run.uri, "x") == undisturbed


def test_what_is_wrong_in_the_middle_stays_an_error(start: Start, root: Path) -> None:
    run = start(outbox=root / "o")
    run._client.delete_run(run.run_id)
    with pytest.raises(TrackingError, match="active"):
        run.tag("a", "b")
    assert not (root / "o").exists()


# -- runs whose process is gone


def test_runs_whose_process_is_gone_are_closed(start: Start) -> None:
    ended = subprocess.Popen([sys.executable, "-c", ""])
    mark = process_mark(ended.pid) or ""
    ended.wait()
    own = environment_tags()
    boot, namespace, ticks = own["process"].split("/")
    gone = {
        "ended": {**own, "pid": str(ended.pid), "process": mark},
        "number taken by another": {**own, "process": f"{boot}/{namespace}/{int(ticks) - 1}"},
        "before the machine's last start": {**own, "process": f"earlier/{namespace}/{ticks}"},
        "older, without mark": {
            **{k: v for k, v in own.items() if k != "process"},
            "pid": str(ended.pid),
        },
    }
    there = {
        "alive": own,
        "another machine's": {**own, "pid": str(ended.pid), "process": mark, "host": "elsewhere"},
        "another container's": {**own, "pid": str(ended.pid), "process": f"{boot}/1/{ticks}"},
        "older, without mark, number in use": {k: v for k, v in own.items() if k != "process"},
        "not ours": {"host": own["host"], "pid": "?"},
        "no tags": {},
    }
    runs = {name: start(run_name=name, tags=tags) for name, tags in (gone | there).items()}
    with start(run_name="finished", tags=gone["ended"]) as finished:
        pass
    uri, said = finished.uri, []
    closed = close_abandoned(uri, said.append)
    assert sorted(one.name for one in closed) == sorted(gone)
    assert len(said) == len(gone)
    for name, run in runs.items():
        info = load_run(uri, run.run_id)
        assert info.status == ("KILLED" if name in gone else "RUNNING"), name
        assert ("closed" in info.tags) == (name in gone)
        assert info.tags.get(NOTE_TAG) == (
            f"**KILLED:** {info.tags['closed']}." if name in gone else None
        )
    assert close_abandoned(uri, said.append) == []
    with start(run_id=runs["ended"].run_id, tags=own):  # taken up again, it is alive
        assert close_abandoned(uri, said.append) == []
        assert "closed" not in load_run(uri, runs["ended"].run_id).tags


def test_a_run_that_was_delivered_and_went_on_is_closed_too(start: Start, root: Path) -> None:
    lost = away(1, False, OutOfReach("no answer"), [(tracking, "_run_of")])
    with lost, start(outbox=root / "o") as waits:
        pass
    arrived = deliver(root / "o" / waits.run_id, waits.uri)
    ended = subprocess.Popen([sys.executable, "-c", ""])
    mark = process_mark(ended.pid) or ""
    ended.wait()
    tags = {**environment_tags(), "pid": str(ended.pid), "process": mark}
    again = start(run_id=arrived.run_id, tags=tags, outbox=root / "o")  # and then kill -9
    (closed,) = close_abandoned(waits.uri, print, root / "o")
    assert closed.run_id == again.run_id == arrived.run_id != waits.run_id


def test_a_process_that_its_parent_has_not_noted_is_gone() -> None:
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    mark = process_mark(child.pid)
    assert mark is not None and not is_gone(child.pid, mark)
    child.kill()
    while Path(f"/proc/{child.pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z":
        time.sleep(0.01)
    assert is_gone(child.pid, mark)
    child.wait()
    assert is_gone(child.pid, mark)
