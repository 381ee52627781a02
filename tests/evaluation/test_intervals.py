"""Intervals: against loops that repeat the drawn users' rows, and against simulated truth."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recsys.evaluation import intervals
from recsys.evaluation.click_metrics import auc, gauc, logloss
from recsys.evaluation.intervals import (
    bootstrap_columns,
    bootstrap_gain,
    bootstrap_means,
    bootstrap_metric,
    bootstrap_parts,
    jackknife,
    paired_bootstrap,
    user_groups,
)

METRICS = {"auc": auc, "gauc": gauc, "logloss": logloss}


def table(users: int = 40, seed: int = 1) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Labels, users of unequal size in random order, a good model's scores and a poor one's."""
    draw = np.random.Generator(np.random.PCG64(seed))
    user = draw.permutation(np.repeat(np.arange(users), draw.integers(1, 9, users)))
    taste = draw.normal(size=users)[user] + draw.normal(size=len(user))
    label = (taste + draw.normal(size=len(user)) > 0).astype(np.int8)
    good = 1 / (1 + np.exp(-1.5 * taste))
    poor = 1 / (1 + np.exp(-0.5 * taste - draw.normal(size=len(user))))
    return label, user, good.round(1), poor.round(1)  # rounded: ties


def drawn_rows(users: np.ndarray, resamples: int, seed: int) -> list[np.ndarray]:
    """Row numbers of each resample: those of each drawn user, as often as it was drawn."""
    draw = np.random.Generator(np.random.PCG64(seed))
    distinct = np.unique(users)
    rows = [np.flatnonzero(users == user) for user in distinct]
    return [
        np.concatenate([rows[u] for u in draw.integers(len(distinct), size=len(distinct))])
        for _ in range(resamples)
    ]


def one_by_one(metric: str, labels: np.ndarray, users: np.ndarray, scores: np.ndarray) -> float:
    if metric == "gauc":
        return gauc(labels, scores, users)
    return METRICS[metric](labels, scores)


@pytest.mark.parametrize("metric", METRICS)
def test_equal_to_repeating_the_drawn_rows(metric):
    labels, users, a, b = table()
    found = paired_bootstrap(labels, users, a, b, metric, resamples=25, seed=5, level=0.8)
    differences = [
        one_by_one(metric, labels[rows], users[rows], a[rows])
        - one_by_one(metric, labels[rows], users[rows], b[rows])
        for rows in drawn_rows(users, 25, 5)
    ]
    assert found.estimate == pytest.approx(
        one_by_one(metric, labels, users, a) - one_by_one(metric, labels, users, b), abs=1e-12
    )
    expected = np.quantile(differences, [0.1, 0.9])
    np.testing.assert_allclose([found.low, found.high], expected, atol=1e-12)


@pytest.mark.parametrize("metric", METRICS)
def test_of_one_model_alone(metric):
    labels, users, a, _ = table()
    found = bootstrap_metric(labels, users, a, metric, resamples=25, seed=5)
    values = [
        one_by_one(metric, labels[rows], users[rows], a[rows]) for rows in drawn_rows(users, 25, 5)
    ]
    assert found.estimate == pytest.approx(one_by_one(metric, labels, users, a), abs=1e-12)
    np.testing.assert_allclose([found.low, found.high], np.quantile(values, [0.025, 0.975]))


def test_of_means():
    _, users, a, _ = table()
    found = bootstrap_means(a, users, resamples=25, seed=5)
    values = [a[rows].mean() for rows in drawn_rows(users, 25, 5)]
    assert found.estimate == pytest.approx(a.mean())
    np.testing.assert_allclose([found.low, found.high], np.quantile(values, [0.025, 0.975]))


@given(st.sampled_from(sorted(METRICS)), st.integers(0, 99), st.integers(2, 30))
@settings(max_examples=25)
def test_swapped_models_turn_the_sign(metric, seed, users):
    labels, user, a, b = table(users, seed)
    labels[:2] = [0, 1]
    if metric == "gauc":
        user[:2] = user[0]
    there = paired_bootstrap(labels, user, a, b, metric, resamples=40, seed=seed)
    back = paired_bootstrap(labels, user, b, a, metric, resamples=40, seed=seed)
    assert back.estimate == -there.estimate
    np.testing.assert_allclose([back.low, back.high], [-there.high, -there.low], atol=1e-12)
    assert there.low <= there.high
    assert there.excludes_zero == back.excludes_zero == (there.low > 0 or there.high < 0)


