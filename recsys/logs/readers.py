"""Reading interaction logs: CSV, TSV, Parquet and NDJSON, one file or many, through lazy frames."""

from __future__ import annotations

import glob
import gzip
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import islice, takewhile
from pathlib import Path
from typing import IO

import polars as pl

from recsys.logs import schema as schemas
from recsys.logs.errors import LogError, UnreadableError, nearest
from recsys.logs.schema import BROKEN_LINE, REASONS, TOO_MANY_FIELDS, Columns, TimeUnit

_FORMATS = {
    ".csv": "csv",
    ".tsv": "tsv",
    ".parquet": "parquet",
    ".ndjson": "ndjson",
    ".jsonl": "ndjson",
}
_OVERFLOW = "__recsys_overflow"
_LINE = "__recsys_line"
_BROKEN = "__recsys_broken"
_PARSED = "__recsys_parsed_"
_REASON = "__recsys_reason"
CARRIED = "carried."
"""Stands before the name of a column that is read as it is, beside the canonical ones."""
_SCHEMA_ROWS = 10_000
_SAMPLE_FILES = 16
_SAMPLE_ROWS = 1000


@dataclass(frozen=True)
class Log:
    """A log that was opened and whose shape was checked; its rows were not yet read.

    Attributes:
        files: absolute paths, sorted: their order, then the row, breaks ties of time.
        columns: the columns that it has.
        time_unit: unit of epoch times: as set, or as guessed from a sample.
        guessed: the unit was guessed.
        frames: one lazy frame a file: source columns, and helpers of this module.
        schemas: one a file: source columns only.
        line_by_line: NDJSON is read one line at a time: slower, but a broken line is only a reject.
        carried: columns that are read as they are.
        label_needed: a row without a label cannot be used.
    """

    files: list[Path]
    columns: Columns
    time_unit: str
    guessed: bool
    frames: list[pl.LazyFrame]
    schemas: list[pl.Schema]
    line_by_line: bool = False
    carried: tuple[str, ...] = ()
    label_needed: bool = False

    def file_by_file(self) -> Iterator[Log]:
        """One log for each file, to find the one that cannot be read."""
        for file, frame, schema in zip(self.files, self.frames, self.schemas, strict=True):
            yield replace(self, files=[file], frames=[frame], schemas=[schema])

    def one_line_at_a_time(self) -> Log | None:
        """The same log, read so that a line that is no JSON object spoils nothing but itself.

        None where there is no such way to read it (not NDJSON), or it is read so already.
        """
        if self.line_by_line or _format_of(self.files[0]) != "ndjson":
            return None
        scanned = [_scan_lines(f, list(s)) for f, s in zip(self.files, self.schemas, strict=True)]
        frames, found = [frame for frame, _ in scanned], [schema for _, schema in scanned]
        return replace(self, frames=frames, schemas=found, line_by_line=True)

    def events(self) -> pl.LazyFrame:
        """The canonical columns and `reason` (see `recsys.logs.schema`) of all rows, in order.

        Columns that are carried along are called `CARRIED` + their name.
        """
        parts = []
        for frame, schema in zip(self.frames, self.schemas, strict=True):
            judged = self._judged(frame, schema)
            roles = self.columns.named()
            values = [pl.col(_PARSED + role).alias(role) for role in roles]
            values += [_as_it_is(name, schema[name]).alias(CARRIED + name) for name in self.carried]
            parts.append(judged.select(*values, _REASON))
        return pl.concat(parts, how="vertical_relaxed").rename({_REASON: "reason"})

    def rejected(self) -> pl.LazyFrame:
        """The unusable rows: their source columns, `file`, `line` and `reason` in words.

        Lines count from 1. The header of a CSV file is one; a field with a line break in it does
        not add one; NDJSON's blank lines do not count. Blank lines are no rows.
        """
        parts = []
        for file, frame, schema in zip(self.files, self.frames, self.schemas, strict=True):
            bad = self._judged(frame, schema).filter(pl.col(_REASON) > 0)
            if _format_of(file) in ("csv", "tsv"):
                filled = [pl.col(name).is_not_null() for name in (*schema, _OVERFLOW)]
                bad = bad.filter(pl.any_horizontal(filled))
            ours = {
                "file": pl.lit(str(file)),
                "line": pl.col(_LINE).cast(pl.Int64),
                "reason": pl.col(_REASON).replace_strict(
                    dict(enumerate(REASONS)), return_dtype=pl.String
                ),
            }
            source = [pl.col(n).alias(f"{n}_source" if n in ours else n) for n in schema]
            parts.append(bad.select(*source, **ours))
        return pl.concat(parts, how="diagonal_relaxed")

    def _judged(self, frame: pl.LazyFrame, schema: pl.Schema) -> pl.LazyFrame:
        """The frame with the parsed columns and the code of the reason."""
        parsed = schemas.canonical(self.columns, schema, self.time_unit, self.guessed)
        names = {role: _PARSED + role for role in parsed}
        reason = schemas.reason(self.columns, schema, names, self.label_needed)
        helpers = frame.collect_schema()
        for helper, words in ((_OVERFLOW, TOO_MANY_FIELDS), (_BROKEN, BROKEN_LINE)):
            if helper in helpers:
                code = pl.lit(REASONS.index(words), dtype=pl.UInt8)
                reason = pl.when(pl.col(helper).is_not_null()).then(code).otherwise(reason)
        frame = frame.with_columns(**{names[role]: value for role, value in parsed.items()})
        # A look at the numbers of nulls spares most rows the search for a reason.
        source = self.columns.named()
        used = [*names.values(), *source.values(), *({_OVERFLOW, _BROKEN} & set(helpers))]

        def judge(rows: pl.Series) -> pl.Series:
            values = rows.struct.unnest()
            if self._all_usable(values):
                return pl.repeat(0, len(rows), dtype=pl.UInt8, eager=True)
            return values.select(reason).to_series()

        judged = pl.struct(list(dict.fromkeys(used))).map_batches(
            judge, return_dtype=pl.UInt8, is_elementwise=True
        )
        return frame.with_columns(judged.alias(_REASON))

    def _all_usable(self, values: pl.DataFrame) -> bool:
        """Whether the numbers of nulls alone say that no row has a reason not to be used.

        Args:
            values: source columns, parsed columns, and helpers.
        """
        for helper in (_OVERFLOW, _BROKEN):
            if helper in values.columns and values[helper].null_count() < len(values):
                return False
        needed = {"user", "item", "time" if self.columns.order is None else "order"}
        needed |= {"label"} if self.label_needed else set()
        for role, name in self.columns.named().items():
            unread = values[_PARSED + role].null_count()
            # As many nulls as in the source: none but those, which stand for nothing given.
            allowed = values[name].null_count() if role in ("rating", "label") else len(values)
            if unread > (0 if role in needed else allowed):
                return False
        return True


