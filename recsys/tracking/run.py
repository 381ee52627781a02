"""One run of a pipeline, reported to MLflow.

MLflow is imported when the first store is opened, not when this file is: that takes two seconds,
and `--help` or a cached ingest must not pay for it.

Training reports through a small protocol (metrics by name and step); `TrackedRun` fulfils it.
Nothing here knows what a model or a config is: parameters come as nested plain values, artifacts
as text, JSON values, Polars frames, figures or files.

What a run says is a row of operations. They go to the store one by one, or, from the moment a
server is out of reach, into the outbox on this disk (`outbox.py`), from where `delivery.py` sends
the same operations.
"""

from __future__ import annotations

import difflib
import errno
import getpass
import importlib.metadata
import io
import json
import logging
import math
import os
import platform
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import traceback
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, Self
from urllib.parse import unquote, urlsplit

import recsys
from recsys.tracking.outbox import MODEL, Outbox, Waiting, is_unknown, is_waiting
from recsys.tracking.processes import process_mark
from recsys.tracking.system import SystemSampler

if TYPE_CHECKING:
    import polars as pl
    from matplotlib.figure import Figure
    from mlflow import MlflowClient
    from mlflow.entities import Experiment, LoggedModel, Run, RunData

Status = Literal["FINISHED", "FAILED", "KILLED"]

# The kind sends the UI to the table of runs instead of the overview of GenAI traces. Where its
# sidebar has the switch "GenAI | Model training" (seen in 3.17.2), that switch decides instead; it
# stands on GenAI in a new browser, and only the address can say otherwise.
KIND_TAG = "mlflow.experimentKind"
KIND = "custom_model_development"
TRAINING_VIEW = "workflowType=machine_learning"
NOTE_TAG = "mlflow.note.content"
EXPERIMENT_NOTE = """\
Each run is judged beside baselines on the same questions. *Model training*, top left, shows the \
table of runs; **recsys** among the *Views*, top right, its columns.

* A run of **train** holds a model, one of **evaluate** the answers of a model or of another \
system's lists, **compare** holds runs against each other question by question, **backtest** and \
**tune** stand above trainings at several cuts in time and above **trial** runs, **reproduce** \
above a training made again, **promote** decides about a version in the registry, **explain** \
holds a page of attention.
* A metric's name is *stage / protocol / metric*: numbers of different protocols, or of different \
data sets, answer different questions. `headline` is the first model's main metric with its 95 % \
interval, `against` how it stands against the strongest baseline; `versus/…` are the baselines' \
own numbers.
* On a run's page the description comes first; *Artifacts* hold `report.html`, `figures/`, one row \
a question in `per_question/`, and the model.
"""

# What the UI calls a view: columns of the table of runs, kept in a tag of the experiment and named
# in an address (seen in 3.17.2). Without that address each browser has its own columns.
VIEW = "recsys"
VIEW_TAG = f"mlflow.sharedViewState.{VIEW}"
VIEW_COLUMNS = {  # in their order, with their widths in pixels
    "attributes.`Run Name`": 300,
    "runDateAndNestInfo": 130,
    "tags.`headline`": 220,
    "tags.`against`": 430,
    "attributes.`Dataset`": 230,
    "tags.`protocol`": 130,
    "tags.`pipeline`": 80,
    "duration": 80,
}
VIEW_METRICS = 4  # columns of metrics of their own, those of the newest protocols
VIEW_METRIC_WIDTH = 110
# What a description says until there is a result, or a reason why there is none.
NO_RESULT = "No result yet."
PARENT_TAG = "mlflow.parentRunId"
# By it a run is found again whose server went away before it could say the id.
STARTED_AS_TAG = "started_as"
CLOSED_TAG = "closed"

# MLflow's limits (mlflow.utils.validation). Beyond them it cuts values and only logs a warning.
PARAM_VALUE_LIMIT = 6000
KEY_LIMIT = 250
TAG_VALUE_LIMIT = 8000
PARAMS_A_BATCH = 100
METRICS_A_BATCH = 1000

FLUSH_AFTER_METRICS = 500
FLUSH_AFTER_SECONDS = 2.0

# How long a server may take to answer. MLflow's own patience, 120 seconds and seven retries with
# growing pauses, is four minutes of silence on a wrong address, and of standstill in training.
SECONDS_TO_ANSWER = 10
SECONDS_TO_ANSWER_A_FILE = 120  # which it passes on before it answers

_NAME = re.compile(r"[/\w.\- :]+")
_PASSWORD = re.compile(r"(://[^/\s:@]*):[^/\s@]+@")
# What databases say to a wrong login or name; that they start or shut down is said alike.
_NO_ENTRY = re.compile(r'FATAL: +(password|role|database "|no pg_hba)|Access denied|Unknown data')
# `postgresql://` means psycopg to SQLAlchemy 2.1, and psycopg2 to 2.0.
_DRIVERS = {
    "psycopg": "'psycopg[binary]'",
    "psycopg2": "psycopg2-binary",
    "MySQLdb": "mysqlclient",
}
_PACKAGES = ("torch", "pytorch-lightning", "polars", "numpy", "mlflow")


class TrackingError(ValueError):
    """A run, store or name that MLflow cannot serve, said so that one can act on it."""


class OutOfReach(TrackingError):
    """A server that does not answer, or that answers that it cannot at the moment."""


class Refused(TrackingError):
    """A server that does not take this user's word."""


def local_store(root: Path) -> tuple[str, str]:
    """The store that plain `mlflow ui`, started in `root`, shows.

    Returns:
        The tracking URI (`sqlite:///root/mlflow.db`) and the folder of the artifacts.

    Raises:
        TrackingError: a path that a database address cannot hold.
    """
    root = root.resolve()
    # SQLAlchemy 2.1 decodes %41 in an address, 2.0 does not: no spelling serves both.
    if unquote(str(root)) != str(root) or "?" in str(root):
        raise TrackingError(
            f"the folder {root} has '?' or '%' with two digits in its path, which the address of "
            "a database cannot hold; set RECSYS_HOME to another folder"
        )
    return f"sqlite:///{root / 'mlflow.db'}", str(root / "mlruns")


# ---------------------------------------------------------------------------------------------
# Writing a run


