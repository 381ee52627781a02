"""Attributes: raw columns about users, items, events and impressions, kept once beside the store.

An attribute is what a log or a side table says, untouched; `recsys.histories.features` fits
features on it. Values stand as text and are numbered, so that 7 in a Parquet file and "7" in
a CSV file are one value; numbers with fractions stand as they are.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import polars as pl

from recsys.histories.vocabulary import Vocabulary
from recsys.logs.errors import LogError
from recsys.logs.readers import read_table


@dataclass(frozen=True)
class Attribute:
    """One raw column, in one of three forms.

    * values: `codes` and `values`;
    * lists of values: `offsets`, `codes` and `values`; the elements of row r are
      `codes[offsets[r] : offsets[r + 1]]`;
    * numbers: `numbers`.

    Attributes:
        codes: int32 [rows, or elements of all lists]: 0 is missing, c stands for `values[c - 1]`.
        values: the distinct values as text, ascending.
        offsets: int64 [rows + 1].
        numbers: float64 [rows], NaN is missing.
    """

    codes: np.ndarray | None = None
    values: pl.Series | None = None
    offsets: np.ndarray | None = None
    numbers: np.ndarray | None = None

    @property
    def form(self) -> str:
        """What each row holds: "values" (one each), "lists" or "numbers"."""
        if self.numbers is not None:
            return "numbers"
        return "values" if self.offsets is None else "lists"

    def __len__(self) -> int:
        if self.numbers is not None:
            return len(self.numbers)
        if self.offsets is not None:
            return len(self.offsets) - 1
        assert self.codes is not None
        return len(self.codes)

    @property
    def missing(self) -> int:
        """How many rows have no value (lists: no element)."""
        if self.numbers is not None:
            return int(np.isnan(self.numbers).sum())
        if self.offsets is not None:
            return int((np.diff(self.offsets) == 0).sum())
        assert self.codes is not None
        return int((self.codes == 0).sum())

    @property
    def distinct(self) -> int | None:
        """How many different values stand in the rows; None for numbers."""
        if self.codes is None:
            return None
        return int(np.count_nonzero(np.bincount(self.codes, minlength=1)[1:]))

    def take(self, rows: np.ndarray) -> Attribute:
        """The attribute of other rows.

        Args:
            rows: whole numbers; -1 gives a row without a value.
        """
        absent = rows < 0
        found = np.where(absent, 0, rows)
        if len(self) == 0:  # nothing to take from: all rows are absent
            return _nothing(len(rows), self.form)
        if self.numbers is not None:
            return Attribute(numbers=np.where(absent, np.nan, self.numbers[found]))
        assert self.codes is not None
        if self.offsets is None:
            codes = np.where(absent, 0, self.codes[found]).astype(np.int32)
            return Attribute(codes=codes, values=self.values)
        lengths = np.where(absent, 0, np.diff(self.offsets)[found])
        offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
        elements = np.arange(offsets[-1]) + np.repeat(self.offsets[found] - offsets[:-1], lengths)
        return Attribute(codes=self.codes[elements], values=self.values, offsets=offsets)


@dataclass(frozen=True)
class SideTable:
    """A table with one row a user or an item, of which some columns become attributes.

    Attributes:
        path: a file or a glob.
        key: its column with the ids.
        columns: the columns to keep → the setting that named each, for messages.
        setting: that named the path, for messages; `<setting>_key` names the key.
    """

    path: str
    key: str
    columns: dict[str, str]
    setting: str


def side_attributes(
    table: SideTable, vocabulary: Vocabulary
) -> tuple[dict[str, Attribute], dict[str, int]]:
    """Read a side table's columns, in the order of a vocabulary.

    Args:
        table: the table.
        vocabulary: of the users or items; rows about others are left out.

    Returns:
        The attributes by column, each with a row for each index from 0 (items: the padding has no
        value), and counts for the report: `rows`, `rows_left_out` about nobody the log knows,
        `absent` users or items that have no row, and so no value.

    Raises:
        LogError: the table cannot be read, lacks a column, has a row without an id or two rows
            about one, or has no row about anybody in the log.
    """
    named = {table.key: f"{table.setting}_key", **table.columns}
    frame = read_table(table.path, named, table.setting)
    place = f"{table.path} ({table.setting})"
    ids = frame[table.key]
    if ids.dtype.is_float():  # what pandas makes of whole numbers with gaps
        ids = ids.cast(pl.Int64, strict=False)
    if ids.dtype.is_nested() or ids.dtype.is_temporal():
        raise LogError(f"{place}: column {table.key!r} holds {ids.dtype}, which is no id.")
    if ids.null_count():
        raise LogError(
            f"{place}: row {ids.is_null().arg_true()[0] + 1} has no id in column {table.key!r}."
        )
    if ids.n_unique() < len(ids):
        twice = ids.filter(ids.is_duplicated())[0]
        raise LogError(
            f"{place}: {twice!r} stands in column {table.key!r} more than once; one row each."
        )
    index = vocabulary.indices(ids)
    known = np.flatnonzero(index >= 0)
    if len(known) == 0:
        theirs, ours = ids.head(1).to_list(), vocabulary.raw_ids.head(1).to_list()
        raise LogError(
            f"{place}: none of its {len(ids):,} ids in column {table.key!r}, such as {theirs}, "
            f"stands in the log, which has {ours}. If another column holds the ids: "
            f"{table.setting}_key=COLUMN."
        )
    row_of = np.full(vocabulary.size, -1, dtype=np.int64)
    row_of[index[known]] = known
    attributes = {name: attribute_of(frame[name], place).take(row_of) for name in table.columns}
    counts = {
        "rows": len(ids),
        "rows_left_out": len(ids) - len(known),
        "absent": len(vocabulary) - len(known),
    }
    return attributes, counts


def attribute_by_owner(
    column: pl.Series, owners: np.ndarray, rows: int, place: str, setting: str
) -> Attribute:
    """A column that a log repeats in each event of a user or item, once for each of them.

    Args:
        column: one row an event.
        owners: the user or item of each event.
        rows: of the attribute, one for each owner from 0.
        place: the log, for messages.
        setting: that named the column, for messages.

    Raises:
        LogError: it is not the same in all events of one of them.
    """
    said = attribute_of(column, place)
    present = np.ones(len(column), dtype=bool)
    if said.numbers is not None:
        present = ~np.isnan(said.numbers)
    elif said.codes is not None and said.offsets is None:
        present = said.codes > 0
    events = np.flatnonzero(present)
    order = events[np.argsort(owners[events], kind="stable")]
    first = np.full(rows, -1, dtype=np.int64)
    first[owners[order[::-1]]] = order[::-1]
    of_first = column.gather(first[owners[events]])
    other = column.gather(events).ne_missing(of_first)
    if other.any():
        event = events[int(other.arg_true()[0])]
        raise LogError(
            f"{place}: column {column.name!r} ({setting}) is not the same in all events of one "
            f"user or item: {column[int(first[owners[event]])]!r} and {column[int(event)]!r}. "
            "Declare it of: event, or of: context."
        )
    return said.take(first)


def attribute_of(column: pl.Series, place: str) -> Attribute:
    """The attribute that a column holds.

    Text, whole numbers, booleans, dates and lists of them become numbered values; numbers with
    fractions stay numbers. Nulls, NaN and blank text are missing.

    Args:
        column: any simple type, or lists of one.
        place: the file and the setting that named the column, for messages.

    Raises:
        LogError: the column is nested more deeply than lists of values, or lists numbers with
            fractions.
    """
    dtype = column.dtype
    if isinstance(dtype, pl.List | pl.Array):
        return _lists(column, place)
    if dtype.is_nested() or dtype in (pl.Binary, pl.Object):
        raise LogError(f"{place}: column {column.name!r} holds {dtype}, which no feature can use.")
    if dtype.is_decimal():
        column = column.cast(pl.Float64)
    if column.dtype.is_float():
        numbers = column.cast(pl.Float64).fill_null(float("nan")).to_numpy()
        numbers = np.where(np.isfinite(numbers), numbers, np.nan)
        known = numbers[~np.isnan(numbers)]
        if (known != np.round(known)).any() or (np.abs(known) > 2**53).any():
            return Attribute(numbers=numbers)
        # What pandas makes of whole numbers with gaps.
        column = pl.Series(column.name, numbers).fill_nan(None).cast(pl.Int64)
    codes, values = _numbered(_as_text(column))
    return Attribute(codes=codes, values=values)


def _lists(column: pl.Series, place: str) -> Attribute:
    inner = column.dtype.inner  # type: ignore[attr-defined]
    if inner.is_nested() or inner.is_float():
        raise LogError(
            f"{place}: column {column.name!r} holds {column.dtype}; lists must be of text or of "
            "whole numbers."
        )
    column = column.cast(pl.List(inner)).list.unique(maintain_order=True)
    lengths = column.list.len().fill_null(0).to_numpy().astype(np.int64)
    elements = column.filter(pl.Series(lengths > 0)).explode()
    codes, values = _numbered(_as_text(elements))
    # An element that is null is no element.
    owner = np.repeat(np.arange(len(lengths)), lengths)[codes > 0]
    counts = np.bincount(owner, minlength=len(lengths))
    offsets = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
    return Attribute(codes=codes[codes > 0], values=values, offsets=offsets)


def _as_text(column: pl.Series) -> pl.Series:
    text = column.cast(pl.String)
    return text.to_frame("v").select(pl.when(pl.col("v").str.strip_chars() != "").then("v"))["v"]


def _numbered(text: pl.Series) -> tuple[np.ndarray, pl.Series]:
    """Int32 codes (0 for null) and the distinct values, ascending."""
    values = text.drop_nulls().unique().sort().alias("value")
    known = values.to_frame("v").with_columns(code=pl.int_range(1, len(values) + 1, dtype=pl.Int32))
    found = text.to_frame("v").join(known, on="v", how="left", maintain_order="left")
    return found["code"].fill_null(0).to_numpy(), values


def _nothing(rows: int, form: str) -> Attribute:
    if form == "numbers":
        return Attribute(numbers=np.full(rows, np.nan))
    codes, values = np.zeros(rows, dtype=np.int32), pl.Series("value", [], dtype=pl.String)
    if form == "values":
        return Attribute(codes=codes, values=values)
    return Attribute(codes=codes[:0], values=values, offsets=np.zeros(rows + 1, dtype=np.int64))
