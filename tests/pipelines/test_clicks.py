"""Rankers through the real commands: trained, evaluated, recommended from, refused."""

from __future__ import annotations

import json
import shutil
import sqlite3
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import polars as pl
import pytest

from pipelines.clicks import ClickJudge, click_baselines, click_judge
from pipelines.entry import compose
from pipelines.evaluate import implied
from pipelines.evaluate import run as evaluate
from pipelines.export import run as export
from pipelines.ingest import make_store
from pipelines.recommend import run as recommend
from pipelines.schemas import EvaluateConfig, ExportConfig, RecommendConfig, TrainConfig
from pipelines.train import run
from recsys.evaluation.click_metrics import gauc
from recsys.histories.store import open_store
from recsys.models.baselines.click_means import ItemUserMeans
from recsys.serving.pyfunc import _load_pyfunc
from recsys.testing import planted_clicks
from recsys.training.optimizer import Optimization
from recsys.training.touched_rows import touched_tables
from tests.pipelines.conftest import Place, files_below
from tests.pipelines.test_train import artifacts, model_folder, refused

SMALL = [
    "model=din",
    "data=log",
    "data.path=log.parquet",
    "data.name=planted",
    "data.columns.time=ts",
    "data.columns.label=clicked",
    "model.width=4",
    "model.hidden=[8]",
    "model.attention_units=4",
    "trainer.max_epochs=2",
    "trainer.rows_per_batch=200",
    "trainer.minimum_batches=1",
]
RESULT = "result=result.json"
MODELS = ["DIN", "Item + user mean", "Logistic regression", "Mean pooling"]


def write_log(path: Path, users: int = 40, **columns: Any) -> pl.DataFrame:
    """Users with 20 events of which about half are clicked, three requests of equal time last."""
    draw = np.random.Generator(np.random.PCG64(0))
    histories, _, _ = planted_clicks(users, items=30, length=20)
    rows = [(u, item, t) for u, items in enumerate(histories) for t, item in enumerate(items)]
    frame = pl.DataFrame(
        {
            "user": [f"u{u}" for u, _, _ in rows],
            "item": [f"i{item}" for _, item, _ in rows],
            "ts": [1_600_000_000 + 3600 * t for _, _, t in rows],
            "clicked": draw.integers(0, 2, len(rows)),
            "device": draw.choice(["phone", "desk"], len(rows)),
            **columns,
        }
    )
    frame.write_parquet(path)
    return frame


class Here:
    """A place whose commands run in this process, which saves their imports."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def train(self, *overrides: str) -> dict[str, Any]:
        """Train; the first row's metrics."""
        run(compose("train", TrainConfig, [*overrides, "evaluation.baselines=false", RESULT]))
        (row,) = json.loads((self.folder / "result.json").read_text())["rows"]
        metrics: dict[str, Any] = row["metrics"]
        return metrics

    def recommend(self, *overrides: str) -> pl.DataFrame:
        """The lists for everybody, of the latest run."""
        given = ["run=latest", "output=top.parquet", *overrides]
        recommend(compose("recommend", RecommendConfig, given))
        lists = pl.read_parquet(self.folder / "top.parquet").sort("user", "rank")
        (self.folder / "top.parquet").unlink()
        return lists


@pytest.fixture
def here(tmp_path: Path, empty_store: Path, monkeypatch: pytest.MonkeyPatch) -> Here:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("RECSYS_HOME", str(Place(tmp_path).stocked(empty_store).home))
    return Here(tmp_path)


@pytest.fixture(scope="module")
def trained(
    empty_store: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Place, dict[str, Any], str]:
    place = Place(tmp_path_factory.mktemp("clicks")).stocked(empty_store)
    write_log(place.folder / "log.parquet")
    device = "data.features.device"
    done = place.here(
        "train",
        *SMALL,
        f"{device}.kind=categorical",
        f"{device}.of=context",
        f"{device}.column=device",
        "result=result.json",
    )
    assert done.returncode == 0, done.stderr
    return place, json.loads((place.folder / "result.json").read_text()), done.stdout