class TrackedRun:
    """A run that is being written; use it as a context manager.

    Leaving the `with` block sets the status: FINISHED, KILLED after Ctrl-C, FAILED after any other
    exception (whose traceback becomes the artifact `error.txt`); the description then says why.
    Metrics are sent in batches, at the latest after two seconds, and whole when the block is left.

    A server that goes away takes nothing with it: from then on the run is kept in the outbox.

    Attributes:
        run_id: MLflow's id of the run; a provisional one where no server could be asked for one.
        experiment_id: MLflow's id of the experiment; "" with a provisional `run_id`.
        uri: the store.
    """

    def __init__(self, client: MlflowClient | None, run: Run | None, start: _Start) -> None:
        """Use `TrackedRun.start`. There is no client where the run only waits."""
        self.run_id: str = start.key if run is None else run.info.run_id
        self.experiment_id: str = "" if run is None else run.info.experiment_id
        self.uri = start.uri
        self._client: Any = client
        self._start = start
        self._local_artifacts = None if run is None else _local_folder(run.info.artifact_uri)
        self._outbox: Outbox | None = None
        self._params: dict[str, str] = {}
        self._resumed = 0
        self._history: dict[str, set[tuple[int, str]]] = {}
        self._pending: list[tuple[str, float, int, int]] = []
        self._last_flush = time.monotonic()
        self._finished = False
        self._began: int = start.time if run is None else run.info.start_time
        self._system: SystemSampler | None = None

    @classmethod
    def start(
        cls,
        *,
        uri: str,
        artifact_root: str | None,
        experiment: str,
        run_name: str,
        params: Mapping[str, Any],
        config_yaml: str,
        tags: Mapping[str, str],
        pipeline: str = "train",
        description: str = "",
        parent_run_id: str | None = None,
        run_id: str | None = None,
        system_metrics: bool = False,
        outbox: Path | None = None,
        say: Callable[[str], None] = print,
    ) -> TrackedRun:
        """Opens a new run, or takes up an interrupted one.

        Args:
            uri: `sqlite:///FILE`, made if absent, or the address of an MLflow server or of another
                database.
            artifact_root: folder for the artifacts of new experiments in a database store. Not
                used with a server, which has its own.
            experiment: name of the experiment, made if absent.
            run_name: what a person reads in the table of runs.
            params: nested mappings, lists and plain values; flattened with dots.
            config_yaml: the whole config, kept as the artifact `config.yaml`.
            tags: see `environment_tags`.
            pipeline: which command made the run; `load_run("latest")` looks for `train`.
            description: Markdown shown on top of the run's page.
            parent_run_id: shows the run below another one.
            run_id: an existing run to go on with. Its metrics stay and are continued (points that
                come again with the same value are not doubled), its params stay too, as MLflow
                never changes them: what differs now is kept in `resumed/N/`. A run that waits in
                the outbox goes on there.
            system_metrics: look at the machine's load and memory while the run is written, and keep
                that as metrics over the seconds since it began.
            outbox: folder of what waits while a server is out of reach; None: that is an error.
            say: tells, in one line and once, that the run waits.

        Raises:
            TrackingError: store out of reach (and no outbox, or a run that only the server knows)
                or not one, experiment deleted, no such run.
            OSError: the store cannot be written (full disk, no permission).
        """
        all_tags = {
            key: _clip(without_password(value), TAG_VALUE_LIMIT)
            for key, value in {**tags, "pipeline": pipeline}.items()
        }
        if parent_run_id is not None:
            all_tags[PARENT_TAG] = parent_run_id
        start = _Start(
            uuid.uuid4().hex if run_id is None else run_id,
            uri,
            experiment,
            run_name,
            int(time.time() * 1000),
            all_tags,
            without_password(config_yaml),
            None if is_server(uri) else artifact_root,
            outbox,
            say,
        )
        client: MlflowClient | None = None
        run: Run | None = None
        away: TrackingError | None = None
        if outbox is not None and run_id is not None and is_waiting(outbox, run_id):
            tracked = cls(None, None, start)
            tracked._wait_again()
        else:
            try:
                client = _open_client(uri)
                if outbox is not None and is_unknown(outbox, parent_run_id or ""):
                    raise OutOfReach(
                        f"its parent {parent_run_id} waits for {without_password(uri)}"
                    )
                run = _run_of(client, start, artifact_root, run_id)
            except OutOfReach as error:
                if outbox is None or run_id is not None:
                    raise
                away = error
            tracked = cls(client, run, start)
        try:
            if away is not None:
                tracked._begin_to_wait(away)
            if run_id is None:
                tracked._write_params(_flatten(params))
                tracked.artifact_text("config.yaml", start.config_yaml)
            else:
                tracked._take_up(run, _flatten(params))
            if description:
                tracked.describe(description)
            if system_metrics:
                tracked._system = SystemSampler()
        except BaseException as error:
            tracked._finish_after(error)
            raise
        return tracked

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if error is None:
            self.finish()
        else:
            self._finish_after(error)

    # -- metrics

    def metrics(self, values: Mapping[str, float], step: int) -> None:
        """Reports metrics at a step.

        Args:
            values: by name; letters, digits, `_ - . : /` and space.
            step: of the axis that these metrics are drawn over (batches or epochs).

        Raises:
            TrackingError: a name that MLflow refuses.
        """
        now = int(time.time() * 1000)
        for name, value in values.items():
            _check_name(name, "metric")
            point = (int(step), _same(float(value)))
            if self._resumed and point in self._points(name):
                continue
            self._pending.append((name, float(value), now, int(step)))
        late = time.monotonic() - self._last_flush > FLUSH_AFTER_SECONDS
        if late or len(self._pending) >= FLUSH_AFTER_METRICS:
            self.flush()

    def flush(self) -> None:
        """Sends the metrics that still wait."""
        self._last_flush = time.monotonic()
        self._take_samples()
        while self._pending:
            batch = self._pending[:METRICS_A_BATCH]
            operation: dict[str, Any] = {"do": "metrics", "points": batch}
            if self._resumed:
                operation["resumed"] = self._resumed
            self._send(operation, f"write metrics of run {self.run_id}")
            # Only now: a Ctrl-C above leaves them pending, and MLflow drops exact doubles.
            del self._pending[: len(batch)]

    def _take_samples(self) -> None:
        """What was seen of the machine joins the metrics that wait."""
        for sample in [] if self._system is None else self._system.taken():
            second = max(sample.time - self._began, 0) // 1000
            self._pending += [
                (name, value, sample.time, second) for name, value in sample.values.items()
            ]

    def _points(self, name: str) -> set[tuple[int, str]]:
        """What the interrupted run has already reported of a metric."""
        if name not in self._history:
            if self._outbox is not None:
                return set()  # looked up when it is delivered
            try:
                self._history[name] = _reported(self._client, self.uri, self.run_id, name)
            except (OutOfReach, Refused) as away:
                self._begin_to_wait(away)
                return set()
        return self._history[name]

    # -- artifacts

    def artifact_text(self, name: str, text: str) -> None:
        """Keeps a text as the artifact `name` (a path inside the run, with suffix)."""
        self._write_artifact(name, text.encode())

    def artifact_json(self, name: str, value: Any) -> None:
        """Keeps plain values as a JSON artifact."""
        self.artifact_text(name, json.dumps(value, indent=2, ensure_ascii=False, default=str))

    def artifact_frame(self, name: str, frame: pl.DataFrame) -> None:
        """Keeps a Polars frame as a Parquet artifact; `name` ends in `.parquet`."""
        assert name.endswith(".parquet"), name
        buffer = io.BytesIO()
        frame.write_parquet(buffer)
        self._write_artifact(name, buffer.getbuffer())

    def artifact_file(self, local_path: Path, folder: str = "") -> None:
        """Copies a file, or a whole folder under its own name, into the run's `folder`."""
        if local_path.is_dir():
            for path in sorted(p for p in local_path.rglob("*") if p.is_file()):
                inside = path.relative_to(local_path.parent).parent.as_posix()
                self.artifact_file(path, f"{folder}/{inside}" if folder else inside)
            return
        name = f"{folder}/{local_path.name}" if folder else local_path.name
        _check_artifact_name(name)
        if self._local_artifacts is not None:
            _copy_whole(local_path, self._local_artifacts / name)
        else:
            self._send_file(name, local_path)

    def model(
        self, folder: Path, kind: str, arguments: Mapping[str, Any], description: str = ""
    ) -> None:
        """Keeps an MLflow model as the run's own: the UI lists it, `runs:/RUN_ID/model` finds it.

        Args:
            folder: with the file `MLmodel`, which will say which run it is of.
            kind: of model, as the list of models shows it.
            arguments: what it was made with, shown beside it.
            description: Markdown shown on its page.
        """
        operation = {
            "do": "model",
            "kind": kind,
            "arguments": _flatten(arguments),
            "description": description,
        }
        if self._outbox is None:
            try:
                send_model(self._client, self.uri, self.run_id, operation, folder)
                return
            except (OutOfReach, Refused) as away:
                self._begin_to_wait(away)
        assert self._outbox is not None
        self._outbox.model(operation, folder)

    def figure(self, name: str, figure: Figure) -> None:
        """Keeps a Matplotlib figure; the suffix of `name` (`.png`, `.svg`) decides the format."""
        buffer = io.BytesIO()
        suffix = PurePosixPath(name).suffix.lstrip(".")
        # A description shows it, in a column of some 700 pixels on a usual screen.
        figure.savefig(buffer, format=suffix, dpi=90, bbox_inches="tight")
        self._write_artifact(name, buffer.getbuffer())

    def _write_artifact(self, name: str, content: bytes | memoryview) -> None:
        _check_artifact_name(name)
        if self._local_artifacts is not None:
            _write_whole(self._local_artifacts / name, content)
            return
        with tempfile.TemporaryDirectory() as aside:
            path = Path(aside) / PurePosixPath(name).name
            path.write_bytes(content)
            self._send_file(name, path)

    # -- what the run is about

    def dataset(
        self,
        name: str,
        digest: str,
        profile: Mapping[str, Any],
        source: str,
        *,
        columns: Mapping[str, str] | None = None,
        context: str = "training",
    ) -> None:
        """Names the data set the run read, as an MLflow dataset input.

        Args:
            name: of the data set.
            digest: the store's fingerprint. The table of runs shows its first 12 characters, as the
                store's folder does; the whole stands in the tag `dataset.NAME` and the profile.
            profile: what to know of it at a glance (events, users, items, …).
            source: where it came from: an address or a path.
            columns: name → type of its columns.
            context: what it was used for, shown beside the name.
        """
        source = without_password(source)
        remote = source.startswith(("http://", "https://"))
        schema = [{"type": kind, "name": column} for column, kind in (columns or {}).items()]
        dataset = {
            "name": name,
            "digest": digest[:12],
            "source_type": "http" if remote else "local",
            "source": json.dumps({"url" if remote else "uri": source}),
            "schema": json.dumps({"mlflow_colspec": schema}) if schema else None,
            "profile": json.dumps({**profile, "fingerprint": digest}, default=str),
        }
        self._name_dataset(dataset, context)
        self._set_tag(f"dataset.{_legal(name)}", digest)

    def datasets_of(self, info: RunInfo, context: str) -> None:
        """Names the data sets that another run read, which this one is about.

        Args:
            info: the other run.
            context: what they were used for here.
        """
        for dataset in info.datasets:
            self._name_dataset(dataset, context)
        for key, value in info.tags.items():
            if key.startswith("dataset."):
                self._set_tag(key, value)

    def _name_dataset(self, dataset: Mapping[str, Any], context: str) -> None:
        self._send(
            {"do": "dataset", "dataset": dict(dataset), "context": context},
            f"write the data set of run {self.run_id}",
        )

    def describe(self, markdown: str) -> None:
        """Sets the description on top of the run's page."""
        self.tag(NOTE_TAG, markdown)

    def tag(self, key: str, value: str) -> None:
        """Sets or changes a tag. A value beyond MLflow's 8,000 characters ends in `…`."""
        _check_name(key, "tag")
        self._set_tag(key, _clip(without_password(value), TAG_VALUE_LIMIT))

    def _set_tag(self, key: str, value: str) -> None:
        operation = {"do": "tag", "key": key, "value": value}
        self._send(operation, f"write tag {key!r} of run {self.run_id}")

    def columns(self, metrics: Sequence[str]) -> None:
        """Has the experiment's table of runs show these metrics beside what it shows of every run.

        The columns of the newest protocols stay. A view that somebody changed in the UI is theirs.
        Columns are no reason to fail: where the store does not take them, there are none.
        """
        if self._outbox is not None:
            return
        doing = f"write the view of experiment {self.experiment_id}"
        with suppress(TrackingError, OSError), _store_errors(self.uri, doing):
            tags = self._client.get_experiment(self.experiment_id).tags
            wanted = [f"metrics.`{name}`" for name in metrics]
            shown = _columns_of(tags.get(VIEW_TAG))
            if shown is None or all(column in shown for column in wanted):
                return
            known = [column for column in shown if column not in (*VIEW_COLUMNS, *wanted)]
            newest = [*known, *wanted][-VIEW_METRICS:]
            self._client.set_experiment_tag(self.experiment_id, VIEW_TAG, _view(newest))

    def _write_params(self, flat: Mapping[str, str]) -> None:
        """Writes flat params; what MLflow cannot hold goes whole into `params_long.json`."""
        kept: dict[str, str] = {}
        whole: dict[str, str] = {}
        for key, raw in flat.items():
            value = without_password(raw)
            name = _legal(key)
            if name != key or len(name) > KEY_LIMIT:
                whole[key] = value
                if name in flat or name in kept or len(name) > KEY_LIMIT:
                    name = f"{name[: KEY_LIMIT - 8]}-{len(whole)}"
            if len(value) > PARAM_VALUE_LIMIT:
                whole[key] = value
                value = f"({len(value)} characters, whole in params_long.json) {value[:200]}…"
            kept[name] = value
        self._params |= kept
        names = list(kept)
        for begin in range(0, len(names), PARAMS_A_BATCH):
            some = {name: kept[name] for name in names[begin : begin + PARAMS_A_BATCH]}
            self._send({"do": "params", "params": some}, f"write params of run {self.run_id}")
        if self._outbox is not None:
            self._outbox.note(params=self._params)
        if whole:
            self.artifact_json("params_long.json", whole)

    def _take_up(self, run: Run | None, flat: Mapping[str, str]) -> None:
        """Goes on with an interrupted run, and keeps what differs from its first start.

        Args:
            run: as the store holds it; None for one that waits in the outbox.
            flat: the params of now.
        """
        tags = self._start.tags
        if run is not None:
            before, known, status = run.data.tags, run.data.params, run.info.status
        else:
            assert self._outbox is not None
            waiting = self._outbox.waiting
            before, known, status = waiting.tags, waiting.params, self._outbox.status()
        times = self._resumed = int(before.get("resumed", "0")) + 1
        self._params = dict(known)
        changed = {
            key: {"from": known[key], "to": without_password(value)}
            for key, value in flat.items()
            if key in known
            and len(value) <= PARAM_VALUE_LIMIT
            and known[key] != without_password(value)
        }
        tag_changes = {
            key: {"from": before[key], "to": value}
            for key, value in tags.items()
            if before.get(key, value) != value
        }
        tags["resumed"] = str(times)
        self.artifact_json(
            f"resumed/{times}/changes.json",
            {"status_before": status, "params": changed, "tags": tag_changes},
        )
        self.artifact_text(f"resumed/{times}/config.yaml", self._start.config_yaml)
        # Whose process it is before that it runs: nobody shall close it for the old one's sake.
        for key, value in tags.items():
            if before.get(key) != value:
                self._set_tag(key, value)
        if run is None and self._outbox is not None:
            self._outbox.note(tags={**before, **tags})
        doing = f"take up run {self.run_id}"
        self._send({"do": "running"}, doing)
        for key in ("error", CLOSED_TAG):
            if key in before or run is None:
                self._send({"do": "untag", "key": key}, doing)
        self._write_params({key: value for key, value in flat.items() if key not in known})

    # -- to the store, or to the outbox

    def _send(self, operation: dict[str, Any], doing: str) -> None:
        if self._outbox is None:
            try:
                with _store_errors(self.uri, doing):
                    perform(self._client, self.run_id, operation)
                return
            except (OutOfReach, Refused) as away:
                self._begin_to_wait(away)
        assert self._outbox is not None
        self._outbox.append(operation)

    def _send_file(self, name: str, path: Path) -> None:
        if self._outbox is None:
            try:
                send_file(self._client, self.uri, self.run_id, name, path)
                return
            except (OutOfReach, Refused) as away:
                self._begin_to_wait(away)
        assert self._outbox is not None
        self._outbox.artifact(name, path)

    def _begin_to_wait(self, away: TrackingError) -> None:
        """From now on everything goes into the outbox.

        Also what a server refuses in the middle of a run: a login that has lapsed is no reason to
        throw hours of training away.
        """
        start = self._start
        if start.outbox is None:
            raise away
        self._outbox = Outbox.create(
            start.outbox / self.run_id,
            Waiting(
                uri=server_name(self.uri),
                experiment=start.experiment,
                name=start.name,
                start_time=start.time,
                tags=start.tags,
                params=self._params,
                run_id=self.run_id if self.experiment_id else None,
                delivered=0,
                artifact_root=start.artifact_root,
            ),
            start.config_yaml,
        )
        start.say(
            f"{away}. The run goes on, its results are kept in {self._outbox.folder}; once the "
            "server takes them, python -m pipelines.sync delivers them"
        )

    def _wait_again(self) -> None:
        """Goes on in the outbox with a run that waits there."""
        assert self._start.outbox is not None
        outbox = Outbox(self._start.outbox / self.run_id)
        waiting = outbox.waiting
        if waiting.uri != server_name(self.uri):
            if waiting.run_id is not None:
                outbox.close()
                raise TrackingError(
                    f"run {self.run_id} ('{waiting.name}') waits for {waiting.uri}, which knows "
                    f"its beginning, not for {server_name(self.uri)}"
                )
            outbox.note(uri=server_name(self.uri))
        self._outbox = outbox
        self._began = waiting.start_time
        self._start.say(f"run {self.run_id} waits in {outbox.folder}, and goes on there")

    # -- the end

    def finish(self, status: Status = "FINISHED") -> None:
        """Sends what waits and sets the final status; later calls change nothing."""
        if self._finished:
            return
        with _without_interrupts():
            self._stop_sampling()
            self.flush()
            self._close(status)

    def _finish_after(self, error: BaseException) -> None:
        """Finishes with the status an exception means; never hides that exception."""
        if isinstance(error, SystemExit) and error.code in (None, 0):
            return self.finish()
        if self._finished:
            return
        status: Status = "FAILED"
        why = _as_code(f"{type(error).__name__}: {error}")
        if isinstance(error, KeyboardInterrupt):
            status, why = "KILLED", "interrupted by Ctrl-C"
        trace = "".join(traceback.format_exception(error))
        with _without_interrupts():
            # Each on its own: on a full disk some of them may still succeed.
            self._stop_sampling()
            for step in (
                self.flush,
                lambda: self.tag("error", f"{type(error).__name__}: {error}"[:1000]),
                lambda: self.artifact_text("error.txt", trace),
                lambda: self._send(unfinished(status, why), f"describe run {self.run_id}"),
                lambda: self._close(status),
            ):
                try:
                    step()
                except (ValueError, OSError) as second:
                    error.add_note(f"(also, for run {self.run_id}: {second})")

    def _stop_sampling(self) -> None:
        if self._system is not None:
            self._system.stop()

    def _close(self, status: Status) -> None:
        operation = {"do": "end", "status": status, "time": int(time.time() * 1000)}
        self._send(operation, f"finish run {self.run_id}")
        self._finished = True
        if self._outbox is not None:
            self._outbox.close()