@pytest.mark.parametrize("metric", METRICS)
def test_a_model_does_not_differ_from_itself(metric):
    labels, users, a, _ = table()
    same = paired_bootstrap(labels, users, a, a, metric)
    assert (same.estimate, same.low, same.high) == (0.0, 0.0, 0.0)
    assert not same.excludes_zero


@pytest.mark.parametrize("metric", METRICS)
def test_several_runs_stand_for_their_mean(metric):
    labels, users, a, b = table()
    once = paired_bootstrap(labels, users, a, b, metric, resamples=50)
    thrice = paired_bootstrap(labels, users, np.stack([a, a, a]), b, metric, resamples=50)
    np.testing.assert_allclose(
        [thrice.estimate, thrice.low, thrice.high], [once.estimate, once.low, once.high], atol=1e-12
    )
    mixed = paired_bootstrap(labels, users, np.stack([a, b]), b, metric, resamples=50)
    assert mixed.estimate == pytest.approx(once.estimate / 2)


@pytest.mark.parametrize("metric", ["mean", *METRICS])
def test_order_of_rows_and_names_of_users_change_nothing(metric):
    labels, users, a, b = table()
    order = np.random.Generator(np.random.PCG64(2)).permutation(len(labels))
    named = np.array([f"user {u:03}" for u in users])[order]
    if metric == "mean":
        before = bootstrap_means(a - b, users, resamples=50)
        after = bootstrap_means((a - b)[order], named, resamples=50)
    else:
        before = paired_bootstrap(labels, users, a, b, metric, resamples=50)
        after = paired_bootstrap(labels[order], named, a[order], b[order], metric, resamples=50)
    for end in ("estimate", "low", "high"):
        assert getattr(after, end) == pytest.approx(getattr(before, end), abs=1e-12)


def test_the_seed_names_the_draw(monkeypatch):
    labels, users, a, b = table()
    first = paired_bootstrap(labels, users, a, b, "auc", resamples=60, seed=1)
    assert paired_bootstrap(labels, users, a, b, "auc", resamples=60, seed=2) != first
    # However many are drawn together.
    monkeypatch.setattr("recsys.evaluation.intervals._DRAWN_TOGETHER", 100)
    assert paired_bootstrap(labels, users, a, b, "auc", resamples=60, seed=1) == first


def test_users_are_drawn_and_not_rows():
    """A hundred equal rows of one user say no more than one of them."""
    values = np.repeat([0.0, 1.0, 0.0, 1.0], 100)
    rows = bootstrap_means(values, np.arange(400))
    users = bootstrap_means(values, np.repeat(np.arange(4), 100))
    assert rows.high - rows.low < 0.15 < 0.9 < users.high - users.low


def test_covers_the_truth_as_often_as_it_says():
    """Two models alike in truth: the interval of their difference holds 0 in about 90 %."""
    draw = np.random.Generator(np.random.PCG64(4))
    covered = {"mean": 0, "auc": 0}
    for _ in range(120):
        users = np.repeat(np.arange(60), 4)
        of_user = np.repeat(draw.normal(size=60), 4)  # rows of a user hang together
        labels = (draw.random(240) < 0.5).astype(np.int8)
        a, b = (labels + of_user + 2 * draw.normal(size=240) for _ in range(2))
        found = paired_bootstrap(labels, users, a, b, "auc", resamples=200, seed=9, level=0.9)
        covered["auc"] += not found.excludes_zero
        surplus = np.repeat(draw.normal(size=60), 4) + draw.normal(size=240)
        found = bootstrap_means(surplus, users, resamples=200, seed=9, level=0.9)
        covered["mean"] += not found.excludes_zero
    for metric, times in covered.items():
        assert 0.8 < times / 120 < 0.98, (metric, times)


