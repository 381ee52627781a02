"""What the libraries below us keep of a training step, and what they give back."""

from __future__ import annotations

import ctypes
import os
import sys
from typing import Any

# malloc.h of glibc
M_TRIM_THRESHOLD = -1
M_MMAP_THRESHOLD = -3
# How many kernels oneDNN keeps, and torch's layer above it; read at the first product.
KERNEL_CACHES = ("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "LRU_CACHE_CAPACITY")


def keep_freed_memory() -> bool:
    """Asks glibc to keep what a step frees for the next step, which wants the same sizes again.

    Otherwise every block above 32 MiB is given back to the system and fetched anew, and the system
    fills each of its pages with zeros at the first touch: writing a fresh 80 MB block costs four
    times as much as writing a kept one. The process then holds on to the most it ever had. (The
    command `ingest` says it too, whose blocks of rows come and go: a sixth less time.)

    Returns:
        Whether the C library took it: False where it is not glibc.
    """
    mallopt = _of_the_c_library("mallopt")
    if mallopt is None:
        return False
    kept: int = mallopt(M_MMAP_THRESHOLD, 1 << 30)
    trimmed: int = mallopt(M_TRIM_THRESHOLD, (1 << 31) - 1)
    return bool(kept) and bool(trimmed)


def keep_few_kernels() -> None:
    """Asks oneDNN, which does the products in bfloat16, to keep 16 kernels instead of 1,024.

    It makes one for each shape that it meets and keeps the latest, .3 MB each, and so does torch's
    layer above it. A step meets about 20 shapes, and the next step others: the old ones are of no
    use, and they lie between the blocks that steps free. On MovieLens-1M (width 128, whole
    histories) a training held 2.8 GB with them after two epochs, and .9 GB without, and an epoch
    took no longer. A small log pays: the few shapes of MovieLens-100K do come again, and without
    their kernels a step takes a quarter longer. So do a ranker's, whose batches have one number of
    rows: it keeps them all, for a sixth of a step's time and no memory (DIN on MovieLens-1M).

    To be said before the first such product of the process; variables of the user's own stand.
    """
    for cache in KERNEL_CACHES:
        os.environ.setdefault(cache, "16")


def _of_the_c_library(name: str) -> Any:
    """A function of glibc's; None elsewhere, as musl and other systems have none of these."""
    if not sys.platform.startswith("linux"):
        return None
    try:
        return getattr(ctypes.CDLL(None), name)
    except (OSError, AttributeError):
        return None
