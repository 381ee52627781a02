"""One run of a pipeline, reported to MLflow.

MLflow is imported when the first store is opened, not when this file is: that takes two seconds,
and `--help` or a cached ingest must not pay for it.

Training reports through a small protocol (metrics by name and step); `TrackedRun` fulfils it.
Nothing here knows what a model or a config is: parameters come as nested plain values, artifacts
as text, JSON values, Polars frames, figures or files.
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
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, Self
from urllib.parse import unquote, urlsplit

import recsys

if TYPE_CHECKING:
    import polars as pl
    from matplotlib.figure import Figure
    from mlflow import MlflowClient
    from mlflow.entities import Experiment, Metric, Run

Status = Literal["FINISHED", "FAILED", "KILLED"]

# The kind sends the UI to the table of runs instead of the overview of GenAI traces. Where its
# sidebar has the switch "GenAI | Model training" (seen in 3.17.2), that switch decides instead; it
# stands on GenAI in a new browser, and only the address can say otherwise.
KIND_TAG = "mlflow.experimentKind"
KIND = "custom_model_development"
TRAINING_VIEW = "workflowType=machine_learning"
NOTE_TAG = "mlflow.note.content"
EXPERIMENT_NOTE = "Runs of recsys: switch to *Model training* at the top left to see their table."

# MLflow's limits (mlflow.utils.validation). Beyond them it cuts values and only logs a warning.
PARAM_VALUE_LIMIT = 6000
KEY_LIMIT = 250
TAG_VALUE_LIMIT = 8000
PARAMS_A_BATCH = 100
METRICS_A_BATCH = 1000

FLUSH_AFTER_METRICS = 500
FLUSH_AFTER_SECONDS = 2.0

_NAME = re.compile(r"[/\w.\- :]+")
_PASSWORD = re.compile(r"(://[^/\s:@]*):[^/\s@]+@")
_PACKAGES = ("torch", "pytorch-lightning", "polars", "numpy", "mlflow")


class TrackingError(ValueError):
    """A run, store or name that MLflow cannot serve, said so that one can act on it."""


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
    exception (whose traceback becomes the artifact `error.txt`). Metrics are sent in batches, at
    the latest after two seconds, and whole when the block is left.

    Attributes:
        run_id: MLflow's id of the run.
        experiment_id: MLflow's id of the experiment.
        uri: the store.
    """

    def __init__(self, client: MlflowClient, run: Run, uri: str, resumed: bool) -> None:
        """Use `TrackedRun.start`."""
        self.run_id: str = run.info.run_id
        self.experiment_id: str = run.info.experiment_id
        self.uri = uri
        self._client = client
        self._local_artifacts = _local_folder(run.info.artifact_uri)
        self._resumed = resumed
        self._history: dict[str, set[tuple[int, str]]] = {}
        self._pending: list[Metric] = []
        self._last_flush = time.monotonic()
        self._finished = False

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
    ) -> TrackedRun:
        """Opens a new run, or takes up an interrupted one.

        Args:
            uri: `sqlite:///FILE`, made if absent, or the address of an MLflow server.
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
                never changes them: what differs now is kept in `resumed/N/`.

        Raises:
            TrackingError: store out of reach or not one, experiment deleted, no such run.
            OSError: the store cannot be written (full disk, no permission).
        """
        client = _open_client(uri)
        with _store_errors(uri, f"start a run in experiment {experiment!r}"):
            all_tags = {
                key: _clip(without_password(value), TAG_VALUE_LIMIT)
                for key, value in {**tags, "pipeline": pipeline}.items()
            }
            if parent_run_id is not None:
                all_tags["mlflow.parentRunId"] = parent_run_id
            if run_id is not None:
                run = _get_run(client, uri, run_id)
            else:
                experiment_id = _experiment_id(client, uri, experiment, artifact_root)
                run = client.create_run(experiment_id, run_name=run_name, tags=all_tags)
        tracked = cls(client, run, uri, resumed=run_id is not None)
        try:
            with _store_errors(uri, f"write run {tracked.run_id}"):
                if run_id is None:
                    tracked._write_params(_flatten(params))
                    tracked.artifact_text("config.yaml", without_password(config_yaml))
                else:
                    tracked._take_up(run, _flatten(params), config_yaml, all_tags)
            if description:
                tracked.describe(description)
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
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        for name, value in values.items():
            _check_name(name, "metric")
            point = (int(step), _same(float(value)))
            if self._resumed and point in self._points(name):
                continue
            self._pending.append(Metric(name, float(value), now, int(step)))
        late = time.monotonic() - self._last_flush > FLUSH_AFTER_SECONDS
        if late or len(self._pending) >= FLUSH_AFTER_METRICS:
            self.flush()

    def flush(self) -> None:
        """Sends the metrics that still wait."""
        self._last_flush = time.monotonic()
        while self._pending:
            batch = self._pending[:METRICS_A_BATCH]
            with _store_errors(self.uri, f"write metrics of run {self.run_id}"):
                self._client.log_batch(self.run_id, metrics=batch)
            # Only now: a Ctrl-C above leaves them pending, and MLflow drops exact doubles.
            del self._pending[: len(batch)]

    def _points(self, name: str) -> set[tuple[int, str]]:
        """What the interrupted run has already reported of a metric."""
        if name not in self._history:
            with _store_errors(self.uri, f"read metric {name!r} of run {self.run_id}"):
                past = self._client.get_metric_history(self.run_id, name)
            self._history[name] = {(point.step, _same(point.value)) for point in past}
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
            with _store_errors(self.uri, f"send artifact {name!r}"):
                self._client.log_artifact(self.run_id, str(local_path), folder or None)

    def figure(self, name: str, figure: Figure) -> None:
        """Keeps a Matplotlib figure; the suffix of `name` (`.png`, `.svg`) decides the format."""
        buffer = io.BytesIO()
        suffix = PurePosixPath(name).suffix.lstrip(".")
        figure.savefig(buffer, format=suffix, dpi=120, bbox_inches="tight")
        self._write_artifact(name, buffer.getbuffer())

    def _write_artifact(self, name: str, content: bytes | memoryview) -> None:
        _check_artifact_name(name)
        if self._local_artifacts is not None:
            _write_whole(self._local_artifacts / name, content)
            return
        with tempfile.TemporaryDirectory() as aside:
            path = Path(aside) / PurePosixPath(name).name
            path.write_bytes(content)
            folder = PurePosixPath(name).parent.as_posix()
            with _store_errors(self.uri, f"send artifact {name!r}"):
                self._client.log_artifact(self.run_id, str(path), None if folder == "." else folder)

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
        from mlflow.entities import Dataset, DatasetInput, InputTag

        source = without_password(source)
        remote = source.startswith(("http://", "https://"))
        schema = [{"type": kind, "name": column} for column, kind in (columns or {}).items()]
        entity = Dataset(
            name=name,
            digest=digest[:12],
            source_type="http" if remote else "local",
            source=json.dumps({"url" if remote else "uri": source}),
            schema=json.dumps({"mlflow_colspec": schema}) if schema else None,
            profile=json.dumps({**profile, "fingerprint": digest}, default=str),
        )
        with _store_errors(self.uri, f"write the data set of run {self.run_id}"):
            label = InputTag("mlflow.data.context", context)
            self._client.log_inputs(self.run_id, [DatasetInput(entity, [label])])
            self._client.set_tag(self.run_id, f"dataset.{_legal(name)}", digest)

    def describe(self, markdown: str) -> None:
        """Sets the description on top of the run's page."""
        self.tag(NOTE_TAG, markdown)

    def tag(self, key: str, value: str) -> None:
        """Sets or changes a tag. A value beyond MLflow's 8,000 characters ends in `…`."""
        _check_name(key, "tag")
        with _store_errors(self.uri, f"write tag {key!r} of run {self.run_id}"):
            text = _clip(without_password(value), TAG_VALUE_LIMIT)
            self._client.set_tag(self.run_id, key, text)

    def _write_params(self, flat: Mapping[str, str]) -> None:
        """Writes flat params; what MLflow cannot hold goes whole into `params_long.json`."""
        from mlflow.entities import Param

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
        entities = [Param(name, value) for name, value in kept.items()]
        for begin in range(0, len(entities), PARAMS_A_BATCH):
            self._client.log_batch(self.run_id, params=entities[begin : begin + PARAMS_A_BATCH])
        if whole:
            self.artifact_json("params_long.json", whole)

    def _take_up(
        self, run: Run, flat: Mapping[str, str], config_yaml: str, tags: Mapping[str, str]
    ) -> None:
        """Goes on with an interrupted run, and keeps what differs from its first start."""
        before = run.data.tags
        times = int(before.get("resumed", "0")) + 1
        known = run.data.params
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
        self.artifact_json(
            f"resumed/{times}/changes.json",
            {"status_before": run.info.status, "params": changed, "tags": tag_changes},
        )
        self.artifact_text(f"resumed/{times}/config.yaml", without_password(config_yaml))
        self._client.update_run(self.run_id, status="RUNNING")
        if "error" in before:
            self._client.delete_tag(self.run_id, "error")
        for key, value in {**tags, "resumed": str(times)}.items():
            if before.get(key) != value:
                self._client.set_tag(self.run_id, key, value)
        self._write_params({key: value for key, value in flat.items() if key not in known})

    # -- the end

    def finish(self, status: Status = "FINISHED") -> None:
        """Sends what waits and sets the final status; later calls change nothing."""
        if self._finished:
            return
        with _without_interrupts():
            self.flush()
            self._close(status)

    def _finish_after(self, error: BaseException) -> None:
        """Finishes with the status an exception means; never hides that exception."""
        if isinstance(error, SystemExit) and error.code in (None, 0):
            return self.finish()
        if self._finished:
            return
        status: Status = "KILLED" if isinstance(error, KeyboardInterrupt) else "FAILED"
        trace = "".join(traceback.format_exception(error))
        with _without_interrupts():
            # Each on its own: on a full disk some of them may still succeed.
            for step in (
                self.flush,
                lambda: self.tag("error", f"{type(error).__name__}: {error}"[:1000]),
                lambda: self.artifact_text("error.txt", trace),
                lambda: self._close(status),
            ):
                try:
                    step()
                except (ValueError, OSError) as second:
                    error.add_note(f"(also, for run {self.run_id}: {second})")

    def _close(self, status: Status) -> None:
        with _store_errors(self.uri, f"finish run {self.run_id}"):
            self._client.set_terminated(self.run_id, status)
        self._finished = True


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

    def artifact(self, name: str) -> Path:
        """A local path of an artifact (file or folder), fetched first if it lies on a server.

        Raises:
            TrackingError: the run has no such artifact.
        """
        if self.artifacts is not None and (self.artifacts / name).exists():
            return self.artifacts / name
        client = _open_client(self.uri)
        with _store_errors(self.uri, f"read the artifacts of run {self.run_id}"):
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


