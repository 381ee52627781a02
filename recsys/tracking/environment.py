"""What a result depends on besides config and data: code, versions, machine."""

from __future__ import annotations

import getpass
import importlib.metadata
import os
import platform
import shlex
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import recsys
from recsys.tracking.processes import process_mark

_PACKAGES = ("torch", "pytorch-lightning", "polars", "numpy", "mlflow")


def environment_tags() -> dict[str, str]:
    """What a result depends on besides config and data: code, versions, machine.

    Returns:
        `git.commit` and `git.dirty` of the code that runs (`none` where it is not a checkout),
        `version.*`, `python`, `platform`, `host`, `pid`, `process` (see `process_mark`), `cpus`,
        `command`, and the names under which MLflow's own columns show user and commit.
    """
    commit, dirty = _git_state(Path(__file__).resolve())
    tags = {
        "git.commit": commit or "none",
        "git.dirty": str(dirty).lower(),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "host": platform.node(),
        "pid": str(os.getpid()),
        "process": process_mark(os.getpid()) or "",
        "cpus": str(os.cpu_count()),
        "command": shlex.join(["python", *sys.orig_argv[1:]]),
        "version.recsys": recsys.__version__,
        "mlflow.source.type": "LOCAL",
    }
    for package in _PACKAGES:
        try:
            tags[f"version.{package}"] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    if commit:
        tags["mlflow.source.git.commit"] = commit
    with suppress(KeyError, OSError):  # a container may run under a number that has no name
        tags["mlflow.user"] = getpass.getuser()
    spec = getattr(sys.modules.get("__main__"), "__spec__", None)
    if spec is not None:
        tags["mlflow.source.name"] = spec.name.removesuffix(".__main__")
    return tags


def _git_state(file: Path) -> tuple[str | None, bool]:
    """Commit of the repository that holds a file, and whether anything differs from it.

    Only of a repository that tracks this very file: a virtual environment may lie inside somebody
    else's.
    """

    def git(*arguments: str) -> str | None:
        try:
            done = subprocess.run(
                ["git", "-C", str(file.parent), *arguments],
                capture_output=True,
                text=True,
                timeout=10,
                check=False,
            )
        except (OSError, subprocess.TimeoutExpired):
            return None
        return done.stdout.strip() if done.returncode == 0 else None

    if git("ls-files", "--error-unmatch", file.name) is None:
        return None, False
    return git("rev-parse", "HEAD"), bool(git("status", "--porcelain"))
