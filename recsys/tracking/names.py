"""What MLflow takes for names and values, and the tags that runs are told apart by."""

from __future__ import annotations

import json
import math
import os
import re
import sys
from collections.abc import Mapping
from typing import Any

from recsys.tracking.store import TrackingError

NOTE_TAG = "mlflow.note.content"
PARENT_TAG = "mlflow.parentRunId"
# By it a run is found again whose server went away before it could say the id.
STARTED_AS_TAG = "started_as"
CLOSED_TAG = "closed"
# MLflow's limits (mlflow.utils.validation). Beyond them it cuts values and only logs a warning.
PARAM_VALUE_LIMIT = 6000
KEY_LIMIT = 250
TAG_VALUE_LIMIT = 8000
METRICS_A_BATCH = 1000
_NAME = re.compile(r"[/\w.\- :]+")


def flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Nested mappings to dotted keys; every other value as one text."""
    flat: dict[str, str] = {}
    for key, value in values.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping) and value:
            flat |= flatten(value, f"{name}.")
        elif isinstance(value, str):
            flat[name] = value
        else:
            flat[name] = json.dumps(value, ensure_ascii=False, default=str)
    return flat


def check_name(name: str, what: str) -> None:
    """MLflow's rule, said before anything is sent."""
    if not _NAME.fullmatch(name) or len(name) > KEY_LIMIT or not is_plain_path(name):
        raise TrackingError(
            f"{what} {name!r} is not a name MLflow takes: at most {KEY_LIMIT} letters, digits, "
            f"'_', '-', '.', ':', '/' and spaces, not like a path that leads elsewhere; "
            f"nearest: {legal_name(name)[:KEY_LIMIT]!r}"
        )


def check_artifact_name(name: str) -> None:
    """Artifacts have names that we give them."""
    assert name and is_plain_path(name) and "\\" not in name, f"not an artifact name: {name!r}"


def is_plain_path(name: str) -> bool:
    """Whether a name is a path that stays where it is."""
    return os.path.normpath(name) == name and name != "." and not name.startswith(("..", "/"))


def legal_name(name: str) -> str:
    """The nearest name that MLflow takes."""
    text = re.sub(r"[^/\w.\- :]", "_", name) or "_"
    if is_plain_path(text):
        return text
    return re.sub(r"[/.]+", ".", text).strip(".") or "_"


def folder_name(name: str) -> str:
    """A folder name that cannot be taken for one of MLflow's own experiment folders."""
    text = re.sub(r"[^\w.\-]+", "_", name).strip("._") or "experiment"
    return f"experiment-{text}" if text.isdigit() else text


def as_stored(value: float) -> str:
    """A value as text, so that NaN equals NaN; infinities as MLflow stores them."""
    if math.isinf(value):
        value = math.copysign(sys.float_info.max, value)
    return repr(value)
