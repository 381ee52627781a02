"""Reading interaction logs: CSV, TSV, Parquet and NDJSON, one file or many, through lazy frames."""

from __future__ import annotations

import glob
import gzip
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import polars as pl

from recsys.logs import schema as schemas
from recsys.logs.errors import LogError, nearest
from recsys.logs.schema import REASONS, Columns, TimeUnit

_FORMATS = {
    ".csv": "csv",
    ".tsv": "tsv",
    ".parquet": "parquet",
    ".ndjson": "ndjson",
    ".jsonl": "ndjson",
}
_OVERFLOW = "__recsys_overflow"
_LINE = "__recsys_line"
_PARSED = "__recsys_parsed_"
_SAMPLE_FILES = 16
_SAMPLE_ROWS = 1000


@dataclass(frozen=True)
class Log:
    """A log that was opened and whose shape was checked; its rows were not yet read.

    Attributes:
        files: absolute paths, sorted: their order, then the row, breaks ties of time.
        columns: the columns that it has.
        time_unit: unit of epoch times: as set, or as guessed from a sample.
        frames: one lazy frame a file: source columns, and a row number.
        schemas: one a file: source columns only.
        guessed: the unit was guessed.
    """

    files: list[Path]
    columns: Columns
    time_unit: str
    frames: list[pl.LazyFrame]
    schemas: list[pl.Schema]
    guessed: bool

    def events(self) -> pl.LazyFrame:
        """The canonical columns and `reason` of every row, in file order; see `recsys.logs.schema`."""
        # Numbers for text ids, the same in all files; a name of its own, so that nothing is shared
        # with other logs read by this process.
        categories = {role: pl.Categories.random(role) for role in ("user", "item")}
        parts = []
        for frame, schema in zip(self.frames, self.schemas, strict=True):
            judged, names = self._judged(frame, schema, categories)
            parts.append(
                judged.select(
                    *(pl.col(parsed).alias(name) for name, parsed in names.items()), "reason"
                )
            )
        return pl.concat(parts, how="vertical")

    def rejected(self) -> pl.LazyFrame:
        """The unusable rows: their source columns, `file`, `line` (first row 1; in text files the
        header counts) and `reason` in words. Blank lines of text files are left out."""
        categories = {role: pl.Categories.random(role) for role in ("user", "item")}
        words = pl.Enum(REASONS)
        parts = []
        for file, frame, schema in zip(self.files, self.frames, self.schemas, strict=True):
            judged, _ = self._judged(frame, schema, categories)
            bad = judged.filter(pl.col("reason") > 0)
            if _format_of(file) in ("csv", "tsv"):
                anything = [pl.col(name).is_not_null() for name in (*schema, _OVERFLOW)]
                bad = bad.filter(pl.any_horizontal(anything))
            taken = ("file", "line", "reason")
            parts.append(
                bad.select(
                    *(
                        pl.col(name).alias(f"{name}_source" if name in taken else name)
                        for name in schema
                    ),
                    pl.lit(str(file)).alias("file"),
                    pl.col(_LINE).cast(pl.Int64).alias("line"),
                    pl.col("reason").cast(words).cast(pl.String),
                )
            )
        return pl.concat(parts, how="diagonal_relaxed")

    def _judged(
        self, frame: pl.LazyFrame, schema: pl.Schema, categories: dict[str, pl.Categories]
    ) -> tuple[pl.LazyFrame, dict[str, str]]:
        parsed = schemas.canonical(self.columns, schema, self.time_unit, self.guessed, categories)
        names = {name: _PARSED + name for name in parsed}
        frame = frame.with_columns(**{names[name]: value for name, value in parsed.items()})
        reason = schemas.reason(self.columns, schema, names)
        if _OVERFLOW in frame.collect_schema():
            code = pl.lit(REASONS.index("the line has more fields than the header"), dtype=pl.UInt8)
            reason = pl.when(pl.col(_OVERFLOW).is_not_null()).then(code).otherwise(reason)
        if "reason" in schema:
            frame = frame.rename({"reason": "reason_source"})
        return frame.with_columns(reason=reason), names


