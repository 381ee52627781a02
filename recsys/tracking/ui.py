"""MLflow's own UI on a store: found where one runs already, started where none does.

MLflow 3.17 opens an address without `workflowType` on its overview of GenAI traces, whatever the
experiment is, until the browser has once been told otherwise. So a UI is entered by the addresses
made here, which open on runs.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager

from recsys.tracking.experiments import TRAINING_VIEW, VIEW, ExperimentInfo
from recsys.tracking.store import TrackingError, is_server, without_password

MLFLOW_UI = [sys.executable, "-m", "mlflow", "ui", "--workers", "1"]
HOST = "127.0.0.1"
PORTS_TRIED = 20
SECONDS_TO_START = 120.0


def run_link(address: str, experiment_id: str, run_id: str) -> str:
    """The address of a run's page."""
    return f"{address}/#/experiments/{experiment_id}/runs/{run_id}?{TRAINING_VIEW}"


def runs_link(address: str, experiment: ExperimentInfo) -> str:
    """The address of an experiment's table of runs, with the columns of its view if it has one."""
    view = f"&viewStateShareKey={VIEW}" if experiment.has_view else ""
    return f"{address}/#/experiments/{experiment.experiment_id}/runs?{TRAINING_VIEW}{view}"


def find_ui(uri: str, experiment: ExperimentInfo, port: int) -> tuple[str | None, int]:
    """Looks for a UI that shows a store, and for a port where one could start.

    Args:
        uri: the store.
        experiment: one of its experiments, by which a UI is known to show this store.
        port: where to look first; the next ones are tried while others are on it.

    Returns:
        The address of the UI or None, and the port that is free for one.

    Raises:
        TrackingError: all ports are taken by others.
    """
    if is_server(uri):
        return without_password(uri).rstrip("/"), port
    for tried in range(port, min(port + PORTS_TRIED, 65536)):
        if _is_free(tried):
            return None, tried
        address = f"http://{HOST}:{tried}"
        if _shows(address, experiment):
            return address, tried
    raise TrackingError(
        f"ports {port} to {tried} are all taken by other programs; name a free one: port=NUMBER"
    )


@contextmanager
def started_ui(uri: str, port: int) -> Iterator[tuple[str, subprocess.Popen[bytes]]]:
    """A UI on a store, from when it answers until the block is left.

    Args:
        uri: the store, a database.
        port: a free one.

    Yields:
        The address, and the process: it ends by itself only when something is wrong.

    Raises:
        TrackingError: it does not come up; with the last thing it said.
    """
    with tempfile.TemporaryFile() as said:
        process = subprocess.Popen(
            [*MLFLOW_UI, "--host", HOST, "--port", str(port)],
            env={
                **os.environ,
                "MLFLOW_BACKEND_STORE_URI": uri,  # not an argument: `ps` shows those, passwords too
                "MLFLOW_DISABLE_TELEMETRY": "true",
                "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
            },
            stdin=subprocess.DEVNULL,
            stdout=said,
            stderr=said,
            start_new_session=True,  # it has children, and is stopped with them
        )
        address = f"http://{HOST}:{port}"
        try:
            _await(process, f"{address}/health")
            if process.poll() is not None:
                said.seek(0)
                last = said.read().decode(errors="replace").strip().splitlines()[-1:]
                raise TrackingError(
                    f"MLflow's UI did not start on {address} in {SECONDS_TO_START:.0f} s"
                    + "".join(f": {line}" for line in last)
                )
            yield address, process
        finally:
            _stop(process)


def _await(process: subprocess.Popen[bytes], address: str) -> None:
    """Until the server answers; one that does not is stopped."""
    end = time.monotonic() + SECONDS_TO_START
    while process.poll() is None:
        try:
            urllib.request.urlopen(address, timeout=5).close()
            return
        except (urllib.error.URLError, OSError):
            if time.monotonic() > end:
                _stop(process)
                return
            time.sleep(0.1)


def _stop(process: subprocess.Popen[bytes]) -> None:
    """The process and its children, gently first."""
    for sign in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(process.pid, sign)
        except ProcessLookupError:
            break
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            continue
    process.wait()


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError:
            return False
    return True


def _shows(address: str, experiment: ExperimentInfo) -> bool:
    """Whether an MLflow server answers there and holds this very experiment."""
    question = f"{address}/api/2.0/mlflow/experiments/get?experiment_id={experiment.experiment_id}"
    try:
        with urllib.request.urlopen(question, timeout=5) as answer:
            found = json.load(answer)["experiment"]
        wanted = (experiment.name, experiment.artifact_location, experiment.creation_time)
        return (found["name"], found["artifact_location"], found["creation_time"]) == wanted
    except (OSError, ValueError, KeyError, TypeError):
        return False
