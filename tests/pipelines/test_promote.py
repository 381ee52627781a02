"""From a training to a champion, and from the champion to its lists, through the real commands."""

from __future__ import annotations

import importlib
import io
import json
import sys
from collections.abc import Callable
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from pipelines import promote, train
from pipelines.entry import compose, main
from pipelines.schemas import TrainConfig
from recsys.tracking import registry
from recsys.tracking.reading import load_run
from recsys.tracking.registry import (
    champion_of,
    find_version,
    make_champion,
    register_run,
)
from recsys.tracking.store import local_store, open_client
from tests.pipelines.conftest import Place
from tests.pipelines.test_config import COMMANDS
from tests.pipelines.test_train import SMALL, artifacts, write_log

# More than 1,000 test questions of few users: every event after the second cut.
SUCCESSIVE = [
    *(s for s in SMALL if not s.startswith(("split.", "data.columns.", "trainer."))),
    "data.columns.time=time",
    "split=time",
    "split.target=successive",
    "split.validation_cut=0.5",
    "split.test_cut=0.6",
    "evaluation.resamples=100",
    "evaluation.tie_orders=0",
    "trainer.tokens_per_batch=600",
    "trainer.max_epochs=1",
]
DRAWS = "resamples=1000"
METRIC = "test/time-successive-full-all/ndcg_10"

Command = Callable[..., str]


def command_in(place: Place, capfd: Any, patch: pytest.MonkeyPatch) -> Command:
    """Commands as their own processes run them, but in this one, which imports once."""

    def _command(name: str, *arguments: str, code: int = 0) -> str:
        patch.chdir(place.folder)
        patch.setenv("RECSYS_HOME", str(place.home))
        patch.setattr(sys, "argv", [name, *arguments])
        module = importlib.import_module(f"pipelines.{name}")
        with pytest.raises(SystemExit) as left:
            main(name, COMMANDS[name], module.run, "", getattr(module, "implied", None))
        printed = capfd.readouterr()
        assert left.value.code == code, printed.err or printed.out
        return str(printed.err if code == 2 else printed.out)

    return _command


@pytest.fixture(scope="module")
def place(empty_store: Path, tmp_path_factory: pytest.TempPathFactory) -> Place:
    """A good run that knows its baselines, and a poor one, which is shop/1."""
    place = Place(tmp_path_factory.mktemp("promoted")).stocked(empty_store)
    write_log(place.folder / "log.parquet", users=110)
    for name, settings in (
        ("good", ["trainer.learning_rate=0.01"]),
        ("poor", ["trainer.learning_rate=1e-6", "evaluation.baselines=false", "register=shop"]),
    ):
        with pytest.MonkeyPatch.context() as patch, redirect_stdout(io.StringIO()) as printed:
            patch.chdir(place.folder)
            patch.setenv("RECSYS_HOME", str(place.home))
            given = [*SUCCESSIVE, *settings, f"result={name}.json"]
            train.run(compose("train", TrainConfig, given))
        assert ("registered as shop/1\n" in printed.getvalue()) == (name == "poor")
    return place


@pytest.fixture
def command(place: Place, capfd: Any, monkeypatch: pytest.MonkeyPatch) -> Command:
    return command_in(place, capfd, monkeypatch)


@pytest.fixture(scope="module")
def uri(place: Place) -> str:
    return local_store(place.home)[0]


def run_of(place: Place, name: str) -> str:
    return str(json.loads((place.folder / f"{name}.json").read_text())["run_id"])


def report_of(place: Place) -> dict[str, Any]:
    return dict(json.loads((place.folder / "promoted.json").read_text()))


def refused(command: Command, place: Place, name: str, *arguments: str) -> str:
    """The message of a command that must fail and leave no new file."""
    before = place.files
    message = command(name, *arguments, code=2)
    assert message.startswith("Error: ") and message.count("Error: ") == 1
    assert place.files == before
    return message


def names(uri: str) -> list[str]:
    return [model.name for model in open_client(uri).search_registered_models()]


