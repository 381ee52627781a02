"""Two models on the same questions: differences, verdicts, and refusals that say what differs."""

from dataclasses import replace

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from recsys.evaluation.click_metrics import auc, gauc, log_losses
from recsys.evaluation.compare import (
    Answers,
    CompareError,
    check_same_questions,
    compare,
    holm,
    metrics_of,
    moved_most,
)
from recsys.evaluation.intervals import bootstrap_means


def frame(ndcg: np.ndarray, **columns) -> pl.DataFrame:
    n = len(ndcg)
    return pl.DataFrame(
        {
            "user": [f"u{i}" for i in range(n)],
            "history_length": np.arange(n) % 7 + 1,
            "answer": [f"i{i % 11}" for i in range(n)],
            "answers": np.ones(n, dtype=np.int64),
            "rank": pl.Series(np.where(ndcg > 0, 1 / np.maximum(ndcg, 0.01), 0).astype(int)),
            "ndcg_10": ndcg,
            "cohort/repeat": ["new" if i % 3 else "repeat" for i in range(n)],
            **columns,
        }
    ).with_columns(pl.col("rank").replace(0, None))


def model(name: str, quality: float, n: int = 1200, seed: int = 0) -> Answers:
    draw = np.random.Generator(np.random.PCG64(seed))
    return Answers(name, "loo-full-unseen", frame((draw.random(n) < quality).astype(float)))


def clicks(name: str, noise: float, n: int = 1200, seed: int = 0) -> Answers:
    draw = np.random.Generator(np.random.PCG64(5))
    labels = (draw.random(n) < 0.5).astype(np.int8)
    scores = labels + np.random.Generator(np.random.PCG64(seed)).normal(size=n) * noise
    return Answers(
        name,
        "clicks",
        pl.DataFrame(
            {
                "user": np.arange(n) // 4,
                "item": np.arange(n) % 9,
                "label": labels,
                "score": 1 / (1 + np.exp(-scores)),
                "history_length": np.ones(n, dtype=np.int64),
            }
        ),
    )


def test_the_difference_is_that_of_the_means_with_its_interval():
    a, b = model("A", 0.5), model("B", 0.3, seed=1)
    own, (found,) = compare(a, [b], "ndcg_10", resamples=200)
    ours, theirs = a.frame["ndcg_10"].to_numpy(), b.frame["ndcg_10"].to_numpy()
    users = a.frame["user"].to_numpy()
    assert own == bootstrap_means(ours, users, resamples=200)
    assert found.value == bootstrap_means(theirs, users, resamples=200)
    assert found.difference == bootstrap_means(ours - theirs, users, resamples=200)
    assert (found.wins, found.ties, found.losses) == (
        (ours > theirs).sum(),
        (ours == theirs).sum(),
        (ours < theirs).sum(),
    )
    assert found.relative is not None
    assert found.relative.estimate == pytest.approx(ours.mean() / theirs.mean() - 1)
    assert found.verdict == "better"
    assert compare(b, [a], "ndcg_10", resamples=200)[1][0].verdict == "worse"


def test_a_copy_does_not_differ():
    a = model("A", 0.4)
    _, (found,) = compare(a, [Answers("copy", a.protocol, a.frame)], "ndcg_10")
    assert (found.difference.estimate, found.wins, found.losses) == (0.0, 0, 0)
    assert found.p_holm == 1.0 and found.verdict == "no difference shown"


def test_few_questions_give_no_verdict():
    _, (found,) = compare(model("A", 0.9, 999), [model("B", 0.1, 999)], "ndcg_10", resamples=100)
    assert found.difference.excludes_zero and found.verdict == "too few"


def test_many_questions_of_few_people_give_no_verdict():
    people = pl.Series("user", np.arange(1200) % 50)
    a, b = (
        replace(made, frame=made.frame.with_columns(people))
        for made in (model("A", 0.9), model("B", 0.1))
    )
    assert compare(a, [b], "ndcg_10")[1][0].verdict == "too few"


def test_too_few_draws_to_tell_anything_are_refused():
    a = model("A", 0.9)
    others = [model(f"B{i}", 0.1, seed=i) for i in range(5)]
    with pytest.raises(CompareError, match=r"resamples=100 cannot tell .* take at least 200"):
        compare(a, others, "ndcg_10", resamples=100)
    _, found = compare(a, others, "ndcg_10", resamples=200)
    assert {other.verdict for other in found} == {"better"}


def test_lists_stand_beside_the_whole_catalogue_up_to_their_length():
    a, b = model("A", 0.5), model("B", 0.3, seed=1)
    deep = frame(a.frame["ndcg_10"].to_numpy(), ndcg_20=a.frame["ndcg_10"].to_numpy())
    lists = Answers("lists", "loo-top10-unseen", deep)
    assert metrics_of(lists) == ["ndcg_10"]
    assert compare(lists, [b], "ndcg_10")[1][0].verdict == "better"
    with pytest.raises(CompareError, match="metric=ndcg_20 is not among what lists"):
        compare(Answers("A", "loo-full-unseen", deep), [lists], "ndcg_20")
    with pytest.raises(CompareError, match="other protocols"):
        check_same_questions(lists, Answers("B", "loo-full-all", b.frame))


