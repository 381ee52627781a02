"""Metrics of click models: how well scores order clicked before not clicked, and how true they are.

What orders (AUC, GAUC, NDCG, MRR) reads the order of the scores only; what calibrates (logloss,
normalised entropy, calibration error) reads them as probabilities. A metric that is not defined on
the rows it is given (AUC of one class, say) is NaN, never a guess. AUC, logloss and NDCG equal
those of scikit-learn.

Dimensions: N rows, one candidate shown to one user each; U distinct users; P rows clicked.
"""

from __future__ import annotations

from dataclasses import dataclass
from difflib import get_close_matches
from functools import cached_property
from typing import Literal, get_args

import numpy as np
from scipy.special import expit

from recsys.evaluation.metrics import RankedAnswers

Weighting = Literal["impressions", "clicks", "users"]
Binning = Literal["equal_width", "equal_mass"]

EPSILON = np.finfo(np.float64).eps  # probabilities are kept this far from 0 and 1 in a logarithm

# Of the docstrings: seven rows of three users. Of u0's four pairs of a clicked and another row, two
# are in order, one is tied and one is not; u1's only pair is in order; u2 clicked all it saw.
LABELS = np.array([1, 0, 1, 0, 1, 0, 1])
PROBABILITIES = np.array([0.8, 0.3, 0.3, 0.5, 0.4, 0.2, 0.6])
USERS = np.array([0, 0, 0, 0, 1, 1, 2])


def probabilities(logits_N: np.ndarray) -> np.ndarray:
    """1 / (1 + e^−logit) in float64, where neighbouring float32 logits below 16 stay apart.

    >>> probabilities(np.array([0.0, 2.0], dtype=np.float32)).round(4).tolist()
    [0.5, 0.8808]
    """
    return expit(np.asarray(logits_N, dtype=np.float64))


def auc(labels_N: np.ndarray, scores_N: np.ndarray) -> float:
    """AUC: share of the pairs (clicked, not clicked) that are scored in this order, ties half.

    >>> auc(LABELS, PROBABILITIES)  # of 4 · 3 pairs 9 are in order and one is tied
    0.7916666666666666

    Args:
        labels_N: 0 or 1.
        scores_N: any numbers, infinite ones too.

    Returns:
        .5 for constant scores; NaN where all rows are of one class.

    Raises:
        ValueError: no rows, a label that is neither 0 nor 1, or a NaN score.
    """
    clicked_N, scores_N = checked(labels_N, scores_N)
    order = np.argsort(scores_N)
    doubled_ranks_N = _doubled_mean_ranks(_starts(scores_N[order]), len(order))
    P = int(clicked_N.sum())
    doubled_in_order = int(doubled_ranks_N[clicked_N[order]].sum()) - P * (P + 1)
    pairs = P * (len(clicked_N) - P)
    return doubled_in_order / (2 * pairs) if pairs else float("nan")


@dataclass(frozen=True)
class UserAucs:
    """The AUC of each user's own rows.

    Attributes:
        users_U: the distinct users, ascending.
        aucs_U: float64; NaN where all of a user's rows are of one class.
        impressions_U: int64, rows of each user.
        clicks_U: int64, clicked rows of each user.
    """

    users_U: np.ndarray
    aucs_U: np.ndarray
    impressions_U: np.ndarray
    clicks_U: np.ndarray

    @cached_property
    def counted_U(self) -> np.ndarray:
        """True where a user has rows of both classes, and so an AUC."""
        return (self.clicks_U > 0) & (self.clicks_U < self.impressions_U)

    def weights(self, weighting: Weighting) -> np.ndarray:
        """float64 [U]: what each user counts in the mean; 0 for those that have no AUC.

        Raises:
            ValueError: a weighting of another name.
        """
        weights_U = {
            "impressions": self.impressions_U,
            "clicks": self.clicks_U,
            "users": np.ones(len(self.users_U)),
        }[known("weighting", weighting, get_args(Weighting))]
        return np.where(self.counted_U, weights_U, 0).astype(np.float64)

    def mean(self, weighting: Weighting = "impressions") -> float:
        """GAUC: the weighted mean over the users that have an AUC; NaN where nobody has."""
        weights_U = self.weights(weighting)
        total = weights_U.sum()
        summed = np.dot(weights_U, np.where(self.counted_U, self.aucs_U, 0))
        return float(summed / total) if total else float("nan")


