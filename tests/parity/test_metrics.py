"""The metrics against ir_measures (trec_eval) and ranx, question by question.

Random questions and the degenerate ones: no answer found, all found, more answers than K, more
answers than listed, an answer at exactly K and at K + 1.
"""

import numpy as np
import pytest

from recsys.evaluation.metrics import METRICS, RankedAnswers

LISTED = 20
KS = (1, 5, 10, 20)


def questions() -> list[list[int]]:
    """Ranks of the answers of each question; 0 is a miss."""
    draw = np.random.default_rng(11)
    made = [[0], [1], [5], [6], [10], [11], [20], [0, 0, 0], list(range(1, 21))]
    made += [[*range(1, 21), *[0] * 10], [*range(11, 21)], [1, 20], [2, 3, 0, 0, 0]]
    for _ in range(80):
        ranks = draw.permutation(LISTED)[: draw.integers(1, 8)] + 1
        made.append(np.where(draw.random(len(ranks)) < 0.3, 0, ranks).tolist())
    return made


def as_documents() -> tuple[dict[str, dict[str, int]], dict[str, dict[str, float]]]:
    """The same as relevance judgements and as scored lists of 20 documents."""
    relevant, runs = {}, {}
    for n, ranks in enumerate(questions()):
        relevant[f"q{n}"] = {f"d{r}" if r else f"missed{i}": 1 for i, r in enumerate(ranks)}
        runs[f"q{n}"] = {f"d{r}": float(LISTED - r) for r in range(1, LISTED + 1)}
    return relevant, runs


@pytest.fixture(scope="module")
def ours() -> dict[str, np.ndarray]:
    made = questions()
    answers = RankedAnswers(
        np.concatenate(made).astype(np.int64),
        np.repeat(np.arange(len(made)), [len(ranks) for ranks in made]),
        len(made),
    )
    return {f"{name}_{k}": metric(answers, k) for name, metric in METRICS.items() for k in KS}


def test_equal_to_ir_measures(ours):
    ir_measures = pytest.importorskip("ir_measures")
    theirs = {"hr": "Success", "ndcg": "nDCG", "mrr": "RR", "recall": "R", "precision": "P"}
    theirs["map"] = "AP"
    measures = {
        ir_measures.parse_measure(f"{name}@{k}"): f"{our_name}_{k}"
        for our_name, name in theirs.items()
        for k in KS
    }
    relevant, runs = as_documents()
    values = {name: np.full(len(relevant), np.nan) for name in measures.values()}
    for result in ir_measures.iter_calc(list(measures), relevant, runs):
        values[measures[result.measure]][int(result.query_id[1:])] = result.value
    for name, expected in values.items():
        np.testing.assert_allclose(ours[name], expected, atol=1e-12, err_msg=name)


def test_equal_to_ranx(ours, monkeypatch):
    # Its compiler needs minutes, the same code in plain Python a second.
    monkeypatch.setenv("NUMBA_DISABLE_JIT", "1")
    ranx = pytest.importorskip("ranx")
    names = {
        f"{'hit_rate' if name == 'hr' else name}@{k}": f"{name}_{k}" for name in METRICS for k in KS
    }
    relevant, runs = as_documents()
    run = ranx.Run(runs)
    ranx.evaluate(ranx.Qrels(relevant), run, list(names))
    for their_name, name in names.items():
        by_question = run.scores[their_name]
        expected = [by_question[f"q{n}"] for n in range(len(relevant))]
        np.testing.assert_allclose(ours[name], expected, atol=1e-12, err_msg=name)
