"""Features: fitted on training rows, the same codes for the same raw values, whatever the store."""

import json
from dataclasses import replace

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recsys.histories.attributes import attribute_of
from recsys.histories.features import (
    HOURS_OF_WEEK,
    Categorical,
    ClickRows,
    FeatureError,
    FittedFeatures,
    Hashed,
    HourOfWeek,
    Label,
    MultiValued,
    Numeric,
    Quantile,
    Recency,
    UserId,
    events_before,
    fit_features,
)
from recsys.histories.impressions import Impressions
from recsys.histories.store import NO_TIME, HistoryStore

SECOND, HOUR = 10**6, 3600 * 10**6
HISTORIES = [[1, 2, 2], [3], [2, 1]]  # users u0, u1, u2; events 0 … 5


def store(times=True, labels=None, **columns):
    """Columns by "of_column"."""
    plain = HistoryStore.from_lists(HISTORIES, times=[[1, 2, 3], [4], [5, 6]] if times else None)
    attributes = {}
    for name, values in columns.items():
        key = name.replace("_", ".", 1)
        column = pl.Series(name, values, strict=False)
        attributes[key] = attribute_of(column, "log")
    return replace(plain, attributes=attributes, labels=labels)


def rows(users=(0, 0, 2), items=(1, 2, 1), at=(0, 1, 4), events=(0, 1, 4)):
    return ClickRows(*(np.array(values, dtype=np.int64) for values in (users, items, at, events)))


def fitted(where, *features, training=None):
    found = fit_features(where, features, training or rows())
    return FittedFeatures.from_json(json.loads(json.dumps(found.to_json())))


values = st.lists(st.sampled_from([None, "a", "b", "c", "7"]), min_size=3, max_size=3)
questions = st.lists(st.integers(0, 2), min_size=1, max_size=6)


@settings(max_examples=25)
@given(values, questions, st.integers(1, 3))
def test_categories_of_training_rows_are_known_and_no_others(column, users, minimum):
    where = store(user_g=column)
    training = rows(users=users)
    features = fitted(where, Categorical("g", "user", "g", minimum), training=training)
    codes = features.columns(where).user("g", np.arange(3))
    seen = [column[user] for user in users]
    known = sorted({v for v in seen if v is not None and seen.count(v) >= minimum})
    expected = [0 if v is None else 2 + known.index(v) if v in known else 1 for v in column]
    assert codes.tolist() == expected
    assert features.sizes["user"] == {"g": 2 + len(known)}
    unknown = features.columns(where).unknown_counts(training)
    assert unknown == {"user.g": sum(expected[user] == 1 for user in users)}


bags = st.lists(st.lists(st.sampled_from("abc"), max_size=3, unique=True), min_size=4, max_size=4)


@settings(max_examples=25)
@given(bags, st.lists(st.integers(1, 3), min_size=1, max_size=5), st.booleans())
def test_lists_and_separated_text_give_the_same_bags(lists, candidates, separated):
    lists = [[], *lists[1:]]  # the padding has no value
    column = ["; ".join(row) if separated else row for row in lists]
    where = store(item_t=pl.Series(column, dtype=pl.String if separated else pl.List(pl.String)))
    feature = MultiValued("t", "item", "t", separator=";")
    features = fitted(where, feature, training=rows(items=candidates))
    found = features.columns(where).item("t", np.array([[0, 1], [2, 3]]))
    assert found.shape[:2] == (2, 2) and found.dtype == np.int64
    known = sorted({value for item in candidates for value in lists[item]})
    for item, bag in enumerate(found.reshape(4, -1).tolist()):
        codes = [2 + known.index(v) if v in known else 1 for v in lists[item]]
        assert bag == codes + [0] * (len(bag) - len(codes))
    assert features.sizes["item"]["t"] == 2 + len(known)


