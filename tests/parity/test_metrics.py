"""The metrics against ir_measures (trec_eval) and ranx, question by question.

Random questions and the degenerate ones: no answer found, all found, more answers than K, more
answers than listed, an answer at exactly K and at K + 1.
"""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recsys.evaluation.metrics import METRICS, RankedAnswers

LISTED = 20
KS = (1, 5, 10, 20)

# The ranks of one question's answers: some found, some missed.
answered = st.tuples(
    st.lists(st.integers(1, LISTED), unique=True, max_size=LISTED), st.integers(0, 12)
).map(lambda parts: [*parts[0], *[0] * parts[1]] or [0])


def degenerate() -> list[list[int]]:
    """Ranks of the answers of each question; 0 is a miss."""
    made = [[0], [1], [5], [6], [10], [11], [20], [0, 0, 0], list(range(1, 21))]
    return [
        *made,
        [*range(1, 21), *[0] * 10],
        [*range(11, 21)],
        [1, 20],
        [2, 3, 0, 0, 0],
    ]


def as_documents(
    made: list[list[int]],
) -> tuple[dict[str, dict[str, int]], dict[str, dict[str, float]]]:
    """The same as relevance judgements and as scored lists of 20 documents."""
    relevant, runs = {}, {}
    for n, ranks in enumerate(made):
        relevant[f"q{n}"] = {f"d{r}" if r else f"missed{i}": 1 for i, r in enumerate(ranks)}
        runs[f"q{n}"] = {f"d{r}": float(LISTED - r) for r in range(1, LISTED + 1)}
    return relevant, runs


def ours(made: list[list[int]]) -> dict[str, np.ndarray]:
    answers = RankedAnswers(
        np.concatenate(made).astype(np.int64),
        np.repeat(np.arange(len(made)), [len(ranks) for ranks in made]),
        len(made),
    )
    return {f"{name}_{k}": metric(answers, k) for name, metric in METRICS.items() for k in KS}


def equal_to_ir_measures(made: list[list[int]]) -> None:
    ir_measures = pytest.importorskip("ir_measures")
    theirs = {"hr": "Success", "ndcg": "nDCG", "mrr": "RR", "recall": "R", "precision": "P"}
    theirs["map"] = "AP"
    measures = {
        ir_measures.parse_measure(f"{name}@{k}"): f"{our_name}_{k}"
        for our_name, name in theirs.items()
        for k in KS
    }
    relevant, runs = as_documents(made)
    values = {name: np.full(len(relevant), np.nan) for name in measures.values()}
    for result in ir_measures.iter_calc(list(measures), relevant, runs):
        values[measures[result.measure]][int(result.query_id[1:])] = result.value
    own = ours(made)
    for name, expected in values.items():
        np.testing.assert_allclose(own[name], expected, atol=1e-12, err_msg=name)


def equal_to_ranx(made: list[list[int]]) -> None:
    ranx = pytest.importorskip("ranx")
    names = {
        f"{'hit_rate' if name == 'hr' else name}@{k}": f"{name}_{k}" for name in METRICS for k in KS
    }
    relevant, runs = as_documents(made)
    run = ranx.Run(runs)
    ranx.evaluate(ranx.Qrels(relevant), run, list(names))
    own = ours(made)
    for their_name, name in names.items():
        by_question = run.scores[their_name]
        expected = [by_question[f"q{n}"] for n in range(len(relevant))]
        np.testing.assert_allclose(own[name], expected, atol=1e-12, err_msg=name)


@given(st.lists(answered, min_size=1, max_size=6))
@settings(max_examples=60, deadline=None)
def test_equal_to_ir_measures(made):
    equal_to_ir_measures(made)


def test_equal_to_ir_measures_where_degenerate():
    equal_to_ir_measures(degenerate())


def test_equal_to_ranx(monkeypatch):
    # Its compiler needs minutes, the same code in plain Python a second.
    monkeypatch.setenv("NUMBA_DISABLE_JIT", "1")
    equal_to_ranx(degenerate())
    drawn = given(st.lists(answered, min_size=1, max_size=6))
    settings(max_examples=60, deadline=None)(drawn(equal_to_ranx))()
