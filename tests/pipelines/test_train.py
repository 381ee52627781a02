"""Train, evaluate and resume through the real commands, on a small log with real tracking."""

from __future__ import annotations

import json
import signal
import sqlite3
import subprocess
import sys
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from pipelines.entry import compose
from pipelines.schemas import TrainConfig
from pipelines.train import run
from recsys.testing import planted_log
from tests.pipelines.conftest import Place

SMALL = [
    "data=log",
    "data.path=log.parquet",
    "data.name=planted",
    "data.columns.time=null",
    "data.columns.order=at",
    "data.repeats=true",
    "model.width=8",
    "model.max_length=40",
    "trainer.max_epochs=3",
    "trainer.tokens_per_batch=600",
    "trainer.learning_rate=0.01",
    "trainer.warmup_steps=2",
    "split.validation_users=all",
]


def write_log(path: Path, users: int = 60) -> None:
    store = planted_log(users)
    lengths = store.lengths
    frame = pl.DataFrame(
        {
            "user": [f"u{u}" for u, n in enumerate(lengths) for _ in range(n)],
            "item": store.item_vocabulary.raw(store.items),
            "at": [i for n in lengths for i in range(n)],
            "time": [86_400 * i + u for u, n in enumerate(lengths) for i in range(n)],
        }
    )
    frame.write_parquet(path)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Place, dict[str, Any], str]:
    """A place with one finished training run, its result file, and what it printed."""
    place = Place(tmp_path_factory.mktemp("trained"))
    write_log(place.folder / "log.parquet")
    done = place.command("train", *SMALL, "result=out/result.json")
    assert done.returncode == 0, done.stderr
    return place, json.loads((place.folder / "out/result.json").read_text()), done.stdout


def artifacts(place: Place, run_id: str) -> Path:
    (found,) = place.home.glob(f"mlruns/**/{run_id}/artifacts")
    return found


def model_folder(place: Place, run_id: str) -> Path:
    """Where MLflow keeps the model of a run."""
    models = place.home.glob("mlruns/*/models/*/artifacts/MLmodel")
    (found,) = (file.parent for file in models if f"run_id: {run_id}" in file.read_text())
    return found


SHARES = {"hr", "ndcg", "mrr", "recall", "precision", "map", "coverage", "gini", "serendipity"}


def test_the_table_and_the_way_to_the_run(trained: tuple[Place, dict[str, Any], str]) -> None:
    _, result, printed = trained
    assert [row["model"] for row in result["rows"]] == [
        "SASRec",
        "Popularity",
        "Markov",
        "ItemKNN",
        "EASE",
        "iALS",
    ]
    assert set(result) >= {"run_id", "seconds", "peak_memory_gb", "rows"}
    assert result["seconds"] > 0 and 0.1 < result["peak_memory_gb"] < 10
    for row in result["rows"]:
        for name, value in row["metrics"].items():
            assert name.startswith("test/loo-full-all/")
            if name.rpartition("/")[2].rpartition("_")[0] in SHARES:
                assert 0 <= value <= 1, name
    lines = printed.splitlines()
    heading = next(i for i, line in enumerate(lines) if "test/loo-full-all · 60 questions" in line)
    assert lines[heading + 2].startswith("([…]: 95 % intervals over users")
    assert lines[heading + 4].split() == ["model", "HR@10", "NDCG@10", "MRR@10", "coverage@10"]
    assert lines[heading + 6].startswith("SASRec")
    assert "all items, seen too" in lines[heading + 1]
    assert lines[-1].endswith(f"python -m pipelines.ui run={result['run_id']}")


def test_nothing_is_left_in_the_working_directory(
    trained: tuple[Place, dict[str, Any], str],
) -> None:
    place, _, _ = trained
    assert {path.name for path in place.folder.iterdir()} == {"log.parquet", "out", "home"}
    assert {path.name for path in place.home.iterdir()} == {"data", "mlflow.db", "mlruns"}


