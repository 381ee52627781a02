"""Threads: results in order, errors passed on, a few items at a time."""

import threading

import pytest

from recsys.logs import threads
from recsys.logs.threads import side_by_side


def test_results_stand_in_the_order_of_the_items():
    first = threading.Event()

    def late(number: int) -> int:
        if number == 0:
            first.wait(1)  # the others are done before it
        elif number == 5:
            first.set()
        return number * number

    assert side_by_side(late, range(100)) == [number * number for number in range(100)]


def test_an_error_is_passed_on():
    def fails(number: int) -> int:
        raise OSError(f"no room for {number}")

    with pytest.raises(OSError, match="no room for 0"):
        side_by_side(fails, range(3))


def test_items_are_taken_up_a_few_at_a_time(monkeypatch):
    monkeypatch.setattr(threads, "cores", lambda: 1)
    taken, done = [], []

    def items():
        for number in range(100):
            taken.append(number)
            assert len(taken) - len(done) <= 9
            yield number

    side_by_side(done.append, items())
    assert len(done) == 100
