"""Whether the process that wrote a run is still there, its number not taken by another one."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

BOOT = Path("/proc/sys/kernel/random/boot_id")


def process_mark(pid: int) -> str | None:
    """What tells a process from every other that has its number, before or after it.

    Returns:
        On Linux `BOOT/NAMESPACE/TICKS`: the machine's start, the container (numbers count anew in
        each) and the moment the process began; elsewhere that moment, as `ps` says it. None where
        there is no such process, or one that has ended and was not yet noted by its parent.
    """
    if not BOOT.exists():
        asked = ["ps", "-o", "lstart=", "-p", str(pid)]
        said = subprocess.run(asked, capture_output=True, text=True, check=False).stdout
        return " ".join(said.split()) or None
    try:
        status = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8")
    except OSError:
        return None
    # The name, in brackets, may hold anything. Behind it: state, …, and the start as number 22.
    fields = status.rpartition(")")[2].split()
    if fields[0] in ("Z", "X"):
        return None
    return f"{_here()}/{fields[19]}"


def is_gone(pid: int, mark: str | None) -> bool:
    """Whether a process that ran on this machine has surely ended.

    Args:
        pid: its number.
        mark: its `process_mark`, None where it was not kept: then a process with that number, if
            there is one, may be it.

    Returns:
        False where that cannot be told from here, as of a process in another container.
    """
    if mark is not None and mark.count("/") == 2 and BOOT.exists():
        boot, here = mark.split("/")[0], _here()
        if boot != here.split("/")[0]:
            return True
        if not mark.startswith(f"{here}/"):
            return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        pass  # somebody's: there is one
    now = process_mark(pid)
    if now is None:  # it has ended; or its state is for its owner's eyes only
        return not BOOT.exists() or Path(f"/proc/{pid}").exists()
    return mark is not None and now != mark


def _here() -> str:
    boot = BOOT.read_text(encoding="utf-8").strip()
    namespace = str(Path("/proc/self/ns/pid").readlink())  # "pid:[4026531836]"
    return f"{boot}/{namespace[5:-1]}"
