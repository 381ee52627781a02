"""Every YAML we ship runs one step on a small log, with real tracking."""

from __future__ import annotations

import json
from pathlib import Path

import polars as pl
import pytest

from pipelines.entry import choices, compose
from pipelines.schemas import TrainConfig
from pipelines.train import run
from recsys.testing import planted_log
from recsys.tracking.reading import load_run
from tests.pipelines.conftest import Place
from tests.pipelines.test_train import write_log


@pytest.fixture(autouse=True)
def place(tmp_path: Path, empty_store: Path, monkeypatch: pytest.MonkeyPatch) -> Place:
    place = Place(tmp_path).stocked(empty_store)
    monkeypatch.setenv("RECSYS_HOME", str(place.home))
    return place


def trained(tmp_path: Path, overrides: list[str]) -> dict[str, float]:
    """The trained model's metrics, after one epoch."""
    result = tmp_path / "result.json"
    run(compose("train", TrainConfig, [*overrides, "trainer.max_epochs=1", f"result={result}"]))
    (first, *_) = json.loads(result.read_text())["rows"]
    metrics: dict[str, float] = first["metrics"]
    return metrics


@pytest.mark.parametrize("recipe", choices("experiment"))
def test_recipe_runs_on_another_log(recipe: str, tmp_path: Path, place: Place) -> None:
    log = tmp_path / "log.parquet"
    write_log(log, users=12)
    mine = [f"experiment={recipe}", "data=log", f"data.path={log}", "data.columns.order=at"]
    if compose("train", TrainConfig, mine).questions.name == "clicks":
        mine += ["questions.negatives_per_positive=1"]
    else:
        mine += ["trainer.tokens_per_batch=100000"]
    if compose("train", TrainConfig, mine).split.name == "time":
        mine += ["data.columns.time=at"]
    metrics = trained(tmp_path, mine)
    assert all(name.startswith("test/") for name in metrics)
    run = load_run(f"sqlite:///{place.home / 'mlflow.db'}", "latest")
    assert run.status == "FINISHED" and metrics.items() <= run.metrics.items()


@pytest.mark.parametrize(
    "choice",
    [f"objective={name}" for name in choices("objective") if name not in ("cross_entropy", "own")]
    + [f"model={name}" for name in choices("model") if name not in ("sasrec", "own", "own_ranker")]
    + ["split=share", "split=time split.target=all"],
)
def test_every_choice_runs_a_step(choice: str, tmp_path: Path) -> None:
    log = tmp_path / "log.parquet"
    write_log(log, users=12)
    small = ["data=log", f"data.path={log}", "data.columns.time=at", "model.max_length=10"]
    if choice.startswith("model="):
        small += ["questions.negatives_per_positive=1", "trainer.rows_per_batch=100"]
    else:
        small += ["model.width=8", "trainer.tokens_per_batch=100000"]
    trained(tmp_path, [*small, "evaluation.baselines=false", *choice.split()])


# What is one's own needs a package: test_extending.py.
@pytest.mark.parametrize("data", [name for name in choices("data") if name != "own"])
def test_data_set_runs_from_a_local_copy(data: str, tmp_path: Path) -> None:
    store = planted_log(users=12)
    lengths = store.lengths
    events = int(lengths.sum())
    copy = pl.DataFrame(
        {
            "user_id": [user for user, n in enumerate(lengths) for _ in range(n)],
            "item_id": store.items,
            "rating": [1.0 + i % 5 for i in range(events)],
            "timestamp": [978_300_000 + 60 * i for i in range(events)],
            "position": [i for n in lengths for i in range(n)],
            "label": [int(i % 5 >= 3) for i in range(events)],
        }
    )
    if data == "log":
        copy = copy.rename({"user_id": "user", "item_id": "item", "timestamp": "time"})
    copy.write_parquet(tmp_path / "copy.parquet")
    path = f"data.path={tmp_path / 'copy.parquet'}"
    small = ["model.width=8", "model.max_length=10", "trainer.tokens_per_batch=100000"]
    metrics = trained(tmp_path, [f"data={data}", path, *small])
    seen = "all" if data == "ta_feng" else "unseen"  # buying again is a right answer there
    assert metrics[f"test/loo-full-{seen}/questions"] == 12
