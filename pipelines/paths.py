"""Where the commands keep what they write."""

from __future__ import annotations

import os
import re
from pathlib import Path


def root() -> Path:
    """The folder that holds `data/cache`, `mlflow.db` and `mlruns`.

    Returns:
        `$RECSYS_HOME` if set, else the checkout this file lies in, else the working directory.
    """
    home = os.environ.get("RECSYS_HOME")
    if home:
        return Path(home).expanduser().resolve()
    return checkout() or Path.cwd()


def checkout() -> Path | None:
    """The source tree this package runs from, or None when it was installed from a wheel."""
    folder = Path(__file__).resolve().parent.parent
    project = folder / "pyproject.toml"
    if project.is_file() and re.search(r'^name = "recsys"$', project.read_text(), re.MULTILINE):
        return folder
    return None


def cache_dir() -> Path:
    """Downloads, stores, digests and quarantines."""
    return root() / "data" / "cache"


def outbox_dir() -> Path:
    """What waits until its tracking server can be reached."""
    return cache_dir() / "outbox"


def tracking_uri() -> str:
    """The MLflow store used when `tracking.uri` is null."""
    return f"sqlite:///{root() / 'mlflow.db'}"


def artifact_root() -> Path:
    """The folder of MLflow artifacts used when `tracking.uri` is null."""
    return root() / "mlruns"
