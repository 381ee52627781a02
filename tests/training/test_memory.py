"""Memory that a step frees is there for the next one."""

from __future__ import annotations

import ctypes
import os
import platform
import subprocess
import sys

import pytest

from recsys.training.memory import keep_freed_memory

# Ten times 80 MB, written and freed: how often the system had to give a page.
PROGRAM = """
import resource, sys
import numpy as np
from recsys.training.memory import keep_freed_memory
if sys.argv[1] == "kept":
    assert keep_freed_memory()
for _ in range(10):
    block = np.empty(10_000_000)
    block[:] = 1
    del block
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt)
"""


@pytest.mark.skipif(
    platform.libc_ver()[0] != "glibc", reason="page faults of glibc's malloc are counted"
)
def test_kept_blocks_are_not_fetched_again() -> None:
    # Pages of one size: whether there are huge ones to be had depends on what else runs.
    env = {**os.environ, "NUMPY_MADVISE_HUGEPAGE": "0"}
    faults = {}
    for how in ("kept", "not"):
        program = [sys.executable, "-c", PROGRAM, how]
        faults[how] = int(subprocess.run(program, capture_output=True, env=env).stdout)
    assert faults["kept"] < faults["not"] / 2, faults


def test_elsewhere_nothing_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "darwin")
    assert not keep_freed_memory()
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setattr(ctypes, "CDLL", lambda _name: object())  # no mallopt in it
    assert not keep_freed_memory()
