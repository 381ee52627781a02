"""The table of `benchmarks.ta_feng`: cohorts add up, differences are paired."""

from __future__ import annotations

import numpy as np
import polars as pl

from benchmarks.ta_feng import METRICS, cohorts, render


def frame(values: list[float]) -> pl.DataFrame:
    rows = pl.DataFrame({"user": [f"u{i}" for i in range(6)], "history_length": [3, 2, 0, 1, 0, 9]})
    return rows.with_columns(**{name: pl.Series(values) for name in METRICS})


def test_cohorts_and_differences() -> None:
    ours = [1.0, 0.0, 0.5, 0.25, 0.0, 1.0]
    theirs = [value / 2 for value in ours]
    found = cohorts({"SASRec": frame(ours), "Other": frame(theirs), "Same": frame(ours)})
    assert [(c["cohort"], c["questions"]) for c in found] == [
        ("all customers", 6),
        ("with history", 4),
        ("new customers", 2),
    ]
    for cohort, values in zip(found, ([*ours], [1, 0, 0.25, 1], [0.5, 0]), strict=True):
        first, other, same = cohort["rows"]
        mean, low, high = first["ndcg_10"]
        assert np.isclose(mean, np.mean(values)) and low < mean < high
        assert "ahead" not in first
        assert np.isclose(other["ahead"]["ndcg_10"][0], mean / 2)
        assert same["ahead"]["ndcg_10"] == [0, 0, 0]


def test_a_cohort_without_questions_is_left_out() -> None:
    asked = frame([0.5] * 6).filter(pl.col("history_length") > 0)
    names = [cohort["cohort"] for cohort in cohorts({"SASRec": asked})]
    assert names == ["all customers", "with history"]


def test_the_table() -> None:
    report = {
        "recipe": "sasrec_ta_feng",
        "settings": [],
        "protocol": "test/time-all-full-all",
        "seeds": [1],
        "seconds": [60.0],
        "peak_memory_gb": [2.0],
        "cohorts": cohorts({"SASRec": frame([0.5] * 6), "Other": frame([0.25] * 6)}),
    }
    lines = render(report).splitlines()
    assert lines[2] == "all customers, 6 questions"
    assert lines[7].startswith("| Other | 0.2500 (0.2500–0.2500) |")
    assert lines[7].endswith("| +0.2500 (+0.2500 … +0.2500) |")