def open_log(
    path: str,
    columns: Columns,
    time_unit: TimeUnit = "auto",
    *,
    carried: Mapping[str, str] | None = None,
    label_needed: bool = False,
    setting: str = "data",
) -> Log:
    """Find and check the files of a log, without reading their rows.

    Args:
        path: a file or a glob; formats by suffix: .csv, .tsv, .parquet, .ndjson, .jsonl, and the
            text formats with .gz behind.
        columns: which column means what.
        time_unit: of epoch times; "auto" guesses from the magnitude of a sample.
        carried: more columns to read as they are → the setting that named each, for messages.
        label_needed: a row without a label cannot be used.
        setting: under which `path` and `columns` stand, for messages.

    Returns:
        The log.

    Raises:
        LogError: no file, an empty file, a file that is not what its suffix says, a missing column,
            files of one log that do not agree.
    """
    files = find_files(path, f"{setting}.path")
    log = Log(files, columns, "s", False, [], [], False, tuple(carried or ()), label_needed)
    try:
        return _checked(log, _scan(path, files), carried or {}, time_unit, setting)
    except UnreadableError:
        if _format_of(files[0]) != "ndjson":
            raise
        scanned = [_scan_lines(file, _json_names(file)) for file in files]
        log = replace(log, line_by_line=True)
        return _checked(log, scanned, carried or {}, time_unit, setting)


