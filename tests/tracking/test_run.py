"""A run reaches MLflow whole, with the right status, and can be found and taken up again."""

from __future__ import annotations

import errno
import json
import math
import os
import resource
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from recsys.tracking import environment, operations
from recsys.tracking import run as tracking
from recsys.tracking.environment import environment_tags
from recsys.tracking.experiments import find_experiment
from recsys.tracking.figures import loss_curve
from recsys.tracking.names import NOTE_TAG
from recsys.tracking.operations import NO_RESULT, unfinished
from recsys.tracking.reading import load_run
from recsys.tracking.run import TrackedRun
from recsys.tracking.store import TrackingError, local_store

Start = Callable[..., TrackedRun]
CHECKOUT = Path(tracking.__file__).resolve().parents[2]


def history(run: TrackedRun, name: str) -> list[tuple[int, float]]:
    points = run._client.get_metric_history(run.run_id, name)
    return sorted((point.step, point.value) for point in points)


# -- what is written


def test_params_are_flat_and_nothing_is_cut(start: Start) -> None:
    long = "x" * 7000
    params = {
        "seed": 3,
        "model": {"name": "sasrec", "dropout": 0.5, "tied": True, "loss": None, "empty": {}},
        "evaluation": {"ks": [5, 10]},
        "data": {"path": long, "columns": {"user@shop": "uid", "user#shop": "two", "a b": 1}},
        "tracking": {"uri": "https://me:secret@host/x"},
        "k" * 300: "long key",
        **{f"many_{n}": n for n in range(150)},
    }
    with start(params=params, config_yaml="uri: https://me:secret@host/x\n") as run:
        pass
    info = load_run(run.uri, run.run_id)
    assert info.params["seed"] == "3"
    assert info.params["model.name"] == "sasrec"
    assert info.params["model.dropout"] == "0.5"
    assert info.params["model.tied"] == "true"
    assert info.params["model.loss"] == "null"
    assert info.params["model.empty"] == "{}"
    assert info.params["evaluation.ks"] == "[5, 10]"
    assert [info.params[f"many_{n}"] for n in range(150)] == [str(n) for n in range(150)]
    assert info.params["data.path"].startswith("(7000 characters, whole in params_long.json) xx")
    whole = json.loads(info.artifact("params_long.json").read_text())
    assert whole == {
        "data.path": long,
        "data.columns.user@shop": "uid",
        "data.columns.user#shop": "two",
        "k" * 300: "long key",
    }
    assert info.params["data.columns.user_shop"] == "uid"
    assert info.params["data.columns.a b"] == "1"
    assert {"two", "long key"} <= set(info.params.values())
    assert info.params["tracking.uri"] == "https://me:***@host/x"
    assert info.artifact("config.yaml").read_text() == "uri: https://me:***@host/x\n"


def test_experiment_and_run_read_well(start: Start, root: Path) -> None:
    with start(tags={"seed": "3"}, description="# what", experiment="my: exp/1") as run:
        run.describe("# what came out")
    info = load_run(run.uri, run.run_id)
    assert (info.name, info.status, info.experiment) == (
        "sasrec on ml_100k",
        "FINISHED",
        "my: exp/1",
    )
    assert info.tags["seed"] == "3"
    assert info.tags["mlflow.note.content"] == "# what came out"
    assert info.artifacts == root / "mlruns" / "my_exp_1" / run.run_id / "artifacts"
    experiment = run._client.get_experiment(run.experiment_id)
    assert experiment.tags["mlflow.experimentKind"] == "custom_model_development"


def columns_of(run: TrackedRun) -> list[str]:
    """What the table of runs shows, as MLflow's page reads it."""
    tags = run._client.get_experiment(run.experiment_id).tags
    view = json.loads(tags["mlflow.sharedViewState.recsys"])
    assert view["name"] == "recsys" and view["updatedAt"] == view["createdAt"] > 1e12
    return json.loads(view["state"])["selectedColumns"]


def test_the_table_of_runs_has_columns(start: Start) -> None:
    with start() as run:
        usual = columns_of(run)
        assert {"attributes.`Dataset`", "tags.`headline`", "tags.`protocol`"} <= set(usual)
        for protocol in range(5):
            run.columns([f"test/{protocol}/ndcg_10"])
        run.columns(["test/3/ndcg_10"])
    newest = [f"metrics.`test/{protocol}/ndcg_10`" for protocol in (1, 2, 3, 4)]
    assert columns_of(run) == [*usual, *newest]
    experiment = run._client.get_experiment(run.experiment_id)
    assert "A run of **train** holds a model" in experiment.tags["mlflow.note.content"]


