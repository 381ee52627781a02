"""The histories store: one ragged, time-ordered row per user, memory-mapped from disk."""

from __future__ import annotations

import errno
import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
import polars as pl

from recsys.histories.attributes import Attribute
from recsys.histories.impressions import Impressions
from recsys.histories.vocabulary import Vocabulary
from recsys.logs.cleaning import count_ids
from recsys.logs.files import disk_errors, name_aside, sha256_of, sync, write_text
from recsys.logs.threads import side_by_side

NO_TIME = np.iinfo(np.int64).min

FORMAT = "recsys-histories"
VERSION = 1
_EMPTY_ARRAY_BYTES = 128  # a header and nothing behind it, which cannot be mapped
_ATTRIBUTE_PARTS: dict[str, np.dtype[Any]] = {
    "codes": np.dtype(np.int32),
    "offsets": np.dtype(np.int64),
    "numbers": np.dtype(np.float64),
}
_IMPRESSION_ARRAYS: dict[str, np.dtype[Any]] = {
    "users": np.dtype(np.int64),
    "items": np.dtype(np.int32),
    "labels": np.dtype(np.int8),
    "times": np.dtype(np.int64),
    "requests": np.dtype(np.int64),
    "history_ends": np.dtype(np.int64),
}
_ARRAYS: dict[str, np.dtype[Any]] = {
    "offsets": np.dtype(np.int64),
    "items": np.dtype(np.int32),
    "times": np.dtype(np.int64),
    "ratings": np.dtype(np.float32),
    "labels": np.dtype(np.int8),
}


class StoreError(ValueError):
    """A histories store that cannot be used. The message names the file and the remedy."""


@dataclass(frozen=True)
class HistoryStore:
    """All events of all users; those of user u are `offsets[u] : offsets[u + 1]`, oldest first.

    Attributes:
        offsets: int64 [users + 1].
        items: int32 [events], item indices ≥ 1.
        times: int64 [events], microseconds since 1970 (`NO_TIME` where unknown), or None.
        ratings: float32 [events] (NaN where unknown), or None.
        labels: int8 [events], 0 or 1 (-1 where unknown), or None.
        user_vocabulary: raw user ids, index 0 ...
        item_vocabulary: raw item ids, index 1 ...
        attributes: raw columns by "user.<column>" [users], "item.<column>" [V, the padding has no
            value] and "event.<column>" [events].
        impressions: what was shown, where the data have an impression log.
        manifest: format version, counts, settings, source digests, fingerprint.
        path: the folder it was opened from; None when it lives in memory only.
    """

    offsets: np.ndarray
    items: np.ndarray
    user_vocabulary: Vocabulary
    item_vocabulary: Vocabulary
    times: np.ndarray | None = None
    ratings: np.ndarray | None = None
    labels: np.ndarray | None = None
    attributes: dict[str, Attribute] = field(default_factory=dict)
    impressions: Impressions | None = None
    manifest: dict[str, Any] = field(default_factory=dict)
    path: Path | None = None

    @property
    def users(self) -> int:
        """Number of users."""
        return len(self.offsets) - 1

    @property
    def events(self) -> int:
        """Number of events."""
        return int(self.offsets[-1])

    @property
    def catalogue_size(self) -> int:
        """V: the number of items plus one for padding."""
        return self.item_vocabulary.size

    @property
    def fingerprint(self) -> str:
        """Identity of the store: what it was made from and how. Empty in memory-only stores."""
        return str(self.manifest.get("fingerprint", ""))

    @property
    def lengths(self) -> np.ndarray:
        """int64 [users]: events per user."""
        return np.diff(self.offsets)

    def history(self, user: int, end: int | None = None) -> np.ndarray:
        """Item indices of a user's events `[0, end)`, oldest first."""
        begin = int(self.offsets[user])
        stop = int(self.offsets[user + 1]) if end is None else begin + end
        return self.items[begin:stop]

    @staticmethod
    def from_lists(
        histories: list[list[int]], items: int | None = None, times: list[list[int]] | None = None
    ) -> HistoryStore:
        """A small store in memory: item indices (≥ 1) per user. Raw ids are "u0", "i1" …."""
        lengths = [len(history) for history in histories]
        flat = np.array([i for history in histories for i in history], dtype=np.int32)
        count = items if items is not None else int(flat.max(initial=0))
        flat_times = None
        if times is not None:
            flat_times = np.array([t for row in times for t in row], dtype=np.int64)
        return HistoryStore(
            offsets=np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64),
            items=flat,
            times=flat_times,
            user_vocabulary=Vocabulary(
                pl.Series("user", [f"u{i}" for i in range(len(histories))], dtype=pl.String), 0
            ),
            item_vocabulary=Vocabulary(
                pl.Series("item", [f"i{i}" for i in range(1, count + 1)], dtype=pl.String), 1
            ),
        )