def open_log(path: str, columns: Columns, time_unit: TimeUnit = "auto") -> Log:
    """Find and check the files of a log, without reading their rows.

    Args:
        path: a file or a glob; formats by suffix: .csv, .tsv, .parquet, .ndjson, .jsonl, and the
            text formats with .gz behind.
        columns: which column means what.
        time_unit: of epoch times; "auto" guesses from the magnitude of a sample.

    Returns:
        The log.

    Raises:
        LogError: no file, an empty file, a file that is not what its suffix says, a missing column,
            files of one log that do not agree.
    """
    files = find_files(path)
    formats = {_format_of(file): file for file in files}
    if len(formats) > 1:
        first, second, *_ = formats.values()
        raise LogError(
            f"{path}: the files of one log must have one format; found {first.name} and "
            f"{second.name}. Give a narrower pattern, such as '*{second.suffix}'."
        )
    frames, found = [], []
    for file in files:
        _check_content(file)
        with reading(file):
            frame, schema = _scan_file(file)
        frames.append(frame)
        found.append(schema)
    resolved = [
        schemas.resolve(columns, schema, str(file))
        for file, schema in zip(files, found, strict=True)
    ]
    _check_agreement(files, found, resolved)
    unit, guessed = _unit(files, frames, found, resolved[0], time_unit)
    return Log(files, resolved[0], unit, frames, found, guessed)


def find_files(path: str) -> list[Path]:
    """The files that a path or glob names: absolute, sorted.

    Raises:
        LogError: there is none, or it is a folder.
    """
    place = Path(path).expanduser()
    if place.is_dir():
        inside = sorted({"".join(p.suffixes) for p in place.iterdir() if _known(p)})
        example = inside[0] if inside else ".parquet"
        raise LogError(f"{path} is a folder. Name its files with a pattern: '{path}/*{example}'.")
    if place.is_file():
        return [place.resolve()]
    matches = sorted(glob.glob(str(place), recursive=True))
    files = [Path(match).resolve() for match in matches if Path(match).is_file()]
    if files:
        return files
    if glob.has_magic(str(place)):
        raise LogError(f"No file matches {path!r} (data.path; looked in {Path.cwd()}).")
    hint = ""
    if place.parent.is_dir():
        hint = nearest(place.name, (p.name for p in place.parent.iterdir()))
    else:
        hint = f" There is no folder {str(place.parent)!r} either."
    raise LogError(f"There is no file {path!r} (data.path; looked in {Path.cwd()}).{hint}")


@contextmanager
def reading(place: Path | str) -> Iterator[None]:
    """Turn the errors that Polars raises while it reads into a LogError that names the place."""
    try:
        yield
    except pl.exceptions.PolarsError as error:
        if "os error" in str(error):
            raise OSError(f"{place}: {error}") from error
        text = str(error).strip().splitlines()[0]
        hint = ""
        if "utf-8" in text.lower() or "utf8" in text.lower():
            hint = " Text must be UTF-8: convert it first (iconv -t UTF-8)."
        raise LogError(f"{place} cannot be read: {text}.{hint}") from error


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

    CSV and TSV are read as text throughout: types are settled by the canonical expressions, and
    ids such as "007" keep their zeros.
    """
    kind = _format_of(file)
    if kind == "parquet":
        schema = pl.scan_parquet(file, glob=False).collect_schema()
        frame = pl.scan_parquet(file, glob=False, row_index_name=_LINE, row_index_offset=1)
        return frame, schema
    if kind == "ndjson":
        inferred = pl.scan_ndjson(file).collect_schema()
        # Numbers and text of one column may be mixed: as text both can be read.
        simple = {n: pl.String for n, t in inferred.items() if not t.is_nested()}
        schema = pl.Schema({**inferred, **simple})
        frame = pl.scan_ndjson(file, schema=schema, row_index_name=_LINE, row_index_offset=1)
        return frame, schema
    separator = "\t" if kind == "tsv" else ","
    header = pl.read_csv(file, separator=separator, n_rows=0, infer_schema=False, glob=False)
    schema = pl.Schema({name: pl.String for name in header.columns})
    # One column more than the header has: a line that fills it has too many fields.
    frame = pl.scan_csv(
        file,
        separator=separator,
        has_header=False,
        skip_rows=1,
        schema={**schema, _OVERFLOW: pl.String},
        missing_columns="insert",
        truncate_ragged_lines=True,
        raise_if_empty=False,
        row_index_name=_LINE,
        row_index_offset=2,
        glob=False,
    )
    return frame, schema


def _check_agreement(files: list[Path], found: list[pl.Schema], resolved: list[Columns]) -> None:
    """Files of one log must hold the same kinds of values in the named columns."""
    for file, schema, columns in zip(files, found, resolved, strict=True):
        if columns != resolved[0]:
            raise LogError(
                f"{file}: column {(columns.time or resolved[0].time)!r} is in some files of the "
                "log and not in others."
            )
        for canonical, name in columns.named().items():
            here, there = schemas.kind_of(schema[name]), schemas.kind_of(found[0][name])
            if here != there and "nothing" not in (here, there):
                raise LogError(
                    f"Column {name!r} (data.columns.{canonical}) holds {there} in {files[0]} but "
                    f"{here} in {file}. Convert one of them."
                )


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
