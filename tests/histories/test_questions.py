"""A split conserves and orders: nothing lost or doubled, training end ≤ history end ≤ target."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import get_args

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from recsys.histories.questions import (
    Split,
    SplitError,
    Target,
    global_time,
    leave_one_out,
    user_share,
)
from recsys.histories.store import NO_TIME, HistoryStore

SHARED = Path(__file__).parents[3] / "shared" / "data"
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
    assert split.protocol == "loo"
    assert split.counts == {
        "users": store.users,
        "users_only_training": store.users - len(eligible),
        "training_events": split.training_ends.sum(),
        "validation_questions": len(split.validation),
        "test_questions": len(split.test),
    }
    nothing_is_lost_or_doubled(store, split)
    refitting_learns_all_before_the_test(store, split)


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


def refitting_learns_all_before_the_test(store: HistoryStore, split: Split) -> None:
    """The same test, every other event trains, and nobody is asked to choose."""
    refitted = split.refitted()
    assert refitted.test is split.test and refitted.protocol == split.protocol
    assert len(refitted.validation) == 0
    nothing_is_lost_or_doubled(store, refitted)
    assert refitted.counts["training_events"] == refitted.training_ends.sum()
    assert not any(name.startswith("validation") for name in refitted.counts)
    assert refitted.in_words.endswith("then refitted on training + validation")


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
    refitting_learns_all_before_the_test(store, split)


def test_a_share_is_a_decimal_not_a_binary_fraction() -> None:
    lengths = [70, 69, 71, 3, 10, 30]
    split = user_share(HistoryStore.from_lists([[1] * n for n in lengths]), 0.1)
    sizes = split.test.target_ends - split.test.target_begins
    assert sizes.tolist() == [7, 7, 8, 1, 1, 3]
    split = user_share(HistoryStore.from_lists([[1] * 100] * 2), 0.07)  # 7.000000000000001
    assert split.counts["test_events"] == 14


def test_impossible_shares_say_why() -> None:
    store = HistoryStore.from_lists([[1] * 4] * 2)
    for share in (0.0, 0.5, -1.0, float("nan")):
        with pytest.raises(SplitError, match=r"split.share must be more than 0 and less than 0.5"):
            user_share(store, share)
    with pytest.raises(SplitError, match=r"at least 3 events .*the longest of 2 histories has 2"):
        user_share(HistoryStore.from_lists([[1, 2], [1]]))
    with pytest.raises(SplitError, match=r"nothing to learn from: the longest of 2 .* 3 events"):
        user_share(HistoryStore.from_lists([[1] * 3] * 2))


# --- global time ---

TIMES = st.lists(
    st.lists(st.integers(0, 20), max_size=8).map(sorted), min_size=4, max_size=20
).filter(lambda rows: any(rows))


def timed(rows: list[list[int]]) -> HistoryStore:
    """A store with these times, in microseconds; None: unknown."""
    store = HistoryStore.from_lists([[1] * len(row) for row in rows])
    flat = np.array([NO_TIME if t is None else t for row in rows for t in row], dtype=np.int64)
    return dataclasses.replace(store, times=flat)


def iso(micros: int) -> str:
    return f"1970-01-01T00:00:00.{micros:06d}"


@given(
    rows=TIMES,
    cuts=st.tuples(st.integers(2, 14), st.integers(6, 18)),
    new=st.booleans(),
)
@pytest.mark.parametrize("target", get_args(Target))
def test_time_laws(rows: list[list[int]], cuts: tuple[int, int], target: Target, new: bool) -> None:
    store = timed(rows)
    first, second = cuts
    try:
        split = global_time(
            store,
            validation_cut=iso(first),
            test_cut=iso(second),
            target=target,
            new_users="asked" if new else "left_out",
        )
    except SplitError:
        training = max(sum(t < first for t in row) for row in rows)
        asked = [
            any(a <= t < b for t in row) and (new or any(t < a for t in row))
            for a, b in ((first, second), (second, 99))
            for row in rows
        ]
        val, test = asked[: len(rows)], asked[len(rows) :]
        assert first >= second or training < 2 or not any(val) or not any(test)
        return
    assert split.protocol == f"time-{target}"
    assert split.training_ends.tolist() == [sum(t < first for t in row) for row in rows]
    for questions, low, high in ((split.validation, first, second), (split.test, second, 99)):
        wanted = []
        for user, row in enumerate(rows):
            c, e = sum(t < low for t in row), sum(t < high for t in row)
            if c == e or (c == 0 and not new):
                continue
            if target == "last":
                wanted.append((user, e - 1, e - 1, e))
            elif target == "first":
                wanted.append((user, c, c, c + 1))
            elif target == "all":
                wanted.append((user, c, c, e))
            else:
                wanted += [(user, p, p, p + 1) for p in range(c, e)]
        got = zip(
            questions.users.tolist(),
            questions.history_ends.tolist(),
            questions.target_begins.tolist(),
            questions.target_ends.tolist(),
            strict=True,
        )
        assert list(got) == wanted
    assert split.counts["users_cut_uncertain"] == 0
    assert split.counts["test_questions"] == len(split.test)
    new_ones = sum(bool(row) and min(row) >= second for row in rows)
    assert split.counts["test_users_new"] == new_ones
    refitted = split.refitted()
    assert refitted.training_ends.tolist() == [sum(t < second for t in row) for row in rows]
    assert refitted.test is split.test and len(refitted.validation) == 0


def test_windows_of_all_and_successive_lose_and_double_nothing() -> None:
    store = timed([[0, 1, 2, 2, 3, 9], [0, 0, 5], [2], [9, 9], [1, 1]])
    for target in ("all", "successive"):
        split = global_time(
            store, validation_cut=iso(2), test_cut=iso(5), target=target, new_users="asked"
        )
        nothing_is_lost_or_doubled(store, split)


def test_cuts_by_share() -> None:
    rows = [[0, 10], [1, 2, 3, 4], [5, 6, 7, 7, 7]]
    split = global_time(
        timed(rows), validation_cut=0.5, test_cut=0.9, target="all", new_users="asked"
    )
    # 11 events: event number 5 (time 5) and number 9 (time 7, with its equals) begin the windows.
    assert split.training_ends.tolist() == [1, 4, 0]
    assert split.validation.users.tolist() == [2]
    assert split.validation.target_ends.tolist() == [2]
    assert split.test.users.tolist() == [0, 2]
    assert split.counts["test_answers"] == 4
    assert split.counts["validation_users_new"] == 1


def test_unknown_times_around_a_cut_leave_the_user_out() -> None:
    rows: list[list[int]] = [
        [0, 1, 5, 9],  # certain
        [0, None, 3, 9],  # between 0 and 3: before both cuts, certain
        [0, 1, None, 9],  # somewhere from 1 to 9: uncertain
        [0, None],  # at or after 0: uncertain
        [None, 9],  # before or at 9: uncertain
        [0, 1, 5, None, 6, 9],  # between two that fall alike: certain
        [9, 0, 1],  # out of order: uncertain
    ]  # type: ignore[list-item]
    split = global_time(
        timed(rows), validation_cut=iso(4), test_cut=iso(7), target="last", new_users="asked"
    )
    assert split.test.users.tolist() == [0, 1, 5]
    assert split.validation.users.tolist() == [0, 5]
    assert split.training_ends.tolist() == [2, 3, 2, 1, 0, 2, 0]
    assert split.counts["users_cut_uncertain"] == 4


def test_impossible_cuts_say_why() -> None:
    def cut(store: HistoryStore, first: float | str, second: float | str) -> None:
        global_time(
            store, validation_cut=first, test_cut=second, target="all", new_users="left_out"
        )

    store = timed([[0, 1, 5, 9], [0, 2]])
    with pytest.raises(SplitError, match="needs times, and the log has none"):
        cut(HistoryStore.from_lists([[1, 2, 3]] * 2), 0.8, 0.9)
    with pytest.raises(SplitError, match="needs times, and the log has none"):
        cut(timed([[None], [None]]), 0.8, 0.9)  # type: ignore[list-item]
    with pytest.raises(SplitError, match=r"split.test_cut must be a share .* not 1.5"):
        cut(store, 0.8, 1.5)
    with pytest.raises(ValueError, match=r"split.validation_cut='soon' cannot be read"):
        cut(store, "soon", 0.9)
    with pytest.raises(SplitError, match=r"split.validation_cut=0.9 .* must be earlier than"):
        cut(store, 0.9, 0.8)
    with pytest.raises(SplitError, match=r"no test questions: .* from 1970-01-02 on; the log's"):
        cut(store, iso(3), "1970-01-02")
    with pytest.raises(SplitError, match="no validation questions"):
        cut(store, iso(6), iso(9))
    with pytest.raises(SplitError, match=r"nobody has two events before .*=1970-01-01T00:00:00"):
        cut(timed([[0, 5, 9]]), iso(5), iso(9))
    with pytest.raises(SplitError, match=r"split.target must be .* not 'next'"):
        global_time(
            store,
            validation_cut=0.5,
            test_cut=0.9,
            target="next",  # type: ignore[arg-type]
            new_users="asked",
        )


@pytest.mark.skipif(not SHARED.is_dir(), reason="the shared tables are not on this machine")
def test_counts_of_real_logs() -> None:
    def store_of(frame: pl.DataFrame, times: pl.Expr) -> HistoryStore:
        lengths = frame.group_by("user_id", maintain_order=True).len()["len"].to_list()
        store = HistoryStore.from_lists([[1] * n for n in lengths])
        return dataclasses.replace(store, times=frame.select(times).to_series().to_numpy())

    micros = (pl.col("timestamp") * 1_000_000).fill_null(NO_TIME)
    ta_feng = pl.read_parquet(SHARED / "ta_feng.parquet").sort("user_id", "timestamp")
    split = global_time(
        store_of(ta_feng, micros),
        validation_cut=0.8,
        test_cut=0.9,
        target="all",
        new_users="left_out",
    )
    assert (split.counts["test_questions"], split.counts["test_users_new"]) == (8436, 1523)

    ml1m = pl.read_parquet(SHARED / "ml1m.parquet").sort("user_id", "position")
    store = store_of(ml1m, micros)
    share = user_share(store, 0.1)
    assert np.maximum(share.training_ends - 5, 0).sum() == 764_017
    assert share.counts["validation_events"] == share.counts["test_events"] == 102_697
    split = global_time(store, validation_cut=0.8, test_cut=0.9, target="all", new_users="asked")
    known = ml1m["timestamp"].drop_nulls().sort()
    low, high = pl.col("timestamp_lo").fill_null(0), pl.col("timestamp_hi").fill_null(1 << 32)
    straddled = [
        ((low < cut) & (high >= cut)).any()
        for cut in (known[int(len(known) * 0.8)], known[int(len(known) * 0.9)])
    ]  # by the table's own brackets of the ratings whose time is unknown
    expected = ml1m.group_by("user_id").agg((straddled[0] | straddled[1]).alias("left_out"))
    assert split.counts["users_cut_uncertain"] == expected["left_out"].sum()