def test_a_bags_values_count_once_for_each_training_row():
    where = store(item_t=[None, "a|b|a", "b", "c"])
    features = fitted(where, MultiValued("t", "item", "t", 2), training=rows(items=(1, 2)))
    assert features.columns(where).item("t", np.arange(4)).tolist() == [
        [0, 0],
        [1, 2],
        [2, 0],
        [1, 0],
    ]


@settings(max_examples=25)
@given(
    st.lists(st.sampled_from([None, 1.5, -2.0, 4.0, 7.25]), min_size=6, max_size=6),
    st.lists(st.integers(0, 5), min_size=1, max_size=9),
    st.booleans(),
    st.integers(2, 5),
)
def test_numbers_are_standardised_and_bucketed_by_training_rows(column, at, as_text, buckets):
    seen = [column[row] for row in at if column[row] is not None]
    if as_text:
        column_in = [None if x is None else f" {x}" for x in column]
        where = store(event_p=pl.Series(column_in, dtype=pl.String))
    else:
        where = store(event_p=pl.Series(column, dtype=pl.Float64))
    declared = [Numeric("n", "context", "p"), Quantile("q", "context", "p", buckets)]
    if not seen:
        with pytest.raises(FeatureError, match="no value in any training row"):
            fitted(where, *declared, training=rows(at=at))
        return
    features = fitted(where, *declared, training=rows(at=at))
    columns = features.columns(where)
    spread = np.std(seen) or 1.0
    expected = [0.0 if x is None else (x - np.mean(seen)) / spread for x in column]
    found = columns.context("n", np.arange(6))
    assert found.dtype == np.float32 and features.sizes["context"]["n"] == 0
    np.testing.assert_allclose(found, expected, atol=1e-5)
    codes = columns.context("q", np.arange(6))
    size = features.sizes["context"]["q"]
    assert [code == 0 for code in codes] == [x is None for x in column]
    used = {codes[row] for row in at if column[row] is not None}
    assert used == set(range(2, size)), "no bucket without a training row"
    assert size - 2 <= buckets
    order = sorted((x, code) for x, code in zip(column, codes, strict=True) if x is not None)
    assert [code for _, code in order] == sorted(code for _, code in order)


def test_a_number_equal_to_all_others_is_the_mean():
    where = store(user_n=[3, 3, None])
    columns = fitted(where, Numeric("n", "user", "n"), training=rows(users=(0, 1))).columns(where)
    assert columns.user("n", np.array([0, 2])).tolist() == [0, 0]


def test_hashes_need_no_training_and_know_no_unknown():
    where = store(user_g=["a", "b", None])
    features = fitted(where, Hashed("g", "user", "g", 3), training=rows(users=(0,)))
    codes = features.columns(where).user("g", np.arange(3))
    assert features.sizes["user"] == {"g": 5} and codes[2] == 0
    assert all(2 <= code < 5 for code in codes[:2])
    other = store(user_g=["b", "z", "a"])
    again = features.columns(other).user("g", np.arange(3))
    assert (again[2], again[0]) == (codes[0], codes[1])
    assert features.columns(where).unknown_counts(rows()) == {}


@settings(max_examples=25)
@given(st.integers(-(2**40), 2**55), st.integers(1, 40))
def test_recency_is_the_logarithm_of_seconds(passed, buckets):
    buckets += 1
    where = replace(store(), times=np.zeros(6, dtype=np.int64))
    columns = fitted(where, Recency("r", buckets)).columns(where)
    codes = columns.event("r", np.array([[0, -1]]), np.array([passed]))
    seconds = max(passed, 0) // SECOND
    assert codes.tolist() == [[2 + min((1 + seconds).bit_length() - 1, buckets - 1), 0]]
    assert codes.max() < columns.sizes["event"]["r"]


def test_unknown_times_have_no_recency_and_no_hour():
    where = replace(store(), times=np.array([NO_TIME, 0, 0, 0, 0, 0]))
    columns = fitted(where, Recency("r"), HourOfWeek("h", "event")).columns(where)
    event_rows, now = np.array([[0, 1], [1, 1]]), np.array([SECOND, NO_TIME])
    assert columns.event("r", event_rows, now).tolist() == [[0, 3], [0, 0]]
    assert columns.event("h", np.array([0])).tolist() == [0]
    with pytest.raises(FeatureError, match="needs the questions' times"):
        columns.event("r", event_rows)


