"""What a person sees of runs: a browser on a real `mlflow ui`, over what real commands left."""

from __future__ import annotations

import json
import shutil
import socket
import sqlite3
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from pipelines import train as train_module
from pipelines.compare import run as compare
from pipelines.entry import compose
from pipelines.explain import run as explain
from pipelines.promote import run as promote
from pipelines.reproduce import run as reproduce
from pipelines.schemas import (
    CompareConfig,
    ExplainConfig,
    PromoteConfig,
    ReproduceConfig,
    TrainConfig,
    TuneConfig,
)
from pipelines.train import run as train
from pipelines.tune import run as tune
from recsys.tracking.experiments import find_experiment
from recsys.tracking.store import local_store
from recsys.tracking.ui import run_link, runs_link, started_ui
from tests.browser import CHROMIUM, WHY_NOT, Browser
from tests.pipelines.conftest import Place
from tests.pipelines.test_clicks import SMALL as CLICKS
from tests.pipelines.test_clicks import write_log as write_clicks
from tests.pipelines.test_reproduce import MARK, QUICK
from tests.pipelines.test_train import SMALL, write_log
from tests.pipelines.test_tune import SEARCH


@dataclass
class Runs:
    """What the commands left: a run of each, and `quick`, that was done again."""

    place: Place
    items: dict[str, Any]
    clicks: dict[str, Any]
    compared: dict[str, Any]
    explained: dict[str, Any]
    promoted: dict[str, Any]
    quick: dict[str, Any]
    reproduced: dict[str, Any]
    tuned: dict[str, Any]

    def tags(self, run_id: str) -> dict[str, str]:
        with sqlite3.connect(self.place.home / "mlflow.db") as database:
            asked = "select key, value from tags where run_uuid = ?"
            return dict(database.execute(asked, (run_id,)).fetchall())

    def points(self, run_id: str, metric: str) -> list[tuple[int, float]]:
        with sqlite3.connect(self.place.home / "mlflow.db") as database:
            asked = "select step, value from metrics where run_uuid = ? and key = ? order by step"
            return database.execute(asked, (run_id, metric)).fetchall()


def interrupt(*_: object) -> None:
    raise KeyboardInterrupt


@pytest.fixture(scope="module")
def runs(empty_store: Path, tmp_path_factory: pytest.TempPathFactory) -> Runs:
    place = Place(tmp_path_factory.mktemp("pages"))
    place.home.mkdir()
    shutil.copy(empty_store, place.home / "mlflow.db")
    (place.folder / "clicks").mkdir()
    write_log(place.folder / "log.parquet")
    write_clicks(place.folder / "clicks/log.parquet")
    out = place.folder / "out.json"
    with pytest.MonkeyPatch.context() as patched:  # in this process, which saves eight starts
        patched.setenv("RECSYS_HOME", str(place.home))

        def left(command: str, config: type, run: Any, *overrides: str) -> dict[str, Any]:
            run(compose(command, config, [*overrides, f"result={out}"]))
            found: dict[str, Any] = json.loads(out.read_text())
            return found

        patched.chdir(place.folder / "clicks")
        clicks = left("train", TrainConfig, train, *CLICKS)
        patched.chdir(place.folder)
        items = left("train", TrainConfig, train, *SMALL, "register=films")
        of = f"run={items['run_id']}"
        quick = left("train", TrainConfig, train, *SMALL, *QUICK, "trainer.max_epochs=1")
        with pytest.MonkeyPatch.context() as stopping, pytest.raises(KeyboardInterrupt):
            stopping.setattr(train_module, "train_and_judge", interrupt)
            left("train", TrainConfig, train, *SMALL)
        return Runs(
            place,
            items,
            clicks,
            left("compare", CompareConfig, compare, f"runs=[{items['run_id']}]"),
            left("explain", ExplainConfig, explain, of),
            left("promote", PromoteConfig, promote, of, "name=films"),
            quick,
            left("reproduce", ReproduceConfig, reproduce, f"run={quick['run_id']}", MARK),
            left("tune", TuneConfig, tune, *SEARCH, "trials=3", "study=seen"),
        )


