"""Laws of the metrics, on generated ranks."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recsys.evaluation.metrics import METRICS, MetricError, RankedAnswers, metric_table

# Per question: the ranks of its answers, 0 for a miss, no rank twice.
ranks_of_a_question = st.lists(st.integers(0, 12), min_size=1, max_size=8).map(
    lambda ranks: [r for i, r in enumerate(ranks) if r == 0 or r not in ranks[:i]]
)
ranks_of_questions = st.lists(ranks_of_a_question, min_size=1, max_size=6)
cut_offs = st.integers(1, 15)


def ranked(questions: list[list[int]]) -> RankedAnswers:
    return RankedAnswers(
        np.array([rank for ranks in questions for rank in ranks], dtype=np.int64),
        np.repeat(np.arange(len(questions)), [len(ranks) for ranks in questions]),
        len(questions),
    )


def slow(name: str, ranks: list[int], k: int) -> float:
    """The definitions once more, from a list of zeros and ones, one question at a time."""
    gains = [1 if rank in ranks else 0 for rank in range(1, k + 1)]
    R = len(ranks)
    if name == "hr":
        return float(any(gains))
    if name == "mrr":
        return max((gain / (i + 1) for i, gain in enumerate(gains)), default=0.0)
    if name == "ndcg":
        dcg = sum(gain / np.log2(i + 2) for i, gain in enumerate(gains))
        return dcg / sum(1 / np.log2(i + 2) for i in range(min(R, k)))
    if name == "recall":
        return sum(gains) / R
    if name == "precision":
        return sum(gains) / k
    assert name == "map"
    return sum(gain * sum(gains[: i + 1]) / (i + 1) for i, gain in enumerate(gains)) / R


@settings(deadline=None)
@given(ranks_of_questions, cut_offs)
def test_equal_to_the_definitions_one_by_one(questions, k):
    for name, metric in METRICS.items():
        expected = [slow(name, ranks, k) for ranks in questions]
        np.testing.assert_allclose(metric(ranked(questions), k), expected, rtol=1e-12)


@settings(deadline=None)
@given(ranks_of_questions, cut_offs)
def test_within_zero_and_one(questions, k):
    for name, values in metric_table(ranked(questions), [k]).items():
        assert np.all((values >= 0) & (values <= 1)), name
        assert len(values) == len(questions)


@settings(deadline=None)
@given(ranks_of_questions, cut_offs)
def test_never_falls_with_k(questions, k):
    for name in ("hr", "mrr", "recall", "map"):
        metric = METRICS[name]
        assert np.all(metric(ranked(questions), k) <= metric(ranked(questions), k + 1)), name
    alone = ranked([ranks[:1] for ranks in questions])
    assert np.all(METRICS["ndcg"](alone, k) <= METRICS["ndcg"](alone, k + 1))


@settings(deadline=None)
@given(st.integers(1, 30), cut_offs)
def test_a_perfect_ranking_is_the_best(answers, k):
    values = metric_table(ranked([list(range(1, answers + 1))]), [k])
    for name in ("hr", "ndcg", "mrr"):
        assert values[f"{name}_{k}"] == 1.0, name
    assert values[f"precision_{k}"] == min(answers, k) / k
    for name in ("recall", "map"):
        assert values[f"{name}_{k}"] == min(answers, k) / answers, name


@settings(deadline=None)
@given(ranks_of_questions, cut_offs, st.randoms(use_true_random=False))
def test_order_of_questions_and_answers_changes_nothing(questions, k, random):
    order = list(range(len(questions)))
    random.shuffle(order)
    shuffled = [random.sample(questions[i], len(questions[i])) for i in order]
    before, after = metric_table(ranked(questions), [k]), metric_table(ranked(shuffled), [k])
    for name, values in before.items():
        assert after[name].tolist() == values[order].tolist(), name


@settings(deadline=None)
@given(ranks_of_questions, cut_offs)
def test_a_better_rank_is_never_worse(questions, k):
    promoted = [ranks.copy() for ranks in questions]
    for ranks in promoted:
        worst = max(range(len(ranks)), key=lambda i: ranks[i] or 99)
        free = next(r for r in range(1, 20) if r not in ranks)
        if ranks[worst] == 0 or free < ranks[worst]:
            ranks[worst] = free
    before, after = metric_table(ranked(questions), [k]), metric_table(ranked(promoted), [k])
    for name, values in before.items():
        assert np.all(after[name] >= values), name


def test_names_of_the_table():
    names = set(metric_table(ranked([[1]]), [5, 10]))
    assert {"hr_5", "ndcg_10", "mrr_10", "recall_5", "precision_10", "map_5"} <= names
    assert len(names) == 12


@pytest.mark.parametrize(
    ("ranks", "question", "questions", "words"),
    [
        ([1], [0], 2, "at least one answer"),
        ([1, 1], [0, 2], 3, "at least one answer"),
        ([1, 1], [0, 1], 1, "at least one answer"),
        ([1, 2], [1, 0], 2, "ascending"),
        ([-1], [0], 1, "0 is a miss"),
        ([3, 3], [0, 0], 1, "same rank"),
        ([3, 3], [0], 1, "2 ranks for 1"),
    ],
)
def test_refuses_what_is_not_a_ranking(ranks, question, questions, words):
    with pytest.raises(ValueError, match=words):
        RankedAnswers(np.array(ranks), np.array(question), questions)


@pytest.mark.parametrize("name", METRICS)
def test_refuses_a_cut_off_below_one(name):
    with pytest.raises(ValueError, match="at least 1, not 0"):
        METRICS[name](ranked([[1]]), 0)


def test_a_metric_of_one_s_own_must_give_a_finite_number_for_each_question() -> None:
    answers = ranked([[1], [0, 3]])
    found = metric_table(answers, [2, 4], {"best": lambda a, k: a.best <= k})
    assert {name: values.tolist() for name, values in found.items()} == {
        "best_2": [1.0, 0.0],
        "best_4": [1.0, 1.0],
    }
    assert found["best_2"].dtype == np.float64
    for wrong, words in (
        (np.ones(3), "metric mine gave 3 values for 2 questions"),
        (np.ones((2, 1)), r"metric mine gave shape \(2, 1\) for 2 questions"),
        (1.0, r"metric mine gave shape \(\) for 2 questions"),
        (np.array([0.5, np.nan]), r"metric mine gave nan for question 1 \(1 of 2\)"),
        (None, "metric mine gave NoneType, not an array"),
    ):
        with pytest.raises(MetricError, match=words):
            metric_table(answers, [2], {"mine": lambda a, k, wrong=wrong: wrong})
