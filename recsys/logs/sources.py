"""Public data sets, one word away: from the publisher, a mirror, or a file put there by hand.

Every set becomes one canonical table, `<name>.parquet`, with the columns `user_id`, `item_id`, and
as far as the set has them `position` (1 is a user's oldest event), `label`, `rating`, `timestamp`
(seconds since 1970, UTC) and others; the ids are the publisher's, the rows in file order (ML-1M: by
user and position). `<name>_items.parquet` and `<name>_users.parquet` stand beside it where the set
describes them. Filters and k-cores are settings of the ingest, never done here.

A table is accepted by its numbers of rows, users and items, and by a hash of its content where one
could be computed from the file itself. Nothing is redistributed: the terms of each set are its
publisher's (`Source.terms`).
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import subprocess
import sys
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import polars as pl

from recsys.logs.download import CONNECT_SECONDS, download, write_whole
from recsys.logs.errors import LogError, nearest
from recsys.logs.files import disk_errors, write_text

_FORMAT = 1
Tables = dict[str, pl.DataFrame]
"""`events`, and where the set has them `items` and `users`, each keyed by its id column."""


class SourceError(LogError):
    """A data set is unknown, cannot be had, or is not what its publisher ships."""


@dataclass(frozen=True)
class Release:
    """What a known edition of a data set holds.

    Attributes:
        name: how people call it.
        rows: number of events.
        users: number of users with at least one event.
        items: number of items with at least one event.
        content: `content_hash` of the events; None where it could not be computed from the file.
    """

    name: str
    rows: int
    users: int
    items: int
    content: str | None = None


@dataclass(frozen=True)
class Source:
    """Where a data set comes from and how it is read.

    Attributes:
        name: the set's name in `data=NAME`.
        homepage: where a person finds it.
        downloads: pairs of an address and the file name to keep it under, tried in this order.
        releases: the editions that are accepted.
        terms: what the publisher asks of users.
        by_hand: what to do where no address can be reached; `{folder}` is filled in.
        parse: turns the file into tables.
        mirror: names the package, pinned, that ships the set, and the file pip fetches for it.
    """

    name: str
    homepage: str
    downloads: tuple[tuple[str, str], ...]
    releases: tuple[Release, ...]
    terms: str
    by_hand: str
    parse: Callable[[Path], Tables]
    mirror: tuple[str, str] | None = None

    @property
    def files(self) -> tuple[str, ...]:
        """File names, in the set's folder, that are taken in place of a download."""
        names = [file for _, file in self.downloads]
        if self.mirror is not None:
            names.append(self.mirror[1])
        return tuple(dict.fromkeys(names))


def find_source(name: str) -> Source:
    """The source called `name`.

    Raises:
        SourceError: there is none; the message lists them.
    """
    if name not in SOURCES:
        known = ", ".join(SOURCES)
        raise SourceError(
            f"no data set is called {name!r}.{nearest(name, list(SOURCES))} Known sets: {known}"
        )
    return SOURCES[name]


def fetch(name: str, cache_dir: Path, *, say: Callable[[str], None] | None = None) -> Path:
    """The canonical table of a public data set, downloaded if it is not there yet.

    Args:
        name: one of `SOURCES`.
        cache_dir: the table is `cache_dir/downloads/<name>/<name>.parquet`; a file of the
            publisher's that was put into that folder by hand is used in place of a download.
        say: gets a line about each step worth telling; silent when None.

    Returns:
        Path of the Parquet file with the events.

    Raises:
        SourceError: unknown name; nothing could be downloaded (the message says what to put where
            by hand); or a file is not what the publisher ships.
        OSError: the cache cannot be written.
    """
    return fetch_source(find_source(name), cache_dir, say=say)


def fetch_source(
    source: Source, cache_dir: Path, *, say: Callable[[str], None] | None = None
) -> Path:
    """`fetch` for a source that need not be one of `SOURCES`."""
    folder = Path(cache_dir) / "downloads" / source.name
    table = folder / f"{source.name}.parquet"
    if _is_current(source, folder):
        return table
    folder.mkdir(parents=True, exist_ok=True)
    with _alone(folder):
        if not _is_current(source, folder):
            raw, tables = _obtain(source, folder, say or (lambda line: None))
            _write_tables(source, folder, raw, tables)
    return table