def test_the_description_tells_the_story(runs: Runs) -> None:
    told = runs.tags(runs.items["run_id"])
    note = told["mlflow.note.content"]
    row = runs.items["rows"][0]
    value = f"{row['metrics']['test/loo-full-all/ndcg_10']:.4f}".lstrip("0")
    first = note.splitlines()[0]
    assert f"NDCG@10 {value}" in first and "60 questions" in first
    report = json.loads((artifacts(runs, "items") / "report.json").read_text())
    assert told["against"] == report["sentinel"][0]
    assert told["headline"].startswith(f"NDCG@10 {value} [")
    assert "**Data:** planted, 1,871 events, 60 users" in note
    assert "`test/loo-full-all`, leave-one-out" in note
    assert "**Cost:** " in note and " GB at most" in note and "parameters, epoch" in note
    for model in ("SASRec", "Popularity", "Markov", "ItemKNN", "EASE", "iALS"):
        assert f"\n| {model} | " in note
    assert "No result yet" not in note
    clicks = runs.tags(runs.clicks["run_id"])
    assert clicks["headline"].startswith("AUC .") and "| DIN | " in clicks["mlflow.note.content"]
    compared = runs.tags(runs.compared["run_id"])
    assert compared["headline"].startswith(f"NDCG@10 {value} [")
    assert "artifacts/compare.html" in compared["mlflow.note.content"]


def artifacts(runs: Runs, name: str) -> Path:
    run_id = getattr(runs, name)["run_id"]
    (found,) = runs.place.home.glob(f"mlruns/**/{run_id}/artifacts")
    return found


def test_everything_the_description_names_is_there(runs: Runs) -> None:
    for name in ("items", "clicks", "compared", "explained", "promoted"):
        note = runs.tags(getattr(runs, name)["run_id"])["mlflow.note.content"]
        folder = artifacts(runs, name)
        named = [part.split("?")[0].rstrip(")") for part in note.split("/artifacts/")[1:]]
        assert named
        for artifact in named:
            assert (folder / artifact).exists(), artifact
    drawn = {path.name for path in (artifacts(runs, "items") / "figures").iterdir()}
    assert drawn >= {"loss.png", "validation.png", "ranks.png", "items.png"}
    assert drawn >= {"by_history_length.png", "by_popularity.png"}
    drawn = {path.name for path in (artifacts(runs, "clicks") / "figures").iterdir()}
    assert drawn >= {"reliability.png", "by_history_length.png", "by_popularity.png"}
    assert "<polyline" in (artifacts(runs, "clicks") / "report.html").read_text()


def test_metrics_have_the_axis_they_belong_to(runs: Runs) -> None:
    run_id = runs.items["run_id"]
    epochs = [step for step, _ in runs.points(run_id, "val/loo-full-all/ndcg_10")]
    assert epochs == [1, 2, 3] == [step for step, _ in runs.points(run_id, "train/loss")]
    baseline = runs.points(run_id, "versus/EASE/val/loo-full-all/ndcg_10")
    assert [step for step, _ in baseline] == [1, 3] and baseline[0][1] == baseline[1][1]
    steps = [step for step, _ in runs.points(run_id, "train/loss_step")]
    assert len(steps) > 3 and steps == sorted(set(steps))
    load = runs.points(run_id, "system/process_memory_megabytes")
    assert load and all(100 < value < 100_000 for _, value in load)
    seconds = runs.items["seconds"]
    assert 0 <= load[-1][0] <= seconds + 1  # seconds since the run began


@pytest.fixture(scope="module")
def seen(runs: Runs, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Browser]]:
    """The UI's address, and a browser."""
    if CHROMIUM is None:
        pytest.skip(WHY_NOT)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    uri, _ = local_store(runs.place.home)
    with (
        started_ui(uri, port) as (address, _),
        Browser(tmp_path_factory.mktemp("profile"), width=2600) as browser,
    ):
        yield address, browser


def test_the_table_of_runs(runs: Runs, seen: tuple[str, Browser]) -> None:
    address, browser = seen
    experiment = find_experiment(local_store(runs.place.home)[0], "recsys")
    titles = ("headline", "against", "protocol", "test/loo-full-all/ndcg_10", "test/clicks/auc")
    whole = (runs.items, runs.clicks, runs.compared, runs.explained, runs.promoted, runs.tuned)
    run_ids = [found["run_id"] for found in whole]
    headlines = [runs.tags(run_id)["headline"] for run_id in run_ids]
    names = ("SASRec planted", "DIN planted", "compare SASRec", "explain SASRec", "promote films/1")
    text = browser.shows(
        runs_link(address, experiment), *titles, *headlines, *names, "14 matching runs"
    )
    assert "A run of train holds a model" in text  # what the experiment is about
    assert "Agent versions" not in text  # the GenAI side


