"""A large Parquet file written a part at a time: whole or not at all, and resumable."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import polars as pl

from recsys.logs.files import disk_errors, name_aside, sync, write_text

FORMAT, VERSION = "recsys-parts", 1
PEOPLE = 1 << 14
ROWS = 1 << 20
_MANIFEST, _LOCK, _JOINED = "manifest.json", ".lock", "joined.parquet"


class OutputError(ValueError):
    """A file that cannot be written as asked."""


def check_output(output: Path) -> None:
    """Refuses a path that cannot be written, before any work starts.

    Raises:
        OutputError: it is a folder, or not named as a Parquet file.
    """
    if output.is_dir():
        raise OutputError(f"output={output} is a folder: add the name of a file in it")
    if output.suffix != ".parquet":
        raise OutputError(
            f"output={output}: the lists are written as Parquet; name it {output.stem}.parquet"
        )


def parts_folder(output: Path) -> Path:
    """Where the parts of an output are gathered: a hidden folder beside it."""
    return output.with_name(f".{output.name}.parts")


def people_in_a_part(k: int) -> int:
    """How many lists of length k one part holds: enough to be fast, few enough for the memory."""
    return max(1, min(PEOPLE, ROWS // k))


def write_in_parts(
    output: Path,
    parts: int,
    make: Callable[[int], pl.DataFrame],
    identity: Mapping[str, Any],
    progress: Callable[[int], None] = lambda done: None,
) -> int:
    """Write `make(0)`, `make(1)`, … behind each other into one Parquet file.

    Each part is on the disk before the next is made. After an interruption, whatever its kind, the
    same call goes on with the first part that is missing. The output appears when it is whole, in
    place of a file that may stand there; the parts are then gone.

    Args:
        output: the file; missing folders are made.
        parts: how many.
        make: makes one, always the same from the same number.
        identity: all that the parts depend on, as JSON by name.
        progress: called with the number of finished parts, first with those found.

    Returns:
        How many parts were there already.

    Raises:
        OutputError: parts of other settings are there, or another process is at work on them.
        OSError: it could not be written; finished parts stay.
    """
    output.parent.mkdir(parents=True, exist_ok=True)
    folder = parts_folder(output)
    folder.mkdir(exist_ok=True)
    with _alone(folder):
        wanted = {"format": FORMAT, "version": VERSION, "parts": parts, **identity}
        wanted = json.loads(json.dumps(wanted))
        before = _read(folder / _MANIFEST)
        if before is None:  # a first try that came to nothing
            _clear(folder, keep=set())
            write_text(folder / _MANIFEST, json.dumps(wanted, indent=1))
        elif before != wanted:
            raise OutputError(_differs(before, wanted, folder))
        files = [folder / f"part-{number:06d}.parquet" for number in range(parts)]
        _clear(folder, keep={_MANIFEST, *(file.name for file in files)})
        found = sum(file.exists() for file in files)
        done = found
        progress(done)
        for number, file in enumerate(files):
            if not file.exists():
                _write_part(file, make(number))
                done += 1
                progress(done)
        joined = folder / _JOINED
        with disk_errors(output):
            # In order, a piece at a time; the columns' types are those of the first part.
            pl.scan_parquet(files, glob=False).sink_parquet(joined, maintain_order=True)
        sync(joined)
        joined.replace(output)
        sync(output.parent)
        shutil.rmtree(folder, ignore_errors=True)
    return found


def _write_part(file: Path, frame: pl.DataFrame) -> None:
    aside = name_aside(file)
    try:
        with disk_errors(file):
            frame.write_parquet(aside)
        sync(aside)
        aside.replace(file)
    except BaseException:
        aside.unlink(missing_ok=True)
        raise


def _read(manifest: Path) -> dict[str, Any] | None:
    try:
        found = json.loads(manifest.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise OutputError(
            f"{manifest} is damaged ({error}): delete {manifest.parent} to begin anew"
        ) from error
    return dict(found)


def _differs(before: Mapping[str, Any], wanted: Mapping[str, Any], folder: Path) -> str:
    changed = [
        f"{name} ({before.get(name)} there, {wanted.get(name)} here)"
        for name in dict.fromkeys([*wanted, *before])
        if before.get(name) != wanted.get(name)
    ]
    return (
        f"{folder} holds the parts of an unfinished command with other settings: "
        f"{', '.join(changed)}. Give those to go on with it, name another output, or delete the "
        "folder to begin anew"
    )


def _clear(folder: Path, keep: set[str]) -> None:
    """Delete what a killed process left half-written."""
    for file in folder.iterdir():
        if file.name not in keep and file.name != _LOCK:
            file.unlink()


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Refuse a second process on the same parts, where the system has such locks."""
    try:
        import fcntl
    except ImportError:  # Windows: two commands would then both write, the same parts
        yield
        return
    with (folder / _LOCK).open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise OutputError(
                f"another command is at work on {folder}: wait for it, or name another output"
            ) from error
        yield