def content_hash(events: pl.DataFrame) -> str:
    """sha256 of a table's values and order: its rows as text, tab between values, no heading.

    It does not depend on the Parquet file's layout. For ML-100K the text is byte for byte the
    publisher's `u.data`.
    """
    text = events.write_csv(separator="\t", include_header=False)
    return hashlib.sha256(text.encode()).hexdigest()


def _obtain(source: Source, folder: Path, say: Callable[[str], None]) -> tuple[Path, Tables]:
    """The publisher's file in `folder` and what it holds: by hand, downloaded, or mirrored."""
    for file in source.files:
        if (folder / file).is_file():
            say(f"{source.name}: reading {folder / file}")
            return folder / file, _read(source, folder / file)
    # Where there is a mirror to turn to, a publisher out of reach is not waited for long.
    wait = CONNECT_SECONDS if source.mirror is not None else 4 * CONNECT_SECONDS
    failures = []
    for address, file in source.downloads:
        say(f"{source.name}: downloading {address}")
        read: list[Tables] = []

        def check(path: Path, read: list[Tables] = read) -> None:
            read.append(_read(source, path))

        try:
            download(address, folder / file, check=check, connect_seconds=wait)
            return folder / file, read[0]
        except LogError as error:
            failures.append(str(error))
            say(f"{source.name}: {error}")
    if source.mirror is not None:
        requirement, file = source.mirror
        say(f"{source.name}: taking it from the package {requirement} that ships it")
        try:
            return folder / file, _from_package(source, requirement, folder / file)
        except LogError as error:
            failures.append(str(error))
    tried = "\n".join(f"  {failure}" for failure in failures)
    raise SourceError(
        f"{source.name} could not be downloaded:\n{tried}\n"
        f"By hand: {source.by_hand.format(folder=folder)} Then run the same command again."
    )


def _from_package(source: Source, requirement: str, target: Path) -> Tables:
    """Let pip fetch the package that ships the set; it is read as a zip, never imported."""
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=".pip-") as aside:
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
        command += ["--only-binary=:all:", "--disable-pip-version-check", "--no-input"]
        command += ["--retries=2", "--timeout=15", "--dest", aside, requirement]
        try:
            done = subprocess.run(
                command,
                check=False,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                errors="replace",
                timeout=300,
            )
        except subprocess.TimeoutExpired:
            raise SourceError(f"pip download {requirement}: not done after 300 s") from None
        arrived = Path(aside) / target.name
        if done.returncode != 0 or not arrived.is_file():
            lines = [line for line in done.stderr.splitlines() if line.strip()]
            reason = next((line for line in lines if line.startswith("ERROR")), "")
            reason = reason or (lines[-1] if lines else f"no {target.name} arrived")
            raise SourceError(f"pip download {requirement}: {reason}")
        tables = _read(source, arrived)
        arrived.replace(target)
    return tables


def _read(source: Source, path: Path) -> Tables:
    """Parse a publisher's file and see that it holds a known release."""
    try:
        tables = source.parse(path)
    except (
        SourceError,
        zipfile.BadZipFile,
        zlib.error,
        EOFError,
        NotImplementedError,
        UnicodeDecodeError,
        ValueError,
        IndexError,
        pl.exceptions.PolarsError,
    ) as error:
        with path.open("rb") as file:
            page = file.read(512).lstrip().lower().startswith((b"<!doctype", b"<html"))
        reason = "it is a web page" if page else str(error).split("\n")[0] or type(error).__name__
        raise SourceError(
            f"{path} is not {source.name} as {source.homepage} ships it: {reason}"
        ) from None
    _recognise(source, path, tables["events"])
    return tables