def test_the_table_holds_every_baseline(trained: tuple[Place, dict[str, Any], str]) -> None:
    _, result, printed = trained
    assert [row["model"] for row in result["rows"]] == MODELS
    for row in result["rows"]:
        metrics = row["metrics"]
        assert all(name.startswith("test/clicks/") for name in metrics)
        assert 0 <= metrics["test/clicks/auc"] <= 1 and 0 <= metrics["test/clicks/gauc"] <= 1
        assert metrics["test/clicks/questions"] == 80  # 2 of each user's 20
        assert metrics["test/clicks/logloss"] > 0
    assert "planted · test/clicks · 80 questions" in printed
    heading = next(line for line in printed.splitlines() if line.startswith("model "))
    assert heading.split() == ["model", "AUC", "GAUC", "logloss", "NE", "ECE"]


def test_the_report_holds_cohorts_audit_and_calibration(
    trained: tuple[Place, dict[str, Any], str],
) -> None:
    place, result, printed = trained
    folder = artifacts(place, result["run_id"])
    report = json.loads((folder / "report.json").read_text())
    assert len(report["sentinel"]) == len(MODELS) - 1
    assert {part["cohort"] for part in report["cohorts"]} >= {"history_length", "popularity"}
    assert {finding["name"] for finding in report["audit"]} >= {"future", "cold_items"}
    before, temperature, isotonic = report["calibration"].values()
    assert list(report["calibration"])[::2] == ["as it is", "isotonic"]
    assert before["logloss"] == pytest.approx(result["rows"][0]["metrics"]["test/clicks/logloss"])
    assert temperature["auc"] == pytest.approx(before["auc"])  # a temperature keeps the order
    assert 0 <= isotonic["calibration_error"] <= 1
    for metric in ("logloss", "calibration_error"):
        assert isotonic[f"{metric}_low"] < isotonic[metric] < isotonic[f"{metric}_high"]
    for row in result["rows"]:
        assert {metric.rpartition("/")[2] for metric in row["intervals"]} == {
            *("auc", "gauc", "logloss", "normalised_entropy"),
            *("calibration_error", "calibration_error_mass"),
        }
    assert (folder / "figures/reliability.png").stat().st_size > 0
    low, high = result["rows"][0]["intervals"]["test/clicks/auc"]
    assert low < result["rows"][0]["metrics"]["test/clicks/auc"] < high
    assert "split audit of clicks: " in printed and "calibration error " in printed


@pytest.mark.parametrize("metric", ["auc", "logloss"])
def test_rankers_are_compared(trained: tuple[Place, dict[str, Any], str], metric: str) -> None:
    place, result, _ = trained
    done = place.here(
        "compare", f"runs=[{result['run_id']}]", f"metric={metric}", "result=compared.json"
    )
    assert done.returncode == 0, done.stderr
    found = json.loads((place.folder / "compared.json").read_text())["comparison"]
    (place.folder / "compared.json").unlink()
    own = result["rows"][0]["metrics"][f"test/clicks/{metric}"]
    assert found["reference"]["estimate"] == pytest.approx(own)
    for other, row in zip(found["others"], result["rows"][1:], strict=True):
        assert other["other"] == row["model"] and other["verdict"] == "too few"
        theirs = row["metrics"][f"test/clicks/{metric}"]
        assert other["difference"]["estimate"] == pytest.approx(own - theirs)
        questions = other["wins"] + other["ties"] + other["losses"]
        assert questions == (80 if metric == "logloss" else 0)


def test_the_run_holds_the_fitted_features(trained: tuple[Place, dict[str, Any], str]) -> None:
    place, result, _ = trained
    folder, model = (find(place, result["run_id"]) for find in (artifacts, model_folder))
    features = json.loads((model / "features.json").read_text())["features"]
    assert [feature["kind"] for feature in features] == ["user_id", "categorical"]
    arguments = json.loads((model / "model.json").read_text())["arguments"]
    assert arguments["context_fields"] == {"device": 4}
    answers = _load_pyfunc(str(model)).predict(pd.DataFrame({"history": [["i1", "i2"], []]}))
    assert answers["model"].to_list() == ["DIN", "Popularity"]
    assert not {"i1", "i2"} & set(answers["items"][0]) and len(answers["items"][0]) == 10
    frame = pl.read_parquet(folder / "per_question/test/DIN.parquet")
    assert frame.columns[:4] == ["user", "item", "label", "score"] and len(frame) == 80