def user_aucs(labels_N: np.ndarray, scores_N: np.ndarray, users_N: np.ndarray) -> UserAucs:
    """The AUC of each user's own rows; GAUC is a weighted mean of them.

    >>> user_aucs(LABELS, PROBABILITIES, USERS).aucs_U.tolist()
    [0.625, 1.0, nan]

    Args:
        labels_N: 0 or 1.
        scores_N: any numbers, infinite ones too.
        users_N: integers or text.

    Raises:
        ValueError: no rows, a label that is neither 0 nor 1, or a NaN score.
    """
    clicked_N, scores_N = checked(labels_N, scores_N)
    users_U, user_N = distinct_users(users_N, len(clicked_N))
    order = np.argsort(scores_N)
    order = order[np.argsort(user_N[order], kind="stable")]
    clicked_N, user_N = clicked_N[order], user_N[order]
    ranks_N = _doubled_mean_ranks(_starts(user_N, scores_N[order]), len(order))  # over all users
    impressions_U = np.bincount(user_N, minlength=len(users_U))
    clicks_U = np.bincount(user_N[clicked_N], minlength=len(users_U))
    before_U = np.cumsum(impressions_U) - impressions_U
    ranks_P = ranks_N[clicked_N] - 2 * before_U[user_N[clicked_N]]
    ranks_U = np.zeros(len(users_U), dtype=np.int64)
    np.add.at(ranks_U, user_N[clicked_N], ranks_P)
    doubled_in_order_U = ranks_U - clicks_U * (clicks_U + 1)
    pairs_U = clicks_U * (impressions_U - clicks_U)
    aucs_U = np.full(len(users_U), np.nan)
    np.divide(doubled_in_order_U, 2 * pairs_U, out=aucs_U, where=pairs_U > 0)
    return UserAucs(users_U, aucs_U, impressions_U, clicks_U)


def gauc(
    labels_N: np.ndarray,
    scores_N: np.ndarray,
    users_N: np.ndarray,
    weighting: Weighting = "impressions",
) -> float:
    """GAUC: the mean AUC of the users with both classes, each weighted by its impressions.

    Σ_u w_u · AUC_u / Σ_u w_u, where w_u is the number of u's rows ("impressions"), of its clicked
    rows ("clicks") or 1 ("users"). Users whose rows are all of one class are left out; how many
    those are says `user_aucs`.

    It misjudges a model whose scores hold the answers to the user's other questions, as a history
    of labelled events does where questions follow each other: of two questions with unlike answers
    the later one has seen the earlier one's, which is the wrong one. The running mean of fair coin
    tosses gets .37 and not .5 (a test shows it).

    >>> gauc(LABELS, PROBABILITIES, USERS)  # (4 · .625 + 2 · 1) / 6
    0.75
    >>> gauc(LABELS, PROBABILITIES, USERS, "users")  # (.625 + 1) / 2
    0.8125

    Args:
        labels_N: 0 or 1.
        scores_N: any numbers, infinite ones too.
        users_N: integers or text.
        weighting: what a user counts.

    Returns:
        NaN where no user has rows of both classes.

    Raises:
        ValueError: no rows, a label that is neither 0 nor 1, a NaN score, or a weighting of
            another name.
    """
    return user_aucs(labels_N, scores_N, users_N).mean(weighting)


def log_losses(labels_N: np.ndarray, probabilities_N: np.ndarray) -> np.ndarray:
    """−ln of the probability given to what happened, row by row.

    Probabilities are first kept within [ε, 1 − ε] with ε = 2.2e−16, as in scikit-learn.

    >>> log_losses(np.array([1, 0, 1]), np.array([0.5, 0.2, 0.0])).round(4).tolist()
    [0.6931, 0.2231, 36.0437]

    Args:
        labels_N: 0 or 1.
        probabilities_N: of a click, in [0, 1].

    Returns:
        float64 [N], in nats.

    Raises:
        ValueError: no rows, a label that is neither 0 nor 1, or a score outside [0, 1].
    """
    clicked_N, probabilities_N = checked_probabilities(labels_N, probabilities_N)
    probabilities_N = np.clip(probabilities_N, EPSILON, 1 - EPSILON)
    return -np.where(clicked_N, np.log(probabilities_N), np.log1p(-probabilities_N))


