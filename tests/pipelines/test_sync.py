"""Training against a real `mlflow server`: with it, without it, and when it is killed meanwhile."""

from __future__ import annotations

import contextlib
import io
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from mlflow import MlflowClient

from pipelines import evaluate, fitting, judging, sync, train
from pipelines.checking import ConfigError
from pipelines.entry import compose
from pipelines.paths import tracking_uri
from pipelines.schemas import EvaluateConfig, SyncConfig, TrainConfig
from pipelines.ui import how_to_open
from recsys.tracking.outbox import Outbox
from recsys.tracking.reading import load_run
from recsys.tracking.registry import make_champion, register_run
from recsys.tracking.run import TrackedRun
from recsys.tracking.store import TrackingError
from tests.mlflow_server import MlflowServer, answering, held
from tests.pipelines.conftest import Place
from tests.pipelines.test_train import SMALL, write_log

# The story starts a server twice and trains five times: minutes on a machine that has other work.
pytestmark = pytest.mark.timeout(900)

# What is seen of the machine is no two times the same.
SETTINGS = [*SMALL, "evaluation.baselines=false", "tracking.system_metrics=false"]
# What differs between two runs of the same: their process, their clock, their result's name.
OWN_TAGS = ("pid", "process", "command", "mlflow.")


@dataclass
class Story:
    """Runs of the same settings, and what was printed on the way.

    Attributes:
        undisturbed: had the server all the time.
        cut: lost it in the middle.
        late: never had it.
        resumed: never had it either, and was interrupted and resumed.
    """

    place: Place
    server: MlflowServer
    undisturbed: str
    cut: str
    late: str
    resumed: str
    said: dict[str, str]
    became: dict[str, str] = field(default_factory=dict)

    @property
    def outbox(self) -> Path:
        return self.place.home / "data/cache/outbox"


def run_of(printed: str) -> str:
    found = re.search(r"^run (\w{32}) ", printed, re.MULTILINE)
    assert found is not None, printed
    return found.group(1)


def here(place: Place, patch: pytest.MonkeyPatch) -> None:
    """Commands in this process, which saves their start; the same digits as in their own."""
    patch.chdir(place.folder)
    patch.setenv("RECSYS_HOME", str(place.home))
    patch.setattr(sys, "argv", ["train"])
    torch.set_num_threads(1)


def printed(run: Callable[[Any], object], config: Any) -> str:
    """What a command prints in this process, until it ends or is interrupted."""
    with contextlib.redirect_stdout(io.StringIO()) as said, contextlib.suppress(KeyboardInterrupt):
        run(config)
    return said.getvalue()


@pytest.fixture(scope="module")
def story(empty_store: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Story]:
    """One run with the server, one that loses it, one that never had it; then it is back."""
    place = Place(tmp_path_factory.mktemp("story"))
    write_log(place.folder / "log.parquet")
    shutil.copy(empty_store, place.folder / "server.db")
    server = MlflowServer(place.folder, f"sqlite:///{place.folder / 'server.db'}")
    server.start()
    given = [*SETTINGS, f"tracking.uri={server.address}", "result=result.json"]
    try:
        with pytest.MonkeyPatch.context() as patch:
            here(place, patch)
            said = {"undisturbed": printed(train.run, compose("train", TrainConfig, given))}

            def stop(line: str) -> None:
                judging.say(line)
                if line.startswith("epoch 1/"):
                    server.stop()

            patch.setattr(fitting, "say", stop)
            with contextlib.redirect_stderr(io.StringIO()) as errors:
                said["cut"] = printed(train.run, compose("train", TrainConfig, given))
            assert errors.getvalue() == ""
            patch.setattr(fitting, "say", judging.say)
            said["late"] = printed(train.run, compose("train", TrainConfig, given))

            def interrupt(line: str) -> None:
                judging.say(line)
                if line.startswith("epoch 2/"):
                    raise KeyboardInterrupt

            patch.setattr(fitting, "say", interrupt)
            said["resumed"] = printed(train.run, compose("train", TrainConfig, given))
            patch.setattr(fitting, "say", judging.say)
            resume = [f"resume={run_of(said['resumed'])}", given[-2], "result=resumed.json"]
            said["resumed"] += printed(train.run, compose("train", TrainConfig, resume))
        yield Story(
            place,
            server,
            *(run_of(said[name]) for name in ("undisturbed", "cut", "late", "resumed")),
            said,
        )
    finally:
        server.stop()


