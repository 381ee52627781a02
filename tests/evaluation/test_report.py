"""Names, means and tables."""

import re

import numpy as np
import polars as pl
import pytest

from recsys.evaluation.metrics import RankedAnswers
from recsys.evaluation.ranking import Ranking
from recsys.evaluation.report import (
    metric_name,
    per_question_frame,
    protocol_name,
    summarise,
    table_text,
)
from recsys.histories.questions import Questions
from recsys.histories.store import HistoryStore

STORE = HistoryStore.from_lists([[1, 2, 3], [4, 5, 1, 2]], 5)
QUESTIONS = Questions(*np.array([[0, 1], [2, 2], [2, 2], [3, 4]]))
RANKING = Ranking(
    answers=RankedAnswers(np.array([0, 1, 3]), np.array([0, 1, 1]), 2),
    lists_NK=np.array([[4, 5, 0], [1, 3, 2]], dtype=np.int32),
    list_scores_NK=np.array([[2, 1, -np.inf], [3, 2, 1]], dtype=np.float32),
    counts={},
    answer_items_A=np.array([3, 1, 2]),
)


def test_means_and_coverage():
    values = summarise(RANKING, STORE, [1, 3])
    assert values["hr_1"] == values["hr_3"] == 0.5
    assert values["recall_1"] == 0.25
    assert values["coverage_1"] == 2 / 5
    assert values["coverage_3"] == 5 / 5  # padding, where a list ran out, is no item
    assert values["questions"] == 2.0


def test_a_cut_off_beyond_the_lists_is_refused():
    with pytest.raises(ValueError, match="cut-off 4 is beyond the lists, which hold 3"):
        summarise(RANKING, STORE, [1, 4])


def test_one_row_a_question_with_raw_ids():
    frame = per_question_frame(RANKING, STORE, QUESTIONS, [3])
    assert frame.select("user", "history_length", "answer", "answers", "rank").rows() == [
        ("u0", 2, "i3", 1, None),
        ("u1", 2, "i1", 2, 1),
    ]
    assert frame["hr_3"].to_list() == [0.0, 1.0]
    for name, mean in summarise(RANKING, STORE, [3]).items():
        if name in frame.columns:
            assert frame[name].mean() == mean
            assert frame[name].dtype == pl.Float64


def test_names_carry_the_protocol_and_are_legal_in_mlflow():
    name = metric_name("test", protocol_name("time-last", False), "hr_10")
    assert name == "test/time-last-full-all/hr_10"
    assert re.fullmatch(r"[/\w.\- :]+", name)


@pytest.mark.parametrize("metric", ["hr@10", "ndcg[10]", "", "größe"])
def test_names_mlflow_would_refuse_are_refused(metric):
    with pytest.raises(ValueError, match="may hold letters"):
        metric_name("test", "loo-full-unseen", metric)


def test_table():
    text = table_text(
        [
            {"model": "SASRec", "hr_10": 0.30025, "questions": 6040},
            {"model": "Popularity", "hr_10": None, "questions": 6040},
        ],
        "leave-one-out",
        {"model": "model", "hr_10": "HR@10", "questions": "n"},
    )
    assert text.splitlines() == [
        "leave-one-out",
        "model       HR@10      n",
        "------------------------",
        "SASRec      .3003  6,040",
        "Popularity      –  6,040",
    ]