def test_measures_of_lists_are_no_metrics_to_be_better_by():
    novel = frame(np.ones(1200), novelty_10=np.ones(1200), genre_calibration_10=np.ones(1200))
    assert metrics_of(Answers("A", "loo-full-unseen", novel)) == ["ndcg_10"]


def test_gauc_of_other_weights_is_refused():
    a, b = clicks("A", 1.0), clicks("B", 2.0, seed=1)
    with pytest.raises(CompareError, match="impressions and clicks"):
        compare(a, [replace(b, weighting="clicks")], "gauc")
    by_clicks = [replace(answers, weighting="clicks") for answers in (a, b)]
    own, _ = compare(by_clicks[0], by_clicks[1:], "gauc", resamples=100)
    labels, scores, users = (a.frame[c].to_numpy() for c in ("label", "score", "user"))
    assert own.estimate == pytest.approx(gauc(labels, scores, users, "clicks"))
    assert own != compare(a, [b], "gauc", resamples=100)[0]


def test_many_comparisons_are_corrected():
    """Twenty copies of chance against chance: none may be called better or worse."""
    a = model("A", 0.3, 1000)
    others = [model(f"B{i}", 0.3, 1000, seed=i + 1) for i in range(20)]
    _, found = compare(a, others, "ndcg_10", resamples=1000)
    alone = [other.difference.p_value for other in found]
    assert all(o.p_holm >= p for o, p in zip(found, alone, strict=True))
    assert {other.verdict for other in found} == {"no difference shown"}


def test_cohorts_are_parts_of_the_difference():
    a, b = model("A", 0.5), model("B", 0.3, seed=1)
    _, (found,) = compare(a, [b], "ndcg_10", resamples=50)
    moved = a.frame["ndcg_10"].to_numpy() - b.frame["ndcg_10"].to_numpy()
    parts = {cohort.value: cohort for cohort in found.cohorts}
    assert parts["repeat"].questions == 400
    assert parts["repeat"].interval.estimate == pytest.approx(moved[::3].mean())
    total = sum(c.interval.estimate * c.questions for c in found.cohorts) / 1200
    assert total == pytest.approx(found.difference.estimate)


@pytest.mark.parametrize("metric", ["auc", "gauc", "logloss"])
def test_clicks_are_compared_too(metric):
    good, poor = clicks("good", 0.5), clicks("poor", 3.0, seed=1)
    own, (found,) = compare(good, [poor], metric, resamples=100)
    assert found.verdict == "better"
    assert compare(poor, [good], metric, resamples=100)[1][0].verdict == "worse"
    labels = good.frame["label"].to_numpy()
    scores = [answers.frame["score"].to_numpy() for answers in (good, poor)]
    if metric == "auc":
        assert own.estimate == pytest.approx(auc(labels, scores[0]))
        assert (found.wins, found.losses) == (0, 0)
    if metric == "logloss":
        closer = log_losses(labels, scores[0]) < log_losses(labels, scores[1])
        assert found.wins == closer.sum()


def changed(column: str, value) -> Answers:
    a = model("B", 0.3)
    same = pl.lit(value, dtype=a.frame.schema[column])
    return Answers("B", a.protocol, a.frame.with_columns(same.alias(column)))


@pytest.mark.parametrize(
    ("other", "words"),
    [
        (model("B", 0.3, 1100), "1,200 and 1,100 questions; 100 were asked of A alone and 0 of B"),
        (changed("answer", "i0"), "1,200 questions each, of which "),
        (changed("history_length", 1), "the first of them user u1, history_length 2"),
        (Answers("B", "loo-full-all", model("B", 0.3).frame), "loo-full-unseen and loo-full-all"),
        (Answers("B", "loo-full-unseen", model("B", 0.3).frame[::-1]), "in another order"),
        (
            Answers("B", "loo-full-unseen", model("B", 0.3).frame.drop("answers", "answer")),
            "lack the columns answer, answers: they are of an older format",
        ),
        (clicks("B", 1.0), "next items and clicks"),
    ],
)
def test_other_questions_are_refused_with_how_they_differ(other, words):
    with pytest.raises(CompareError, match=words.replace("(", r"\(")):
        check_same_questions(model("A", 0.5), other)


