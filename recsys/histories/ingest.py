"""From a log to a histories store: read, check, clean, encode, write."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from recsys.histories.attributes import (
    Attribute,
    SideTable,
    attribute_by_owner,
    attribute_of,
    side_attributes,
)
from recsys.histories.impressions import ImpressionLog, Impressions, history_ends_at
from recsys.histories.ingest_report import (
    build_report,
    read_report,
    render_report,
    report_of_impressions,
)
from recsys.histories.store import (
    FORMAT,
    NO_TIME,
    VERSION,
    HistoryStore,
    StoreError,
    open_store,
    write_store,
)
from recsys.histories.vocabulary import Vocabulary
from recsys.logs.cleaning import Cleaning, blocks, check_needs, clean, count_ids
from recsys.logs.errors import LogError, UnreadableError
from recsys.logs.files import disk_errors, name_aside, remember_digests, source_digests, sync
from recsys.logs.numbering import IdNumbers
from recsys.logs.readers import CARRIED, Log, find_files, open_log, reading
from recsys.logs.schema import Columns
from recsys.logs.threads import side_by_side

__all__ = ["Extras", "fingerprint_of", "ingest", "read_report", "render_report"]

# Ids that lose nothing as whole numbers: no plus sign, no zeros in front.
_WHOLE_NUMBER = r"^(?:0|-?[1-9][0-9]{0,18})$"
_BATCH = 1 << 18  # rows
_GROWTH = 1 << 22
USUAL_COLUMNS = Columns("user", "item", "time")
NO_CLEANING = Cleaning()
# What stands for a missing value in an array; no value is like it.
_MISSING = {"user": 0, "item": 0, "time": NO_TIME, "order": 0, "rating": float("nan"), "label": -1}


@dataclasses.dataclass(frozen=True)
class Extras:
    """What a store keeps beside the events: raw columns for features, and an impression log.

    Attributes:
        users: a table with a row a user.
        items: a table with a row an item.
        from_log: columns of the log itself by what they describe: "event", or "user" and "item",
            where each event repeats them (never the label or the rating); each column → the setting
            that named it, for messages.
        impressions: a log of what was shown. Of the cleaning, only the time range applies to it;
            its users and items join the vocabularies.
    """

    users: SideTable | None = None
    items: SideTable | None = None
    from_log: dict[str, dict[str, str]] = dataclasses.field(default_factory=dict)
    impressions: ImpressionLog | None = None

    def columns_of_log(self) -> dict[str, str]:
        """Columns to read from the log → the setting that named each."""
        return {name: s for columns in self.from_log.values() for name, s in columns.items()}

    def files(self) -> dict[str, list[Path]]:
        """The files beside the log, by the setting that names them.

        Raises:
            LogError: there is none.
        """
        found = {}
        for part, table in (("users", self.users), ("items", self.items)):
            if table is not None:
                found[part] = find_files(table.path, table.setting)
        if self.impressions is not None:
            found["impressions"] = find_files(self.impressions.path, "data.impressions.path")
        return found

    def settings(self) -> dict[str, Any]:
        """What a store's identity depends on, beside the content of the files."""
        settings: dict[str, Any] = {}
        for part, table in (("users", self.users), ("items", self.items)):
            if table is not None:
                settings[part] = {"key": table.key, "columns": sorted(table.columns)}
        if self.impressions is not None:
            settings["impressions"] = self.impressions.settings()
        kept = {of: sorted(columns) for of, columns in self.from_log.items() if columns}
        return settings | ({"from_log": kept} if kept else {})


