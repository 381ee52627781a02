"""Comparing tracked runs, and judging another system's lists, through the real commands."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from pipelines import compare, evaluate
from pipelines.entry import compose
from pipelines.schemas import CompareConfig, EvaluateConfig
from recsys.testing import planted_log
from tests.pipelines.conftest import Place
from tests.pipelines.test_train import SMALL, artifacts, refused, write_log


@pytest.fixture(scope="module")
def place(empty_store: Path, tmp_path_factory: pytest.TempPathFactory) -> Place:
    place = Place(tmp_path_factory.mktemp("compared")).stocked(empty_store)
    write_log(place.folder / "log.parquet")
    return place


def run_of(place: Place, command: str, *settings: str) -> dict[str, Any]:
    done = place.here(command, *settings, "result=out.json")
    assert done.returncode == 0, done.stderr
    result = json.loads((place.folder / "out.json").read_text())
    return {**result, "printed": done.stdout}


SaidNo = Callable[..., str]


@pytest.fixture
def said_no(place: Place, monkeypatch: pytest.MonkeyPatch) -> SaidNo:
    """The message of a command that must fail and leave nothing; in this process."""
    monkeypatch.chdir(place.folder)
    monkeypatch.setenv("RECSYS_HOME", str(place.home))
    commands: dict[str, tuple[Any, Any]] = {
        "compare": (compare.run, CompareConfig),
        "evaluate": (evaluate.run, EvaluateConfig),
    }

    def message(name: str, *arguments: str) -> str:
        before = place.files
        run, schema = commands[name]
        with pytest.raises(ValueError) as caught:
            run(compose(name, schema, arguments))
        assert {file for file in place.files - before if "cache" not in file} == set()
        return str(caught.value)

    return message


@pytest.fixture(scope="module")
def long_run(place: Place) -> dict[str, Any]:
    return run_of(place, "train", *SMALL, "trainer.max_epochs=6")


@pytest.fixture(scope="module")
def short_run(place: Place) -> dict[str, Any]:
    return run_of(place, "train", *SMALL, "trainer.max_epochs=1", "evaluation.baselines=false")


def test_training_says_how_it_stands_against_the_baselines(place: Place, long_run: dict) -> None:
    report = json.loads((artifacts(place, long_run["run_id"]) / "report.json").read_text())
    assert len(report["sentinel"]) == 5
    assert all("too few questions or users for a verdict" in said for said in report["sentinel"])
    assert report["sentinel"][0] in long_run["printed"]
    assert {part["cohort"] for part in report["cohorts"]} >= {"history_length", "popularity"}
    assert "worst cohort: " not in long_run["printed"]  # none of them has 100 questions
    intervals = report["rows"][0]["intervals"]["test/loo-full-all/ndcg_10"]
    value = report["rows"][0]["metrics"]["test/loo-full-all/ndcg_10"]
    assert intervals[0] <= value <= intervals[1]
    # Means of what is alike for all users have a point for an interval, but for the last digit.
    for row in report["rows"]:
        for metric, (low, high) in row["intervals"].items():
            assert low - 1e-12 <= row["metrics"][metric] <= high + 1e-12, metric
        counted = {name for name in row["metrics"] if name.endswith("/questions")}
        undefined = {name for name, value in row["metrics"].items() if value is None}
        assert set(row["intervals"]) == set(row["metrics"]) - counted - undefined
    page = (artifacts(place, long_run["run_id"]) / "report.html").read_text()
    assert "loo-full-all" in page and "http" not in page and "<script" not in page


def test_a_run_beside_its_baselines_and_another_run(
    place: Place, long_run: dict, short_run: dict
) -> None:
    runs = f"runs=[{long_run['run_id']},{short_run['run_id']}]"
    found = run_of(place, "compare", runs)
    report = found["comparison"]
    assert report["questions"] == 60 and report["metric"] == "ndcg_10"
    names = [other["other"] for other in report["others"]]
    assert names[:5] == ["Popularity", "Markov", "ItemKNN", "EASE", "iALS"]
    assert names[5] == f"SASRec {short_run['run_id'][:8]}"
    assert f"{names[5]}: SASRec planted width 8" in found["printed"]
    metric = "test/loo-full-all/ndcg_10"
    ours = long_run["rows"][0]["metrics"][metric]
    theirs = short_run["rows"][0]["metrics"][metric]
    assert report["reference"]["estimate"] == pytest.approx(ours)
    assert report["others"][5]["difference"]["estimate"] == pytest.approx(ours - theirs)
    assert {other["verdict"] for other in report["others"]} == {"too few"}
    assert "too few: fewer than 1,000 questions" in found["printed"]
    strongest = max(report["others"], key=lambda other: other["value"]["estimate"])
    assert f"against {strongest['other']}, by cohort" in found["printed"]
    for part in strongest["cohorts"]:
        assert f"{part['cohort']} {part['value']} " in found["printed"]
    for word in ("gain", "lose"):
        told = found["printed"].split(f"users who {word} most, against {strongest['other']}: ")[1]
        users = [row["user"] for row in strongest[f"{word}_most"]]
        named = [said.split(" ")[0] for said in told.splitlines()[0].split("), ")]
        assert named == ([str(user) for user in users] or ["none"])
    assert "cohorts and users against the others stand in compare.html" in found["printed"]
    folder = artifacts(place, found["run_id"])
    assert "ItemKNN" in (folder / "compare.html").read_text()
    assert json.loads((folder / "compare.json").read_text()) == report
    with sqlite3.connect(place.home / "mlflow.db") as database:
        tags = dict(
            database.execute(
                "select key, value from tags where run_uuid = ?", (found["run_id"],)
            ).fetchall()
        )
    assert tags["pipeline"] == "compare" and long_run["run_id"] in tags["compares"]


def test_runs_that_cannot_be_compared_are_refused(
    place: Place, said_no: SaidNo, long_run: dict, short_run: dict
) -> None:
    one, other = long_run["run_id"], short_run["run_id"]
    again = run_of(place, "evaluate", f"run={one}", "evaluation.filter_seen=true", "data=null")
    assert again["run_id"]
    with_seen = run_of(
        place,
        "evaluate",
        f"run={one}",
        "split=share",
        "leaks=mark",
        "evaluation.baselines=false",
    )
    message = refused(place, "compare", f"runs=[{other},{with_seen['run_id']}]", "baselines=false")
    assert "were asked by other protocols: loo-full-all and share-full-all-leaking" in message
    assert "names a run twice" in said_no("compare", f"runs=[{one},{one}]")
    assert "names a run twice" in said_no("compare", f"runs=[latest,{other}]", "baselines=false")
    assert "has no baselines to be held against" in said_no("compare", f"runs=[{other}]")
    assert "resamples=100 cannot tell any of 5" in said_no(
        "compare", f"runs=[{one}]", "resamples=100"
    )
    assert "leaves nothing to compare" in said_no("compare", f"runs=[{one}]", "baselines=false")
    assert "metric=ndcg_11 is not among" in said_no("compare", f"runs=[{one}]", "metric=ndcg_11")
    compared = run_of(place, "compare", f"runs=[{one}]")["run_id"]
    assert "is a run of compare, which answers no questions" in said_no(
        "compare", f"runs=[{compared}]"
    )
    with sqlite3.connect(place.home / "mlflow.db") as database:
        database.execute("update runs set status = 'RUNNING' where run_uuid = ?", (other,))
    assert "is RUNNING: only finished runs" in said_no("compare", f"runs=[{other},{one}]")
    with sqlite3.connect(place.home / "mlflow.db") as database:
        database.execute("update runs set status = 'FINISHED' where run_uuid = ?", (other,))
    old = artifacts(place, other) / "per_question/test/SASRec.parquet"
    whole = old.read_bytes()
    pl.read_parquet(old).drop("answers").write_parquet(old)
    message = said_no("compare", f"runs=[{one},{other}]", "baselines=false")
    assert "they are of an older format; evaluate the run again" in message
    old.write_bytes(whole)


def test_sampled_and_given_candidates_are_named_and_easier(place: Place, long_run: dict) -> None:
    bare = [f"run={long_run['run_id']}", "evaluation.baselines=false"]
    sampled = ["candidate_set=sampled", "candidate_set.count=9"]
    first, again, other = (
        run_of(place, "evaluate", *bare, *sampled, *seed)
        for seed in ([], [], ["candidate_set.seed=1"])
    )
    metrics = first["rows"][0]["metrics"]
    assert metrics == again["rows"][0]["metrics"] != other["rows"][0]["metrics"]
    full = long_run["rows"][0]["metrics"]["test/loo-full-all/hr_5"]
    assert metrics["test/loo-uniform9-all/hr_5"] > full
    assert metrics["test/loo-uniform9-all/hr_10"] == 1  # of ten, one must be right
    assert "not comparable with numbers over the whole catalogue" in first["printed"]
    store = planted_log(60)
    answers = {f"u{u}": store.history(u).tolist()[-1] for u in range(store.users)}
    raw = store.item_vocabulary.raw_ids.to_list()
    rows = [(user, raw[i - 1]) for user, a in answers.items() for i in {a, 1, 2}]
    pl.DataFrame(rows, schema=["user", "item"], orient="row").write_parquet(
        place.folder / "given.parquet"
    )
    given = run_of(
        place, "evaluate", *bare, "candidate_set=given", "candidate_set.path=given.parquet"
    )
    (hits,) = (
        value
        for name, value in given["rows"][0]["metrics"].items()
        if name.startswith("test/loo-given") and name.endswith("-all/hr_5")
    )
    assert hits == 1


LISTS = ["data=log", "data.path=log.parquet", "data.name=planted", "data.columns.time=null"]
LISTS += ["data.columns.order=at", "data.repeats=true", "split=loo", "evaluation.ks=[1,5]"]


def lists_of(place: Place, of_user: Any) -> Path:
    """A file of lists of five, best first."""
    store = planted_log(60)
    rows: dict[str, list[Any]] = {"user": [], "item": [], "rank": []}
    raw = store.item_vocabulary.raw_ids.to_list()
    for user in range(store.users):
        for rank, item in enumerate(of_user(store.history(user).tolist()), start=1):
            rows["user"].append(f"u{user}")
            rows["item"].append(raw[item - 1])
            rows["rank"].append(rank)
    path = place.folder / "lists.parquet"
    pl.DataFrame(rows).write_parquet(path)
    return path


def first_five(start: int) -> list[int]:
    return [1 + (start - 1 + step) % 20 for step in range(5)]


def test_lists_of_another_system_get_the_same_report(place: Place, long_run: dict) -> None:
    lists_of(place, lambda history: first_five(history[-2]))
    found = run_of(place, "evaluate", "recommendations=lists.parquet", *LISTS)
    assert [row["model"] for row in found["rows"]][:2] == ["lists", "Popularity"]
    store = planted_log(60)
    answers = [store.history(u).tolist() for u in range(store.users)]
    hits = np.mean([h[-1] in first_five(h[-2]) for h in answers])
    assert found["rows"][0]["metrics"]["test/loo-top5-all/hr_5"] == pytest.approx(hits)
    assert "an answer beyond them is a miss" in found["printed"]
    report = json.loads((artifacts(place, found["run_id"]) / "report.json").read_text())
    assert report["rows"][0]["model"] == "lists" and report["cohorts"]
    # Beside a model of ours that was asked the same, as far as the lists go.
    beside = run_of(
        place, "compare", f"runs=[{long_run['run_id']},{found['run_id']}]", "metric=ndcg_5"
    )
    assert beside["comparison"]["others"][-1]["other"] == "lists"
    assert len(beside["comparison"]["others"][0]["gain_most"]) <= 5
    (place.folder / "lists.parquet").rename(place.folder / "EASE.parquet")
    named = run_of(place, "evaluate", "recommendations=EASE.parquet", *LISTS)
    assert named["rows"][0]["model"] == "EASE of EASE.parquet"
    assert named["rows"][0]["metrics"] == found["rows"][0]["metrics"]


@pytest.mark.parametrize(
    ("of_user", "words"),
    [
        (lambda history: [history[-1], *(i for i in first_five(history[-1])[1:])], "first place"),
        (lambda history: first_five(1), "first in 100% of the questions"),
    ],
    ids=["peeks", "always item 1"],
)
def test_the_report_says_what_is_odd(place: Place, of_user: Any, words: str) -> None:
    lists_of(place, of_user)
    found = run_of(
        place, "evaluate", "recommendations=lists.parquet", *LISTS, "evaluation.baselines=false"
    )
    assert "WARNING: lists " in found["printed"] and words in found["printed"]


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (["recommendations=lists.parquet", "run=latest"], "only one"),
        ([], "one of them is needed"),
        (["recommendations=lists.parquet", "data=null"], "data= must say what the lists answer"),
        (["recommendations=none.parquet"], "none.parquet cannot be read"),
        (["recommendations=lists.parquet", "evaluation.ks=[10]"], "longest list of lists.parquet"),
        (
            ["recommendations=lists.parquet", "candidate_set=sampled"],
            "candidate_set=sampled does not go",
        ),
        (["recommendations=lists.parquet", "audit.repeats=0.0"], "fails its audit"),
        (["recommendations=lists.parquet", "leaks=mark"], "leaks=mark does not go with"),
        (["recommendations=lists.parquet", "evaluation.cohorts=[repaet]"], "mean 'repeat'"),
        (["recommendations=lists.parquet", "evaluation.resamples=1"], "resamples must be 0"),
    ],
)
def test_wrong_settings_of_lists_are_refused(
    place: Place, said_no: SaidNo, settings: list[str], words: str
) -> None:
    lists_of(place, lambda history: first_five(history[-2]))
    given = [s for s in LISTS if s.partition("=")[0] not in {x.partition("=")[0] for x in settings}]
    if "data=null" in settings:
        given = ["split=loo"]
    assert words in said_no("evaluate", *given, *settings)
