"""A split conserves and orders: nothing lost or doubled, training end ≤ history end ≤ target."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from recsys.histories.questions import Split, SplitError, leave_one_out, user_share
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
    nothing_is_lost_or_doubled(store, split)


def nothing_is_lost_or_doubled(store: HistoryStore, split: Split) -> None:
    """Every event trains or answers exactly once, and a question's parts stand in order."""
    lengths = store.lengths.tolist()
    used = np.zeros((store.users, max(lengths) + 1), dtype=int)
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


@given(lengths=LENGTHS, percent=st.integers(1, 49))
def test_share_laws(lengths: list[int], percent: int) -> None:
    store = HistoryStore.from_lists([[1] * n for n in lengths])
    answers = [max(1, -(-n * percent // 100)) for n in lengths]
    try:
        split = user_share(store, percent / 100)
    except SplitError:
        assert all(n <= 2 * k or n - 2 * k < 2 for n, k in zip(lengths, answers, strict=True))
        return
    eligible = [u for u, n in enumerate(lengths) if n > 2 * answers[u]]
    for questions in (split.validation, split.test):
        assert questions.users.tolist() == eligible
        assert np.array_equal(questions.history_ends, questions.target_begins)
        sizes = questions.target_ends - questions.target_begins
        assert sizes.tolist() == [answers[u] for u in eligible]
    assert split.test.target_ends.tolist() == [lengths[u] for u in eligible]
    assert split.counts["test_events"] == sum(answers[u] for u in eligible)
    nothing_is_lost_or_doubled(store, split)


def test_a_share_is_a_decimal_not_a_binary_fraction() -> None:
    lengths = [70, 69, 71, 3, 10, 30]
    split = user_share(HistoryStore.from_lists([[1] * n for n in lengths]), 0.1)
    sizes = split.test.target_ends - split.test.target_begins
    assert sizes.tolist() == [7, 7, 8, 1, 1, 3]


def test_impossible_shares_say_why() -> None:
    store = HistoryStore.from_lists([[1] * 4] * 2)
    for share in (0.0, 0.5, -1.0, float("nan")):
        with pytest.raises(SplitError, match=r"split.share must be more than 0 and less than 0.5"):
            user_share(store, share)
    with pytest.raises(SplitError, match=r"at least 3 events .*the longest of 2 histories has 2"):
        user_share(HistoryStore.from_lists([[1, 2], [1]]))
    with pytest.raises(SplitError, match=r"nothing to learn from: the longest of 2 .* 3 events"):
        user_share(HistoryStore.from_lists([[1] * 3] * 2))
