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

from pipelines.compare import run as compare
from pipelines.entry import compose
from pipelines.schemas import CompareConfig, TrainConfig
from pipelines.train import run as train
from recsys.tracking.run import find_experiment, local_store
from recsys.tracking.ui import run_link, runs_link, started_ui
from tests.browser import CHROMIUM, WHY_NOT, Browser
from tests.pipelines.conftest import Place
from tests.pipelines.test_clicks import SMALL as CLICKS
from tests.pipelines.test_clicks import write_log as write_clicks
from tests.pipelines.test_train import SMALL, write_log


@dataclass
class Runs:
    """Three runs of the commands: next items, clicks, and a comparison."""

    place: Place
    items: dict[str, Any]
    clicks: dict[str, Any]
    compared: dict[str, Any]

    def tags(self, run_id: str) -> dict[str, str]:
        with sqlite3.connect(self.place.home / "mlflow.db") as database:
            asked = "select key, value from tags where run_uuid = ?"
            return dict(database.execute(asked, (run_id,)).fetchall())

    def points(self, run_id: str, metric: str) -> list[tuple[int, float]]:
        with sqlite3.connect(self.place.home / "mlflow.db") as database:
            asked = "select step, value from metrics where run_uuid = ? and key = ? order by step"
            return database.execute(asked, (run_id, metric)).fetchall()


@pytest.fixture(scope="module")
def runs(empty_store: Path, tmp_path_factory: pytest.TempPathFactory) -> Runs:
    place = Place(tmp_path_factory.mktemp("pages"))
    place.home.mkdir()
    shutil.copy(empty_store, place.home / "mlflow.db")
    (place.folder / "clicks").mkdir()
    write_log(place.folder / "log.parquet")
    write_clicks(place.folder / "clicks/log.parquet")
    results = []
    with pytest.MonkeyPatch.context() as patched:  # in this process, which saves three starts
        patched.chdir(place.folder)
        patched.setenv("RECSYS_HOME", str(place.home))

        def result() -> dict[str, Any]:
            return json.loads((place.folder / "out.json").read_text())

        train(compose("train", TrainConfig, [*SMALL, "result=out.json"]))
        results.append(result())
        patched.chdir(place.folder / "clicks")
        train(compose("train", TrainConfig, [*CLICKS, f"result={place.folder}/out.json"]))
        results.append(result())
        patched.chdir(place.folder)
        chosen = [f"runs=[{results[0]['run_id']}]", "result=out.json"]
        compare(compose("compare", CompareConfig, chosen))
        results.append(result())
    return Runs(place, *results)


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
    for name in ("items", "clicks", "compared"):
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
    run_ids = [found["run_id"] for found in (runs.items, runs.clicks, runs.compared)]
    headlines = [runs.tags(run_id)["headline"] for run_id in run_ids]
    names = ("SASRec planted", "DIN planted", "compare SASRec")
    text = browser.shows(
        runs_link(address, experiment), *titles, *headlines, *names, "3 matching runs"
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


def test_a_figure(runs: Runs, seen: tuple[str, Browser]) -> None:
    address, browser = seen
    note = runs.tags(runs.items["run_id"])["mlflow.note.content"]
    link = next(part for part in note.split("](")[1:] if "/figures/ranks.png?" in part)
    browser.shows(f"{address}/{link.split(')')[0]}", "figures/ranks.png")
    browser.await_pictures(1)
