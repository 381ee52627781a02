"""How sure a number is: intervals by resampling users.

A user's rows hang together, so whole users are drawn: as many as there are, with replacement, and
all rows of a drawn user count as often as the user was drawn. Of `resamples` such draws the
percentiles of the metric are the ends of the interval (percentile bootstrap). Two models are
compared on the same draws.

Some numbers are no means: how much of the catalogue all lists show, how unevenly, how far
probabilities are off in bins. Drawing users twice moves them (fewer different lists show fewer
items), so their intervals come from leaving out groups of users in turn (`jackknife`).

Dimensions: N rows, U users, R resamples together, P clicked rows, M others, S runs of a model,
G groups of users.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Literal, get_args

import numpy as np
from scipy.special import stdtrit

from recsys.evaluation.click_metrics import (
    Weighting,
    checked,
    distinct_users,
    known,
    log_losses,
    user_aucs,
)

Metric = Literal["auc", "gauc", "logloss"]

# Of more users, groups drawn by chance are resampled in place of single ones: the interval is the
# same but for its own chance, and costs no more with a million users than with these.
MOST_DRAWN = 50_000
_DRAWN_TOGETHER = 1 << 22  # users drawn at a time; bounds the memory
GROUPS = 50  # of users, left out in turn


@dataclass(frozen=True)
class Interval:
    """A number and where it would lie had other users been asked.

    Attributes:
        estimate: the number on all rows.
        low: lower end of the interval.
        high: upper end of the interval.
        p_value: of a difference: how likely draws of users are to turn its sign, twice the smaller
            share of the draws at or beyond zero on either side. Of a number that is no difference
            it means nothing.
    """

    estimate: float
    low: float
    high: float
    p_value: float = field(default=float("nan"), repr=False, compare=False)

    @property
    def excludes_zero(self) -> bool:
        """Whether a difference has one sign throughout."""
        return self.low > 0 or self.high < 0


@dataclass(frozen=True)
class Drawn:
    """A number, and what it becomes when users are drawn anew.

    Attributes:
        estimate: the number on all rows; NaN where it is not defined.
        draws_R: of each draw in which it is defined, in ascending order.
    """

    estimate: float
    draws_R: np.ndarray


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
    if values_N.ndim != 1:
        raise ValueError(f"one value per question is needed, not an array of {values_N.shape}")
    return bootstrap_columns(
        values_N[:, None], users_N, resamples=resamples, seed=seed, level=level
    )[0]


def bootstrap_columns(
    values_NM: np.ndarray,
    users_N: np.ndarray,
    *,
    resamples: int = 1000,
    seed: int = 0,
    level: float = 0.95,
) -> list[Interval]:
    """The means of several values per question, all on the same draws: M intervals.

    What `bootstrap_means` gives for each column alone, for little more than the price of one: the
    draws are made once, and each resample of all columns is one matrix product. Of more than
    `MOST_DRAWN` users, groups of users made by chance are drawn.

    Args:
        values_NM: M numbers per question.
        users_N: whose question it is; integers or text.
        resamples: draws of users.
        seed: of the draws.
        level: share of the draws that lie inside the interval.

    Raises:
        ValueError: as `bootstrap_means`.
    """
    values_NM = np.asarray(values_NM, dtype=np.float64)
    if values_NM.ndim != 2 or values_NM.size == 0:
        raise ValueError(f"one value per question is needed, not an array of {values_NM.shape}")
    _check_finite(values_NM)
    users_U, user_N = distinct_users(users_N, len(values_NM))
    sums_UM = np.column_stack([_by_user(user_N, len(users_U), column) for column in values_NM.T])
    counts_U1 = np.bincount(user_N, minlength=len(users_U))[:, None]
    return _of_ratios(sums_UM, counts_U1, resamples, seed, level)


def bootstrap_parts(
    values_N: np.ndarray,
    parts_NM: np.ndarray,
    users_N: np.ndarray,
    *,
    resamples: int = 1000,
    seed: int = 0,
    level: float = 0.95,
) -> list[Interval]:
    """The means of parts of the questions, all on the same draws: M intervals.

    A draw in which nobody of a part was drawn says nothing about this part.

    Args:
        values_N: one number per question.
        parts_NM: bool, which questions are in each part; none of them is empty.
        users_N: whose question it is; integers or text.
        resamples: draws of users.
        seed: of the draws.
        level: share of the draws that lie inside the interval.

    Raises:
        ValueError: as `bootstrap_means`, or a part is empty.
    """
    sums_UM, counts_UM = _sums_of_parts(values_N, parts_NM, users_N)
    return _of_ratios(sums_UM, counts_UM, resamples, seed, level)


def drawn_parts(
    values_N: np.ndarray,
    parts_NM: np.ndarray,
    users_N: np.ndarray,
    *,
    resamples: int = 1000,
    seed: int = 0,
) -> list[Drawn]:
    """As `bootstrap_parts`, the draws themselves: M of them.

    Raises:
        ValueError: as `bootstrap_parts`.
    """
    sums_UM, counts_UM = _sums_of_parts(values_N, parts_NM, users_N)
    means, users = _ratios(sums_UM, counts_UM, seed)
    return _as_drawn(*_drawn(means, users, resamples, seed))


def _sums_of_parts(
    values_N: np.ndarray, parts_NM: np.ndarray, users_N: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Each user's sum and number of questions in each part, both [U, M]."""
    values_N = np.asarray(values_N, dtype=np.float64)
    _check_finite(values_N[:, None])
    if not parts_NM.any(axis=0).all():
        raise ValueError("a part without questions has no mean")
    users_U, user_N = distinct_users(users_N, len(values_N))
    U = len(users_U)
    sums_UM = np.column_stack([_by_user(user_N, U, values_N * part) for part in parts_NM.T])
    counts_UM = np.column_stack([_by_user(user_N, U, part) for part in parts_NM.T])
    return sums_UM, counts_UM