@dataclass(frozen=True)
class _Start:
    """How a run began: what is needed to tell it to a server later.

    Attributes:
        key: its id as long as no server has given it one.
        uri: the store.
        experiment: name of the experiment.
        name: of the run.
        time: in milliseconds since 1970.
        tags: at the start.
        config_yaml: the config.
        artifact_root: folder for the artifacts of a new experiment in a database.
        outbox: folder of what waits.
        say: tells a person.
    """

    key: str
    uri: str
    experiment: str
    name: str
    time: int
    tags: dict[str, str]
    config_yaml: str
    artifact_root: str | None
    outbox: Path | None
    say: Callable[[str], None]


def _run_of(
    client: MlflowClient, start: _Start, artifact_root: str | None, run_id: str | None
) -> Run:
    """A new run, or the one to go on with."""
    uri = start.uri
    with _store_errors(uri, f"start a run in experiment {start.experiment!r}"):
        if run_id is not None:
            return _get_run(client, uri, run_id)
        experiment_id = _experiment_id(client, uri, start.experiment, artifact_root)
        remote = is_server(uri) or _is_database_server(uri)
        tags = {**start.tags, STARTED_AS_TAG: start.key} if remote else start.tags
    # Asked again, a server whose answer was lost would make a second run.
    with _store_errors(uri, f"start a run in experiment {start.experiment!r}", retries=0):
        run: Run = client.create_run(experiment_id, start.time, tags, start.name)
        return run