def load_run(uri: str, run_id: str, *, experiment: str | None = None) -> RunInfo:
    """Reads a run. The store is not made if it does not exist.

    Args:
        uri: the store.
        run_id: MLflow's id, or `latest`: the training run that finished last.
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
    )


@dataclass(frozen=True)
class ExperimentInfo:
    """An experiment as the store holds it; name, place and moment tell it from every other.

    Attributes:
        name: of the experiment.
        experiment_id: MLflow's id of it.
        artifact_location: folder or address of its artifacts.
        creation_time: in milliseconds since 1970.
    """

    name: str
    experiment_id: str
    artifact_location: str
    creation_time: int | None


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
        found.name, found.experiment_id, found.artifact_location, found.creation_time
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
        where = f"tags.`mlflow.parentRunId` = '{parent_run_id}' and attributes.status = 'RUNNING'"
        experiment = [parent.info.experiment_id]
        for run in _search(client, experiment, where, "attributes.start_time ASC", 1000):
            client.set_terminated(run.info.run_id, "KILLED")


def environment_tags() -> dict[str, str]:
    """What a result depends on besides config and data: code, versions, machine.

    Returns:
        `git.commit` and `git.dirty` of the code that runs (`none` where it is not a checkout),
        `version.*`, `python`, `platform`, `host`, `pid`, `cpus`, `command`, and the names under
        which MLflow's own columns show user and commit.
    """
    commit, dirty = _git_state(Path(__file__).resolve())
    tags = {
        "git.commit": commit or "none",
        "git.dirty": str(dirty).lower(),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "host": platform.node(),
        "pid": str(os.getpid()),
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
    if is_server(uri):
        # The default, 7 with growing pauses, is four minutes of silence on a wrong address.
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "3")

    from mlflow import MlflowClient

    for name, level in (
        ("mlflow", logging.WARNING),  # "Creating initial MLflow database tables..."
        ("mlflow.store.db.utils", logging.CRITICAL),  # tracebacks; ours say it in a sentence
        ("alembic", logging.WARNING),
    ):
        logging.getLogger(name).setLevel(level)
    with _store_errors(uri, "open the tracking store"):
        return MlflowClient(tracking_uri=uri)


@contextmanager
def _store_errors(uri: str, doing: str) -> Iterator[None]:
    """Turns MLflow's exceptions into ours: what could not be done, where, why, in one line."""
    from mlflow.exceptions import MlflowException
    from sqlalchemy.exc import SQLAlchemyError

    try:
        yield
    except (MlflowException, SQLAlchemyError) as error:
        reason = str(error).strip()
        lines = reason.splitlines() or [type(error).__name__]
        where = without_password(uri)
        if re.search(r"disk is full|disk I/O error|readonly database|unable to open", reason):
            message = f"cannot {doing} in {where}: {lines[0]}"
            raise OSError(errno.ENOSPC if "disk" in reason else errno.EACCES, message) from error
        raise TrackingError(f"cannot {doing} in {where}: {_clip(lines[0], 400)}") from error


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
                name, location, tags={KIND_TAG: KIND, NOTE_TAG: EXPERIMENT_NOTE}
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
    if KIND_TAG not in found.tags:
        client.set_experiment_tag(found.experiment_id, KIND_TAG, KIND)
    experiment_id: str = found.experiment_id
    return experiment_id


def _get_run(client: MlflowClient, uri: str, run_id: str) -> Run:
    from mlflow.exceptions import MlflowException

    try:
        run: Run = client.get_run(run_id)
    except MlflowException as error:
        if error.error_code not in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
            raise
        raise TrackingError(
            f"there is no run {run_id!r} in {without_password(uri)}; {_name_runs(client, run_id)}"
        ) from None
    if run.info.lifecycle_stage == "deleted":
        raise TrackingError(
            f"run {run_id} is deleted; bring it back: mlflow runs restore --run-id {run_id}"
        )
    return run


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