def ingest(
    path: str,
    columns: Columns = USUAL_COLUMNS,
    cleaning: Cleaning = NO_CLEANING,
    cache_dir: Path = Path("data/cache"),
    *,
    verify: bool = False,
    name: str = "log",
    accept: Callable[[HistoryStore], object] | None = None,
    extras: Extras | None = None,
    label_from_rating: float | None = None,
) -> Path:
    """Make the histories store of a log, or find the one made before.

    Args:
        path: a file or a glob; see `recsys.logs.readers.open_log`.
        columns: which column means what; those of the log are else called user, item and time.
        cleaning: what is removed; else nothing is.
        cache_dir: stores go to `cache_dir/stores`, rejected rows of a stopped ingest to
            `cache_dir/quarantine`.
        verify: hash all sources again, and the files of a store that is found; a damaged one is
            made anew.
        name: of the data set, part of the folder's name.
        accept: called with the store, found or about to be written; what it raises is passed on,
            and a store that is not there yet is then not written.
        extras: raw columns to keep for features, and an impression log.
        label_from_rating: label 1 from this rating on, 0 below; for logs without labels.

    Returns:
        The folder of the store: `stores/<name>-<first 12 digits of the fingerprint>`.

    Raises:
        LogError: the log or a setting cannot be used. No store is left behind.
        StoreError: the store is there, but damaged.
        OSError: it could not be read or written.
    """
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]*", name):
        raise LogError(f"data.name={name!r}: use letters, digits and _ . - (it names a folder).")
    if label_from_rating is not None and columns.label is not None:
        raise LogError(
            "data.label_from_rating and data.columns.label both say what the label is: set one of "
            "them to null."
        )
    extras = extras or Extras()
    _refuse_the_answer(columns, extras)
    memory = cache_dir / "digests.json"
    digests = source_digests(find_files(path), memory, verify)
    beside = {part: source_digests(files, memory, verify) for part, files in extras.files().items()}
    settings: dict[str, Any] = {
        "columns": dataclasses.asdict(columns),
        "cleaning": dataclasses.asdict(cleaning),
        **extras.settings(),
    }
    if label_from_rating is not None:
        settings["label_from_rating"] = label_from_rating
    for part, found in beside.items():
        settings[part] |= {"sha256": [d["sha256"] for d in found]}
    sources = [*digests, *chain.from_iterable(beside.values())]
    fingerprint = fingerprint_of([d["sha256"] for d in digests], settings)
    folder = cache_dir / "stores" / f"{name}-{fingerprint[:12]}"
    if folder.exists():
        try:
            store = open_store(folder, verify)
        except StoreError:
            if not verify:
                raise
        else:
            if accept is not None:
                accept(store)
            remember_digests(sources, memory)
            return folder
    log = open_log(path, columns, cleaning.time_unit, carried=extras.columns_of_log())
    _check_label_from_rating(log, label_from_rating)
    available = {*log.columns.named(), *(["label"] if label_from_rating is not None else [])}
    check_needs(available, cleaning)
    shown_log = _open_impressions(extras.impressions, log, cleaning)
    quarantine = cache_dir / "quarantine" / f"{name}-{fingerprint[:12]}.parquet"
    read, rows, rejected = _read(log, quarantine, cleaning.max_bad_share)
    set_aside = {"quarantine.parquet": quarantine} if rejected else {}
    try:
        shown_read = impression_report = None
        if shown_log is not None:
            assert extras.impressions is not None
            beside_it = quarantine.with_name(f"{quarantine.stem}-impressions.parquet")
            shown_read, impression_report = _read_impressions(
                shown_log, extras.impressions, beside_it, cleaning
            )
            if impression_report["quarantined"]:
                set_aside["quarantine_impressions.parquet"] = beside_it
        user_ids, item_ids = (_number_both(role, read, shown_read) for role in ("user", "item"))
        events, shown = read.events, None if shown_read is None else shown_read.events
        del read
        if label_from_rating is not None:
            label = (pl.col("rating") >= label_from_rating).cast(pl.Int8)
            events = events.with_columns(label=label)
        raw = events.select(name for name in events.columns if name.startswith(CARRIED))
        events = events.drop(raw.columns)
        if raw.width:
            events = events.with_row_index("row")
        only = [events]
        del events  # the cleaning can let go of columns if nobody else holds them
        events, steps = clean(only.pop(), cleaning)
        store, shown = _store_of(events, user_ids, item_ids, shown)
        attributes, tables = {}, {}
        if raw.width:
            raw = raw[events["row"]]
            attributes = _attributes_of_log(store, extras, raw, _place(log))
        for role, table in (("user", extras.users), ("item", extras.items)):
            if table is not None:
                vocabulary = store.user_vocabulary if role == "user" else store.item_vocabulary
                found_columns, tables[f"{role}s"] = side_attributes(table, vocabulary)
                attributes |= {f"{role}.{name}": a for name, a in found_columns.items()}
        store = dataclasses.replace(store, attributes=attributes)
        if shown is not None:
            assert extras.impressions is not None and impression_report is not None
            impressions = _impressions_of(store, shown, extras.impressions, _place(log))
            store = dataclasses.replace(store, impressions=impressions)
            impression_report |= report_of_impressions(store)
        if accept is not None:
            accept(store)
        report = build_report(
            store,
            name=name,
            fingerprint=fingerprint,
            rows_in=rows,
            rejected=rejected,
            steps=steps,
            tables=tables,
            impressions=impression_report,
        )
        write_store(
            folder,
            store,
            name=name,
            fingerprint=fingerprint,
            settings=settings,
            sources=sources,
            order="time" if log.columns.order is None else "order",
            report=report,
            extra_files=set_aside,
        )
    finally:
        if set_aside:
            with suppress(OSError):
                quarantine.parent.rmdir()  # only if it is empty
    remember_digests(sources, memory)
    return folder