def test_what_somebody_made_of_the_experiment_stays(start: Start) -> None:
    with start() as run:
        pass
    view = run._client.get_experiment(run.experiment_id).tags["mlflow.sharedViewState.recsys"]
    changed = json.dumps({**json.loads(view), "updatedAt": 2e12})
    for tag, value in (("sharedViewState.recsys", changed), ("note.content", "ours")):
        run._client.set_experiment_tag(run.experiment_id, f"mlflow.{tag}", value)
    with start() as run:
        run.columns(["test/1/ndcg_10"])
    tags = run._client.get_experiment(run.experiment_id).tags
    assert tags["mlflow.sharedViewState.recsys"] == changed
    assert tags["mlflow.note.content"] == "ours"
    run._client.set_experiment_tag(run.experiment_id, "mlflow.sharedViewState.recsys", "no JSON")
    with start() as run:
        run.columns(["test/1/ndcg_10"])  # whatever it is, it is theirs


def test_columns_that_cannot_be_written_fail_no_run(start: Start, monkeypatch) -> None:
    from mlflow.exceptions import MlflowException

    def away(*_: object) -> None:
        raise MlflowException("the store is away")

    with start() as run:
        monkeypatch.setattr(run._client, "get_experiment", away)
        run.columns(["test/1/ndcg_10"])
    assert load_run(run.uri, run.run_id).status == "FINISHED"


def test_an_experiment_of_an_earlier_release_gets_what_it_lacks(start: Start) -> None:
    with start() as run:
        pass
    for tag in ("sharedViewState.recsys", "note.content"):
        run._client.delete_experiment_tag(run.experiment_id, f"mlflow.{tag}")
    assert not find_experiment(run.uri, "recsys").has_view
    with start() as run:
        run.columns(["test/1/ndcg_10"])
    assert columns_of(run)[-1] == "metrics.`test/1/ndcg_10`"
    assert find_experiment(run.uri, "recsys").has_view


def test_a_kind_somebody_chose_stays(start: Start) -> None:
    with start() as run:
        pass
    run._client.set_experiment_tag(run.experiment_id, "mlflow.experimentKind", "classification")
    with start() as run:
        pass
    experiment = run._client.get_experiment(run.experiment_id)
    assert experiment.tags["mlflow.experimentKind"] == "classification"


def test_every_metric_point_arrives(start: Start) -> None:
    with start() as run:
        for step in range(1300):
            run.metrics({"train/loss": step / 7, "a_b-c.d:e/f g": -step}, step)
        run.metrics({f"item {n}": n for n in range(2500)}, 0)  # more than MLflow takes at once
        run.metrics({"test/loo-full-unseen/ndcg_10": 0.1, "nan": math.nan, "inf": math.inf}, 0)
    assert history(run, "train/loss") == [(step, step / 7) for step in range(1300)]
    assert history(run, "a_b-c.d:e/f g") == [(step, -step) for step in range(1300)]
    metrics = load_run(run.uri, run.run_id).metrics
    assert [metrics[f"item {n}"] for n in range(2500)] == list(range(2500))
    assert metrics["test/loo-full-unseen/ndcg_10"] == 0.1
    assert math.isnan(metrics["nan"])
    assert metrics["inf"] == sys.float_info.max  # what MLflow makes of it; the UI shows ∞


@pytest.mark.parametrize(
    ("name", "nearest"), [("hr@10", "hr_10"), ("../x", ".x"), ("a//b", "a.b"), ("", "_")]
)
def test_a_metric_name_mlflow_refuses(start: Start, name: str, nearest: str) -> None:
    with start() as run, pytest.raises(TrackingError) as caught:
        run.metrics({name: 1.0}, 0)
    assert repr(name) in str(caught.value)
    suggestion = str(caught.value).rsplit("nearest: ", 1)[1].strip("'")
    with start() as run:
        run.metrics({suggestion: 1.0}, 0)
    assert suggestion in load_run(run.uri, run.run_id).metrics


