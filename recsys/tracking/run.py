"""One run of a pipeline, reported to MLflow.

Training reports through a small protocol (metrics by name and step); `TrackedRun` fulfils it.
Nothing here knows what a model or a config is: parameters come as nested plain values, artifacts
as text, JSON values, Polars frames, figures or files.

What a run says is a row of operations (`operations.py`). They go to the store one by one, or, from
the moment a server is out of reach, into the outbox on this disk (`outbox.py`), from where
`delivery.py` sends the same operations.
"""

from __future__ import annotations

import io
import json
import signal
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
from typing import TYPE_CHECKING, Any, Self

from recsys.logs.files import copy_file, write_bytes
from recsys.tracking.experiments import (
    VIEW_COLUMNS,
    VIEW_METRICS,
    VIEW_TAG,
    columns_of_view,
    experiment_id_of,
    view_of,
)
from recsys.tracking.names import (
    CLOSED_TAG,
    KEY_LIMIT,
    METRICS_A_BATCH,
    NOTE_TAG,
    PARAM_VALUE_LIMIT,
    PARENT_TAG,
    STARTED_AS_TAG,
    TAG_VALUE_LIMIT,
    as_stored,
    check_artifact_name,
    check_name,
    flatten,
    legal_name,
)
from recsys.tracking.operations import (
    Status,
    as_code,
    perform,
    send_file,
    send_model,
    unfinished,
)
from recsys.tracking.outbox import Outbox, Waiting, is_unknown, is_waiting
from recsys.tracking.reading import RunInfo, reported_points, run_of_id
from recsys.tracking.store import (
    OutOfReach,
    Refused,
    TrackingError,
    clipped,
    is_database_server,
    is_server,
    local_folder,
    open_client,
    server_name,
    store_errors,
    without_password,
)
from recsys.tracking.system import SystemSampler

if TYPE_CHECKING:
    import polars as pl
    from matplotlib.figure import Figure
    from mlflow import MlflowClient
    from mlflow.entities import Run

PARAMS_A_BATCH = 100
FLUSH_AFTER_METRICS = 500
FLUSH_AFTER_SECONDS = 2.0


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
        self._local_artifacts = None if run is None else local_folder(run.info.artifact_uri)
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
            key: clipped(without_password(value), TAG_VALUE_LIMIT)
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
                client = open_client(uri)
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
                tracked._write_params(flatten(params))
                tracked.artifact_text("config.yaml", start.config_yaml)
            else:
                tracked._take_up(run, flatten(params))
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
            check_name(name, "metric")
            point = (int(step), as_stored(float(value)))
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
                self._history[name] = reported_points(self._client, self.uri, self.run_id, name)
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
        check_artifact_name(name)
        if self._local_artifacts is not None:
            copy_file(local_path, self._local_artifacts / name)
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
            "arguments": flatten(arguments),
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
        check_artifact_name(name)
        if self._local_artifacts is not None:
            write_bytes(self._local_artifacts / name, content)
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
        self._set_tag(f"dataset.{legal_name(name)}", digest)

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
        check_name(key, "tag")
        self._set_tag(key, clipped(without_password(value), TAG_VALUE_LIMIT))

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
        with suppress(TrackingError, OSError), store_errors(self.uri, doing):
            tags = self._client.get_experiment(self.experiment_id).tags
            wanted = [f"metrics.`{name}`" for name in metrics]
            shown = columns_of_view(tags.get(VIEW_TAG))
            if shown is None or all(column in shown for column in wanted):
                return
            known = [column for column in shown if column not in (*VIEW_COLUMNS, *wanted)]
            newest = [*known, *wanted][-VIEW_METRICS:]
            self._client.set_experiment_tag(self.experiment_id, VIEW_TAG, view_of(newest))

    def _write_params(self, flat: Mapping[str, str]) -> None:
        """Writes flat params; what MLflow cannot hold goes whole into `params_long.json`."""
        kept: dict[str, str] = {}
        whole: dict[str, str] = {}
        for key, raw in flat.items():
            value = without_password(raw)
            name = legal_name(key)
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
                with store_errors(self.uri, doing):
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
        why = as_code(f"{type(error).__name__}: {error}")
        if isinstance(error, KeyboardInterrupt):
            status, why = "KILLED", "interrupted by Ctrl-C"
        trace = "".join(traceback.format_exception(error))
        with _without_interrupts():
            # Each on its own: on a full disk some of them may still succeed.
            self._stop_sampling()
            for step in (
                self.flush,
                lambda: self.tag("error", f"{type(error).__name__}: {error}"[:1000]),
                lambda: self.artifact_text("error.txt", without_password(trace)),
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
    with store_errors(uri, f"start a run in experiment {start.experiment!r}"):
        if run_id is not None:
            return run_of_id(client, uri, run_id)
        experiment_id = experiment_id_of(client, uri, start.experiment, artifact_root)
        remote = is_server(uri) or is_database_server(uri)
        tags = {**start.tags, STARTED_AS_TAG: start.key} if remote else start.tags
    # Asked again, a server whose answer was lost would make a second run.
    with store_errors(uri, f"start a run in experiment {start.experiment!r}", retries=0):
        run: Run = client.create_run(experiment_id, start.time, tags, start.name)
        return run


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
