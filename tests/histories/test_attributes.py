"""Raw columns: what the store keeps of logs and side tables, and what it refuses."""

from datetime import date

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recsys.histories.attributes import (
    SideTable,
    attribute_by_owner,
    attribute_of,
    side_attributes,
)
from recsys.histories.vocabulary import Vocabulary
from recsys.logs.errors import LogError

texts = st.lists(st.sampled_from([None, "", " ", "a", "b b", "7", "é"]), max_size=12)
lists = st.lists(
    st.none() | st.lists(st.sampled_from([None, "", "a", "b", "c"]), max_size=4), max_size=12
)
floats = st.lists(st.sampled_from([None, float("nan"), float("inf"), 0.5, -2.0, 3.0]), max_size=12)


def raw(attribute):
    """The raw values row by row, as attributes hold them."""
    if attribute.form == "numbers":
        return [None if np.isnan(x) else x for x in attribute.numbers]
    by_code = [None, *attribute.values.to_list()]
    if attribute.form == "values":
        return [by_code[c] for c in attribute.codes]
    pairs = zip(attribute.offsets[:-1], attribute.offsets[1:], strict=True)
    return [[by_code[c] for c in attribute.codes[begin:end]] for begin, end in pairs]


@settings(max_examples=25)
@given(texts)
def test_text_comes_back_and_blank_is_missing(column):
    attribute = attribute_of(pl.Series("c", column, dtype=pl.String), "log")
    assert raw(attribute) == [v if v and v.strip() else None for v in column]
    assert attribute.values.to_list() == sorted({v for v in raw(attribute) if v})
    assert attribute.missing == raw(attribute).count(None)
    assert attribute.codes.dtype == np.int32


@settings(max_examples=25)
@given(lists)
def test_lists_come_back_as_sets_in_order(column):
    attribute = attribute_of(pl.Series("c", column, dtype=pl.List(pl.String)), "log")
    expected = [list(dict.fromkeys(v for v in row or [] if v)) for row in column]
    assert raw(attribute) == expected
    assert len(attribute) == len(column)
    assert attribute.missing == sum(not row for row in expected)


@settings(max_examples=25)
@given(floats)
def test_numbers_with_fractions_stay_numbers_and_whole_ones_become_values(column):
    attribute = attribute_of(pl.Series("c", column, dtype=pl.Float64), "log")
    known = [x for x in column if x is not None and np.isfinite(x)]
    if 0.5 in known:
        assert raw(attribute) == [x if x in known else None for x in column]
    else:
        assert raw(attribute) == [str(int(x)) if x in known else None for x in column]


@settings(max_examples=25)
@given(st.sampled_from(["texts", "lists", "floats"]), st.data())
def test_taking_rows_is_taking_raw_values(kind, data):
    dtype = {"texts": pl.String, "lists": pl.List(pl.String), "floats": pl.Float64}[kind]
    column = data.draw({"texts": texts, "lists": lists, "floats": floats}[kind])
    attribute = attribute_of(pl.Series("c", column, dtype=dtype), "log")
    rows = data.draw(st.lists(st.integers(-1, len(column) - 1), max_size=8))
    values = raw(attribute)
    nothing = [] if kind == "lists" else None
    taken = attribute.take(np.array(rows, dtype=np.int64))
    assert raw(taken) == [nothing if row < 0 else values[row] for row in rows]


@pytest.mark.parametrize(
    "column",
    [
        pl.Series("c", [7, 12, None], dtype=pl.UInt8),
        pl.Series("c", ["7", "12", ""]),
        pl.Series("c", [7.0, 12.0, None]),
        pl.Series("c", ["7", "12", None], dtype=pl.Categorical),
    ],
)
def test_the_same_values_in_other_types_are_the_same_values(column):
    assert raw(attribute_of(column, "log")) == ["7", "12", None]


def test_dates_and_booleans_are_values_and_other_things_are_refused():
    assert raw(attribute_of(pl.Series("c", [date(2020, 1, 2)]), "log")) == ["2020-01-02"]
    assert raw(attribute_of(pl.Series("c", [True, False]), "log")) == ["true", "false"]
    with pytest.raises(LogError, match=r"t\.csv: column 'c' holds Struct"):
        attribute_of(pl.Series("c", [{"a": 1}]), "t.csv")
    with pytest.raises(LogError, match=r"t\.csv: column 'c' holds List\(Float64\)"):
        attribute_of(pl.Series("c", [[0.5]]), "t.csv")