def at(story: Story) -> str:
    return f"tracking.uri={story.server.address}"


def test_training_goes_on_and_says_so_once(story: Story) -> None:
    assert "outbox" not in story.said["undisturbed"]
    lines = story.said["undisturbed"].splitlines()
    assert lines[-1].endswith(f"pipelines.ui run={story.undisturbed} {at(story)}")
    assert lines[-2].endswith(" The run in the MLflow UI:")
    for name, run in (("cut", story.cut), ("late", story.late)):
        lines = story.said[name].splitlines()
        (line,) = (line for line in lines if "The run goes on" in line)
        assert "Connection refused" in line and str(story.outbox / run) in line
        assert lines[-2].endswith("The run in the MLflow UI, once it is delivered:")
        assert lines[-1].startswith("its results wait on this machine")
        assert lines[-1].endswith(f"pipelines.sync {at(story)}")
        assert "epoch 3/3" in story.said[name]


def test_while_it_waits(
    story: Story, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    here(story.place, monkeypatch)
    for run in (story.cut, story.late):
        with pytest.raises(ConfigError, match=r"waits in .*: deliver it with python -m pipelines"):
            evaluate.implied([f"run={run}", at(story)])
    before = {path: path.read_bytes() for path in story.outbox.rglob("*") if path.is_file()}
    assert sync.run(compose("sync", SyncConfig, [])) == 1
    done = capsys.readouterr()
    assert done.out == "0 delivered, 3 waiting, 0 closed\n"
    (error,) = done.err.splitlines()  # once for the server, not for each run
    assert error.startswith("Error: ") and error.endswith("Connection refused")
    assert {p: p.read_bytes() for p in story.outbox.rglob("*") if p.is_file()} == before


def test_the_server_is_back(story: Story, monkeypatch: pytest.MonkeyPatch) -> None:
    here(story.place, monkeypatch)
    story.server.start()
    said = printed(sync.run, compose("sync", SyncConfig, [])).splitlines()
    assert said[0].startswith(f"delivered {story.cut} (SASRec planted") and "FINISHED" in said[0]
    for line, run in zip(said[1:3], (story.late, story.resumed), strict=True):
        became = re.fullmatch(rf"delivered {run} .* as run (\w+): FINISHED", line)
        assert became is not None, line
        story.became[run] = became.group(1)
    assert said[3] == "3 delivered, 0 waiting, 0 closed"
    assert said[4].endswith(f"pipelines.ui run={story.became[story.resumed]} {at(story)}")
    left = {f"{run}.delivered.json" for run in (story.late, story.resumed)}
    assert {path.name for path in story.outbox.iterdir()} == left
    again = printed(sync.run, compose("sync", SyncConfig, [at(story)]))
    assert again == "0 delivered, 0 waiting, 0 closed\n"
    client = MlflowClient(story.server.address)
    experiment = client.get_experiment_by_name("recsys")
    assert experiment is not None and len(client.search_runs([experiment.experiment_id])) == 4


def test_they_hold_what_the_undisturbed_run_holds(story: Story) -> None:
    expected = comparable(held(story.server.address, story.undisturbed))
    assert {
        "config.yaml",
        "figures/loss.png",
        "per_question/test/SASRec.parquet",
        "table.json",
    } <= expected["artifacts"].keys()
    assert {step for step, _ in expected["metrics"]["val/loo-full-all/ndcg_10"]} == {1, 2, 3}
    assert len(expected["inputs"]) == 1 and expected["status"] == "FINISHED"
    model = model_of(story, story.undisturbed)
    assert {"model.json", "weights.safetensors", "code/recsys/__init__.py"} <= model.keys()
    for run in (story.cut, story.became[story.late]):
        found = comparable(held(story.server.address, run))
        for what, value in expected.items():
            assert found[what] == value, what
        assert model_of(story, run) == model
    found = comparable(held(story.server.address, story.became[story.resumed]))
    assert found["metrics"] == expected["metrics"]
    name = "per_question/test/SASRec.parquet"
    assert found["artifacts"][name] == expected["artifacts"][name]
    assert model_of(story, story.became[story.resumed]) == model
    assert found["tags"] == {**expected["tags"], "resumed": "1"}


def comparable(run: dict[str, Any]) -> dict[str, Any]:
    """Without what differs between two undisturbed runs."""
    tags = {k: v for k, v in run["tags"].items() if not k.startswith(OWN_TAGS)}
    metrics = {
        name: [step for step, _ in points] if name.startswith("cost/") else points
        for name, points in run["metrics"].items()
    }
    return {**run, "tags": tags, "metrics": metrics}


def model_of(story: Story, run: str) -> dict[str, bytes]:
    """The files of a run's model, but for the one that names the run."""
    folder = load_run(story.server.address, run).model()
    files = (path for path in folder.rglob("*") if path.is_file() and path.name != "MLmodel")
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


def test_a_delivered_run_is_called_as_the_server_calls_it(story: Story) -> None:
    client = MlflowClient(story.server.address)
    became = story.became[story.late]
    run = client.get_run(became)
    page = run.data.tags["mlflow.note.content"]
    assert f"run_uuid={became}" in page
    assert f"#/experiments/{run.info.experiment_id}/runs/{became}/artifacts" in page
    model = client.get_logged_model(run.outputs.model_outputs[0].model_id)
    assert f"runs:/{became}/model" in model.tags["mlflow.note.content"]
    for text in (page, *model.tags.values()):
        assert story.late not in text and "experiments//" not in text


def test_the_registry_of_a_server(story: Story, monkeypatch: pytest.MonkeyPatch) -> None:
    here(story.place, monkeypatch)
    uri = story.server.address
    version = register_run(uri, "films", story.became[story.late], {})
    make_champion(uri, version, None)
    given = [
        "model=films@champion",
        at(story),
        "evaluation.baselines=false",
        "result=champion.json",
    ]
    evaluate.run(compose("evaluate", EvaluateConfig, [*evaluate.implied(given), *given]))
    rows = [json.loads(Path(f).read_text())["rows"] for f in ("champion.json", "result.json")]
    assert rows[0] == rows[1]
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    code = "from mlflow.pyfunc import load_model as load; print(load(%r).metadata.run_id)"
    done = story.place.python("-c", code % "models:/films@champion")
    assert done.stdout.strip() == version.run_id, done.stderr


def test_evaluation_reads_the_delivered_run(story: Story, monkeypatch: pytest.MonkeyPatch) -> None:
    here(story.place, monkeypatch)
    given = [f"run={story.late}", at(story), "evaluation.baselines=false", "result=again.json"]
    evaluate.run(compose("evaluate", EvaluateConfig, [*evaluate.implied(given), *given]))
    again, trained = (json.loads(Path(name).read_text()) for name in ("again.json", "result.json"))
    assert again["rows"] == trained["rows"]
    found = load_run(story.server.address, again["run_id"])
    became = story.became[story.late]
    assert (found.status, found.tags["evaluates"]) == ("FINISHED", became)
    resume = compose("train", TrainConfig, [f"resume={story.late}", at(story)])
    assert train.find_checkpoint(resume) == (became, train.run_folder(became) / "last.ckpt")
    assert train.run_folder(became).is_dir() and not train.run_folder(story.late).exists()


@pytest.mark.parametrize(
    ("status", "words"), [(401, "refuses (401)"), (403, "refuses (403)"), (404, "an MLflow server")]
)
def test_a_server_that_refuses_is_said_before_any_training(
    story: Story, monkeypatch: pytest.MonkeyPatch, status: int, words: str
) -> None:
    here(story.place, monkeypatch)
    before = story.place.files
    with answering(status) as uri:
        config = compose("train", TrainConfig, [*SETTINGS, f"tracking.uri={uri}"])
        with contextlib.redirect_stdout(io.StringIO()) as said, pytest.raises(TrackingError) as no:
            train.run(config)
    assert words in str(no.value) and uri in str(no.value)
    assert "epoch" not in said.getvalue()
    assert story.place.files == before


# -- sync itself


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project folder of its own, for commands in this process."""
    monkeypatch.setenv("RECSYS_HOME", str(tmp_path))
    return tmp_path


NOBODY = "http://127.0.0.1:9"


def waits(home: Path, uri: str = NOBODY) -> str:
    """The id of a run that waits for a server which is not there."""
    with TrackedRun.start(
        uri=uri,
        artifact_root=None,
        experiment="recsys",
        run_name="waiting",
        params={},
        config_yaml="",
        tags={},
        outbox=home / "data/cache/outbox",
        say=lambda _: None,
    ) as run:
        pass
    return run.run_id


def refusal(*overrides: str) -> str:
    with pytest.raises(ConfigError) as caught:
        sync.run(compose("sync", SyncConfig, overrides))
    return str(caught.value)


def test_a_run_that_does_not_wait(home: Path) -> None:
    assert refusal("run=abc") == "run=abc does not wait: nothing waits."
    run = waits(home)
    assert refusal(f"run={run[:-1]}") == (
        f"run={run[:-1]} does not wait: there are {run}. Did you mean '{run}'?"
    )
    outbox = home / "data/cache/outbox"
    shutil.rmtree(outbox / run)
    (outbox / f"{run}.delivered.json").write_text('{"run_id": "abc", "format": 1}')
    assert refusal(f"run={run}") == f"run={run} was delivered already: it is run abc"
    assert "unknown key 'tracking.experiment'" in refusal("tracking.experiment=x")


def test_what_cannot_be_delivered_stays(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    secret = waits(home, NOBODY.replace("//", "//me:secret@"))
    assert sync.run(compose("sync", SyncConfig, [])) == 1
    said = capsys.readouterr()
    assert said.out == "0 delivered, 1 waiting, 0 closed\n"
    assert f"run {secret}" in said.err and "give tracking.uri= whole" in said.err
    with answering(403) as uri:
        refused = waits(home)
        overrides = [f"run={refused}", f"tracking.uri={uri}"]
        assert sync.run(compose("sync", SyncConfig, overrides)) == 1
        assert "the server refuses (403)" in capsys.readouterr().err
        assert sync.run(compose("sync", SyncConfig, [f"tracking.uri={uri}"])) == 1
    said = capsys.readouterr()
    assert f"left {refused} (waiting): it waits for {NOBODY}" in said.out
    assert "0 delivered, 2 waiting, 0 closed" in said.out
    outbox = home / "data/cache/outbox"
    described = json.loads((outbox / refused / "run.json").read_text())
    (outbox / refused / "run.json").write_text(json.dumps({**described, "format": 2}))
    (outbox / secret / "run.json").write_text("{")
    assert sync.run(compose("sync", SyncConfig, [])) == 1
    said = capsys.readouterr()
    assert said.out == "0 delivered, 2 waiting, 0 closed\n"
    assert "has format 2, and this version reads 1" in said.err and "is damaged" in said.err
    assert b"secret" not in b"".join(p.read_bytes() for p in outbox.rglob("*") if p.is_file())


def test_a_run_that_waits_for_a_mistyped_address(
    story: Story, home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = waits(home)
    assert sync.run(compose("sync", SyncConfig, [f"run={run}", at(story)])) == 0
    became = re.search(r"to (\S+) as run (\w+)", capsys.readouterr().out)
    assert became is not None and became.group(1) == story.server.address
    assert load_run(story.server.address, became.group(2)).status == "FINISHED"


RUNNING = """
import sys, time
from recsys.tracking.environment import environment_tags
from recsys.tracking.run import TrackedRun
with TrackedRun.start(uri=sys.argv[1], artifact_root=None, experiment="e", run_name="r", params={},
                      config_yaml="", tags=environment_tags()) as run:
    print(run.run_id, flush=True)
    time.sleep(100)
"""


def test_a_killed_run_is_closed_and_a_living_one_is_not(
    home: Path, empty_store: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copy(empty_store, home / "mlflow.db")
    process = subprocess.Popen(
        [sys.executable, "-c", RUNNING, tracking_uri()],
        cwd=home,
        env=Place(home).environment(),
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    run = process.stdout.readline().strip()
    assert sync.run(compose("sync", SyncConfig, [])) == 0
    assert capsys.readouterr().out == "0 delivered, 0 waiting, 0 closed\n"
    assert load_run(tracking_uri(), run).status == "RUNNING"
    process.kill()
    process.wait()
    assert sync.run(compose("sync", SyncConfig, [])) == 0
    assert capsys.readouterr().out.splitlines() == [
        f"closed {run} (r): its process {process.pid} is gone",
        "0 delivered, 0 waiting, 1 closed",
        how_to_open(run, None),
    ]
    assert load_run(tracking_uri(), run).status == "KILLED"


def test_a_run_that_still_writes_is_left_alone(
    home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = home / "data/cache/outbox" / waits(home)
    with Outbox(folder):
        assert sync.run(compose("sync", SyncConfig, [])) == 0
    said = capsys.readouterr().out.splitlines()
    assert said[0].startswith(f"left {folder.name} (waiting): another process writes or delivers")
    assert said[1] == "0 delivered, 1 waiting, 0 closed"
