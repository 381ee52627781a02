"""Laws of the click metrics, on generated rows with many ties and users of one class."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from recsys.evaluation.click_metrics import (
    auc,
    calibration_error,
    gauc,
    log_losses,
    logloss,
    normalised_entropy,
    probabilities,
    request_ranks,
    user_aucs,
)

# label, probability (few different ones, so that many are tied), user
row = st.tuples(st.integers(0, 1), st.integers(0, 8).map(lambda n: n / 8), st.integers(-1, 3))
rows = st.lists(row, min_size=1, max_size=40).map(
    lambda made: tuple(np.array(column) for column in zip(*made, strict=True))
)


def slow_auc(labels: np.ndarray, scores: np.ndarray) -> float:
    """The definition, pair by pair."""
    pairs = [
        1.0 if clicked > other else 0.5 if clicked == other else 0.0
        for clicked in scores[labels == 1]
        for other in scores[labels == 0]
    ]
    return float(np.mean(pairs)) if pairs else float("nan")


@given(rows)
def test_auc_is_the_share_of_pairs_in_order(table):
    labels, scores, _ = table
    np.testing.assert_allclose(auc(labels, scores), slow_auc(labels, scores), rtol=1e-12)


@given(rows)
def test_auc_reads_the_order_only_and_turns_with_it(table):
    labels, scores, users = table
    assert_same(auc(labels, 3 * scores**3 - 7), auc(labels, scores))
    assert_same(gauc(labels, 3 * scores**3 - 7, users), gauc(labels, scores, users))
    np.testing.assert_allclose(auc(labels, -scores), 1 - auc(labels, scores), rtol=1e-12)
    np.testing.assert_allclose(auc(1 - labels, scores), 1 - auc(labels, scores), rtol=1e-12)


def test_infinite_scores_are_the_first_and_the_last():
    assert auc(np.array([1, 0, 1, 0]), np.array([np.inf, 5.0, -np.inf, -np.inf])) == 0.625


@given(rows, st.randoms(use_true_random=False))
def test_order_of_rows_changes_nothing(table, random):
    labels, scores, users = table
    order = np.array(random.sample(range(len(labels)), len(labels)))
    again = (labels[order], scores[order], users[order])
    assert_same(auc(*again[:2]), auc(*table[:2]))
    assert_same(gauc(*again), gauc(*table))
    for binning in ("equal_width", "equal_mass"):
        np.testing.assert_allclose(
            calibration_error(*again[:2], 4, binning),
            calibration_error(*table[:2], 4, binning),
            atol=1e-12,
        )
    before, after = request_ranks(*table), request_ranks(*again)
    assert after.relevant.tolist() == before.relevant.tolist()
    assert after.best.tolist() == before.best.tolist()


@given(rows)
def test_auc_of_each_user_is_the_auc_of_its_rows(table):
    labels, scores, users = table
    found = user_aucs(labels, scores, users)
    assert found.users_U.tolist() == sorted(set(users.tolist()))
    for user, value, impressions, clicks in zip(
        found.users_U, found.aucs_U, found.impressions_U, found.clicks_U, strict=True
    ):
        own = users == user
        assert_same(value, auc(labels[own], scores[own]))
        assert (impressions, clicks) == (own.sum(), labels[own].sum())


@given(rows)
def test_gauc_is_the_weighted_mean_over_users_with_both_classes(table):
    labels, scores, users = table
    totals = {"impressions": (0.0, 0.0), "clicks": (0.0, 0.0), "users": (0.0, 0.0)}
    for user in set(users.tolist()):
        own = users == user
        value = slow_auc(labels[own], scores[own])
        if not np.isnan(value):
            for name, weight in {
                "impressions": own.sum(),
                "clicks": labels[own].sum(),
                "users": 1,
            }.items():
                summed, total = totals[name]
                totals[name] = (summed + weight * value, total + weight)
    for name, (summed, total) in totals.items():
        expected = summed / total if total else np.nan
        np.testing.assert_allclose(gauc(labels, scores, users, name), expected, rtol=1e-12)


def test_gauc_misjudges_scores_that_hold_the_users_other_answers() -> None:
    """Of coins that everybody tosses alike, the mean of earlier tosses knows nothing: .5, not less.

    Of two questions of a user with unlike answers, the later one's score holds the earlier one's
    answer, which is the other one. AUC over all users compares mostly across users, and sees none
    of it.
    """
    draw = np.random.default_rng(0)
    users, asked, before = 2000, 17, 50
    tosses = (draw.random((users, before + asked)) < 0.575).astype(float)
    scores = np.stack([tosses[:, t : t + before].mean(1) for t in range(asked)], 1)
    answers, whose = tosses[:, before:], np.repeat(np.arange(users), asked)
    assert gauc(answers.ravel(), scores.ravel(), whose) < 0.4
    assert auc(answers.ravel(), scores.ravel()) == pytest.approx(0.5, abs=0.02)
    frozen = scores[:, :1].repeat(asked, 1)  # what was known before the first of them
    assert gauc(answers.ravel(), frozen.ravel(), whose) == 0.5


def test_gauc_counts_whom_it_leaves_out():
    found = user_aucs(
        np.array([1, 0, 1, 1, 0]), np.arange(5.0), np.array(["a", "a", "b", "b", "c"])
    )
    assert found.counted_U.tolist() == [True, False, False]
    assert found.mean() == 0.0
    assert np.isnan(gauc(np.array([1, 0]), np.array([0.5, 0.1]), np.array([1, 2])))


@given(rows)
def test_constant_scores_know_nothing(table):
    labels, _, users = table
    constant = np.full(len(labels), 0.25)
    one_class = len(set(labels.tolist())) == 1
    assert_same(auc(labels, constant), np.nan if one_class else 0.5)
    assert gauc(labels, constant, users) == 0.5 or np.isnan(gauc(labels, constant, users))
    rate = np.full(len(labels), labels.mean())
    if one_class:
        assert np.isnan(normalised_entropy(labels, rate))
    else:
        np.testing.assert_allclose(normalised_entropy(labels, rate), 1.0)
    for binning in ("equal_width", "equal_mass"):
        assert calibration_error(labels, rate, 5, binning) < 1e-9


@given(rows, st.integers(1, 6))
def test_calibration_error_bin_by_bin(table, bins):
    labels, said, _ = table
    by_width, by_mass = {}, {}
    for label, p in zip(labels, said, strict=True):
        by_width.setdefault(min(int(p * bins), bins - 1), []).append((label, p))
        by_mass.setdefault(int((said < p).sum() * bins / len(said)), []).append((label, p))
    for binning, torn in (("equal_width", by_width), ("equal_mass", by_mass)):
        expected = sum(
            len(bin) / len(said) * abs(np.mean([y for y, _ in bin]) - np.mean([p for _, p in bin]))
            for bin in torn.values()
        )
        found = calibration_error(labels, said, bins, binning)
        np.testing.assert_allclose(found, expected, atol=1e-12)


def test_equal_mass_bins_hold_as_many_rows_each():
    said = np.linspace(0, 1, 12) ** 3  # crowded near 0: equal width would put 8 into one bin
    labels = np.tile([0, 1], 6)
    expected = sum(abs(labels[b : b + 3].sum() - said[b : b + 3].sum()) for b in range(0, 12, 3))
    np.testing.assert_allclose(calibration_error(labels, said, 4, "equal_mass"), expected / 12)


@given(rows)
def test_the_best_constant_is_the_click_rate(table):
    labels, _, _ = table
    rate = labels.mean()
    at_rate = logloss(labels, np.full(len(labels), rate))
    for other in (rate / 2, (1 + rate) / 2):
        assert at_rate <= logloss(labels, np.full(len(labels), other)) + 1e-12


def test_certain_and_wrong_costs_much_but_not_everything():
    losses = log_losses(np.array([1, 0, 1, 0]), np.array([0.0, 1.0, 1.0, 0.0]))
    assert np.isfinite(losses).all() and losses[:2].min() > 36 and losses[2:].max() < 1e-15


@given(st.lists(st.floats(-800, 800, width=32), min_size=1))
def test_logits_become_probabilities_in_order(logits):
    logits = np.sort(np.array(logits, dtype=np.float32))
    found = probabilities(logits)
    assert found.dtype == np.float64
    assert np.all((found >= 0) & (found <= 1)) and np.all(np.diff(found) >= 0)
    small = np.abs(logits) < 15
    np.testing.assert_allclose(np.log(found[small] / (1 - found[small])), logits[small], atol=1e-6)


@given(rows)
def test_ranks_in_requests_one_by_one(table):
    labels, scores, requests = table
    expected = []
    for request in sorted(set(requests.tolist()) - {-1}):  # -1: no request
        own = requests == request
        if labels[own].any():
            # sorted() is stable and False comes before True: the clicked last among equals
            shown = sorted(zip(-scores[own], labels[own] == 1, strict=True))
            expected.append([1 + i for i, (_, clicked) in enumerate(shown) if clicked])
    found = request_ranks(labels, scores, requests)
    assert found.questions == len(expected)
    assert [found.ranks[found.question == q].tolist() for q in range(found.questions)] == expected


def test_a_model_that_scores_alike_gains_nothing_in_a_request():
    found = request_ranks(np.array([1, 0, 0, 1]), np.zeros(4), np.array([7, 7, 7, 9]))
    assert found.best.tolist() == [3, 1]
    assert request_ranks(np.array([0, 1]), np.zeros(2), np.array([7, -1])).questions == 0


@pytest.mark.parametrize("metric", [auc, logloss, normalised_entropy, calibration_error])
@pytest.mark.parametrize(
    ("labels", "scores", "words"),
    [
        ([], [], "no rows"),
        ([1, 0], [0.5], "labels of shape"),
        ([1, 0, 2], [0.5, 0.5, 0.5], r"0 or 1; 1 are not, the first is 2 in row 2"),
        ([1.0, np.nan], [0.5, 0.5], r"0 or 1; 1 are not, the first is nan in row 1"),
        ([1, -1], [0.5, 0.5], "0 or 1"),
        ([1, 0], [0.5, np.nan], r"1 of 2 scores are NaN, the first in row 1"),
    ],
)
def test_refuses_what_cannot_be_judged(metric, labels, scores, words):
    with pytest.raises(ValueError, match=words):
        metric(np.array(labels), np.array(scores))
    with pytest.raises(ValueError, match=words):
        gauc(np.array(labels), np.array(scores), np.zeros(len(labels)))
    with pytest.raises(ValueError, match=words):
        request_ranks(np.array(labels), np.array(scores), np.zeros(len(labels)))


@pytest.mark.parametrize("metric", [logloss, normalised_entropy, calibration_error])
def test_logits_are_no_probabilities(metric):
    for logit in (-2.5, 2.5):
        with pytest.raises(ValueError, match=rf"1 do not, the first is {logit} in row 1.*logits"):
            metric(np.array([1, 0]), np.array([0.5, logit]))


def test_unknown_names_are_refused_with_the_nearest():
    labels, scores = np.array([1, 0]), np.array([0.5, 0.2])
    with pytest.raises(ValueError, match=r"weighting must be one of .* did you mean 'clicks'"):
        gauc(labels, scores, np.zeros(2), "click")
    with pytest.raises(ValueError, match=r"binning must be one of .* did you mean 'equal_mass'"):
        calibration_error(labels, scores, 5, "equal_masses")
    with pytest.raises(ValueError, match="bins must be at least 1, not 0"):
        calibration_error(labels, scores, 0)
    with pytest.raises(ValueError, match="1 requests for 2 labels"):
        request_ranks(labels, scores, np.zeros(1))
    with pytest.raises(ValueError, match=r"users of shape \(3,\) for 2 labels"):
        gauc(labels, scores, np.zeros(3))


def assert_same(a: float, b: float) -> None:
    assert a == b or (np.isnan(a) and np.isnan(b)), (a, b)