@pytest.mark.parametrize("metric", ["ndcg_10", "auc", "gauc", "logloss"])
def test_cohorts_have_intervals_of_the_level_that_was_asked(metric):
    half = pl.Series("cohort/half", ["one", "other"] * 600)
    made = [clicks("A", 0.5), clicks("B", 3.0, seed=1)]
    if metric == "ndcg_10":
        made = [model("A", 0.5), model("B", 0.3, seed=1)]
    a, b = (replace(m, frame=m.frame.with_columns(half)) for m in made)
    widths = [
        compare(a, [b], metric, resamples=400, level=level)[1][0].cohorts[-1].interval
        for level in (0.5, 0.95)
    ]
    assert widths[0].high - widths[0].low < 0.6 * (widths[1].high - widths[1].low)


def test_a_part_whose_clicks_are_all_of_one_group_is_as_unsure_as_can_be():
    part = pl.Series("cohort/p", ["part"] * 200 + ["rest"] * 1000)
    labels = clicks("A", 0.5).frame["label"].to_list()[200:]
    only_one_user_clicked = pl.Series("label", [1, 0, 1, 1] + [0] * 196 + labels, dtype=pl.Int8)
    a, b = (
        replace(m, frame=m.frame.with_columns(part, only_one_user_clicked))
        for m in (clicks("A", 0.5), clicks("B", 3.0, seed=1))
    )
    _, (found,) = compare(a, [b], "auc", resamples=60)
    interval = next(c.interval for c in found.cohorts if c.value == "part")
    assert (interval.low, interval.high) == (-1.0, 1.0)


def test_a_metric_that_nobody_measured_is_refused():
    with pytest.raises(
        CompareError, match="metric=hr_10 is not among what A was measured by: ndcg_10"
    ):
        compare(model("A", 0.5), [model("B", 0.3)], "hr_10")
    assert metrics_of(model("A", 0.5)) == ["ndcg_10"]


def test_the_users_that_moved_most():
    up = np.zeros(1200)
    up[[3, 8]] = 1.0, 0.5
    down = np.zeros(1200)
    down[[4, 9]] = 0.25, 1.0
    gained, lost = moved_most(
        Answers("A", "p", frame(up)), Answers("B", "p", frame(down)), "ndcg_10", 3
    )
    assert gained["user"].to_list() == ["u3", "u8"]
    assert lost["user"].to_list() == ["u9", "u4"]
    assert lost["rank_other"].to_list() == [1, 4] and lost["rank"].to_list() == [None, None]


def test_the_users_whose_clicks_moved_most_are_those_of_the_loss():
    good, poor = clicks("good", 0.5), clicks("poor", 3.0, seed=1)
    labels, users = good.frame["label"].to_numpy(), good.frame["user"].to_numpy()
    losses = [log_losses(labels, a.frame["score"].to_numpy()) for a in (good, poor)]
    by_user = np.bincount(users, weights=losses[0] - losses[1]) / np.bincount(users)
    for metric in ("auc", "gauc", "logloss"):
        gained, lost = moved_most(good, poor, metric, 3)
        assert gained["user"].to_list() == np.argsort(by_user)[:3].tolist()
        assert lost["user"].to_list() == np.argsort(-by_user)[:3].tolist()
        assert gained["difference"].to_list() == pytest.approx(sorted(by_user)[:3])
        assert gained["questions"].to_list() == [4, 4, 4]


@pytest.mark.parametrize("metric", ["auc", "gauc", "logloss"])
def test_clicks_have_cohorts_too(metric):
    part = pl.Series("cohort/half", ["one", "other", "none"] * 400)
    models = []
    for made in (clicks("good", 0.5), clicks("poor", 3.0, seed=1)):
        labels = pl.when(part == "none").then(pl.lit(1, pl.Int8)).otherwise("label").alias("label")
        models.append(replace(made, frame=made.frame.with_columns(part, labels)))
    good, poor = models
    _, (found,) = compare(good, [poor], metric, resamples=60)
    parts = {cohort.value: cohort for cohort in found.cohorts}
    assert set(parts) == {"one", "other"} | ({"none"} if metric == "logloss" else set())
    rows = part.to_numpy() == "one"
    labels, users = (good.frame[c].to_numpy()[rows] for c in ("label", "user"))
    ours, theirs = (a.frame["score"].to_numpy()[rows] for a in (good, poor))
    value = {
        "auc": lambda s: auc(labels, s),
        "gauc": lambda s: gauc(labels, s, users),
        "logloss": lambda s: log_losses(labels, s).mean(),
    }[metric]
    assert parts["one"].interval.estimate == pytest.approx(value(ours) - value(theirs))
    assert parts["one"].questions == 400
    assert compare(good, [poor], metric, resamples=60, cohorts=False)[1][0].cohorts == []


@given(st.lists(st.floats(0, 1), min_size=1, max_size=12))
def test_holm_never_lowers_and_keeps_the_order(p_values):
    corrected = holm(p_values)
    assert all(p <= c <= 1 for p, c in zip(p_values, corrected, strict=True))
    order = np.argsort(p_values, kind="stable")
    assert (np.diff(np.array(corrected)[order]) >= 0).all()