def test_sees_a_difference_that_is_there():
    labels, users, a, _ = table(users=200)
    random = np.random.Generator(np.random.PCG64(1)).random(len(labels))
    for metric, sign in (("auc", 1), ("gauc", 1), ("logloss", -1)):
        found = paired_bootstrap(labels, users, a, random, metric)
        assert found.excludes_zero and np.sign(found.low) == sign, metric


def test_draws_of_one_class_are_left_out():
    """Of three users only one has clicked; a third of the draws has no AUC."""
    labels, users = np.array([1, 0, 0, 0]), np.array([0, 0, 1, 2])
    found = bootstrap_metric(labels, users, np.array([0.9, 0.1, 0.2, 0.3]), "auc")
    assert (found.estimate, found.low, found.high) == (1.0, 1.0, 1.0)


@pytest.mark.parametrize(
    ("labels", "scores", "metric", "settings", "words"),
    [
        ([1, 1], [0.1, 0.2], "auc", {}, "no row that was clicked beside one that was not"),
        ([1, 0], [0.1, 0.2], "gauc", {}, "not defined on these rows"),
        ([1, 0], [0.1, 1.2], "logloss", {}, r"must lie in \[0, 1\]"),
        ([1, 0], [0.1, np.nan], "auc", {}, "NaN"),
        ([1, 0], [0.1], "auc", {}, "labels of shape"),
        ([1, 0], [0.1, 0.2], "acu", {}, "did you mean 'auc'"),
        ([1, 0], [0.1, 0.2], "auc", {"resamples": 1}, "at least 2 resamples"),
        ([1, 0], [0.1, 0.2], "auc", {"level": 95}, "level between 0 and 1, not 1000 and 95"),
    ],
)
def test_refuses_what_makes_no_interval(labels, scores, metric, settings, words):
    with pytest.raises(ValueError, match=words):
        bootstrap_metric(
            np.array(labels), np.arange(len(labels)), np.array(scores), metric, **settings
        )


def test_columns_are_the_means_of_each_alone():
    _, users, a, b = table()
    both = bootstrap_columns(np.column_stack([a, b, a - b]), users, resamples=60, seed=2)
    alone = [bootstrap_means(v, users, resamples=60, seed=2) for v in (a, b, a - b)]
    for one, other in zip(both, alone, strict=True):
        np.testing.assert_allclose(
            [one.estimate, one.low, one.high], [other.estimate, other.low, other.high]
        )
        assert one.p_value == other.p_value


def test_the_p_value_is_the_share_of_draws_that_turn_the_sign():
    _, users, a, b = table()
    found = bootstrap_means(a - b, users, resamples=99, seed=5)
    means = [(a - b)[rows].mean() for rows in drawn_rows(users, 99, 5)]
    expected = 2 * (min(np.sum(np.array(means) <= 0), np.sum(np.array(means) >= 0)) + 1) / 100
    assert found.p_value == pytest.approx(min(expected, 1))
    assert bootstrap_means(np.zeros(9), np.arange(9)).p_value == 1
    assert bootstrap_means(np.ones(9), np.arange(9)).p_value == pytest.approx(2 / 1001)


def test_groups_of_many_users_give_the_same_interval(monkeypatch):
    draw = np.random.Generator(np.random.PCG64(1))
    users = np.repeat(np.arange(4000), draw.integers(1, 4, 4000))
    values = draw.normal(size=4000)[users] + draw.normal(size=len(users))
    single = bootstrap_means(values, users, resamples=2000)
    monkeypatch.setattr("recsys.evaluation.intervals.MOST_DRAWN", 500)
    grouped = bootstrap_means(values, users, resamples=2000)
    assert grouped.estimate == pytest.approx(single.estimate)
    assert grouped.high - grouped.low == pytest.approx(single.high - single.low, rel=0.1)


def test_refuses_values_that_are_none():
    with pytest.raises(ValueError, match="value nan in row 1"):
        bootstrap_means(np.array([0.5, np.nan]), np.arange(2))
    with pytest.raises(ValueError, match="one value per question"):
        bootstrap_means(np.array([]), np.array([]))
    with pytest.raises(ValueError, match=r"users of shape \(3,\) for 2"):
        bootstrap_means(np.array([0.5, 0.5]), np.arange(3))


