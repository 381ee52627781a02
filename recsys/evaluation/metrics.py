"""Ranking metrics, one value per question; a mean is the caller's last step, never the first.

A metric reads the ranks of a question's answers and nothing else. With R answers to a question and
`hits` = those with rank in 1..K, the definitions are in the functions' docstrings. All of them lie
in [0, 1], are 1 (precision: min(R, K) / K, recall and MAP: min(R, K) / R) for a perfect ranking,
and equal those of `trec_eval` and `ranx` of the same name.

Dimensions: N questions, A answers of all questions together, K cut-off.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

_MISS = np.iinfo(np.int64).max  # sorts behind every rank


class MetricError(ValueError):
    """A metric of somebody's own that gives no number for each question."""


@dataclass(frozen=True)
class RankedAnswers:
    """Where the answers to N questions were ranked.

    Attributes:
        ranks: int64 [A], 1-based; 0 is a miss (filtered, unknown, or beyond the end of a list).
        question: int64 [A], the question each answer belongs to, 0..N-1, ascending.
        questions: N. Every question has at least one answer.

    Raises:
        ValueError: a negative rank, two answers of a question on one rank, a question without
            answer, or questions out of order.
    """

    ranks: np.ndarray
    question: np.ndarray
    questions: int

    def __post_init__(self) -> None:
        if len(self.ranks) != len(self.question):
            raise ValueError(f"{len(self.ranks)} ranks for {len(self.question)} answers")
        if len(self.ranks) and (self.ranks.min() < 0 or self.question.min() < 0):
            raise ValueError("ranks count from 1 (0 is a miss) and questions from 0")
        if np.any(np.diff(self.question) < 0):
            raise ValueError("answers must be grouped by question, in ascending order")
        if len(self.relevant) != self.questions or np.any(self.relevant == 0):
            raise ValueError(f"each of the {self.questions} questions needs at least one answer")
        ranks, question = self._by_rank
        if np.any((np.diff(question) == 0) & (np.diff(ranks) == 0) & (ranks[1:] != _MISS)):
            raise ValueError("two answers of one question have the same rank")

    @cached_property
    def relevant(self) -> np.ndarray:
        """int64 [N]: R, the number of answers of each question, whether found or not."""
        return np.bincount(self.question, minlength=self.questions)

    @cached_property
    def best(self) -> np.ndarray:
        """int64 [N]: rank of the first answer found, 0 where all were missed."""
        ranks, question = self._by_rank
        first = ranks[np.searchsorted(question, np.arange(self.questions))]
        return np.where(first == _MISS, 0, first)

    @cached_property
    def _by_rank(self) -> tuple[np.ndarray, np.ndarray]:
        """Ranks (misses last, as `_MISS`) and questions, by question, then rank.

        Sums over a question run in this order, that of the ideal ranking's sum, so that a perfect
        ranking gives exactly 1 and none more.
        """
        ranks = np.where(self.ranks == 0, _MISS, self.ranks).astype(np.int64)
        order = np.lexsort((ranks, self.question))
        return ranks[order], self.question[order]

    def within(self, k: int) -> tuple[np.ndarray, np.ndarray]:
        """(ranks, question) of the answers ranked in 1..k, by question, then rank."""
        ranks, question = self._by_rank
        hit = ranks <= _cut(k)
        return ranks[hit], question[hit]


# Of the docstrings: three questions. The first has one answer, ranked second; the second has three,
# ranked first, fourth and nowhere; the third has one, which was missed.
EXAMPLE = RankedAnswers(np.array([2, 1, 4, 0, 0]), np.array([0, 1, 1, 1, 2]), 3)


def hit_rate(answers: RankedAnswers, k: int) -> np.ndarray:
    """HR@K: 1 if any answer has a rank ≤ K, else 0.

    >>> hit_rate(EXAMPLE, 2).tolist()  # found at 2; found at 1; missed
    [1.0, 1.0, 0.0]

    Returns:
        float64 [N].
    """
    return ((answers.best >= 1) & (answers.best <= _cut(k))).astype(np.float64)


def mrr(answers: RankedAnswers, k: int) -> np.ndarray:
    """MRR@K: 1 / rank of the first answer, 0 where that rank is beyond K.

    >>> mrr(EXAMPLE, 2).tolist()  # 1/2; 1/1; missed
    [0.5, 1.0, 0.0]

    Returns:
        float64 [N].
    """
    found = hit_rate(answers, k)
    return found / np.maximum(answers.best, 1)