def _checked(
    log: Log,
    scanned: list[tuple[pl.LazyFrame, pl.Schema]],
    carried: Mapping[str, str],
    time_unit: TimeUnit,
    setting: str,
) -> Log:
    """The log with its frames, once every file has what it must have."""
    frames, found = [frame for frame, _ in scanned], [schema for _, schema in scanned]
    resolved = [
        schemas.resolve(log.columns, schema, str(file), f"{setting}.columns")
        for file, schema in zip(log.files, found, strict=True)
    ]
    _check_agreement(log.files, found, resolved, setting)
    _check_carried(log.files, found, carried)
    unit, guessed = _unit(log.files, frames, found, resolved[0], time_unit)
    return replace(
        log, columns=resolved[0], time_unit=unit, guessed=guessed, frames=frames, schemas=found
    )


def read_table(path: str, columns: Mapping[str, str], setting: str) -> pl.DataFrame:
    """Read a side table: some columns, as they are.

    Args:
        path: a file or a glob, in a format that logs may have too.
        columns: the columns → the setting that named each, for messages.
        setting: that named the path, for messages.

    Returns:
        The columns, all rows in order.

    Raises:
        LogError: no file, an empty file, a file that is not what its suffix says, a missing column,
            files that do not agree, a line with more fields than the header.
    """
    files = find_files(path, setting)
    scanned = _scan(path, files)
    _check_carried(files, [schema for _, schema in scanned], columns)
    parts = []
    for file, (frame, schema) in zip(files, scanned, strict=True):
        values = [_as_it_is(name, schema[name]).alias(name) for name in columns]
        if _OVERFLOW not in frame.collect_schema():
            with reading(file):
                parts.append(frame.select(values).collect())
            continue
        with reading(file):
            part = frame.select(*values, _LINE, _OVERFLOW, _blank(schema).alias(_BROKEN)).collect()
        spilled = part.filter(pl.col(_OVERFLOW).is_not_null())
        if len(spilled):
            raise LogError(f"{file}, line {spilled[_LINE][0]}: {TOO_MANY_FIELDS}.")
        parts.append(part.filter(~pl.col(_BROKEN)).select(list(columns)))
    return pl.concat(parts, how="vertical_relaxed")


def table_columns(path: str, setting: str) -> list[str]:
    """The columns of a side table.

    Raises:
        LogError: see `read_table`.
    """
    (_, schema), *_ = _scan(path, find_files(path, setting))
    return list(schema)


def _scan(path: str, files: list[Path]) -> list[tuple[pl.LazyFrame, pl.Schema]]:
    """The files of a log or table, once their names and first bytes are checked."""
    formats = {_format_of(file): file for file in files}
    if len(formats) > 1:
        first, second, *_ = formats.values()
        raise LogError(
            f"{path}: the files of one log must have one format; found {first.name} and "
            f"{second.name}. Give a narrower pattern, such as '*{second.suffix}'."
        )
    for file in files:
        _check_content(file)
    return [_scan_file(file) for file in files]


def _blank(schema: pl.Schema) -> pl.Expr:
    return pl.all_horizontal(pl.col(name).is_null() for name in schema)


def _as_it_is(name: str, dtype: pl.DataType) -> pl.Expr:
    """A column that is carried along; text of any kind as plain text."""
    text = isinstance(dtype, pl.Categorical | pl.Enum) or dtype == pl.Boolean
    return pl.col(name).cast(pl.String) if text else pl.col(name)