def test_train_registers_a_version_that_is_no_champion(
    place: Place, uri: str, command: Command
) -> None:
    version = find_version(uri, "shop/1")
    poor = load_run(uri, run_of(place, "poor"))
    assert version.run_id == poor.run_id and version.aliases == ()
    assert version.tags.keys() == {"protocol", "store", METRIC}
    assert version.tags["store"] == poor.tags["store"]
    assert float(version.tags[METRIC]) == pytest.approx(poor.metrics[METRIC], rel=1e-5)
    for name, more in (("evaluate", []), ("recommend", ["output=top.parquet"])):
        said = refused(command, place, name, "model=shop@champion", *more)
        assert "shop has no alias 'champion', and no other" in said


def test_a_better_run_takes_the_place_of_the_champion(
    place: Place, uri: str, command: Command
) -> None:
    good, poor = run_of(place, "good"), run_of(place, "poor")
    make_champion(uri, register_run(uri, "better", poor, {}), None)
    said = command("promote", f"run={good}", "name=better", DRAWS, "result=promoted.json")
    assert "better/2 promoted: loses at most 0 ndcg_10 overall" in said
    assert "against better/1" in said and "time-successive-full-all" in said
    assert said.splitlines()[-1].endswith(f"run={report_of(place)['run_id']}")
    champion = champion_of(uri, "better")
    assert champion is not None and (champion.number, champion.run_id) == (2, good)
    report = report_of(place)["promotion"]
    assert report["decision"] == "promoted" and report["against_version"] == 1
    overall = report["parts"][0]
    assert 0 < overall["bound"] < overall["ahead"]
    means = [load_run(uri, run).metrics[METRIC] for run in (good, poor)]
    assert overall["ahead"] == pytest.approx(means[0] - means[1])
    assert report["challenger"]["mean"] == pytest.approx(means[0])
    assert {part["cohort"] for part in report["parts"][1:]} == {"history_length", "popularity"}
    # On the version, and in a run of its own.
    assert champion.tags["decision"] == "promoted" and champion.tags["against"] == "better/1"
    assert champion.tags["against_run"] == poor and champion.tags["margin"] == "0"
    assert float(champion.tags[METRIC]) == pytest.approx(means[0], rel=1e-5)
    decided = load_run(uri, champion.tags["decided_in"])
    assert decided.status == "FINISHED" and decided.tags["pipeline"] == "promote"
    assert decided.run_id == report_of(place)["run_id"]
    assert decided.datasets == load_run(uri, good).datasets != ()
    folder = artifacts(place, decided.run_id)
    assert json.loads((folder / "promote.json").read_text()) == report
    assert (folder / "promote.txt").read_text().strip() in said
    page = (folder / "promote.html").read_text()
    assert "popularity head" in page and "http" not in page and "<script" not in page
    noted = open_client(uri).get_model_version("better", "2").description
    assert "| overall | " in noted and "**better/2 promoted" in noted
    # And again.
    before = place.files
    assert "better/2 is the champion of better already" in command(
        "promote", f"run={good}", "name=better"
    )
    assert place.files == before


def test_a_worse_run_is_refused(place: Place, uri: str, command: Command) -> None:
    good, poor = run_of(place, "good"), run_of(place, "poor")
    make_champion(uri, register_run(uri, "worse", good, {}), None)
    first = command("promote", f"run={poor}", "name=worse", DRAWS, "margin=0.001", code=3)
    assert "worse/2 refused: not shown to lose at most 0.001 ndcg_10: overall (-0." in first
    version = find_version(uri, "worse/2")
    assert version.run_id == poor and version.tags["decision"] == "refused"
    assert "not shown to lose at most 0.001" in version.tags["reason"]
    assert find_version(uri, "worse@champion").run_id == good
    again = command("promote", f"run={poor}", "name=worse", DRAWS, "margin=0.001", code=3)
    assert again.splitlines()[:-3] == first.splitlines()[:-3]  # but for seconds and run
    versions = open_client(uri).search_model_versions("name = 'worse'")
    assert len(versions) == 2