def _recognise(source: Source, path: Path, events: pl.DataFrame) -> Release:
    rows, users, items = events.height, events["user_id"].n_unique(), events["item_id"].n_unique()
    for release in source.releases:
        if (rows, users, items) != (release.rows, release.users, release.items):
            continue
        if release.content is not None and content_hash(events) != release.content:
            raise SourceError(
                f"{path} has as many rows, users and items as {release.name} but other content "
                f"(sha256 {content_hash(events)}, should be {release.content})"
            )
        return release
    known = "; ".join(f"{r.name}: {r.rows:,} / {r.users:,} / {r.items:,}" for r in source.releases)
    raise SourceError(
        f"{path} holds {rows:,} rows / {users:,} users / {items:,} items, which is no known "
        f"release of {source.name} ({known})"
    )


def _write_tables(source: Source, folder: Path, raw: Path, tables: Tables) -> None:
    """Write each table whole; the note that makes them count comes last."""
    written = {}
    for kind, frame in tables.items():
        name = f"{source.name}.parquet" if kind == "events" else f"{source.name}_{kind}.parquet"
        with disk_errors(folder / name):
            write_whole(folder / name, frame.write_parquet)
        written[name] = (folder / name).stat().st_size
    note = {
        "format": _FORMAT,
        "name": source.name,
        "release": _recognise(source, raw, tables["events"]).name,
        "content": content_hash(tables["events"]),
        "raw": _stamp(raw),
        "files": written,
        "homepage": source.homepage,
        "terms": source.terms,
    }
    write_text(folder / "source.json", json.dumps(note, indent=2) + "\n")


def _is_current(source: Source, folder: Path) -> bool:
    """Whether the tables are whole and made from the publisher's file that lies there now."""
    try:
        note = json.loads((folder / "source.json").read_text(encoding="utf-8"))
        if note["format"] != _FORMAT:
            return False
        if any((folder / name).stat().st_size != size for name, size in note["files"].items()):
            return False
        raw = next((folder / file for file in source.files if (folder / file).is_file()), None)
        return raw is None or bool(note["raw"] == _stamp(raw))
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return False


def _stamp(raw: Path) -> dict[str, str | int]:
    status = raw.stat()
    return {"file": raw.name, "size": status.st_size, "mtime_ns": status.st_mtime_ns}


