"""Training against a real `mlflow server`: with it, without it, and when it is killed meanwhile."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from pipelines import evaluate, sync, train
from pipelines.checking import ConfigError
from pipelines.entry import compose
from pipelines.schemas import EvaluateConfig, SyncConfig, TrainConfig
from recsys.tracking.run import load_run
from tests.mlflow_server import MlflowServer, held
from tests.pipelines.conftest import Place
from tests.pipelines.test_train import SMALL, write_log

SETTINGS = [*SMALL, "evaluation.baselines=false"]
# What differs between two runs of the same: their process, their clock, their result's name.
OWN_TAGS = ("pid", "process", "command", "mlflow.")


@dataclass
class Story:
    """Three runs of the same settings, and what was printed on the way."""

    place: Place
    server: MlflowServer
    undisturbed: str
    cut: str
    late: str
    said: dict[str, str]
    became: str = ""

    @property
    def outbox(self) -> Path:
        return self.place.home / "data/cache/outbox"


def run_of(printed: str) -> str:
    found = re.search(r"^run (\w{32}) ", printed, re.MULTILINE)
    assert found is not None, printed
    return found.group(1)


@pytest.fixture(scope="module")
def story(empty_store: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Story]:
    """One run with the server, one that loses it, one that never had it; then it is back."""
    place = Place(tmp_path_factory.mktemp("story"))
    write_log(place.folder / "log.parquet")
    shutil.copy(empty_store, place.folder / "server.db")
    server = MlflowServer(place.folder, f"sqlite:///{place.folder / 'server.db'}")
    server.start()
    given = [*SETTINGS, f"tracking.uri={server.address}"]
    try:
        whole = place.command("train", *given, "result=result.json")
        assert whole.returncode == 0, whole.stderr
        said = {"undisturbed": whole.stdout}
        process = subprocess.Popen(
            [sys.executable, "-m", "pipelines.train", *given, "result=result.json"],
            cwd=place.folder,
            env=place.environment(),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert process.stdout is not None
        said["cut"] = ""
        for line in process.stdout:
            said["cut"] += line
            if line.startswith("epoch 1/"):
                server.stop()
        errors = process.communicate(timeout=60)[1]
        assert process.returncode == 0 and errors == "", errors
        late = place.command("train", *given, "result=result.json")
        assert late.returncode == 0 and late.stderr == "", late.stderr
        said["late"] = late.stdout
        yield Story(
            place,
            server,
            *(run_of(said[name]) for name in ("undisturbed", "cut", "late")),
            said,
        )
    finally:
        server.stop()


def here(story: Story, patch: pytest.MonkeyPatch) -> list[str]:
    """Commands in this process, which saves their start; returns the server as a setting."""
    patch.chdir(story.place.folder)
    patch.setenv("RECSYS_HOME", str(story.place.home))
    return [f"tracking.uri={story.server.address}"]


def test_training_goes_on_and_says_so_once(story: Story) -> None:
    assert "outbox" not in story.said["undisturbed"]
    assert (
        story.said["undisturbed"]
        .splitlines()[-1]
        .endswith(f"pipelines.ui run={story.undisturbed} tracking.uri={story.server.address}")
    )
    for name, run in (("cut", story.cut), ("late", story.late)):
        lines = story.said[name].splitlines()
        (line,) = (line for line in lines if "The run goes on" in line)
        assert "Connection refused" in line and str(story.outbox / run) in line
        assert lines[-1].startswith("its results wait on this machine")
        assert lines[-1].endswith(f"pipelines.sync tracking.uri={story.server.address}")
        assert "epoch 3/3" in story.said[name]
    result = json.loads((story.place.folder / "result.json").read_text())
    assert result["run_id"] == story.late


def test_while_it_waits(story: Story, monkeypatch: pytest.MonkeyPatch) -> None:
    server = here(story, monkeypatch)
    for run in (story.cut, story.late):
        with pytest.raises(
            ConfigError, match=r"waits in .*deliver it with python -m pipelines.syn"
        ):
            evaluate.implied([f"run={run}", *server])
    before = {path: path.read_bytes() for path in story.outbox.rglob("*") if path.is_file()}
    code = sync.run(compose("sync", SyncConfig, []))
    assert code == 1
    assert {p: p.read_bytes() for p in story.outbox.rglob("*") if p.is_file()} == before


def test_the_server_is_back(story: Story, monkeypatch: pytest.MonkeyPatch) -> None:
    server = here(story, monkeypatch)
    story.server.start()
    done = story.place.command("sync", *server)
    assert done.returncode == 0 and done.stderr == "", done.stderr
    lines = done.stdout.splitlines()
    assert lines[0].startswith(f"delivered {story.cut} (SASRec planted") and "FINISHED" in lines[0]
    became = re.fullmatch(rf"delivered {story.late} .* as run (\w+): FINISHED", lines[1])
    assert became is not None, lines
    story.became = became.group(1)
    assert lines[2] == "2 delivered, 0 waiting, 0 closed"
    assert lines[3].endswith(f"pipelines.ui run={story.became} {server[0]}")
    assert [path.name for path in story.outbox.iterdir()] == [f"{story.late}.delivered.json"]
    again = story.place.command("sync", *server)
    assert again.stdout == "0 delivered, 0 waiting, 0 closed\n", again.stderr


def test_they_hold_what_the_undisturbed_run_holds(story: Story) -> None:
    expected = comparable(held(story.server.address, story.undisturbed))
    assert {
        "config.yaml",
        "model/model.json",
        "model/weights.safetensors",
        "figures/loss.png",
        "per_question/test/SASRec.parquet",
        "table.json",
    } <= expected["artifacts"].keys()
    assert {step for step, _ in expected["metrics"]["val/loo-full-all/ndcg_10"]} == {1, 2, 3}
    assert len(expected["inputs"]) == 1 and expected["status"] == "FINISHED"
    for run in (story.cut, story.became):
        found = comparable(held(story.server.address, run))
        for what, value in expected.items():
            assert found[what] == value, what


def comparable(run: dict[str, Any]) -> dict[str, Any]:
    """Without what differs between two undisturbed runs."""
    tags = {k: v for k, v in run["tags"].items() if not k.startswith(OWN_TAGS)}
    metrics = {
        name: [step for step, _ in points] if name.startswith("cost/") else points
        for name, points in run["metrics"].items()
    }
    return {**run, "tags": tags, "metrics": metrics}


def test_evaluation_reads_the_delivered_run(story: Story, monkeypatch: pytest.MonkeyPatch) -> None:
    server = here(story, monkeypatch)
    monkeypatch.setattr(torch, "set_num_threads", torch.set_num_threads)
    given = [f"run={story.late}", *server, "evaluation.baselines=false", "result=again.json"]
    config = compose("evaluate", EvaluateConfig, [*evaluate.implied(given), *given])
    evaluate.run(config)  # by the id it was trained under
    again = json.loads(Path("again.json").read_text())
    trained = json.loads(Path("result.json").read_text())
    metrics = again["rows"][0]["metrics"]
    assert metrics["test/loo-full-all/ndcg_10"] == pytest.approx(
        trained["rows"][0]["metrics"]["test/loo-full-all/ndcg_10"]
    )
    found = load_run(story.server.address, again["run_id"])
    assert (found.status, found.tags["evaluates"]) == ("FINISHED", story.became)
    assert train.find_checkpoint(
        compose("train", TrainConfig, [f"resume={story.late}", *server])
    ) == (story.became, story.place.home / f"data/cache/runs/{story.became}/last.ckpt")