def test_the_run_holds_everything(trained: tuple[Place, dict[str, Any], str]) -> None:
    place, result, _ = trained
    folder = artifacts(place, result["run_id"])
    for name in (
        "config.yaml",
        "ingest_report.json",
        "table.txt",
        "table.json",
        "figures/loss.png",
        "figures/validation.png",
        "per_question/test/SASRec.parquet",
        "per_question/test/EASE.parquet",
    ):
        assert (folder / name).stat().st_size > 0, name
    for name in ("MLmodel", "model.json", "weights.safetensors", "items.parquet"):
        assert (model_folder(place, result["run_id"]) / name).stat().st_size > 0, name
    frame = pl.read_parquet(folder / "per_question/test/SASRec.parquet").sort("user")
    assert len(frame) == 60
    log = pl.read_parquet(place.folder / "log.parquet")
    last = log.group_by("user", maintain_order=True).last().sort("user")
    assert frame["answer"].to_list() == last["item"].to_list()
    # The popularity list knows neither test nor validation.
    items = pl.read_parquet(model_folder(place, result["run_id"]) / "items.parquet")
    assert items["count"].sum() == len(log) - 2 * 60
    assert frame["history_length"].to_list() == last["at"].to_list()
    assert frame["ndcg_10"].mean() == pytest.approx(
        result["rows"][0]["metrics"]["test/loo-full-all/ndcg_10"], abs=1e-12
    )
    with sqlite3.connect(place.home / "mlflow.db") as database:
        metrics = dict(
            database.execute(
                "select key, value from latest_metrics where run_uuid = ?", (result["run_id"],)
            ).fetchall()
        )
        params = dict(
            database.execute(
                "select key, value from params where run_uuid = ?", (result["run_id"],)
            ).fetchall()
        )
        tags = dict(
            database.execute(
                "select key, value from tags where run_uuid = ?", (result["run_id"],)
            ).fetchall()
        )
    assert metrics["test/loo-full-all/hr_10"] == pytest.approx(
        result["rows"][0]["metrics"]["test/loo-full-all/hr_10"]
    )
    assert metrics.keys() >= {
        "train/loss",
        "train/loss_step",
        "train/learning_rate",
        "val/loo-full-all/ndcg_10",
        "best_epoch",
        "best/val/loo-full-all/ndcg_10",
        "versus/EASE/val/loo-full-all/ndcg_10",
        "versus/EASE/test/loo-full-all/ndcg_10",
        "cost/seconds",
    }
    assert params["model.width"] == "8" and params["data.columns.order"] == "at"
    assert {"git.commit", "git.dirty", "store", "protocol"} <= tags.keys()


def test_evaluation_gives_the_same_digits(trained: tuple[Place, dict[str, Any], str]) -> None:
    place, result, _ = trained
    done = place.command("evaluate", "run=latest", "result=again.json")
    assert done.returncode == 0, done.stderr
    again = json.loads((place.folder / "again.json").read_text())
    (place.folder / "again.json").unlink()
    assert again["rows"] == result["rows"]
    assert again["run_id"] != result["run_id"]
    other = place.here(
        "evaluate",
        f"run={result['run_id']}",
        "evaluation.ks=[1,50]",
        "evaluation.tie_seed=3",
        "result=other.json",
    )
    assert other.returncode == 0, other.stderr
    assert "evaluation.ks is [1, 50] here and was [5, 10, 20] in training" in other.stdout
    row, *beside = json.loads((place.folder / "other.json").read_text())["rows"]
    (place.folder / "other.json").unlink()
    assert len(beside) == 5
    assert row["metrics"]["test/loo-full-all/hr_50"] >= row["metrics"]["test/loo-full-all/hr_1"]
    evaluation = refused(place, "evaluate", f"run={again['run_id']}")
    assert "is a run of evaluate, which holds no model" in evaluation


def without_vectors(rows: list[dict[str, Any]]) -> list[dict[str, float]]:
    """Metrics by ranks: item vectors of runs on other threads differ in their last bits."""
    return [
        {name: value for name, value in row["metrics"].items() if "vector_diversity" not in name}
        for row in rows
    ]


