"""Cleaning obeys laws: conservation, fixed points, independence of the rows' order."""

from collections import Counter

import numpy as np
import polars as pl
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from polars.testing import assert_frame_equal

from recsys.logs import cleaning as cleaning_module
from recsys.logs.cleaning import Cleaning, clean, into_histories, k_core
from recsys.logs.errors import LogError

row = st.tuples(
    st.integers(0, 3),  # user
    st.integers(0, 3),  # item
    st.integers(0, 5),  # time
    st.sampled_from([5.0, 2.0, 1.0, None]),
    st.sampled_from([1, 0, None]),
)
rows = st.lists(row, min_size=1, max_size=60)
cleanings = st.builds(
    Cleaning,
    deduplicate=st.sampled_from(["off", "exact", "first", "last"]),
    user_core=st.integers(1, 3),
    item_core=st.integers(1, 3),
    minimum_rating=st.sampled_from([None, 2.0]),
    positive_only=st.booleans(),
    drop_consecutive_repeats=st.booleans(),
    time_from=st.sampled_from([None, "1970-01-01T00:00:00.000001"]),
    time_until=st.sampled_from([None, "1970-01-01T00:00:00.000004"]),
)


def frame(data):
    schema = {
        "user": pl.UInt32,
        "item": pl.UInt32,
        "time": pl.Int64,
        "rating": pl.Float32,
        "label": pl.Int8,
    }
    return pl.DataFrame(data, schema=schema, orient="row")


def plain_core(pairs, user_core, item_core):
    """The k-core, one event at a time."""
    kept = set(range(len(pairs)))
    while True:
        users = Counter(pairs[i][0] for i in kept)
        items = Counter(pairs[i][1] for i in kept)
        bad = next(
            (
                i
                for i in sorted(kept)
                if users[pairs[i][0]] < user_core or items[pairs[i][1]] < item_core
            ),
            None,
        )
        if bad is None:
            return sorted(kept)
        kept.remove(bad)


def plain_clean(data, cleaning):
    """The same as `clean`, written with lists."""
    if cleaning.deduplicate == "exact":
        data = list(dict.fromkeys(data))
    begin, end = cleaning.moments()
    data = [r for r in data if (begin is None or r[2] >= begin) and (end is None or r[2] < end)]
    data = sorted(data, key=lambda r: (r[0], r[2]))
    if cleaning.deduplicate == "first":
        first = {}
        for i, r in enumerate(data):
            first.setdefault(r[:2], i)
        data = [data[i] for i in sorted(first.values())]
    if cleaning.deduplicate == "last":
        data = [data[i] for i in sorted({r[:2]: i for i, r in enumerate(data)}.values())]
    if cleaning.minimum_rating is not None:
        data = [r for r in data if r[3] is not None and r[3] >= cleaning.minimum_rating]
    if cleaning.positive_only:
        data = [r for r in data if r[4] == 1]
    before = None
    while before != data:
        before = data
        if cleaning.drop_consecutive_repeats:
            data = [r for i, r in enumerate(data) if i == 0 or r[:2] != data[i - 1][:2]]
        core = plain_core(data, cleaning.user_core, cleaning.item_core)
        data = [data[i] for i in core]
    return data


@settings(deadline=None, max_examples=300)
@given(rows, cleanings)
def test_clean_equals_the_plain_program_and_counts_every_row(data, cleaning):
    expected = plain_clean(data, cleaning)
    if not expected:
        with pytest.raises(LogError, match=f"Nothing is left of {len(data)} usable rows"):
            clean(frame(data), cleaning)
        return
    cleaned, steps = clean(frame(data), cleaning)
    assert cleaned.rows() == expected
    assert len(data) == len(cleaned) + sum(step.rows for step in steps)


@settings(deadline=None, max_examples=100)
@given(rows, cleanings, st.randoms())
def test_without_ties_the_order_of_the_rows_does_not_matter(data, cleaning, random):
    data = [(*r[:2], time, *r[3:]) for time, r in enumerate(data)]
    shuffled = random.sample(data, len(data))
    try:
        cleaned, steps = clean(frame(data), cleaning)
    except LogError:
        with pytest.raises(LogError):
            clean(frame(shuffled), cleaning)
        return
    again, steps_again = clean(frame(shuffled), cleaning)
    assert again.rows() == cleaned.rows()
    assert steps_again == steps


@settings(deadline=None, max_examples=100)
@given(rows, cleanings)
def test_clean_rows_stay_as_they_are(data, cleaning):
    try:
        cleaned, _ = clean(frame(data), cleaning)
    except LogError:
        return
    again, steps = clean(cleaned, cleaning)
    assert again.rows() == cleaned.rows()
    assert sum(step.rows for step in steps) == 0


@settings(deadline=None, max_examples=100)
@given(rows, st.integers(1, 4), st.integers(1, 4), st.randoms())
def test_the_core_is_the_largest_fixed_point_in_any_order(data, user_core, item_core, random):
    pairs = [r[:2] for r in data]
    user, item = np.array(pairs).T
    kept = k_core(user, item, user_core, item_core)
    assert kept.tolist() == plain_core(pairs, user_core, item_core)
    if len(kept):
        assert min(Counter(user[kept].tolist()).values()) >= user_core
        assert min(Counter(item[kept].tolist()).values()) >= item_core
    assert len(k_core(user[kept], item[kept], user_core, item_core)) == len(kept)
    place = np.array(random.sample(range(len(pairs)), len(pairs)))
    shuffled = k_core(user[place], item[place], user_core, item_core)
    assert sorted(place[shuffled].tolist()) == kept.tolist()


