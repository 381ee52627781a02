"""What heads do over many histories: how far back they look, and how alike they are.

Dimensions: M maps (each head of each layer), S steps back (0 is the newest event).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from recsys.explain.faithfulness import FEWEST_EVENTS, ranks


@dataclass(frozen=True)
class Summary:
    """Over some histories.

    Attributes:
        names: of the M maps.
        histories: how many.
        recency_MS: float64, the mean weight of the event so many steps back, over the histories
            that have one.
        equal_S: float64, the mean of what weighing all events alike would give.
        counts_S: int64, histories that have an event so far back.
        similarity_MM: float64, the mean rank correlation of two maps over the histories in which it
            is defined; NaN where there is none.
    """

    names: list[str]
    histories: int
    recency_MS: np.ndarray
    equal_S: np.ndarray
    counts_S: np.ndarray
    similarity_MM: np.ndarray


def summarise(names: Sequence[str], maps: Sequence[np.ndarray]) -> Summary:
    """The summary of what each history's question looked at.

    Args:
        names: of the maps.
        maps: float64 [M, length] of each history, oldest event first.
    """
    M = len(names)
    longest = max((found.shape[1] for found in maps), default=0)
    weights_MS, equal_S = np.zeros((M, longest)), np.zeros(longest)
    counts_S = np.zeros(longest, dtype=np.int64)
    alike_MM, defined_MM = np.zeros((M, M)), np.zeros((M, M))
    for found in maps:
        length = found.shape[1]
        weights_MS[:, :length] += found[:, ::-1]
        equal_S[:length] += 1 / max(length, 1)
        counts_S[:length] += 1
        if length >= FEWEST_EVENTS:
            with np.errstate(invalid="ignore", divide="ignore"):
                alike = np.corrcoef([ranks(map_L) for map_L in found]).reshape(M, M)
            alike_MM += np.nan_to_num(alike)
            defined_MM += np.isfinite(alike)
    with np.errstate(invalid="ignore"):
        similarity_MM = alike_MM / defined_MM
    return Summary(
        list(names),
        len(maps),
        weights_MS / np.maximum(counts_S, 1),
        equal_S / np.maximum(counts_S, 1),
        counts_S,
        similarity_MM,
    )