def test_parts_are_ratios_on_the_same_draws_and_the_whole_is_the_mean():
    draw = np.random.Generator(np.random.PCG64(4))
    values, users = draw.random(60), draw.integers(0, 12, 60)
    parts = draw.random((60, 3)) < 0.4
    parts[:, 0] = True
    whole, *others = bootstrap_parts(values, parts, users, resamples=50)
    alone = bootstrap_means(values, users, resamples=50)
    same = pytest.approx((alone.estimate, alone.low, alone.high))
    assert (whole.estimate, whole.low, whole.high) == same
    weights = np.concatenate(list(intervals._user_weights(12, 50, 0)))[:, users]
    for part, found in zip(parts.T[1:], others, strict=True):
        assert found.estimate == pytest.approx(values[part].mean())
        drawn = (weights * values * part).sum(1) / (weights * part).sum(1)
        assert (found.low, found.high) == pytest.approx(np.quantile(drawn, [0.025, 0.975]))
    with pytest.raises(ValueError, match="a part without questions"):
        bootstrap_parts(values, np.zeros((60, 1), dtype=bool), users)


def test_a_gain_counts_what_is_unsure_about_both():
    draw = np.random.Generator(np.random.PCG64(6))
    ours, theirs = (draw.random((2, 400)) < [[0.2], [0.1]]).astype(float)
    users = draw.integers(0, 150, 400)
    found = bootstrap_gain(ours, theirs, users, resamples=300)
    assert found is not None and found.estimate == pytest.approx(ours.sum() / theirs.sum() - 1)
    present = np.unique(users, return_inverse=True)[1]
    weights = np.concatenate(list(intervals._user_weights(present.max() + 1, 300, 0)))[:, present]
    gains = (weights @ ours) / (weights @ theirs) - 1
    assert (found.low, found.high) == pytest.approx(np.quantile(gains, [0.025, 0.975]))
    # To hold the other's mean for known would halve it.
    alone = bootstrap_means(ours - theirs, users, resamples=300)
    assert found.high - found.low > 1.3 * (alone.high - alone.low) / theirs.mean()
    assert bootstrap_gain(ours, np.zeros(400), users) is None


def test_the_jackknife_of_a_mean_is_the_interval_of_a_mean():
    values = np.random.Generator(np.random.PCG64(8)).normal(2.0, 3.0, 200)
    groups = user_groups(np.arange(200))
    assert sorted(np.bincount(groups)) == [4] * 50
    without = np.array([values[groups != group].mean() for group in range(50)])
    found = jackknife(values.mean(), without, most=np.inf)
    assert found is not None and found.estimate == values.mean()
    plain = bootstrap_means(values, np.arange(200), resamples=4000)
    assert found.high - found.low == pytest.approx(plain.high - plain.low, rel=0.15)
    # A user stays whole, and one group tells nothing.
    assert len(set(zip([7, 8, 7], user_groups(np.array([7, 8, 7])), strict=True))) == 2
    assert jackknife(1.0, np.array([1.0])) is None
    assert jackknife(1.0, np.array([1.0, np.nan])) is None
    kept = jackknife(0.1, np.array([0.0, 0.2]))
    assert kept is not None and (kept.low, kept.high) == (0.0, 1.0)


def test_the_jackknife_holds_a_coverage_that_draws_of_users_miss():
    """Of 150 samples of 120 users: how many of their intervals hold the mean coverage?"""
    draw = np.random.Generator(np.random.PCG64(9))
    shares = 1 / np.arange(1, 401) ** 0.9
    shares /= shares.sum()
    samples = [draw.choice(400, size=(120, 5), p=shares) for _ in range(150)]
    truth = np.mean([len(np.unique(lists)) / 400 for lists in samples])
    held = missed = 0
    groups = user_groups(np.arange(120))
    for lists in samples:
        own = len(np.unique(lists)) / 400
        without = [len(np.unique(lists[groups != group])) / 400 for group in range(50)]
        found = jackknife(own, np.array(without))
        assert found is not None
        held += found.low <= truth <= found.high
        drawn = [len(np.unique(lists[draw.integers(120, size=120)])) / 400 for _ in range(40)]
        low, high = np.quantile(drawn, [0.025, 0.975])
        missed += not low <= truth <= high
    assert held / 150 > 0.9
    assert missed / 150 > 0.9