@settings(max_examples=25)
@given(st.integers(-(10**9), 4 * 10**9))
def test_hours_of_the_week_are_those_of_the_calendar(seconds):
    from datetime import UTC, datetime, timedelta

    where = replace(store(), times=np.full(6, seconds * SECOND))
    moment = datetime(1970, 1, 1, tzinfo=UTC) + timedelta(seconds=seconds)
    columns = fitted(where, HourOfWeek("h", "context")).columns(where)
    hour = moment.weekday() * 24 + moment.hour
    assert columns.context("h", np.array([3])).tolist() == [2 + hour]
    assert columns.sizes["context"]["h"] == 2 + HOURS_OF_WEEK


def test_labels_as_behaviour():
    where = store(labels=np.array([0, 1, -1, 1, 0, 0], dtype=np.int8))
    columns = fitted(where, Label()).columns(where)
    assert columns.event("label", np.array([[0, 1], [2, -1]])).tolist() == [[2, 3], [1, 0]]
    assert fitted(store(), Label()).columns(store()).event("label", np.arange(2)).tolist() == [1, 1]
    assert columns.sizes["event"] == {"label": 4}


def test_users_are_known_by_their_raw_id():
    where = store()
    features = fitted(where, UserId(minimum_count=2), training=rows(users=(0, 2, 2, 2, 0, 1)))
    assert features.columns(where).user("user_id", np.arange(3)).tolist() == [2, 1, 3]
    other = HistoryStore.from_lists([[1], [1]])  # u0 and u1: u2's number is another's here
    assert features.columns(other).user("user_id", np.arange(2)).tolist() == [2, 1]
    assert features.columns(other).unknown_counts(rows(users=(0, 1, 1))) == {"user.user_id": 2}


def test_another_store_is_read_with_the_vocabulary_of_training():
    where = store(user_g=["a", "b", "a"], item_n=[None, "1", "2", "3"])
    features = fitted(where, Categorical("g", "user", "g"), Numeric("n", "item", "n"))
    other = store(user_g=["z", None, "a"], item_n=[None, 3, 2, 1])
    assert features.columns(other).user("g", np.arange(3)).tolist() == [1, 0, 2]
    np.testing.assert_array_equal(
        features.columns(other).item("n", np.array([3, 2])),
        features.columns(where).item("n", np.array([1, 2])),
    )


def test_padding_is_blank_in_every_form():
    where = store(event_v=["a"] * 6, event_n=[0.5, 1.5, 2, 2, 2, 2], event_l=[["x"]] * 6)
    declared = [Categorical("v", "event", "v"), Numeric("n", "event", "n")]
    columns = fitted(where, *declared, MultiValued("l", "event", "l")).columns(where)
    grid = np.array([[0, -1], [-1, -1]])
    assert columns.event("v", grid).tolist() == [[2, 0], [0, 0]]
    assert columns.event("n", grid)[:, 1].tolist() == [0, 0] and columns.event("n", grid)[0, 0] < 0
    assert columns.event("l", grid).tolist() == [[[2], [0]], [[0], [0]]]


def test_context_is_the_impressions_where_there_are_some():
    none = np.zeros(3, dtype=np.int64)
    shown = Impressions(
        users=none,
        items=np.array([1, 2, 3], dtype=np.int32),
        labels=np.array([0, 1, 0], dtype=np.int8),
        times=np.array([0, HOUR, 5 * HOUR]),
        requests=np.array([0, 1, 0]),
        history_ends=none,
        attributes={"context.d": attribute_of(pl.Series("d", ["x", "y", "z"]), "")},
    )
    where = replace(store(event_d=["a"] * 6), impressions=shown)
    declared = [Categorical("d", "context", "d"), HourOfWeek("h", "context")]
    columns = fitted(where, *declared, training=rows(at=(1,))).columns(where)
    assert columns.context("d", np.arange(2)).tolist() == [1, 2]
    hours = columns.context("h", np.arange(3))
    # The last row is of the first one's request, and asked at its hour.
    assert hours.tolist() == [hours[0], hours[0] + 1, hours[0]]
    with pytest.raises(FeatureError, match=r"no column 'e' of context.*It has: d"):
        fit_features(where, [Categorical("d", "context", "e")], rows())


