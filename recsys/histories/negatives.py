"""Sampled negatives for logs that hold positives only."""

from __future__ import annotations

from typing import Literal

import numpy as np

from recsys.histories.questions import SplitError
from recsys.histories.store import HistoryStore

Sampling = Literal["uniform", "popularity"]
_STREAM = 0x9E6A71


class NegativeSampler:
    """Draws items that a user never had, neither before the question nor after it.

    Each draw is exact: no draw is rejected and repeated. The weights are whole numbers laid end to
    end by item; a user's own items are cut out of that line, one number is drawn on what is left,
    and put back onto the whole line by adding the length of the own items that stand before it.

    Negatives of one positive are drawn independently, so two of them can be the same item.

    Args:
        store: the histories.
        training_ends: int64 [users], training sees the user's events `[0, training_end)`; counts
            of these events are the popularity.
        sampling: "uniform" over the catalogue, or by "popularity" in training: items that have no
            training event are then never drawn.
        per_positive: negatives of each positive.
        seed: of the draws.

    A user who has every item that could be drawn has no negatives; `can_draw` tells.

    Raises:
        SplitError: `per_positive` below 1, another name of a sampling, or nobody with events for
            whom a negative can be drawn.
    """

    def __init__(
        self,
        store: HistoryStore,
        training_ends: np.ndarray,
        sampling: Sampling,
        per_positive: int,
        seed: int,
    ) -> None:
        if per_positive < 1:
            raise SplitError(
                f"questions.negatives_per_positive must be at least 1, not {per_positive}"
            )
        V = store.catalogue_size
        user_of_event = np.repeat(np.arange(store.users), store.lengths)
        if sampling == "uniform":
            weights_V = np.ones(V, dtype=np.int64)
            weights_V[0] = 0
        elif sampling == "popularity":
            place = np.arange(store.events) - store.offsets[user_of_event]
            trained = place < training_ends[user_of_event]
            weights_V = np.bincount(store.items[trained], minlength=V)
        else:
            raise SplitError(f"questions.sampling is 'uniform' or 'popularity', not {sampling!r}")
        self.sampling = sampling
        self.per_positive = per_positive
        self.seed = seed
        self._line_ends_V = np.cumsum(weights_V)
        total = int(self._line_ends_V[-1])

        # One entry per user and distinct item of theirs, by user and item.
        pairs = np.unique(user_of_event * V + store.items)
        owners, own = pairs // V, pairs % V
        own_weights = weights_V[own]
        ends = np.cumsum(own_weights)
        first = np.searchsorted(owners, np.arange(store.users + 1))
        before_user = np.concatenate([[0], ends])[first]
        # Weight of the user's own items before this one, and of the others' before this one.
        own_before = ends - own_weights - before_user[owners]
        others_before = self._line_ends_V[own] - own_weights - own_before
        self._stride = total + 1
        self._keys = owners * self._stride + others_before
        self._own_ends = np.concatenate([[0], own_before + own_weights])
        self._first = first[:-1]
        self._left = total - np.diff(before_user)
        has_events = store.lengths > 0
        if has_events.any() and not self.can_draw(np.flatnonzero(has_events)).any():
            what = "the whole catalogue" if sampling == "uniform" else "every item of training"
            raise SplitError(
                f"each of {np.count_nonzero(has_events):,} users has {what} "
                f"({np.count_nonzero(weights_V):,} items), so no negative can be drawn: rank the "
                "catalogue (a next-item model) instead"
            )

    @property
    def name(self) -> str:
        """As it stands in a protocol: "uniform4"."""
        return f"{self.sampling}{self.per_positive}"

    def can_draw(self, users: np.ndarray) -> np.ndarray:
        """Whether there is an item that each of the users (int64 [N]) never had: bool [N]."""
        return self._left[users] > 0

    def draw(self, users: np.ndarray, *stream: int) -> np.ndarray:
        """Negatives for positives of the given users.

        Args:
            users: int64 [N], the users of the positives; of each `can_draw`.
            stream: numbers that name the draw: the same ones give the same items.

        Returns:
            int64 [N, per_positive], item indices.
        """
        draw = np.random.Generator(np.random.PCG64([self.seed, _STREAM, *stream]))
        users = users[:, None]
        place = draw.integers(self._left[users], size=(len(users), self.per_positive))
        # How many of the user's own items stand before that place.
        passed = np.searchsorted(self._keys, users * self._stride + place, side="right")
        skipped = np.where(passed > self._first[users], self._own_ends[passed], 0)
        return np.searchsorted(self._line_ends_V, place + skipped, side="right")
