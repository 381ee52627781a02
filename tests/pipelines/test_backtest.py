"""The back-test through the real command: a model a window, one that ages, the right questions."""

from __future__ import annotations

import json
import sqlite3
from pathlib import Path

import polars as pl
import pytest

from tests.pipelines.conftest import Place
from tests.pipelines.test_train import SMALL, artifacts, refused, write_log

SETTINGS = [
    *(s for s in SMALL if not s.startswith(("split.", "data.columns.time", "trainer.max_epochs"))),
    "data.columns.time=time",
    "split.target=all",
    "trainer.max_epochs=2",
    "cuts=[0.5,0.65,0.8]",
]


@pytest.fixture(scope="module")
def place(empty_store: Path, tmp_path_factory: pytest.TempPathFactory) -> Place:
    place = Place(tmp_path_factory.mktemp("backtest")).stocked(empty_store)
    write_log(place.folder / "log.parquet")
    return place


def test_each_window_has_a_model_trained_just_before(place: Place) -> None:
    done = place.here("backtest", *SETTINGS, "result=out.json")
    assert done.returncode == 0, done.stderr
    result = json.loads((place.folder / "out.json").read_text())
    (place.folder / "out.json").unlink()
    windows = json.loads((artifacts(place, result["run_id"]) / "backtest.json").read_text())
    log = pl.read_parquet(place.folder / "log.parquet").sort("time")
    cuts = [log["time"][int(len(log) * cut)] for cut in (0.5, 0.65, 0.8)]
    asked = [
        log.filter(pl.col("time") >= cuts[1], pl.col("time") < cuts[2])["user"].n_unique(),
        log.filter(pl.col("time") >= cuts[2])["user"].n_unique(),
    ]
    assert [window["questions"] for window in windows] == asked
    first, second = windows
    assert first["retrained"]["estimate"] == first["frozen"]["estimate"]
    assert first["lost"]["estimate"] == 0
    assert second["lost"]["estimate"] == pytest.approx(
        second["retrained"]["estimate"] - second["frozen"]["estimate"]
    )
    assert all(found["low"] <= found["high"] for found in second["beside"].values())
    assert set(second["beside"]) == {"Popularity", "Markov", "ItemKNN", "EASE", "iALS"}
    assert (artifacts(place, result["run_id"]) / "figures/staleness.png").stat().st_size > 0
    with sqlite3.connect(place.home / "mlflow.db") as database:
        children = database.execute(
            "select count(*) from tags where key = 'mlflow.parentRunId' and value = ?",
            (result["run_id"],),
        ).fetchone()
    assert children == (2,)
    assert "lost by age" in done.stdout
    table = (artifacts(place, result["run_id"]) / "table.txt").read_text()
    assert "\n(test/time-" in table and "whole catalogue ranked" in table


def test_the_frozen_model_alone_is_trained_once(place: Place) -> None:
    done = place.here(
        "backtest", *SETTINGS, "retrained=false", "evaluation.baselines=false", "result=out.json"
    )
    assert done.returncode == 0, done.stderr
    (place.folder / "out.json").unlink()
    assert done.stdout.count("epoch 2/2") == 1
    assert done.stdout.count("window ") >= 2


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (["cuts=[0.5]"], "a back-test takes at least two"),
        (["retrained=false", "frozen=false"], "leave nobody to ask"),
        (["split.test_cut=0.7"], "are what cuts= sets here"),
        (["split=loo"], "split=loo has no cuts"),
        (["cuts=[0.8,0.6,0.9]"], "must be earlier than"),
        (["resume=abc"], "resume= is of train"),
    ],
)
def test_wrong_settings_are_refused(tmp_path: Path, settings: list[str], words: str) -> None:
    place = Place(tmp_path)
    place.home.mkdir()
    write_log(tmp_path / "log.parquet", users=8)
    given = [s for s in SETTINGS if not ("split=loo" in settings and s.startswith("split."))]
    assert words in refused(place, "backtest", *given, *settings)
