"""Work shared by threads: numpy lets go of the interpreter while it takes, sorts and writes."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from typing import TypeVar

T = TypeVar("T")
R = TypeVar("R")


def cores() -> int:
    """How many cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def side_by_side(function: Callable[[T], R], items: Iterable[T]) -> list[R]:
    """What a function makes of each item, in their order, as many at a time as there are cores.

    >>> side_by_side(len, ["a", "", "abc"])
    [1, 0, 3]

    Args:
        function: called in threads; must not change what another call reads.
        items: taken up a few at a time, so that they may be large.
    """
    results: list[R] = []
    left = iter(items)
    with ThreadPoolExecutor(cores()) as pool:
        while some := list(islice(left, 8 * cores())):
            results += pool.map(function, some)
    return results