ITEMS = Vocabulary(pl.Series("item", [3, 5, 8]), 1)


def table(tmp_path, frame, key="item_id", columns=("genre",)):
    path = tmp_path / "items.parquet"
    frame.write_parquet(path)
    named = {name: f"data.features.{name}.column" for name in columns}
    return SideTable(str(path), key, named, "data.items")


def test_a_side_table_in_the_order_of_the_vocabulary(tmp_path):
    frame = pl.DataFrame({"item_id": ["8", "9", "3"], "genre": ["x", "y", "z"], "price": [1, 2, 3]})
    attributes, counts = side_attributes(table(tmp_path, frame, columns=("genre", "price")), ITEMS)
    # The padding, 3, 5 (which has no row) and 8.
    assert raw(attributes["genre"]) == [None, "z", None, "x"]
    assert raw(attributes["price"]) == [None, "3", None, "1"]
    assert counts == {"rows": 3, "rows_left_out": 1, "absent": 1}


def test_ids_that_pandas_made_floats_are_found(tmp_path):
    frame = pl.DataFrame({"item_id": [3.0, 8.0], "genre": ["x", "y"]})
    attributes, counts = side_attributes(table(tmp_path, frame), ITEMS)
    assert (raw(attributes["genre"]), counts["absent"]) == ([None, "x", None, "y"], 1)


@pytest.mark.parametrize(
    ("columns", "words"),
    [
        ({"item_id": [3, 3], "genre": ["x", "y"]}, r"3 stands in column 'item_id' more than once"),
        ({"item_id": [3, None], "genre": ["x", "y"]}, r"row 2 has no id in column 'item_id'"),
        ({"item_id": [1, 2], "genre": ["x", "y"]}, r"none of its 2 ids.*\[1\].*\[3\].*items_key"),
        ({"id": [3], "genre": ["x"]}, r"no column 'item_id' \(data\.items_key\).*'id'"),
        ({"item_id": [3], "genres": ["x"]}, r"data\.features\.genre\.column.*mean 'genres'"),
        ({"item_id": [date(2020, 1, 1)], "genre": ["x"]}, r"'item_id' holds Date, which is no id"),
    ],
)
def test_side_tables_that_are_refused(tmp_path, columns, words):
    with pytest.raises(LogError, match=words):
        side_attributes(table(tmp_path, pl.DataFrame(columns)), ITEMS)


def test_a_text_table_is_read_as_logs_are(tmp_path):
    path = tmp_path / "items.csv"
    named = {"genre": "data.features.genre.column"}
    wanted = SideTable(str(path), "item_id", named, "data.items")
    path.write_text('item_id,genre\n3,"x, y"\n\n5,\n')
    attributes, counts = side_attributes(wanted, ITEMS)
    assert raw(attributes["genre"]) == [None, "x, y", None, None]
    assert counts == {"rows": 2, "rows_left_out": 0, "absent": 1}
    path.write_text("item_id,genre\n3,x\n5,y,z\n")
    with pytest.raises(LogError, match=r"items\.csv, line 3: the line has more fields"):
        side_attributes(wanted, ITEMS)
    missing = SideTable(str(tmp_path / "item.csv"), "item_id", named, "data.items")
    with pytest.raises(LogError, match=r"no file .*\(data\.items;.*mean 'items\.csv'"):
        side_attributes(missing, ITEMS)


OWNERS = np.array([0, 2, 0, 2, 2])


@pytest.mark.parametrize(
    ("column", "expected"),
    [
        (["x", None, "x", "y", ""], ["x", None, "y", None]),
        ([0.5, None, 0.5, 1.5, float("nan")], [0.5, None, 1.5, None]),
        ([["a", "b"], ["c"], ["a", "b"], ["c"], ["c"]], [["a", "b"], [], ["c"], []]),
    ],
)
def test_a_column_that_the_log_repeats(column, expected):
    series = pl.Series("c", column)
    assert raw(attribute_by_owner(series, OWNERS, 4, "log", "s")) == expected
    other = pl.Series("c", [*column[:2], column[3], *column[3:]])
    with pytest.raises(LogError, match=r"column 'c' \(s\) is not the same in all events of one"):
        attribute_by_owner(other, OWNERS, 4, "log", "s")