def bootstrap_gain(
    ours_N: np.ndarray,
    theirs_N: np.ndarray,
    users_N: np.ndarray,
    *,
    resamples: int = 1000,
    seed: int = 0,
    level: float = 0.95,
) -> Interval | None:
    """How much larger one mean is than another, as a share of the other: a / b − 1.

    Both means come from the same draws, so that what is uncertain about b counts too.

    >>> gain = bootstrap_gain(np.array([1.0, 0.5]), np.array([0.5, 0.25]), np.array([1, 2]))
    >>> gain
    Interval(estimate=1.0, low=1.0, high=1.0)

    Args:
        ours_N: one number ≥ 0 per question.
        theirs_N: the same of the other.
        users_N: whose question it is; integers or text.
        resamples: draws of users; those in which the other's mean is 0 are left out.
        seed: of the draws.
        level: share of the draws that lie inside the interval.

    Returns:
        None where the other's mean is 0.
    """
    if not theirs_N.any():
        return None
    users_U, user_N = distinct_users(users_N, len(ours_N))
    sums_U1, others_U1 = (
        _by_user(user_N, len(users_U), values_N)[:, None] for values_N in (ours_N, theirs_N)
    )
    (found,) = _of_ratios(sums_U1, others_U1, resamples, seed, level)
    return Interval(found.estimate - 1, found.low - 1, found.high - 1)


def user_groups(users_N: np.ndarray, *, seed: int = 0) -> np.ndarray:
    """int64 [N]: the group of each row's user; at most `GROUPS`, made by chance, alike in size.

    Args:
        users_N: integers or text.
        seed: of the groups.

    Raises:
        ValueError: no rows.
    """
    users_U, user_N = distinct_users(users_N, len(users_N))
    draw = np.random.Generator(np.random.PCG64([seed, 0x7ACC]))
    group_U = draw.permutation(len(users_U)) % GROUPS
    groups: np.ndarray = group_U[user_N]
    return groups


def jackknife(
    estimate: float,
    without_G: np.ndarray,
    *,
    level: float = 0.95,
    least: float = 0.0,
    most: float = 1.0,
) -> Interval | None:
    """A number of all rows together, from what it is without each group of users.

    The delete-a-group jackknife: variance (G − 1) / G · Σ (θ_g − mean θ)², ends by Student's t of
    G − 1 degrees of freedom (Kott, J. Official Statistics 17, 2001).

    >>> jackknife(0.5, np.array([0.4, 0.5, 0.6]))  # .5 ± 4.303 · √(2/3 · .02)
    Interval(estimate=0.5, low=0.0031..., high=0.9968...)

    Args:
        estimate: on all rows.
        without_G: on the rows outside each of G groups, of `user_groups`; NaN where it is not
            defined there.
        level: how often the interval holds the number, had other users been asked.
        least: what the number cannot fall below.
        most: what it cannot exceed.

    Returns:
        None where there are no two groups, or a number is not defined.
    """
    G = len(without_G)
    if G < 2 or not np.isfinite([estimate, *without_G]).all():
        return None
    deviation = np.sqrt((G - 1) / G * ((without_G - without_G.mean()) ** 2).sum())
    half = float(stdtrit(G - 1, (1 + level) / 2) * deviation)
    return Interval(estimate, max(estimate - half, least), min(estimate + half, most))


def _by_user(user_N: np.ndarray, users: int, values_N: np.ndarray) -> np.ndarray:
    return np.bincount(user_N, weights=values_N, minlength=users)


