"""Whom to recommend to, a slice at a time: memory does not grow with their number.

Dimensions: N people, M of them in a slice, V catalogue incl. padding (index 0).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
import polars as pl

from recsys.evaluation.ranking import ragged
from recsys.histories.questions import Questions
from recsys.histories.store import HistoryStore
from recsys.histories.vocabulary import Vocabulary


@dataclass(frozen=True)
class Slice:
    """Some of the people.

    Attributes:
        raw_users: their ids.
        store: holds their histories, in the model's item indices.
        users_M: int64, their indices in the store.
        ends_M: int64, events of each history.
    """

    raw_users: pl.Series
    store: HistoryStore
    users_M: np.ndarray
    ends_M: np.ndarray


class People(Protocol):
    """N people."""

    def __len__(self) -> int: ...

    def slice(self, begin: int, end: int) -> Slice:
        """Those from `begin` to before `end`."""


class StoredPeople:
    """Users of the model's own store.

    Args:
        store: the histories.
        users_N: int64, user indices.
        ends_N: int64, events of each history; None for all there are.
    """

    def __init__(
        self, store: HistoryStore, users_N: np.ndarray, ends_N: np.ndarray | None = None
    ) -> None:
        self.store = store
        self.users_N = users_N
        self.ends_N = store.lengths[users_N] if ends_N is None else ends_N

    def __len__(self) -> int:
        return len(self.users_N)

    def slice(self, begin: int, end: int) -> Slice:
        """Those from `begin` to before `end`."""
        users = self.users_N[begin:end]
        raw_users = self.store.user_vocabulary.raw(users)
        return Slice(raw_users, self.store, users, self.ends_N[begin:end])


class NewPeople:
    """All users of another store, read with the model's vocabulary.

    Events on items that the model does not know are left out; somebody of whom nothing is left has
    an empty history.

    Args:
        store: their histories, in item indices of its own.
        items: the model's vocabulary.

    Attributes:
        ends_N: int64, events on known items.
        counts: `events_unknown`, `items_unknown`.
    """

    def __init__(self, store: HistoryStore, items: Vocabulary) -> None:
        self.store = store
        self.items = items
        found = items.indices(store.item_vocabulary.raw_ids)
        self.index_V = np.concatenate([[0], np.maximum(found, 0)]).astype(np.int32)
        self.ends_N = np.zeros(store.users, dtype=np.int64)
        step = 1 << 14
        for begin in range(0, store.users, step):
            part = slice(begin, min(begin + step, store.users))
            row, event = ragged(store.offsets[part], store.lengths[part])
            known = self.index_V[store.items[event]] > 0
            self.ends_N[part] = np.bincount(row[known], minlength=part.stop - part.start)
        self.counts = {
            "events_unknown": store.events - int(self.ends_N.sum()),
            "items_unknown": int((found < 0).sum()),
        }

    def __len__(self) -> int:
        return self.store.users

    def slice(self, begin: int, end: int) -> Slice:
        """Those from `begin` to before `end`, in a small store of their own."""
        events = slice(int(self.store.offsets[begin]), int(self.store.offsets[end]))
        items = self.index_V[self.store.items[events]]
        known = items > 0
        times, ratings, labels = (
            None if column is None else column[events][known]
            for column in (self.store.times, self.store.ratings, self.store.labels)
        )
        ends = self.ends_N[begin:end]
        raw_users = self.store.user_vocabulary.raw(np.arange(begin, end))
        small = HistoryStore(
            offsets=np.concatenate([[0], np.cumsum(ends)]).astype(np.int64),
            items=items[known],
            user_vocabulary=Vocabulary(raw_users, 0),
            item_vocabulary=self.items,
            times=times,
            ratings=ratings,
            labels=labels,
        )
        return Slice(raw_users, small, np.arange(end - begin), ends)


def first_questions(questions: Questions, users: int) -> np.ndarray:
    """int64 [users]: where each user's first question stands in the history; -1 where none is.

    Args:
        questions: of one stage.
        users: number of users in the store.
    """
    ends = np.full(users, np.iinfo(np.int64).max)
    np.minimum.at(ends, questions.users, questions.history_ends)
    return np.where(ends == np.iinfo(np.int64).max, -1, ends)
