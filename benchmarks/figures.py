"""What a benchmark found, number by number, each with its noise.

Every benchmark has `figures(report)`, which reads them from its JSON; `benchmarks.compare` lays two
files beside each other.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import mean, stdev
from typing import Literal

Better = Literal["higher", "lower"]
NORMAL_95 = 1.959964


@dataclass(frozen=True)
class Figure:
    """A number, and how far chance moves it.

    Attributes:
        name: what it is, with its unit; the same in every file of the benchmark.
        value: the number.
        error: its standard error; NaN where it was taken once, and nobody knows.
        freedom: degrees of freedom of that error; infinite where it comes from an interval.
        better: whether more of it is good, or less.
    """

    name: str
    value: float
    error: float
    freedom: float
    better: Better


def of_rounds(name: str, rounds: Sequence[float], better: Better) -> Figure:
    """The mean of what was taken several times: s / √n is its error.

    Args:
        name: what it is, with its unit.
        rounds: its value in each round, repeat or seed; those that warm up left out.
        better: whether more of it is good, or less.
    """
    n = len(rounds)
    error = stdev(rounds) / math.sqrt(n) if n > 1 else math.nan
    return Figure(name, mean(rounds), error, n - 1, better)


def of_interval(name: str, estimate: float, low: float, high: float, better: Better) -> Figure:
    """What was given with an interval of 95 %, taken as a normal one.

    Args:
        name: what it is, with its unit.
        estimate: the number.
        low: where its interval begins.
        high: where its interval ends.
        better: whether more of it is good, or less.
    """
    return Figure(name, estimate, (high - low) / (2 * NORMAL_95), math.inf, better)