def _check_finite(values_NM: np.ndarray) -> None:
    if not (finite := np.isfinite(values_NM)).all():
        row, column = np.argwhere(~finite)[0]
        raise ValueError(f"value {values_NM[row, column]} in row {row:,} (rows count from 0)")


def _of_ratios(
    sums_UM: np.ndarray, counts_UM: np.ndarray, resamples: int, seed: int, level: float
) -> list[Interval]:
    """Of the drawn users' sums over the drawn users' counts, one count for all or one for each."""
    means, users = _ratios(sums_UM, counts_UM, seed)
    return _intervals(means, users, resamples, seed, level)


def _ratios(sums_UM: np.ndarray, counts_UM: np.ndarray, seed: int) -> tuple[_Weighted, int]:
    """The means [R, M] under weights of users, or of groups of them, and how many there are."""
    M = sums_UM.shape[1]
    both_UC = np.column_stack([sums_UM, counts_UM]).astype(np.float64)
    if len(both_UC) > MOST_DRAWN:
        draw = np.random.Generator(np.random.PCG64([seed, 0x6A0B]))
        group_U = draw.permutation(len(both_UC)) % MOST_DRAWN
        both_UC = np.column_stack([_by_user(group_U, MOST_DRAWN, column) for column in both_UC.T])

    def means(weights_RU: np.ndarray) -> np.ndarray:
        sums_RC = weights_RU @ both_UC
        counts_RM = sums_RC[:, M:]
        means_RM: np.ndarray = np.where(
            counts_RM > 0, sums_RC[:, :M] / np.where(counts_RM > 0, counts_RM, 1), np.nan
        )
        return means_RM

    return means, len(both_UC)


def bootstrap_metric(
    labels_N: np.ndarray,
    users_N: np.ndarray,
    scores: np.ndarray,
    metric: Metric,
    *,
    weighting: Weighting = "impressions",
    resamples: int = 1000,
    seed: int = 0,
    level: float = 0.95,
) -> Interval:
    """AUC, GAUC or logloss, with its interval.

    Args:
        labels_N: 0 or 1.
        users_N: integers or text.
        scores: [N], or [S, N] of several runs, whose mean metric is meant. Probabilities for
            logloss.
        metric: "auc", "gauc" or "logloss".
        weighting: what a user counts in GAUC.
        resamples: draws of users.
        seed: of the draws. The same seed and users give the same draws for every metric.
        level: share of the draws that lie inside the interval. A draw in which the metric is not
            defined (one class only) is left out.

    Raises:
        ValueError: what the metric itself refuses, a metric of another name, a metric that is not
            defined on these rows, or settings that make no interval.
    """
    users_U, user_N = distinct_users(users_N, len(labels_N))
    value = _metric(labels_N, user_N, len(users_U), scores, metric, weighting)
    return _interval(value, len(users_U), resamples, seed, level)