def perform(client: MlflowClient, run_id: str, operation: Mapping[str, Any]) -> None:
    """Tells MLflow one thing that happened. Told twice, it is as if told once."""
    from mlflow.entities import Dataset, DatasetInput, InputTag, Metric, Param
    from mlflow.exceptions import MlflowException

    match operation["do"]:
        case "metrics":  # exact doubles, down to the moment, are dropped by MLflow
            client.log_batch(run_id, metrics=[Metric(*point) for point in operation["points"]])
        case "params":
            client.log_batch(run_id, params=[Param(*pair) for pair in operation["params"].items()])
        case "tag":
            client.set_tag(run_id, operation["key"], operation["value"])
        case "untag":
            try:
                client.delete_tag(run_id, operation["key"])
            except MlflowException as error:
                if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                    raise
        case "dataset":
            label = InputTag("mlflow.data.context", operation["context"])
            dataset = Dataset(**operation["dataset"])
            client.log_inputs(run_id, [DatasetInput(dataset, [label])])
        case "unfinished":
            _tell_unfinished(client, run_id, operation["status"], operation["why"])
        case "running":
            client.update_run(run_id, status="RUNNING")
        case "end":
            client.set_terminated(run_id, operation["status"], operation["time"])
        case unknown:
            raise AssertionError(unknown)


def unfinished(status: Status, why: str) -> dict[str, str]:
    """The operation that has a run's description say how it ended without a result.

    Args:
        status: that it ends with.
        why: in Markdown.
    """
    return {"do": "unfinished", "status": status, "why": why}


def _tell_unfinished(client: MlflowClient, run_id: str, status: str, why: str) -> None:
    data = client.get_run(run_id).data
    note, said = data.tags.get(NOTE_TAG, ""), f"**{status}:** {why}"
    if said in note:
        return
    said += "." + (_how_to_go_on(client, run_id, data) if status == "KILLED" else "")
    if NO_RESULT in note:
        note = note.replace(NO_RESULT, said, 1)
    else:
        note = f"{said}\n\n{note}".strip()
    client.set_tag(run_id, NOTE_TAG, _clip(without_password(note), TAG_VALUE_LIMIT))


