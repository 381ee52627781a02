"""Runs in a store of their own."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from recsys.tracking.run import TrackedRun
from recsys.tracking.store import local_store


@pytest.fixture
def root(tmp_path: Path, empty_store: Path) -> Path:
    """A project folder, with a space in its name, that holds an empty store."""
    folder = tmp_path / "a project"
    folder.mkdir()
    shutil.copy(empty_store, folder / "mlflow.db")
    return folder


@pytest.fixture
def start(root: Path) -> Callable[..., TrackedRun]:
    """Starts a run in `root`; whatever a test does not care about has a value."""
    uri, artifacts = local_store(root)

    def _start(**changes) -> TrackedRun:
        given = {
            "uri": uri,
            "artifact_root": artifacts,
            "experiment": "recsys",
            "run_name": "sasrec on ml_100k",
            "params": {},
            "config_yaml": "seed: 0\n",
            "tags": {},
        }
        return TrackedRun.start(**{**given, **changes})

    return _start