def test_without_a_champion_the_strongest_baseline_stands_in(
    place: Place, uri: str, command: Command
) -> None:
    good = run_of(place, "good")
    rows = json.loads((place.folder / "good.json").read_text())["rows"]
    best = max(rows[1:], key=lambda row: row["metrics"][METRIC])
    given = [f"run={good}", "name=first", DRAWS, "cohorts=[]", "result=promoted.json"]
    command("promote", *given, "margin=0.2")
    report = report_of(place)["promotion"]
    assert report["champion"]["model"] == best["model"] and report["against_version"] is None
    assert report["champion"]["mean"] == pytest.approx(best["metrics"][METRIC])
    version = find_version(uri, "first@champion")
    assert version.run_id == good
    assert version.tags["against"] == f"the baseline {best['model']}, for want of a champion"

    poor = run_of(place, "poor")
    said = refused(command, place, "promote", f"run={poor}", "name=second")
    assert "there is no champion yet" in said and "evaluation.baselines=true" in said
    assert "second" not in names(uri)
    command("evaluate", f"run={poor}", "evaluation.baselines=true", "result=judged.json")
    answers = f"answers=[{run_of(place, 'judged')}]"
    said = command("promote", f"run={poor}", "name=second", DRAWS, answers, code=3)
    assert "second/1 refused" in said and "for want of a champion" in said
    assert champion_of(uri, "second") is None


def test_other_questions_need_evaluations_of_both(place: Place, uri: str, command: Command) -> None:
    good, poor = run_of(place, "good"), run_of(place, "poor")
    make_champion(uri, register_run(uri, "moved", poor, {}), None)
    # A later test: what is asked of the champion first, and of the challenger.
    later = ["split=time", "split.target=last", "split.validation_cut=0.5", "split.test_cut=0.6"]
    later += ["evaluation.baselines=false"]
    evaluated = []
    for number, judged in enumerate((f"run={good}", "model=moved@champion")):
        command("evaluate", judged, *later, f"result=later{number}.json")
        evaluated.append(run_of(place, f"later{number}"))
    assert load_run(uri, evaluated[1]).tags["evaluates"] == poor
    given = [f"run={good}", "name=moved", DRAWS, "cohorts=[]"]
    said = refused(command, place, "promote", *given, f"answers=[{evaluated[0]}]")
    assert "were asked by other protocols" in said
    assert f"python -m pipelines.evaluate run={poor} with the data= and split=" in said
    assert not open_client(uri).search_model_versions(f"name = 'moved' and run_id = '{good}'")
    few = command("promote", *given, f"answers=[{','.join(evaluated)}]", code=3)
    assert "moved/2 refused: too few: 110 questions of 110 users" in few
    said = refused(command, place, "promote", *given, f"answers=[{evaluated[0]},{evaluated[0]}]")
    assert "names one twice" in said
    said = refused(command, place, "promote", *given, f"answers=[{good}]")
    assert f"is no evaluation of {good} and {poor}" in said
    said = refused(
        command, place, "promote", f"run={poor}", "name=nobody", f"answers=[{evaluated[0]}]"
    )
    assert f"is no evaluation of {poor}; python -m" in said


def test_a_test_that_was_learned_decides_nothing(place: Place, uri: str, command: Command) -> None:
    poor = run_of(place, "poor")
    earlier = ["split=time", "split.target=first", "split.validation_cut=0.2", "split.test_cut=0.3"]
    given = ["leaks=mark", "evaluation.baselines=false", "result=leaking.json"]
    command("evaluate", f"run={poor}", *earlier, *given)
    said = refused(
        command,
        place,
        "promote",
        f"run={poor}",
        "name=leaking",
        f"answers=[{run_of(place, 'leaking')}]",
    )
    assert "was trained on answers of this test (time-first-full-all-leaking)" in said


