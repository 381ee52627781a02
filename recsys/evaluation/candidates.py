"""Candidates other than the whole catalogue: drawn for each question, or given.

Sampled candidates make every number higher and can turn the order of two models (Krichene and
Rendle, KDD 2020): they are here to hold a result against one that was published so, and the
protocol's name says it. What is drawn depends on the question and the seed alone, so that all
models are asked alike.

Dimensions: N questions, C candidates of one of them, A answers of all questions together.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Literal

import numpy as np
import polars as pl

from recsys.histories.negatives import NegativeSampler
from recsys.histories.questions import Questions, answer_events
from recsys.histories.spans import ragged
from recsys.histories.store import HistoryStore

_STREAM = 0xCA2D


class CandidateError(ValueError):
    """Candidates that cannot be drawn, or lists that do not fit the questions."""


@dataclass(frozen=True)
class Candidates:
    """What each question lets a model choose from.

    Attributes:
        offsets: int64 [N + 1].
        items: int32, the candidates of question n are `items[offsets[n] : offsets[n + 1]]`, each
            once, ascending; the answers are among them or they are misses.
        name: as it stands in a protocol: "uniform100", "popularity100", "given3fa8c1" (a
            digest of the lists); the same name says the same draw of the same questions.
        in_words: for the legend.
    """

    offsets: np.ndarray
    items: np.ndarray
    name: str
    in_words: str

    def take(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(row, item) pairs of some questions, the rows numbered as they stand in `rows`."""
        row, at = ragged(self.offsets[rows], np.diff(self.offsets)[rows])
        return row, self.items[at]


