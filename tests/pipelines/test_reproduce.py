"""Runs trained again: equal to the last digit, or told apart."""

from __future__ import annotations

import json
import shutil
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from pipelines import fitting, judging
from pipelines.checking import ConfigError
from pipelines.entry import compose
from pipelines.evaluate import implied
from pipelines.evaluate import run as evaluate
from pipelines.reproduce import NOT_REPRODUCED, Numbers, compared, in_text, run
from pipelines.schemas import EvaluateConfig, ReproduceConfig, TrainConfig
from pipelines.train import run as train
from recsys.tracking import operations, reading
from recsys.tracking import run as tracking
from recsys.tracking.delivery import deliver
from recsys.tracking.names import NOTE_TAG
from recsys.tracking.reading import RunInfo, load_run
from recsys.tracking.store import OutOfReach
from tests.pipelines.conftest import Place
from tests.pipelines.test_clicks import SMALL as CLICKS
from tests.pipelines.test_clicks import write_log as write_clicks
from tests.pipelines.test_train import SMALL, artifacts, write_log

QUICK = ["evaluation.resamples=20", "evaluation.tie_orders=0", "evaluation.baselines=false"]
QUICK += ["model.layers=1", "trainer.minimum_batches=5"]
MARK = "commit=mark"  # these tests may run on a tree with changes


def trained(place: Place, *overrides: str) -> RunInfo:
    train(compose("train", TrainConfig, [*overrides, "result=result.json"]))
    run_id = json.loads((place.folder / "result.json").read_text())["run_id"]
    return load_run(f"sqlite:///{place.home / 'mlflow.db'}", run_id)


def reproduce(*overrides: str) -> tuple[int, dict[str, Any]]:
    """The exit code and the report."""
    code = run(compose("reproduce", ReproduceConfig, [*overrides, "result=again.json"]))
    found: dict[str, Any] = json.loads(Path("again.json").read_text())
    return code, found


def refusal(*overrides: str) -> str:
    with pytest.raises(ConfigError) as caught:
        run(compose("reproduce", ReproduceConfig, overrides))
    return str(caught.value)


