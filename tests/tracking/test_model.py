"""The model of a run: whole or said not to be, one for each run, and the older ones too."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path

import pytest
from mlflow import MlflowClient

from recsys.tracking.delivery import deliver
from recsys.tracking.reading import RunInfo, load_run
from recsys.tracking.run import TrackedRun
from recsys.tracking.store import OutOfReach, TrackingError

Start = Callable[..., TrackedRun]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "made here"
    (made / "code").mkdir(parents=True)
    (made / "MLmodel").write_text("flavors: {}\n")
    (made / "code" / "a.py").write_text("A = 1\n")
    (made / "weights.bin").write_bytes(b"old")
    return made


def info_of(run: TrackedRun) -> RunInfo:
    return load_run(run.uri, run.run_id)


def test_a_model_is_logged_once_and_read_in_place(start: Start, root: Path, folder: Path) -> None:
    with start() as run:
        run.model(folder, "SASRec", {"width": 8, "deep": {"er": [1]}})
    found = info_of(run).model()
    assert found.is_relative_to(root)
    files = {str(file.relative_to(found)) for file in found.rglob("*") if file.is_file()}
    assert files == {"MLmodel", "code/a.py", "weights.bin"}
    assert f"run_id: {run.run_id}" in (found / "MLmodel").read_text()
    (logged,) = run._client.search_logged_models([run.experiment_id])
    assert logged.params == {"width": "8", "deep.er": "[1]"} and logged.model_type == "SASRec"
    assert f"model_id: {logged.model_id}" in (found / "MLmodel").read_text()


def test_interrupted_and_resumed(
    start: Start, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    run = start()
    with pytest.raises(OSError, match="No space left"), run, monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        run.model(folder, "SASRec", {})
    with pytest.raises(TrackingError, match=r"\(.*, FAILED\) was not stored whole; resume the run"):
        info_of(run).model()
    for content in (b"second", b"third"):  # resumed before, and after, it was whole
        (folder / "weights.bin").write_bytes(content)
        with start(run_id=run.run_id) as again:
            again.model(folder, "SASRec", {})
        assert (info_of(run).model() / "weights.bin").read_bytes() == content
    assert len(run._client.search_logged_models([run.experiment_id])) == 1


def test_a_model_whose_making_was_not_answered_is_not_made_twice(
    start: Start, root: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def lost(*_: object) -> None:
        raise OutOfReach("no answer")

    with start(outbox=root / "o", say=lambda _: None) as run, monkeypatch.context() as patch:
        patch.setattr(MlflowClient, "log_outputs", lost)  # it is made, and nothing of the run yet
        run.model(folder, "SASRec", {})
        patch.undo()
    with start() as other:  # has one of its own
        other.model(folder, "SASRec", {})
    assert deliver(root / "o" / run.run_id, run.uri).status == "FINISHED"
    logged = run._client.search_logged_models([run.experiment_id])
    assert sorted(one.source_run_id for one in logged) == sorted([run.run_id, other.run_id])
    assert (info_of(run).model() / "weights.bin").read_bytes() == b"old"


def test_older_runs_and_runs_without(start: Start, folder: Path) -> None:
    with start() as run:
        run.artifact_file(folder / "weights.bin", "model")
    assert (info_of(run).model() / "weights.bin").read_bytes() == b"old"
    with start() as other:
        pass
    with pytest.raises(TrackingError, match=r"has no artifact 'model'; it has config.yaml"):
        info_of(other).model()