@contextlib.contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Hold other processes off the folder, where the system has such locks."""
    try:
        import fcntl
    except ImportError:  # Windows: two downloads at once would then spoil each other's part
        yield
        return
    with (folder / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


# ---- How each publisher's file is read ----


def _members(path: Path, wanted: dict[str, str]) -> dict[str, bytes]:
    """The content of members of a zip, found by the end of their name and read in memory.

    A file that is no zip stands for a single wanted member.
    """
    if not zipfile.is_zipfile(path):
        if len(wanted) == 1:
            return {key: path.read_bytes() for key in wanted}
        raise SourceError("it is no zip archive")
    found = {}
    with zipfile.ZipFile(path) as archive:
        for key, ending in wanted.items():
            names = [n for n in archive.namelist() if f"/{n}".endswith(f"/{ending}")]
            if not names:
                raise SourceError(f"it holds no {ending}")
            found[key] = archive.read(min(names, key=len))
    return found


def _holds(path: Path, ending: str) -> bool:
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return any(f"/{name}".endswith(f"/{ending}") for name in archive.namelist())


def _table(lines: list[list[str]], schema: dict[str, type[pl.DataType]]) -> pl.DataFrame:
    """A small table from rows of text; values that do not fit their type are an error."""
    frame = pl.DataFrame(lines, schema=dict.fromkeys(schema, pl.String), orient="row")
    return frame.cast(schema)  # type: ignore[arg-type]


def _split(content: bytes, encoding: str, separator: str) -> list[list[str]]:
    # Not splitlines(): it would also part at characters that latin-1 titles may hold.
    lines = (line.rstrip("\r") for line in content.decode(encoding).split("\n"))
    return [line.split(separator) for line in lines if line]


_YEAR = r"\s*\((\d{4})[^()]*\)\s*$"


def _year(column: str) -> pl.Expr:
    """The year in brackets at the end of a MovieLens title, null where there is none."""
    return pl.col(column).str.extract(_YEAR, 1).cast(pl.Int16).alias("year")


def _ml_100k(path: Path) -> Tables:
    """`u.data` and its companions from the publisher's zip, or the mirror's copies of them."""
    types = {"user_id": pl.Int32, "item_id": pl.Int32, "rating": pl.Int8, "timestamp": pl.Int64}
    people = {"age": pl.Int8, "gender": pl.String, "occupation": pl.String, "zip": pl.String}
    mirrored = _holds(path, "ml-100k/ml-100k.inter")
    if mirrored:
        wanted = {"events": "ml-100k.inter", "items": "ml-100k.item", "users": "ml-100k.user"}
        files = _members(path, {key: f"ml-100k/{name}" for key, name in wanted.items()})
        separator, skip, encoding = "\t", 1, "utf-8"
    else:
        wanted = {"events": "u.data", "items": "u.item", "users": "u.user", "genres": "u.genre"}
        files = _members(path, {key: f"ml-100k/{name}" for key, name in wanted.items()})
        separator, skip, encoding = "|", 0, "latin-1"
    events = pl.read_csv(
        files["events"],
        separator="\t",
        has_header=False,
        skip_rows=skip,
        schema=types,
    )
    users = _table(
        _split(files["users"], encoding, separator)[skip:], {"user_id": pl.Int32, **people}
    )
    rows = _split(files["items"], encoding, separator)[skip:]
    titles = pl.DataFrame({"item_id": [int(row[0]) for row in rows], "title": [r[1] for r in rows]})
    if mirrored:
        years = pl.Series([row[2] for row in rows], dtype=pl.String).cast(pl.Int16, strict=False)
        genres = [row[3].split() for row in rows]
    else:
        years = titles.select(_year("title")).to_series()
        names = [row[0] for row in _split(files["genres"], encoding, separator)]
        flags = [row[5:] for row in rows]
        genres = [[n for n, flag in zip(names, row, strict=True) if flag == "1"] for row in flags]
        titles = titles.with_columns(pl.col("title").str.replace(_YEAR, ""))
    items = titles.with_columns(
        pl.col("item_id").cast(pl.Int32),
        years.alias("year"),
        pl.Series("genres", genres, dtype=pl.List(pl.String)),
    )
    return {"events": events, "items": items, "users": users}


def _ml_1m(path: Path) -> Tables:
    """`ratings.dat`, `movies.dat`, `users.dat`: latin-1, values parted by two colons.

    Events are ordered by user and time, equal times in file order, which is the order that the
    SASRec and BERT4Rec papers used; `label` is rating >= 4.
    """
    wanted = {"ratings": "ratings.dat", "movies": "movies.dat", "users": "users.dat"}
    files = _members(path, wanted)
    # Polars parts at one character: every second column between two colons is empty.
    events = pl.read_csv(
        files["ratings"], separator=":", has_header=False, columns=[0, 2, 4, 6], quote_char=None
    )
    events.columns = ["user_id", "item_id", "rating", "timestamp"]
    events = (
        events.sort("user_id", "timestamp", maintain_order=True)
        .with_columns(
            position=pl.int_range(1, pl.len() + 1).over("user_id"), label=pl.col("rating") >= 4
        )
        .select(
            pl.col("user_id", "item_id", "position").cast(pl.Int32),
            pl.col("label", "rating").cast(pl.Int8),
            pl.col("timestamp").cast(pl.Int64),
        )
    )
    movies = _table(
        _split(files["movies"], "latin-1", "::"),
        {"item_id": pl.Int32, "title": pl.String, "genres": pl.String},
    ).select("item_id", "title", _year("title"), pl.col("genres").str.split("|"))
    users = _table(
        _split(files["users"], "latin-1", "::"),
        {
            "user_id": pl.Int32,
            "gender": pl.String,
            "age_code": pl.Int8,
            "occupation_code": pl.Int8,
            "zip": pl.String,
        },
    )
    return {"events": events, "items": movies, "users": users}


def _ml_latest_small(path: Path) -> Tables:
    """`ratings.csv` and `movies.csv` of any release: UTF-8 with headings."""
    files = _members(path, {"ratings": "ratings.csv", "movies": "movies.csv"})
    events = pl.read_csv(files["ratings"]).select(
        pl.col("userId").cast(pl.Int32).alias("user_id"),
        pl.col("movieId").cast(pl.Int32).alias("item_id"),
        pl.col("rating").cast(pl.Float32),
        pl.col("timestamp").cast(pl.Int64),
    )
    genres = pl.col("genres").str.split("|")
    items = pl.read_csv(files["movies"]).select(
        pl.col("movieId").cast(pl.Int32).alias("item_id"),
        "title",
        _year("title"),
        pl.when(pl.col("genres") == "(no genres listed)")
        .then([])
        .otherwise(genres)
        .alias("genres"),
    )
    return {"events": events, "items": items}


def _amazon_beauty(path: Path) -> Tables:
    """S3-Rec's text file: a line a user, `user item item …`, oldest first."""
    lines = pl.read_csv(
        _members(path, {"events": "Beauty.txt"})["events"],
        separator="\n",
        has_header=False,
        new_columns=["line"],
        schema_overrides=[pl.String],
    )
    events = (
        lines.select(ids=pl.col("line").str.strip_chars().str.split(" "))
        .select(user_id=pl.col("ids").list.first(), item_id=pl.col("ids").list.slice(1))
        .with_columns(position=pl.int_ranges(1, pl.col("item_id").list.len() + 1))
        .explode("item_id", "position")
        .cast(pl.Int32)
    )
    return {"events": events}


