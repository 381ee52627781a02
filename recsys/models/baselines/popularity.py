"""Popularity, and the total order by popularity that other baselines fall back on.

Dimensions: B histories in the batch, V catalogue incl. padding (index 0).
"""

from __future__ import annotations

from typing import Self

import numpy as np
import scipy.sparse as sp
import torch
from torch import Tensor

from recsys.batch import HistoryBatch


class Popularity:
    """Everybody gets the items with the most training events.

    A total order: equal counts stand in an order drawn by seed, so a score is the place of the item
    counted from the bottom (1 … V − 1) and not the count itself.

    Args:
        window: share of the training events, the newest ones by time, that count; None counts all.
    """

    max_length: int | None = 1

    def __init__(self, window: float | None = None) -> None:
        if window is not None and not 0 < window <= 1:
            raise ValueError(f"window is a share of the training events in (0, 1], not {window}")
        self.window = window
        self.places_V = np.zeros(0, dtype=np.int64)

    @property
    def name(self) -> str:
        """As it stands in tables."""
        return "Popularity"

    @property
    def parameters(self) -> dict[str, float | None]:
        """What it was made with."""
        return {"window": self.window}

    def fit(
        self,
        items: np.ndarray,
        offsets: np.ndarray,
        ends: np.ndarray,
        catalogue_size: int,
        times: np.ndarray | None = None,
    ) -> Self:
        """Counts the training events, user u's being `offsets[u] : offsets[u] + ends[u]`.

        Args:
            items: int32 [events], item indices ≥ 1.
            offsets: int64 [users + 1].
            ends: int64 [users], training events of each user.
            catalogue_size: V.
            times: int64 [events], microseconds; needed by a window.

        Raises:
            ValueError: a window without times.
        """
        events = training_events(offsets, ends)
        if self.window is not None:
            if times is None:
                raise ValueError("Popularity over a window needs a log with times")
            newest = max(1, round(self.window * len(events)))
            events = events[np.argsort(times[events], kind="stable")[-newest:]]
        counts = np.bincount(items[events], minlength=catalogue_size)
        self.places_V = popularity_places(counts)
        return self

    def scores(self, batch: HistoryBatch) -> Tensor:
        """float32 [B, V]: the items' places, the same for every history."""
        places_V = torch.from_numpy(self.places_V.astype(np.float32))
        return places_V.expand(len(batch.lengths_B), -1)

    def state(self) -> dict[str, np.ndarray]:
        """What `from_state` rebuilds the fitted model from."""
        window = np.nan if self.window is None else self.window
        return {"window": np.array([window]), "places_V": self.places_V}

    @classmethod
    def from_state(cls, state: dict[str, np.ndarray]) -> Self:
        """The fitted model."""
        window = float(state["window"][0])
        model = cls(None if np.isnan(window) else window)
        model.places_V = state["places_V"]
        return model


def training_events(offsets: np.ndarray, ends: np.ndarray) -> np.ndarray:
    """int64: positions of the events `offsets[u] : offsets[u] + ends[u]` of all users."""
    before = np.cumsum(ends) - ends
    return np.arange(int(ends.sum())) + np.repeat(offsets[:-1] - before, ends)


def popularity_places(counts_V: np.ndarray) -> np.ndarray:
    """A total order by count: int64 [V], V − 1 for the most popular item, 0 for padding.

    Equal counts are drawn, with a fixed seed: never by index, which is the order of the raw ids.
    """
    V = len(counts_V)
    drawn = np.random.Generator(np.random.PCG64(0)).permutation(V)
    order = np.lexsort((drawn, counts_V))
    order = np.concatenate([[0], order[order != 0]])
    places = np.empty(V, dtype=np.int64)
    places[order] = np.arange(V)
    return places


def back_off(genuine_BV: sp.csr_array, places_V: np.ndarray) -> Tensor:
    """Makes sparse scores a total order with the help of popularity.

    A positive score keeps its value, except that equal ones are told apart by popularity, by the
    smallest steps float32 has. All other items stand below zero, in [−1, 0), by popularity.

    Args:
        genuine_BV: float32, scores ≥ 0, without duplicate entries.
        places_V: from `popularity_places`.

    Returns:
        float32 [B, V], no two items of a row with one score.
    """
    B, V = genuine_BV.shape
    bits = int(V - 1).bit_length()
    below_V = (places_V / 2.0**bits - 1).astype(np.float32)
    scores_BV = np.empty((B, V), dtype=np.float32)
    scores_BV[:] = below_V

    # Sort by (row, score, place) in one key: a positive float's bits are ordered as its value is.
    row = np.repeat(np.arange(B), np.diff(genuine_BV.indptr))
    value = genuine_BV.data.astype(np.float32)
    kept = value > 0
    key = (row[kept] << 31) + value[kept].view(np.int32)
    place = places_V[genuine_BV.indices[kept]]
    order = np.lexsort((place, key))
    key, place = key[order], place[order]
    # Strictly increasing with as little change as possible: key[i] = max(key[i], key[i − 1] + 1).
    position = np.arange(len(key))
    key = np.maximum.accumulate(key - position) + position
    item_of_place = np.argsort(places_V)
    raised = (key & (2**31 - 1)).astype(np.int32).view(np.float32)
    scores_BV[key >> 31, item_of_place[place]] = raised
    return torch.from_numpy(scores_BV)


def newest_items(batch: HistoryBatch, catalogue_size: int, newest: int | None) -> sp.csr_array:
    """float32 [B, V]: 1 where the item is among the history's newest events, however often."""
    rows, columns = batch.valid_BL.nonzero(as_tuple=True)
    if newest is not None:
        kept = columns >= batch.lengths_B[rows] - newest
        rows, columns = rows[kept], columns[kept]
    items = batch.items_BL[rows, columns].numpy()
    shape = (len(batch.lengths_B), catalogue_size)
    history_BV = sp.csr_array((np.ones(len(items), np.float32), (rows.numpy(), items)), shape=shape)
    history_BV.sum_duplicates()
    history_BV.data[:] = 1
    return history_BV
