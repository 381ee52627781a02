"""Which column of a log means what, and how its values become the canonical ones.

Canonical columns: `user` and `item` (Int64 or String), `time` (Int64,
microseconds since 1970 in UTC), `order` (Int64 or Float64), `rating` (Float32), `label` (Int8),
and `reason` (UInt8): 0, or the position in `REASONS` of why the row cannot be used.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Literal

import polars as pl

from recsys.logs.errors import LogError, nearest

TimeUnit = Literal["auto", "s", "ms", "us"]

TOO_MANY_FIELDS = "the line has more fields than the header"
BROKEN_LINE = "the line is not a JSON object"
REASONS = (
    "",
    TOO_MANY_FIELDS,
    "the user id is missing",
    "the item id is missing",
    "the user id is not a whole number",
    "the item id is not a whole number",
    "the time is missing",
    "the time cannot be read",
    "the order is missing",
    "the order is not a number",
    "the rating is not a number",
    "the label is not 0 or 1",
    BROKEN_LINE,
    "the label is missing",
)

# Years 1 to 9999: what datetime can print.
_EARLIEST = -62_135_596_800_000_000
_LATEST = 253_402_300_799_999_999
# A number stands for a time in unit u if its magnitude is at least the bound of u and below the
# bound of the next finer unit: 10^11 s is the year 5138, 10^11 ms is March 1973.
_UNIT_BOUNDS = {"s": 0, "ms": 10**11, "us": 10**14, "ns": 10**17}
_UNITS_PER_SECOND = {"s": 1, "ms": 10**3, "us": 10**6, "ns": 10**9}

_ISO_FORMATS = (
    "%Y-%m-%dT%H:%M:%S%.f",
    "%Y-%m-%d",
    "%Y-%m-%dT%H:%M",
    "%Y-%m-%dT%H:%M:%S%.f%#z",
    "%Y-%m-%dT%H:%M%#z",
)


@dataclass(frozen=True)
class Columns:
    """The names that the canonical columns have in a log.

    Attributes:
        user: who acted.
        item: on what.
        time: when. Optional where `order` is given: a log without this column then has no times.
        order: a number that puts the events of a user in order, in place of the time.
        rating: a number, may be missing in rows.
        label: 0 or 1 (false or true), may be missing in rows.
    """

    user: str
    item: str
    time: str | None = None
    order: str | None = None
    rating: str | None = None
    label: str | None = None

    def named(self) -> dict[str, str]:
        """Canonical name → name in the log, of the columns that were named."""
        pairs = {field.name: getattr(self, field.name) for field in fields(self)}
        return {canonical: name for canonical, name in pairs.items() if name is not None}


def resolve(
    columns: Columns, schema: pl.Schema, place: str, setting: str = "data.columns"
) -> Columns:
    """Check that the named columns exist and hold what they must.

    Args:
        columns: the names given by the user.
        schema: of the log.
        place: the file, for messages.
        setting: where the columns are named, for messages.

    Returns:
        The columns that the log has: `time` is None if it is absent and `order` stands in for it.

    Raises:
        LogError: a column is not named, does not exist, or has a type that cannot be used.
    """
    if columns.time is None and columns.order is None:
        raise LogError(
            f"A log needs a time or an order: name a column in {setting}.time or {setting}.order."
        )
    if columns.user == columns.item:
        raise LogError(f"{setting}.user and {setting}.item both name {columns.user!r}.")
    named = columns.named()
    if columns.order is not None and columns.time not in schema:
        named.pop("time", None)
    for canonical, name in named.items():
        if name not in schema:
            hint = _separator_hint(schema)
            raise LogError(no_column(name, schema, place, f"{setting}.{canonical}") + hint)
        check_named_once(name, schema, place)
        _check_type(name, schema[name], place, f"{setting}.{canonical}")
    return Columns(
        user=columns.user,
        item=columns.item,
        time=named.get("time"),
        order=columns.order,
        rating=columns.rating,
        label=columns.label,
    )


def no_column(name: str, schema: pl.Schema, place: str, setting: str) -> str:
    """What to say where a setting names a column that is not there."""
    existing = ", ".join(repr(c) for c in schema) or "none"
    return (
        f"{place}: there is no column {name!r} ({setting}). "
        f"Columns: {existing}.{nearest(name, schema)}"
    )


def check_named_once(name: str, schema: pl.Schema, place: str) -> None:
    """Refuse a header that has a column twice.

    Raises:
        LogError: names the column.
    """
    if f"{name}_duplicated_0" in schema:
        raise LogError(f"{place}: the header names {name!r} twice. Rename one of the two.")


def kind_of(dtype: pl.DataType) -> str:
    """A word for the types that may stand for each other across files."""
    if dtype in (pl.UInt64, pl.Int128, pl.UInt128):
        return "long whole numbers"
    if dtype.is_integer() or dtype == pl.Boolean:
        return "whole numbers"
    if dtype.is_float() or dtype.is_decimal():
        return "numbers"
    if isinstance(dtype, pl.String | pl.Categorical | pl.Enum):
        return "text"
    if isinstance(dtype, pl.Datetime | pl.Date):
        return "dates"
    if isinstance(dtype, pl.Null):
        return "nothing"
    return str(dtype)


def _check_type(name: str, dtype: pl.DataType, place: str, setting: str) -> None:
    canonical = setting.rpartition(".")[2]
    allowed = ["whole numbers", "long whole numbers", "numbers", "text", "nothing"]
    if canonical in ("time", "order"):
        allowed.append("dates")
    if kind_of(dtype) not in allowed or (dtype == pl.Boolean and canonical != "label"):
        choices = ", ".join(
            word for word in allowed if word not in ("long whole numbers", "nothing")
        )
        raise LogError(
            f"{place}: column {name!r} ({setting}) holds {dtype}; it must hold one of: {choices}."
        )


def _separator_hint(schema: pl.Schema) -> str:
    names = list(schema)
    if len(names) == 1:
        for separator, word in (
            ("\t", "tabs"),
            (";", "semicolons"),
            (",", "commas"),
            ("|", "bars"),
        ):
            if separator in names[0]:
                return (
                    f" The header seems to be separated by {word}: a .csv file is read with "
                    "commas, a .tsv file with tabs."
                )
    return ""


def guess_unit(numbers: pl.Series) -> str:
    """The unit of epoch times, by the median magnitude of a sample.

    Below 10¹¹ seconds (year 5138), below 10¹⁴ milliseconds, below 10¹⁷ microseconds, else
    nanoseconds.

    Args:
        numbers: Float64, may hold nulls.

    Returns:
        "s", "ms", "us" or "ns".
    """
    median = numbers.drop_nulls().drop_nans().abs().median()
    size = float(median) if isinstance(median, int | float) else 0.0
    return [unit for unit, bound in _UNIT_BOUNDS.items() if size >= bound][-1]


def numbers_to_micros(numbers: pl.Series, unit: str, guessed: bool) -> pl.Series:
    """Epoch times in `unit` → Int64 microseconds; null where that is no time of the years 1–9999.

    Args:
        numbers: Int64 or Float64.
        unit: "s", "ms", "us" or "ns".
        guessed: the unit was guessed; values of the magnitude of a coarser unit are then
            refused, so that a few rows in seconds (or zeros that mean "unknown") do not slip
            into a log of milliseconds as January 1970.
    """
    name = numbers.name
    per_second = _UNITS_PER_SECOND[unit]
    if numbers.dtype == pl.Int64 and per_second <= 10**6:
        # Most logs: every time lies well inside the calendar, so none need be looked at.
        low, high = numbers.min(), numbers.max()
        if isinstance(low, int) and isinstance(high, int):
            first, last = low / per_second, high / per_second
            inside = first > _EARLIEST / 1e6 + 1 and last < _LATEST / 1e6 - 1
            if inside and not (guessed and low < _UNIT_BOUNDS[unit]):
                return numbers * (10**6 // per_second)
    seconds = pl.col(name) / per_second
    usable = seconds.is_between(_EARLIEST / 1e6, _LATEST / 1e6)
    if guessed:
        usable &= pl.col(name).abs() >= _UNIT_BOUNDS[unit]
    value = pl.when(usable).then(pl.col(name))
    if per_second > 10**6:
        micros = value // (per_second // 10**6)
    else:
        micros = value * (10**6 // per_second)
    if numbers.dtype.is_float():
        micros = micros.round()
    return numbers.to_frame().select(micros.cast(pl.Int64, strict=False)).to_series()


def text_to_micros(text: pl.Series, unit: str, guessed: bool) -> pl.Series:
    """Times written as text → Int64 microseconds since 1970 in UTC, null where unreadable.

    Read are epoch numbers in `unit` and ISO 8601: a date, or a date and a time with "T" or a
    space between them, with seconds, a fraction and a zone or without. No zone means UTC.
    """
    whole = text.cast(pl.Int64, strict=False)
    if whole.null_count() == text.null_count():
        return numbers_to_micros(whole, unit, guessed)
    clean = text.str.strip_chars()
    whole = clean.cast(pl.Int64, strict=False)
    result = numbers_to_micros(whole, unit, guessed)
    rest = (whole.is_null() & clean.is_not_null()).arg_true()
    if len(rest):
        result = result.scatter(rest, _iso_to_micros(clean.gather(rest)))
    rest = (result.is_null() & whole.is_null() & clean.is_not_null()).arg_true()
    if len(rest):
        numbers = clean.gather(rest).cast(pl.Float64, strict=False)
        result = result.scatter(rest, numbers_to_micros(numbers, unit, guessed))
    return result


def _iso_to_micros(text: pl.Series) -> pl.Series:
    # One format after the other, each on what the earlier ones could not read.
    iso = text.str.replace("[ tT]", "T").str.replace(" ?([zZ]|UTC)$", "+00:00")
    result = pl.repeat(None, len(text), dtype=pl.Int64, eager=True).alias(text.name)
    for form in _ISO_FORMATS:
        rest = (result.is_null() & iso.is_not_null()).arg_true()
        if len(rest) == 0:
            break
        read = iso.gather(rest).str.to_datetime(form, time_unit="us", strict=False)
        result = result.scatter(rest, read.to_physical())
    return result.set((result < _EARLIEST) | (result > _LATEST), None)


def parse_moment(text: str, setting: str) -> int:
    """A moment given in a setting (ISO 8601) → microseconds since 1970 in UTC.

    Raises:
        LogError: it cannot be read.
    """
    micros = _iso_to_micros(pl.Series("moment", [text.strip()]))[0]
    if micros is None:
        raise LogError(
            f"{setting}={text!r} cannot be read as a moment. Write it as 2024-05-31 or "
            "2024-05-31T12:30:00 (UTC), or with a zone: 2024-05-31T12:30:00+02:00."
        )
    return int(micros)


def canonical(
    columns: Columns,
    schema: pl.Schema,
    unit: str,
    guessed: bool,
) -> dict[str, pl.Expr]:
    """Expressions that turn a log's named columns into the canonical ones (not yet checked).

    Args:
        columns: resolved.
        schema: of the log.
        unit: of epoch times, resolved.
        guessed: the unit was guessed.

    Returns:
        Canonical name → expression; null where a value is missing or cannot be read.
    """
    expressions = {
        role: _id(name, schema[name])
        for role, name in (("user", columns.user), ("item", columns.item))
    }
    if columns.time is not None:
        expressions["time"] = _time(columns.time, schema[columns.time], unit, guessed)
    if columns.order is not None:
        expressions["order"] = _order(columns.order, schema[columns.order])
    if columns.rating is not None:
        rating = pl.col(columns.rating).cast(pl.Float32, strict=False)
        expressions["rating"] = pl.when(rating.is_finite()).then(rating)
    if columns.label is not None:
        expressions["label"] = _label(columns.label, schema[columns.label])
    return expressions


def reason(
    columns: Columns, schema: pl.Schema, parsed: dict[str, str], label_needed: bool = False
) -> pl.Expr:
    """UInt8: the first entry of `REASONS` that makes a row unusable, 0 where none does.

    Args:
        columns: resolved.
        schema: of the log.
        parsed: canonical name → name of the column with its parsed values.
        label_needed: a row without a label cannot be used.
    """
    checks: list[tuple[pl.Expr, str]] = []
    for role, name in (("user", columns.user), ("item", columns.item)):
        unread = pl.col(parsed[role]).is_null()
        checks.append((unread & _missing(name, schema[name]), f"the {role} id is missing"))
        checks.append((unread, f"the {role} id is not a whole number"))
    if columns.order is not None:
        unread = pl.col(parsed["order"]).is_null()
        checks.append(
            (unread & _missing(columns.order, schema[columns.order]), "the order is missing")
        )
        checks.append((unread, "the order is not a number"))
    elif columns.time is not None:
        unread = pl.col(parsed["time"]).is_null()
        checks.append(
            (unread & _missing(columns.time, schema[columns.time]), "the time is missing")
        )
        checks.append((unread, "the time cannot be read"))
    for role, optional, words in (
        ("rating", columns.rating, "the rating is not a number"),
        ("label", columns.label, "the label is not 0 or 1"),
    ):
        if optional is not None:
            unread = pl.col(parsed[role]).is_null() & ~_missing(optional, schema[optional])
            checks.append((unread, words))
    if label_needed:
        checks.append((pl.col(parsed["label"]).is_null(), "the label is missing"))
    result = pl.lit(0, dtype=pl.UInt8)
    for check, words in reversed(checks):
        result = pl.when(check).then(pl.lit(REASONS.index(words), dtype=pl.UInt8)).otherwise(result)
    return result


def blank_to_null(text: pl.Series) -> pl.Series:
    """Text with null in place of what is empty or holds nothing but space, of any alphabet.

    >>> blank_to_null(pl.Series(["a", "", " \u2003", None, " b"])).to_list()
    ['a', None, None, None, ' b']
    """
    low, high = text.min(), text.max()
    # Most logs: all ids begin with a visible letter of ASCII, so none need be looked at.
    if isinstance(low, str) and isinstance(high, str) and low >= "!" and high < "\x7f":
        return text
    given = pl.col(text.name).str.strip_chars() != ""
    return text.to_frame().select(pl.when(given).then(pl.col(text.name))).to_series()


def _missing(name: str, dtype: pl.DataType) -> pl.Expr:
    column = pl.col(name)
    if kind_of(dtype) == "text":
        return column.is_null() | (column.cast(pl.String).str.strip_chars() == "")
    if dtype.is_float():
        return column.is_null() | column.is_nan()
    return column.is_null()


def _id(name: str, dtype: pl.DataType) -> pl.Expr:
    column = pl.col(name)
    kind = kind_of(dtype)
    if kind in ("text", "long whole numbers"):
        return column.cast(pl.String).map_batches(
            blank_to_null, return_dtype=pl.String, is_elementwise=True
        )
    if kind == "numbers":  # what pandas makes of whole numbers with gaps
        number = column.cast(pl.Float64)
        whole = (number == number.round()) & (number.abs() <= 2**53)
        return pl.when(whole).then(number).cast(pl.Int64, strict=False)
    return column.cast(pl.Int64, strict=False)


def _time(name: str, dtype: pl.DataType, unit: str, guessed: bool) -> pl.Expr:
    column = pl.col(name)
    kind = kind_of(dtype)
    if kind == "dates":
        return column.cast(pl.Datetime("us")).to_physical()
    if kind == "text":
        return column.cast(pl.String).map_batches(
            lambda text: text_to_micros(text, unit, guessed),
            return_dtype=pl.Int64,
            is_elementwise=True,
        )
    number = column.cast(pl.Int64 if "whole" in kind else pl.Float64, strict=False)
    return number.map_batches(
        lambda numbers: numbers_to_micros(numbers, unit, guessed),
        return_dtype=pl.Int64,
        is_elementwise=True,
    )


def _order(name: str, dtype: pl.DataType) -> pl.Expr:
    column = pl.col(name)
    kind = kind_of(dtype)
    if kind == "dates":
        return column.cast(pl.Datetime("us")).to_physical()
    if "whole" in kind:
        return column.cast(pl.Int64, strict=False)
    if kind == "text":
        column = column.cast(pl.String).str.strip_chars()
    number = column.cast(pl.Float64, strict=False)
    return pl.when(number.is_finite()).then(number)


def _label(name: str, dtype: pl.DataType) -> pl.Expr:
    column = pl.col(name)
    if kind_of(dtype) == "text":
        column = (
            column.cast(pl.String)
            .str.strip_chars()
            .str.to_lowercase()
            .replace({"true": "1", "false": "0"})
        )
    number = column.cast(pl.Float64, strict=False)
    return pl.when(number.is_in([0.0, 1.0])).then(number).cast(pl.Int8, strict=False)