def _how_to_go_on(client: MlflowClient, run_id: str, data: RunData) -> str:
    """How far a run came, and the command that goes on with it, if there is one."""
    if data.tags.get("pipeline") == "tune":
        return f" The same command goes on with study={data.tags.get('study')}."
    if "train/loss" not in data.metrics:
        return ""
    epoch = max(point.step for point in client.get_metric_history(run_id, "train/loss"))
    said = f" Its last whole epoch was {epoch}"
    if data.tags.get("pipeline") != "train":
        return f"{said}."
    uri = data.params.get("tracking.uri", "null")
    where = "" if uri == "null" else f" tracking.uri={uri}"
    return f"{said}: `python -m pipelines.train resume={run_id}{where}` goes on."


def _as_code(text: str) -> str:
    """The first line of a text, in Markdown, whatever is in it."""
    return f"`{_clip(text.splitlines()[0].replace('`', chr(39)), 400)}`"


def send_file(client: MlflowClient, uri: str, run_id: str, name: str, path: Path) -> None:
    """Sends a file, whose name is the last part of the artifact's."""
    folder = PurePosixPath(name).parent.as_posix()
    with _store_errors(uri, f"send artifact {name!r}", SECONDS_TO_ANSWER_A_FILE):
        client.log_artifact(run_id, str(path), None if folder == "." else folder)


def send_model(
    client: MlflowClient, uri: str, run_id: str, operation: Mapping[str, Any], folder: Path
) -> None:
    """Makes a folder a run's logged model. A run that has one gets it again, and not beside it."""
    from mlflow.entities import LoggedModelOutput
    from mlflow.models import Model

    doing = f"send the model of run {run_id}"
    with _store_errors(uri, doing):
        logged = _logged_model(client, run_id)
        if logged is None:
            said = operation["description"]
            experiment_id = client.get_run(run_id).info.experiment_id
            # One that was made before the answer, or the process, was lost.
            made = client.search_logged_models(
                [experiment_id], f"source_run_id = '{run_id}'", max_results=1
            )
            logged = next(iter(made), None) or client.create_logged_model(
                experiment_id,
                MODEL,
                run_id,
                tags={NOTE_TAG: said} if said else None,
                params=operation["arguments"],
                model_type=operation["kind"],
            )
            client.log_outputs(run_id, [LoggedModelOutput(logged.model_id, step=0)])
        described = Model.load(folder)
        described.run_id, described.model_id = run_id, logged.model_id
        described.artifact_path = logged.artifact_location
        described.save(folder / "MLmodel")
    target = _local_folder(logged.artifact_location)
    if target is not None:
        for path in sorted(p for p in folder.rglob("*") if p.is_file()):
            _copy_whole(path, target / path.relative_to(folder))
    with _store_errors(uri, doing, SECONDS_TO_ANSWER_A_FILE):
        if target is None:
            client.log_model_artifacts(logged.model_id, str(folder))
        client.finalize_logged_model(logged.model_id, "READY")


def _reported(client: MlflowClient, uri: str, run_id: str, name: str) -> set[tuple[int, str]]:
    """The points of a metric that the store holds."""
    with _store_errors(uri, f"read metric {name!r} of run {run_id}"):
        past = client.get_metric_history(run_id, name)
    return {(point.step, _same(point.value)) for point in past}


# ---------------------------------------------------------------------------------------------
# Reading a run


@dataclass(frozen=True)
class RunInfo:
    """A run as the store holds it.

    Attributes:
        run_id: MLflow's id.
        name: what a person reads.
        status: RUNNING, FINISHED, FAILED or KILLED.
        experiment: name of its experiment.
        experiment_id: MLflow's id of it.
        params: flat, as text.
        tags: without MLflow's own, but for the description.
        metrics: the last value of each.
        artifacts: the folder of its artifacts, or None where they lie on a server.
        uri: the store.
        datasets: that it read, as MLflow describes them.
    """

    run_id: str
    name: str
    status: str
    experiment: str
    experiment_id: str
    params: dict[str, str]
    tags: dict[str, str]
    metrics: dict[str, float]
    artifacts: Path | None
    uri: str
    datasets: tuple[dict[str, Any], ...] = ()

    def artifact(self, name: str) -> Path:
        """A local path of an artifact (file or folder), fetched first if it lies on a server.

        Raises:
            TrackingError: the run has no such artifact.
        """
        if self.artifacts is not None and (self.artifacts / name).exists():
            return self.artifacts / name
        client = _open_client(self.uri)
        doing = f"read the artifacts of run {self.run_id}"
        with _store_errors(self.uri, doing, SECONDS_TO_ANSWER_A_FILE):
            parent = PurePosixPath(name).parent.as_posix()
            folder = None if parent == "." else parent
            there = [entry.path for entry in client.list_artifacts(self.run_id, folder)]
            if name in there:
                return Path(client.download_artifacts(self.run_id, name))
            top = [entry.path for entry in client.list_artifacts(self.run_id)]
        raise TrackingError(
            f"run {self.run_id} ({self.name}, {self.status}) has no artifact {name!r}; it has "
            + (", ".join(sorted(there or top)) or "none")
        )

    def model(self) -> Path:
        """The local folder of the run's model, fetched first if it lies on a server.

        Raises:
            TrackingError: the run has no model.
        """
        client = _open_client(self.uri)
        with _store_errors(self.uri, f"read the model of run {self.run_id}"):
            logged = _logged_model(client, self.run_id)
            if logged is not None:
                if str(logged.status) != "READY":
                    raise TrackingError(
                        f"the model of run {self.run_id} ({self.name}, {self.status}) was not "
                        "stored whole; resume the run, or train again"
                    )
                folder = _local_folder(logged.artifact_location)
                if folder is not None:
                    return folder
                from mlflow.artifacts import download_artifacts

                # Not by its models:/ address, which MLflow looks up in the store of the process.
                location = logged.artifact_location
                return Path(download_artifacts(artifact_uri=location, tracking_uri=self.uri))
        return self.artifact(MODEL)  # of a run from before models were MLflow's


def load_run(uri: str, run_id: str, *, experiment: str | None = None) -> RunInfo:
    """Reads a run. The store is not made if it does not exist.

    Args:
        uri: the store.
        run_id: MLflow's id, the one that the run had while it waited for its server, or `latest`:
            the training run that finished last.
        experiment: where to look for `latest`; None looks everywhere.

    Raises:
        TrackingError: no store, no such run (says which there are), none finished yet.
    """
    client = _open_client(uri, create=False)
    with _store_errors(uri, f"read run {run_id!r}"):
        if run_id == "latest":
            run = _latest_run(client, uri, experiment)
        else:
            run = _get_run(client, uri, run_id)
        owner = client.get_experiment(run.info.experiment_id)
    tags = run.data.tags
    inputs = [] if run.inputs is None else run.inputs.dataset_inputs
    return RunInfo(
        run_id=run.info.run_id,
        name=run.info.run_name,
        status=run.info.status,
        experiment=owner.name,
        experiment_id=owner.experiment_id,
        params=dict(run.data.params),
        tags={k: v for k, v in tags.items() if not k.startswith("mlflow.") or k == NOTE_TAG},
        metrics=dict(run.data.metrics),
        artifacts=_local_folder(run.info.artifact_uri),
        uri=uri,
        datasets=tuple(one.dataset.to_dictionary() for one in inputs),
    )