def test_the_page_of_a_run(runs: Runs, seen: tuple[str, Browser]) -> None:
    address, browser = seen
    experiment = find_experiment(local_store(runs.place.home)[0], "recsys").experiment_id
    tags = runs.tags(runs.items["run_id"])
    title = "SASRec planted width 8 heads 1 layers 2 seed 1"
    text = browser.shows(
        run_link(address, experiment, runs.items["run_id"]),
        title,
        "Finished",
        f"SASRec: {tags['headline']} on 60 questions.",
        tags["against"].removeprefix("WARNING: "),
        "Data: planted, 1,871 events",
        "Protocol: test/loo-full-all",
        f"planted ({tags['store'][:12]})",
        "git.commit",
        "git.dirty",
        "version.torch",
        "host",
        "seed",
        "system/cpu_utilization_percentage",
    )
    assert "**" not in text and "|--:" not in text  # Markdown is drawn, not shown
    assert min(browser.await_pictures(5)) > 300  # the figures of the description


@pytest.mark.parametrize(
    ("run", "artifact", "words"),
    [
        ("explained", "explain.html", ["Not to be read as reasons", "score drop"]),
        ("promoted", "promote.html", ["Decision", "too few: 60 questions"]),
        ("items", "report.html", ["In short", "NDCG@10 by cohort", "Beyond accuracy", "EASE"]),
        ("clicks", "report.html", ["Calibration of DIN", "probability given", "Split audit"]),
        ("compared", "compare.html", ["win / tie / loss", "Against Markov, user by user"]),
    ],
)
def test_reports(
    runs: Runs, seen: tuple[str, Browser], run: str, artifact: str, words: list[str]
) -> None:
    address, browser = seen
    note = runs.tags(getattr(runs, run)["run_id"])["mlflow.note.content"]
    # The very link that stands in the description.
    link = next(part for part in note.split("](")[1:] if f"/{artifact}?" in part).split(")")[0]
    assert link.startswith("#/experiments/")
    browser.shows(f"{address}/{link}", artifact, *words)


@pytest.mark.parametrize(
    ("run", "words", "pictures"),
    [
        ("explained", ["attention beside score drops"], 0),
        ("promoted", ["films/1 refused: too few: 60 questions", "leave-one-out: each user's"], 0),
        (
            "reproduced",
            ["equal to the last digit", "60 ranks", "trained again", "Data: planted"],
            0,
        ),
        ("tuned", ["Study seen: 3 trials", "The best is trial", "tested once", "ItemKNN"], 1),
    ],
)
def test_the_pages_of_other_commands(
    runs: Runs, seen: tuple[str, Browser], run: str, words: list[str], pictures: int
) -> None:
    address, browser = seen
    experiment = find_experiment(local_store(runs.place.home)[0], "recsys").experiment_id
    run_id = getattr(runs, run)["run_id"]
    headline = runs.tags(run_id)["headline"]
    page = run_link(address, experiment, run_id)
    text = browser.shows(page, "Finished", headline, *words, "host", "git.commit")
    assert "**" not in text and "|--" not in text and "No result yet" not in text
    if pictures:
        assert min(browser.await_pictures(pictures)) > 300


def test_the_page_of_a_run_that_was_interrupted(runs: Runs, seen: tuple[str, Browser]) -> None:
    address, browser = seen
    with sqlite3.connect(runs.place.home / "mlflow.db") as database:
        ((run_id, experiment),) = database.execute(
            "select run_uuid, experiment_id from runs where status = 'KILLED'"
        )
    page = run_link(address, experiment, run_id)
    text = browser.shows(page, "Training SASRec. KILLED: interrupted by Ctrl-C.", "Data: planted")
    assert "No result yet" not in text


def test_the_page_of_a_version(runs: Runs, seen: tuple[str, Browser]) -> None:
    address, browser = seen
    browser.shows(f"{address}/#/models/films/versions/1", "films", "refused", "too few")


def test_a_figure(runs: Runs, seen: tuple[str, Browser]) -> None:
    address, browser = seen
    note = runs.tags(runs.items["run_id"])["mlflow.note.content"]
    link = next(part for part in note.split("](")[1:] if "/figures/ranks.png?" in part)
    browser.shows(f"{address}/{link.split(')')[0]}", "figures/ranks.png")
    browser.await_pictures(1)
