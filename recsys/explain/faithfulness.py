"""Whether an attention map tracks the model: its rank correlation with the score drops.

A map is a claim about what mattered. Removing an event and asking again is what mattered, to this
score. Spearman's rank correlation of the two says how far the claim can be trusted.

Dimensions: L events.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

FEWEST_EVENTS = 3
TRACKS, LOOSELY = 0.5, 0.2  # rank correlations from which a map tracks the model, and does loosely


@dataclass(frozen=True)
class Correlation:
    """A rank correlation, or why there is none.

    Attributes:
        value: from -1 to 1; None where it is not defined.
        chance: a map without any relation stays below this, up or down, 95 times of 100.
        undefined: why there is no value; "" where there is one.
    """

    value: float | None
    chance: float
    undefined: str = ""

    @property
    def verdict(self) -> str:
        """What it means, in words.

        >>> Correlation(0.05, 0.3).verdict, Correlation(0.8, 0.3).verdict
        ('does not track the model', 'tracks the model')
        >>> Correlation(0.4, 0.3).verdict, Correlation(0.4, 0.45).verdict
        ('tracks the model loosely', 'does not track the model')
        >>> Correlation(-0.6, 0.3).verdict, Correlation(None, 1.0, "one event only").verdict
        ('points away from what moves the model', 'cannot be judged: one event only')
        """
        if self.value is None:
            return f"cannot be judged: {self.undefined}"
        if abs(self.value) < max(self.chance, LOOSELY):
            return "does not track the model"
        if self.value < 0:
            return "points away from what moves the model"
        return "tracks the model" if self.value >= TRACKS else "tracks the model loosely"


def rank_correlation(weights_L: np.ndarray, drops_L: np.ndarray, score: float = 0.0) -> Correlation:
    """Spearman's: equal values share the mean of their ranks.

    Args:
        weights_L: a map.
        drops_L: of the score, by removal.
        score: with the whole history. Drops that differ by less than float32 can tell of a number
            of its size are equal.
    """
    if len(weights_L) < FEWEST_EVENTS:
        few = f"fewer than {FEWEST_EVENTS} events have no order to compare"
        return Correlation(None, 1.0, few)
    of_map_L, of_drops_L = ranks(weights_L), ranks(drops_L, max(1.0, abs(score)))
    if np.ptp(of_map_L) == 0:
        return Correlation(None, 1.0, "the map weighs all events alike")
    if np.ptp(of_drops_L) == 0:
        return Correlation(None, 1.0, "no event moves the score")
    value = float(np.corrcoef(of_map_L, of_drops_L)[0, 1])
    return Correlation(value, 1.96 / (len(weights_L) - 1) ** 0.5)


def ranks(values_L: np.ndarray, size: float | None = None) -> np.ndarray:
    """Ranks from 1; values that float32 could not tell apart share the mean of theirs.

    >>> ranks(np.array([0.5, 0.1, 0.5, 0.9])).tolist()
    [2.5, 1.0, 2.5, 4.0]

    Args:
        values_L: any.
        size: of the numbers that they were computed from; None: of the largest.
    """
    largest = float(np.abs(values_L).max(initial=0.0)) if size is None else size
    step = 8 * float(np.finfo(np.float32).eps) * largest or 1.0
    rounded = np.round(np.asarray(values_L, dtype=np.float64) / step)
    _, place, counts = np.unique(rounded, return_inverse=True, return_counts=True)
    means = np.cumsum(counts) - (counts - 1) / 2
    found: np.ndarray = means[place]
    return found


def mean_correlation(found: Sequence[Correlation]) -> tuple[Correlation, int]:
    """The mean over several histories, and of how many: those in which it is defined."""
    defined = [one for one in found if one.value is not None]
    if not defined:
        why = found[0].undefined if found else "there are no histories"
        return Correlation(None, 1.0, why), 0
    chance = float(np.sqrt(np.sum([one.chance**2 for one in defined]))) / len(defined)
    return Correlation(float(np.mean([one.value for one in defined])), chance), len(defined)
