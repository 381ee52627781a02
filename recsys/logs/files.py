"""Files on disk: their digests, and writing them whole or not at all."""

from __future__ import annotations

import hashlib
import json
import os
import re
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import polars as pl


def sha256_of(path: Path) -> str:
    """SHA-256 of a file's bytes, as 64 hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_text(path: Path, text: str) -> None:
    """Write a small UTF-8 file whole or not at all, making its folder if need be."""
    write_bytes(path, text.encode())


def write_bytes(path: Path, content: bytes | memoryview) -> None:
    """Write a file whole or not at all, making its folder if need be."""
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = name_aside(path)
    try:
        with aside.open("xb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        aside.replace(path)
    except BaseException:
        aside.unlink(missing_ok=True)
        raise


def copy_file(source: Path, path: Path) -> None:
    """Copy a file of any size whole or not at all, making the folder if need be."""
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = name_aside(path)
    try:
        with source.open("rb") as old, aside.open("xb") as new:
            shutil.copyfileobj(old, new, 1 << 20)
            new.flush()
            os.fsync(new.fileno())
        aside.replace(path)
    except BaseException:
        aside.unlink(missing_ok=True)
        raise


def name_aside(path: Path) -> Path:
    """A hidden name in the same folder that nobody else uses, to write to before renaming."""
    return path.with_name(f".{path.name}.{secrets.token_hex(4)}")


def sync(path: Path) -> None:
    """Force a written file, or the entries of a folder, onto the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """Turn the errors that Polars raises while it writes `path` into the OSError behind them."""
    try:
        yield
    except pl.exceptions.PolarsError as error:
        code = re.search(r"os error (\d+)", str(error))
        if code is None:
            raise
        number = int(code.group(1))
        raise OSError(number, os.strerror(number), str(path)) from error


def source_digests(files: list[Path], memory: Path, rehash: bool) -> list[dict[str, Any]]:
    """Digests of source files; one that was taken before stands while size and mtime_ns stand.

    Args:
        files: absolute paths.
        memory: the JSON file with digests taken before; it need not exist and is not written.
        rehash: read every file again.

    Returns:
        For each file, in order: `path`, `size`, `mtime_ns`, `sha256`.
    """
    known: dict[str, Any] = {} if rehash else _read_digests(memory)
    digests = []
    for file in files:
        status = file.stat()
        entry = {"path": str(file), "size": status.st_size, "mtime_ns": status.st_mtime_ns}
        before = known.get(str(file), {})
        if all(before.get(key) == value for key, value in entry.items() if key != "path"):
            entry["sha256"] = str(before["sha256"])
        else:
            entry["sha256"] = sha256_of(file)
        digests.append(entry)
    return digests


def remember_digests(digests: list[dict[str, Any]], memory: Path) -> None:
    """Add digests to the JSON file that `source_digests` reads."""
    known = _read_digests(memory)
    new = {str(d["path"]): {k: v for k, v in d.items() if k != "path"} for d in digests}
    if any(known.get(path) != entry for path, entry in new.items()):
        write_text(memory, json.dumps(known | new, indent=1, sort_keys=True))


def _read_digests(memory: Path) -> dict[str, Any]:
    try:
        found = json.loads(memory.read_text(encoding="utf-8"))
    except (FileNotFoundError, json.JSONDecodeError, UnicodeDecodeError):
        return {}  # only a memory: what is missing is taken again
    return found if isinstance(found, dict) else {}
