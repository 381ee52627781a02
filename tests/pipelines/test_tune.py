"""A study through the real command: it never sees the test, goes on after kill -9, tests once."""

from __future__ import annotations

import dataclasses
import fcntl
import json
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import polars as pl
import pytest
import yaml

from pipelines import tune as tune_module
from pipelines.checking import ConfigError, build
from pipelines.entry import compose
from pipelines.evaluate import implied
from pipelines.evaluate import run as evaluate
from pipelines.fitting import task_and_batches
from pipelines.judging import Judge, baselines
from pipelines.schemas import EvaluateConfig, EvaluationConfig, TrainConfig, TuneConfig
from pipelines.search_space import distributions
from pipelines.story import plain
from pipelines.studies import study_file
from pipelines.train import Book, next_item_job, untrained
from pipelines.train import run as train
from pipelines.tune import Pruned, Watch, run, training_config
from recsys.histories.batches import TrainingBatches
from recsys.histories.questions import leave_one_out
from recsys.models.baselines.item_knn import ItemKNN
from recsys.models.baselines.tuning import Tuned
from recsys.testing import planted_log
from recsys.tracking.reading import load_run
from tests.pipelines.conftest import Place
from tests.pipelines.test_clicks import SMALL as CLICKS
from tests.pipelines.test_clicks import write_log as write_clicks
from tests.pipelines.test_killed import KILLED
from tests.pipelines.test_train import SMALL, artifacts, write_log

SEARCH = [
    *SMALL,
    "evaluation.resamples=20",
    "evaluation.tie_orders=0",
    "model.layers=1",
    "trainer.minimum_batches=5",
    "trainer.max_epochs=2",
    "space.model.width.choices=[4,8]",
    "~space.model.layers",
    "~space.model.dropout",
    "space.trainer.learning_rate.high=0.1",
    "trials=6",
    "startup=2",
    "prune_from=1",
]


def tune(*overrides: str) -> dict[str, Any]:
    """A study in this process; what its result file holds."""
    run(compose("tune", TuneConfig, [*overrides, "result=out/result.json"]))
    found: dict[str, Any] = json.loads(Path("out/result.json").read_text())
    return found


def refusal(*overrides: str) -> str:
    with pytest.raises(ConfigError) as caught:
        tune(*overrides)
    return str(caught.value)


