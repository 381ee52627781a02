"""What metrics are called where people read: the same in tables, sentences, figures and tags."""

from __future__ import annotations

# At a cut-off: `ndcg_10` is NDCG@10.
AT_A_CUT = {
    "hr": "HR",
    "ndcg": "NDCG",
    "mrr": "MRR",
    "recall": "recall",
    "precision": "precision",
    "map": "MAP",
    "coverage": "coverage",
    "gini": "gini",
    "popularity_lift": "popularity lift",
    "novelty": "novelty",
    "serendipity": "serendipity",
    "vector_diversity": "vector diversity",
    "diversity": "diversity",
    "genre_calibration": "genre calibration",
    "request_ndcg": "NDCG",
    "request_mrr": "MRR",
}
OF_ALL_CLICKS = {
    "auc": "AUC",
    "gauc": "GAUC",
    "logloss": "logloss",
    "normalised_entropy": "NE",
    "calibration_error": "ECE",
}


def metric_title(metric: str) -> str:
    """As it stands in a heading or a sentence; one of one's own keeps its name.

    >>> metric_title("ndcg_10"), metric_title("popularity_lift_5"), metric_title("auc")
    ('NDCG@10', 'popularity lift@5', 'AUC')
    >>> metric_title("patience_10"), metric_title("profit")
    ('patience_10', 'profit')
    """
    name, _, k = metric.rpartition("_")
    if k.isdigit() and name in AT_A_CUT:
        return f"{AT_A_CUT[name]}@{k}"
    return OF_ALL_CLICKS.get(metric, metric)