def _ta_feng(path: Path) -> Tables:
    """The merged CSV, as it is or inside Kaggle's zip: one row an item of a day's purchase."""
    content = _members(path, {"events": "ta_feng_all_months_merged.csv"})["events"]
    rows = pl.read_csv(io.BytesIO(content), infer_schema=False)
    day = pl.col("TRANSACTION_DT").str.to_date("%m/%d/%Y")
    rows = rows.select(
        pl.col("CUSTOMER_ID").str.strip_chars().cast(pl.Int32).alias("user_id"),
        pl.col("PRODUCT_ID").str.strip_chars().cast(pl.Int64).alias("item_id"),
        day.cast(pl.Datetime("us")).dt.epoch("s").alias("timestamp"),
        pl.col("AMOUNT").cast(pl.Int32).alias("amount"),
        pl.col("SALES_PRICE").cast(pl.Int32).alias("sales_price"),
        pl.col("PRODUCT_SUBCLASS").cast(pl.Int32).alias("category"),
        pl.col("AGE_GROUP").alias("age_group"),
        pl.col("PIN_CODE").alias("pin_code"),
    )
    return {
        "events": rows.select("user_id", "item_id", "timestamp", "amount", "sales_price"),
        "items": rows.select("item_id", "category").unique("item_id", keep="first").sort("item_id"),
        "users": rows.select("user_id", "age_group", "pin_code")
        .unique("user_id", keep="first")
        .sort("user_id"),
    }


_ML_100K_CONTENT = "06416e597f82b7342361e41163890c81036900f418ad91315590814211dca490"
_BEAUTY_CONTENT = "43b9368c1ecfa798b20f4acacc344b788f6690061863727e99bfdcf9a2f8555c"
_GROUPLENS = "https://files.grouplens.org/datasets/movielens"
_KAGGLE = "https://www.kaggle.com/api/v1/datasets/download"
_S3REC = "https://raw.githubusercontent.com/RUCAIBox/CIKM2020-S3Rec"
_NO_REDISTRIBUTION = (
    "GroupLens: research use; no redistribution without separate permission; cite Harper and "
    "Konstan 2015 (doi 10.1145/2827872)"
)

