"""A split conserves and orders: nothing lost or doubled, training end ≤ history end ≤ target."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from recsys.histories.questions import SplitError, leave_one_out
from recsys.histories.store import HistoryStore

LENGTHS = st.lists(st.integers(0, 8), min_size=2, max_size=30).filter(lambda x: max(x) >= 3)


@given(lengths=LENGTHS, asked=st.one_of(st.none(), st.integers(1, 40)), seed=st.integers(0, 5))
def test_leave_one_out_laws(lengths: list[int], asked: int | None, seed: int) -> None:
    store = HistoryStore.from_lists([[1] * n for n in lengths])
    try:
        split = leave_one_out(store, asked, seed)
    except SplitError:
        assert max(lengths) == 3
        return
    eligible = [u for u, n in enumerate(lengths) if n >= 3]
    assert split.test.users.tolist() == eligible
    assert len(split.validation) == min(len(eligible), asked or len(eligible))
    assert set(split.validation.users.tolist()) <= set(eligible)
    used = np.zeros((store.users, 9), dtype=int)
    for user, end in enumerate(split.training_ends):
        used[user, :end] += 1
    for questions in (split.validation, split.test):
        for u, history, begin, end in zip(
            questions.users,
            questions.history_ends,
            questions.target_begins,
            questions.target_ends,
            strict=True,
        ):
            assert split.training_ends[u] <= history <= begin < end <= lengths[u]
            used[u, begin:end] += 1
    for user, n in enumerate(lengths):
        assert used[user, :n].tolist() == [1] * n
        assert used[user, n:].sum() == 0


def test_the_sample_is_seeded() -> None:
    store = HistoryStore.from_lists([[1] * 4] * 50)
    first, same, other = (leave_one_out(store, 10, seed).validation.users for seed in (0, 0, 1))
    assert np.array_equal(first, same)
    assert not np.array_equal(first, other)


def test_impossible_splits_say_why() -> None:
    with pytest.raises(SplitError, match=r"at least 3 events .*the longest of 2 histories has 2"):
        leave_one_out(HistoryStore.from_lists([[1, 2], [1]]))
    with pytest.raises(SplitError, match="the log holds 1 user"):
        leave_one_out(HistoryStore.from_lists([[1, 2, 3]]))
    with pytest.raises(
        SplitError, match=r"nothing to learn from: .*3 events; .*validation_users=N"
    ):
        leave_one_out(HistoryStore.from_lists([[1, 2, 3], [1, 2, 3]]))
    with pytest.raises(SplitError, match="'all' or at least 1, not 0"):
        leave_one_out(HistoryStore.from_lists([[1, 2, 3], [1]]), 0)
