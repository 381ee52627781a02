"""A real `mlflow server` on a real PostgreSQL."""

from __future__ import annotations

import importlib.util
import os
import pwd
import re
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from recsys.tracking.delivery import close_abandoned, deliver
from recsys.tracking.environment import environment_tags
from recsys.tracking.outbox import is_waiting
from recsys.tracking.reading import load_run
from recsys.tracking.run import TrackedRun
from recsys.tracking.store import OutOfReach, Refused
from tests.mlflow_server import MlflowServer, free_port, held
from tests.tracking.test_delivery import PARAMS, tell

Start = Callable[..., TrackedRun]


class Postgres:
    """A PostgreSQL of one's own, that can be stopped and started.

    As `root` by another user, since it refuses to run as `root`; so not in pytest's folder, into
    which no other user can look.
    """

    def __init__(self, user: str | None) -> None:
        self.user = user
        self.folder = Path(tempfile.mkdtemp(prefix="recsys-pg-"))
        self.port = free_port()
        self.address = f"postgresql+psycopg2://recsys@127.0.0.1:{self.port}/postgres"
        if user is not None:
            shutil.chown(self.folder, user)
        made = ["initdb", "-D", str(self.folder / "db"), "-A", "trust", "-U", "recsys"]
        subprocess.run(
            [*made, "--no-sync"], user=user, cwd=self.folder, check=True, capture_output=True
        )

    def start(self) -> None:
        import psycopg2

        served = ["postgres", "-D", str(self.folder / "db"), "-k", str(self.folder)]
        self.process = subprocess.Popen(
            [*served, "-h", "127.0.0.1", "-p", str(self.port), "-c", "fsync=off"],
            user=self.user,
            cwd=self.folder,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        for _ in range(600):
            try:
                psycopg2.connect(self.address.replace("+psycopg2", "")).close()
                return
            except psycopg2.OperationalError:
                assert self.process.poll() is None, "postgres ended by itself"
                time.sleep(0.1)
        raise AssertionError("postgres does not answer")

    def stop(self) -> None:
        self.process.send_signal(signal.SIGINT)
        self.process.wait()


@pytest.fixture
def postgres() -> Iterator[Postgres]:
    missing = [name for name in ("initdb", "postgres") if shutil.which(name) is None]
    missing += ["psycopg2"] if importlib.util.find_spec("psycopg2") is None else []
    if missing:
        pytest.skip(f"needs {', '.join(missing)}")
    user: str | None = None
    if os.getuid() == 0:
        names = {entry.pw_name for entry in pwd.getpwall()}
        user = next((name for name in ("postgres", "nobody") if name in names), None)
        if user is None:
            pytest.skip("needs a user other than root")
    made = Postgres(user)
    try:
        made.start()
        yield made
    finally:
        made.stop()
        shutil.rmtree(made.folder)


def test_a_server_loses_its_database_and_gets_it_back(
    postgres: Postgres, start: Start, tmp_path: Path
) -> None:
    server = MlflowServer(tmp_path, postgres.address)
    server.start()
    try:
        outbox, said = tmp_path / "outbox", []
        given: dict[str, Any] = {
            "uri": server.address,
            "params": PARAMS,
            "outbox": outbox,
            "say": said.append,
        }
        with start(**given) as undisturbed:
            tell(undisturbed)
        assert not outbox.exists() and said == []
        with start(**given) as cut:
            cut.metrics({"train/loss": 0.0, "odd": float("inf")}, 0)
            cut.flush()
            postgres.stop()
            tell(cut, range(1, 6))
        assert len(said) == 1 and re.search("it answers 50[03]. The run goes on", said[0])
        with start(**given) as late:
            tell(late)
        for run in (cut, late):
            assert is_waiting(outbox, run.run_id)
            with pytest.raises(OutOfReach, match="it answers 50"):
                deliver(outbox / run.run_id, server.address)
        postgres.start()
        assert deliver(outbox / cut.run_id, server.address).run_id == cut.run_id
        arrived = deliver(outbox / late.run_id, server.address)
        expected = held(server.address, undisturbed.run_id)
        assert len(expected["artifacts"]) == 3 and len(expected["metrics"]["train/loss"]) == 6
        assert held(server.address, cut.run_id) == expected
        assert held(server.address, arrived.run_id) == expected
        info = load_run(server.address, "latest")
        assert info.artifact("test/table.txt").read_text() == "new"
        lost = start(**given, tags={**environment_tags(), "process": "earlier/1/1"})
        assert [one.run_id for one in close_abandoned(server.address, print)] == [lost.run_id]
        assert load_run(server.address, lost.run_id).status == "KILLED"
    finally:
        server.stop()


def test_a_database_without_a_server_is_lost_and_comes_back(
    postgres: Postgres, start: Start, tmp_path: Path
) -> None:
    outbox, said = tmp_path / "outbox", []
    given: dict[str, Any] = {
        "uri": postgres.address,
        "artifact_root": str(tmp_path / "artifacts"),
        "params": PARAMS,
        "outbox": outbox,
        "say": said.append,
    }
    with start(**given) as undisturbed:
        tell(undisturbed)
    for wrong in ("recsys@", "/postgres"):  # no such user, no such database
        with pytest.raises(Refused, match=r'FATAL:  (role|database) ".*" does not exist'):
            start(**{**given, "uri": postgres.address.replace(wrong, wrong[0] + "x" + wrong[-1])})
    assert not outbox.exists() and said == []
    with start(**given) as cut:
        cut.metrics({"train/loss": 0.0, "odd": float("inf")}, 0)
        cut.flush()
        postgres.stop()
        tell(cut, range(1, 6))
    with start(**given, experiment="another") as late:
        tell(late)
    assert len(said) == 2 and all("The run goes on" in line for line in said)
    with pytest.raises(OutOfReach):
        deliver(outbox / cut.run_id, postgres.address)
    postgres.start()
    assert deliver(outbox / cut.run_id, postgres.address).run_id == cut.run_id
    arrived = deliver(outbox / late.run_id, postgres.address)
    expected = held(postgres.address, undisturbed.run_id)
    assert len(expected["artifacts"]) == 3 and len(expected["metrics"]["train/loss"]) == 6
    assert held(postgres.address, cut.run_id) == expected
    assert held(postgres.address, arrived.run_id) == expected
    assert (tmp_path / "artifacts/another" / arrived.run_id / "artifacts/rows.parquet").exists()