def fingerprint_of(digests: Sequence[str], settings: dict[str, Any]) -> str:
    """Identity of a store: SHA-256 over the format version, source digests and settings."""
    content = [FORMAT, VERSION, list(digests), settings]
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _refuse_the_answer(columns: Columns, extras: Extras) -> None:
    """An item that stands in the log once would bring its label along, whoever asks about it."""
    answers = {columns.label, columns.rating} - {None}
    for of in ("user", "item"):
        for name, setting in extras.from_log.get(of, {}).items():
            if name in answers:
                raise LogError(
                    f"{setting}: {name!r} is the answer, which nobody knows when the question is "
                    "asked, and no property of users or items; of=event gives it to past events"
                )


def _check_label_from_rating(log: Log, bound: float | None) -> None:
    if bound is not None and log.columns.rating is None:
        raise LogError(
            f"data.label_from_rating={bound:g} needs a rating: name its column in "
            "data.columns.rating."
        )


def _open_impressions(
    impressions: ImpressionLog | None, log: Log, cleaning: Cleaning
) -> Log | None:
    if impressions is None:
        return None
    if log.columns.time is None:
        raise LogError(
            "data.impressions needs a history log with times, to know what came before an "
            "impression: name its column in data.columns.time."
        )
    carried = dict(impressions.context)
    if impressions.columns.request is not None:
        carried[impressions.columns.request] = "data.impressions.columns.request"
    return open_log(
        impressions.path,
        impressions.columns.of_log(),
        cleaning.time_unit,
        carried=carried,
        label_needed=True,
        setting="data.impressions",
    )


def _read_impressions(
    log: Log, impressions: ImpressionLog, quarantine: Path, cleaning: Cleaning
) -> tuple[Read, dict[str, Any]]:
    """Usable impressions inside the time range, in file order, and what to report of the reading.

    Raises:
        LogError: too many rows cannot be used, none is left, or all have one label.
    """
    read, rows, rejected = _read(log, quarantine, cleaning.max_bad_share)
    shown = read.events
    report: dict[str, Any] = {"rows_in": rows, "quarantined": rejected}
    request = impressions.columns.request
    if request is not None:
        lost = pl.Series(request, [], dtype=pl.String)
        if rejected:
            lost = pl.read_parquet(quarantine, columns=[request])[request].cast(pl.String)
        left = shown[CARRIED + request].cast(pl.String)
        report["requests"] = left.drop_nulls().n_unique()
        report["requests_without_candidates"] = int(
            (~lost.drop_nulls().unique().is_in(left.unique().implode())).sum()
        )
    begin, end = cleaning.moments()
    inside = shown
    if begin is not None:
        inside = inside.filter(pl.col("time") >= begin)
    if end is not None:
        inside = inside.filter(pl.col("time") < end)
    report["outside_time_range"] = len(shown) - len(inside)
    labels = inside["label"].unique().to_list()
    if len(inside) == 0:
        raise LogError(
            f"{_place(log)}: none of {len(shown):,} impressions lies between data.time_from and "
            "data.time_until."
        )
    if len(labels) == 1:
        raise LogError(
            f"{_place(log)}: all {len(inside):,} impressions have the label {labels[0]} "
            f"(column {impressions.columns.label!r}, data.impressions.columns.label). A model of "
            "clicks needs what was clicked and what was not."
        )
    # Ids of rows that were left out are no ids of this log.
    raw_ids = {}
    for role in ("user", "item"):
        present = inside[role].unique()
        raw_ids[role] = read.raw_ids[role].gather(present)
        places = np.zeros(len(read.raw_ids[role]), dtype=np.uint32)
        places[present.to_numpy()] = np.arange(len(present), dtype=np.uint32)
        inside = inside.with_columns(pl.Series(role, places[inside[role].to_numpy()]))
    return Read(inside, raw_ids), report


