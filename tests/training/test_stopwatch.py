"""Where the time of training goes: parts add up, events are counted."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from recsys.training.stopwatch import PARTS
from tests.training.test_fit import Trial


def test_parts_add_up_and_events_are_counted(tmp_path: Path) -> None:
    trial = Trial(tmp_path)
    begun = time.perf_counter()
    cost = trial.fit(2).cost
    passed = time.perf_counter() - begun
    assert tuple(cost.seconds) == PARTS and all(seconds > 0 for seconds in cost.seconds.values())
    assert sum(cost.seconds.values()) < passed
    assert sum(cost.shares.values()) == pytest.approx(1)
    assert cost.steps == 2 * len(trial.batches)
    assert cost.rows == 2 * len(trial.batches.users)
    assert cost.events == 2 * trial.batches.tokens_per_epoch
    assert 0 < cost.padding < 1 and cost.places > cost.events


@pytest.mark.parametrize("part", ["data", "forward", "validation"])
def test_each_part_gets_its_own_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, part: str
) -> None:
    trial = Trial(tmp_path)
    slow = {
        "data": (trial.batches, "batch"),
        "forward": (trial, "objective"),
        "validation": (trial, "validate"),
    }
    where, name = slow[part]
    method = getattr(where, name)

    now = [0.0]

    def slowed(*arguments: object) -> object:
        now[0] += 1  # the clock stands still but here
        return method(*arguments)

    monkeypatch.setattr(where, name, slowed)
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])
    cost = trial.fit(1, seconds=1e9).cost
    assert cost.seconds[part] == (1 if part == "validation" else cost.steps)
    assert sum(cost.seconds.values()) == cost.seconds[part]