def test_artifacts_come_back_as_they_were(start: Start, tmp_path: Path) -> None:
    frame = pl.DataFrame({"user": ["a", "b"], "rank": [3, 0], "ndcg_10": [0.5, 0.0]})
    (tmp_path / "weights").mkdir()
    (tmp_path / "weights" / "model.json").write_text("{}")
    with start() as run:
        run.artifact_frame("test/per_question.parquet", frame)
        run.artifact_json("data/report.json", {"rows in": 5, "name": "ü"})
        run.artifact_text("test/table.txt", "once")
        run.artifact_text("test/table.txt", "model  HR\n")
        run.artifact_file(tmp_path / "weights" / "model.json", "model")
        run.artifact_file(tmp_path / "weights", "best")
        run.figure("figures/loss.png", loss_curve([0, 1], [2.0, 1.0]))
    info = load_run(run.uri, run.run_id)
    assert pl.read_parquet(info.artifact("test/per_question.parquet")).equals(frame)
    assert json.loads(info.artifact("data/report.json").read_text()) == {"rows in": 5, "name": "ü"}
    assert info.artifact("test/table.txt").read_text() == "model  HR\n"
    assert info.artifact("model/model.json").read_text() == "{}"
    assert info.artifact("best/weights/model.json").read_text() == "{}"
    assert info.artifact("figures/loss.png").read_bytes().startswith(b"\x89PNG")
    assert sorted(path.name for path in info.artifact("test").iterdir()) == [
        "per_question.parquet",
        "table.txt",
    ]
    with pytest.raises(TrackingError, match=r"no artifact 'test/tables.txt'; it has .*table.txt"):
        info.artifact("test/tables.txt")


def test_an_artifact_appears_whole_or_not_at_all(
    start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    source = tmp_path / "model.safetensors"
    source.write_bytes(b"1234")
    with start() as run:
        run.artifact_text("kept.txt", "old")
        with monkeypatch.context() as patch:
            patch.setattr(os, "fsync", full)
            for write in (
                lambda: run.artifact_text("kept.txt", "new"),
                lambda: run.artifact_file(source),
            ):
                with pytest.raises(OSError, match="No space left"):
                    write()
    folder = load_run(run.uri, run.run_id).artifacts
    assert folder is not None
    assert sorted(path.name for path in folder.iterdir()) == ["config.yaml", "kept.txt"]
    assert (folder / "kept.txt").read_text() == "old"


def test_the_data_set_is_an_input(start: Start) -> None:
    fingerprint = "0123456789abcdef" * 4
    with start() as run:
        run.dataset(
            "ml_100k",
            fingerprint,
            {"events": 100_000},
            "https://files.grouplens.org/datasets/movielens/ml-100k.zip",
            columns={"user": "long"},
        )
        run.dataset("log", fingerprint, {}, "events/*.parquet", context="evaluation")
    inputs = run._client.get_run(run.run_id).inputs.dataset_inputs
    by_name = {one.dataset.name: one for one in inputs}
    dataset = by_name["ml_100k"].dataset
    assert dataset.digest == fingerprint[:12]
    assert json.loads(dataset.profile) == {"events": 100_000, "fingerprint": fingerprint}
    assert json.loads(dataset.source)["url"].endswith("ml-100k.zip")
    assert json.loads(dataset.schema) == {"mlflow_colspec": [{"type": "long", "name": "user"}]}
    assert [(tag.key, tag.value) for tag in by_name["log"].tags] == [
        ("mlflow.data.context", "evaluation")
    ]
    assert load_run(run.uri, run.run_id).tags["dataset.ml_100k"] == fingerprint


# -- how it ends


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (KeyboardInterrupt(), "KILLED"),
        (ValueError("no such item"), "FAILED"),
        (SystemExit(2), "FAILED"),
        (SystemExit(0), "FINISHED"),
    ],
)
def test_the_status_says_how_it_ended(start: Start, error: BaseException, status: str) -> None:
    doing = {"description": f"**Training.** {NO_RESULT}\n\n**Data:** ours"}
    with pytest.raises(type(error)), start(**doing) as run:
        run.metrics({"train/loss": 1.0}, 7)
        raise error
    info = load_run(run.uri, run.run_id)
    assert info.status == status
    assert history(run, "train/loss") == [(7, 1.0)]
    if isinstance(error, ValueError):
        assert info.tags["error"] == "ValueError: no such item"
        trace = info.artifact("error.txt").read_text()
        assert "test_the_status_says_how_it_ended" in trace
    again = f"Its last whole epoch was 7: `python -m pipelines.train resume={run.run_id}` goes on."
    why = {
        "KILLED": f"**KILLED:** interrupted by Ctrl-C. {again}",
        "FAILED": f"**FAILED:** `{type(error).__name__}: {error}`.",
        "FINISHED": NO_RESULT,
    }
    assert info.tags[NOTE_TAG] == f"**Training.** {why[status]}\n\n**Data:** ours"