def _number_both(role: str, read: Read, shown: Read | None) -> pl.Series:
    """Number ids in ascending order, the same in both logs, in place of order of appearance.

    Args:
        role: "user" or "item".
        read: the log.
        shown: the impressions.

    Returns:
        The raw ids (Int64 or String, unique, ascending).
    """
    logs = [read] if shown is None else [read, shown]
    raw = [log.raw_ids[role] for log in logs]
    whole = all(ids.dtype == pl.Int64 for ids in raw)
    union = IdNumbers(pl.Int64() if whole else pl.String())
    numbers = [union.of(ids if whole else ids.cast(pl.String)) for ids in raw]
    ascending, places = _ascending(union.raw_ids)
    for log, found in zip(logs, numbers, strict=True):
        log.renumber(role, places[found])
    return ascending


def _attributes_of_log(
    store: HistoryStore, extras: Extras, raw: pl.DataFrame, place: str
) -> dict[str, Attribute]:
    """Raw columns of the log, one row an event of the store, as attributes."""
    users = np.repeat(np.arange(store.users), store.lengths)
    attributes = {}
    for role, owners, size in (
        ("user", users, store.users),
        ("item", store.items, store.catalogue_size),
    ):
        for name, setting in extras.from_log.get(role, {}).items():
            column = raw[CARRIED + name].alias(name)
            found = attribute_by_owner(column, owners, size, place, setting)
            attributes[f"{role}.{name}"] = found
    for name in extras.from_log.get("event", {}):
        attributes[f"event.{name}"] = attribute_of(raw[CARRIED + name].alias(name), place)
    return attributes


def _impressions_of(
    store: HistoryStore, shown: pl.DataFrame, impressions: ImpressionLog, place: str
) -> Impressions:
    assert store.times is not None
    unknown = int((store.times == NO_TIME).sum())
    if unknown:
        raise LogError(
            f"{place}: {unknown:,} events have no time. With data.impressions all need one, to "
            "know what came before an impression."
        )
    shown = shown.sort("time", maintain_order=True).sort("user", maintain_order=True)
    users, times = shown["user"].to_numpy(), shown["time"].to_numpy()
    requests = np.full(len(shown), -1, dtype=np.int64)
    request = impressions.columns.request
    if request is not None:
        found = attribute_of(
            shown[CARRIED + request].cast(pl.String).alias(request), impressions.path
        )
        assert found.codes is not None
        requests = found.codes.astype(np.int64) - 1
    return Impressions(
        users=users,
        items=shown["item"].to_numpy(),
        labels=shown["label"].to_numpy(),
        times=times,
        requests=requests,
        history_ends=history_ends_at(store.offsets, store.times, users, times),
        attributes={
            f"context.{name}": attribute_of(shown[CARRIED + name].alias(name), impressions.path)
            for name in impressions.context
        },
    )


@dataclasses.dataclass
class Read:
    """Usable rows of a log, in file order, with numbers for ids.

    Attributes:
        events: the canonical columns; `user` and `item` are UInt32 numbers.
        raw_ids: for "user" and "item": the raw ids (Int64 or String), by number.
    """

    events: pl.DataFrame
    raw_ids: dict[str, pl.Series]

    def renumber(self, role: str, numbers: np.ndarray) -> None:
        """Give the ids of a role other numbers: uint32, by those they have."""
        before = self.events[role].to_numpy()
        after = np.empty(len(before), dtype=np.uint32)

        def fill(block: slice) -> None:
            after[block] = numbers.take(before[block])

        side_by_side(fill, blocks(len(before)))
        self.events = self.events.with_columns(pl.Series(role, after))