def test_same_seed_same_digits_and_another_seed_others(
    trained: tuple[Place, dict[str, Any], str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    place, result, _ = trained
    monkeypatch.chdir(place.folder)  # in this process, which saves two starts
    monkeypatch.setenv("RECSYS_HOME", str(place.home))
    for seed, same in ((1, True), (2, False)):
        run(compose("train", TrainConfig, [*SMALL, f"seed={seed}", "result=out/again.json"]))
        again = json.loads((place.folder / "out/again.json").read_text())
        ours, theirs = (without_vectors(found["rows"]) for found in (again, result))
        assert (ours[0] == theirs[0]) == same
        assert ours[1:] == theirs[1:]  # baselines, from the cache
        assert "fitting the baselines" not in capsys.readouterr().out


def test_ctrl_c_then_resume_equals_uninterrupted(
    trained: tuple[Place, dict[str, Any], str],
) -> None:
    place, _, _ = trained
    long = [*SMALL, "trainer.max_epochs=6", "trainer.patience=null", "evaluation.baselines=false"]
    process = subprocess.Popen(
        [sys.executable, "-m", "pipelines.train", *long],
        cwd=place.folder,
        env=place.environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    run_id = ""
    for line in process.stdout:
        if line.startswith("run "):
            run_id = line.split()[1]
        if line.startswith("epoch 2/"):
            break
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130, errors
    assert "Traceback" not in errors
    assert errors.startswith("Interrupted.\nWhat goes on with it: ")
    assert errors.endswith(f" -m pipelines.train resume={run_id}\n")
    with sqlite3.connect(place.home / "mlflow.db") as database:
        ask = "select status from runs where run_uuid = ?"
        assert database.execute(ask, (run_id,)).fetchone() == ("KILLED",)
    assert (place.home / "data/cache/runs" / run_id / "last.ckpt").exists()

    other = "0.001"  # the shipped default, which is a change here
    changed = place.here("train", f"resume={run_id}", f"trainer.learning_rate={other}")
    assert changed.returncode == 2
    assert f"leave out trainer.learning_rate (0.01 there, {other} here)" in changed.stderr

    resumed = place.here("train", f"resume={run_id}", "result=out/resumed.json")
    assert resumed.returncode == 0, resumed.stderr
    assert "epoch 1/6" not in resumed.stdout and "epoch 6/6" in resumed.stdout
    whole = place.here("train", *long, "result=out/whole.json")
    assert whole.returncode == 0, whole.stderr
    a, b = (json.loads((place.folder / f"out/{n}.json").read_text()) for n in ("resumed", "whole"))
    # The interrupted process ran on other threads: last bits of weights differ.
    assert without_vectors(a["rows"]) == without_vectors(b["rows"])
    assert a["run_id"] == run_id != b["run_id"]
    with sqlite3.connect(place.home / "mlflow.db") as database:
        assert database.execute(ask, (run_id,)).fetchone() == ("FINISHED",)


def refused(place: Place, name: str, *arguments: str) -> str:
    """The message of a command that must fail and leave no new file."""
    before = place.files
    done = place.here(name, *arguments)
    assert done.returncode == 2, (done.returncode, done.stderr)
    assert "Traceback" not in done.stderr
    assert done.stderr.count("Error: ") == 1
    assert place.files == before
    return str(done.stderr)


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["model.heads=3"], "width 8 is not divisible by heads 3; the nearest"),
        (["model.feedforward=0"], "feedforward must be at least 1, not 0"),
        (["model.dropout=1.5"], "dropout must be in [0, 1), not 1.5"),
        (["trainer.monitor=ndgc_10"], "no metric 'ndgc_10'. Did you mean 'ndcg_10'?"),
        (["trainer.max_epochs=0"], "trainer.max_epochs must be at least 1, not 0"),
        (["trainer.validate_every=0"], "trainer.validate_every must be at least 1, not 0"),
        (["trainer.patience=0"], "trainer.patience must be null or at least 1, not 0"),
        (["trainer.weight_decay=-1"], "trainer.weight_decay must not be negative, not -1"),
        (["trainer.learning_rate=0"], "trainer.learning_rate must be positive, not 0"),
        (["trainer.row_updates=touched"], "touched does not go with objective=full_softmax"),
        (["seed=-1"], "seed must not be negative, not -1"),
        (["evaluation.ks=[0]"], "evaluation.ks must hold cut-offs from 1"),
        (["resume=no/such.ckpt"], "resume=no/such.ckpt: there is no such file"),
        (["result=home"], "result=home is a folder"),
    ],
)
def test_wrong_settings_are_refused_before_anything_is_written(
    tmp_path: Path, overrides: list[str], words: str
) -> None:
    place = Place(tmp_path)
    place.home.mkdir()
    write_log(tmp_path / "log.parquet", users=5)
    assert words in refused(place, "train", *SMALL, *overrides)


