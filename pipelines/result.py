"""The final table of a command as JSON, for other tools to read."""

from __future__ import annotations

import json
import resource
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any


def peak_memory_gb() -> float:
    """The most memory this process has held, in GB (10⁹ bytes)."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak * (1 if sys.platform == "darwin" else 1024) / 1e9


def check_result_path(path: str | None) -> None:
    """Refuse a `result=` that cannot be written, before any work starts.

    Raises:
        ValueError: the path is a folder.
    """
    if path is not None and Path(path).is_dir():
        raise ValueError(f"result={path} is a folder: add the name of a file in it.")


def without_nan(value: Any) -> Any:
    """Values as JSON knows them: null for a number that is not defined.

    >>> without_nan({"a": [1.0, float("nan")]})
    {'a': [1.0, None]}
    """
    if isinstance(value, dict):
        return {key: without_nan(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [without_nan(inner) for inner in value]
    return None if isinstance(value, float) and value != value else value


def write_result(
    path: str | None,
    *,
    run_id: str | None,
    seconds: float,
    rows: Sequence[dict[str, Any]],
    **more: Any,
) -> None:
    """Write the final table, whole or not at all; missing folders are made. None writes nothing.

    Args:
        path: the file, `result=` of every command.
        run_id: of the MLflow run, None where there is none.
        seconds: the command took.
        rows: `{"model": name, "metrics": {name: value}}` each; a metric that is not defined (NaN)
            is written as null.
        more: further top-level keys of this command.
    """
    from recsys.logs.files import write_text

    if path is None:
        return
    table = {
        "run_id": run_id,
        "seconds": round(seconds, 3),
        "peak_memory_gb": round(peak_memory_gb(), 4),
        "rows": list(rows),
        **more,
    }
    write_text(Path(path), json.dumps(without_nan(table), indent=2, allow_nan=False) + "\n")