def write_store(
    folder: Path,
    store: HistoryStore,
    *,
    name: str,
    fingerprint: str,
    settings: dict[str, Any],
    sources: list[dict[str, Any]],
    order: str,
    report: dict[str, Any],
    extra_files: dict[str, Path] | None = None,
) -> Path:
    """Write a store whole or not at all, in place of one that may stand there.

    Args:
        folder: where to.
        store: the arrays and vocabularies; its own manifest and path are not looked at.
        name: of the data set.
        fingerprint: identity of sources and settings.
        settings: what the store was made with (JSON).
        sources: path, size, mtime_ns and sha256 of each source file.
        order: "time" or "order": what put the events in order.
        report: the ingest report (JSON).
        extra_files: file name → a finished file to move into the folder (the quarantine).

    Returns:
        The folder.

    Raises:
        OSError: it could not be written (disk full, say); nothing is left behind.
    """
    with _written_aside(folder) as aside:
        counts = (
            store.item_vocabulary.raw_ids.rename("item")
            .to_frame()
            .with_columns(count=pl.Series(count_ids(store.items, store.catalogue_size)[1:]))
        )
        arrays = {stem: array for stem in _ARRAYS if (array := getattr(store, stem)) is not None}
        side_by_side(lambda stem: _write_array(aside / f"{stem}.npy", arrays[stem]), arrays)
        _write_parquet(
            aside / "users.parquet", store.user_vocabulary.raw_ids.rename("user").to_frame()
        )
        _write_parquet(aside / "items.parquet", counts)
        attributes = dict(store.attributes)
        if store.impressions is not None:
            attributes |= store.impressions.attributes
            (aside / "impressions").mkdir()
            for stem in _IMPRESSION_ARRAYS:
                array = getattr(store.impressions, stem)
                _write_array(aside / "impressions" / f"{stem}.npy", array)
        if attributes:
            (aside / "attributes").mkdir()
        for key, attribute in attributes.items():
            _write_attribute(aside / "attributes", key, attribute)
        for file_name, source in (extra_files or {}).items():
            shutil.move(source, aside / file_name)
        write_text(aside / "report.json", json.dumps(report, indent=1))
        files = [file for file in sorted(aside.rglob("*")) if file.is_file()]
        digests = dict(zip(files, side_by_side(sha256_of, files), strict=True))
        manifest: dict[str, Any] = {
            "format": FORMAT,
            "version": VERSION,
            "fingerprint": fingerprint,
            "name": name,
            "created": datetime.now(UTC).isoformat(timespec="seconds"),
            "counts": {
                "events": store.events,
                "users": store.users,
                "items": len(store.item_vocabulary),
            },
            "settings": settings,
            "sources": sources,
            "files": {
                file.relative_to(aside).as_posix(): {
                    "bytes": file.stat().st_size,
                    "sha256": sha256,
                }
                for file, sha256 in digests.items()
            },
            "item_vocabulary": store.item_vocabulary.fingerprint,
            "user_vocabulary": store.user_vocabulary.fingerprint,
            "order": order,
            "has_times": store.times is not None,
            "attributes": {key: attribute.form for key, attribute in attributes.items()},
        }
        if store.impressions is not None:
            manifest["counts"]["impressions"] = len(store.impressions)
        write_text(aside / "manifest.json", json.dumps(manifest, indent=1))
    return folder


