"""Names, counts and the table of an evaluation of clicks."""

import numpy as np
import polars as pl
import pytest

from recsys.evaluation.click_metrics import (
    auc,
    calibration_error,
    gauc,
    normalised_entropy,
    request_ranks,
)
from recsys.evaluation.click_report import (
    click_intervals,
    per_question_click_frame,
    summarise_clicks,
)
from recsys.evaluation.intervals import bootstrap_means, jackknife, user_groups
from recsys.evaluation.metrics import ndcg
from recsys.evaluation.report import metric_name
from recsys.histories.clicks import ClickQuestions
from recsys.histories.store import NO_TIME, HistoryStore

STORE = HistoryStore.from_lists([[1, 2], [3, 1]], 3)
QUESTIONS = ClickQuestions(
    users=np.array([0, 1, 1, 1]),
    history_ends=np.array([1, 0, 2, 2]),
    candidates=np.array([3, 1, 2, 3]),
    labels=np.array([1, 0, 1, 0], dtype=np.float32),
    requests=np.array([4, 5, 5, -1]),
    rows=np.array([1, 2, 3, 3]),
    times=np.array([10, 20, 30, NO_TIME]),
)
SCORES = np.array([0.5, 0.75, 0.25, 0.125])


def summary(**settings) -> dict[str, float]:
    return summarise_clicks(
        QUESTIONS.labels, SCORES, QUESTIONS.users, QUESTIONS.requests, **settings
    )


def test_every_number_and_what_it_is_over():
    values = summary(ks=[1, 2])
    assert values["auc"] == 0.5 and values["gauc"] == 0.5
    assert values["request_ndcg_1"] == values["request_mrr_1"] == 0.5
    assert values["request_mrr_2"] == 0.75
    assert values["request_ndcg_2"] == pytest.approx((1 + 1 / np.log2(3)) / 2)
    counts = {name: values[name] for name in ("questions", "clicks", "users_counted")}
    assert counts == {"questions": 4, "clicks": 2, "users_counted": 1}
    assert values["users_excluded"] == 1
    assert (values["requests_counted"], values["requests_excluded"]) == (2, 0)
    assert all(type(value) is float for value in values.values())
    assert set(summary(ks=[1])) - set(summary(ks=[2])) == {"request_ndcg_1", "request_mrr_1"}


def test_the_metrics_are_those_of_their_names():
    draw = np.random.Generator(np.random.PCG64(8))
    scores, users = draw.random(500), draw.integers(0, 40, 500)
    labels = (draw.random(500) < scores**2).astype(np.float32)
    requests = draw.integers(-1, 60, 500)
    values = summarise_clicks(labels, scores, users, requests, ks=[3], weighting="users", bins=7)
    expected = {
        "auc": auc(labels, scores),
        "gauc": gauc(labels, scores, users, "users"),
        "calibration_error": calibration_error(labels, scores, 7),
        "calibration_error_mass": calibration_error(labels, scores, 7, "equal_mass"),
        "request_ndcg_3": ndcg(request_ranks(labels, scores, requests), 3).mean(),
    }
    assert {name: values[name] for name in expected} == expected
    assert len(set(expected.values())) == len(expected)
    clicked = {r for r, label in zip(requests, labels, strict=True) if label and r >= 0}
    assert values["requests_counted"] == len(clicked)
    assert values["requests_excluded"] == len(set(requests.tolist()) - {-1} - clicked)


def test_nothing_is_said_about_requests_where_there_are_none():
    without = summarise_clicks(QUESTIONS.labels, SCORES, QUESTIONS.users)
    assert not [name for name in without if "request" in name]
    unknown = summarise_clicks(QUESTIONS.labels, SCORES, QUESTIONS.users, np.full(4, -1))
    assert unknown == without


def test_what_is_not_defined_is_nan():
    values = summarise_clicks(np.zeros(3), np.full(3, 0.5), np.arange(3), np.arange(3), ks=[5])
    undefined = {name for name, value in values.items() if np.isnan(value)}
    assert undefined == {"auc", "gauc", "normalised_entropy", "request_ndcg_5", "request_mrr_5"}
    assert (values["requests_counted"], values["requests_excluded"]) == (0, 3)