SOURCES: dict[str, Source] = {
    source.name: source
    for source in (
        Source(
            name="ml_100k",
            homepage="https://grouplens.org/datasets/movielens/100k/",
            downloads=((f"{_GROUPLENS}/ml-100k.zip", "ml-100k.zip"),),
            releases=(
                # Hash computed from the copy that the recbole 1.2.1 wheel ships.
                Release("MovieLens-100K", 100_000, 943, 1_682, _ML_100K_CONTENT),
            ),
            terms=_NO_REDISTRIBUTION,
            by_hand=(
                "download ml-100k.zip from https://grouplens.org/datasets/movielens/100k/ and put "
                "it, as it is, into {folder}."
            ),
            parse=_ml_100k,
            mirror=("recbole==1.2.1", "recbole-1.2.1-py3-none-any.whl"),
        ),
        Source(
            name="ml_1m",
            homepage="https://grouplens.org/datasets/movielens/1m/",
            downloads=((f"{_GROUPLENS}/ml-1m.zip", "ml-1m.zip"),),
            releases=(Release("MovieLens-1M", 1_000_209, 6_040, 3_706),),
            terms=_NO_REDISTRIBUTION,
            by_hand=(
                "download ml-1m.zip from https://grouplens.org/datasets/movielens/1m/ and put it, "
                "as it is, into {folder}."
            ),
            parse=_ml_1m,
        ),
        Source(
            name="ml_latest_small",
            homepage="https://grouplens.org/datasets/movielens/latest/",
            downloads=((f"{_GROUPLENS}/ml-latest-small.zip", "ml-latest-small.zip"),),
            # The publisher replaces the file under one address: 2018's is what stands there now.
            releases=(
                Release("ml-latest-small of September 2018", 100_836, 610, 9_724),
                Release("ml-latest-small of October 2016", 100_004, 671, 9_066),
            ),
            terms=(
                "GroupLens: research use, not commercial; redistribution only under the same "
                "terms; cite Harper and Konstan 2015 (doi 10.1145/2827872)"
            ),
            by_hand=(
                "download ml-latest-small.zip from "
                "https://grouplens.org/datasets/movielens/latest/ (the release of 2018 or a copy "
                "of that of 2016; numbers of the two do not compare) and put it, as it is, into "
                "{folder}."
            ),
            parse=_ml_latest_small,
        ),
        Source(
            name="amazon_beauty",
            homepage="https://github.com/RUCAIBox/CIKM2020-S3Rec",
            downloads=(
                (
                    f"{_S3REC}/2a81540ae18615d88ef88227b0c066e5b74781e5/data/Beauty.txt",
                    "Beauty.txt",
                ),
            ),
            releases=(
                # Hash computed from data/Beauty.txt of the commit above.
                Release("Amazon Beauty 5-core of S3-Rec", 198_502, 22_363, 12_101, _BEAUTY_CONTENT),
            ),
            terms=(
                "the repository states no terms for its data; derived from the Amazon reviews of "
                "McAuley et al.: cite arXiv 2008.07873 (S3-Rec) and arXiv 1506.04757"
            ),
            by_hand=(
                "download data/Beauty.txt of https://github.com/RUCAIBox/CIKM2020-S3Rec and put "
                "it, as it is, into {folder}."
            ),
            parse=_amazon_beauty,
        ),
        Source(
            name="ta_feng",
            homepage="https://www.kaggle.com/datasets/chiranjivdas09/ta-feng-grocery-dataset",
            # Kaggle serves some public sets without a log-in; where it does not, the second
            # address is a copy that the PaddleRec project keeps.
            downloads=(
                (
                    f"{_KAGGLE}/chiranjivdas09/ta-feng-grocery-dataset",
                    "ta-feng-grocery-dataset.zip",
                ),
                (
                    "https://paddlerec.bj.bcebos.com/datasets/tafeng/ta_feng_all_months_merged.csv",
                    "ta_feng_all_months_merged.csv",
                ),
            ),
            releases=(Release("Ta-Feng, November 2000 to February 2001", 817_741, 32_266, 23_812),),
            terms="the publisher states none; collected by the Ta-Feng supermarket, for research",
            by_hand=(
                "log in to Kaggle, download "
                "https://www.kaggle.com/datasets/chiranjivdas09/ta-feng-grocery-dataset and put "
                "its ta_feng_all_months_merged.csv (or the zip, named "
                "ta-feng-grocery-dataset.zip) into {folder}."
            ),
            parse=_ta_feng,
        ),
    )
}
