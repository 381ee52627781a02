"""Splits of an impression log: what was shown and clicked or not, apart from the histories.

Requests are never torn apart: a request belongs to one stage with all its candidates, and all of
them are asked at the time of its first one, with what came before that. Where the log has no
requests, a user's candidates of one moment are one.
"""

from __future__ import annotations

import numpy as np

from recsys.histories.clicks import (
    ClickQuestions,
    ClickSplit,
    HistoryView,
    ViewKind,
    check_classes,
    history_view,
)
from recsys.histories.impressions import Impressions
from recsys.histories.questions import REFITTED, SplitError, day_of, moment_of_cut
from recsys.histories.store import HistoryStore

_TRAINING, _VALIDATION, _TEST = 0, 1, 2


def impressions_by_time(
    store: HistoryStore,
    *,
    history: ViewKind,
    validation_cut: float | str,
    test_cut: float | str,
    refit: bool = False,
) -> ClickSplit:
    """Two moments cut the requests: training before the first, validation up to the second.

    A history is the user's events strictly before the request's first row, those after a cut among
    them: they had happened when its candidates were shown.

    Args:
        store: histories and impressions.
        history: which events make the histories, see `HistoryView`.
        validation_cut: a share of the candidates in time order, such as 0.8, or a moment (ISO
            8601). The cut stands before the first candidate at it: equal times stay together.
        test_cut: the same, later.
        refit: validation belongs to training.

    Raises:
        SplitError: the store has no impressions, a cut is out of range or leaves a stage empty, or
            training has one class only.
    """
    shown = _impressions(store)
    first = moment_of_cut(shown.times, validation_cut, "split.validation_cut")
    second = moment_of_cut(shown.times, test_cut, "split.test_cut")
    if not first < second:
        raise SplitError(
            f"split.validation_cut={validation_cut} ({day_of(first)}) must be earlier than "
            f"split.test_cut={test_cut} ({day_of(second)})"
        )
    request_N, first_rows_R = shown.by_request()
    times_R = shown.times[first_rows_R]
    stage_R = (times_R >= first).astype(np.int64) + (times_R >= second)
    return _split(
        store,
        history,
        "time-impressions",
        stage_R,
        request_N,
        first_rows_R,
        f"what was shown from {day_of(second)} on; trained on what was before {day_of(first)}",
        refit,
    )


def impressions_by_user(
    store: HistoryStore, *, history: ViewKind, share: float | None, refit: bool = False
) -> ClickSplit:
    """The newest requests of each user are the test, the same number before them validation.

    A user with n requests has k = max(1, ⌈n · share⌉) of each. Users of whom training would keep
    nothing (n ≤ 2k) only train.

    Args:
        store: histories and impressions.
        history: which events make the histories, see `HistoryView`.
        share: of each user's requests; more than 0, less than ½. None takes one (leave-one-out).
        refit: validation belongs to training.

    Raises:
        SplitError: the store has no impressions, the share is out of range, nobody has three
            requests, or training has one class only.
    """
    if share is not None and not 0 < share < 0.5:
        raise SplitError(f"split.share must be more than 0 and less than 0.5, not {share}")
    shown = _impressions(store)
    request_N, first_rows_R = shown.by_request()
    users_R = shown.users[first_rows_R]
    counts_U = np.bincount(users_R, minlength=store.users)
    asked_U = np.maximum(1, np.ceil(counts_U * (share or 0) - 1e-9)).astype(np.int64)
    # Requests stand by user and time, so a place counted from the user's newest one is the age.
    age_R = np.cumsum(counts_U)[users_R] - 1 - np.arange(len(users_R))
    k_R = asked_U[users_R]
    stage_R = np.where(age_R < k_R, _TEST, np.where(age_R < 2 * k_R, _VALIDATION, _TRAINING))
    stage_R[counts_U[users_R] <= 2 * k_R] = _TRAINING
    name = "loo" if share is None else "share"
    newest = "each user's newest request" if share is None else f"each user's newest {share:g}"
    in_words = f"{newest} of what was shown"
    protocol = f"{name}-impressions"
    return _split(store, history, protocol, stage_R, request_N, first_rows_R, in_words, refit)


def _impressions(store: HistoryStore) -> Impressions:
    if store.impressions is None or len(store.impressions) == 0:
        raise SplitError("the store holds no impressions: name their log in data.impressions")
    return store.impressions


def _split(
    store: HistoryStore,
    history: ViewKind,
    protocol: str,
    stage_R: np.ndarray,
    request_N: np.ndarray,
    first_rows_R: np.ndarray,
    in_words: str,
    refit: bool,
) -> ClickSplit:
    shown = _impressions(store)
    view = history_view(store, history)
    if refit:
        stage_R = np.where(stage_R == _VALIDATION, _TRAINING, stage_R)
        in_words = f"{in_words}; {REFITTED}"
    stage_N = stage_R[request_N]
    counts = {"users": len(np.unique(shown.users)), "requests": len(stage_R)}
    stages: dict[str, ClickQuestions] = {}
    for number, name in enumerate(("training", "validation", "test")):
        rows = np.flatnonzero(stage_N == number)
        if len(rows) == 0 and not (refit and number == _VALIDATION):
            raise SplitError(
                f"no impression is left for {name}: {len(shown):,} candidates in "
                f"{len(stage_R):,} requests of {counts['users']:,} users, from "
                f"{day_of(shown.times.min())} to {day_of(shown.times.max())}"
            )
        stages[name] = _questions(view, shown, rows, request_N[rows], first_rows_R)
        counts[f"{name}_requests"] = int(np.count_nonzero(stage_R == number))
        counts[f"{name}_candidates"] = len(rows)
        counts[f"{name}_positives"] = int(np.count_nonzero(stages[name].labels))
        counts[f"{name}_without_history"] = int(np.count_nonzero(stages[name].history_ends == 0))
    check_classes(stages["training"], "data.impressions.columns.label")
    return ClickSplit(
        protocol=f"{protocol}-{history}",
        training=stages["training"],
        validation=stages["validation"],
        test=stages["test"],
        view=view,
        counts=counts,
        in_words=f"{in_words}; history: {view.in_words}",
    )


def _questions(
    view: HistoryView,
    shown: Impressions,
    rows: np.ndarray,
    requests: np.ndarray,
    first_rows_R: np.ndarray,
) -> ClickQuestions:
    """The candidates at the given rows, each as its request's first row finds the user."""
    users = np.asarray(shown.users[rows])
    asked = first_rows_R[requests]
    return ClickQuestions(
        users=users,
        history_ends=view.ends(users, np.asarray(shown.history_ends[asked])),
        candidates=shown.items[rows].astype(np.int64),
        labels=shown.labels[rows].astype(np.float32),
        requests=requests,
        rows=rows,
        times=np.asarray(shown.times[asked]),
    )