@pytest.mark.parametrize(
    ("pipeline", "more"),
    [
        ("train below", " Its last whole epoch was 2."),
        ("trial", " Its last whole epoch was 2."),
        ("tune", " The same command goes on with study=first."),
        ("train", " Its last whole epoch was 2: `python -m pipelines.train resume=RUN "
         "'tracking.uri=http://me:***@host'` goes on."),
    ],
)  # fmt: skip
def test_the_page_of_an_interrupted_run_says_how_to_go_on(
    start: Start, pipeline: str, more: str
) -> None:
    params = {"tracking": {"uri": "http://me:secret@host" if pipeline == "train" else None}}
    given: dict[str, Any] = {"tags": {"study": "first"}, "params": params}
    given["pipeline"], _, below = pipeline.partition(" ")
    if below:
        given["parent_run_id"] = "0" * 32
    with pytest.raises(KeyboardInterrupt), start(**given) as run:
        run.metrics({"train/loss": 1.0}, 2)
        run.metrics({"train/loss": 1.0}, 1)
        raise KeyboardInterrupt
    note = load_run(run.uri, run.run_id).tags[NOTE_TAG]
    assert note == "**KILLED:** interrupted by Ctrl-C." + more.replace("RUN", run.run_id)


def test_a_result_stays_below_what_went_wrong_after_it(start: Start) -> None:
    with pytest.raises(OSError), start() as run:
        run.describe("NDCG .2")
        raise OSError("no `room`\nin http://me:secret@host")
    assert (
        "in http://me:***@host" in load_run(run.uri, run.run_id).artifact("error.txt").read_text()
    )
    note = load_run(run.uri, run.run_id).tags[NOTE_TAG]
    assert note == "**FAILED:** `OSError: no 'room'`.\n\nNDCG .2"
    for _ in range(2):  # as a delivery may that breaks off
        operations.perform(run._client, run.run_id, unfinished("KILLED", "gone"))
    note = load_run(run.uri, run.run_id).tags[NOTE_TAG]
    assert note == "**KILLED:** gone.\n\n**FAILED:** `OSError: no 'room'`.\n\nNDCG .2"
    assert load_run(run.uri, run.run_id).status == "FAILED"


def test_finish_holds_and_comes_once(start: Start) -> None:
    with start() as run:
        run.finish("KILLED")
    assert load_run(run.uri, run.run_id).status == "KILLED"