def find_files(path: str, setting: str = "data.path") -> list[Path]:
    """The files that a path or glob names: absolute, sorted.

    Args:
        path: a file or a glob.
        setting: that named it, for messages.

    Raises:
        LogError: there is none, or it is a folder.
    """
    place = Path(path).expanduser()
    if place.is_dir():
        inside = sorted({"".join(p.suffixes) for p in place.iterdir() if _known(p)})
        example = inside[0] if inside else ".parquet"
        raise LogError(f"{path} is a folder. Name its files with a pattern: '{path}/*{example}'.")
    # Not resolved: what a link points to need not have a suffix.
    if place.is_file():
        return [place.absolute()]
    matches = map(Path, glob.glob(str(place), recursive=True))  # noqa: PTH207 (may be absolute)
    files = sorted({match.absolute() for match in matches if match.is_file()})
    if files:
        return files
    if glob.has_magic(str(place)):
        raise LogError(f"No file matches {path!r} ({setting}; looked in {Path.cwd()}).")
    hint = ""
    if place.parent.is_dir():
        hint = nearest(place.name, (p.name for p in place.parent.iterdir()))
    else:
        hint = f" There is no folder {str(place.parent)!r} either."
    raise LogError(f"There is no file {path!r} ({setting}; looked in {Path.cwd()}).{hint}")


@contextmanager
def reading(place: Path | str) -> Iterator[None]:
    """Turn the errors that Polars raises while it reads into ones that name the place."""
    try:
        yield
    except pl.exceptions.PolarsError as error:
        if "os error" in str(error):
            raise OSError(f"{place}: {error}") from error
        text = str(error).strip().splitlines()[0][:200]
        hint = ""
        if "utf-8" in text.lower() or "utf8" in text.lower():
            hint = " Text must be UTF-8: convert it first (iconv -t UTF-8)."
        elif "could not parse" in text or "CSV malformed" in text:
            hint = (
                " A quotation mark opens a field and is not closed, or stands inside one: such a "
                'field is written as "say ""so""".'
            )
        raise UnreadableError(f"{place} cannot be read: {text}.{hint}") from error
    except OSError as error:
        if error.errno is not None:
            raise
        # Of a compressed file that is cut off, Polars says so without an error number.
        raise UnreadableError(f"{place} cannot be read: {error}.") from error


def _known(file: Path) -> bool:
    name = file.name.lower().removesuffix(".gz")
    return Path(name).suffix in _FORMATS


def _format_of(file: Path) -> str:
    name = file.name.lower()
    suffix = Path(name.removesuffix(".gz")).suffix
    if suffix not in _FORMATS or (suffix == ".parquet" and name.endswith(".gz")):
        known = ", ".join(_FORMATS)
        raise LogError(
            f"{file}: the suffix {file.suffix!r} says nothing about the format. "
            f"Known: {known}; text formats also with .gz behind.{nearest(file.suffix, _FORMATS)}"
        )
    return _FORMATS[suffix]


def _check_content(file: Path) -> None:
    """Compare the first bytes with what the suffix says."""
    if file.stat().st_size == 0:
        raise LogError(f"{file} is empty (0 bytes).")
    expected = _format_of(file)
    with file.open("rb") as raw:
        start = raw.read(4096)
        raw.seek(-min(4, file.stat().st_size), 2)
        end = raw.read(4)
    zipped = start[:2] == b"\x1f\x8b"
    if zipped != file.name.lower().endswith(".gz"):
        says, is_ = ("is", "is not named so") if zipped else ("is not", "its suffix says so")
        raise LogError(f"{file} {says} gzip-compressed, but {is_}. Rename it or export it again.")
    if zipped:
        try:
            with gzip.open(file) as unzipped:
                start = unzipped.read(4096)
        except (OSError, EOFError) as error:
            raise LogError(f"{file} is not a whole gzip file: {error}.") from error
        if not start:
            raise LogError(f"{file} is empty.")
    if expected == "parquet":
        if start[:4] != b"PAR1":
            raise LogError(
                f"{file} is not a Parquet file, though its suffix says so{_guess(start)}."
            )
        if end != b"PAR1":
            raise LogError(f"{file} is a Parquet file that was cut off. Copy or export it again.")
        return
    if start[:4] == b"PAR1" or b"\x00" in start:
        raise LogError(
            f"{file} is not {expected.upper()} text, though its suffix says so{_guess(start)}."
        )
    text = start.decode("utf-8", errors="replace").lstrip("\ufeff").lstrip()
    if not text:
        raise LogError(f"{file} is empty (nothing but blank lines).")
    if expected == "ndjson" and not text.startswith("{"):
        hint = (
            ": it is one JSON list; write one object a line"
            if text.startswith("[")
            else _guess(start)
        )
        raise LogError(
            f"{file} is not NDJSON (one JSON object a line), though its suffix says so{hint}."
        )
    if expected in ("csv", "tsv") and text.startswith("{"):
        raise LogError(
            f"{file} is not {expected.upper()}, though its suffix says so: it looks like NDJSON."
        )


