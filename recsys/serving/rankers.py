"""A ranker of clicks as a scorer of the catalogue: every item is asked about for every user.

Dimensions: R users asked about together, V catalogue incl. padding.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import polars as pl
import torch
from torch import Tensor, nn

from recsys.evaluation.click_scores import score_clicks
from recsys.histories.attributes import Attribute
from recsys.histories.click_batches import Columns
from recsys.histories.clicks import ClickQuestions, HistoryView, ViewKind, history_view
from recsys.histories.features import (
    UNKNOWN,
    ClickRows,
    ColumnFeature,
    EncodedColumns,
    Feature,
    FittedFeatures,
    HourOfWeek,
    Recency,
    UserId,
)
from recsys.histories.store import NO_TIME, HistoryStore
from recsys.histories.vocabulary import Vocabulary

QUESTIONS = 1 << 18  # made at once


@dataclass(frozen=True)
class AskedUsers:
    """R users of a store, each at a point of the own history.

    Attributes:
        view: the events that make histories.
        columns: the fields of the store.
        users: int64 [R].
        ends: int64 [R], the history is the user's viewed events `[0, end)`.
        moments: int64 [R], when the list is asked for, microseconds since 1970 (`NO_TIME` where
            unknown).
    """

    view: HistoryView
    columns: Columns
    users: np.ndarray
    ends: np.ndarray
    moments: np.ndarray


class RankerScorer:
    """Scores by a ranker: the probability that the user takes the item, asked item by item.

    Nobody knows beforehand where a list will be shown: fields of the question itself count as
    missing.

    Args:
        model: the ranker, with `max_length`.
        features: that it was trained with.
        history: "positives", "events" or "none", as it was trained with.
        store: the histories it is asked about; people of other stores (new ones) are asked about
            too, with the fields that `NewPeopleColumns` gives.
        moments: int64, when the lists are asked for, microseconds since 1970: one moment for
            everybody, or [users], one for each user of the store. Recency counts from there, and
            is missing where the moment is `NO_TIME`.
    """

    def __init__(
        self,
        model: nn.Module,
        features: FittedFeatures,
        history: ViewKind,
        store: HistoryStore,
        moments: int | np.ndarray = NO_TIME,
    ) -> None:
        self.model = model
        self.features = features
        self.history = history
        self.store = store
        self.view = history_view(store, history)
        self.columns = features.columns(store)
        self.moments = moments
        self._others: tuple[HistoryStore, HistoryView, NewPeopleColumns] | None = None

    def make_batch(self, store: HistoryStore, users: np.ndarray, ends: np.ndarray) -> AskedUsers:
        """What `scores` takes; see `recsys.serving.recommender.Recommender`."""
        moments = np.broadcast_to(self.moments, store.users)[users]
        if store is self.store:
            view = self.view
            return AskedUsers(view, self.columns, users, view.ends(users, ends), moments)
        others = self._others
        if others is None or others[0] is not store:  # its values are encoded once
            new = history_view(store, self.history), NewPeopleColumns(self.columns, store)
            self._others = others = (store, *new)  # not read again: a server asks side by side
        _, view, columns = others
        return AskedUsers(view, columns, users, view.ends(users, ends), moments)

    def scores(self, asked: AskedUsers) -> Tensor:
        """Scores [R, V] in float32; -inf for the padding."""
        R, V = len(asked.users), self.store.catalogue_size
        scores_RV = torch.full((R, V), float("-inf"))
        at_once = max(1, QUESTIONS // V)
        for begin in range(0, R, at_once):
            some = slice(begin, begin + at_once)
            scores_RV[some, 1:] = self._ask(asked, some).view(-1, V - 1)
        return scores_RV

    def _ask(self, asked: AskedUsers, some: slice) -> Tensor:
        """Some users' questions about all items, user by user."""
        users, V = asked.users[some], self.store.catalogue_size
        rows = len(users) * (V - 1)
        questions = ClickQuestions(
            users=np.repeat(users, V - 1),
            history_ends=np.repeat(asked.ends[some], V - 1),
            candidates=np.tile(np.arange(1, V), len(users)),
            labels=np.zeros(rows, dtype=np.float32),
            requests=np.full(rows, -1, dtype=np.int64),
            rows=np.full(rows, -1, dtype=np.int64),
            times=np.repeat(asked.moments[some], V - 1),
        )
        max_length: int = self.model.max_length  # type: ignore[assignment]
        return torch.from_numpy(
            score_clicks(self.model, asked.view, questions, asked.columns, max_length)
        )


