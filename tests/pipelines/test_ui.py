"""`python -m pipelines.ui` as a user runs it: a real server, its addresses, its end."""

from __future__ import annotations

import http.server
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipelines.ui import how_to_open
from recsys.tracking.experiments import find_experiment
from recsys.tracking.run import TrackedRun
from recsys.tracking.store import local_store
from recsys.tracking.ui import find_ui
from tests.pipelines.conftest import Place


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def finish_run(home: Path, name: str, empty_store: Path | None = None) -> TrackedRun:
    home.mkdir(exist_ok=True)
    if empty_store is not None:
        shutil.copy(empty_store, home / "mlflow.db")
    uri, artifacts = local_store(home)
    with TrackedRun.start(
        uri=uri,
        artifact_root=artifacts,
        experiment="recsys",
        run_name=name,
        params={},
        config_yaml="seed: 0\n",
        tags={},
    ) as run:
        run.metrics({"test/loo-full-unseen/ndcg_10": 0.1}, 0)
    return run


class UI:
    """A running `python -m pipelines.ui`, and the lines it printed before it waits."""

    def __init__(self, place: Place, *arguments: str, lines: int) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "pipelines.ui", *arguments],
            cwd=place.folder,
            env=place.environment(
                # What `webbrowser` opens a page with: here it is written down.
                BROWSER=f"{sys.executable} {place.folder / 'browser.py'} %s",
            ),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert self.process.stdout is not None
        self.lines = [self.process.stdout.readline() for _ in range(lines)]

    def stop(self, sign: signal.Signals) -> tuple[int, str]:
        self.process.send_signal(sign)
        _, said = self.process.communicate(timeout=60)
        return self.process.returncode, said


@pytest.fixture(scope="module")
def looked_at(
    empty_store: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Place, UI, TrackedRun]]:
    place = Place(tmp_path_factory.mktemp("looked"))
    finish_run(place.home, "the first", empty_store)
    run = finish_run(place.home, "the second")
    (place.folder / "browser.py").write_text(
        "import os, sys\nopen('opening', 'w').write(sys.argv[1])\nos.rename('opening', 'opened')\n"
    )
    ui = UI(place, f"port={free_port()}", lines=3)
    yield place, ui, run
    if ui.process.poll() is None:
        ui.stop(signal.SIGTERM)


def test_it_starts_and_opens_on_the_latest_run(looked_at: tuple[Place, UI, TrackedRun]) -> None:
    place, ui, run = looked_at
    started, table, latest = ui.lines
    address = re.search(r"http://127\.0\.0\.1:\d+", started)
    assert address is not None and started.endswith("until Ctrl-C.\n")
    here = f"{address.group()}/#/experiments/{run.experiment_id}/runs"
    view = "&viewStateShareKey=recsys"
    assert table == f"All runs: {here}?workflowType=machine_learning{view}\n"
    assert latest == f"the second: {here}/{run.run_id}?workflowType=machine_learning\n"
    for _ in range(200):  # the browser is another process
        if (place.folder / "opened").exists():
            break
        time.sleep(0.1)
    assert (place.folder / "opened").read_text() == latest.split(": ")[1].strip()
    asked = f"{address.group()}/api/2.0/mlflow/runs/get?run_id={run.run_id}"
    with urllib.request.urlopen(asked, timeout=30) as answer:
        assert json.load(answer)["run"]["info"]["run_name"] == "the second"


def test_one_that_runs_is_found(looked_at: tuple[Place, UI, TrackedRun]) -> None:
    place, ui, run = looked_at
    port = re.search(r":(\d+)", ui.lines[0]).group(1)  # type: ignore[union-attr]
    # A run says itself which experiment it is of, whatever tracking.experiment says.
    elsewhere = ["tracking.experiment=another", f"run={run.run_id}", "browser=false"]
    done = place.command("ui", f"port={port}", *elsewhere)
    assert done.returncode == 0 and done.stdout.endswith(ui.lines[2]), done.stderr
    done = place.command("ui", f"port={port}", "run=null", "browser=false")
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [
        f"The MLflow UI is there already: http://127.0.0.1:{port}",
        ui.lines[1].strip(),
    ]


def test_ctrl_c_stops_it_whole(looked_at: tuple[Place, UI, TrackedRun]) -> None:
    _, ui, _ = looked_at  # the last test that has it
    code, said = ui.stop(signal.SIGINT)
    assert (code, said) == (130, "Interrupted.\n")
    address = re.search(r"http://\S+", ui.lines[0]).group()  # type: ignore[union-attr]
    with pytest.raises(urllib.error.URLError):
        urllib.request.urlopen(f"{address}/health", timeout=5)


class AnotherServer(http.server.BaseHTTPRequestHandler):
    """Answers everything, and knows no experiment."""

    def do_GET(self) -> None:
        self.send_response(200)
        self.end_headers()
        self.wfile.write(b"{}")

    def log_message(self, *_: object) -> None:
        pass


def test_a_port_of_others_is_left_to_them(place: Place, empty_store: Path) -> None:
    run = finish_run(place.home, "mine", empty_store)
    experiment = find_experiment(run.uri, "recsys")
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), AnotherServer) as other:
        threading.Thread(target=other.serve_forever, daemon=True).start()
        taken = other.server_address[1]
        address, port = find_ui(run.uri, experiment, taken)
        other.shutdown()
    assert address is None and taken < port < taken + 20
    assert find_ui("http://me:secret@host/", experiment, 1) == ("http://me:***@host", 1)


def test_what_cannot_be_shown_is_said(place: Place, empty_store: Path) -> None:
    assert "there are no runs yet" in place.refused("ui")
    run = finish_run(place.home, "mine", empty_store)
    assert f"did you mean {run.run_id}" in place.refused("ui", f"run={run.run_id[:-1]}x")
    assert "Did you mean 'recsys'?" in place.refused("ui", "tracking.experiment=recsis")
    assert "port=0 is no port" in place.refused("ui", "port=0")


def test_the_command_to_type(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", os.fspath(tmp_path))
    monkeypatch.setattr(sys, "executable", "/somewhere/.venv/bin/python")
    assert how_to_open("ab", None) == "/somewhere/.venv/bin/python -m pipelines.ui run=ab"
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "executable", str(tmp_path / ".venv/bin/python"))
    assert how_to_open("ab", None) == ".venv/bin/python -m pipelines.ui run=ab"
    (tmp_path / "python").write_text("")
    (tmp_path / "python").chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    assert (
        how_to_open("ab", "http://me:secret@host")
        == "python -m pipelines.ui run=ab 'tracking.uri=http://me:***@host'"
    )