@pytest.fixture(scope="module")
def place(empty_store: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    place = Place(tmp_path_factory.mktemp("reproduce")).stocked(empty_store)
    write_log(place.folder / "log.parquet")
    with pytest.MonkeyPatch.context() as patched:
        patched.chdir(place.folder)
        patched.setenv("RECSYS_HOME", str(place.home))
        yield place


@pytest.fixture(scope="module")
def first(place: Place) -> RunInfo:
    """A run as it was made."""
    return trained(place, *SMALL, *QUICK, "trainer.max_epochs=2")


def test_equal_to_the_last_digit(
    place: Place, first: RunInfo, capsys: pytest.CaptureFixture[str]
) -> None:
    code, result = reproduce(f"run={first.run_id}", MARK)
    report = result["reproduction"]
    assert code == 0 and report["reproduced"] and report["differs"] == []
    assert report["same_machine"] and report["ranks"] == 60
    metrics = json.loads(first.artifact("table.json").read_text())
    assert report["metrics"] == sum(len(row["metrics"]) for row in metrics)
    assert report["correlation"] == 1.0 and report["difference"]["estimate"] == 0.0
    printed = capsys.readouterr().out
    assert f"equal to the last digit: {report['metrics']:,} metrics, 60 ranks" in printed
    again = load_run(first.uri, report["run"])
    assert again.tags["reproduces"] == first.run_id and again.tags["pipeline"] == "train"
    parent = load_run(first.uri, result["run_id"])
    assert parent.tags["reproduced"] == "true"
    kept = artifacts(place, parent.run_id)
    assert (kept / "reproduce.txt").read_text().strip() in printed
    assert json.loads((kept / "reproduce.json").read_text()) == report


def test_elsewhere_an_interval_on_the_same_users(
    first: RunInfo, capsys: pytest.CaptureFixture[str]
) -> None:
    code, result = reproduce(f"run={first.run_id}", MARK, "elsewhere=true")
    report = result["reproduction"]
    assert code == 0 and not report["same_machine"]
    assert "which holds 0; correlation of ranks 1.0000" in capsys.readouterr().out


def test_another_machine_is_elsewhere(place: Place, first: RunInfo) -> None:
    with retold(place, first, "version.torch", "1.0"):
        code, result = reproduce(f"run={first.run_id}", MARK)
    report = result["reproduction"]
    assert code == 0 and not report["same_machine"]
    assert report["other_machine"] == [f"version.torch 1.0 there, {torch_version()} here"]


def test_a_server_that_goes_away_meanwhile(
    place: Place, first: RunInfo, capsys: pytest.CaptureFixture[str]
) -> None:
    """The verdict is made of what waits."""

    def away(*_: object) -> None:
        raise OutOfReach("no answer")

    with pytest.MonkeyPatch.context() as patched:

        def lose(line: str) -> None:
            judging.say(line)
            if line.startswith("epoch 1/"):
                for writer in ("perform", "send_file", "send_model"):
                    patched.setattr(tracking, writer, away)

        patched.setattr(fitting, "say", lose)
        # Artifacts go through the store, as with a server.
        for module in (tracking, operations, reading):
            patched.setattr(module, "local_folder", lambda _: None)
        code, result = reproduce(f"run={first.run_id}", MARK)
    report = result["reproduction"]
    assert code == 0 and report["reproduced"] and report["ranks"] == 60
    assert capsys.readouterr().out.count("The run goes on, its results are kept") == 2
    for run_id in (result["run_id"], report["run"]):
        folder = place.home / "data/cache/outbox" / run_id
        assert deliver(folder, first.uri).status == "FINISHED"
    parent = load_run(first.uri, result["run_id"])
    assert (parent.tags["headline"], parent.metrics["reproduced"]) == ("reproduced", 1)
    for run_id in (first.run_id, report["run"]):
        page = f"(#/experiments/{first.experiment_id}/runs/{run_id})"
        assert page in parent.tags[NOTE_TAG]
    assert load_run(first.uri, report["run"]).metrics.keys() == first.metrics.keys()


def torch_version() -> str:
    import importlib.metadata

    return importlib.metadata.version("torch")


class retold:
    """Changes a tag in the store, and puts it back."""

    def __init__(self, place: Place, info: RunInfo, key: str, value: str) -> None:
        self.database = place.home / "mlflow.db"
        self.info, self.key, self.value = info, key, value

    def write(self, value: str) -> None:
        with sqlite3.connect(self.database) as database:
            database.execute(
                "update tags set value = ? where run_uuid = ? and key = ?",
                (value, self.info.run_id, self.key),
            )

    def __enter__(self) -> None:
        self.write(self.value)

    def __exit__(self, *exception: object) -> None:
        self.write(self.info.tags[self.key])


def test_another_seed_in_the_store_is_not_reproduced(place: Place, first: RunInfo) -> None:
    config = artifacts(place, first.run_id) / "config.yaml"
    whole = config.read_text()
    config.write_text(whole.replace("\nseed: 1\n", "\nseed: 2\n"))
    assert config.read_text() != whole
    try:
        done = place.command("reproduce", f"run={first.run_id}", MARK)
    finally:
        config.write_text(whole)
    assert done.returncode == NOT_REPRODUCED, done.stderr
    assert "NOT reproduced: SASRec planted" in done.stdout
    assert "ranks are others" in done.stdout
    assert "SASRec test/loo-full-all/ndcg_10: " in done.stdout


def test_a_ranker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    place = Place(tmp_path)
    monkeypatch.setenv("RECSYS_HOME", str(place.home))
    write_clicks(tmp_path / "log.parquet")
    info = trained(place, *CLICKS, "evaluation.resamples=20", "evaluation.baselines=false")
    code, result = reproduce("run=latest", MARK)
    report = result["reproduction"]
    assert code == 0 and report["metric"] == "auc" and report["reproduces"] == info.run_id
    assert report["ranks"] == len(pl.read_parquet(info.artifact("per_question/test/DIN.parquet")))


def test_other_code_is_refused_or_marked(place: Place, first: RunInfo) -> None:
    with retold(place, first, "git.commit", "0" * 40):
        message = refusal(f"run={first.run_id}")
        assert f"git.commit {'0' * 40} there" in message and "commit=mark" in message
    with retold(place, first, "git.dirty", "true"):
        assert "files that differ from the commit there" in refusal(f"run={first.run_id}")


def test_other_data_are_refused_and_the_source_is_named(place: Place, first: RunInfo) -> None:
    log = place.folder / "log.parquet"
    whole = log.read_bytes()
    write_log(log, users=59)
    try:
        message = refusal(f"run={first.run_id}", MARK)
    finally:
        log.write_bytes(whole)
    assert "was trained on other data" in message
    assert "log.parquet has SHA-256" in message and "there" in message


def test_the_store_is_made_again_where_it_is_gone(place: Place, first: RunInfo) -> None:
    shutil.rmtree(place.home / "data/cache/stores")
    assert reproduce(f"run={first.run_id}", MARK)[0] == 0


def test_runs_that_cannot_be_trained_again(place: Place, first: RunInfo) -> None:
    given = [f"run={first.run_id}"]
    evaluate(compose("evaluate", EvaluateConfig, [*implied(given), *given, "result=e.json"]))
    judged = json.loads(Path("e.json").read_text())["run_id"]
    assert "is a run of evaluate, which holds no model" in refusal(f"run={judged}", MARK)
    with sqlite3.connect(place.home / "mlflow.db") as database:
        change = "update runs set status = ? where run_uuid = ?"
        database.execute(change, ("KILLED", first.run_id))
    try:
        assert "is KILLED: it has no numbers to come to" in refusal(f"run={first.run_id}", MARK)
    finally:
        with sqlite3.connect(place.home / "mlflow.db") as database:
            database.execute(change, ("FINISHED", first.run_id))


def answers(ranks: list[int | None]) -> Numbers:
    """A model's answers to as many questions of different users."""
    frame = pl.DataFrame(
        {
            "user": [f"u{n}" for n in range(len(ranks))],
            "history_length": 5,
            "answer": "a",
            "answers": 1,
            "rank": pl.Series(ranks, dtype=pl.Int64),
        }
    ).with_columns(ndcg_10=(1 / pl.col("rank")).fill_null(0.0))
    mean = frame["ndcg_10"].mean()
    return Numbers({"M": {"test/loo-full-all/ndcg_10": mean}}, {"M": frame}, "impressions")  # type: ignore[dict-item]


def test_one_rank_is_a_difference_here_and_none_elsewhere(first: RunInfo) -> None:
    ranks: list[int | None] = [1 + n % 9 for n in range(200)]
    moved = [2, *ranks[1:]]
    here = compared(answers(ranks), answers(moved), same_machine=True)
    assert not here.reproduced and "M: 1 of 200 ranks are others" in here.differs
    elsewhere = compared(answers(ranks), answers(moved), same_machine=False)
    assert elsewhere.reproduced and 0.99 < elsewhere.correlation < 1
    assert "digits may differ, and 2 do" in in_text(first, elsewhere, [], ["host a there, b here"])


def test_a_clear_loss_is_not_reproduced_anywhere() -> None:
    ranks: list[int | None] = [1 + n % 9 for n in range(200)]
    worse = compared(answers(ranks), answers([None] * 100 + ranks[100:]), same_machine=False)
    assert not worse.reproduced and worse.difference.low > 0
    assert worse.correlation < 0.9