@pytest.mark.parametrize("when", ["before the alias", "before the note", "after the alias"])
def test_interrupted_and_given_again(
    place: Place, uri: str, command: Command, monkeypatch: pytest.MonkeyPatch, when: str
) -> None:
    good, poor = run_of(place, "good"), run_of(place, "poor")
    name = f"interrupted {when}"
    make_champion(uri, register_run(uri, name, poor, {}), None)
    given = ["promote", f"run={good}", f"name={name}", DRAWS, "cohorts=[]"]
    function = "write_decision" if when == "before the note" else "make_champion"
    whole = getattr(registry, function)

    def interrupt(*arguments: Any) -> None:
        if when == "after the alias":
            whole(*arguments)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(registry, function, interrupt)
        command(*given, code=130)
    moved = when == "after the alias"
    champion = champion_of(uri, name)
    assert champion is not None and champion.run_id == (good if moved else poor)
    said = command(*given)
    assert ("is the champion" if moved else "promoted: loses at most 0 ndcg_10 overall") in said
    champion = champion_of(uri, name)
    assert champion is not None
    assert (champion.run_id, champion.number) == (good, 2)
    assert champion.tags["decision"] == "promoted"
    assert len(open_client(uri).search_model_versions(f"name = '{name}'")) == 2


def test_evaluate_and_recommend_take_a_version(place: Place, uri: str, command: Command) -> None:
    good, poor = run_of(place, "good"), run_of(place, "poor")
    make_champion(uri, register_run(uri, "served", good, {}), None)
    register_run(uri, "served", poor, {})
    command("evaluate", "model=served@champion", "evaluation.baselines=false", "result=by.json")
    assert load_run(uri, run_of(place, "by")).artifact("explain.html").is_file()
    rows = json.loads((place.folder / "good.json").read_text())["rows"]
    by = json.loads((place.folder / "by.json").read_text())
    assert by["rows"][0]["metrics"] == rows[0]["metrics"]
    assert load_run(uri, by["run_id"]).params["model"] == "served@champion"
    lists = []
    for number, named in enumerate((f"run={good}", "model=served@champion", "model=served/2")):
        said = command("recommend", named, f"output=top{number}.parquet")
        assert f"of run {poor if number == 2 else good} " in said
        lists.append(pl.read_parquet(place.folder / f"top{number}.parquet"))
    assert lists[0].equals(lists[1]) and not lists[0].equals(lists[2])


def test_what_names_no_model_is_refused(place: Place, uri: str, command: Command) -> None:
    make_champion(uri, register_run(uri, "known", run_of(place, "good"), {}), None)
    for name, more in (("evaluate", []), ("recommend", ["output=top.parquet"])):
        for given, words in (
            (["model=knwon@champion"], "Did you mean 'known'?"),
            (["model=known@champoin"], "there are champion (version 1). Did you mean 'champion'?"),
            (["model=known/9"], "known has no version 9; there are 1"),
            (["model=known"], "write known@champion, or known/3"),
            (["model=sasrec"], "model=sasrec names no version"),
            (["model=known@champion", "run=latest"], "only one"),
            ([], "one of them is needed"),
            (["model=null"], "one of them is needed"),
        ):
            assert words in refused(command, place, name, *given, *more)
    said = refused(command, place, "evaluate", "model=known@champion", "recommendations=x.parquet")
    assert "only one" in said
    pl.DataFrame({"user": list("aaabbb"), "item": list("vwxvwx"), "time": range(6)}).write_parquet(
        place.folder / "other.parquet"
    )
    other = ["data=log", "data.path=other.parquet", "model=known@champion"]
    assert "was trained on other items than this store" in refused(
        command, place, "evaluate", *other
    )
    assert "trained on other items than these" in refused(
        command, place, "recommend", *other, "output=top.parquet"
    )


