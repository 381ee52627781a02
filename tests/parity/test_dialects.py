"""docs/metrics.md: one toy example in the formulas of other libraries, each from its source.

`benchmarks/peers/dialects.py` asks the libraries themselves.
"""

from math import log2
from pathlib import Path

import numpy as np

from recsys.evaluation.metrics import RankedAnswers, metric_table

K = 3
# Ranks of the hits within K, and the number of right items.
USERS = (([1], 1), ([2, 3], 5))
DOCS = Path(__file__).parents[2] / "docs" / "metrics.md"


def dcg(ranks) -> float:
    return sum(1 / log2(rank + 1) for rank in ranks)


def first_two_alike(ranks) -> float:
    return sum(1 / max(log2(rank), 1) for rank in ranks)


def precisions(ranks) -> float:
    return sum((number + 1) / rank for number, rank in enumerate(ranks))


def ours() -> list[float]:
    answers = RankedAnswers(np.array([1, 2, 3, 0, 0, 0]), np.array([0, 1, 1, 1, 1, 1]), 2)
    values = metric_table(answers, [K])
    return [float(values[f"{name}_{K}"].mean()) for name in ("ndcg", "recall", "map", "hr")]


def mean(of_user) -> float | None:
    values = [of_user(ranks, right) for ranks, right in USERS]
    return None if None in values else sum(values) / len(values)


def hit(ranks, right) -> float:
    return float(bool(ranks))


def table() -> dict[str, list[float | None]]:
    def ideal(ranks, right):
        return dcg(ranks) / dcg(range(1, min(right, K) + 1))

    def ap_of_achievable(ranks, right):
        return precisions(ranks) / min(right, K)

    def recall(ranks, right):
        return len(ranks) / right

    return {
        "**recsys**": ours(),
        # RecBole evaluator/metrics.py, RePlay metrics/*: IDCG and AP over min(R, k), recall over R.
        "RecBole, RePlay": [mean(f) for f in (ideal, recall, ap_of_achievable, hit)],
        # LensKit metrics/ranking/_dcg.py: a gain is divided by max(log2(rank), 1), so that ranks 1
        # and 2 weigh alike; _pr.py: recall over min(R, k).
        "LensKit": [
            mean(f)
            for f in (
                lambda r, n: first_two_alike(r) / first_two_alike(range(1, min(n, K) + 1)),
                lambda r, n: len(r) / min(n, K),
                ap_of_achievable,
                hit,
            )
        ],
        # RecTools metrics/ranking.py, divide_by_achievable=False: IDCG of k items, AP over R.
        "RecTools": [
            mean(f)
            for f in (
                lambda r, n: dcg(r) / dcg(range(1, K + 1)),
                recall,
                lambda r, n: precisions(r) / n,
                hit,
            )
        ],
        # Transformers4Rec torch/ranking_metric.py: the ideal of the retrieved labels.
        "Transformers4Rec": [
            mean(lambda r, n: dcg(r) / dcg(range(1, len(r) + 1))),
            mean(recall),
            None,
            None,
        ],
    }


def test_the_documented_table_is_what_the_formulas_give():
    lines = ["| library | NDCG@3 | recall@3 | MAP@3 | HR@3 |", "|---|--:|--:|--:|--:|"]
    for name, values in table().items():
        cells = ["–" if value is None else f"{value:.4f}" for value in values]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    text = DOCS.read_text(encoding="utf-8")
    shown = text.split("<!-- dialects -->\n")[1].split("\n<!-- /dialects -->")[0]
    assert shown == "\n".join(lines)