def test_the_ranker_as_a_file(
    trained: tuple[Place, dict[str, Any], str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    place, result, _ = trained
    monkeypatch.chdir(place.folder)
    monkeypatch.setenv("RECSYS_HOME", str(place.home))
    output = tmp_path / "din.pt2"
    given = [f"run={result['run_id']}", f"output={output}", "format=torch"]
    export(compose("export", ExportConfig, given))
    last = capsys.readouterr().out.splitlines()[-1]
    assert last.endswith(f"pipelines.ui run={result['run_id']}")
    beside = json.loads((tmp_path / "din.pt2.json").read_text())
    assert (beside["model"], beside["output"]) == ("DIN", "logits")
    assert set(beside["inputs"]) == {
        "item_ids",
        "candidates",
        "history",
        "lengths",
        "user.user_id",
        "context.device",
    }


def test_evaluation_gives_the_same_digits(trained: tuple[Place, dict[str, Any], str]) -> None:
    place, result, _ = trained
    done = place.here("evaluate", "run=latest", "result=again.json")
    assert done.returncode == 0, done.stderr
    again = json.loads((place.folder / "again.json").read_text())
    assert again["rows"] == result["rows"]
    assert "training the baseline" not in done.stdout  # from the cache
    message = refused(place, "evaluate", "run=latest", "evaluation=next_item", "evaluation.ks=[1]")
    assert "evaluation=next_item does not go with run" in message
    assert "take evaluation=clicks" in message
    message = refused(place, "evaluate", "run=latest", "evaluation.gauc_weihting=users")
    assert "Did you mean 'evaluation.gauc_weighting'?" in message


def test_settings_of_an_evaluation_are_those_of_the_runs_kind(
    trained: tuple[Place, dict[str, Any], str],
) -> None:
    place, result, _ = trained
    settings = ["evaluation.gauc_weighting=users", "evaluation.baselines=false"]
    run_id = result["run_id"]
    done = place.here("evaluate", f"run={run_id}", *settings, "result=users.json")
    assert done.returncode == 0, done.stderr
    assert "evaluation.gauc_weighting is users here and was impressions in training" in done.stdout
    (row,) = json.loads((place.folder / "users.json").read_text())["rows"]
    before = result["rows"][0]["metrics"]
    assert row["metrics"]["test/clicks/auc"] == before["test/clicks/auc"]
    frame = pl.read_parquet(artifacts(place, run_id) / "per_question/test/DIN.parquet")
    user, label, score = (frame[name].to_numpy() for name in ("user", "label", "score"))
    assert row["metrics"]["test/clicks/gauc"] == gauc(label, score, user, weighting="users")


def test_a_test_that_was_trained_on_is_refused_or_marked(
    trained: tuple[Place, dict[str, Any], str],
) -> None:
    place, result, _ = trained
    again = [f"run={result['run_id']}", "evaluation.baselines=false"]
    cuts = ["split=time", "split.target=successive"]
    cuts += ["split.validation_cut=0.3", "split.test_cut=0.5"]
    message = refused(place, "evaluate", *again, *cuts)
    # Of each user's 20 events the last 10 are asked, of which training had the first 6.
    assert "240 of the 400 test questions have answers" in message
    assert "that the model was trained on (split=share)" in message and "leaks=mark" in message
    done = place.here("evaluate", *again, *cuts, "leaks=mark", "result=leaking.json")
    assert done.returncode == 0, done.stderr
    (row,) = json.loads((place.folder / "leaking.json").read_text())["rows"]
    assert all(name.startswith("test/clicks-time-successive-leaking/") for name in row["metrics"])
    assert "; the model was trained with split=share)" in done.stdout
    done = place.here("evaluate", *again, "split=share", "result=same.json")
    assert done.returncode == 0, done.stderr
    assert json.loads((place.folder / "same.json").read_text())["rows"] == result["rows"][:1]


def test_unknown_categories_are_counted(trained: tuple[Place, dict[str, Any], str]) -> None:
    place, result, _ = trained
    frame = write_log(place.folder / "other.parquet")
    newest = pl.col("ts") == pl.col("ts").max().over("user")
    frame = frame.with_columns(device=pl.when(newest).then(pl.lit("watch")).otherwise("device"))
    frame.write_parquet(place.folder / "other.parquet")
    device = "data.features.device"
    done = place.here(
        "evaluate",
        f"run={result['run_id']}",
        *[argument.replace("log.parquet", "other.parquet") for argument in SMALL[1:6]],
        f"{device}.kind=categorical",
        f"{device}.of=context",
        f"{device}.column=device",
        "evaluation=clicks",
        "evaluation.baselines=false",
    )
    assert done.returncode == 0, done.stderr
    assert "values that training did not know, in the test questions: context.device 40" in (
        done.stdout
    )


def test_positives_only_get_sampled_negatives(here: Here) -> None:
    write_log(here.folder / "log.parquet", users=12)
    plain = [argument for argument in SMALL if "label" not in argument]
    with pytest.raises(ValueError, match="the log has no labels"):
        here.train(*plain)
    sampled = ["questions.negatives_per_positive=2", "questions.sampling=uniform"]
    metrics = here.train(*plain, *sampled)
    assert metrics["test/clicks-uniform2/questions"] == 12 * 2 * 3
    assert 0 <= metrics["test/clicks-uniform2/request_ndcg_5"] <= 1


def test_impressions_are_asked_where_the_data_has_them(
    here: Here, capsys: pytest.CaptureFixture[str]
) -> None:
    events = write_log(here.folder / "log.parquet", users=12)
    shown = events.with_columns(
        ts=pl.col("ts") + 1800, request=pl.col("ts") // 7200, clicked="clicked"
    )
    shown.write_parquet(here.folder / "shown.parquet")
    columns = "data.impressions.columns"
    settings = [
        *[argument for argument in SMALL if "label" not in argument],
        "data.impressions.path=shown.parquet",
        f"{columns}.user=user",
        f"{columns}.item=item",
        f"{columns}.label=clicked",
        f"{columns}.time=ts",
        f"{columns}.request=request",
    ]
    for unused in (
        ["questions.skip_first=2"],
        ["split=loo", "split.validation_users=3"],
        ["split=time", "split.target=all"],
    ):
        with pytest.raises(ValueError, match=f"{unused[-1]} says nothing about impressions"):
            here.train(*settings, *unused)
    metrics = here.train(*settings, "trainer.monitor=request_ndcg_5")
    assert "val/clicks-impressions/request_ndcg_5" in capsys.readouterr().out
    assert {"test/clicks-impressions/auc", "test/clicks-impressions/request_mrr_10"} <= (
        metrics.keys()
    )


def test_a_ranker_is_asked_what_comes_after_a_cut_in_time(here: Here) -> None:
    frame = write_log(here.folder / "log.parquet", users=12)
    metrics = here.train(*SMALL, "split=time", "split.target=all")
    after = frame.filter(pl.col("ts") >= frame["ts"].sort()[int(0.9 * len(frame))])
    assert metrics["test/clicks-time-all/questions"] == len(after) == 24
    assert 0 <= metrics["test/clicks-time-all/auc"] <= 1


def test_labels_as_behaviour_and_stopping_on_a_loss(
    here: Here, capsys: pytest.CaptureFixture[str]
) -> None:
    write_log(here.folder / "log.parquet", users=12)
    here.train(
        *SMALL,
        "questions.history=events",
        "trainer.monitor=logloss",
        "model.heads=2",
        "model.layers=2",
        "model.activation=dice",
        "objective.l2=0",
        "objective.mini_batch_aware=0.01",
    )
    (described,) = here.folder.glob("home/mlruns/**/model.json")
    arguments = json.loads(described.read_text())["arguments"]
    assert arguments["event_fields"] == {"label": 4}
    assert "val/clicks/logloss" in capsys.readouterr().out


def test_what_a_model_reaches_without_histories(
    here: Here, capsys: pytest.CaptureFixture[str]
) -> None:
    write_log(here.folder / "log.parquet", users=12)
    here.train(*SMALL, "questions.history=none")
    assert "history: none" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["objective=bpr"], "objective=bpr does not go with model=din"),
        (["trainer=next_item"], "unknown key 'trainer.rows_per_batch'"),
        (["questions=next_item"], "questions=next_item does not go with model=din"),
        (["trainer.monitor=acu"], "there is no metric 'acu'. Did you mean 'auc'?"),
        (
            ["model.heads=3", "model.score=dot", "model.attention_units=null"],
            "width 4 is not divisible by heads 3",
        ),
        (["model.score=dot"], "score=dot takes attention_units=null"),
        (["questions.sampling=uniform"], "questions.sampling=uniform is of sampled negatives"),
        (["questions.seed=3"], "questions.seed=3 is of sampled negatives, and there are none"),
        (["objective.mini_batch_aware=1"], "two ways to the same end"),
        (["trainer.average_weights=1"], "trainer.average_weights must be at least 0"),
        (["trainer.monitor=request_ndcg_5", "evaluation.baselines=false"], "has no requests"),
        (
            [
                "+data.features.c.kind=categorical",
                "+data.features.c.of=context",
                "+data.features.c.column=clicked",
            ],
            "'clicked' is the answer, which nobody knows",
        ),
        (["data.columns.label=cliked"], "Did you mean 'clicked'?"),
        (["questions.negatives_per_positive=1"], "the log has negatives of its own"),
        (["data.path=same.parquet"], "all 640 training candidates have label 1"),
        (["data.path=other.parquet"], "the label is not 0 or 1: 800"),
        (
            [
                "+data.features.device.kind=numeric",
                "+data.features.device.of=context",
                "+data.features.device.column=device",
            ],
            "column 'device' of context does not hold numbers only",
        ),
        (
            [
                "+data.features.x.kind=categorical",
                "+data.features.x.of=context",
                "+data.features.x.column=devise",
            ],
            "Did you mean 'device'?",
        ),
    ],
)
def test_wrong_settings_and_data_are_refused(here: Here, overrides: list[str], words: str) -> None:
    write_log(here.folder / "log.parquet")
    write_log(here.folder / "same.parquet", clicked=1)
    write_log(here.folder / "other.parquet", clicked=7)
    before = files_below(here.folder)
    with pytest.raises(ValueError) as caught:
        run(compose("train", TrainConfig, [*SMALL, *overrides]))
    assert words in str(caught.value)
    assert all("quarantine" in new for new in files_below(here.folder) - before)