def test_equal_times_keep_the_order_in_which_rows_came():
    data = [(0, item, time, None, None) for item, time in ((5, 1), (3, 0), (4, 1), (1, 1), (2, 0))]
    cleaned, _ = clean(frame(data), Cleaning())
    assert cleaned["item"].to_list() == [3, 2, 5, 4, 1]


def test_an_order_column_goes_before_the_time():
    data = frame([(0, 1, 5, None, None), (0, 2, 4, None, None), (0, 3, 6, None, None)])
    cleaned, _ = clean(data.with_columns(order=pl.Series([2.5, 3, 1])), Cleaning())
    assert cleaned["item"].to_list() == [3, 1, 2]
    assert "order" not in cleaned.columns


def test_what_the_core_takes_away_may_bring_repeats_together():
    # User 0: 1 2 1 …; item 2 goes with the core, the two 1s then stand side by side.
    events = [(0, 1), (0, 2), (0, 1), (0, 3), (1, 1), (1, 3), (2, 1), (2, 3)]
    data = frame([(*pair, time, None, None) for time, pair in enumerate(events)])
    cleaned, _ = clean(data, Cleaning(user_core=2, item_core=2, drop_consecutive_repeats=True))
    assert cleaned.select("user", "item").rows() == [
        *((0, 1), (0, 3)),
        *((1, 1), (1, 3)),
        *((2, 1), (2, 3)),
    ]


def test_an_empty_result_says_which_step_took_what():
    data = frame([(0, 1, 0, 1.0, 0), (1, 2, 0, 5.0, 1)])
    with pytest.raises(LogError) as error:
        clean(data, Cleaning(minimum_rating=4, user_core=5))
    assert "rating below 4 or missing: 1" in str(error.value)
    assert "users with < 5" in str(error.value)


@pytest.mark.parametrize(
    ("setting", "column"),
    [
        ({"minimum_rating": 4.0}, "rating"),
        ({"positive_only": True}, "label"),
        ({"time_from": "2020-01-01"}, "time"),
        ({"time_until": "2020-01-01"}, "time"),
    ],
)
def test_a_setting_that_needs_a_column_the_log_lacks(setting, column):
    data = frame([(0, 1, 0, 1.0, 0)]).drop(column).with_columns(order=pl.lit(1))
    with pytest.raises(LogError, match=rf"data\.{next(iter(setting))} .*data\.columns\.{column}"):
        clean(data, Cleaning(**setting))


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ({"deduplicate": "newest"}, "off, exact, first, last"),
        ({"time_unit": "minutes"}, "auto, s, ms, us"),
        ({"user_core": 0}, "at least 1"),
        ({"item_core": -1}, "at least 1"),
        ({"max_bad_share": 1.5}, r"0\.\.1"),
        ({"time_from": "May"}, "cannot be read as a moment"),
        ({"time_from": "2020-01-02", "time_until": "2020-01-02"}, "must be earlier"),
    ],
)
def test_settings_that_mean_nothing_are_refused(setting, words):
    with pytest.raises(LogError, match=words):
        Cleaning(**setting)


moments = st.one_of(
    st.integers(0, 5),
    st.integers(0, 2**40),
    st.integers(0, 2**32).map(lambda second: second * 10**6),
    st.sampled_from([-(2**63), -1, 2**63 - 1]),
)


@settings(deadline=None, max_examples=60)
@given(
    st.lists(
        st.tuples(st.sampled_from([0, 1, 2, 3, 2**31]), moments, st.booleans()),
        min_size=1,
        max_size=40,
    ),
    st.sampled_from([1, 3, 1 << 18]),
    st.sampled_from([None, pl.Int64, pl.Float64]),
)
@example([(0, 2**63 - 1, True), (0, 5, True), (0, 3, False), (0, -(2**63), True)], 1 << 18, None)
@example([(0, 2**62 // 10**6 * 10**6, True), (0, 3 * 10**6, True), (0, 0, True)], 1 << 18, None)
@example([(row // 10, 2**62 - row, True) for row in range(80)], 1, None)
def test_the_order_of_histories_is_that_of_two_stable_sorts(data, block, order):
    events = pl.DataFrame(
        data, schema={"user": pl.UInt32, "time": pl.Int64, "stays": pl.Boolean}, orient="row"
    ).with_row_index("row")
    if order is not None:
        events = events.with_columns(order=pl.col("time").cast(order), time=pl.lit(None))
    key = "time" if order is None else "order"
    plain = events.sort(key, maintain_order=True).sort("user", maintain_order=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cleaning_module, "_BLOCK", block)
        found = into_histories(events.clone())
        some = into_histories(events.clone(), events["stays"].to_numpy())
    plain = plain.drop("order", strict=False)
    assert_frame_equal(found, plain)
    assert_frame_equal(some, plain.filter("stays"))


@settings(deadline=None, max_examples=30)
@given(rows, cleanings, st.integers(1, 9))
def test_blocks_change_nothing(data, cleaning, block):
    def cleaned():
        try:
            events, steps = clean(frame(data), cleaning)
        except LogError as error:
            return str(error)
        return events.rows(), steps

    whole = cleaned()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cleaning_module, "_BLOCK", block)
        assert cleaned() == whole


def test_the_frame_that_is_cleaned_stays_as_it_was():
    data = frame([(1, 1, 5, 2.0, 1), (0, 2, 4, None, 0)])
    before = data.clone()
    clean(data, Cleaning())
    assert data.equals(before)