def test_logs_that_cannot_be_split_say_why(tmp_path: Path) -> None:
    place = Place(tmp_path)
    pl.DataFrame({"user": ["a"] * 5, "item": list("vwxyz"), "at": range(5)}).write_parquet(
        tmp_path / "log.parquet"
    )
    assert "the log holds 1 user" in refused(place, "train", *SMALL)
    pl.DataFrame({"user": list("aabbc"), "item": list("vwxyz"), "at": range(5)}).write_parquet(
        tmp_path / "log.parquet"
    )
    message = refused(place, "train", *SMALL)
    assert "at least 3 events" in message and "longest of 3 histories has 2" in message
    done = place.here("ingest", *SMALL[:6])  # to be ingested it need not be split
    assert done.returncode == 0, done.stderr
    assert "at least 3 events" in refused(place, "train", *SMALL)  # found in the cache


def test_unknown_runs_and_stores_with_other_items_are_refused(
    trained: tuple[Place, dict[str, Any], str], tmp_path: Path
) -> None:
    place, result, _ = trained
    assert "no run" in refused(place, "evaluate", "run=0123456789abcdef0123456789abcdef").lower()
    assert "run= names the run whose model is judged" in refused(place, "evaluate")
    assert "there are no runs yet" in refused(Place(tmp_path), "evaluate", "run=latest")
    other = tmp_path / "other.parquet"
    pl.DataFrame({"user": list("aaabbb"), "item": list("vwxvwx"), "at": range(6)}).write_parquet(
        other
    )
    message = refused(
        place,
        "evaluate",
        f"run={result['run_id']}",
        "data=log",
        f"data.path={other}",
        "data.columns.order=at",
    )
    assert "was trained on other items than this store" in message


def test_truncated_files_are_named(trained: tuple[Place, dict[str, Any], str]) -> None:
    place, result, _ = trained
    checkpoint = place.home / "data/cache/runs" / result["run_id"] / "last.ckpt"
    cut = place.folder / "cut.ckpt"
    cut.write_bytes(checkpoint.read_bytes()[:2000])
    assert "cut.ckpt is not a whole checkpoint" in refused(
        place, "train", *SMALL, "resume=cut.ckpt"
    )
    cut.unlink()
    for file in (
        model_folder(place, result["run_id"]) / "weights.safetensors",
        next((place.home / "data/cache/stores").glob("*/items.npy")),
    ):
        whole = file.read_bytes()
        file.write_bytes(whole[:-10])
        try:
            message = refused(place, "evaluate", f"run={result['run_id']}")
        finally:
            file.write_bytes(whole)
        assert file.name in message


def test_a_full_disk_is_said_and_leaves_no_half_checkpoint(
    trained: tuple[Place, dict[str, Any], str],
) -> None:
    place, _, _ = trained
    before = {path for path in place.files if "runs" in path}
    # Room for the database and the batch journal, not for a checkpoint.
    done = place.command(
        "train", *SMALL, "model.width=512", "trainer.max_epochs=1", largest_file=4_000_000
    )
    assert done.returncode == 1, done.stderr
    assert "disk is full" in done.stderr and "Traceback" not in done.stderr
    assert not [p for p in place.files - before if p.endswith((".writing", ".ckpt", "model.json"))]
    with sqlite3.connect(place.home / "mlflow.db") as database:
        (status,) = database.execute(
            "select status from runs order by start_time desc limit 1"
        ).fetchone()
    assert status == "FAILED"
