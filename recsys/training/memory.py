"""What the C library does with the memory that a training step frees."""

from __future__ import annotations

import ctypes
import sys

# malloc.h of glibc
M_TRIM_THRESHOLD = -1
M_MMAP_THRESHOLD = -3


def keep_freed_memory() -> bool:
    """Asks glibc to keep what a step frees for the next step, which wants the same sizes again.

    Otherwise every block above 32 MiB is given back to the system and fetched anew, and the system
    fills each of its pages with zeros at the first touch: writing a fresh 80 MB block costs four
    times as much as writing a kept one. The process then holds on to the most it ever had.

    Returns:
        Whether the C library took it: False where it is not glibc.
    """
    if not sys.platform.startswith("linux"):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):  # musl has none
        return False
    kept: int = mallopt(M_MMAP_THRESHOLD, 1 << 30)
    trimmed: int = mallopt(M_TRIM_THRESHOLD, (1 << 31) - 1)
    return bool(kept) and bool(trimmed)
