"""How sure a number is: intervals by resampling users.

A user's rows hang together, so whole users are drawn: as many as there are, with replacement, and
all rows of a drawn user count as often as the user was drawn. Of `resamples` such draws the
percentiles of the metric are the ends of the interval (percentile bootstrap). Two models are
compared on the same draws.

Dimensions: N rows, U users, R resamples together, P clicked rows, M others, S runs of a model.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np

from recsys.evaluation.click_metrics import (
    checked,
    distinct_users,
    known,
    log_losses,
    user_aucs,
)

Metric = Literal["auc", "gauc", "logloss"]

_DRAWN_TOGETHER = 1 << 22  # users drawn at a time; bounds the memory


@dataclass(frozen=True)
class Interval:
    """A number and where it would lie had other users been asked.

    Attributes:
        estimate: the number on all rows.
        low: lower end of the interval.
        high: upper end of the interval.
    """

    estimate: float
    low: float
    high: float

    @property
    def excludes_zero(self) -> bool:
        """Whether a difference has one sign throughout."""
        return self.low > 0 or self.high < 0


def bootstrap_means(
    values_N: np.ndarray,
    users_N: np.ndarray,
    *,
    resamples: int = 1000,
    seed: int = 0,
    level: float = 0.95,
) -> Interval:
    """The mean of one value per question, with its interval.

    The difference of two models' means is the mean of the differences: give `a − b`.

    >>> bootstrap_means(np.array([1.0, 0.0, 1.0, 0.0]), np.array([7, 8, 9, 9]), seed=3)
    Interval(estimate=0.5, low=0.0, high=1.0)

    Args:
        values_N: one number per question.
        users_N: whose question it is; integers or text.
        resamples: draws of users.
        seed: of the draws. The same seed and users give the same draws for every metric.
        level: share of the draws that lie inside the interval.

    Raises:
        ValueError: no rows, a value that is not finite, unequal lengths, or settings that make no
            interval.
    """
    values_N = np.asarray(values_N, dtype=np.float64)
    if values_N.ndim != 1 or len(values_N) == 0:
        raise ValueError(f"one value per question is needed, not an array of {values_N.shape}")
    if not np.isfinite(values_N).all():
        first = int(np.flatnonzero(~np.isfinite(values_N))[0])
        raise ValueError(f"value {values_N[first]} in row {first:,} (rows count from 0)")
    users_U, user_N = distinct_users(users_N, len(values_N))
    U = len(users_U)
    sums_U = np.bincount(user_N, weights=values_N, minlength=U)
    return _interval(_ratio(sums_U, np.bincount(user_N, minlength=U)), U, resamples, seed, level)


def bootstrap_metric(
    labels_N: np.ndarray,
    users_N: np.ndarray,
    scores: np.ndarray,
    metric: Metric,
    *,
    resamples: int = 1000,
    seed: int = 0,
    level: float = 0.95,
) -> Interval:
    """AUC, GAUC (weighted by impressions) or logloss, with its interval.

    Args:
        labels_N: 0 or 1.
        users_N: integers or text.
        scores: [N], or [S, N] of several runs, whose mean metric is meant. Probabilities for
            logloss.
        metric: "auc", "gauc" or "logloss".
        resamples: draws of users.
        seed: of the draws. The same seed and users give the same draws for every metric.
        level: share of the draws that lie inside the interval. A draw in which the metric is not
            defined (one class only) is left out.

    Raises:
        ValueError: what the metric itself refuses, a metric of another name, a metric that is not
            defined on these rows, or settings that make no interval.
    """
    users_U, user_N = distinct_users(users_N, len(labels_N))
    value = _metric(labels_N, user_N, len(users_U), scores, metric)
    return _interval(value, len(users_U), resamples, seed, level)


def paired_bootstrap(
    labels_N: np.ndarray,
    users_N: np.ndarray,
    scores_a: np.ndarray,
    scores_b: np.ndarray,
    metric: Metric,
    *,
    resamples: int = 1000,
    seed: int = 0,
    level: float = 0.95,
) -> Interval:
    """The difference a − b of two models on the same rows and the same draws of users.

    Args:
        labels_N: 0 or 1.
        users_N: integers or text.
        scores_a: [N], or [S, N] of several runs (seeds), whose mean metric is meant.
        scores_b: the same of the other model; it may have another number of runs.
        metric: "auc", "gauc" (weighted by impressions) or "logloss" (of probabilities).
        resamples: draws of users.
        seed: of the draws. The same seed and users give the same draws for every metric.
        level: share of the draws that lie inside the interval. A draw in which the metric is not
            defined (one class only) is left out.

    Raises:
        ValueError: as `bootstrap_metric`.
    """
    users_U, user_N = distinct_users(users_N, len(labels_N))
    a, b = (_metric(labels_N, user_N, len(users_U), s, metric) for s in (scores_a, scores_b))

    def difference(weights_RU: np.ndarray) -> np.ndarray:
        return a(weights_RU) - b(weights_RU)

    return _interval(difference, len(users_U), resamples, seed, level)


# How often each user counts in each resample, [R, U] → the metric of each resample, [R].
_Weighted = Callable[[np.ndarray], np.ndarray]


def _interval(value: _Weighted, users: int, resamples: int, seed: int, level: float) -> Interval:
    if resamples < 2 or not 0 < level < 1:
        raise ValueError(
            f"an interval takes at least 2 resamples and a level between 0 and 1, not {resamples} "
            f"and {level}"
        )
    estimate = float(value(np.ones((1, users)))[0])
    if np.isnan(estimate):
        raise ValueError(
            "the metric is not defined on these rows: there is no row that was clicked beside one "
            "that was not (for GAUC: of the same user)"
        )
    drawn = np.concatenate([value(weights) for weights in _user_weights(users, resamples, seed)])
    low, high = np.nanquantile(drawn, [(1 - level) / 2, (1 + level) / 2])
    return Interval(estimate, float(low), float(high))


def _user_weights(users: int, resamples: int, seed: int) -> Iterator[np.ndarray]:
    """How often each user was drawn: float64 [R, U], in pieces that fit into memory."""
    draw = np.random.Generator(np.random.PCG64(seed))
    together = max(1, _DRAWN_TOGETHER // users)
    for begin in range(0, resamples, together):
        R = min(together, resamples - begin)
        drawn_RU = draw.integers(users, size=(R, users)) + users * np.arange(R)[:, None]
        counts = np.bincount(drawn_RU.ravel(), minlength=R * users)
        yield counts.reshape(R, users).astype(np.float64)


def _metric(
    labels_N: np.ndarray, user_N: np.ndarray, users: int, scores: np.ndarray, metric: Metric
) -> _Weighted:
    """The metric under weights of users, its mean over the runs if there are several."""
    runs_SN = np.atleast_2d(np.asarray(scores, dtype=np.float64))
    made = {"auc": _auc, "gauc": _gauc, "logloss": _logloss}[
        known("metric", metric, get_args(Metric))
    ]
    runs = [made(labels_N, user_N, users, run_N) for run_N in runs_SN]
    if len(runs) == 1:
        return runs[0]
    return lambda weights_RU: np.mean([run(weights_RU) for run in runs], axis=0)


def _ratio(sums_U: np.ndarray, counts_U: np.ndarray) -> _Weighted:
    """A mean: the drawn users' sums over the drawn users' counts."""
    both_U2 = np.column_stack([sums_U, counts_U]).astype(np.float64)

    def mean(weights_RU: np.ndarray) -> np.ndarray:
        sums_R, counts_R = (weights_RU @ both_U2).T
        return np.where(counts_R > 0, sums_R / np.where(counts_R > 0, counts_R, 1), np.nan)

    return mean


def _logloss(
    labels_N: np.ndarray, user_N: np.ndarray, users: int, scores_N: np.ndarray
) -> _Weighted:
    sums_U = np.bincount(user_N, weights=log_losses(labels_N, scores_N), minlength=users)
    return _ratio(sums_U, np.bincount(user_N, minlength=users))


def _gauc(labels_N: np.ndarray, user_N: np.ndarray, users: int, scores_N: np.ndarray) -> _Weighted:
    """Drawing a user twice leaves its own AUC as it is and counts it twice."""
    found = user_aucs(labels_N, scores_N, user_N)
    weights_U = found.weights("impressions")
    return _ratio(weights_U * np.where(found.counted_U, found.aucs_U, 0), weights_U)


def _auc(labels_N: np.ndarray, user_N: np.ndarray, users: int, scores_N: np.ndarray) -> _Weighted:
    """Sorted once; a resample then costs a sum over the clicked rows of what stands below them."""
    clicked_N, scores_N = checked(labels_N, scores_N)
    clicked, others = (rows[np.argsort(scores_N[rows])] for rows in _classes(clicked_N))
    below_P = np.searchsorted(scores_N[others], scores_N[clicked], side="left")
    not_above_P = np.searchsorted(scores_N[others], scores_N[clicked], side="right")
    user_P, user_M = user_N[clicked], user_N[others]
    tied = not np.array_equal(below_P, not_above_P)

    def one(weights_U: np.ndarray) -> float:
        weights_P = weights_U[user_P]
        weight_of_lowest = np.zeros(len(user_M) + 1)  # of the m lowest others, m = 0..M
        np.cumsum(weights_U[user_M], out=weight_of_lowest[1:])
        in_order = np.dot(weights_P, weight_of_lowest[below_P])
        if tied:
            in_order = (in_order + np.dot(weights_P, weight_of_lowest[not_above_P])) / 2
        pairs = weights_P.sum() * weight_of_lowest[-1]
        return in_order / pairs if pairs else np.nan

    return lambda weights_RU: np.array([one(weights_U) for weights_U in weights_RU])


def _classes(clicked_N: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return np.flatnonzero(clicked_N), np.flatnonzero(~clicked_N)