def open_store(path: Path, verify: bool = False) -> HistoryStore:
    """Open a store; its arrays are mapped into memory, not read.

    Args:
        path: the folder of the store.
        verify: also compare the SHA-256 of every file with the manifest.

    Returns:
        The store.

    Raises:
        StoreError: it is no store, of another format version, or a file of it is missing, cut off
            or (with `verify`) altered.
    """
    manifest = read_manifest(path)
    for name, entry in manifest["files"].items():
        _check_file(path, name, entry, verify)
    counts = manifest["counts"]
    events, users = counts["events"], counts["users"]
    arrays = {
        stem: _mapped(path, f"{stem}.npy", dtype, users + 1 if stem == "offsets" else events)
        for stem, dtype in _ARRAYS.items()
        if f"{stem}.npy" in manifest["files"]
    }
    ids = {}
    for role in ("user", "item"):
        ids[role] = _column(path, f"{role}s.parquet", role)
    rows = {
        "user": users,
        "item": 1 + counts["items"],
        "event": events,
        "context": counts.get("impressions", 0),
    }
    attributes = {
        key: _open_attribute(path, key, form, rows[key.partition(".")[0]])
        for key, form in manifest.get("attributes", {}).items()
    }
    shown = {key: attributes.pop(key) for key in list(attributes) if key.startswith("context.")}
    impressions = None
    if "impressions" in counts:
        impressions = Impressions(
            **{
                stem: _mapped(path, f"impressions/{stem}.npy", dtype, counts["impressions"])
                for stem, dtype in _IMPRESSION_ARRAYS.items()
            },
            attributes=shown,
        )
    return HistoryStore(
        offsets=np.array(arrays["offsets"]),
        items=arrays["items"],
        user_vocabulary=Vocabulary(ids["user"], 0),
        item_vocabulary=Vocabulary(ids["item"], 1),
        times=arrays.get("times"),
        ratings=arrays.get("ratings"),
        labels=arrays.get("labels"),
        attributes=attributes,
        impressions=impressions,
        manifest=manifest,
        path=path,
    )


def read_manifest(path: Path) -> dict[str, Any]:
    """The manifest of a store.

    Raises:
        StoreError: there is none, it cannot be read, or it is of another format version.
    """
    file = path / "manifest.json"
    if not path.is_dir():
        raise StoreError(
            f"There is no histories store at {path}. Make one: python -m pipelines.ingest"
        )
    try:
        manifest: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise StoreError(
            f"{path} is no histories store: it has no manifest.json. {_remedy(path)}"
        ) from error
    except ValueError as error:
        raise StoreError(f"{file} cannot be read ({error}). {_remedy(path)}") from error
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        raise StoreError(f"{file} is not the manifest of a histories store. {_remedy(path)}")
    if manifest.get("version") != VERSION:
        raise StoreError(
            f"{path} has format version {manifest.get('version')}, this program reads {VERSION}. "
            f"{_remedy(path)}"
        )
    missing = {"fingerprint", "counts", "files", "has_times", "order"} - set(manifest)
    if missing:
        raise StoreError(f"{file} lacks {', '.join(sorted(missing))}. {_remedy(path)}")
    return manifest


def _remedy(path: Path) -> str:
    return f"Delete {path}, or ingest again with data.verify=true, which makes it anew."


def _check_file(path: Path, name: str, entry: dict[str, Any], verify: bool) -> None:
    file = path / name
    try:
        size = file.stat().st_size
    except FileNotFoundError as error:
        raise StoreError(f"{file} is missing. {_remedy(path)}") from error
    if size != entry["bytes"]:
        word = "truncated" if size < entry["bytes"] else "damaged"
        raise StoreError(
            f"{file} is {word}: {size:,} bytes where the manifest says {entry['bytes']:,}. "
            f"{_remedy(path)}"
        )
    if verify and sha256_of(file) != entry["sha256"]:
        raise StoreError(f"{file} was altered since it was written. {_remedy(path)}")