def test_the_events_that_histories_hold():
    found = events_before(store(), np.array([0, 0, 2, 1]), np.array([2, 1, 1, 0]))
    assert found.tolist() == [0, 1, 4]


def test_they_are_saved_whole_and_refused_when_damaged(tmp_path):
    where = store(user_g=["a", "é", None])
    features = fit_features(where, [Categorical("g", "user", "g")], rows(users=(0, 1)))
    features.save(tmp_path / "features.json")
    assert FittedFeatures.load(tmp_path / "features.json") == features
    (tmp_path / "features.json").write_text("{")
    with pytest.raises(FeatureError, match=r"features\.json cannot be read"):
        FittedFeatures.load(tmp_path / "features.json")
    with pytest.raises(FeatureError, match="cannot be read"):
        FittedFeatures.load(tmp_path / "nothing.json")
    for content in ({"format": "x"}, {**features.to_json(), "version": 99}):
        with pytest.raises(FeatureError, match="no fitted features that this program reads"):
            FittedFeatures.from_json(content)
    with pytest.raises(FeatureError, match="damaged"):
        FittedFeatures.from_json({**features.to_json(), "features": [{"kind": "x"}]})


LISTS = {"item_l": [[], ["x"], ["y"], ["z"]]}


@pytest.mark.parametrize(
    ("columns", "feature", "words"),
    [
        (
            {"item_p": [None, "9", "cheap", "dear"]},
            Numeric("p", "item", "p"),
            "'p' of item.*'cheap'",
        ),
        ({"item_p": [None, "9", "nan", "3"]}, Quantile("p", "item", "p"), "first other.*'nan'"),
        (
            {"item_price": [None, 1, 2, 3]},
            Categorical("p", "item", "prize"),
            "mean 'price'.*It has",
        ),
        ({}, Categorical("p", "event", "q"), "no column 'q' of event. It has: none"),
        (LISTS, Categorical("l", "item", "l"), "holds lists; only kind=multi"),
        ({"user_f": [0.5, 1.0, 2.0]}, Hashed("f", "user", "f", 5), "numbers with fractions"),
        ({"user_f": [1, 2, 3]}, Hashed("f", "user", "f", 1), r"buckets=1: .*at least 2"),
        ({"user_f": [1, 2, 3]}, Categorical("f", "user", "f", 0), r"minimum_count=0: .*at least 1"),
        ({"user_f": [1, 2, 3]}, Categorical("f.g", "user", "f"), "letters, digits and _"),
        ({"user_f": [1, 2, 3]}, MultiValued("f", "user", "f", 1, ""), "separator is empty"),
        ({}, Recency("r"), "needs a log with times"),
        ({}, HourOfWeek("h", "event"), "needs a log with times"),
    ],
)
def test_features_that_the_data_do_not_give(columns, feature, words):
    where = store(times=False, **columns)
    with pytest.raises(FeatureError, match=rf"^data\.features\.{feature.name}.*{words}"):
        fit_features(where, [feature], rows())


def test_names_are_given_once_and_asked_for_exactly():
    where = store(user_g=["a", "b", "c"])
    twice = [Categorical("g", "user", "g"), Hashed("g", "user", "g", 5)]
    with pytest.raises(FeatureError, match="two features of user have this name"):
        fit_features(where, twice, rows())
    columns = fitted(where, Categorical("gender", "user", "g")).columns(where)
    with pytest.raises(FeatureError, match=r"no feature of user is called 'gendr'.*'gender'"):
        columns.user("gendr", np.arange(1))
