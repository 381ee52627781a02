"""A training's model behind `mlflow models serve`, asked over HTTP where this code is not."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from pipelines.entry import compose
from pipelines.export import run as export
from pipelines.schemas import ExportConfig
from recsys.serving.export import ExportError
from recsys.tracking.reading import load_run
from recsys.tracking.registry import make_champion, register_run
from tests.pipelines.conftest import Place
from tests.pipelines.test_train import SMALL, model_folder, write_log
from tests.serving.conftest import Elsewhere

Ask = Callable[[dict[str, Any]], tuple[int, dict[str, Any]]]


@pytest.fixture(scope="module")
def trained(empty_store: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Place, str]:
    """A place with a training run, and the run's id."""
    place = Place(tmp_path_factory.mktemp("trained to serve")).stocked(empty_store)
    write_log(place.folder / "log.parquet")
    quick = ["trainer.max_epochs=1", "evaluation.baselines=false", "evaluation.resamples=0"]
    done = place.here("train", *SMALL, *quick, "result=result.json")
    assert done.returncode == 0, done.stderr
    return place, json.loads((place.folder / "result.json").read_text())["run_id"]


@pytest.fixture(scope="module")
def ask(trained: tuple[Place, str], elsewhere: Elsewhere) -> Iterator[Ask]:
    """Sends a request to the served model: status and answer."""
    place, run_id = trained
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    serve = ["-m", "mlflow", "models", "serve", "--env-manager", "local", "--port", str(port)]
    tracking = f"sqlite:///{place.home / 'mlflow.db'}"
    server = subprocess.Popen(
        [sys.executable, *serve, "-m", f"runs:/{run_id}/model"],
        cwd=elsewhere.folder,
        env=elsewhere.environment(MLFLOW_TRACKING_URI=tracking),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    address = f"http://127.0.0.1:{port}"

    def _ask(request: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        sent = urllib.request.Request(
            f"{address}/invocations",
            data=json.dumps(request).encode(),
            headers={"Content-Type": "application/json"},
        )
        try:
            with urllib.request.urlopen(sent, timeout=60) as answer:
                return answer.status, json.load(answer)
        except urllib.error.HTTPError as error:
            return error.code, json.load(error)

    try:
        for _ in range(600):
            if server.poll() is not None:
                raise AssertionError(server.communicate()[1])
            try:
                urllib.request.urlopen(f"{address}/ping", timeout=5).close()
                break
            except (urllib.error.URLError, TimeoutError):
                time.sleep(0.2)
        yield _ask
    finally:
        os.killpg(server.pid, signal.SIGTERM)
        try:
            server.wait(20)
        except subprocess.TimeoutExpired:
            os.killpg(server.pid, signal.SIGKILL)
            server.wait()


def rows(*histories: list[str]) -> dict[str, Any]:
    return {"dataframe_records": [{"history": history} for history in histories]}


def test_lists_over_http(ask: Ask) -> None:
    long = [f"i{1 + place % 20}" for place in range(10_000)]
    status, answer = ask(
        {**rows(["i3", "i7"], [], ["unknown"], long), "params": {"k": 3, "filter_seen": True}}
    )
    assert status == 200
    known, empty, unknown, many = answer["predictions"]
    assert [row["model"] for row in answer["predictions"]] == [
        "SASRec",
        "Popularity",
        "Popularity",
        "SASRec",
    ]
    assert [row["unknown"] for row in answer["predictions"]] == [0, 0, 1, 0]
    assert empty["items"] == unknown["items"]
    for row, history in ((known, ["i3", "i7"]), (many, long)):
        assert len(row["items"]) == 3 and not set(row["items"]) & set(history)
        assert row["scores"] == sorted(row["scores"], reverse=True)
    status, answer = ask({"dataframe_split": {"columns": ["history"], "data": [[["i3"]]]}})
    assert status == 200 and len(answer["predictions"][0]["items"]) == 10


@pytest.mark.parametrize(
    ("request_", "words"),
    [
        ({"dataframe_records": [{"hist": ["i1"]}]}, ["missing inputs ['history']", "['hist']"]),
        ({"dataframe_records": [{"history": None}]}, ["list or numpy array, got NoneType"]),
        (rows([1, 2]), ["column history to type 'Array(string)'", "convert int64"]),  # type: ignore[list-item]
        ({**rows(["i1"]), "params": {"k": 0}}, ["k must be at least 1, not 0"]),
        ({**rows(["i1"]), "params": {"k": "many"}}, ["'k'", "long"]),
        ({"histories": [["i1"]]}, ["exactly one of the input fields", "dataframe_records"]),
    ],
)
def test_bad_requests_get_400_and_say_why(
    ask: Ask, request_: dict[str, Any], words: list[str]
) -> None:
    status, answer = ask(request_)
    assert status == 400
    for word in words:
        assert word in answer["message"], answer


def test_a_champion_is_found_by_its_alias(trained: tuple[Place, str], elsewhere: Elsewhere) -> None:
    place, run_id = trained
    tracking = f"sqlite:///{place.home / 'mlflow.db'}"
    make_champion(tracking, register_run(tracking, "films", run_id, {}), None)
    code = (
        "import mlflow.pyfunc, pandas\n"
        "model = mlflow.pyfunc.load_model('models:/films@champion')\n"
        "lists = model.predict(pandas.DataFrame({'history': [['i3', 'i7']]}), params={'k': 3})\n"
        "print(model.metadata.run_id, len(lists['items'][0]))"
    )
    assert elsewhere.python("-c", code, MLFLOW_TRACKING_URI=tracking).split() == [run_id, "3"]


def test_the_run_lists_its_model_once(trained: tuple[Place, str]) -> None:
    place, run_id = trained
    info = load_run(f"sqlite:///{place.home / 'mlflow.db'}", run_id)
    folder = info.model()
    assert (folder / "MLmodel").is_file() and run_id in (folder / "MLmodel").read_text()
    assert len(list((place.home / "mlruns").rglob("weights.safetensors"))) == 1
    assert info.artifacts is not None and not (info.artifacts / "model").exists()
    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri=info.uri)
    (logged,) = client.search_logged_models([info.experiment_id])
    assert (logged.name, logged.source_run_id, logged.model_type) == ("model", run_id, "SASRec")
    assert str(logged.status) == "READY" and logged.params["width"] == "8"
    assert f"-m runs:/{run_id}/model" in logged.tags["mlflow.note.content"]
    (output,) = client.get_run(run_id).outputs.model_outputs
    assert output.model_id == logged.model_id


def test_the_model_as_a_file(
    trained: tuple[Place, str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    place, run_id = trained
    monkeypatch.chdir(place.folder)  # in this process, which saves a start
    monkeypatch.setenv("RECSYS_HOME", str(place.home))
    before = place.files
    with pytest.raises(ExportError, match=r"a file of format=onnx ends in \.onnx"):
        export(compose("export", ExportConfig, ["run=latest", "output=sasrec.pt2"]))
    assert place.files == before
    export(compose("export", ExportConfig, ["run=latest", "output=o/sasrec.pt2", "format=torch"]))
    assert place.files - before == {"o/sasrec.pt2", "o/sasrec.pt2.json"}
    beside = json.loads((place.folder / "o/sasrec.pt2.json").read_text())
    described = json.loads((model_folder(place, run_id) / "model.json").read_text())
    assert beside["item_vocabulary"] == described["item_vocabulary"]
    assert (beside["model"], beside["max_length"]) == ("SASRec", 40)
    printed = capsys.readouterr().out
    assert "items: int64 [batch, length]" in printed and "o/sasrec.pt2.json" in printed
