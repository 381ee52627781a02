"""Runs as the store holds them: found by id, name of the wait, or as the latest."""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from recsys.tracking.experiments import ExperimentInfo
from recsys.tracking.names import NOTE_TAG, PARENT_TAG, STARTED_AS_TAG, as_stored
from recsys.tracking.outbox import MODEL, Outbox
from recsys.tracking.store import (
    SECONDS_TO_ANSWER_A_FILE,
    TrackingError,
    local_folder,
    open_client,
    store_errors,
    without_password,
)

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import LoggedModel, Run


OF_MLFLOW = (NOTE_TAG, PARENT_TAG)  # of its own tags, those that say something of the run


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
        tags: without MLflow's own, but for the description and the run above.
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
        client = open_client(self.uri)
        doing = f"read the artifacts of run {self.run_id}"
        with store_errors(self.uri, doing, SECONDS_TO_ANSWER_A_FILE):
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
        client = open_client(self.uri)
        with store_errors(self.uri, f"read the model of run {self.run_id}"):
            logged = logged_model(client, self.run_id)
            if logged is not None:
                if str(logged.status) != "READY":
                    raise TrackingError(
                        f"the model of run {self.run_id} ({self.name}, {self.status}) was not "
                        "stored whole; resume the run, or train again"
                    )
                folder = local_folder(logged.artifact_location)
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
    client = open_client(uri, create=False)
    with store_errors(uri, f"read run {run_id!r}"):
        if run_id == "latest":
            run = _latest_run(client, uri, experiment)
        else:
            run = run_of_id(client, uri, run_id)
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
        tags={k: v for k, v in tags.items() if not k.startswith("mlflow.") or k in OF_MLFLOW},
        metrics=dict(run.data.metrics),
        artifacts=local_folder(run.info.artifact_uri),
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


def latest_run_id(uri: str, experiment: ExperimentInfo) -> str | None:
    """The run of an experiment that began last, whatever became of it; None where there is none."""
    client = open_client(uri, create=False)
    with store_errors(uri, "look for the latest run"):
        found = search_runs(client, [experiment.experiment_id], "", "attributes.start_time DESC", 1)
    return found[0].info.run_id if found else None


def run_of_id(client: MlflowClient, uri: str, run_id: str) -> Run:
    """A run by its id, or by the one it had while it waited for its server.

    Raises:
        TrackingError: there is none, with what may have been meant, or it is deleted.
    """
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
    return next(iter(search_runs(client, everywhere, where, "attributes.start_time ASC", 1)), None)


def logged_model(client: MlflowClient, run_id: str) -> LoggedModel | None:
    """The model of a run, if it is one of MLflow's logged models."""
    outputs = client.get_run(run_id).outputs
    models = [] if outputs is None else outputs.model_outputs
    return client.get_logged_model(models[-1].model_id) if models else None


def reported_points(client: MlflowClient, uri: str, run_id: str, name: str) -> set[tuple[int, str]]:
    """The points of a metric that the store holds."""
    with store_errors(uri, f"read metric {name!r} of run {run_id}"):
        past = client.get_metric_history(run_id, name)
    return {(point.step, as_stored(point.value)) for point in past}


def search_runs(
    client: MlflowClient, experiments: Sequence[str], where: str, order: str, n: int
) -> Any:
    """At most `n` runs; MLflow takes no empty list of experiments."""
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
    found = search_runs(client, chosen, where, "attributes.end_time DESC", 1)
    if found:
        run: Run = found[0]
        return run
    raise TrackingError(
        f"no training run has finished yet in {without_password(uri)}; {_name_runs(client, '')}"
    )


def _name_runs(client: MlflowClient, wanted: str) -> str:
    """What a person may have meant: runs with a similar id or name, else the newest ones."""
    everywhere = [e.experiment_id for e in client.search_experiments()]
    runs = search_runs(client, everywhere, "", "attributes.start_time DESC", 1000)
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