def ndcg(answers: RankedAnswers, k: int) -> np.ndarray:
    """NDCG@K: Σ_hits 1 / log2(rank + 1), divided by the same sum of the ideal ranking.

    Gains are 0 or 1. The ideal ranking has min(R, K) answers at ranks 1, 2, ….

    >>> ndcg(EXAMPLE, 2).round(4).tolist()  # (1/log2 3) / 1; 1 / (1 + 1/log2 3); missed
    [0.6309, 0.6131, 0.0]

    Returns:
        float64 [N].
    """
    ranks, question = answers.within(k)
    gained = _sum(answers, question, 1 / np.log2(ranks + 1.0))
    achievable = np.minimum(answers.relevant, k)
    ideal_R = np.cumsum(1 / np.log2(np.arange(achievable.max(initial=1)) + 2.0))
    return gained / ideal_R[achievable - 1]


def recall(answers: RankedAnswers, k: int) -> np.ndarray:
    """Recall@K: hits / R, over all answers, also where R > K and 1 cannot be reached.

    >>> recall(EXAMPLE, 4).round(4).tolist()  # 1 of 1; 2 of 3; 0 of 1
    [1.0, 0.6667, 0.0]

    Returns:
        float64 [N].
    """
    return _hits(answers, k) / answers.relevant


def precision(answers: RankedAnswers, k: int) -> np.ndarray:
    """Precision@K: hits / K, also where a list is shorter than K or R < K.

    >>> precision(EXAMPLE, 4).tolist()  # 1, 2 and 0 of 4
    [0.25, 0.5, 0.0]

    Returns:
        float64 [N].
    """
    return _hits(answers, k) / k


def average_precision(answers: RankedAnswers, k: int) -> np.ndarray:
    """AP@K: Σ_hits (hits up to and including this rank / rank) / R, over all answers.

    >>> average_precision(EXAMPLE, 4).round(4).tolist()  # 1/2; (1/1 + 2/4) / 3; missed
    [0.5, 0.5, 0.0]

    Returns:
        float64 [N].
    """
    ranks, question = answers.within(k)
    number = 1 + np.arange(len(ranks)) - np.searchsorted(question, question)
    return _sum(answers, question, number / ranks) / answers.relevant


Metric = Callable[[RankedAnswers, int], np.ndarray]
METRICS: Mapping[str, Metric] = {
    "hr": hit_rate,
    "ndcg": ndcg,
    "mrr": mrr,
    "recall": recall,
    "precision": precision,
    "map": average_precision,
}


def metric_table(
    answers: RankedAnswers, ks: Sequence[int], metrics: Mapping[str, Metric] = METRICS
) -> dict[str, np.ndarray]:
    """Every metric at every cut-off, per question.

    >>> sorted(metric_table(EXAMPLE, [2]))
    ['hr_2', 'map_2', 'mrr_2', 'ndcg_2', 'precision_2', 'recall_2']

    Args:
        answers: the ranks.
        ks: cut-offs.
        metrics: by name; more must be better.

    Returns:
        Metric name → float64 [N].

    Raises:
        MetricError: a metric gives anything but a finite number for each question.
    """
    return {
        f"{name}_{k}": checked(name, metric(answers, k), answers.questions)
        for name, metric in metrics.items()
        for k in ks
    }


def checked(name: str, values: object, questions: int) -> np.ndarray:
    """What a metric gave, as float64 [N].

    >>> checked("mine", [1, 0], 3)
    Traceback (most recent call last):
        ...
    recsys.evaluation.metrics.MetricError: metric mine gave 2 values for 3 questions

    Args:
        name: of the metric, for the message.
        values: what it gave.
        questions: N.

    Raises:
        MetricError: it is anything but a finite number for each question.
    """
    found = np.asarray(values)
    if found.dtype.kind not in "fiub":
        raise MetricError(
            f"metric {name} gave {type(values).__name__}, not an array of one number a question"
        )
    if found.shape != (questions,):
        given = f"{len(found):,} values" if found.ndim == 1 else f"shape {found.shape}"
        raise MetricError(f"metric {name} gave {given} for {questions:,} questions")
    if not (finite := np.isfinite(found)).all():
        raise MetricError(
            f"metric {name} gave {found[~finite][0]} for question {int(np.argmin(finite))} "
            f"({int((~finite).sum()):,} of {questions:,}): a mean over the questions needs a "
            "number of each"
        )
    return found.astype(np.float64, copy=False)


def _cut(k: int) -> int:
    if k < 1:
        raise ValueError(f"a metric's cut-off must be at least 1, not {k}")
    return k


def _hits(answers: RankedAnswers, k: int) -> np.ndarray:
    return np.bincount(answers.within(k)[1], minlength=answers.questions)


def _sum(answers: RankedAnswers, question: np.ndarray, values: np.ndarray) -> np.ndarray:
    return np.bincount(question, weights=values, minlength=answers.questions)
