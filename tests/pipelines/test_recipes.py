"""Every recipe we ship runs one step on somebody's own log, with real tracking."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from pipelines.entry import choices, compose
from pipelines.schemas import TrainConfig
from tests.pipelines.test_train import write_log


@pytest.mark.parametrize("recipe", choices("experiment"))
def test_recipe_runs_on_another_log(
    recipe: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from pipelines.train import run

    monkeypatch.setenv("RECSYS_HOME", str(tmp_path / "home"))
    write_log(tmp_path / "log.parquet", users=12)
    config = compose(
        "train",
        TrainConfig,
        [
            f"experiment={recipe}",
            "data=log",
            f"data.path={tmp_path / 'log.parquet'}",
            "data.columns.order=at",
            "trainer.max_epochs=1",
            "trainer.tokens_per_batch=100000",
            f"result={tmp_path / 'result.json'}",
        ],
    )
    run(config)
    result = json.loads((tmp_path / "result.json").read_text())
    assert result["rows"][0]["model"] == "SASRec"
    assert (tmp_path / "home/mlflow.db").exists()
    assert result["run_id"] in capsys.readouterr().out