def test_a_champion_whose_run_is_deleted(place: Place, uri: str, command: Command) -> None:
    good, poor = run_of(place, "good"), run_of(place, "poor")
    make_champion(uri, register_run(uri, "gone", poor, {}), None)
    open_client(uri).delete_run(poor)
    try:
        for given in (
            ["evaluate", "model=gone@champion"],
            ["recommend", "model=gone@champion", "output=top.parquet"],
            ["promote", f"run={good}", "name=gone"],
        ):
            said = refused(command, place, *given)
            assert "gone/1 is the model of a run that cannot be read" in said
            assert f"mlflow runs restore --run-id {poor}" in said
    finally:
        open_client(uri).restore_run(poor)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (["name=a/b"], "name=a/b is no name for a registered model"),
        (["margin=-0.1"], "margin must be a number from 0, not -0.1"),
        (["level=1.5"], "level must be between 0 and 1, not 1.5"),
        (["resamples=1"], "resamples must be at least 2, not 1"),
        (["resamples=15"], "resamples=15 can show nothing of 1 differences at level 0.95: take at"),
        (["seed=-1"], "seed must not be negative, not -1"),
        (["cohorts=[repeat,repeat]"], "names one twice"),
        (["cohorts=[populairty]"], "not looked at by 'populairty'; did you mean 'popularity'?"),
        (["metric=ndcg_11"], "metric=ndcg_11 is not among what"),
        (["run=latets"], "latets"),
        (["name=???"], "name is required"),
        (["result=home"], "result=home is a folder"),
    ],
)
def test_wrong_settings_are_refused(
    place: Place, uri: str, command: Command, given: list[str], words: str
) -> None:
    before = names(uri)
    settings = {"run": f"run={run_of(place, 'good')}", "name": "name=wrong", "cohorts": ""}
    settings["cohorts"] = "cohorts=[popularity]"
    settings |= {setting.partition("=")[0]: setting for setting in given}
    assert words in refused(command, place, "promote", *settings.values())
    assert names(uri) == before


def test_a_run_without_a_model_is_refused(place: Place, uri: str, command: Command) -> None:
    good = run_of(place, "good")
    command("evaluate", f"run={good}", "evaluation.baselines=false", "result=judged.json")
    said = refused(command, place, "promote", f"run={run_of(place, 'judged')}", "name=wrong")
    assert "is a run of evaluate, which holds no model" in said
    answers = f"answers=[{run_of(place, 'judged')}]"
    open_client(uri).update_run(good, status="FAILED")
    try:
        said = refused(command, place, "promote", f"run={good}", "name=wrong", answers)
        assert "is FAILED: only finished runs are promoted" in said
    finally:
        open_client(uri).update_run(good, status="FINISHED")


@pytest.mark.parametrize(
    ("command_name", "given", "words"),
    [
        ("train", ["register=a@b"], "register=a@b is no name for a registered model"),
        ("train", ["register=shop", "plan=true"], "plan=true trains nothing that register=shop"),
        ("backtest", ["register=shop"], "register= is of train, not of backtest"),
    ],
)
def test_names_are_checked_before_training(
    tmp_path: Path,
    capfd: Any,
    monkeypatch: pytest.MonkeyPatch,
    command_name: str,
    given: list[str],
    words: str,
) -> None:
    place = Place(tmp_path)
    place.home.mkdir()
    write_log(tmp_path / "log.parquet", users=5)
    settings = [*SUCCESSIVE, *given]
    if command_name == "backtest":
        settings = [s for s in settings if "_cut" not in s] + ["cuts=[0.5,0.7]"]
    command = command_in(place, capfd, monkeypatch)
    assert words in refused(command, place, command_name, *settings)


def test_exit_code_of_the_real_command(place: Place, uri: str) -> None:
    make_champion(uri, register_run(uri, "real", run_of(place, "good"), {}), None)
    done = place.command("promote", f"run={run_of(place, 'poor')}", "name=real", DRAWS)
    assert (done.returncode, promote.REFUSED) == (3, 3), done.stderr
    assert "real/2 refused" in done.stdout and done.stderr == ""