def _read(log: Log, quarantine: Path, max_bad_share: float) -> tuple[Read, int, dict[str, int]]:
    """Usable rows; number of rows read; unusable ones by reason.

    Unusable rows, if any, are written to `quarantine`.
    """
    try:
        read, bad = _collect(log)
    except UnreadableError:
        by_line = log.one_line_at_a_time()
        if by_line is None:
            raise
        return _read(by_line, quarantine, max_bad_share)
    rejected = _write_quarantine(log, quarantine) if bad else {}
    rows = len(read.events) + sum(rejected.values())
    if rows == 0:
        raise LogError(f"{_place(log)} is empty: it has a header or schema, but no rows.")
    if sum(rejected.values()) > max_bad_share * rows:
        raise LogError(_too_many(rejected, rows, max_bad_share, quarantine, log))
    return read, rows, rejected


def _collect(log: Log) -> tuple[Read, bool]:
    """Usable rows, and whether there are others."""
    try:
        with reading(_place(log)):
            return _numbered(log.events())
    except UnreadableError:
        if len(log.files) > 1:
            for part in log.file_by_file():  # one of them fails again, and is named
                _collect(part)
        raise


def _numbered(events: pl.LazyFrame) -> tuple[Read, bool]:
    """Usable rows with numbers for ids, and whether there are others; rows are read as they come.

    Args:
        events: of `Log.events`.
    """
    schema = events.collect_schema()
    numbers = {role: IdNumbers(schema[role]) for role in ("user", "item")}
    columns = {name: _Column(name, dtype) for name, dtype in schema.items() if name != "reason"}
    bad = False
    with ThreadPoolExecutor(len(numbers)) as pool:
        for batch in _batches(events):
            usable = batch
            if batch["reason"].max():
                bad, usable = True, batch.filter(reason=0)
            # Users and items have numbers of their own: each in a thread.
            found = {role: pool.submit(known.of, usable[role]) for role, known in numbers.items()}
            for name, column in columns.items():
                column.add(pl.Series(found[name].result()) if name in found else usable[name])
    frame = pl.DataFrame([column.take() for column in columns.values()])
    return Read(frame, {role: known.raw_ids for role, known in numbers.items()}), bad


class _Column:
    """A column that grows, batch by batch, and never stands in memory twice.

    Numbers go into one array that the system makes longer; everything else is kept in pieces.

    Args:
        name: of the column; for canonical ones it says what stands for a missing value meanwhile.
        dtype: of the values.
    """

    def __init__(self, name: str, dtype: pl.DataType) -> None:
        self.name = name
        self.array: np.ndarray | None = None
        if name in _MISSING:
            numbers = (
                np.uint32
                if name in ("user", "item")
                else pl.Series([], dtype=dtype).to_numpy().dtype
            )
            self.array = np.empty(0, dtype=numbers)
        self.rows = 0
        self.has_nulls = False
        self.pieces = [pl.Series(name, [], dtype=dtype)]

    def add(self, values: pl.Series) -> None:
        """More rows."""
        if self.array is None:
            self.pieces.append(values)
            return
        if values.null_count():
            self.has_nulls = True
            values = values.fill_null(_MISSING[self.name])
        end = self.rows + len(values)
        if end > len(self.array):
            # In place: nobody else has a view of it.
            self.array.resize(end + _GROWTH, refcheck=False)
        self.array[self.rows : end] = values.to_numpy()
        self.rows = end

    def take(self) -> pl.Series:
        """All rows in one piece; the column is empty then."""
        if self.array is None:
            pieces, self.pieces = self.pieces, []
            return pl.concat(pieces, rechunk=True)
        array, self.array = self.array, None
        array.resize(self.rows, refcheck=False)
        column = pl.Series(self.name, array)
        if not self.has_nulls:
            return column
        missing = _MISSING[self.name]
        given = (
            pl.col(self.name).is_not_nan() if missing != missing else pl.col(self.name) != missing
        )
        return column.to_frame().select(pl.when(given).then(pl.col(self.name))).to_series()


def _batches(frame: pl.LazyFrame) -> Iterator[pl.DataFrame]:
    """The rows in order, at least `_BATCH` at a time: what Polars hands out is smaller."""
    waiting: list[pl.DataFrame] = []
    rows = 0
    for batch in frame.collect_batches(engine="streaming"):
        waiting.append(batch)
        rows += len(batch)
        if rows >= _BATCH:
            yield pl.concat(waiting)
            waiting, rows = [], 0
    if waiting:
        yield pl.concat(waiting)