def load_waiting(folder: Path) -> RunInfo:
    """Reads a run that waits in the outbox: its beginning, and the artifacts that wait.

    Args:
        folder: of the run, in the outbox.

    Raises:
        OutboxError: it cannot be read, or is being written.
    """
    with Outbox(folder) as outbox:
        waiting = outbox.waiting
        return RunInfo(
            run_id=folder.name,
            name=waiting.name,
            status=outbox.status(),
            experiment=waiting.experiment,
            experiment_id="",
            params=dict(waiting.params),
            tags=dict(waiting.tags),
            metrics={},
            artifacts=folder / "artifacts",
            uri=waiting.uri,
        )


@dataclass(frozen=True)
class ExperimentInfo:
    """An experiment as the store holds it; name, place and moment tell it from every other.

    Attributes:
        name: of the experiment.
        experiment_id: MLflow's id of it.
        artifact_location: folder or address of its artifacts.
        creation_time: in milliseconds since 1970.
        has_view: whether it says itself which columns its table of runs shows.
    """

    name: str
    experiment_id: str
    artifact_location: str
    creation_time: int | None
    has_view: bool = False


def find_experiment(uri: str, name: str) -> ExperimentInfo:
    """Reads an experiment. Neither store nor experiment is made if it does not exist.

    Raises:
        TrackingError: no store, no such experiment (says which there are).
    """
    client = _open_client(uri, create=False)
    with _store_errors(uri, f"read experiment {name!r}"):
        found = client.get_experiment_by_name(name)
        if found is None:
            names = sorted(e.name for e in client.search_experiments())
            close = difflib.get_close_matches(name, names, 1)
            raise TrackingError(
                f"there is no experiment {name!r} in {without_password(uri)}; "
                f"there are {', '.join(names)}" + "".join(f". Did you mean '{c}'?" for c in close)
            )
    return ExperimentInfo(
        found.name,
        found.experiment_id,
        found.artifact_location,
        found.creation_time,
        VIEW_TAG in found.tags,
    )


def latest_run_id(uri: str, experiment: ExperimentInfo) -> str | None:
    """The run of an experiment that began last, whatever became of it; None where there is none."""
    client = _open_client(uri, create=False)
    with _store_errors(uri, "look for the latest run"):
        found = _search(client, [experiment.experiment_id], "", "attributes.start_time DESC", 1)
    return found[0].info.run_id if found else None


def end_open_children(uri: str, parent_run_id: str) -> None:
    """Ends as KILLED the runs below another one that were left open, as by `kill -9`."""
    client = _open_client(uri, create=False)
    with _store_errors(uri, f"end the runs below {parent_run_id}"):
        parent = _get_run(client, uri, parent_run_id)
        above = f"tags.`{PARENT_TAG}` = '{parent.info.run_id}'"
        where = f"{above} and attributes.status = 'RUNNING'"
        experiment = [parent.info.experiment_id]
        for run in _search(client, experiment, where, "attributes.start_time ASC", 1000):
            perform(client, run.info.run_id, unfinished("KILLED", "the run above began again"))
            client.set_terminated(run.info.run_id, "KILLED")


def environment_tags() -> dict[str, str]:
    """What a result depends on besides config and data: code, versions, machine.

    Returns:
        `git.commit` and `git.dirty` of the code that runs (`none` where it is not a checkout),
        `version.*`, `python`, `platform`, `host`, `pid`, `process` (see `process_mark`), `cpus`,
        `command`, and the names under which MLflow's own columns show user and commit.
    """
    commit, dirty = _git_state(Path(__file__).resolve())
    tags = {
        "git.commit": commit or "none",
        "git.dirty": str(dirty).lower(),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "host": platform.node(),
        "pid": str(os.getpid()),
        "process": process_mark(os.getpid()) or "",
        "cpus": str(os.cpu_count()),
        "command": shlex.join(["python", *sys.orig_argv[1:]]),
        "version.recsys": recsys.__version__,
        "mlflow.source.type": "LOCAL",
    }
    for package in _PACKAGES:
        try:
            tags[f"version.{package}"] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    if commit:
        tags["mlflow.source.git.commit"] = commit
    with suppress(KeyError, OSError):  # a container may run under a number that has no name
        tags["mlflow.user"] = getpass.getuser()
    spec = getattr(sys.modules.get("__main__"), "__spec__", None)
    if spec is not None:
        tags["mlflow.source.name"] = spec.name.removesuffix(".__main__")
    return tags


# ---------------------------------------------------------------------------------------------
# MLflow's store


def is_server(uri: str) -> bool:
    """Whether a store is an MLflow server, which shows its own UI."""
    return uri.startswith(("http://", "https://"))


def _is_database_server(uri: str) -> bool:
    """Whether a store is a database that another program serves."""
    return re.match(r"(postgresql|mysql|mssql)\b", uri) is not None


def _database_file(uri: str) -> Path | None:
    """The file of a SQLite store, None for every other store."""
    if not uri.startswith("sqlite"):
        return None
    from sqlalchemy.engine import make_url

    file = make_url(uri).database
    return Path(file) if file and file != ":memory:" else None


def _open_client(uri: str, create: bool = True) -> MlflowClient:
    """Imports MLflow, quietly, and opens a store."""
    file = _database_file(uri)
    if file is not None:
        # MLflow would try ten times, for a minute, before it says what is wrong here.
        if not create and not file.exists():
            raise TrackingError(f"there are no runs yet: {file} does not exist; train one first")
        if file.is_dir():
            raise TrackingError(f"{file} is a folder, not an MLflow database")
        if file.exists() and file.stat().st_size > 0:
            with file.open("rb") as head:
                if head.read(16) != b"SQLite format 3\x00":
                    raise TrackingError(
                        f"{file} is not an MLflow database (not SQLite); move it away"
                    )
        if create:
            file.parent.mkdir(parents=True, exist_ok=True)
        if create and not os.access(file if file.exists() else file.parent, os.W_OK):
            raise PermissionError(errno.EACCES, "the tracking store cannot be written", str(file))
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    # What a server's client prints beside our own lines.
    os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")

    from mlflow import MlflowClient

    for name, level in (
        ("mlflow", logging.WARNING),  # "Creating initial MLflow database tables..."
        ("mlflow.store.db.utils", logging.CRITICAL),  # tracebacks; ours say it in a sentence
        ("alembic", logging.WARNING),
    ):
        logging.getLogger(name).setLevel(level)
    with _store_errors(uri, "open the tracking store"):
        if _is_database_server(uri):
            _try_database(uri)
        return MlflowClient(tracking_uri=uri)


def _try_database(uri: str) -> None:
    """Connects, and no more: MLflow would try ten times, for minutes, before it says why not."""
    import sqlalchemy

    limited = uri.startswith(("postgresql", "mysql")) and "connect_timeout" not in uri
    limit = {"connect_timeout": SECONDS_TO_ANSWER} if limited else {}
    engine = sqlalchemy.create_engine(uri, poolclass=sqlalchemy.NullPool, connect_args=limit)
    engine.connect().close()


