"""The rank correlation: as scipy has it, undefined where it says nothing, and in words."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import spearmanr

from recsys.explain.faithfulness import Correlation, mean_correlation, rank_correlation


@given(st.lists(st.tuples(st.integers(0, 4), st.integers(-3, 3)), min_size=3, max_size=40))
def test_it_is_spearmans_with_ties(pairs: list[tuple[int, int]]) -> None:
    weights, drops = (np.array(column, dtype=float) / 7 for column in zip(*pairs, strict=True))
    found = rank_correlation(weights, drops)
    if np.ptp(weights) == 0 or np.ptp(drops) == 0:
        assert found.value is None
    else:
        assert found.value == pytest.approx(spearmanr(weights, drops).statistic)
        assert found.chance == pytest.approx(1.96 / np.sqrt(len(pairs) - 1))


@pytest.mark.parametrize(
    ("weights", "drops", "why"),
    [
        ([], [], "fewer than 3 events"),
        ([1.0], [2.0], "fewer than 3 events"),
        ([0.5, 0.5], [1.0, 2.0], "fewer than 3 events"),
        ([0.25] * 4, [1.0, 2.0, 3.0, 4.0], "the map weighs all events alike"),
        ([0.1, 0.2, 0.3, 0.4], [0.0] * 4, "no event moves the score"),
    ],
)
def test_where_there_is_no_order_it_says_so(
    weights: list[float], drops: list[float], why: str
) -> None:
    found = rank_correlation(np.array(weights), np.array(drops))
    assert found.value is None and why in found.undefined
    assert found.verdict == f"cannot be judged: {found.undefined}"


def test_rounding_is_no_order() -> None:
    weights = np.array([0.1, 0.2, 0.3, 0.4])
    noise = np.array([1e-6, -1e-6, 2e-6, 3e-6])
    assert rank_correlation(weights, noise, score=20.0).value is None
    assert rank_correlation(weights, noise * 1000, score=20.0).value is not None
    assert rank_correlation(0.25 + noise / 100, weights).value is None


def test_a_mean_over_histories_leaves_out_what_is_not_defined() -> None:
    some = [Correlation(0.5, 0.4), Correlation(None, 1.0, "why"), Correlation(0.1, 0.3)]
    found, users = mean_correlation(some)
    assert users == 2 and found.value == pytest.approx(0.3)
    assert found.chance == pytest.approx(0.25)  # of a mean of two: less than of one
    none, users = mean_correlation([some[1]])
    assert (none.value, none.undefined, users) == (None, "why", 0)
    assert mean_correlation([])[0].value is None


def test_chance_is_what_maps_without_relation_reach() -> None:
    draw = np.random.default_rng(0)
    found = [rank_correlation(draw.random(30), draw.random(30)) for _ in range(2000)]
    within = [abs(one.value or 0) < one.chance for one in found]
    assert np.mean(within) == pytest.approx(0.95, abs=0.015)
