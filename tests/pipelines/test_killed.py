"""kill −9 wherever training stands: `resume=` ends at the digits of the uninterrupted run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from pipelines.entry import compose
from pipelines.schemas import TrainConfig
from pipelines.train import run
from recsys.tracking.reading import load_run
from tests.pipelines.conftest import Place
from tests.pipelines.test_train import SMALL, without_vectors, write_log

SETTINGS = [
    *SMALL,
    "evaluation.baselines=false",
    "trainer.checkpoint_seconds=0",
    "trainer.average_weights=0.9",
    "model.dropout=0.3",
]
# The command, in a process that kills itself when METHOD of CLASS is called the COUNTth time.
KILLED = """
import os, signal, sys
from recsys.training import callbacks
from pipelines import entry, judging, train

def kill_at(owner, name, count, before):
    method, calls = getattr(owner, name), []
    def wrapped(*arguments):
        calls.append(name)
        if before and len(calls) == count:
            os.kill(os.getpid(), signal.SIGKILL)
        result = method(*arguments)
        if len(calls) == count:
            os.kill(os.getpid(), signal.SIGKILL)
        return result
    setattr(owner, name, wrapped)

{kill}
entry.main("train", train.TrainConfig, train.run, "")
"""
PLACES = {
    "in the middle of an epoch": (
        'kill_at(callbacks.ChooseOnValidation, "on_train_batch_end", {steps} + 3, True)'
    ),
    "at the end of an epoch": 'kill_at(callbacks.KeepLast, "on_train_epoch_end", 2, False)',
    "before an epoch's end is kept": 'kill_at(callbacks.KeepLast, "on_train_epoch_end", 2, True)',
    "during validation": 'kill_at(judging.Judge, "ask", 2, True)',
}


def rows(folder: Path, *overrides: str) -> Any:
    """The final table of a run in this process."""
    run(compose("train", TrainConfig, [*overrides, "result=result.json"]))
    found = json.loads((folder / "result.json").read_text())["rows"]
    # What was killed ran on other threads: last bits of weights differ.
    return without_vectors(found)


@pytest.fixture(scope="module")
def whole(empty_store: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The uninterrupted run's table."""
    place = Place(tmp_path_factory.mktemp("whole")).stocked(empty_store)
    folder = place.folder
    with pytest.MonkeyPatch.context() as patched:
        patched.chdir(folder)
        patched.setenv("RECSYS_HOME", str(place.home))
        write_log(folder / "log.parquet")
        return rows(folder, *SETTINGS)


@pytest.mark.parametrize("where", PLACES)
def test_killed_and_resumed_equals_uninterrupted(
    tmp_path: Path, empty_store: Path, monkeypatch: pytest.MonkeyPatch, whole: Any, where: str
) -> None:
    place = Place(tmp_path).stocked(empty_store)
    write_log(tmp_path / "log.parquet")
    program = KILLED.format(kill=PLACES[where].format(steps=8))
    killed = place.python("-c", program, *SETTINGS)
    assert killed.returncode == -9, killed.stderr
    run_id = next(line for line in killed.stdout.splitlines() if line.startswith("run ")).split()[1]
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("RECSYS_HOME", str(place.home))
    assert load_run(f"sqlite:///{place.home / 'mlflow.db'}", run_id).status == "RUNNING"
    assert rows(tmp_path, f"resume={run_id}") == whole