def test_interrupted_while_starting(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(TrackedRun, "_write_params", interrupt)
    with pytest.raises(KeyboardInterrupt):
        start()
    monkeypatch.undo()
    with start() as run:
        pass
    runs = run._client.search_runs([run.experiment_id])
    assert sorted(one.info.status for one in runs) == ["FINISHED", "KILLED"]


def test_a_second_ctrl_c_leaves_nothing_half_closed(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = start()
    close, before = run._client.set_terminated, signal.getsignal(signal.SIGINT)

    def interrupted(run_id: str, status: str, end_time: int) -> None:
        os.kill(os.getpid(), signal.SIGINT)
        close(run_id, status, end_time)

    monkeypatch.setattr(run._client, "set_terminated", interrupted)
    with pytest.raises(KeyboardInterrupt, match="the first"), run:
        raise KeyboardInterrupt("the first")
    assert load_run(run.uri, run.run_id).status == "KILLED"
    assert signal.getsignal(signal.SIGINT) is before


CTRL_C = """
import sys, time
from pathlib import Path
from recsys.tracking.environment import environment_tags
from recsys.tracking.run import TrackedRun
from recsys.tracking.store import local_store
assert not any(name.split(".")[0] in ("mlflow", "torch") for name in sys.modules)
uri, artifacts = local_store(Path(sys.argv[1]))
with TrackedRun.start(uri=uri, artifact_root=artifacts, experiment="e", run_name="r", params={},
                      config_yaml="", tags=environment_tags()) as run:
    run.metrics({"train/loss": 0.5}, 3)
    print(run.run_id, flush=True)
    time.sleep(100)
"""


def test_ctrl_c_is_quiet_and_leaves_no_litter(tmp_path: Path) -> None:
    """A real process, its own new store: nothing on the terminal, nothing in its folder."""
    root, cwd = tmp_path / "root", tmp_path / "cwd"
    root.mkdir()
    cwd.mkdir()
    process = subprocess.Popen(
        [sys.executable, "-c", CTRL_C, str(root)],
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": str(CHECKOUT), "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    run_id = process.stdout.readline().strip()
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate()
    lines = errors.splitlines()
    assert lines[0].startswith("Traceback"), errors
    assert lines[-1] == "KeyboardInterrupt", errors
    assert "INFO" not in errors
    assert "WARN" not in errors
    assert list(cwd.iterdir()) == []
    assert sorted(path.name for path in root.iterdir()) == ["mlflow.db", "mlruns"]
    info = load_run(local_store(root)[0], run_id)
    assert info.status == "KILLED"
    assert info.metrics == {"train/loss": 0.5}
    assert info.tags["version.polars"] == pl.__version__
    assert info.tags["host"]


def test_a_full_disk_is_said_in_a_sentence(
    start: Start, root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    run = start()
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, ((root / "mlflow.db").stat().st_size, hard))
        with pytest.raises(OSError, match=r"cannot write metrics of run .* disk") as caught:
            for step in range(100_000):
                run.metrics({"train/loss": 0.5}, step)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert caught.value.errno == errno.ENOSPC
    assert "\n" not in str(caught.value)
    assert capsys.readouterr().err == ""  # MLflow logs a traceback where one lets it
    run.finish("FAILED")  # with room again, what waited arrives
    assert len(history(run, "train/loss")) == max(s for s, _ in history(run, "train/loss")) + 1


# -- taking it up again


def test_resuming_continues_the_metrics(start: Start) -> None:
    params = {"seed": 1, "trainer": {"max_epochs": 3}}
    with pytest.raises(OSError, match="lost"), start(params=params, tags={"host": "a"}) as run:
        for step in range(4):
            run.metrics({"train/loss": step / 3, "odd": math.nan}, step)
        raise OSError("power lost")
    params["trainer"] = {"max_epochs": 5, "new": 1}
    again = start(
        run_id=run.run_id, params=params, tags={"host": "b"}, config_yaml="seed: 1\nmore: 1\n"
    )
    assert load_run(run.uri, run.run_id).status == "RUNNING"
    with again:
        for step in range(2, 6):  # from the checkpoint on: steps 2 and 3 come a second time
            again.metrics({"train/loss": step / 3, "odd": math.nan}, step)
    assert again.run_id == run.run_id
    assert history(again, "train/loss") == [(step, step / 3) for step in range(6)]
    assert [step for step, _ in history(again, "odd")] == list(range(6))
    info = load_run(run.uri, run.run_id)
    assert info.status == "FINISHED"
    assert info.params == {"seed": "1", "trainer.max_epochs": "3", "trainer.new": "1"}
    assert info.tags["host"] == "b"
    assert info.tags["resumed"] == "1"
    assert "error" not in info.tags
    assert info.artifact("config.yaml").read_text() == "seed: 0\n"
    assert info.artifact("resumed/1/config.yaml").read_text() == "seed: 1\nmore: 1\n"
    changes = json.loads(info.artifact("resumed/1/changes.json").read_text())
    assert changes == {
        "status_before": "FAILED",
        "params": {"trainer.max_epochs": {"from": "3", "to": "5"}},
        "tags": {"host": {"from": "a", "to": "b"}},
    }


def test_a_different_value_is_kept_the_same_data_set_once(start: Start) -> None:
    with start() as run:
        run.metrics({"train/loss": 1.0}, 0)
        run.dataset("ml_100k", "feed" * 16, {"events": 5}, "somewhere")
    with start(run_id=run.run_id) as again:
        again.metrics({"train/loss": 2.0}, 0)
        again.dataset("ml_100k", "feed" * 16, {"events": 5}, "somewhere")
    assert history(again, "train/loss") == [(0, 1.0), (0, 2.0)]
    assert len(again._client.get_run(run.run_id).inputs.dataset_inputs) == 1


# -- finding it


def test_latest_is_the_training_run_that_finished_last(start: Start) -> None:
    def finished(**changes) -> str:
        with start(**changes) as run:
            pass
        return run.run_id

    uri = start().uri  # a run that still runs
    with pytest.raises(TrackingError, match="no training run has finished yet"):
        load_run(uri, "latest")
    first = finished()
    assert load_run(uri, "latest").run_id == first
    second = finished(experiment="other")
    assert load_run(uri, "latest").run_id == second
    assert load_run(uri, "latest", experiment="recsys").run_id == first
    finished(pipeline="evaluate")
    with pytest.raises(RuntimeError), start():
        raise RuntimeError
    assert load_run(uri, "latest").run_id == second
    with start(run_id=first) as run:
        pass
    assert load_run(uri, "latest").run_id == first
    run._client.delete_run(first)
    assert load_run(uri, "latest").run_id == second
    with pytest.raises(TrackingError, match=r"no experiment 'recsis' .* there are .*recsys"):
        load_run(uri, "latest", experiment="recsis")


def test_an_unknown_run_names_what_exists(start: Start) -> None:
    with start(run_name="sasrec-a") as run:
        pass
    near = run.run_id[:-2] + "zz"
    for wanted, words in (
        (near, "did you mean"),
        (run.run_id[:5], "did you mean"),
        ("sasrec-b", "did you mean"),
        ("not/an id", "the newest are"),
    ):
        with pytest.raises(TrackingError) as caught:
            load_run(run.uri, wanted)
        assert repr(wanted) in str(caught.value)
        assert f"{words} {run.run_id} (sasrec-a, FINISHED)" in str(caught.value)
    with pytest.raises(TrackingError, match="there is no run"):
        start(run_id=near)
    run._client.delete_run(run.run_id)
    with pytest.raises(TrackingError, match=r"is deleted; bring it back: mlflow runs restore"):
        load_run(run.uri, run.run_id)


def test_reading_makes_no_store(tmp_path: Path, root: Path) -> None:
    with pytest.raises(TrackingError, match=r"does not exist; train one first"):
        load_run(local_store(tmp_path / "nowhere")[0], "latest")
    assert not (tmp_path / "nowhere").exists()
    with pytest.raises(TrackingError, match="it holds no runs at all"):
        load_run(local_store(root)[0], "latest")


def test_what_is_no_store(start: Start, tmp_path: Path) -> None:
    (tmp_path / "mlflow.db").write_text("not a database at all")
    with pytest.raises(TrackingError, match="is not an MLflow database"):
        start(uri=f"sqlite:///{tmp_path / 'mlflow.db'}")
    with pytest.raises(TrackingError, match="is a folder"):
        start(uri=f"sqlite:///{tmp_path}")
    with pytest.raises(TrackingError, match="set RECSYS_HOME"):
        local_store(tmp_path / "100%25")


def test_a_server_that_is_not_there(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with pytest.raises(TrackingError, match=r"cannot start a run .* in http://me:\*\*\*@127"):
        start(uri="http://me:secret@127.0.0.1:9")


def test_a_deleted_experiment(start: Start) -> None:
    with start() as run:
        pass
    run._client.delete_experiment(run.experiment_id)
    with pytest.raises(TrackingError, match=r"'recsys' is deleted .* restore --experiment-id"):
        start()


# -- where it came from


def test_commit_and_dirty_flag(tmp_path: Path) -> None:
    def git(*arguments: str) -> str:
        who = ["-c", "user.name=t", "-c", "user.email=t@t"]
        command = ["git", "-C", str(tmp_path), *who, *arguments]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()

    code = tmp_path / "code.py"
    code.write_text("1")
    assert environment._git_state(code) == (None, False)
    git("init", "-q")
    assert environment._git_state(code) == (None, False)  # in a repository, but not of it
    git("add", "code.py")
    git("commit", "-q", "-m", "m")
    commit = git("rev-parse", "HEAD")
    assert environment._git_state(code) == (commit, False)
    code.write_text("2")
    assert environment._git_state(code) == (commit, True)


def test_environment_tags_name_versions_and_machine() -> None:
    tags = environment_tags()
    assert {"git.commit", "git.dirty", "python", "platform", "host", "pid", "cpus"} <= set(tags)
    assert tags["pid"] == str(os.getpid())
    assert tags["version.polars"] == pl.__version__
    assert all(isinstance(value, str) and value for value in tags.values())