@contextmanager
def _store_errors(
    uri: str, doing: str, seconds: int = SECONDS_TO_ANSWER, retries: int = 1
) -> Iterator[None]:
    """Turns MLflow's exceptions into ours: what could not be done, where, why, in one line.

    Args:
        uri: the store.
        doing: what is done.
        seconds: that a server may take to answer, unless the user has said otherwise
            (MLFLOW_HTTP_REQUEST_TIMEOUT).
        retries: at once, as where a connection was closed from lack of use; again unless the user
            has said otherwise (MLFLOW_HTTP_REQUEST_MAX_RETRIES).

    Raises:
        OutOfReach: the server, or the database, does not answer, or cannot at the moment.
        Refused: it does not let this user in.
        TrackingError: any other refusal.
        OSError: the disk of a local store.
    """
    from mlflow.exceptions import MlflowException
    from requests import RequestException
    from sqlalchemy.exc import SQLAlchemyError

    try:
        with _patience(seconds, retries):
            yield
    except ModuleNotFoundError as error:  # the driver of a database
        name = error.name or "of the driver"
        raise TrackingError(
            f"cannot {doing} in {without_password(uri)}: the package {name} is not installed "
            f"(pip install {_DRIVERS.get(name, name)})"
        ) from error
    except (MlflowException, SQLAlchemyError, RequestException) as error:
        reason = without_password(str(error).strip())
        lines = reason.splitlines() or [type(error).__name__]
        where = without_password(uri)
        if is_server(uri):
            waited = os.environ.get("MLFLOW_HTTP_REQUEST_TIMEOUT", seconds)
            raise _server_error(error, f"cannot {doing} in {where}", lines[0], waited) from error
        if re.search(r"disk is full|disk I/O error|readonly database|unable to open", reason):
            message = f"cannot {doing} in {where}: {lines[0]}"
            raise OSError(errno.ENOSPC if "disk" in reason else errno.EACCES, message) from error
        kind = _database_error(error, reason) if _is_database_server(uri) else TrackingError
        raise kind(f"cannot {doing} in {where}: {_clip(lines[0], 400)}") from error


@contextmanager
def _patience(seconds: int, retries: int) -> Iterator[None]:
    """MLflow reads at each request how long to wait, and how often to ask again."""
    wanted = {
        "MLFLOW_HTTP_REQUEST_TIMEOUT": str(seconds),
        "MLFLOW_HTTP_REQUEST_MAX_RETRIES": str(retries),
    }
    ours = {name: value for name, value in wanted.items() if name not in os.environ}
    os.environ.update(ours)
    try:
        yield
    finally:
        for name in ours:
            os.environ.pop(name, None)


def _database_error(error: BaseException, said: str) -> type[TrackingError]:
    """Whether a database is away, refuses, or is asked for something wrong."""
    from mlflow.exceptions import MlflowException
    from sqlalchemy.exc import DBAPIError, OperationalError

    if isinstance(error, MlflowException):
        away = error.error_code == "TEMPORARILY_UNAVAILABLE"
    else:
        lost = isinstance(error, DBAPIError) and error.connection_invalidated
        away = isinstance(error, OperationalError) or lost
    if not away:
        return TrackingError
    return Refused if _NO_ENTRY.search(said) else OutOfReach


def _server_error(
    error: BaseException, what: str, said: str, seconds: int | str
) -> OutOfReach | Refused | TrackingError:
    """Whether a server is away, refuses, or is asked for something wrong."""
    import requests
    from mlflow.exceptions import RestException

    status: int | None = None
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, requests.exceptions.SSLError):
            return TrackingError(f"{what}: no encrypted connection ({_clip(said, 400)})")
        late = isinstance(cause, requests.ConnectionError) and "timed out" in str(cause)
        if late or isinstance(cause, requests.Timeout):
            return OutOfReach(f"{what}: no answer in {seconds} s")
        if isinstance(cause, requests.exceptions.RetryError):
            found = re.search(r"too many (\d+) error", str(cause))
            return OutOfReach(f"{what}: it answers {found.group(1) if found else 'with errors'}")
        if isinstance(cause, requests.ConnectionError | requests.exceptions.ChunkedEncodingError):
            found = re.search(r"\] ([A-Z][\w ]+)|(Failed to resolve '[^']*')", str(cause))
            return OutOfReach(f"{what}: {found.group(1) or found.group(2) if found else said}")
        if isinstance(cause, requests.HTTPError) and cause.response is not None:
            status = cause.response.status_code
        elif isinstance(cause, RestException) and "error_code" in cause.json:
            status = cause.get_http_status_code()
        elif found := re.search(r"failed with error code (\d+) ", str(cause)):
            status = int(found.group(1))
        if status is not None:
            break
        cause = cause.__cause__ or cause.__context__
    if status in (408, 429) or (status is not None and status >= 500):
        return OutOfReach(f"{what}: it answers {status}")
    if status in (401, 403):
        return Refused(
            f"{what}: the server refuses ({status}). MLflow takes a login from the variables "
            "MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or MLFLOW_TRACKING_TOKEN"
        )
    hint = (
        ""
        if isinstance(error, RestException) and "error_code" in error.json
        else ("; is it the address of an MLflow server?")
    )
    return TrackingError(f"{what}: {_clip(said, 400)}{hint}")


def _experiment_id(client: MlflowClient, uri: str, name: str, artifact_root: str | None) -> str:
    """The id of an experiment that is made if absent and opens on its table of runs."""
    from mlflow.exceptions import MlflowException

    found: Experiment | None = client.get_experiment_by_name(name)
    if found is None:
        location = None
        if artifact_root is not None and not is_server(uri):
            folder = artifact_root
            if "://" not in folder:
                folder = Path(folder).resolve().as_uri()
            location = f"{folder.rstrip('/')}/{_slug(name)}"
        try:
            created: str = client.create_experiment(
                name,
                location,
                tags={KIND_TAG: KIND, NOTE_TAG: EXPERIMENT_NOTE, VIEW_TAG: _view([])},
            )
            return created
        except MlflowException:  # another run may have made it at the same moment
            found = client.get_experiment_by_name(name)
            if found is None:
                raise
    if found.lifecycle_stage == "deleted":
        raise TrackingError(
            f"experiment {name!r} is deleted in {without_password(uri)}; choose another name or "
            f"bring it back: mlflow experiments restore --experiment-id {found.experiment_id}"
        )
    if found.artifact_location.startswith("mlflow-artifacts:") and not is_server(uri):
        raise TrackingError(
            f"experiment {name!r} was made through an MLflow server, which alone can store its "
            "artifacts; give the server's address as tracking URI, or choose another name"
        )
    for tag, value in ((KIND_TAG, KIND), (NOTE_TAG, EXPERIMENT_NOTE), (VIEW_TAG, _view([]))):
        if tag not in found.tags:
            client.set_experiment_tag(found.experiment_id, tag, value)
    experiment_id: str = found.experiment_id
    return experiment_id


def _get_run(client: MlflowClient, uri: str, run_id: str) -> Run:
    from mlflow.exceptions import MlflowException

    try:
        run: Run = client.get_run(run_id)
    except MlflowException as error:
        if error.error_code not in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
            raise
        found = _started_as(client, run_id)
        if found is None:
            there = _name_runs(client, run_id)
            raise TrackingError(
                f"there is no run {run_id!r} in {without_password(uri)}; {there}"
            ) from None
        run = found
    if run.info.lifecycle_stage == "deleted":
        raise TrackingError(
            f"run {run_id} is deleted; bring it back: mlflow runs restore --run-id {run_id}"
        )
    return run


def _started_as(client: MlflowClient, key: str) -> Run | None:
    """The run that had another id while it waited for its server."""
    if re.fullmatch(r"\w+", key) is None:
        return None
    everywhere = [experiment.experiment_id for experiment in client.search_experiments()]
    where = f"tags.{STARTED_AS_TAG} = '{key}'"
    return next(iter(_search(client, everywhere, where, "attributes.start_time ASC", 1)), None)