def paired_bootstrap(
    labels_N: np.ndarray,
    users_N: np.ndarray,
    scores_a: np.ndarray,
    scores_b: np.ndarray,
    metric: Metric,
    *,
    weighting: Weighting = "impressions",
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
        metric: "auc", "gauc" or "logloss" (of probabilities).
        weighting: what a user counts in GAUC.
        resamples: draws of users.
        seed: of the draws. The same seed and users give the same draws for every metric.
        level: share of the draws that lie inside the interval. A draw in which the metric is not
            defined (one class only) is left out.

    Raises:
        ValueError: as `bootstrap_metric`.
    """
    difference, users = _difference(labels_N, users_N, scores_a, scores_b, metric, weighting)
    return _interval(difference, users, resamples, seed, level)


def drawn_difference(
    labels_N: np.ndarray,
    users_N: np.ndarray,
    scores_a: np.ndarray,
    scores_b: np.ndarray,
    metric: Metric,
    *,
    weighting: Weighting = "impressions",
    resamples: int = 1000,
    seed: int = 0,
) -> Drawn:
    """As `paired_bootstrap`, the draws themselves.

    Raises:
        ValueError: what the metric itself refuses.
    """
    difference, users = _difference(labels_N, users_N, scores_a, scores_b, metric, weighting)
    estimates_M, drawn_RM = _drawn(
        lambda weights_RU: difference(weights_RU)[:, None], users, resamples, seed
    )
    return _as_drawn(estimates_M, drawn_RM)[0]


def _difference(
    labels_N: np.ndarray,
    users_N: np.ndarray,
    scores_a: np.ndarray,
    scores_b: np.ndarray,
    metric: Metric,
    weighting: Weighting,
) -> tuple[_Weighted, int]:
    users_U, user_N = distinct_users(users_N, len(labels_N))
    a, b = (
        _metric(labels_N, user_N, len(users_U), scores, metric, weighting)
        for scores in (scores_a, scores_b)
    )
    return (lambda weights_RU: a(weights_RU) - b(weights_RU)), len(users_U)


# How often each user counts in each resample, [R, U] → the metric of each resample, [R] or [R, M].
_Weighted = Callable[[np.ndarray], np.ndarray]


def _interval(value: _Weighted, users: int, resamples: int, seed: int, level: float) -> Interval:
    def column(weights_RU: np.ndarray) -> np.ndarray:
        return value(weights_RU)[:, None]

    return _intervals(column, users, resamples, seed, level)[0]


def _intervals(
    values: _Weighted, users: int, resamples: int, seed: int, level: float
) -> list[Interval]:
    """Of `values`, which gives [R, M] for weights [R, U]."""
    if resamples < 2 or not 0 < level < 1:
        raise ValueError(
            f"an interval takes at least 2 resamples and a level between 0 and 1, not {resamples} "
            f"and {level}"
        )
    estimates_M, drawn_RM = _drawn(values, users, resamples, seed)
    if np.isnan(estimates_M).any():
        raise ValueError(
            "the metric is not defined on these rows: there is no row that was clicked beside one "
            "that was not (for GAUC: of the same user)"
        )
    ends_2M = np.nanquantile(drawn_RM, [(1 - level) / 2, (1 + level) / 2], axis=0)
    # The sample itself counts as a draw, so that no finite number of draws says "never".
    defined_M = (~np.isnan(drawn_RM)).sum(0) + 1
    fewer_M = np.minimum((drawn_RM <= 0).sum(0), (drawn_RM >= 0).sum(0)) + 1
    p_values_M = np.minimum(2 * fewer_M / defined_M, 1.0)
    return [
        Interval(*(float(number) for number in numbers))
        for numbers in zip(estimates_M, *ends_2M, p_values_M, strict=True)
    ]


def _drawn(
    values: _Weighted, users: int, resamples: int, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """On all rows [M], and of each draw [R, M]."""
    estimates_M = values(np.ones((1, users)))[0]
    drawn = [values(weights) for weights in _user_weights(users, resamples, seed)]
    return estimates_M, np.concatenate(drawn)


def _as_drawn(estimates_M: np.ndarray, drawn_RM: np.ndarray) -> list[Drawn]:
    return [
        Drawn(float(estimate), np.sort(draws_R[~np.isnan(draws_R)]))
        for estimate, draws_R in zip(estimates_M, drawn_RM.T, strict=True)
    ]


def _user_weights(users: int, resamples: int, seed: int) -> Iterator[np.ndarray]:
    """How often each user was drawn: float64 [R, U], in pieces that fit into memory."""
    for counts_RU in _draws(users, resamples, seed):
        yield counts_RU.astype(np.float64)


@lru_cache(maxsize=1)  # a report asks for the same draws many times
def _draws(users: int, resamples: int, seed: int) -> list[np.ndarray]:
    """The same as uint16 (at most `MOST_DRAWN` users are drawn from in a report: 100 MB)."""
    draw = np.random.Generator(np.random.PCG64(seed))
    together = max(1, _DRAWN_TOGETHER // users)
    pieces = []
    for begin in range(0, resamples, together):
        R = min(together, resamples - begin)
        drawn_RU = draw.integers(users, size=(R, users)) + users * np.arange(R)[:, None]
        counts = np.bincount(drawn_RU.ravel(), minlength=R * users)
        pieces.append(counts.reshape(R, users).astype(np.uint16))
    return pieces


def _metric(
    labels_N: np.ndarray,
    user_N: np.ndarray,
    users: int,
    scores: np.ndarray,
    metric: Metric,
    weighting: Weighting,
) -> _Weighted:
    """The metric under weights of users, its mean over the runs if there are several."""
    runs_SN = np.atleast_2d(np.asarray(scores, dtype=np.float64))
    known("metric", metric, get_args(Metric))

    def made(run_N: np.ndarray) -> _Weighted:
        if metric == "gauc":
            return _gauc(labels_N, user_N, users, run_N, weighting)
        return (_auc if metric == "auc" else _logloss)(labels_N, user_N, users, run_N)

    runs = [made(run_N) for run_N in runs_SN]
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


def _gauc(
    labels_N: np.ndarray, user_N: np.ndarray, users: int, scores_N: np.ndarray, weighting: Weighting
) -> _Weighted:
    """Drawing a user twice leaves its own AUC as it is and counts it twice."""
    found = user_aucs(labels_N, scores_N, user_N)
    weights_U = found.weights(weighting)
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