@pytest.mark.parametrize(
    ("stage", "place", "label"), [("validation", -2, 1), ("validation", -2, 0), ("test", -1, 0)]
)
def test_one_class_in_validation_or_test_is_refused(
    here: Here, stage: str, place: int, label: int
) -> None:
    frame = write_log(here.folder / "log.parquet", users=12)
    alike = (pl.int_range(pl.len()) == pl.len() + place).over("user")
    clicked = pl.when(alike).then(label).otherwise("clicked")
    order = pl.int_range(pl.len()).over("user")  # one event a moment
    frame.with_columns(clicked=clicked, ts=order).write_parquet(here.folder / "log.parquet")
    before = files_below(here.folder)
    with pytest.raises(ValueError, match=f"all 12 {stage} candidates have label {label}: AUC"):
        here.train(*SMALL, "split=loo", "trainer.monitor=auc")
    assert files_below(here.folder) == before


def judge_of(*settings: str) -> tuple[TrainConfig, ClickJudge]:
    config = compose("train", TrainConfig, [*SMALL, *settings])
    return config, click_judge(config, open_store(make_store(config.data)))


def test_features_are_fitted_on_training_questions(here: Here) -> None:
    frame = write_log(here.folder / "log.parquet", users=12)
    last = pl.int_range(pl.len()).over("user") >= 16
    device = pl.when(last).then(pl.lit("late")).otherwise("device")
    frame.with_columns(device=device).write_parquet(here.folder / "log.parquet")
    shape = {"kind": "categorical", "of": "context", "column": "device"}
    settings = [f"+data.features.device.{key}={value}" for key, value in shape.items()]
    _, judge = judge_of(*settings, "split=share", "split.share=0.1")
    asked = {stage: len(judge.questions(stage)) for stage in ("val", "test")}
    assert judge.split.training.rows.max() % 20 < 16 and min(asked.values()) == 24
    for stage, count in asked.items():
        assert judge.unknown_values(stage) == {"context.device": count}