def _logged_model(client: MlflowClient, run_id: str) -> LoggedModel | None:
    """The model of a run, if it is one of MLflow's logged models."""
    outputs = client.get_run(run_id).outputs
    models = [] if outputs is None else outputs.model_outputs
    return client.get_logged_model(models[-1].model_id) if models else None


def _search(
    client: MlflowClient, experiments: Sequence[str], where: str, order: str, n: int
) -> Any:
    if not experiments:
        return []
    return client.search_runs(list(experiments), where, max_results=n, order_by=[order])


def _latest_run(client: MlflowClient, uri: str, experiment: str | None) -> Run:
    """The training run that finished last."""
    ids = {e.name: e.experiment_id for e in client.search_experiments()}
    if experiment is not None and experiment not in ids:
        raise TrackingError(
            f"there is no experiment {experiment!r} in {without_password(uri)}; "
            f"there are {', '.join(sorted(ids))}"
        )
    chosen = list(ids.values()) if experiment is None else [ids[experiment]]
    where = "tags.pipeline = 'train' and attributes.status = 'FINISHED'"
    found = _search(client, chosen, where, "attributes.end_time DESC", 1)
    if found:
        run: Run = found[0]
        return run
    raise TrackingError(
        f"no training run has finished yet in {without_password(uri)}; {_name_runs(client, '')}"
    )


def _name_runs(client: MlflowClient, wanted: str) -> str:
    """What a person may have meant: runs with a similar id or name, else the newest ones."""
    everywhere = [e.experiment_id for e in client.search_experiments()]
    runs = _search(client, everywhere, "", "attributes.start_time DESC", 1000)
    if not runs:
        return "it holds no runs at all: train one first"
    by_text: dict[str, Any] = {}
    for run in reversed(runs):  # of two runs with one name the newest stays
        by_text[run.info.run_name] = run
        by_text[run.info.run_id] = run
    prefixes = [text for text in by_text if wanted and text.startswith(wanted)]
    near = prefixes or difflib.get_close_matches(wanted, by_text, n=3, cutoff=0.7)
    shown = {by_text[text].info.run_id: by_text[text] for text in near}
    listed = ", ".join(
        f"{run.info.run_id} ({run.info.run_name}, {run.info.status})"
        for run in (list(shown.values()) or runs)[:3]
    )
    return f"did you mean {listed}?" if shown else f"the newest are {listed}; 'latest' works too"


def _view(metrics: Sequence[str]) -> str:
    """The tag that the UI reads a view from."""
    at = int(time.time() * 1000)
    widths = VIEW_COLUMNS | dict.fromkeys(metrics, VIEW_METRIC_WIDTH)
    state = {
        "orderByKey": "attributes.start_time",
        "orderByAsc": False,
        "selectedColumns": list(widths),
        "columnOrder": list(widths),
        "columnWidths": widths,
    }
    return json.dumps({"name": VIEW, "createdAt": at, "updatedAt": at, "state": json.dumps(state)})


def _columns_of(view: str | None) -> list[str] | None:
    """The columns of a view as `_view` wrote it; None of one that somebody changed since."""
    if view is None:
        return []
    try:
        found = json.loads(view)
        if found["updatedAt"] != found["createdAt"]:
            return None
        return list(json.loads(found["state"])["selectedColumns"])
    except (ValueError, KeyError, TypeError):
        return None


# ---------------------------------------------------------------------------------------------
# Names, values, files


def _flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Nested mappings to dotted keys; every other value as one text."""
    flat: dict[str, str] = {}
    for key, value in values.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping) and value:
            flat |= _flatten(value, f"{name}.")
        elif isinstance(value, str):
            flat[name] = value
        else:
            flat[name] = json.dumps(value, ensure_ascii=False, default=str)
    return flat


def _check_name(name: str, what: str) -> None:
    """MLflow's rule, said before anything is sent."""
    if not _NAME.fullmatch(name) or len(name) > KEY_LIMIT or not _is_plain_path(name):
        raise TrackingError(
            f"{what} {name!r} is not a name MLflow takes: at most {KEY_LIMIT} letters, digits, "
            f"'_', '-', '.', ':', '/' and spaces, not like a path that leads elsewhere; "
            f"nearest: {_legal(name)[:KEY_LIMIT]!r}"
        )


def _check_artifact_name(name: str) -> None:
    assert name and _is_plain_path(name) and "\\" not in name, f"not an artifact name: {name!r}"


def _is_plain_path(name: str) -> bool:
    return os.path.normpath(name) == name and name != "." and not name.startswith(("..", "/"))


def _legal(name: str) -> str:
    text = re.sub(r"[^/\w.\- :]", "_", name) or "_"
    if _is_plain_path(text):
        return text
    return re.sub(r"[/.]+", ".", text).strip(".") or "_"


def _slug(name: str) -> str:
    """A folder name that cannot be taken for one of MLflow's own experiment folders."""
    text = re.sub(r"[^\w.\-]+", "_", name).strip("._") or "experiment"
    return f"experiment-{text}" if text.isdigit() else text


def _same(value: float) -> str:
    """A value as text, so that NaN equals NaN; infinities as MLflow stores them."""
    if math.isinf(value):
        value = math.copysign(sys.float_info.max, value)
    return repr(value)


def _clip(text: str, limit: int) -> str:
    return text if len(text) <= limit else text[: limit - 1] + "…"


def without_password(text: str) -> str:
    """`scheme://user:password@host` without the password."""
    return _PASSWORD.sub(r"\1:***@", str(text))


def server_name(uri: str) -> str:
    """The address of a server as it is kept and compared: without password."""
    return without_password(uri).rstrip("/")


def _local_folder(artifact_uri: str) -> Path | None:
    """The folder behind a `file:` URI or plain path; None for a remote store."""
    parts = urlsplit(artifact_uri)
    if parts.scheme == "file":
        return Path(unquote(parts.path))
    return None if "://" in artifact_uri or ":/" in artifact_uri else Path(artifact_uri)


def _write_whole(path: Path, content: bytes | memoryview) -> None:
    """The file appears with all its content or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with aside.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        aside.replace(path)
    finally:
        aside.unlink(missing_ok=True)


def _copy_whole(source: Path, path: Path) -> None:
    """As `_write_whole`, for a file that need not fit into memory."""
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with source.open("rb") as old, aside.open("wb") as new:
            shutil.copyfileobj(old, new, 1 << 20)
            new.flush()
            os.fsync(new.fileno())
        aside.replace(path)
    finally:
        aside.unlink(missing_ok=True)


@contextmanager
def _without_interrupts() -> Iterator[None]:
    """A second Ctrl-C must not leave a run half closed. Signals belong to the main thread."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.getsignal(signal.SIGINT)
    if before is None:  # set by something that is not Python: cannot be put back
        yield
        return
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _git_state(file: Path) -> tuple[str | None, bool]:
    """Commit of the repository that holds a file, and whether anything differs from it.

    Only of a repository that tracks this very file: a virtual environment may lie inside somebody
    else's.
    """

    def git(*arguments: str) -> str | None:
        try:
            done = subprocess.run(
                ["git", "-C", str(file.parent), *arguments],
                capture_output=True,
                text=True,
                timeout=10,
                check=False,
            )
        except (OSError, subprocess.TimeoutExpired):
            return None
        return done.stdout.strip() if done.returncode == 0 else None

    if git("ls-files", "--error-unmatch", file.name) is None:
        return None, False
    return git("rev-parse", "HEAD"), bool(git("status", "--porcelain"))
