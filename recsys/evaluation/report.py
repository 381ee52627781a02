"""Names, means and tables of an evaluation: every number says which protocol made it."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import polars as pl

from recsys.evaluation.beyond_accuracy import coverage
from recsys.evaluation.metrics import METRICS, Metric, metric_table
from recsys.evaluation.ranking import Ranking
from recsys.histories.questions import Questions
from recsys.histories.store import HistoryStore


def protocol_name(split_protocol: str, filter_seen: bool, candidates: str = "full") -> str:
    """The protocol as it stands in a metric's name: split, candidates, seen filter.

    >>> protocol_name("loo", True), protocol_name("loo", False, "uniform100")
    ('loo-full-unseen', 'loo-uniform100-all')

    Args:
        split_protocol: short name of the split.
        filter_seen: whether items of the question's own history were taken out.
        candidates: what was ranked: "full" for the whole catalogue, or `Candidates.name`.
    """
    return f"{split_protocol}-{candidates}-{'unseen' if filter_seen else 'all'}"


def metric_name(stage: str, protocol: str, metric: str) -> str:
    """The full name of a metric, as it stands in MLflow and in result files.

    >>> metric_name("test", "loo-full-unseen", "ndcg_10")
    'test/loo-full-unseen/ndcg_10'

    Raises:
        ValueError: a name that MLflow would not take.
    """
    name = f"{stage}/{protocol}/{metric}"
    if not re.fullmatch(r"[\w\-.: ]+(/[\w\-.: ]+)*", name, flags=re.ASCII):
        raise ValueError(
            f"metric name {name!r} may hold letters, digits, '_', '-', '.', ':', '/' and space only"
        )
    return name


def summarise(
    ranking: Ranking,
    store: HistoryStore,
    ks: Sequence[int],
    metrics: Mapping[str, Metric] = METRICS,
) -> dict[str, float]:
    """Means over the questions, and what the lists look like together.

    Args:
        ranking: what `rank` returned.
        store: the histories it was asked about.
        ks: cut-offs, none longer than the lists.
        metrics: by name.

    Returns:
        The mean of each metric (`ndcg_10`, …), `coverage_K` (share of the catalogue's items that
        stand in the first K of any list) and `questions` (how many the means are over).

    Raises:
        ValueError: a cut-off beyond the lists' length.
    """
    length = ranking.lists_NK.shape[1]
    if max(ks) > length:
        raise ValueError(f"cut-off {max(ks)} is beyond the lists, which hold {length} items")
    table = metric_table(ranking.answers, ks, metrics)
    values = {name: float(v.mean()) for name, v in table.items()}
    for k in ks:
        values[f"coverage_{k}"] = coverage(ranking.lists_NK[:, :k], store.catalogue_size)
    values["questions"] = float(ranking.answers.questions)
    return values


def per_question_frame(
    ranking: Ranking,
    store: HistoryStore,
    questions: Questions,
    ks: Sequence[int],
    metrics: Mapping[str, Metric] = METRICS,
) -> pl.DataFrame:
    """One row a question, in the questions' order: what intervals and comparisons start from.

    Args:
        ranking: what `rank` returned for these questions.
        store: the histories.
        questions: what was asked.
        ks: cut-offs.
        metrics: by name.

    Returns:
        `user` (raw id), `history_length` (events before the question), `answer` (raw id of the
        first one), `answers` (how many), `rank` (of the best-ranked one; null: all missed), and
        each metric as float64.
    """
    first = store.items[store.offsets[questions.users] + questions.target_begins]
    frame = pl.DataFrame(
        {
            "user": store.user_vocabulary.raw(questions.users),
            "history_length": questions.history_ends,
            "answer": store.item_vocabulary.raw(first),
            "answers": ranking.answers.relevant,
            "rank": ranking.answers.best,
        }
    )
    return frame.with_columns(
        pl.col("rank").replace(0, None),
        *(pl.Series(name, v) for name, v in metric_table(ranking.answers, ks, metrics).items()),
    )


def table_text(rows: Sequence[Mapping[str, Any]], heading: str, columns: Mapping[str, str]) -> str:
    """A plain table for the terminal.

    >>> print(table_text([{"model": "EASE", "hr": 0.1079}, {"model": "SASRec"}],
    ...                  "one protocol", {"model": "model", "hr": "HR@10"}))
    one protocol
    model   HR@10
    -------------
    EASE    .1079
    SASRec      –

    Args:
        rows: one mapping a row. Missing and None cells show as '–', numbers to the right, shares
            without their leading zero.
        heading: the line above the table; name the protocol here.
        columns: key in the rows → title, in order.
    """
    cells = [[_cell(row.get(key)) for key in columns] for row in rows]
    numeric = [
        all(not isinstance(row.get(key), str) for row in rows) and bool(rows) for key in columns
    ]
    titles = list(columns.values())
    widths = [
        max([len(title), *(len(line[i]) for line in cells)]) for i, title in enumerate(titles)
    ]

    def line(texts: Sequence[str]) -> str:
        parts = [
            text.rjust(width) if right else text.ljust(width)
            for text, width, right in zip(texts, widths, numeric, strict=True)
        ]
        return "  ".join(parts).rstrip()

    rule = "-" * (sum(widths) + 2 * (len(widths) - 1))
    return "\n".join([heading, line(titles), rule, *(line(texts) for texts in cells)])


def _cell(value: Any) -> str:
    if value is None:
        return "–"
    if isinstance(value, float | np.floating):
        text = f"{value:.4f}"
        return re.sub(r"^(-?)0\.", r"\1.", text)
    if isinstance(value, int | np.integer) and not isinstance(value, bool):
        return f"{value:,}"
    return str(value)