def logloss(labels_N: np.ndarray, probabilities_N: np.ndarray) -> float:
    """Logloss: the mean of `log_losses`, in nats; less is better.

    >>> round(logloss(LABELS, PROBABILITIES), 4)
    0.5896
    """
    return float(log_losses(labels_N, probabilities_N).mean())


def normalised_entropy(labels_N: np.ndarray, probabilities_N: np.ndarray) -> float:
    """NE: logloss divided by that of answering each row with the share of clicked rows.

    He et al., Practical lessons from predicting clicks on ads at Facebook, ADKDD 2014. Below 1 a
    model knows more than the click rate p of these rows, whose entropy −p ln p − (1 − p) ln(1 − p)
    stands below the line.

    >>> round(normalised_entropy(LABELS, PROBABILITIES), 4)  # .5896 / .6829
    0.8634

    Returns:
        NaN where all rows are of one class.

    Raises:
        ValueError: as `log_losses`.
    """
    loss = logloss(labels_N, probabilities_N)
    entropy = binary_entropy(float(np.mean(labels_N)))
    return loss / entropy if entropy else float("nan")


def binary_entropy(rate: float) -> float:
    """−p ln p − (1 − p) ln(1 − p) in nats; 0 at p = 0 and p = 1.

    >>> round(binary_entropy(0.5), 4)
    0.6931
    """
    return float(-sum(p * np.log(p) for p in (rate, 1 - rate) if p > 0))


def calibration_error(
    labels_N: np.ndarray,
    probabilities_N: np.ndarray,
    bins: int = 15,
    binning: Binning = "equal_width",
) -> float:
    """ECE: mean distance of what was said from what happened, over bins of similar probabilities.

    Σ_b (rows in b / N) · |share of clicked rows in b − mean probability in b|. Bin b of
    "equal_width" holds the probabilities in [b / bins, (b + 1) / bins), the last one 1 too. Of
    "equal_mass" it holds the rows whose share of rows with a smaller probability is in that range:
    as many rows in each, except that equal probabilities are never torn apart.

    >>> calibration_error(LABELS, PROBABILITIES, bins=1)  # |4/7 − 3.1/7|
    0.12857142857142856
    >>> round(calibration_error(LABELS, PROBABILITIES, bins=4), 4)  # (.2 + 1 + .1 + .2) / 7
    0.2143
    >>> # (.2 + .6 + .1 + .2) / 7
    >>> round(calibration_error(LABELS, PROBABILITIES, 4, "equal_mass"), 4)
    0.1571

    Args:
        labels_N: 0 or 1.
        probabilities_N: of a click, in [0, 1].
        bins: how many.
        binning: by which rule.

    Raises:
        ValueError: no rows, a label that is neither 0 nor 1, a score outside [0, 1], fewer than
            one bin, or a binning of another name.
    """
    clicked_N, probabilities_N = checked_probabilities(labels_N, probabilities_N)
    if bins < 1:
        raise ValueError(f"bins must be at least 1, not {bins}")
    N = len(clicked_N)
    surplus_N = clicked_N - probabilities_N
    if known("binning", binning, get_args(Binning)) == "equal_width":
        bin_N = np.minimum((probabilities_N * bins).astype(np.int64), bins - 1)
    else:
        order = np.argsort(probabilities_N)
        surplus_N = surplus_N[order]
        starts = _starts(probabilities_N[order])
        smaller_N = np.repeat(starts, np.diff(np.append(starts, N)))
        bin_N = smaller_N * bins // N
    return float(np.abs(np.bincount(bin_N, weights=surplus_N)).sum() / N)


def request_ranks(
    labels_N: np.ndarray, scores_N: np.ndarray, requests_N: np.ndarray
) -> RankedAnswers:
    """Where the clicked rows of each request stand among its rows, best score first.

    Among equal scores the clicked rows stand last. Requests without a click have no answers and
    are left out; those in which every row was clicked count (all their metrics are 1).
    `recsys.evaluation.metrics.ndcg` and its neighbours turn the ranks into one value a request.

    >>> request_ranks(LABELS, PROBABILITIES, USERS).ranks.tolist()  # as if a user were a request
    [1, 4, 1, 1]

    Args:
        labels_N: 0 or 1.
        scores_N: any numbers, infinite ones too.
        requests_N: int64; rows below 0 belong to no request and take no part.

    Returns:
        The ranks; their questions are the requests with a click, in ascending order.

    Raises:
        ValueError: no rows, a label that is neither 0 nor 1, or a NaN score.
    """
    clicked_N, scores_N = checked(labels_N, scores_N)
    requests_N = np.asarray(requests_N)
    if len(requests_N) != len(clicked_N):
        raise ValueError(f"{len(requests_N)} requests for {len(clicked_N)} labels")
    rows = np.flatnonzero(requests_N >= 0)
    order = rows[np.lexsort((clicked_N[rows], -scores_N[rows], requests_N[rows]))]
    ranked_N = requests_N[order]
    starts = _starts(ranked_N)
    sizes = np.diff(np.append(starts, len(order)))
    rank_N = 1 + np.arange(len(order)) - np.repeat(starts, sizes)
    clicked_N = clicked_N[order]
    asked, question_P = np.unique(ranked_N[clicked_N], return_inverse=True)
    return RankedAnswers(rank_N[clicked_N], question_P, len(asked))