def drawn(trials: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """What a study found, without what hangs on the machine."""
    free = ("seconds", "run")
    return [{k: v for k, v in trial.items() if k not in free} for trial in trials]


@pytest.fixture(scope="module")
def place(empty_store: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    """A place with a log, which the tests of this file run in."""
    place = Place(tmp_path_factory.mktemp("tune")).stocked(empty_store)
    write_log(place.folder / "log.parquet")
    with pytest.MonkeyPatch.context() as patched:
        patched.chdir(place.folder)
        patched.setenv("RECSYS_HOME", str(place.home))
        yield place


@pytest.fixture(scope="module")
def study(place: Place) -> tuple[dict[str, Any], list[tuple[str, bool, str]]]:
    """A finished study, and who was asked what: model, whether after a refit, stage."""
    asked = []
    with pytest.MonkeyPatch.context() as patched:
        rank = Judge.rank

        def spied(self: Judge, model: Any, stage: str) -> Any:
            asked.append((type(model).__name__, self.chosen_by is not None, stage))
            return rank(self, model, stage)

        patched.setattr(Judge, "rank", spied)
        result = tune(*SEARCH, "study=whole")
    return result, asked


def test_trials_never_see_the_test_and_the_winner_sees_it_once(study: Any) -> None:
    _, asked = study
    tested = [(model, refit) for model, refit, stage in asked if stage == "test"]
    models = ["SASRec", "Popularity", "LastItemMarkov", "ItemKNN", "EASE", "IALS"]
    assert tested == [(model, True) for model in models]
    before = asked[: asked.index(("SASRec", True, "test"))]
    assert all(stage == "val" and not refit for _, refit, stage in before)
    assert not any(stage == "val" for _, refit, stage in asked if refit)
    # No baseline was asked before the last trial was done.
    last = max(i for i, who in enumerate(asked) if who == ("SASRec", False, "val"))
    assert {model for model, _, _ in asked[:last]} == {"SASRec"}


def test_one_parent_with_children(place: Place, study: Any) -> None:
    result, _ = study
    parent = load_run(f"sqlite:///{place.home / 'mlflow.db'}", result["run_id"])
    assert parent.status == "FINISHED" and parent.tags["study"] == "whole"
    with sqlite3.connect(place.home / "mlflow.db") as database:
        ask = "select run_uuid from tags where key = 'mlflow.parentRunId' and value = ?"
        children = [row[0] for row in database.execute(ask, (parent.run_id,))]
        ask = "select value, step from metrics where run_uuid = ? and key like 'trial/val/%'"
        points = sorted((step, v) for v, step in database.execute(ask, (parent.run_id,)))
    infos = [load_run(parent.uri, child) for child in children]
    trials = [info for info in infos if info.tags["pipeline"] == "trial"]
    assert {info.run_id for info in trials} == {trial["run"] for trial in result["trials"]}
    assert {info.status for info in infos} == {"FINISHED"} and len(infos) == 7
    whole = [trial for trial in result["trials"] if trial["state"] == "complete"]
    stopped = [trial for trial in result["trials"] if trial["state"] == "pruned"]
    assert len(whole) >= 4 and stopped and len(whole) + len(stopped) == 6
    assert points == [(trial["trial"], trial["value"]) for trial in whole]
    for info in trials:
        (trial,) = [t for t in result["trials"] if t["run"] == info.run_id]
        assert info.tags["trial"] == trial["state"]
        assert info.params["model.width"] == str(trial["model.width"])
        assert not any(name.startswith(("test/", "baseline/")) for name in info.metrics)
        assert not (artifacts(place, info.run_id) / "model").exists()
        assert not (place.home / "data/cache/runs" / info.run_id).exists()
    folder = artifacts(place, parent.run_id)
    assert drawn(pl.read_parquet(folder / "trials.parquet").to_dicts()) == drawn(result["trials"])
    for figure in ("importance", "parallel_coordinates"):
        assert (folder / f"figures/{figure}.png").stat().st_size > 5000
    importance = json.loads((folder / "study.json").read_text())["importance"]
    assert set(importance) == {"model.width", "trainer.learning_rate"}
    assert sum(importance.values()) == pytest.approx(1)
    note = parent.tags["mlflow.note.content"]
    assert "The best is trial" in note and "**Data:** planted" in note
    tested = f"{result['rows'][0]['metrics']['test/loo-full-all/ndcg_10']:.4f}".lstrip("0")
    assert f"&emsp;{tested} \\[" in note and "\n| iALS | " in note
    for info in trials:
        number = [trial["run"] for trial in result["trials"]].index(info.run_id) + 1
        note = info.tags["mlflow.note.content"]
        assert info.name.startswith(f"trial {number}: ") and plain(info.tags["headline"]) in note
        assert "No result yet" not in note
        assert "Trial of study whole: width" in note and "`val/loo-full-all`" in note


def test_the_winner_is_a_run_of_train_that_says_how_to_do_it_again(
    place: Place, study: Any
) -> None:
    result, _ = study
    best = max((t for t in result["trials"] if t["value"] is not None), key=lambda t: t["value"])
    uri = f"sqlite:///{place.home / 'mlflow.db'}"
    winner = load_run(uri, load_run(uri, result["run_id"]).tags["winner"])
    text = winner.artifact("config.yaml").read_text()
    config = build(TrainConfig, yaml.safe_load(text), lambda key: "")
    assert config.refit == best["best_epoch"] and config.trainer.max_epochs == 2
    assert config.model.width == best["model.width"]  # type: ignore[union-attr]
    assert config.trainer.learning_rate == best["trainer.learning_rate"]
    assert winner.tags["refit"] == "training + validation"
    assert "best/val/loo-full-all/ndcg_10" not in winner.metrics
    legend = winner.artifact("table.txt").read_text()
    assert "chosen on validation, then refitted on training + validation" in legend
    given = [f"run={winner.run_id}"]
    evaluate(compose("evaluate", EvaluateConfig, [*implied(given), *given, "result=again.json"]))
    assert json.loads(Path("again.json").read_text())["rows"] == result["rows"]


def test_killed_and_called_again_comes_to_the_same_trials(place: Place, study: Any) -> None:
    result, _ = study
    kill = 'kill_at(judging.Judge, "ask", 5, True)'  # in the third trial
    program = (
        KILLED.format(kill=kill)
        .replace('"train", train.TrainConfig, train', '"tune", tune.TuneConfig, tune')
        .replace("judging, train", "judging, tune")
    )
    settings = [*SEARCH, "study=cut", "test=false"]
    killed = place.python("-c", program, *settings)
    assert killed.returncode == -9, killed.stderr
    parent = next(x for x in killed.stdout.splitlines() if x.startswith("run ")).split()[1]
    uri = f"sqlite:///{place.home / 'mlflow.db'}"
    assert load_run(uri, parent).status == "RUNNING"
    again = tune(*settings)
    assert again["run_id"] == parent and load_run(uri, parent).status == "FINISHED"
    assert drawn(again["trials"]) == drawn(result["trials"]) and again["rows"] == []
    kept = optuna.load_study(study_name="cut", storage=f"sqlite:///{study_file('cut')}")
    failed = [trial for trial in kept.trials if trial.state.name == "FAIL"]
    assert len(failed) == 1 and len(kept.trials) == 7
    (repeated,) = [t for t in kept.trials if t.system_attrs.get("fixed_params")]
    assert repeated.params == failed[0].params
    cut_off = load_run(uri, failed[0].user_attrs["run"])
    assert cut_off.status == "KILLED"
    assert "**KILLED:** the run above began again." in cut_off.tags["mlflow.note.content"]
    assert not (place.home / "data/cache/runs" / failed[0].user_attrs["run"]).exists()
    # Not tested yet: it may go on.
    assert len(tune(*settings, "trials=7")["trials"]) == 7


def test_a_tested_study_is_closed(
    place: Place, study: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    result, _ = study
    assert "is closed after 6 trials" in refusal(*SEARCH, "study=whole", "trials=7")
    before = place.files
    run(compose("tune", TuneConfig, [*SEARCH, "study=whole"]))
    assert place.files == before
    assert f"run={result['run_id']}" in capsys.readouterr().out.splitlines()[-1]


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (
            ["space.model.width.choices=[4,16]"],
            "another search space: model.width.choices ([4, 8] there, [4, 16] here)",
        ),
        (["space.model.heads.choices=[1,2]"], "another search space: model.heads.choices"),
        (["seed=2"], "another settings: seed (1 there, 2 here)"),
        (["trainer.monitor=hr_10"], "another metric: metric (val/loo-full-all/ndcg_10 there, "),
        (["split.validation_users=40"], "another settings: split.validation_users"),
        (
            ["candidate_set=sampled", "candidate_set.count=9"],
            "another protocol: protocol (loo-full",
        ),
        (["data.path=other.parquet"], "another data: data ("),
    ],
)
def test_a_study_of_something_else_is_refused(
    place: Place, study: Any, settings: list[str], words: str
) -> None:
    write_log(place.folder / "other.parquet", users=61)
    message = refusal(*SEARCH, "study=whole", *settings)
    assert "study=whole was begun with " in message and words in message
    assert "name another study" in message


def test_a_study_that_runs_now_is_left_alone(place: Place) -> None:
    path = study_file("busy").with_suffix(".lock")
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert "study=busy is being run by another process" in refusal(*SEARCH, "study=busy")


def test_files_that_are_no_study(place: Place) -> None:
    study_file("text").parent.mkdir(parents=True, exist_ok=True)
    study_file("text").write_text("no database, but long enough to be taken for one " * 40)
    assert "text.db is damaged, or no study" in refusal(*SEARCH, "study=text")
    with sqlite3.connect(study_file("other")) as database:
        database.execute("create table runs (x int)")
    assert "other.db is no study" in refusal(*SEARCH, "study=other")


def test_settings_that_do_not_go_together_fail_alone(place: Place) -> None:
    settings = [*SEARCH, "study=heads", "test=false", "trials=3", "startup=3"]
    found = tune(*settings, "space.model.heads.choices=[1,3]")["trials"]
    failed = [trial for trial in found if trial["state"] == "fail"]
    assert 0 < len(failed) < len(found) == 3
    assert all("is not divisible by heads 3" in trial["error"] for trial in failed)
    assert all(trial["model.heads"] == 3 for trial in failed)
    message = refusal(*settings, "space.model.heads.choices=[1,3]", "tracking.uri=sqlite:///no.db")
    assert "study=heads goes on in its run" in message and "which cannot be had" in message
    message = refusal(*settings, "study=none", "trials=1", "+space.model.heads.choices=[3]")
    assert "none of 1 trials came to a value" in message and "heads 3" in message


def test_code_that_raises_ends_its_trial_and_not_the_study(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    fit, full = tune_module.fit_model, []

    def sulky(config: TrainConfig, *more: Any, **named: Any) -> Any:
        if config.model.width == 8:
            if full:
                raise OSError(28, "no room")
            raise IndexError("one's own code, in http://me:secret@host")
        return fit(config, *more, **named)

    monkeypatch.setattr(tune_module, "fit_model", sulky)
    settings = [*SEARCH, "study=sulky", "test=false", "startup=6"]
    found = tune(*settings)["trials"]
    failed = [trial for trial in found if trial["state"] == "fail"]
    assert 0 < len(failed) < len(found) == 6
    assert all(trial["model.width"] == 8 for trial in failed)
    assert all(trial["error"].startswith("IndexError: one's own code") for trial in failed)
    run = load_run(f"sqlite:///{place.home / 'mlflow.db'}", failed[0]["run"])
    assert run.status == "FAILED" and "sulky" in run.artifact("error.txt").read_text()
    full.append(True)
    with pytest.raises(OSError, match="no room"):  # of the disk: the trial is done again
        tune(*settings, "study=full")
    full.clear()
    assert [t["state"] for t in tune(*settings, "study=full")["trials"]] == [
        t["state"] for t in found
    ]


def test_the_winner_goes_on_with_its_study_alone(place: Place, study: Any) -> None:
    uri, parent = f"sqlite:///{place.home / 'mlflow.db'}", study[0]["run_id"]
    winner = load_run(uri, load_run(uri, parent).tags["winner"])
    with pytest.raises(ConfigError, match=f"stands below run {parent}, and only the"):
        train(compose("train", TrainConfig, [f"resume={winner.run_id}"]))


def test_the_pruner_sees_each_validation_and_stops_what_is_below_the_median() -> None:
    pruner = optuna.pruners.MedianPruner(n_startup_trials=1, n_warmup_steps=2)
    kept = optuna.create_study(direction="maximize", pruner=pruner)
    seen = []

    class Tracked:
        def metrics(self, values: Any, step: int) -> None:
            seen.append((values, step))

    def trial(*scores: float) -> optuna.trial.Trial:
        asked = kept.ask()
        watch = Watch(Book(Tracked()), asked, "val/x", last=4)  # type: ignore[arg-type]
        for epoch, score in enumerate(scores, start=1):
            watch.metrics({"train/loss": 1.0, "val/x": score}, epoch)
        return asked

    kept.tell(trial(0.5, 0.5, 0.5, 0.5), 0.5)
    with pytest.raises(Pruned):
        trial(0.1, 0.2, 0.9, 0.9)
    assert seen[-1] == ({"train/loss": 1.0, "val/x": 0.2}, 2)  # not before epoch 2
    trial(0.1, 0.6, 0.1, 0.1)  # it has been better
    with pytest.raises(Pruned):
        trial(0.4, 0.4)


def test_a_ranker_is_searched_refitted_and_tested(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("RECSYS_HOME", str(tmp_path / "home"))
    write_clicks(tmp_path / "log.parquet")
    length = ["+space.model.max_length.choices=[3,5]", "evaluation.resamples=20"]
    settings = [*CLICKS, *length, "space=mean_pooling", "~space.model.width", "study=s", "trials=2"]
    result = tune(*settings)
    assert result["rows"][0]["model"] == "DIN" and len(result["rows"]) == 4
    uri = f"sqlite:///{tmp_path / 'home/mlflow.db'}"
    winner = load_run(uri, load_run(uri, result["run_id"]).tags["winner"])
    report = json.loads(winner.artifact("report.json").read_text())
    assert list(report["calibration"]) == ["as it is"]  # nothing is left to mend it by
    given = [f"run={winner.run_id}"]
    evaluate(compose("evaluate", EvaluateConfig, [*implied(given), *given, "result=again.json"]))
    assert json.loads(Path("again.json").read_text())["rows"] == result["rows"]


PLAIN = ["data=log", "data.path=x.csv", "study=s"]


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (["space.model.widht.choices=[8]"], "Did you mean 'space.model.width'?"),
        (["space.modle.width.choices=[8]"], "unknown key 'space.modle'"),
        (["space.model.width.choice=[8]"], "Did you mean 'space.model.width.choices'?"),
        (["~space.model.width", "+space.model.width.chioces=[8]"], "'space.model.width.choices'?"),
        (["~space.model.width", "+space.model.width=8"], "such as space.model.width.choices=VALUE"),
        (["space.trainer.monitor.choices=[auc]"], "has nothing of that name to search"),
        (["space.model.width.low=8"], "takes choices=[…], or low= and high=, and not both"),
        (["space.model.heads.low=0"], "takes choices=[…], or low= and high=, and not both"),
        (["space.model.heads={}"], "takes choices=[…], or low= and high=, and not both"),
        (["space.model.width.log=true"], "log and step are of low and high"),
        (["space.model.width.choices=[8,8]"], "must hold different values"),
        (["space.model.width.choices=[]"], "must hold different values"),
        (["space.model.width.choices=[8,wide]"], "model.width must be a whole number, not 'wide'"),
        (["space.model.layers.high=1"], "space.model.layers.low=1 must be less than"),
        (["space.model.layers.high=2.5"], "model.layers is a whole number"),
        (["space.trainer.learning_rate.low=0"], "log takes a low above 0, and no step"),
        (["space.model.dropout.step=2"], "space.model.dropout.step must be positive"),
        (["space.trainer.max_epochs.choices=[0]"], "trainer.max_epochs must be at least 1, not 0"),
        (
            ["model=logistic_regression"],
            "The space that is shipped for it is space=logistic_regression.",
        ),
        (["~space.model", "~space.trainer"], "space holds nothing to search"),
        (["study=a/b"], "study='a/b' is no name"),
        (["trials=0"], "trials must be at least 1, not 0"),
        (["startup=0"], "startup must be at least 1, not 0"),
        (["prune_from=0"], "prune_from must be null or at least 1, not 0"),
        (["plan=true"], "plan= is of train, not of tune"),
        (["refit=3"], "refit= is of train, not of tune: the winner is"),
        (["register=films"], "register= is of train, not of tune: python -m pipelines.promote"),
        (
            ["trusted_modules=[shop]"],
            "trusted_modules= is of train, not of tune: what this command",
        ),
        (["resume=abc"], "the same study= goes on"),
    ],
)
def test_wrong_settings_are_refused(settings: list[str], words: str) -> None:
    from pipelines.tune import check

    with pytest.raises(ConfigError) as caught:
        config = compose("tune", TuneConfig, [*PLAIN, *settings])
        base = training_config(config)
        check(config, base)
        distributions(config, base)
    assert words in str(caught.value)


def test_a_wrong_space_leaves_nothing_behind(place: Place, tmp_path: Path) -> None:
    elsewhere = Place(tmp_path)
    message = elsewhere.refused("tune", *PLAIN, "space.model.widht.choices=[8]")
    assert "space.model.widht: model=sasrec has nothing of that name to search" in message
    assert "study is required: add study=VALUE" in elsewhere.refused("tune")


@pytest.mark.parametrize("epochs", [0, 3])
def test_a_refit_within_the_schedule(place: Place, epochs: int) -> None:
    message = place.refused("train", *SMALL, "trainer.max_epochs=2", f"refit={epochs}")
    assert f"refit={epochs} must be from 1 to trainer.max_epochs=2" in message


def test_a_refit_keeps_the_schedule_and_learns_from_all_rows(place: Place) -> None:
    config = compose("train", TrainConfig, [*SMALL, "refit=1"])
    judge = next_item_job(config)
    task, batches = task_and_batches(config, judge, untrained(config, judge))
    assert task.optimization.total_steps == config.trainer.max_epochs * len(batches) > 0
    split, trainer = leave_one_out(judge.store), config.trainer
    made = [
        TrainingBatches(
            judge.store,
            ends,
            config.model.max_length,
            trainer.tokens_per_batch,  # type: ignore[union-attr]
            config.seed,
            trainer.minimum_batches,
        ).identity()
        for ends in (split.training_ends, split.test.target_begins)
    ]
    assert made[0] != batches.identity() == made[1]


def test_baselines_are_fitted_again_on_all_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    config = compose("train", TrainConfig, SMALL)
    assert isinstance(config.evaluation, EvaluationConfig)
    store = planted_log(30)
    split = leave_one_out(store)
    log = (store.items, store.offsets)
    chosen = ItemKNN(7, 1.0, 2).fit(*log, split.training_ends, store.catalogue_size, None)
    tuned = [Tuned(chosen, np.zeros(1), [])]
    monkeypatch.setattr("recsys.models.baselines.tuning.tune_baselines", lambda *a, **k: tuned)
    plain = Judge(store, split, config.evaluation, False)
    refit = dataclasses.replace(plain, split=split.refitted(), chosen_by=plain)
    (again,) = baselines(refit, "ndcg_10", True)
    ends = split.test.target_begins
    wanted = ItemKNN(7, 1.0, 2).fit(*log, ends, store.catalogue_size, None).state()
    assert again.parameters == chosen.parameters
    assert all(np.array_equal(again.state()[name], value) for name, value in wanted.items())
    assert any(not np.array_equal(chosen.state()[name], value) for name, value in wanted.items())