def test_names_are_legal_in_mlflow():
    for name in summary():
        assert metric_name("test", "clicks", name) == f"test/clicks/{name}"


def test_one_row_a_question_with_raw_ids(tmp_path):
    frame = per_question_click_frame(QUESTIONS, SCORES.astype(np.float32), STORE)
    frame.write_parquet(tmp_path / "clicks.parquet")
    frame = pl.read_parquet(tmp_path / "clicks.parquet")
    assert frame.rows() == [
        ("u0", "i3", 1, 0.5, 1, 4, 10),
        ("u1", "i1", 0, 0.75, 0, 5, 20),
        ("u1", "i2", 1, 0.25, 2, 5, 30),
        ("u1", "i3", 0, 0.125, 2, None, None),
    ]
    assert frame.columns == [
        *("user", "item", "label", "score", "history_length", "request", "time"),
    ]
    assert frame["score"].dtype == pl.Float64 and frame["label"].dtype == pl.Int8
    # The table is enough to compute the number again.
    assert auc(frame["label"].to_numpy(), frame["score"].to_numpy()) == summary()["auc"]


def test_a_log_without_times_has_none_in_the_table():
    without = ClickQuestions(*(getattr(QUESTIONS, name) for name in list(vars(QUESTIONS))[:6]))
    assert "time" not in per_question_click_frame(without, SCORES, STORE).columns


def test_one_score_per_question():
    with pytest.raises(ValueError, match=r"scores of shape \(3,\) for 4 questions"):
        per_question_click_frame(QUESTIONS, SCORES[:3], STORE)


def test_every_metric_has_its_interval():
    draw = np.random.Generator(np.random.PCG64(2))
    N = 600
    users, requests = np.arange(N) // 6, np.arange(N) // 3
    labels = (draw.random(N) < 0.4).astype(np.float32)
    scores = np.clip(0.3 * labels + draw.random(N) * 0.7, 0, 1)
    settings = {"ks": [1, 2], "weighting": "users", "bins": 5}
    values = summarise_clicks(labels, scores, users, requests, **settings)
    found = click_intervals(labels, scores, users, requests, **settings, resamples=200)
    counts = {name for name in values if name.endswith(("counted", "excluded"))}
    assert set(found) == set(values) - counts - {"questions", "clicks"}
    for name, interval in found.items():
        assert interval.estimate == pytest.approx(values[name]), name
        assert interval.low < values[name] < interval.high, name
    groups = user_groups(users)
    for name, measure in {
        "calibration_error": lambda rows: calibration_error(labels[rows], scores[rows], 5),
        "calibration_error_mass": lambda rows: calibration_error(
            labels[rows], scores[rows], 5, "equal_mass"
        ),
        "normalised_entropy": lambda rows: normalised_entropy(labels[rows], scores[rows]),
    }.items():
        without = np.array([measure(groups != group) for group in range(50)])
        assert found[name] == jackknife(values[name], without), name
    some = click_intervals(labels, scores, users, resamples=200, bins=5, metrics=["auc", "logloss"])
    assert some == {name: found[name] for name in ("auc", "logloss")}


def test_intervals_of_requests_draw_the_users_who_made_them():
    draw = np.random.Generator(np.random.PCG64(3))
    labels = (draw.random(40) < 0.5).astype(np.float32)
    scores, requests = draw.random(40), np.repeat(draw.permutation(10) - 1, 4)  # -1: unknown
    users = 100 + (requests % 3)
    found = click_intervals(labels, scores, users, requests, ks=[2], resamples=50)
    ranks = request_ranks(labels, scores, requests)
    asked = np.unique(requests[(requests >= 0) & (labels == 1)])
    assert len(asked) == ranks.questions
    assert found["request_ndcg_2"] == bootstrap_means(ndcg(ranks, 2), 100 + asked % 3, resamples=50)


def test_what_is_not_defined_has_no_interval():
    ones = np.ones(4, dtype=np.float32)
    found = click_intervals(ones, np.full(4, 0.5), np.arange(4), resamples=20)
    assert set(found) == {"logloss", "calibration_error", "calibration_error_mass"}
    alone = click_intervals(np.array([1, 0]), np.array([0.5, 0.2]), np.zeros(2), resamples=20)
    assert "calibration_error" not in alone and "auc" in alone