def _mapped(path: Path, name: str, dtype: np.dtype[Any], rows: int | None = None) -> np.ndarray:
    """An array of a store, mapped into memory; `rows` is how long it must be."""
    file = path / name
    try:
        empty = file.stat().st_size <= _EMPTY_ARRAY_BYTES
        array: np.ndarray = np.load(file, mmap_mode=None if empty else "r", allow_pickle=False)
    except (ValueError, EOFError, OSError) as error:
        raise StoreError(f"{file} is damaged ({error}). {_remedy(path)}") from error
    if array.dtype != dtype or array.ndim != 1 or rows not in (None, len(array)):
        raise StoreError(f"{file} does not hold what the manifest says. {_remedy(path)}")
    return array


def _column(path: Path, name: str, column: str) -> pl.Series:
    try:
        return pl.read_parquet(path / name, columns=[column]).to_series()
    except (pl.exceptions.PolarsError, OSError) as error:
        raise StoreError(f"{path / name} is damaged ({error}). {_remedy(path)}") from error


def _attribute_stem(key: str) -> str:
    # A column may be called anything; a file may not.
    return quote(key, safe=" ")


def _write_attribute(folder: Path, key: str, attribute: Attribute) -> None:
    stem = _attribute_stem(key)
    for part in _ATTRIBUTE_PARTS:
        array = getattr(attribute, part)
        if array is not None:
            _write_array(folder / f"{stem}.{part}.npy", array)
    if attribute.values is not None:
        _write_parquet(folder / f"{stem}.values.parquet", attribute.values.to_frame("value"))


def _open_attribute(path: Path, key: str, form: str, rows: int) -> Attribute:
    stem = f"attributes/{_attribute_stem(key)}"
    if form == "numbers":
        dtype = _ATTRIBUTE_PARTS["numbers"]
        return Attribute(numbers=_mapped(path, f"{stem}.numbers.npy", dtype, rows))
    offsets = None
    elements = rows
    if form == "lists":
        dtype = _ATTRIBUTE_PARTS["offsets"]
        offsets = _mapped(path, f"{stem}.offsets.npy", dtype, rows + 1)
        elements = int(offsets[-1])
    codes = _mapped(path, f"{stem}.codes.npy", _ATTRIBUTE_PARTS["codes"], elements)
    return Attribute(codes, _column(path, f"{stem}.values.parquet", "value"), offsets)


@contextmanager
def _written_aside(folder: Path) -> Iterator[Path]:
    """A folder to write into, which takes the place of `folder` when all went well."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    aside = name_aside(folder)
    try:
        aside.mkdir()
        yield aside
        side_by_side(sync, aside.rglob("*"))
        sync(aside)
        if folder.exists():
            old = folder.replace(name_aside(folder))
            aside.replace(folder)
            shutil.rmtree(old, ignore_errors=True)
        else:
            try:
                aside.replace(folder)
            except OSError as error:
                # Another process made the same store meanwhile: one is as good as the other.
                if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                    raise
                shutil.rmtree(aside, ignore_errors=True)
        sync(folder.parent)
    except BaseException:
        shutil.rmtree(aside, ignore_errors=True)
        with suppress(OSError):
            folder.parent.rmdir()  # only if it is empty
        raise


def _write_array(path: Path, array: np.ndarray) -> None:
    # Not np.save: on a full disk it says how many items it wrote, and not why it stopped.
    array = np.ascontiguousarray(array)
    header = {"descr": array.dtype.str, "fortran_order": False, "shape": array.shape}
    with path.open("wb") as file:
        np.lib.format.write_array_header_1_0(file, header)
        file.write(array.reshape(-1).view(np.uint8).data)


def _write_parquet(path: Path, frame: pl.DataFrame) -> None:
    with disk_errors(path):
        frame.write_parquet(path)
