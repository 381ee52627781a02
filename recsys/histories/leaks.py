"""What a model had learned of a test before it was asked: the questions whose answers it knows.

A split keeps its own test out of its own training. A model that is judged on another split, or on
another log, may have seen the answers.

Dimensions: R rows of what is asked (the events, or the impressions where they are a log of their
own), N questions.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import polars as pl

from recsys.histories.clicks import ClickSplit
from recsys.histories.questions import Split
from recsys.histories.store import HistoryStore


@dataclass(frozen=True)
class Leak:
    """What a model had learned of a test.

    Attributes:
        questions: of the test.
        answers: questions with an answer that the model was trained on.
        later: rows it was trained on that are not earlier than the first answer of the test. In a
            test of the future there must be none; elsewhere they say nothing.
    """

    questions: int
    answers: int
    later: int


def find_leak(
    asked: Split | ClickSplit,
    store: HistoryStore,
    trained: Split | ClickSplit,
    trained_store: HistoryStore,
) -> Leak:
    """Compares a test with what a model was trained on.

    Rows of two stores are the same if raw user, item and time are; item indices must be the same in
    both.

    Args:
        asked: holds the test.
        store: its histories.
        trained: the split that the model was trained with.
        trained_store: its histories.
    """
    asked_rows = _rows(asked, store)
    learned_R = learned_rows(trained, trained_store)
    trained_rows = _rows(trained, trained_store)
    there = trained_store.user_vocabulary.indices(store.user_vocabulary.raw_ids)
    known_R = _are_among(
        asked_rows.with_columns(user=pl.Series(there[asked_rows["user"].to_numpy()])),
        trained_rows.filter(learned_R),
    )
    answers_R, answered_N = _answers(asked, store, known_R)
    times_of_answers = asked_rows["time"].to_numpy()[answers_R]
    first = int(times_of_answers.min()) if len(times_of_answers) else 0
    later_R = learned_R & (trained_rows["time"].to_numpy() >= first)
    return Leak(len(answered_N), int(answered_N.sum()), int(np.count_nonzero(later_R)))


def learned_rows(split: Split | ClickSplit, store: HistoryStore) -> np.ndarray:
    """Bool [R]: which rows a model of this split is trained on."""
    if isinstance(split, ClickSplit):
        learned_R = np.zeros(len(_rows(split, store)), dtype=bool)
        learned_R[split.training.rows] = True
        return learned_R
    owners = np.repeat(np.arange(store.users), store.lengths)
    places = np.arange(store.events) - store.offsets[owners]
    learned: np.ndarray = places < split.training_ends[owners]
    return learned


def _rows(split: Split | ClickSplit, store: HistoryStore) -> pl.DataFrame:
    """User, item and time of each row, as indices; time 0 where there is none."""
    if isinstance(split, ClickSplit) and store.impressions is not None:
        shown = store.impressions
        users, items, times = shown.users, shown.items, shown.times
    else:
        users = np.repeat(np.arange(store.users), store.lengths)
        items = store.items
        times = np.zeros(store.events, dtype=np.int64) if store.times is None else store.times
    columns = {"user": users, "item": items, "time": times}
    return pl.DataFrame({name: np.asarray(c, dtype=np.int64) for name, c in columns.items()})


def _are_among(rows: pl.DataFrame, known: pl.DataFrame) -> np.ndarray:
    """Bool [R]: which rows are among the known ones."""
    known = known.unique().with_columns(known=True)
    found = rows.join(known, ["user", "item", "time"], "left", maintain_order="left")
    known_R: np.ndarray = found["known"].fill_null(False).to_numpy()
    return known_R


def _answers(
    split: Split | ClickSplit, store: HistoryStore, known_R: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """The rows that answer the test, and bool [N]: questions that a known row answers."""
    if isinstance(split, ClickSplit):
        return split.test.rows, known_R[split.test.rows]
    test = split.test
    begins = store.offsets[test.users] + test.target_begins
    ends = store.offsets[test.users] + test.target_ends
    before = np.concatenate([[0], np.cumsum(known_R)])
    asked = np.zeros(store.events + 1, dtype=np.int64)
    np.add.at(asked, begins, 1)
    np.add.at(asked, ends, -1)
    return np.flatnonzero(np.cumsum(asked)[:-1] > 0), before[ends] > before[begins]