def test_baselines_of_a_ranker_are_its_own_network_and_means_of_training(
    here: Here, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_log(here.folder / "log.parquet", users=12)
    changed = {
        "max_length": 7,
        "width": 6,
        "field_width": 5,
        "hidden": [9, 4],
        "activation": "prelu",
        "dropout": 0.1,
        "embedding_dropout": 0.2,
        "biases": True,
        "initial_scale": 0.3,
    }
    settings = [f"model.{key}={value}".replace(" ", "") for key, value in changed.items()]
    config, judge = judge_of(*settings, "objective.l2=0.7")
    trained = []
    monkeypatch.setattr(
        "pipelines.clicks.trained_baseline", lambda own, _: (trained.append(own), 1)
    )
    beside = click_baselines(config, judge)
    assert list(beside) == ["Item + user mean", "Logistic regression", "Mean pooling"]
    linear, pooling = trained
    assert asdict(pooling.model) == {"name": "mean_pooling", **changed}
    assert pooling.objective == config.objective and pooling.trainer == config.trainer
    assert linear.model.max_length == 7 and linear.objective.l2 == 0
    asked, means = judge.split.training, beside["Item + user mean"]
    assert isinstance(means, ItemUserMeans)
    sizes = judge.store.users, judge.store.catalogue_size
    own = ItemUserMeans().fit(asked.users, asked.candidates, asked.labels, *sizes)
    np.testing.assert_array_equal(means.item_log_odds_V, own.item_log_odds_V)
    np.testing.assert_array_equal(means.user_shifts_U, own.user_shifts_U)


def test_a_monitor_without_a_value_is_refused(here: Here) -> None:
    write_log(here.folder / "log.parquet", users=12)
    before = files_below(here.folder)
    with pytest.raises(ValueError, match=r"trainer\.monitor=gauc is not defined on the 12 valid"):
        here.train(*SMALL, "split=loo", "trainer.monitor=gauc")
    assert files_below(here.folder) == before
    metrics = here.train(*SMALL, "split=loo")
    assert metrics["test/clicks-loo/gauc"] is None  # in the table it is a null


def test_unusable_rows_are_said(here: Here, capsys: pytest.CaptureFixture[str]) -> None:
    frame = write_log(here.folder / "log.parquet", users=12)
    item = pl.when(pl.int_range(pl.len()) == 3).then(None).otherwise("item")
    frame.with_columns(item=item).write_parquet(here.folder / "log.parquet")
    here.train(*SMALL)
    aside = "1 rows of the log could not be used ("
    assert aside in (said := capsys.readouterr().out), said
    of_run = [*implied(["run=latest"]), "run=latest"]
    evaluate(compose("evaluate", EvaluateConfig, of_run))
    assert aside in (said := capsys.readouterr().out), said
    here.recommend("k=1")
    assert aside in (said := capsys.readouterr().out), said


def test_every_setting_reaches_training(here: Here, monkeypatch: pytest.MonkeyPatch) -> None:
    write_log(here.folder / "log.parquet", users=12)
    seen: dict[str, Any] = {}

    class Seen(Exception):
        pass

    def fit(task: Any, batches: Any, **options: Any) -> None:
        seen.update(options, task=task, batches=batches)
        raise Seen

    monkeypatch.setattr("recsys.training.fit.fit", fit)
    settings = [
        *SMALL,
        "model.max_length=7",
        "trainer.max_epochs=5",
        "trainer.patience=4",
        "trainer.validate_every=3",
        "trainer.monitor=logloss",
        "trainer.rows_per_batch=50",
        "trainer.minimum_batches=6",
        "trainer.learning_rate=0.5",
        "trainer.weight_decay=0.25",
        "trainer.warmup_steps=2",
        "trainer.schedule=cosine",
        "trainer.beta2=0.9",
        "trainer.precision=bf16",
        "trainer.checkpoint_seconds=7",
        "trainer.average_weights=0.9",
        "trainer.row_updates=touched",
        "seed=11",
    ]
    with pytest.raises(Seen):
        here.train(*settings)
    task, batches = seen["task"], seen["batches"]
    assert task.optimization == Optimization(0.5, 0.25, 2, 5 * 6, "cosine", beta2=0.9)
    identity = batches.identity()
    assert (identity["seed"], identity["max_length"]) == (11, 7) and len(batches) == 6
    assert (seen["max_epochs"], seen["patience"], seen["validate_every"]) == (5, 4, 3)
    assert seen["monitor"] == "val/clicks/logloss" and seen["smaller_is_better"]
    assert (seen["precision"], seen["checkpoint_seconds"]) == ("bf16", 7)
    assert seen["average_weights"] == 0.9 and seen["resume"] is None
    assert task.penalty.weight == 0.01  # objective.l2
    assert "inputs.items.weight" in touched_tables(task.model)
    for monitor, smaller in (("auc", False), ("gauc", False), ("calibration_error", True)):
        with pytest.raises(Seen):
            here.train(*settings, f"trainer.monitor={monitor}")
        assert seen["smaller_is_better"] is smaller
        assert seen["monitor"] in seen["validate"](task.model.eval())


def test_a_plan_trains_nothing_and_memory_is_refused_beforehand(
    here: Here, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    write_log(here.folder / "log.parquet", users=12)
    run(compose("train", TrainConfig, [*SMALL, "plan=true"]))
    said = capsys.readouterr().out
    assert "activations" in said and "steps an epoch" in said and "2 epochs at most" in said
    with sqlite3.connect(here.folder / "home/mlflow.db") as database:
        assert database.execute("select count(*) from runs").fetchone() == (0,)
    monkeypatch.setattr("recsys.training.plan.available_memory", lambda: 1000)
    for more in (["plan=true"], []):
        with pytest.raises(ValueError, match=r"0 MB of memory are free.*trainer\.rows_per_batch"):
            run(compose("train", TrainConfig, [*SMALL, "trainer.rows_per_batch=9000", *more]))


def test_a_next_item_model_does_not_take_click_groups(tmp_path: Path) -> None:
    message = refused(Place(tmp_path), "train", "trainer=clicks")
    assert "trainer=clicks does not go with model=sasrec" in message
    assert "take trainer=next_item" in message


def test_recommend_lists_from_a_ranker(here: Here, capsys: pytest.CaptureFixture[str]) -> None:
    write_log(here.folder / "log.parquet", users=12)
    here.train(*SMALL)
    top = here.recommend("k=3")
    assert len(top) == 12 * 3 and set(top["model"]) == {"DIN"}
    seen = pl.read_parquet(here.folder / "log.parquet")
    taken = seen.filter(pl.col("clicked") == 1)
    assert top.join(taken, on=["user", "item"]).is_empty()
    assert not top.join(seen, on=["user", "item"]).is_empty()
    assert here.recommend("k=3", "seen=events").join(seen, on=["user", "item"]).is_empty()
    new = pl.DataFrame({"user": ["x", "x", "y"], "item": ["i1", "i2", "i3"], "ts": [1, 2, 3]})
    new.write_parquet(here.folder / "new.parquet")
    assert len(here.recommend("k=2", "histories=new.parquet")) == 2 * 2
    said = capsys.readouterr().out
    assert "new.parquet has no column 'clicked': all of its events count as taken" in said


def test_new_people_with_the_same_histories_get_the_same_lists(here: Here) -> None:
    write_log(here.folder / "log.parquet", users=12)
    here.train(*SMALL, "questions.history=events", "questions.user_id=false")
    stored = here.recommend("k=4")
    assert len(stored) == 12 * 4
    assert here.recommend("k=4", "histories=log.parquet").equals(stored)


@pytest.mark.parametrize("damaged", [False, True])
def test_an_interrupted_baseline_goes_on(
    here: Here,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    damaged: bool,
) -> None:
    write_log(here.folder / "log.parquet", users=12)
    settings = [s for s in SMALL[1:] if "attention" not in s]

    def rows() -> Any:
        run(compose("train", TrainConfig, ["model=mean_pooling", *settings, RESULT]))
        return json.loads((here.folder / "result.json").read_text())["rows"]

    whole = rows()
    cached = next(here.folder.glob("home/data/cache/baselines/*/model.json")).parent
    shutil.rmtree(cached)
    ask, asked = ClickJudge.ask, []

    def interrupting(judge: ClickJudge, model: Any, stage: str) -> Any:
        asked.append(stage)
        if len(asked) == 2:
            raise KeyboardInterrupt
        return ask(judge, model, stage)

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(ClickJudge, "ask", interrupting)
        rows()
    checkpoint = cached / "last.ckpt"
    if damaged:
        checkpoint.write_bytes(checkpoint.read_bytes()[:1000])
    capsys.readouterr()
    assert rows() == whole
    of_the_baseline = capsys.readouterr().out.partition("training the baseline")[2]
    assert of_the_baseline.partition("epoch ")[2].startswith("1/2" if damaged else "2/2")
    assert not checkpoint.exists()
