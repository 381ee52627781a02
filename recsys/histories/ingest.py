"""From a log to a histories store: read, check, clean, encode, write."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from recsys.histories.ingest_report import build_report, read_report, render_report
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
from recsys.logs.cleaning import Cleaning, check_needs, clean
from recsys.logs.errors import LogError, UnreadableError
from recsys.logs.files import disk_errors, name_aside, remember_digests, source_digests, sync
from recsys.logs.readers import Log, find_files, open_log, reading
from recsys.logs.schema import Columns

__all__ = ["fingerprint_of", "ingest", "read_report", "render_report"]

# Ids that lose nothing as whole numbers: no plus sign, no zeros in front.
_WHOLE_NUMBER = r"^(?:0|-?[1-9][0-9]{0,18})$"


def ingest(
    path: str,
    columns: Columns,
    cleaning: Cleaning,
    cache_dir: Path,
    *,
    verify: bool = False,
    name: str = "log",
    accept: Callable[[HistoryStore], object] | None = None,
) -> Path:
    """Make the histories store of a log, or find the one made before.

    Args:
        path: a file or a glob; see `recsys.logs.readers.open_log`.
        columns: which column means what.
        cleaning: what is removed.
        cache_dir: stores go to `cache_dir/stores`, rejected rows of a stopped ingest to
            `cache_dir/quarantine`.
        verify: hash all sources again, and the files of a store that is found; a damaged one is
            made anew.
        name: of the data set, part of the folder's name.
        accept: called with the store, found or about to be written; what it raises is passed on,
            and a store that is not there yet is then not written.

    Returns:
        The folder of the store: `stores/<name>-<first 12 digits of the fingerprint>`.

    Raises:
        LogError: the log or a setting cannot be used. No store is left behind.
        StoreError: the store is there, but damaged.
        OSError: it could not be read or written.
    """
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]*", name):
        raise LogError(f"data.name={name!r}: use letters, digits and _ . - (it names a folder).")
    files = find_files(path)
    memory = cache_dir / "digests.json"
    digests = source_digests(files, memory, verify)
    settings = {"columns": dataclasses.asdict(columns), "cleaning": dataclasses.asdict(cleaning)}
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
            remember_digests(digests, memory)
            return folder
    log = open_log(path, columns, cleaning.time_unit)
    check_needs(log.columns.named(), cleaning)
    quarantine = cache_dir / "quarantine" / f"{name}-{fingerprint[:12]}.parquet"
    events, rows, rejected = _read(log, quarantine, cleaning.max_bad_share)
    try:
        users, user_ids = _encode(events["user"])
        items, item_ids = _encode(events["item"])
        events = events.with_columns(user=users, item=items)
        events, steps = clean(events, cleaning)
        store = _store_of(events, user_ids, item_ids)
        if accept is not None:
            accept(store)
        report = build_report(
            store, name=name, fingerprint=fingerprint, rows_in=rows, rejected=rejected, steps=steps
        )
        write_store(
            folder,
            store,
            name=name,
            fingerprint=fingerprint,
            settings=settings,
            sources=digests,
            order="time" if log.columns.order is None else "order",
            report=report,
            extra_files={"quarantine.parquet": quarantine} if rejected else None,
        )
    finally:
        if rejected:
            with suppress(OSError):
                quarantine.parent.rmdir()  # only if it is empty
    remember_digests(digests, memory)
    return folder


def fingerprint_of(digests: Sequence[str], settings: dict[str, Any]) -> str:
    """Identity of a store: SHA-256 over the format version, source digests and settings."""
    content = [FORMAT, VERSION, list(digests), settings]
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _read(
    log: Log, quarantine: Path, max_bad_share: float
) -> tuple[pl.DataFrame, int, dict[str, int]]:
    """Usable rows in file order; number of rows read; unusable ones by reason.

    Unusable rows, if any, are written to `quarantine`.
    """
    try:
        events = _collect(log)
    except UnreadableError:
        by_line = log.one_line_at_a_time()
        if by_line is None:
            raise
        return _read(by_line, quarantine, max_bad_share)
    bad = int((events["reason"] > 0).sum())
    good = events.drop("reason") if bad == 0 else events.filter(reason=0).drop("reason")
    rejected = _write_quarantine(log, quarantine) if bad else {}
    rows = len(good) + sum(rejected.values())
    if rows == 0:
        raise LogError(f"{_place(log)} is empty: it has a header or schema, but no rows.")
    if sum(rejected.values()) > max_bad_share * rows:
        raise LogError(_too_many(rejected, rows, max_bad_share, quarantine, log))
    return good, rows, rejected


def _collect(log: Log) -> pl.DataFrame:
    try:
        with reading(_place(log)):
            return log.events().collect(engine="streaming")
    except UnreadableError:
        if len(log.files) > 1:
            for part in log.file_by_file():  # one of them fails again, and is named
                _collect(part)
        raise


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


def _encode(ids: pl.Series) -> tuple[pl.Series, pl.Series]:
    """Number raw ids from 0 in ascending order.

    Text ids become whole numbers if all of them are whole numbers written without extra zeros or
    signs, so that the same ids give the same vocabulary from CSV and from Parquet.

    Args:
        ids: Int64 or Categorical, no nulls.

    Returns:
        UInt32 numbers [rows], and the raw ids (Int64 or String, unique, ascending).
    """
    if ids.dtype == pl.Int64:
        raw = ids.unique().sort()
        codes = np.searchsorted(raw.to_numpy(), ids.to_numpy())
        return pl.Series(ids.name, codes.astype(np.uint32)), raw
    distinct = ids.unique()
    physical = distinct.to_physical().to_numpy()
    text = distinct.cast(pl.String)
    if bool(text.str.contains(_WHOLE_NUMBER).all()):
        whole = text.cast(pl.Int64, strict=False)
        text = text if whole.null_count() else whole  # more than 64 bits stay text
    place = text.arg_sort().to_numpy()
    numbers = np.zeros(int(physical.max(initial=0)) + 1, dtype=np.uint32)
    numbers[physical[place]] = np.arange(len(place), dtype=np.uint32)
    return pl.Series(ids.name, numbers[ids.to_physical().to_numpy()]), text.gather(place)


def _store_of(events: pl.DataFrame, user_ids: pl.Series, item_ids: pl.Series) -> HistoryStore:
    """The store of cleaned events, with the ids that are left numbered anew without gaps."""
    user = events["user"].to_numpy()
    lengths = np.bincount(user, minlength=len(user_ids))
    present_users = np.flatnonzero(lengths)
    item = events["item"].to_numpy()
    present_items = np.bincount(item, minlength=len(item_ids)) > 0
    index = np.cumsum(present_items, dtype=np.int32)  # the first present item gets 1
    times = None
    if "time" in events.columns and events["time"].null_count() < len(events):
        times = events["time"].fill_null(NO_TIME).to_numpy()
    ratings = labels = None
    if "rating" in events.columns:
        ratings = events["rating"].fill_null(float("nan")).to_numpy()
    if "label" in events.columns:
        labels = events["label"].fill_null(-1).to_numpy()
    return HistoryStore(
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
