"""What heads do over many histories."""

from __future__ import annotations

import numpy as np
import pytest

from recsys.explain.summary import summarise


def test_recency_is_the_mean_over_those_who_have_an_event_so_far_back() -> None:
    short = np.array([[0.2, 0.8], [1.0, 0.0]])
    long = np.array([[0.1, 0.2, 0.3, 0.4], [0.4, 0.3, 0.2, 0.1]])
    found = summarise(["a", "b"], [short, long])
    assert found.histories == 2 and found.counts_S.tolist() == [2, 2, 1, 1]
    np.testing.assert_allclose(found.recency_MS[0], [0.6, 0.25, 0.2, 0.1])  # newest first
    np.testing.assert_allclose(found.recency_MS[1], [0.05, 0.6, 0.3, 0.4])
    np.testing.assert_allclose(found.equal_S, [0.375, 0.375, 0.25, 0.25])


def test_heads_are_as_alike_as_the_orders_of_their_weights() -> None:
    draw = np.random.default_rng(0)
    maps = []
    for length in (3, 8, 20):
        first = draw.random(length)
        maps.append(np.stack([first, first**3, 1 - first, draw.random(length), np.ones(length)]))
    found = summarise(list("abcde"), [*maps, np.ones((5, 2))]).similarity_MM
    np.testing.assert_allclose(found, found.T)
    np.testing.assert_allclose(np.diag(found)[:4], 1)
    assert found[0, 1] == pytest.approx(1) and found[0, 2] == pytest.approx(-1)
    assert abs(found[0, 3]) < 0.9
    assert np.isnan(found[4]).all()  # weighs all events alike: no order


def test_one_map_and_no_histories() -> None:
    assert summarise(["a"], [np.array([[0.1, 0.2, 0.7]])]).similarity_MM.tolist() == [[1.0]]
    assert summarise(["a"], []).histories == 0