class NewPeopleColumns:
    """Fields for people who are in no store: of items as known, of the people what they bring.

    That is all that follows from their histories, and the columns that their store has. They are
    unknown users, whatever their ids: a namesake of a known user is somebody else. What their store
    lacks (`lacking`) is missing, and so are fields of the question itself.

    Args:
        known: the fields of the store that has the items.
        store: the new people's histories.
    """

    def __init__(self, known: EncodedColumns, store: HistoryStore) -> None:
        fitted = known.fitted.fitted
        own = [entry for entry in fitted if _can_give(store, entry.feature)]
        self.known = known
        self.own = FittedFeatures(tuple(own)).columns(store)
        self.sizes = known.sizes
        # Without events every row is padding, and there is no first row to stand in for it.
        self._events = self.own.sizes["event"] if store.events else {}
        self._ids = {e.feature.name for e in fitted if isinstance(e.feature, UserId)}

    def user(self, name: str, users: np.ndarray) -> np.ndarray:
        """A field of users."""
        if name in self._ids:
            return np.full(users.shape, UNKNOWN, dtype=np.int64)
        if name in self.own.sizes["user"]:
            return self.own.user(name, users)
        return self.known.user(name, np.full_like(users, -1))

    def item(self, name: str, items: np.ndarray) -> np.ndarray:
        """A field of items."""
        return self.known.item(name, items)

    def event(self, name: str, rows: np.ndarray, question_times: np.ndarray | None) -> np.ndarray:
        """A field of past events."""
        if name in self._events:
            return self.own.event(name, rows, question_times)
        return self.known.event(name, np.full_like(rows, -1), question_times)

    def context(self, name: str, rows: np.ndarray) -> np.ndarray:
        """A field of the questions' own rows."""
        return self.known.context(name, np.full_like(rows, -1))


def items_alone(store: HistoryStore, features: FittedFeatures) -> HistoryStore:
    """What a ranker reads of a store's items, and nobody's history: enough to answer new people.

    Every column that the features need is there, of items with its values; of users, events and
    questions it is empty, for one user with one event, about whom nothing is known.

    Args:
        store: the ranker's own.
        features: that it was trained with.
    """
    nothing = Attribute(np.zeros(1, dtype=np.int32), pl.Series("value", [], dtype=pl.String))
    attributes = {}
    for feature in features.features:
        if isinstance(feature, ColumnFeature):
            # Where nothing was shown, a question's columns are those of its event.
            of = "event" if feature.of == "context" else feature.of
            key = f"{of}.{feature.column}"
            attributes[key] = store.attributes[key] if of == "item" else nothing
    return HistoryStore(
        offsets=np.array([0, 1]),
        items=np.ones(1, dtype=np.int32),
        user_vocabulary=Vocabulary(pl.Series("user", [""]), 0),
        item_vocabulary=store.item_vocabulary,
        times=np.array([NO_TIME]),
        attributes=attributes,
    )


def lacking(features: FittedFeatures, store: HistoryStore) -> list[Feature]:
    """The features of people and of their events that a store of new people does not give.

    Args:
        features: that the model was trained with.
        store: the new people's histories.
    """
    return [
        feature
        for feature in features.features
        if feature.of in ("user", "event")
        and not isinstance(feature, UserId)
        and not _can_give(store, feature)
    ]


def unknown_values(features: FittedFeatures, store: HistoryStore) -> dict[str, int]:
    """How many new people, or events of theirs, have a value that training did not know.

    Args:
        features: that the model was trained with.
        store: the new people's histories.

    Returns:
        By "<of>.<feature>", those that have some.
    """
    if store.events == 0:
        return {}
    given = tuple(entry for entry in features.fitted if _can_give(store, entry.feature))
    nothing = np.zeros(0, dtype=np.int64)
    rows = ClickRows(
        users=np.arange(store.users), items=nothing, rows=nothing, events=np.arange(store.events)
    )
    counts = FittedFeatures(given).columns(store).unknown_counts(rows)
    return {name: count for name, count in counts.items() if count}


def _can_give(store: HistoryStore, feature: Feature) -> bool:
    """Whether a store of new people has what a feature of theirs reads."""
    if feature.of not in ("user", "event") or isinstance(feature, UserId):
        return False
    if isinstance(feature, Recency | HourOfWeek):
        return store.times is not None
    return not isinstance(feature, ColumnFeature) or (
        f"{feature.of}.{feature.column}" in store.attributes
    )
