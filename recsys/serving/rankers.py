"""A ranker of clicks as a scorer of the catalogue: every item is asked about for every user.

Dimensions: R users asked about together, V catalogue incl. padding.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from recsys.evaluation.click_scores import score_clicks
from recsys.histories.click_batches import Columns
from recsys.histories.clicks import ClickQuestions, HistoryView, ViewKind, history_view
from recsys.histories.features import ColumnFeature, EncodedColumns, FittedFeatures
from recsys.histories.store import NO_TIME, HistoryStore

QUESTIONS = 1 << 18  # made at once


@dataclass(frozen=True)
class AskedUsers:
    """R users of a store, each at a point of the own history.

    Attributes:
        view: the events that make histories.
        columns: the fields of the store.
        users: int64 [R].
        ends: int64 [R], the history is the user's viewed events `[0, end)`.
    """

    view: HistoryView
    columns: Columns
    users: np.ndarray
    ends: np.ndarray


class RankerScorer:
    """Scores by a ranker: the probability that the user takes the item, asked item by item.

    Nobody knows beforehand when and where a list will be shown: fields of the question itself, and
    how long ago the history's events are, count as missing.

    Args:
        model: the ranker, with `max_length`.
        features: that it was trained with.
        history: "positives" or "events", as it was trained with.
        store: the histories it is asked about; people of other stores (new ones) are asked about
            too, and have the fields that follow from their histories alone.
    """

    def __init__(
        self, model: nn.Module, features: FittedFeatures, history: ViewKind, store: HistoryStore
    ) -> None:
        self.model = model
        self.features = features
        self.history = history
        self.store = store
        self.view = history_view(store, history)
        self.columns = features.columns(store)

    def make_batch(self, store: HistoryStore, users: np.ndarray, ends: np.ndarray) -> AskedUsers:
        """What `scores` takes; see `recsys.serving.recommender.Recommender`."""
        if store is self.store:
            view, columns = self.view, self.columns
        else:
            view = history_view(store, self.history)
            columns = NewPeopleColumns(self.columns, store)  # type: ignore[assignment]
        return AskedUsers(view, columns, users, view.ends(users, ends))

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
            times=np.full(rows, NO_TIME, dtype=np.int64),
        )
        max_length: int = self.model.max_length  # type: ignore[assignment]
        return torch.from_numpy(
            score_clicks(self.model, asked.view, questions, asked.columns, max_length)
        )


class NewPeopleColumns:
    """Fields for people who are in no store: of items as known, of the people themselves none.

    What follows from a history alone (its labels, that the user is unknown) is there; columns of
    side tables and of the log are missing.

    Args:
        known: the fields of the store that has the items.
        store: the new people's histories.
    """

    def __init__(self, known: EncodedColumns, store: HistoryStore) -> None:
        own = [e for e in known.fitted.fitted if not isinstance(e.feature, ColumnFeature)]
        self.known = known
        self.own = FittedFeatures(tuple(own)).columns(store)
        self.sizes = known.sizes

    def user(self, name: str, users: np.ndarray) -> np.ndarray:
        """A field of users."""
        if name in self.own.sizes["user"]:
            return self.own.user(name, users)
        return self.known.user(name, np.full_like(users, -1))

    def item(self, name: str, items: np.ndarray) -> np.ndarray:
        """A field of items."""
        return self.known.item(name, items)

    def event(self, name: str, rows: np.ndarray, question_times: np.ndarray | None) -> np.ndarray:
        """A field of past events."""
        if name in self.own.sizes["event"]:
            return self.own.event(name, rows, question_times)
        return self.known.event(name, np.full_like(rows, -1), question_times)

    def context(self, name: str, rows: np.ndarray) -> np.ndarray:
        """A field of the questions' own rows."""
        return self.known.context(name, np.full_like(rows, -1))
