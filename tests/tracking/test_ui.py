"""A real `mlflow ui` on a store, and runs through a server."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import polars as pl
import pytest

from recsys.tracking.figures import metric_curve
from recsys.tracking.reading import load_run
from recsys.tracking.run import TrackedRun
from recsys.tracking.store import local_store

METRIC = "test/loo-full-unseen/ndcg_10"


def write_run(uri: str, artifact_root: str | None, name: str) -> TrackedRun:
    with TrackedRun.start(
        uri=uri,
        artifact_root=artifact_root,
        experiment="recsys",
        run_name=name,
        params={"model": {"width": 64}},
        config_yaml="seed: 0\n",
        tags={"seed": "0"},
        description="SASRec on **ML-100K**",
    ) as run:
        for epoch in range(3):
            run.metrics({"val/loo-full-unseen/ndcg_10": epoch / 30}, epoch)
        run.metrics({METRIC: 0.0815}, 0)
        run.dataset("ml_100k", "feedbead" * 8, {"events": 100_000}, "somewhere")
        run.artifact_frame("test/per_question.parquet", pl.DataFrame({"rank": [1, 2]}))
        figure = metric_curve("ndcg", [0, 1, 2], [0.0, 0.03, 0.06], baselines={"EASE": 0.04})
        run.figure("figures/ndcg.png", figure)
    return run


@pytest.fixture(scope="module")
def served(
    empty_store: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[str, TrackedRun]]:
    """Plain `mlflow ui` in a folder that holds one run: its address and the run."""
    root = tmp_path_factory.mktemp("served")
    shutil.copy(empty_store, root / "mlflow.db")
    uri, artifacts = local_store(root)
    run = write_run(uri, artifacts, "sasrec-written-here")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    server = subprocess.Popen(
        [sys.executable, "-m", "mlflow", "ui", "--port", str(port), "--workers", "1"],
        cwd=root,
        env={
            **os.environ,
            "MLFLOW_DISABLE_TELEMETRY": "true",
            "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
        },
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    address = f"http://127.0.0.1:{port}"
    try:
        for _ in range(600):
            assert server.poll() is None, "mlflow ui ended by itself"
            try:
                urllib.request.urlopen(f"{address}/health", timeout=5).close()
                break
            except (urllib.error.URLError, TimeoutError):
                time.sleep(0.2)
        yield address, run
    finally:
        os.killpg(server.pid, signal.SIGTERM)
        try:
            server.wait(20)
        except subprocess.TimeoutExpired:
            os.killpg(server.pid, signal.SIGKILL)
            server.wait()


def test_plain_mlflow_ui_serves_the_artifacts(served: tuple[str, TrackedRun]) -> None:
    address, run = served
    place = f"{address}/get-artifact?path=figures/ndcg.png&run_uuid={run.run_id}"
    with urllib.request.urlopen(place, timeout=30) as answer:
        assert answer.read(8).startswith(b"\x89PNG")


def test_a_server_takes_runs_too(served: tuple[str, TrackedRun], tmp_path: Path) -> None:
    address, _ = served
    # Another experiment: the artifacts of the first lie in a folder that only this machine sees.
    with TrackedRun.start(
        uri=address,
        artifact_root=None,
        experiment="through the server",
        run_name="sent",
        params={"seed": 1},
        config_yaml="seed: 1\n",
        tags={},
    ) as run:
        for step in range(1200):
            run.metrics({"train/loss": 1 / (step + 1)}, step)
        run.artifact_text("test/table.txt", "model  HR\n")
        model = tmp_path / "some model"
        (model / "code").mkdir(parents=True)
        (model / "MLmodel").write_text("flavors: {}\n")
        (model / "code/weights.bin").write_bytes(b"weights")
        run.model(model, "SASRec", {"width": 8})
    info = load_run(address, "latest", experiment="through the server")
    assert (info.run_id, info.status, info.params) == (run.run_id, "FINISHED", {"seed": "1"})
    assert info.artifacts is None
    assert info.artifact("test/table.txt").read_text() == "model  HR\n"
    assert info.artifact("test").is_dir()
    fetched = info.model()
    assert (fetched / "code/weights.bin").read_bytes() == b"weights"
    assert f"run_id: {run.run_id}" in (fetched / "MLmodel").read_text()
    assert info.metrics["train/loss"] == 1 / 1200
    assert len(run._client.get_metric_history(run.run_id, "train/loss")) == 1200
