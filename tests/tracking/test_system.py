"""What a run takes of its machine is looked at beside the run, and never in its way."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from recsys.tracking import run as tracking
from recsys.tracking.delivery import deliver
from recsys.tracking.run import TrackedRun
from recsys.tracking.store import OutOfReach
from recsys.tracking.system import Sample, SystemSampler


def await_samples(sampler: SystemSampler, count: int) -> None:
    end = time.monotonic() + 30
    while len(sampler._samples) < count:
        assert time.monotonic() < end
        time.sleep(0.01)


def test_it_looks_until_it_is_stopped() -> None:
    before = int(time.time() * 1000)
    sampler = SystemSampler(seconds=0.01)
    await_samples(sampler, 3)
    samples = sampler.taken()
    assert len(samples) >= 3
    times = [sample.time for sample in samples]
    assert times == sorted(times) and before <= times[0] and times[-1] <= time.time() * 1000
    for sample in samples:
        assert 0 < sample.values["system/system_memory_usage_percentage"] <= 100
        assert 10 < sample.values["system/process_memory_megabytes"] < 1e6
        assert sample.values["system/cpu_utilization_percentage"] >= 0
    sampler.stop()
    sampler.taken()
    assert not sampler._thread.is_alive()
    sampler.stop()
    assert sampler.taken() == []  # nothing twice, nothing after the end


def test_a_look_that_fails_is_a_look_less(monkeypatch: pytest.MonkeyPatch) -> None:
    sampler = SystemSampler(seconds=0.01)
    look, failed = sampler._process.memory_info, threading.Event()

    def fail() -> None:
        failed.set()
        raise OSError("no /proc")

    monkeypatch.setattr(sampler._process, "memory_info", fail)
    assert failed.wait(30)
    monkeypatch.setattr(sampler._process, "memory_info", look)
    sampler.taken()
    await_samples(sampler, 1)  # it goes on
    sampler.stop()


def test_even_a_short_run_has_a_look(start: Callable[..., TrackedRun]) -> None:
    with start(system_metrics=True) as run:
        end = time.process_time() + 0.3
        while time.process_time() < end:
            pass
    metrics = run._client.get_run(run.run_id).data.metrics
    assert metrics["system/cpu_utilization_percentage"] > 0
    assert metrics["system/process_cpu_percentage"] > 0
    (point,) = run._client.get_metric_history(run.run_id, "system/process_memory_megabytes")
    began = run._client.get_run(run.run_id).info.start_time
    assert point.step == (point.timestamp - began) // 1000 and 0 <= point.step < 60


@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError])
def test_it_ends_with_the_run(start: Callable[..., TrackedRun], error: type) -> None:
    with pytest.raises(error), start(system_metrics=True) as run:
        assert "system metrics" in {thread.name for thread in threading.enumerate()}
        raise error
    assert "system metrics" not in {thread.name for thread in threading.enumerate()}
    assert run._client.get_metric_history(run.run_id, "system/process_memory_megabytes")


def test_only_the_run_speaks_to_the_store(
    start: Callable[..., TrackedRun], monkeypatch: pytest.MonkeyPatch
) -> None:
    sent = []
    with start(system_metrics=True) as run:
        batch = run._client.log_batch

        def noted(*arguments, **more):
            sent.append(threading.current_thread())
            return batch(*arguments, **more)

        monkeypatch.setattr(run._client, "log_batch", noted)
    assert sent and set(sent) == {threading.main_thread()}


def test_seconds_count_from_the_first_start_also_where_the_run_waits(
    start: Callable[..., TrackedRun], root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    began = 1_700_000_000

    class Seen:
        """What was looked at 107 seconds after the run began."""

        def taken(self) -> list[Sample]:
            return [Sample((began + 107) * 1000, {"system/seen": 1.0})]

        def stop(self) -> None:
            """Nothing."""

    def lost(*_: object) -> None:
        raise OutOfReach("no answer")

    given: dict[str, Any] = {"outbox": root / "o", "say": lambda _: None}
    monkeypatch.setattr(tracking, "SystemSampler", Seen)
    with monkeypatch.context() as patch:
        patch.setattr(tracking, "_run_of", lost)
        patch.setattr(tracking.time, "time", lambda: float(began))
        with start(**given) as run:
            pass
    with start(run_id=run.run_id, system_metrics=True, **given):  # years later
        pass
    arrived = deliver(root / "o" / run.run_id, run.uri)
    points = run._client.get_metric_history(arrived.run_id, "system/seen")
    assert {(point.step, point.timestamp) for point in points} == {(107, (began + 107) * 1000)}


def test_it_can_be_left_out(start: Callable[..., TrackedRun]) -> None:
    with start() as run:
        assert "system metrics" not in {thread.name for thread in threading.enumerate()}
    assert not [name for name in run._client.get_run(run.run_id).data.metrics if "system" in name]
