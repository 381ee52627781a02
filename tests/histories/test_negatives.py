"""Sampled negatives: never the user's own, and by the weights they claim."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from recsys.histories.negatives import NegativeSampler, Sampling
from recsys.histories.questions import SplitError
from recsys.histories.store import HistoryStore

ITEMS = 9


@given(
    histories=st.lists(
        st.just(list(range(1, ITEMS + 1))) | st.lists(st.integers(1, ITEMS), max_size=12),
        min_size=1,
        max_size=6,
    ),
    sampling=st.sampled_from(["uniform", "popularity"]),
    per_positive=st.integers(1, 5),
    stream=st.integers(0, 3),
)
def test_never_the_users_own_and_only_what_has_weight(
    histories: list[list[int]], sampling: Sampling, per_positive: int, stream: int
) -> None:
    store = HistoryStore.from_lists(histories, items=ITEMS)
    ends = np.maximum(store.lengths - 2, 0)
    trained = {i for h, e in zip(histories, ends, strict=True) for i in h[:e]}
    possible = set(range(1, ITEMS + 1)) if sampling == "uniform" else trained
    left = [bool(possible - set(h)) for h in histories]
    if not any(some and h for some, h in zip(left, histories, strict=True)) and any(histories):
        with pytest.raises(SplitError, match="no negative can be drawn"):
            NegativeSampler(store, ends, sampling, per_positive, seed=0)
        return
    sampler = NegativeSampler(store, ends, sampling, per_positive, seed=0)
    assert sampler.can_draw(np.arange(store.users)).tolist() == left
    users = np.repeat(np.flatnonzero(left), 20)
    drawn = sampler.draw(users, stream)
    assert drawn.shape == (len(users), per_positive)
    for user, items in zip(users.tolist(), drawn.tolist(), strict=True):
        assert set(items) <= possible - set(histories[user])


@pytest.mark.parametrize("sampling", ["uniform", "popularity"])
def test_drawn_in_proportion_to_the_weights_that_are_left(sampling: Sampling) -> None:
    # Training counts of items 1 ... 6: 5 1 3 0 2 4; what the last user has lies among the others.
    trained = [[1] * 5, [2], [3] * 3, [5] * 2, [6] * 4]
    store = HistoryStore.from_lists([*trained, [1, 4, 6, 5]], items=7)
    ends = np.array([5, 1, 3, 2, 4, 0])
    sampler = NegativeSampler(store, ends, sampling, 5, seed=3)
    drawn = sampler.draw(np.full(40_000, 5), 0)
    shares = np.bincount(drawn.ravel(), minlength=8) / drawn.size
    weights = np.array(
        [0, 0, 1, 1, 0, 0, 0, 1] if sampling == "uniform" else [0, 0, 1, 3, *[0] * 4]
    )
    np.testing.assert_allclose(shares, weights / weights.sum(), atol=0.01)


def test_a_draw_is_named_by_seed_and_stream() -> None:
    store = HistoryStore.from_lists([[1, 2], [3]], items=500)
    users = np.array([0, 1, 1])

    def drawn(seed: int, *stream: int) -> list[list[int]]:
        sampler = NegativeSampler(store, store.lengths, "uniform", 4, seed)
        return sampler.draw(users, *stream).tolist()

    assert drawn(0, 2, 5) == drawn(0, 2, 5)
    assert len({str(drawn(*key)) for key in [(0, 2, 5), (0, 2, 6), (0, 1, 5), (1, 2, 5)]}) == 4
    assert drawn(0, 1)[1] != drawn(0, 1)[2]  # two positives of one user


def test_where_everybody_has_everything_it_is_said() -> None:
    store = HistoryStore.from_lists([[2, 3, 1], [], [3, 1, 2]], items=3)
    with pytest.raises(SplitError, match=r"each of 2 users has the whole catalogue \(3 items\)"):
        NegativeSampler(store, store.lengths, "uniform", 1, seed=0)
    store = HistoryStore.from_lists([[1], [2, 3, 1]], items=3)
    with pytest.raises(SplitError, match=r"each of 2 users has every item of training \(1 items"):
        NegativeSampler(store, np.array([1, 0]), "popularity", 1, seed=0)


def test_numbers_and_names_are_checked() -> None:
    store = HistoryStore.from_lists([[1]], items=3)
    with pytest.raises(SplitError, match=r"^questions\.negatives_per_positive must be .*not 0"):
        NegativeSampler(store, store.lengths, "uniform", 0, seed=0)
    with pytest.raises(SplitError, match=r"^questions\.sampling is .*, not 'hard'"):
        NegativeSampler(store, store.lengths, "hard", 1, seed=0)  # type: ignore[arg-type]