def distinct_users(users_N: np.ndarray, rows: int) -> tuple[np.ndarray, np.ndarray]:
    """The distinct users in ascending order, and each row's position among them.

    Raises:
        ValueError: not one user per row.
    """
    users_N = np.asarray(users_N)
    if users_N.shape != (rows,):
        raise ValueError(f"users of shape {users_N.shape} for {rows} labels")
    users_U, user_N = np.unique(users_N, return_inverse=True)
    return users_U, user_N


def checked(labels_N: np.ndarray, scores_N: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Labels as booleans and scores as float64, after a look at both.

    Raises:
        ValueError: no rows, unequal lengths, a label that is neither 0 nor 1, or a NaN score.
    """
    labels_N, scores_N = np.asarray(labels_N), np.asarray(scores_N, dtype=np.float64)
    if labels_N.ndim != 1 or labels_N.shape != scores_N.shape:
        raise ValueError(
            f"labels of shape {labels_N.shape} and scores of shape {scores_N.shape}; "
            "both must be one number a row"
        )
    if len(labels_N) == 0:
        raise ValueError("there are no rows to judge")
    clicked_N = labels_N == 1
    wrong = np.flatnonzero(~(clicked_N | (labels_N == 0)))
    if len(wrong):
        raise ValueError(
            f"a label must be 0 or 1; {len(wrong):,} are not, the first is {labels_N[wrong[0]]} "
            f"in row {wrong[0]:,} (rows count from 0)"
        )
    missing = np.flatnonzero(np.isnan(scores_N))
    if len(missing):
        raise ValueError(
            f"{len(missing):,} of {len(scores_N):,} scores are NaN, the first in row "
            f"{missing[0]:,} (rows count from 0)"
        )
    return clicked_N, scores_N


def checked_probabilities(
    labels_N: np.ndarray, probabilities_N: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """As `checked`, and every score must be a probability.

    Raises:
        ValueError: as `checked`, or a score outside [0, 1].
    """
    clicked_N, probabilities_N = checked(labels_N, probabilities_N)
    outside = np.flatnonzero((probabilities_N < 0) | (probabilities_N > 1))
    if len(outside):
        raise ValueError(
            f"a probability must lie in [0, 1]; {len(outside):,} do not, the first is "
            f"{probabilities_N[outside[0]]} in row {outside[0]:,} (rows count from 0); "
            "are these logits? click_metrics.probabilities turns them into probabilities"
        )
    return clicked_N, probabilities_N


def known(what: str, name: str, names: tuple[str, ...]) -> str:
    """The name, if it is one of the names.

    Raises:
        ValueError: it is not; the message names the nearest.
    """
    if name in names:
        return name
    near = get_close_matches(str(name), names, n=1)
    meant = f"; did you mean {near[0]!r}?" if near else ""
    raise ValueError(f"{what} must be one of {', '.join(names)}, not {name!r}{meant}")


def _starts(*sorted_keys: np.ndarray) -> np.ndarray:
    """Where runs of rows with equal keys begin."""
    begins_N = np.ones(len(sorted_keys[0]), dtype=bool)
    begins_N[1:] = np.any([key_N[1:] != key_N[:-1] for key_N in sorted_keys], axis=0)
    return np.flatnonzero(begins_N)


def _doubled_mean_ranks(starts: np.ndarray, N: int) -> np.ndarray:
    """Twice the mean rank (from 1) of each of N sorted rows, those of one run sharing theirs.

    Doubled, they are whole numbers, and sums of them exact.
    """
    ends = np.append(starts[1:], N)
    return np.repeat(starts + ends + 1, ends - starts)
