"""The toy example of docs/metrics.md, asked of other libraries' own code.

Run in an environment that holds one of them; those that are absent are passed over:

    pip install rectools
    pip install lenskit
    pip install recbole scikit-learn
    python benchmarks/peers/dialects.py

Two users, K = 3: one has one right item, ranked first; the other five, of which ranks 2 and 3 are
hits.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
import types
from collections.abc import Callable, Iterator
from enum import Enum
from pathlib import Path

import numpy as np

LISTS = {1: [10, 11, 12], 2: [20, 21, 22]}
RIGHT = {1: [10], 2: [21, 22, 23, 24, 25]}


def rectools() -> Iterator[tuple[str, float]]:
    """Its metrics as they are called by default."""
    import pandas as pd
    from rectools.metrics import MAP, NDCG, HitRate, Recall

    lists = [(user, item, rank) for user, row in LISTS.items() for rank, item in enumerate(row, 1)]
    shown = pd.DataFrame(lists, columns=["user_id", "item_id", "rank"])
    right = pd.DataFrame(
        [(user, item) for user, row in RIGHT.items() for item in row],
        columns=["user_id", "item_id"],
    )
    for name, metric in (("NDCG", NDCG), ("recall", Recall), ("MAP", MAP), ("HR", HitRate)):
        yield name, float(metric(k=3).calc(shown, right))


def lenskit() -> Iterator[tuple[str, float]]:
    """Its metrics, list by list."""
    from lenskit.data import ItemList
    from lenskit.metrics import NDCG, Hit, Recall
    from lenskit.metrics.ranking._map import AveragePrecision

    metrics = (("NDCG", NDCG), ("recall", Recall), ("MAP", AveragePrecision), ("HR", Hit))
    for name, metric in metrics:
        yield (
            name,
            float(
                np.mean(
                    [
                        metric(3).measure_list(ItemList(LISTS[u], ordered=True), ItemList(RIGHT[u]))
                        for u in LISTS
                    ]
                )
            ),
        )


def recbole() -> Iterator[tuple[str, float]]:
    """The formulas of its evaluator, without the rest of the package, which needs much more."""
    found = importlib.util.find_spec("recbole")
    assert found is not None and found.submodule_search_locations
    root = Path(found.submodule_search_locations[0])
    np.float = float  # type: ignore[attr-defined]  # gone from NumPy, and used there
    for name in ("recbole", "recbole.utils", "recbole.evaluator", "recbole.evaluator.utils"):
        module = types.ModuleType(name)
        module.__path__ = [str(root.joinpath(*name.split(".")[1:]))]
        sys.modules[name] = module
    sys.modules["recbole.utils"].EvaluatorType = Enum("EvaluatorType", "RANKING VALUE")  # type: ignore[attr-defined]
    sys.modules["recbole.evaluator.utils"]._binary_clf_curve = None  # type: ignore[attr-defined]
    metrics = importlib.import_module("recbole.evaluator.metrics")
    hits = np.array([[item in RIGHT[user] for item in LISTS[user]] for user in LISTS])
    counts = np.array([len(RIGHT[user]) for user in LISTS])
    settings = {"topk": [3], "metric_decimal_place": 4}
    for name, metric in (("NDCG", "NDCG"), ("recall", "Recall"), ("MAP", "MAP"), ("HR", "Hit")):
        made = getattr(metrics, metric)(settings)
        values = made.metric_info(hits) if name == "HR" else made.metric_info(hits, counts)
        yield name, float(values.mean(0)[2])


def main() -> None:
    """Prints a line for each library that is there."""
    libraries: dict[str, Callable[[], Iterator[tuple[str, float]]]] = {
        "rectools": rectools,
        "lenskit": lenskit,
        "recbole": recbole,
    }
    for name, measure in libraries.items():
        if importlib.util.find_spec(name) is None:
            print(f"{name}: not installed")
            continue
        print(f"{name}: " + ", ".join(f"{metric}@3 {value:.4f}" for metric, value in measure()))


if __name__ == "__main__":
    main()
