"""The histories store: one ragged, time-ordered row per user, memory-mapped from disk."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from recsys.histories.vocabulary import Vocabulary

NO_TIME = np.iinfo(np.int64).min


@dataclass(frozen=True)
class HistoryStore:
    """All events of all users. The events of user u are `offsets[u] : offsets[u + 1]`, oldest first.

    Attributes:
        offsets: int64 [users + 1].
        items: int32 [events], item indices ≥ 1.
        times: int64 [events], microseconds since 1970 (`NO_TIME` where unknown), or None.
        ratings: float32 [events] (NaN where unknown), or None.
        labels: int8 [events], 0 or 1 (-1 where unknown), or None.
        user_vocabulary: raw user ids, index 0 ...
        item_vocabulary: raw item ids, index 1 ...
        manifest: format version, counts, settings, source digests, fingerprint.
        path: the folder it was opened from; None when it lives in memory only.
    """

    offsets: np.ndarray
    items: np.ndarray
    user_vocabulary: Vocabulary
    item_vocabulary: Vocabulary
    times: np.ndarray | None = None
    ratings: np.ndarray | None = None
    labels: np.ndarray | None = None
    manifest: dict[str, Any] = field(default_factory=dict)
    path: Path | None = None

    @property
    def users(self) -> int:
        """Number of users."""
        return len(self.offsets) - 1

    @property
    def events(self) -> int:
        """Number of events."""
        return int(self.offsets[-1])

    @property
    def catalogue_size(self) -> int:
        """V: the number of items plus one for padding."""
        return self.item_vocabulary.size

    @property
    def fingerprint(self) -> str:
        """Identity of the store: what it was made from and how. Empty in memory-only stores."""
        return str(self.manifest.get("fingerprint", ""))

    @property
    def lengths(self) -> np.ndarray:
        """int64 [users]: events per user."""
        return np.diff(self.offsets)

    def history(self, user: int, end: int | None = None) -> np.ndarray:
        """Item indices of a user's events `[0, end)`, oldest first."""
        begin = int(self.offsets[user])
        stop = int(self.offsets[user + 1]) if end is None else begin + end
        return self.items[begin:stop]

    @staticmethod
    def from_lists(
        histories: list[list[int]], items: int | None = None, times: list[list[int]] | None = None
    ) -> HistoryStore:
        """A small store in memory: item indices (≥ 1) per user. Raw ids are 'u0', 'i1', …"""
        lengths = [len(history) for history in histories]
        flat = np.array([i for history in histories for i in history], dtype=np.int32)
        count = items if items is not None else int(flat.max(initial=0))
        flat_times = None
        if times is not None:
            flat_times = np.array([t for row in times for t in row], dtype=np.int64)
        return HistoryStore(
            offsets=np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64),
            items=flat,
            times=flat_times,
            user_vocabulary=Vocabulary(
                pl.Series("user", [f"u{i}" for i in range(len(histories))], dtype=pl.String), 0
            ),
            item_vocabulary=Vocabulary(
                pl.Series("item", [f"i{i}" for i in range(1, count + 1)], dtype=pl.String), 1
            ),
        )
