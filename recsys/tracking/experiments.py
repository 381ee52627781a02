"""Experiments: found or made, with a note and the columns that their table of runs shows."""

from __future__ import annotations

import difflib
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from recsys.tracking.names import NOTE_TAG, folder_name
from recsys.tracking.store import (
    TrackingError,
    is_server,
    open_client,
    store_errors,
    without_password,
)

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Experiment

# The kind sends the UI to the table of runs instead of the overview of GenAI traces. Where its
# sidebar has the switch "GenAI | Model training" (seen in 3.17.2), that switch decides instead; it
# stands on GenAI in a new browser, and only the address can say otherwise.
KIND_TAG = "mlflow.experimentKind"
KIND = "custom_model_development"
TRAINING_VIEW = "workflowType=machine_learning"
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
    client = open_client(uri, create=False)
    with store_errors(uri, f"read experiment {name!r}"):
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


def experiment_id_of(client: MlflowClient, uri: str, name: str, artifact_root: str | None) -> str:
    """The id of an experiment that is made if absent and opens on its table of runs."""
    from mlflow.exceptions import MlflowException

    found: Experiment | None = client.get_experiment_by_name(name)
    if found is None:
        location = None
        if artifact_root is not None and not is_server(uri):
            folder = artifact_root
            if "://" not in folder:
                folder = Path(folder).resolve().as_uri()
            location = f"{folder.rstrip('/')}/{folder_name(name)}"
        try:
            created: str = client.create_experiment(
                name,
                location,
                tags={KIND_TAG: KIND, NOTE_TAG: EXPERIMENT_NOTE, VIEW_TAG: view_of([])},
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
    for tag, value in ((KIND_TAG, KIND), (NOTE_TAG, EXPERIMENT_NOTE), (VIEW_TAG, view_of([]))):
        if tag not in found.tags:
            client.set_experiment_tag(found.experiment_id, tag, value)
    experiment_id: str = found.experiment_id
    return experiment_id


def view_of(metrics: Sequence[str]) -> str:
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


def columns_of_view(view: str | None) -> list[str] | None:
    """The columns of a view as `view_of` wrote it; None of one that somebody changed since."""
    if view is None:
        return []
    try:
        found = json.loads(view)
        if found["updatedAt"] != found["createdAt"]:
            return None
        return list(json.loads(found["state"])["selectedColumns"])
    except (ValueError, KeyError, TypeError):
        return None
