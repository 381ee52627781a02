"""Lists of raw ids in files: whom to recommend to, what may be recommended."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl

from recsys.histories.vocabulary import Vocabulary
from recsys.logs.errors import LogError, nearest
from recsys.logs.readers import reading

_SEPARATORS = {".csv": ",", ".tsv": "\t"}
_SUFFIXES = [".csv", ".tsv", ".parquet", ".ndjson", ".jsonl", ".txt"]
_SHOWN = 20_000  # ids looked through for one that resembles an unknown one


@dataclass(frozen=True)
class Found:
    """What became of a list of ids.

    Attributes:
        indices: int64, of the known ones, each once, in the file's order.
        unknown: how many (different) ones the vocabulary does not hold.
        example: the first unknown one and, where there is one, what it resembles; "" if none is
            unknown.
    """

    indices: np.ndarray
    unknown: int
    example: str


def read_ids(path: str, column: str, option: str, where: str | None = None) -> pl.Series:
    """The ids in a file, each once, in the file's order.

    Args:
        path: a table (.csv, .tsv, .parquet, .ndjson, .jsonl) with the ids in `column`, or a .txt
            with one id a line and no header.
        column: the ids' column.
        option: what named the file, for messages.
        where: an SQL condition on the table's rows; those that meet it count.

    Returns:
        String or Int64.

    Raises:
        LogError: no such file or column, another format, a condition that cannot be read, or no ids
            at all.
    """
    file = Path(path).expanduser()
    suffix = file.suffix.lower()
    if suffix not in _SUFFIXES:
        raise LogError(
            f"{option}={path}: the suffix {file.suffix!r} says nothing about the format. "
            f"Known: {', '.join(_SUFFIXES)}.{nearest(file.suffix, _SUFFIXES)}"
        )
    if not file.is_file():
        hint = nearest(file.name, (p.name for p in file.parent.glob("*")))
        raise LogError(f"{option}={path}: there is no such file (looked in {Path.cwd()}).{hint}")
    if file.stat().st_size == 0:
        raise LogError(f"{option}={path}: it holds no ids (0 bytes)")
    if where is not None and suffix == ".txt":
        raise LogError(f"{option}={path} has no columns for a condition: give a table")
    with reading(f"{option}={path}"):
        rows = _scan(file, suffix, column)
        names = rows.collect_schema().names()
        if column not in names:
            raise LogError(
                f"{option}={path}: there is no column {column!r}, in which the log has these ids. "
                f"Columns: {', '.join(map(repr, names))}.{nearest(column, names)}"
            )
        if where is not None:
            rows = rows.filter(_condition(where, rows, option, names))
        ids = rows.select(column).collect().to_series()
    if ids.dtype.is_float() or ids.dtype.is_nested() or ids.dtype.is_temporal():
        raise LogError(f"{option}={path}: column {column!r} holds {ids.dtype}, not ids")
    ids = ids.cast(pl.Int64 if ids.dtype.is_integer() else pl.String)
    if ids.dtype == pl.String:
        ids = ids.filter(ids.str.strip_chars() != "")
    ids = ids.drop_nulls().unique(maintain_order=True)
    if len(ids) == 0:
        words = "no row meets the condition" if where is not None else "it holds no ids"
        raise LogError(f"{option}={path}: {words}")
    return ids.alias(column)


def look_up(ids: pl.Series, vocabulary: Vocabulary) -> Found:
    """Indices of raw ids.

    Args:
        ids: String or Int64, each once.
        vocabulary: of users or items.
    """
    indices = vocabulary.indices(ids)
    unknown = np.flatnonzero(indices < 0)
    example = ""
    if len(unknown):
        first = str(ids[int(unknown[0])])
        example = f"{first!r}.{nearest(first, map(str, vocabulary.raw_ids.head(_SHOWN)))}"
    return Found(indices[indices >= 0], len(unknown), example)


def _scan(file: Path, suffix: str, column: str) -> pl.LazyFrame:
    if suffix == ".parquet":
        return pl.scan_parquet(file, glob=False)
    if suffix in (".ndjson", ".jsonl"):
        return pl.scan_ndjson(file, infer_schema_length=None)
    if suffix == ".txt":
        return pl.read_csv(
            file,
            has_header=False,
            new_columns=[column],
            separator="\n",
            quote_char=None,
            infer_schema=False,
            glob=False,
        ).lazy()
    # Ids stay text ("007"); the other columns are what they look like, for conditions on them.
    return pl.scan_csv(
        file,
        separator=_SEPARATORS[suffix],
        schema_overrides={column: pl.String},
        infer_schema_length=None,
        glob=False,
    )


def _condition(where: str, rows: pl.LazyFrame, option: str, names: list[str]) -> pl.Expr:
    try:
        condition = pl.sql_expr(where)
        missing = [name for name in condition.meta.root_names() if name not in names]
        if missing:
            raise LogError(
                f"{where!r}: {option} has no column {missing[0]!r}. "
                f"Columns: {', '.join(map(repr, names))}.{nearest(missing[0], names)}"
            )
        nobody = pl.DataFrame(schema=rows.collect_schema())
        (kind,) = nobody.select(condition.alias("met")).dtypes
    except pl.exceptions.PolarsError as error:
        text = " ".join(str(error).split())
        raise LogError(f"{where!r} is no SQL condition on {option}: {text}") from error
    if kind != pl.Boolean:
        raise LogError(f"{where!r} is no SQL condition on {option}: it gives {kind}")
    return condition
