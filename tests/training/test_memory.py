"""Memory that a step frees is there for the next one."""

from __future__ import annotations

import ctypes
import os
import platform
import subprocess
import sys

import pytest

from recsys.training.memory import keep_few_kernels, keep_freed_memory
from recsys.training.precision import has_fast_bf16

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


SHAPES = """
import ctypes, os, sys
import torch
from recsys.training.memory import keep_few_kernels
if sys.argv[1] == "few":
    keep_few_kernels()

class Used(ctypes.Structure):
    names = "arena ordblks smblks hblks hblkhd usmblks fsmblks uordblks fordblks keepcost"
    _fields_ = [(name, ctypes.c_size_t) for name in names.split()]

mallinfo = ctypes.CDLL(None).mallinfo2
mallinfo.restype = Used
weight = torch.randn(128, 128).bfloat16()
torch.empty(2000, 128, dtype=torch.bfloat16) @ weight
before = mallinfo().uordblks
for tokens in range(2001, 2301):
    torch.empty(tokens, 128, dtype=torch.bfloat16) @ weight
print(mallinfo().uordblks - before)
"""


@pytest.mark.skipif(not has_fast_bf16(), reason="oneDNN makes kernels for bfloat16 in hardware")
@pytest.mark.skipif(
    platform.libc_ver()[0] != "glibc", reason="memory in use is counted by glibc's malloc"
)
def test_kernels_of_old_shapes_are_let_go() -> None:
    env = {name: value for name, value in os.environ.items() if "CACHE_CAPACITY" not in name}
    used = {}
    for how in ("few", "all"):
        program = [sys.executable, "-c", SHAPES, how]
        used[how] = int(subprocess.run(program, capture_output=True, env=env).stdout)
    assert used["few"] < used["all"] / 10, used


def test_a_number_of_kernels_that_the_user_chose_stands(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "64")
    monkeypatch.setenv("LRU_CACHE_CAPACITY", "")  # put back at the end
    keep_few_kernels()
    assert os.environ["ONEDNN_PRIMITIVE_CACHE_CAPACITY"] == "64"
