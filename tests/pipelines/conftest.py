"""Running the real commands as a user does, in a folder of their own."""

import contextlib
import io
import os
import resource
import runpy
import shutil
import subprocess
import sys
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Self
from unittest import mock

import pytest

CHECKOUT = Path(__file__).resolve().parents[2]


def files_below(folder: Path) -> set[str]:
    return {str(file.relative_to(folder)) for file in folder.rglob("*") if file.is_file()}


@dataclass
class Place:
    """A working directory; RECSYS_HOME is `home` in it."""

    folder: Path
    python_path: str = str(CHECKOUT)

    @property
    def home(self) -> Path:
        return self.folder / "home"

    @property
    def files(self) -> set[str]:
        return files_below(self.folder)

    def stocked(self, store: Path) -> Self:
        """With a copy of a store of runs: the fixture `empty_store` saves making one."""
        self.home.mkdir()
        shutil.copy(store, self.home / "mlflow.db")
        return self

    def environment(self, **more: str | None) -> dict[str, str]:
        variables = {
            **os.environ,
            "PYTHONPATH": self.python_path,
            "PYTHONDONTWRITEBYTECODE": "1",
            "RECSYS_HOME": str(self.home),
            "RECSYS_TRACEBACK": "",
            "POLARS_MAX_THREADS": "1",
            "OMP_NUM_THREADS": "1",
            **more,
        }
        return {name: value for name, value in variables.items() if value is not None}

    def python(self, *arguments: str, largest_file: int | None = None, **variables: str | None):
        """Run Python; `largest_file` bytes is where every file it writes hits the disk's end."""

        def limit() -> None:
            if largest_file is not None:
                resource.setrlimit(resource.RLIMIT_FSIZE, (largest_file, largest_file))

        return subprocess.run(
            [sys.executable, *arguments],
            cwd=self.folder,
            env=self.environment(**variables),
            capture_output=True,
            text=True,
            timeout=120,
            preexec_fn=limit,
        )

    def command(self, name: str, *arguments: str, largest_file: int | None = None, **variables):
        return self.python(
            "-m", f"pipelines.{name}", *arguments, largest_file=largest_file, **variables
        )

    def here(self, name: str, *arguments: str) -> subprocess.CompletedProcess[str]:
        """The same in this process, which saves the start: for what hangs on no process."""
        assert self.python_path == str(CHECKOUT), "another pipelines needs a process of its own"
        argv = [f"pipelines.{name}", *arguments]
        printed, errors, code = io.StringIO(), io.StringIO(), None
        with (
            contextlib.chdir(self.folder),
            mock.patch.dict(os.environ, self.environment()),
            mock.patch.object(sys, "argv", argv),
            contextlib.redirect_stdout(printed),
            contextlib.redirect_stderr(errors),
            warnings.catch_warnings(),
        ):
            warnings.filterwarnings("ignore", "'pipelines.* found in sys.modules")
            try:
                runpy.run_module(argv[0], run_name="__main__", alter_sys=True)
            except SystemExit as left:
                code = left.code
        assert isinstance(code, int), code
        return subprocess.CompletedProcess(argv, code, printed.getvalue(), errors.getvalue())

    def refused(self, name: str, *arguments: str, code: int = 2, may_add: tuple[str, ...] = ()):
        """Run a command that must fail, in this process if that is possible; returns its message.

        Nothing on stdout, one error without a traceback on stderr, and no new file, except one
        below each folder of `may_add`.
        """
        before = self.files
        run = self.here if self.python_path == str(CHECKOUT) else self.command
        done = run(name, *arguments)
        assert done.returncode == code, done.stderr
        assert "Traceback" not in done.stderr
        assert done.stderr.startswith("Error: ")
        assert done.stdout == ""
        new = self.files - before
        assert {str(Path(file).parent) for file in new} == set(may_add)
        assert len(new) == len(may_add)
        return done.stderr


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path)
