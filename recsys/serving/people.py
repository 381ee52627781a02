"""Whom to recommend to, a slice at a time: memory does not grow with their number.

Dimensions: N people, M of them in a slice, V catalogue incl. padding (index 0).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
import polars as pl

from recsys.histories.attributes import Attribute
from recsys.histories.clicks import history_view
from recsys.histories.questions import Questions
from recsys.histories.spans import ragged
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
        read_M: int64, those of them that the model reads.
    """

    raw_users: pl.Series
    store: HistoryStore
    users_M: np.ndarray
    ends_M: np.ndarray
    read_M: np.ndarray


class People(Protocol):
    """N people.

    Attributes:
        store: all of their histories.
        ends_N: int64, events of each history.
        read_N: int64, those of them that the model reads.
    """

    store: HistoryStore
    ends_N: np.ndarray
    read_N: np.ndarray

    def __len__(self) -> int: ...

    def slice(self, begin: int, end: int) -> Slice:
        """Those from `begin` to before `end`."""


class StoredPeople:
    """Users of the model's own store.

    Args:
        store: the histories.
        users_N: int64, user indices.
        ends_N: int64, events of each history; None for all there are.
        taken_only: the model reads events with label 1 only, where the store has labels.
    """

    def __init__(
        self,
        store: HistoryStore,
        users_N: np.ndarray,
        ends_N: np.ndarray | None = None,
        *,
        taken_only: bool = False,
    ) -> None:
        self.store = store
        self.users_N = users_N
        self.ends_N = store.lengths[users_N] if ends_N is None else ends_N
        view = history_view(store, "positives" if taken_only else "events")
        self.read_N = view.ends(users_N, self.ends_N)

    def __len__(self) -> int:
        return len(self.users_N)

    def slice(self, begin: int, end: int) -> Slice:
        """Those from `begin` to before `end`."""
        users = self.users_N[begin:end]
        raw_users = self.store.user_vocabulary.raw(users)
        return Slice(raw_users, self.store, users, self.ends_N[begin:end], self.read_N[begin:end])


class NewPeople:
    """All users of another store, read with the model's vocabulary.

    Events on items that the model does not know are left out; somebody of whom nothing is left has
    an empty history.

    Args:
        store: their histories, in item indices of its own.
        items: the model's vocabulary.
        taken_only: the model reads events with label 1 only, where the store has labels.

    Attributes:
        ends_N: int64, events on known items.
        read_N: int64, those of them that the model reads.
        counts: `events_unknown`, `items_unknown`.
    """

    def __init__(self, store: HistoryStore, items: Vocabulary, *, taken_only: bool = False) -> None:
        self.store = store
        self.items = items
        found = items.indices(store.item_vocabulary.raw_ids)
        self.index_V = np.concatenate([[0], np.maximum(found, 0)]).astype(np.int32)
        self.ends_N = np.zeros(store.users, dtype=np.int64)
        labels = store.labels if taken_only else None
        self.read_N = self.ends_N if labels is None else np.zeros_like(self.ends_N)
        step = 1 << 14
        for begin in range(0, store.users, step):
            part = slice(begin, min(begin + step, store.users))
            row, event = ragged(store.offsets[part], store.lengths[part])
            known = self.index_V[store.items[event]] > 0
            self.ends_N[part] = np.bincount(row[known], minlength=part.stop - part.start)
            if labels is not None:
                known &= labels[event] == 1
                self.read_N[part] = np.bincount(row[known], minlength=part.stop - part.start)
        self.counts = {
            "events_unknown": store.events - int(self.ends_N.sum()),
            "items_unknown": int((found < 0).sum()),
        }

    def __len__(self) -> int:
        return self.store.users

    def slice(self, begin: int, end: int) -> Slice:
        """Those from `begin` to before `end`, in a small store of their own.

        It has what is told of these people and their events, and nothing about items.
        """
        events = slice(int(self.store.offsets[begin]), int(self.store.offsets[end]))
        items = self.index_V[self.store.items[events]]
        known = items > 0
        kept = {
            "event": (events, np.flatnonzero(known)),
            "user": (slice(begin, end), np.arange(end - begin)),
        }
        attributes = {
            key: _rows_of(attribute, *kept[of])
            for key, attribute in self.store.attributes.items()
            if (of := key.partition(".")[0]) in kept
        }
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
            attributes=attributes,
        )
        return Slice(raw_users, small, np.arange(end - begin), ends, self.read_N[begin:end])


def _rows_of(attribute: Attribute, span: slice, kept: np.ndarray) -> Attribute:
    """Some rows of a span, with the values that stand in them: a slice costs what it holds.

    Args:
        attribute: of all rows.
        span: the rows `[start, stop)`.
        kept: int64, counted from the span's start.
    """
    if attribute.numbers is not None:
        return Attribute(numbers=attribute.numbers[span][kept])
    assert attribute.codes is not None and attribute.values is not None
    codes, offsets = attribute.codes[span], None
    if attribute.offsets is not None:
        offsets = attribute.offsets[span.start : span.stop + 1]
        codes = attribute.codes[offsets[0] : offsets[-1]]
        offsets = offsets - offsets[0]
    some = Attribute(codes, attribute.values, offsets).take(kept)
    assert some.codes is not None
    used = np.unique(np.append(0, some.codes))  # 0 is missing, and stays 0
    codes = np.searchsorted(used, some.codes).astype(np.int32)
    return Attribute(codes, attribute.values.gather(used[1:] - 1), some.offsets)


def first_questions(questions: Questions, users: int) -> np.ndarray:
    """int64 [users]: where each user's first question stands in the history; -1 where none is.

    Args:
        questions: of one stage.
        users: number of users in the store.
    """
    ends = np.full(users, np.iinfo(np.int64).max)
    np.minimum.at(ends, questions.users, questions.history_ends)
    return np.where(ends == np.iinfo(np.int64).max, -1, ends)
