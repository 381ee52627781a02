"""Studies, back-tests and comparisons whose server is away: they go on, and arrive as they are."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from pipelines import backtest, compare, promote, sync, train, tune
from pipelines.entry import compose
from pipelines.judging import Judge
from pipelines.paths import outbox_dir, tracking_uri
from pipelines.runs import trained_run
from pipelines.schemas import (
    BacktestConfig,
    CompareConfig,
    PromoteConfig,
    SyncConfig,
    TrackingConfig,
    TuneConfig,
)
from recsys.models.baselines.popularity import Popularity
from recsys.tracking import registry
from recsys.tracking import run as tracking
from recsys.tracking.delivery import deliver
from recsys.tracking.names import NOTE_TAG, PARENT_TAG
from recsys.tracking.reading import RunInfo, load_run
from recsys.tracking.registry import champion_of
from recsys.tracking.store import OutOfReach, open_client
from tests.pipelines.conftest import Place
from tests.pipelines.test_sync import NOBODY
from tests.pipelines.test_train import SMALL, write_log

QUICK = ["evaluation.resamples=20", "evaluation.tie_orders=0", "model.layers=1"]
QUICK += ["trainer.minimum_batches=5", "trainer.max_epochs=1", "evaluation.explained_users=0"]
SEARCH = ["study=s", "space.model.width.choices=[4,8]", "~space.model.layers", "trials=2"]
SEARCH += ["~space.model.dropout", "~space.trainer.learning_rate", "evaluation.baselines=false"]
WINDOWS = [*(s for s in SMALL if not s.startswith(("split.", "data.columns."))), "split.target=all"]
WINDOWS += ["data.columns.time=time", "cuts=[0.5,0.65,0.8]", "frozen=false"]
AWAY = [f"tracking.uri={NOBODY}", "tracking.system_metrics=false"]


@dataclass
class Waited:
    """What was found while nobody was there, and what came of it.

    Attributes:
        place: where.
        found: result files, by command.
        lines: that were printed, by command.
        became: each run's id where it was delivered, by the one it had.
    """

    place: Place
    found: dict[str, dict[str, Any]]
    lines: dict[str, list[str]]
    became: dict[str, str]

    def run(self, waited: str) -> RunInfo:
        return load_run(tracking_uri(), self.became[waited])

    def below(self, waited: str) -> list[RunInfo]:
        """The runs below one, first things first."""
        where = f"tags.`{PARENT_TAG}` = '{self.became[waited]}'"
        experiment = [self.run(waited).experiment_id]
        runs = open_client(tracking_uri()).search_runs(
            experiment, where, order_by=["attributes.start_time"]
        )
        return [load_run(tracking_uri(), run.info.run_id) for run in runs]


def popularity(judge: Judge) -> Popularity:
    """One baseline is enough to be held against, and takes no time."""
    store, ends = judge.store, judge.split.training_ends
    return Popularity().fit(store.items, store.offsets, ends, store.catalogue_size, None)


@pytest.fixture(scope="module")
def waited(empty_store: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Waited]:
    place = Place(tmp_path_factory.mktemp("waited"))
    place.home.mkdir()
    shutil.copy(empty_store, place.home / "mlflow.db")
    write_log(place.folder / "log.parquet")
    capture = pytest.MonkeyPatch()
    lines: dict[str, list[str]] = {"tune": [], "backtest": []}
    found: dict[str, dict[str, Any]] = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place.folder)
        patch.setenv("RECSYS_HOME", str(place.home))
        patch.setattr(train, "baselines", lambda judge, *_: [popularity(judge)])
        for name, module, config in (
            ("tune", tune, compose("tune", TuneConfig, [*TUNED, *AWAY, "test=false"])),
            ("backtest", backtest, compose("backtest", BacktestConfig, [*TESTED, *AWAY])),
        ):
            capture.setattr(module, "say", lines[name].append)
            module.run(config)
            capture.undo()
            found[name] = json.loads((place.folder / f"{name}.json").read_text())
        ids = [folder.name for folder in outbox_dir().iterdir()]
        parents = [found[name]["run_id"] for name in lines]
        for parent in parents:  # to another store than was meant: what is below goes there too
            given = [f"run={parent}", f"tracking.uri={tracking_uri()}"]
            assert sync.run(compose("sync", SyncConfig, given)) == 0
        given = [f"tracking.uri={tracking_uri()}"]
        assert sync.run(compose("sync", SyncConfig, given)) == 0
        notes = {run: outbox_dir() / f"{run}.delivered.json" for run in ids}
        became = {run: json.loads(note.read_text())["run_id"] for run, note in notes.items()}
        yield Waited(place, found, lines, became)


TUNED = [*SMALL, *QUICK, *SEARCH, "result=tune.json"]
TESTED = [*WINDOWS, *QUICK, "result=backtest.json"]
METRIC = "val/loo-full-all/ndcg_10"


def test_they_go_on_and_say_where_to_look(waited: Waited) -> None:
    for lines in waited.lines.values():
        assert lines[-2].endswith("The run in the MLflow UI, once it is delivered:")
        assert f"pipelines.sync tracking.uri={NOBODY}" in lines[-1]
    assert len(waited.became) == 6


def test_a_study_arrives(waited: Waited) -> None:
    found = waited.found["tune"]
    parent, trials = waited.run(found["run_id"]), waited.below(found["run_id"])
    ids = [waited.became[trial["run"]] for trial in found["trials"]]
    assert [trial.run_id for trial in trials] == ids and parent.status == "FINISHED"
    told = json.loads(parent.artifact("study.json").read_text())
    assert [trial["run"] for trial in told["trials"]] == ids
    for trial, one in zip(trials, found["trials"], strict=True):
        assert (trial.status, trial.tags["trial"]) == ("FINISHED", "complete")
        assert trial.metrics[f"best/{METRIC}"] == one["value"]
    for run in (parent, *trials):
        assert [data["name"] for data in run.datasets] == ["planted"]
    assert f"run_uuid={parent.run_id}" in parent.tags[NOTE_TAG]


def test_a_backtest_arrives(waited: Waited) -> None:
    found = waited.found["backtest"]
    parent, trained = waited.run(found["run_id"]), waited.below(found["run_id"])
    assert parent.status == "FINISHED" and parent.datasets[0]["name"] == "planted"
    assert [run.status for run in trained] == ["FINISHED", "FINISHED"]
    last = f"test/{trained[1].tags['protocol']}/ndcg_10"
    windows = json.loads(parent.artifact("backtest.json").read_text())
    assert windows[1]["retrained"]["estimate"] == pytest.approx(trained[1].metrics[last])
    assert len(pl.read_parquet(trained[1].artifact("per_question/test/SASRec.parquet"))) > 9


def test_a_study_that_waited_goes_on_where_it_arrived(
    waited: Waited, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And its winner is tested once, even where it ends right after that."""
    before = waited.run(waited.found["tune"]["run_id"])
    assert {run: tune.run_now(run) for run in waited.became} == waited.became

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    config = compose("tune", TuneConfig, [*TUNED, "tracking.system_metrics=false"])
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(tune, "report_study", interrupt)
        tune.run(config)
    info = load_run(before.uri, before.run_id)
    assert (info.status, info.tags["resumed"]) == ("KILLED", "1")
    assert (
        "**KILLED:** interrupted by Ctrl-C. The same command goes on with study=s."
        in (info.tags[NOTE_TAG])
    )
    *_, winner = waited.below(waited.found["tune"]["run_id"])
    assert info.tags["winner"] == winner.run_id and winner.tags["refit"]
    lines: list[str] = []
    monkeypatch.setattr(tune, "say", lines.append)
    tune.run(config)  # trains nothing
    assert "its winner was tested" in lines[-2] and lines[-1].endswith(f"run={info.run_id}")
    assert len(waited.below(waited.found["tune"]["run_id"])) == 3