def _guess(start: bytes) -> str:
    for magic, word in (
        (b"PAR1", "a Parquet file"),
        (b"\x1f\x8b", "a gzip file"),
        (b"PK\x03\x04", "a zip archive or an Excel file"),
        (b"ARROW1", "an Arrow file"),
        (b"\xff\xfe", "UTF-16 text"),
        (b"\xfe\xff", "UTF-16 text"),
        (b"\x28\xb5\x2f\xfd", "a Zstandard file"),
        (b"{", "NDJSON"),
    ):
        if start.startswith(magic):
            return f": it looks like {word}"
    return ": it looks like text" if b"\x00" not in start and start.isascii() else ""


def _scan_file(file: Path) -> tuple[pl.LazyFrame, pl.Schema]:
    """A lazy frame with the source columns and a row number, and the schema of the former.

    CSV, TSV and NDJSON are read as text: types are settled by the canonical expressions, so that
    ids such as "007" keep their zeros and a column may mix numbers and text.
    """
    kind = _format_of(file)
    with reading(file):
        if kind == "parquet":
            schema = pl.scan_parquet(file, glob=False).collect_schema()
            frame = pl.scan_parquet(file, glob=False, row_index_name=_LINE, row_index_offset=1)
            return frame, schema
        if kind == "ndjson":
            schema = pl.scan_ndjson(file, infer_schema_length=_SCHEMA_ROWS).collect_schema()
            simple = {n: t if t.is_nested() else pl.String() for n, t in schema.items()}
            schema = pl.Schema(simple)
            frame = pl.scan_ndjson(file, schema=schema, row_index_name=_LINE, row_index_offset=1)
            return frame, schema
        return _scan_separated(file, "\t" if kind == "tsv" else ",")


def _scan_separated(file: Path, separator: str) -> tuple[pl.LazyFrame, pl.Schema]:
    header = pl.read_csv(file, separator=separator, n_rows=0, infer_schema=False, glob=False)
    schema = pl.Schema(dict.fromkeys(header.columns, pl.String))
    before_rows = _blank_lines_before(file) + 1
    # One column more than the header has: a line that fills it has too many fields.
    frame = pl.scan_csv(
        file,
        separator=separator,
        has_header=False,
        skip_rows=before_rows,
        schema={**schema, _OVERFLOW: pl.String},
        missing_columns="insert",
        truncate_ragged_lines=True,
        raise_if_empty=False,
        row_index_name=_LINE,
        row_index_offset=before_rows + 1,
        glob=False,
    )
    if _has_quotes(file):
        # Polars looks at the quotation marks only of columns that it parses; two stray ones in a
        # column that nobody asked for would swallow the lines between them in silence. So parse
        # them all: the second half below asks for them and changes nothing.
        spilled = pl.col(_OVERFLOW).is_not_null()
        frame = frame.with_columns(
            pl.when(spilled | (spilled & _blank(schema))).then(pl.col(_OVERFLOW)).alias(_OVERFLOW)
        )
    return frame, schema


def _scan_lines(file: Path, names: list[str]) -> tuple[pl.LazyFrame, pl.Schema]:
    """NDJSON, each line parsed on its own; one that is no JSON object stands in `line_text`."""
    line = pl.col("__recsys_text")
    frame = pl.scan_lines(
        file, name="__recsys_text", row_index_name=_LINE, row_index_offset=1, glob=False
    ).filter(line.str.strip_chars() != "")
    whole = line.str.json_path_match("$")
    broken = whole.is_null() | ~whole.str.starts_with("{")
    values = {
        name: line.str.json_path_match("$[" + json.dumps(name, ensure_ascii=False) + "]")
        for name in names
        if name != "line_text"
    }
    frame = frame.with_columns(
        **values, line_text=pl.when(broken).then(line), **{_BROKEN: pl.when(broken).then(True)}
    )
    return frame, pl.Schema(dict.fromkeys([*values, "line_text"], pl.String))