def _place(log: Log) -> str:
    return str(log.files[0] if len(log.files) == 1 else log.files[0].parent / "…")


def _write_quarantine(log: Log, path: Path) -> dict[str, int]:
    """Write the unusable rows; returns how many for each reason, {} (and no file) for none."""
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = name_aside(path)
    try:
        with disk_errors(path):
            log.rejected().sink_parquet(aside, engine="streaming")
        counts = pl.scan_parquet(aside).group_by("reason").len().sort("reason").collect().rows()
        if counts:
            sync(aside)
            aside.replace(path)
    finally:
        aside.unlink(missing_ok=True)
        with suppress(OSError):
            path.parent.rmdir()  # only if it is empty
    return {str(words): int(rows) for words, rows in counts}


def _too_many(
    rejected: dict[str, int], rows: int, allowed: float, quarantine: Path, log: Log
) -> str:
    bad = sum(rejected.values())
    reasons = "; ".join(f"{words}: {count:,}" for words, count in rejected.items())
    first = pl.read_parquet(quarantine, n_rows=1).row(0, named=True)
    return (
        f"{bad:,} of {rows:,} rows ({bad / rows:.2%}) cannot be used, more than "
        f"data.max_bad_share={allowed:g} allows: {reasons}. First: {first['file']}, line "
        f"{first['line']}. All of them, with reasons: {quarantine}"
    )


def _ascending(ids: pl.Series) -> tuple[pl.Series, np.ndarray]:
    """Different raw ids in ascending order, and the place of each in it.

    Text ids become whole numbers if all of them are whole numbers written without extra zeros or
    signs, so that the same ids give the same vocabulary from CSV and from Parquet.

    Args:
        ids: Int64 or String, unique, no nulls.

    Returns:
        The raw ids (Int64 or String, ascending), and uint32 [ids].
    """
    if ids.dtype == pl.String and bool(ids.str.contains(_WHOLE_NUMBER).all()):
        whole = ids.cast(pl.Int64, strict=False)
        ids = ids if whole.null_count() else whole  # more than 64 bits stay text
    order = ids.arg_sort()
    places = np.empty(len(ids), dtype=np.uint32)
    places[order.to_numpy()] = np.arange(len(ids), dtype=np.uint32)
    return ids.gather(order), places


def _store_of(
    events: pl.DataFrame, user_ids: pl.Series, item_ids: pl.Series, shown: pl.DataFrame | None
) -> tuple[HistoryStore, pl.DataFrame | None]:
    """The store of cleaned events, with the ids that are left numbered anew without gaps.

    The impressions' ids are left too, and come back with the new numbers.
    """
    user = events["user"].to_numpy()
    lengths = count_ids(user, len(user_ids))
    has_user = lengths > 0
    item = events["item"].to_numpy()
    present_items = count_ids(item, len(item_ids)) > 0
    if shown is not None:
        has_user[shown["user"].to_numpy()] = True
        present_items[shown["item"].to_numpy()] = True
    present_users = np.flatnonzero(has_user)
    index = np.cumsum(present_items, dtype=np.int32)  # the first present item gets 1
    times = None
    if "time" in events.columns and events["time"].null_count() < len(events):
        times = events["time"].fill_null(NO_TIME).to_numpy()
    ratings = labels = None
    if "rating" in events.columns:
        ratings = events["rating"].fill_null(float("nan")).to_numpy()
    if "label" in events.columns:
        labels = events["label"].fill_null(-1).to_numpy()
    if shown is not None:
        shown = shown.with_columns(
            user=(np.cumsum(has_user) - 1)[shown["user"].to_numpy()],
            item=index[shown["item"].to_numpy()],
        )
    store = HistoryStore(
        offsets=np.concatenate([[0], np.cumsum(lengths[present_users])]).astype(np.int64),
        items=index[item],
        times=times,
        ratings=ratings,
        labels=labels,
        user_vocabulary=Vocabulary(user_ids.gather(present_users).rename("user"), 0),
        item_vocabulary=Vocabulary(
            item_ids.gather(np.flatnonzero(present_items)).rename("item"), 1
        ),
    )
    return store, shown