def test_the_id_of_the_wait_names_the_run_that_arrived(waited: Waited) -> None:
    children = waited.below(waited.found["backtest"]["run_id"])
    old = {now: before for before, now in waited.became.items()}
    for info in children:
        found, trained = trained_run(old[info.run_id], TrackingConfig("recsys", None))
        assert (found, trained.trainer.max_epochs) == (info, 1)
    given = [f"run={old[children[0].run_id]}", "name=shop", "cohorts=[]", "resamples=1000"]
    assert promote.run(compose("promote", PromoteConfig, given)) == promote.REFUSED
    (version,) = open_client(tracking_uri()).search_model_versions("name = 'shop'")
    assert version.run_id == children[0].run_id


def away(*_: object, **named: object) -> None:
    raise OutOfReach("no answer")


def test_a_comparison_waits_and_arrives(waited: Waited, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its server went away between what it read and what it has to say."""
    one, _ = waited.below(waited.found["backtest"]["run_id"])
    config = compose("compare", CompareConfig, [f"runs=[{one.run_id}]", "result=compare.json"])
    with monkeypatch.context() as patch:
        patch.setattr(tracking, "_run_of", away)
        compare.run(config)
    waiting = json.loads((waited.place.folder / "compare.json").read_text())["run_id"]
    arrived = deliver(outbox_dir() / waiting, tracking_uri())
    info = load_run(tracking_uri(), arrived.run_id)
    assert (info.status, info.tags["compares"]) == ("FINISHED", one.run_id)
    assert info.datasets == one.datasets and info.tags["dataset.planted"]
    assert f"runs/{info.run_id}/artifacts/compare.html" in info.tags[NOTE_TAG]
    assert json.loads(info.artifact("compare.json").read_text())["runs"] == [one.run_id]


def test_no_champion_without_the_registry(waited: Waited, monkeypatch: pytest.MonkeyPatch) -> None:
    """A decision that cannot be noted is none; the run that waits says so."""
    one, _ = waited.below(waited.found["backtest"]["run_id"])
    given = [f"run={one.run_id}", "name=lost", "cohorts=[]", "resamples=1000"]
    before = {folder.name for folder in outbox_dir().iterdir()}
    with monkeypatch.context() as patch, pytest.raises(OutOfReach):
        patch.setattr(tracking, "_run_of", away)
        patch.setattr(registry, "write_decision", away)
        promote.run(compose("promote", PromoteConfig, given))
    (waiting,) = {folder.name for folder in outbox_dir().iterdir()} - before
    arrived = deliver(outbox_dir() / waiting, tracking_uri())
    info = load_run(tracking_uri(), arrived.run_id)
    assert arrived.status == info.status == "FAILED" and info.datasets == one.datasets
    assert info.tags[NOTE_TAG].startswith("**FAILED:** `OutOfReach: no answer`.\n\n**lost/1 ")
    assert champion_of(tracking_uri(), "lost") is None