def _json_names(file: Path) -> list[str]:
    """The keys of the JSON objects among the first lines of a file, in order of appearance."""
    names: dict[str, None] = {}
    with _open_text(file) as lines:
        for line in islice(lines, _SCHEMA_ROWS):
            try:
                value = json.loads(line)
            except ValueError:
                continue
            if isinstance(value, dict):
                names.update(dict.fromkeys(value))
    if not names:
        raise LogError(f"{file} is not NDJSON: none of its first lines is a JSON object.")
    return list(names)


def _open_text(file: Path) -> IO[str]:
    if file.name.lower().endswith(".gz"):
        return gzip.open(file, "rt", encoding="utf-8-sig", errors="replace")
    return file.open(encoding="utf-8-sig", errors="replace")


def _blank_lines_before(file: Path) -> int:
    with _open_text(file) as lines:
        return sum(1 for _ in takewhile(lambda line: line.strip("\r\n") == "", lines))


def _has_quotes(file: Path) -> bool:
    if file.name.lower().endswith(".gz"):
        return True  # not worth unpacking it twice
    with file.open("rb") as raw:
        return any(b'"' in block for block in iter(lambda: raw.read(1 << 20), b""))


def _check_carried(files: list[Path], found: list[pl.Schema], carried: Mapping[str, str]) -> None:
    """Columns that are read as they are must be there, and of one kind in all files."""
    for name, setting in carried.items():
        for file, schema in zip(files, found, strict=True):
            if name not in schema:
                raise LogError(schemas.no_column(name, schema, str(file), setting))
            schemas.check_named_once(name, schema, str(file))
            _check_kinds(name, setting, files[0], found[0][name], file, schema[name])


def _check_kinds(
    name: str, setting: str, first: Path, there: pl.DataType, file: Path, here: pl.DataType
) -> None:
    kinds = {schemas.kind_of(here), schemas.kind_of(there)}
    numbers = {"whole numbers", "numbers"}
    if setting.rpartition(".")[2] not in ("user", "item"):
        numbers.add("long whole numbers")
    if len(kinds) > 1 and "nothing" not in kinds and not kinds <= numbers:
        raise LogError(
            f"Column {name!r} ({setting}) holds {schemas.kind_of(there)} in {first} but "
            f"{schemas.kind_of(here)} in {file}. Convert one of them."
        )


def _check_agreement(
    files: list[Path], found: list[pl.Schema], resolved: list[Columns], setting: str
) -> None:
    """Files of one log must hold the same kinds of values in the named columns."""
    for file, schema, columns in zip(files, found, resolved, strict=True):
        if columns != resolved[0]:
            raise LogError(
                f"{file}: column {(columns.time or resolved[0].time)!r} is in some files of the "
                "log and not in others."
            )
        for canonical, name in columns.named().items():
            place = f"{setting}.columns.{canonical}"
            _check_kinds(name, place, files[0], found[0][name], file, schema[name])


def _unit(
    files: list[Path],
    frames: list[pl.LazyFrame],
    found: list[pl.Schema],
    columns: Columns,
    time_unit: TimeUnit,
) -> tuple[str, bool]:
    """The unit of epoch times, and whether it was guessed."""
    if columns.time is None or time_unit != "auto":
        return ("s" if time_unit == "auto" else time_unit), False
    sample = []
    for i in range(0, len(files), max(1, len(files) // _SAMPLE_FILES)):
        if schemas.kind_of(found[i][columns.time]) == "dates":
            continue
        numbers = pl.col(columns.time).cast(pl.String).str.strip_chars()
        with reading(files[i]):
            head = frames[i].select(numbers.cast(pl.Float64, strict=False)).head(_SAMPLE_ROWS)
            sample.append(head.collect().to_series())
    return (schemas.guess_unit(pl.concat(sample)) if sample else "s"), True
