"""A log that a function made, as a file for the ingest to read."""

from __future__ import annotations

from pathlib import Path

import polars as pl

from recsys.logs.errors import LogError
from recsys.logs.files import disk_errors, name_aside, sha256_of, sync


def keep_frame(frame: pl.DataFrame, folder: Path) -> Path:
    """Writes a frame to `folder`, under a name made of its content; one that is there stays.

    The same rows again are the same file, whose digest is known, and so the same store.

    Args:
        frame: the log.
        folder: made if absent.

    Raises:
        LogError: a frame without columns, or values that Parquet does not know.
        OSError: it could not be written.
    """
    if not frame.width:
        raise LogError("a frame without columns is no log")
    folder.mkdir(parents=True, exist_ok=True)
    aside = name_aside(folder / "log.parquet")
    try:
        with disk_errors(aside):
            # In one piece: how a frame was put together is not part of what it says.
            try:
                frame.rechunk().write_parquet(aside, statistics=False)
            except pl.exceptions.PolarsError as error:
                if "os error" in str(error):
                    raise
                raise LogError(f"a log that Parquet cannot hold: {error}") from error
        target = folder / f"{sha256_of(aside)[:16]}.parquet"
        if not target.exists():
            sync(aside)
            aside.replace(target)
    finally:
        aside.unlink(missing_ok=True)
    return target
