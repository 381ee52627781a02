"""A real `mlflow server` that a test starts, stops, and starts again; and one that is none."""

from __future__ import annotations

import http.server
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mlflow import MlflowClient


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


class MlflowServer:
    """On a port of its own, which it keeps; artifacts go through it."""

    def __init__(self, folder: Path, store: str) -> None:
        self.folder = folder
        self.store = store
        self.port = free_port()
        self.address = f"http://127.0.0.1:{self.port}"
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        artifacts = (self.folder / "artifacts").as_uri()
        command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1"]
        command += ["--port", str(self.port), "--workers", "1"]
        self.process = subprocess.Popen(
            [*command, "--artifacts-destination", artifacts],
            cwd=self.folder,
            env={
                **os.environ,
                "MLFLOW_BACKEND_STORE_URI": self.store,
                "MLFLOW_DISABLE_TELEMETRY": "true",
                "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
            },
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        for _ in range(1200):
            assert self.process.poll() is None, "mlflow server ended by itself"
            try:
                urllib.request.urlopen(f"{self.address}/health", timeout=5).close()
                return
            except (urllib.error.URLError, OSError):
                time.sleep(0.1)
        raise AssertionError("mlflow server does not answer")

    def stop(self) -> None:
        if self.process is not None:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
            self.process = None


def held(address: str, run_id: str) -> dict[str, Any]:
    """What a run holds on its server, seen from outside."""
    client = MlflowClient(address)
    run = client.get_run(run_id)

    def files(folder: str | None = None) -> Iterator[tuple[str, bytes]]:
        for entry in client.list_artifacts(run_id, folder):
            if entry.is_dir:
                yield from files(entry.path)
            else:
                yield entry.path, Path(client.download_artifacts(run_id, entry.path)).read_bytes()

    return {
        "status": run.info.status,
        "params": run.data.params,
        "tags": {k: v for k, v in run.data.tags.items() if k != "started_as"},
        "metrics": {
            name: sorted((p.step, repr(p.value)) for p in client.get_metric_history(run_id, name))
            for name in run.data.metrics
        },
        "inputs": [repr(one.to_dictionary()) for one in run.inputs.dataset_inputs],
        "artifacts": dict(files()),
    }


class Answer(http.server.BaseHTTPRequestHandler):
    """Says the same to everything."""

    status, body = 200, b""

    def do_GET(self) -> None:
        self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self.send_response(self.status)
        self.send_header("Content-Length", str(len(self.body)))
        self.end_headers()
        self.wfile.write(self.body)

    do_POST = do_PUT = do_PATCH = do_GET

    def log_message(self, *_: object) -> None:
        pass


@contextmanager
def answering(status: int, body: bytes = b"") -> Iterator[str]:
    handler = type("Fixed", (Answer,), {"status": status, "body": body})
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()
