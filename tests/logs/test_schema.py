"""Times in every writing, ids that lose nothing, reasons for what cannot be used."""

from datetime import UTC, datetime, timedelta, timezone

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recsys.logs.errors import LogError, nearest
from recsys.logs.schema import (
    Columns,
    blank_to_null,
    guess_unit,
    numbers_to_micros,
    parse_moment,
    resolve,
    text_to_micros,
)

MOMENT = datetime(2023, 5, 17, 13, 45, 9, tzinfo=UTC)
MICROS = int(MOMENT.timestamp()) * 10**6


@pytest.mark.parametrize(
    ("text", "micros"),
    [
        ("2023-05-17T13:45:09", MICROS),
        ("2023-05-17 13:45:09", MICROS),
        ("2023-05-17T13:45:09Z", MICROS),
        ("2023-05-17 13:45:09 UTC", MICROS),
        ("2023-05-17T13:45:09+00:00", MICROS),
        ("2023-05-17T15:45:09+02:00", MICROS),
        ("2023-05-17T15:45:09+0200", MICROS),
        ("2023-05-17 08:15:09-05:30", MICROS),
        ("  2023-05-17T13:45:09.250 ", MICROS + 250_000),
        ("2023-05-17T13:45:09.000001Z", MICROS + 1),
        ("2023-05-17T13:45:09.123456789", MICROS + 123_456),
        ("2023-05-17T13:45", MICROS - 9_000_000),
        ("2023-05-17T15:45+02:00", MICROS - 9_000_000),
        ("2023-05-17", int(datetime(2023, 5, 17, tzinfo=UTC).timestamp()) * 10**6),
        (str(MICROS // 10**6), MICROS),
        (f"{MICROS // 10**6}.5", MICROS + 500_000),
        ("17.05.2023", None),
        ("2023-13-01", None),
        ("2023-02-30", None),
        ("yesterday", None),
        ("", None),
        ("nan", None),
        (None, None),
    ],
)
def test_text_times(text, micros):
    # The neighbours make every row take the way through all formats.
    others = ["1600000000", "2020-01-01", None, "bad"]
    for series in (pl.Series([text], dtype=pl.String), pl.Series([text, *others])):
        assert text_to_micros(series, "s", guessed=True)[0] == micros


@settings(deadline=None, max_examples=60)
@given(
    st.datetimes(datetime(1, 1, 2), datetime(9999, 12, 30)),
    st.integers(-14 * 60, 14 * 60),
)
def test_iso_text_is_read_as_python_reads_it(moment, zone_minutes):
    moment = moment.replace(tzinfo=timezone(timedelta(minutes=zone_minutes)))
    expected = (moment - datetime(1970, 1, 1, tzinfo=UTC)) // timedelta(microseconds=1)
    for text in (moment.isoformat(), moment.isoformat(" ")):
        assert text_to_micros(pl.Series([text]), "s", guessed=True)[0] == expected


@pytest.mark.parametrize(
    ("unit", "per_second"), [("s", 1), ("ms", 10**3), ("us", 10**6), ("ns", 10**9)]
)
@settings(deadline=None, max_examples=60)
@given(seconds=st.lists(st.integers(160_000_000, 4_000_000_000), min_size=1, max_size=20))
def test_the_unit_is_told_by_the_magnitude(unit, per_second, seconds):
    numbers = pl.Series([s * per_second for s in seconds], dtype=pl.Int64)
    assert guess_unit(numbers.cast(pl.Float64)) == unit
    expected = [s * 10**6 for s in seconds]
    assert numbers_to_micros(numbers, unit, guessed=True).to_list() == expected
    as_float = numbers_to_micros(numbers.cast(pl.Float64), unit, guessed=True)
    assert all(abs(a - b) <= 512 for a, b in zip(as_float.to_list(), expected, strict=True))


def test_a_guessed_unit_refuses_numbers_of_a_coarser_one_and_a_set_unit_takes_them():
    numbers = pl.Series([1_600_000_000_000, 1_600_000_000, 0])
    assert numbers_to_micros(numbers, "ms", True).to_list() == [1_600_000_000_000_000, None, None]
    assert numbers_to_micros(numbers, "ms", False).to_list()[1:] == [1_600_000_000_000, 0]


def test_numbers_outside_the_calendar_are_no_times():
    numbers = pl.Series([2**62, -(2**62), 10**12, 253_402_300_799, None])
    assert numbers_to_micros(numbers, "s", False).to_list() == [
        *(None, None, None),
        253_402_300_799_000_000,
        None,
    ]
    floats = pl.Series([float("nan"), float("inf"), 1.5])
    assert numbers_to_micros(floats, "s", False).to_list() == [None, None, 1_500_000]
    micros = list(range(-500, 500))
    assert numbers_to_micros(pl.Series([m / 1e6 for m in micros]), "s", False).to_list() == micros


def test_a_moment_in_a_setting():
    assert parse_moment("2023-05-17T13:45:09", "data.time_from") == MICROS
    with pytest.raises(LogError, match=r"data\.time_from='17/5'.*2024-05-31"):
        parse_moment("17/5", "data.time_from")
    with pytest.raises(LogError, match="cannot be read as a moment"):
        parse_moment("1600000000", "data.time_from")


def test_nearest():
    assert nearest("user", ["userId", "item"]) == " Did you mean 'userId'?"
    assert nearest("TIMESTAMP", ["timestamp"]) == " Did you mean 'timestamp'?"
    assert nearest("user", ["zzz"]) == ""


def test_resolve_names_what_exists_and_the_nearest():
    schema = pl.Schema({"userid": pl.Int64, "item": pl.Int64, "ts": pl.Int64})
    with pytest.raises(LogError) as error:
        resolve(Columns("user_id", "item", "ts"), schema, "a.csv")
    message = str(error.value)
    assert "a.csv" in message
    assert "'user_id' (data.columns.user)" in message
    assert "'userid', 'item', 'ts'" in message
    assert "Did you mean 'userid'?" in message


def test_a_time_is_optional_only_where_an_order_is_given():
    schema = pl.Schema({"user": pl.Int64, "item": pl.Int64, "position": pl.Int16})
    found = resolve(Columns("user", "item", "time", "position"), schema, "a.csv")
    assert (found.time, found.order) == (None, "position")
    with pytest.raises(LogError, match=r"data\.columns\.time\b"):
        resolve(Columns("user", "item", "time"), schema, "a.csv")
    with pytest.raises(LogError, match="needs a time or an order"):
        resolve(Columns("user", "item"), schema, "a.csv")
    with pytest.raises(LogError, match=r"data\.columns\.order"):
        resolve(Columns("user", "item", None, "rank"), schema, "a.csv")


@pytest.mark.parametrize(
    ("role", "dtype"),
    [("user", pl.List(pl.Int64)), ("item", pl.Date), ("time", pl.Boolean), ("rating", pl.Date)],
)
def test_a_column_of_a_type_that_cannot_be_used(role, dtype):
    names = {"user": pl.Int64, "item": pl.Int64, "time": pl.Int64, "rating": pl.Int8}
    schema = pl.Schema({**names, role: dtype})
    with pytest.raises(LogError, match=rf"'{role}' \(data\.columns\.{role}\) holds"):
        resolve(Columns("user", "item", "time", rating="rating"), schema, "a.parquet")


def test_one_column_cannot_be_user_and_item():
    with pytest.raises(LogError, match="both name 'x'"):
        resolve(Columns("x", "x", "t"), pl.Schema({"x": pl.Int64, "t": pl.Int64}), "a.csv")


@settings(deadline=None, max_examples=60)
@given(
    st.lists(
        st.one_of(
            st.integers(10**8, 10**10),
            st.integers(-100, 10**12),
            st.sampled_from([-(2**63), 2**63 - 1, -62_135_596_800, 253_402_300_799]),
        ),
        min_size=1,
        max_size=8,
    ),
    st.sampled_from(["s", "ms", "us", "ns"]),
    st.booleans(),
    st.booleans(),
)
def test_a_time_is_read_alike_alone_and_among_others(numbers, unit, guessed, as_text):
    if as_text:
        texts = pl.Series([str(number) for number in numbers])
        others = pl.Series(["x", " 5 ", None])
        together = text_to_micros(pl.concat([texts, others]), unit, guessed)[: len(texts)]
        alone = [text_to_micros(texts[i : i + 1], unit, guessed)[0] for i in range(len(texts))]
        assert text_to_micros(texts, unit, guessed).to_list() == alone == together.to_list()
        return
    times = pl.Series(numbers)
    # Beside a number that is no time, none is taken unseen.
    together = numbers_to_micros(times.append(pl.Series([2**62])), unit, guessed)[:-1]
    alone = [numbers_to_micros(pl.Series([n]), unit, guessed)[0] for n in numbers]
    assert numbers_to_micros(pl.Series(numbers), unit, guessed).to_list() == alone
    assert together.to_list() == alone


@given(
    st.lists(
        st.text("ab!\x7f \t\n\x0b\x1f\x85\u00a0\u2003\u3000\U0001f600", max_size=3), max_size=5
    )
)
@settings(deadline=None)
def test_blank_ids_are_missing_whatever_stands_beside_them(texts):
    """The look at the least and the greatest id misses no space, of whatever alphabet."""
    column = pl.Series("id", [*texts, None], dtype=pl.String)
    blank = column.str.strip_chars() == ""
    expected = [None if empty else text for text, empty in zip(column, blank, strict=True)]
    assert blank_to_null(column).to_list() == expected
    for text, wanted in zip(texts, expected, strict=False):
        assert blank_to_null(pl.Series("id", [text])).to_list() == [wanted]
