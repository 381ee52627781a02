"""What a run says, one operation after the other; told twice, each is as if told once.

`run.py` performs them as they come, `delivery.py` those that waited in the outbox.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, Literal

from recsys.logs.files import copy_file
from recsys.tracking.names import NOTE_TAG, PARENT_TAG, TAG_VALUE_LIMIT
from recsys.tracking.outbox import MODEL
from recsys.tracking.reading import logged_model, run_of_id, search_runs
from recsys.tracking.store import (
    SECONDS_TO_ANSWER_A_FILE,
    clipped,
    local_folder,
    open_client,
    store_errors,
    without_password,
)

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import RunData

Status = Literal["FINISHED", "FAILED", "KILLED"]
# What a description says until there is a result, or a reason why there is none.
NO_RESULT = "No result yet."


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
    client.set_tag(run_id, NOTE_TAG, clipped(without_password(note), TAG_VALUE_LIMIT))


def _how_to_go_on(client: MlflowClient, run_id: str, data: RunData) -> str:
    """How far a run came, and the command that goes on with it, if there is one.

    What stands below another run, such as the winner of a study, is gone on with by that one alone.
    """
    if data.tags.get("pipeline") == "tune":
        return f" The same command goes on with study={data.tags.get('study')}."
    if "train/loss" not in data.metrics:
        return ""
    epoch = max(point.step for point in client.get_metric_history(run_id, "train/loss"))
    said = f" Its last whole epoch was {epoch}"
    if data.tags.get("pipeline") != "train" or PARENT_TAG in data.tags:
        return f"{said}."
    command = f"python -m pipelines.train resume={run_id}"
    if (uri := data.params.get("tracking.uri", "null")) != "null":
        command += f" {shlex.quote(f'tracking.uri={uri}')}"
    return f"{said}: `{command}` goes on."


def as_code(text: str) -> str:
    """The first line of a text, in Markdown, whatever is in it."""
    return f"`{clipped(text.splitlines()[0].replace('`', chr(39)), 400)}`"


def send_file(client: MlflowClient, uri: str, run_id: str, name: str, path: Path) -> None:
    """Sends a file, whose name is the last part of the artifact's."""
    folder = PurePosixPath(name).parent.as_posix()
    with store_errors(uri, f"send artifact {name!r}", SECONDS_TO_ANSWER_A_FILE):
        client.log_artifact(run_id, str(path), None if folder == "." else folder)


def send_model(
    client: MlflowClient, uri: str, run_id: str, operation: Mapping[str, Any], folder: Path
) -> None:
    """Makes a folder a run's logged model. A run that has one gets it again, and not beside it."""
    from mlflow.entities import LoggedModelOutput
    from mlflow.models import Model

    doing = f"send the model of run {run_id}"
    with store_errors(uri, doing):
        logged = logged_model(client, run_id)
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
    target = local_folder(logged.artifact_location)
    if target is not None:
        for path in sorted(p for p in folder.rglob("*") if p.is_file()):
            copy_file(path, target / path.relative_to(folder))
    with store_errors(uri, doing, SECONDS_TO_ANSWER_A_FILE):
        if target is None:
            client.log_model_artifacts(logged.model_id, str(folder))
        client.finalize_logged_model(logged.model_id, "READY")


def end_open_children(uri: str, parent_run_id: str) -> None:
    """Ends as KILLED the runs below another one that were left open, as by `kill -9`."""
    client = open_client(uri, create=False)
    with store_errors(uri, f"end the runs below {parent_run_id}"):
        parent = run_of_id(client, uri, parent_run_id)
        above = f"tags.`{PARENT_TAG}` = '{parent.info.run_id}'"
        where = f"{above} and attributes.status = 'RUNNING'"
        experiment = [parent.info.experiment_id]
        for run in search_runs(client, experiment, where, "attributes.start_time ASC", 1000):
            perform(client, run.info.run_id, unfinished("KILLED", "the run above began again"))
            client.set_terminated(run.info.run_id, "KILLED")