def sampled(
    store: HistoryStore,
    questions: Questions,
    training_ends: np.ndarray,
    *,
    count: int,
    sampling: Literal["uniform", "popularity"],
    seed: int,
    stage: int = 0,
) -> Candidates:
    """The answers, and for each question `count` distinct items that the user never had.

    "uniform" draws every item alike, "popularity" by its training events, one after the other
    without the ones already drawn (as the BERT4Rec paper does with 100). A user of whom fewer items
    are left gets all of them.

    Args:
        store: the histories.
        questions: what is asked.
        training_ends: int64 [users], for popularity.
        count: C − 1 where there is one answer.
        sampling: how.
        seed: of the draw; another one than 0 is named in the protocol.
        stage: of the questions: each has draws of its own.

    Raises:
        CandidateError: a count below 1, or a seed below 0.
    """
    if count < 1 or seed < 0:
        raise CandidateError(
            "candidate_set.count must be at least 1, and candidate_set.seed at least 0, not "
            f"{count} and {seed}"
        )
    N, V = len(questions), store.catalogue_size
    weights_V = drawable_weights(store, training_ends, sampling)
    had = np.unique(np.repeat(np.arange(store.users), store.lengths) * V + store.items)
    had_drawable = had[weights_V[had % V] > 0]
    left = np.count_nonzero(weights_V) - np.bincount(had_drawable // V, minlength=store.users)
    wanted = np.minimum(count, left[questions.users])
    # Where few are left, drawing until they are found would take long: those are put in order.
    few = left[questions.users] <= 4 * count
    draw = np.random.Generator(np.random.PCG64([seed, _STREAM, stage]))
    drawn = [_in_drawn_order(np.flatnonzero(few), wanted, questions, weights_V, had, draw)]
    if not few.all():
        sampler = NegativeSampler(store, training_ends, sampling, 2 * count, seed)
        drawn.append(_drawn_until_enough(np.flatnonzero(~few), count, questions, sampler, V, stage))
    question, event = answer_events(store, questions)
    keys = np.unique(np.concatenate([*drawn, question * V + store.items[event]]))
    kind = "all items alike" if sampling == "uniform" else "items by popularity"
    return Candidates(
        offsets=np.searchsorted(keys, np.arange(N + 1) * V),
        items=(keys % V).astype(np.int32),
        name=f"{sampling}{count}" + f"seed{seed}" * (seed > 0),
        in_words=f"the answer among {count:,} items that the user never had, drawn from {kind}: "
        "not comparable with numbers over the whole catalogue",
    )


def drawable_weights(
    store: HistoryStore, training_ends: np.ndarray, sampling: Literal["uniform", "popularity"]
) -> np.ndarray:
    """int64 [V]: the weight of each item in a draw; 0 of the padding."""
    if sampling == "uniform":
        weights_V = np.ones(store.catalogue_size, dtype=np.int64)
    else:
        places = np.arange(store.events) - np.repeat(store.offsets[:-1], store.lengths)
        learned = places < np.repeat(training_ends, store.lengths)
        weights_V = np.bincount(store.items[learned], minlength=store.catalogue_size)
    weights_V[0] = 0
    return weights_V


def _in_drawn_order(
    rows: np.ndarray,
    wanted: np.ndarray,
    questions: Questions,
    weights_V: np.ndarray,
    had: np.ndarray,
    draw: np.random.Generator,
) -> np.ndarray:
    """Question · V + item of the first ones, all items being put in a drawn order.

    Waiting times with the weights as rates: their order is that of drawing one after the other.
    """
    V = len(weights_V)
    found = [np.empty(0, dtype=np.int64)]
    with np.errstate(divide="ignore"):
        mean_waits_V = 1 / weights_V
    size = max(1, (1 << 22) // V)
    for begin in range(0, len(rows), size):
        part = rows[begin : begin + size]
        waits_RV = draw.exponential(size=(len(part), V)) * mean_waits_V
        users = questions.users[part]
        first, last = (np.searchsorted(had, (users + more) * V) for more in (0, 1))
        row, at = ragged(first, last - first)
        waits_RV[row, had[at] % V] = np.inf
        order_RV = np.argsort(waits_RV, axis=1, kind="stable")
        chosen_RV = np.arange(V) < wanted[part][:, None]
        found.append((part[:, None] * V + order_RV)[chosen_RV])
    return np.concatenate(found)


def _drawn_until_enough(
    rows: np.ndarray,
    count: int,
    questions: Questions,
    sampler: NegativeSampler,
    V: int,
    stage: int,
) -> np.ndarray:
    """Question · V + item of the first `count` distinct ones drawn for each question."""
    drawn = np.empty(0, dtype=np.int64)
    missing, attempt = rows, 0
    while len(missing):
        more = sampler.draw(questions.users[missing], _STREAM, stage, attempt)
        keys = np.concatenate([drawn, (missing[:, None] * V + more).ravel()])
        _, first = np.unique(keys, return_index=True)
        drawn = keys[np.sort(first)]
        order = np.argsort(drawn // V, kind="stable")
        question = (drawn // V)[order]
        place = np.arange(len(order)) - np.searchsorted(question, question)
        drawn = drawn[order[place < count]]
        have = np.bincount(drawn // V, minlength=len(questions))
        missing = rows[have[rows] < count]
        attempt += 1
    return drawn


def given(frame: pl.DataFrame, store: HistoryStore, questions: Questions, place: str) -> Candidates:
    """Lists that somebody else made: a retrieval stage, a shop's assortment.

    Args:
        frame: columns `user` and `item`, raw ids, one row a candidate; further columns are not
            looked at.
        store: the histories.
        questions: what is asked; a user's questions share the user's list.
        place: the file, for messages.

    Raises:
        CandidateError: a column is missing, a row is doubled, an id is unknown, or a user who is
            asked has no list.
    """
    if missing := {"user", "item"} - set(frame.columns):
        raise CandidateError(
            f"{place} has no column {' and '.join(sorted(missing))}; it has "
            f"{', '.join(frame.columns)}"
        )
    users = store.user_vocabulary.indices(frame["user"])
    items = store.item_vocabulary.indices(frame["item"])
    for name, found in (("user", users), ("item", items)):
        if len(unknown := np.flatnonzero(found < 0)):
            raise CandidateError(
                f"{place}: {name} {frame[name][int(unknown[0])]!r} in row {unknown[0] + 1:,} is "
                f"not in the store, and {len(unknown) - 1:,} more rows are like it"
            )
    keys, first = np.unique(users * store.catalogue_size + items, return_index=True)
    if len(keys) < len(frame):
        twice = int(np.setdiff1d(np.arange(len(frame)), first)[0])
        raise CandidateError(
            f"{place}: user {frame['user'][twice]!r} has item {frame['item'][twice]!r} twice "
            f"(row {twice + 1:,})"
        )
    begins = np.searchsorted(keys, questions.users * store.catalogue_size)
    ends = np.searchsorted(keys, (questions.users + 1) * store.catalogue_size)
    if len(empty := np.flatnonzero(ends == begins)):
        user = store.user_vocabulary.raw(questions.users[empty[:1]])[0]
        raise CandidateError(
            f"{place} has no candidates for user {user!r} and {len(empty) - 1:,} more questions"
        )
    lengths = ends - begins
    _, at = ragged(begins, lengths)
    return Candidates(
        offsets=np.concatenate([[0], np.cumsum(lengths)]),
        items=(keys % store.catalogue_size)[at].astype(np.int32),
        name=f"given{_digest(keys)}",
        in_words=f"the lists of {place} ranked, {lengths.mean():,.1f} items on average; an answer "
        "that is not in its list is a miss",
    )


def _digest(keys: np.ndarray) -> str:
    return hashlib.sha256(keys.tobytes()).hexdigest()[:6]
