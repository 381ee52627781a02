"""What every result of a benchmark says about itself, and where it is kept."""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import subprocess
from collections.abc import Callable
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"
PACKAGES = ("torch", "pytorch-lightning", "polars", "numpy", "mlflow")


def command_line(description: str | None) -> argparse.ArgumentParser:
    """The parser of a benchmark's command line, `--show` in it.

    Args:
        description: the docstring of the benchmark, shown as it stands.
    """
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--show", nargs="+", type=Path, metavar="FILE", help="print results again")
    return parser


def show_again(arguments: argparse.Namespace, render: Callable[[dict[str, Any]], str]) -> bool:
    """Prints the results that `--show` names; whether there were any, and nothing is to be run.

    Args:
        arguments: of a `command_line`.
        render: makes a table of a report.
    """
    for file in arguments.show or []:
        print(render(json.loads(file.read_text())))
    return bool(arguments.show)


def circumstances(benchmark: str) -> dict[str, Any]:
    """Benchmark, date, hardware, versions and commit: the head of a result."""
    return {
        "benchmark": benchmark,
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "hardware": {
            "cpu": cpu_name(),
            "cores": len(os.sched_getaffinity(0)),
            "machine": platform.machine(),
        },
        "versions": {package: version(package) for package in PACKAGES},
        "python": platform.python_version(),
        "commit": commit(),
    }


def write(report: dict[str, Any], name: str) -> None:
    """`results/DATE_NAME.json`, said on the terminal.

    Args:
        report: begins with `circumstances`.
        name: what the file is called behind its date.
    """
    RESULTS.mkdir(exist_ok=True)
    stamp = re.sub(r"[^0-9T]", "", report["date"].partition("+")[0])
    file = RESULTS / f"{stamp}_{name}.json"
    file.write_text(json.dumps(report, indent=1) + "\n")
    print(f"written to {file}\n", flush=True)


def cpu_name() -> str:
    """The processor, as the system calls it."""
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        found = re.search(r"model name\s*: (.*)", cpuinfo.read_text())
        if found:
            return found.group(1)
    return platform.processor()


def commit() -> str:
    """Of the checkout, with '+' where it has changes beside results; 'none' outside one."""
    where = Path(__file__).parent
    head = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], cwd=where, capture_output=True, text=True
    )
    if head.returncode:
        return "none"
    status = subprocess.run(
        ["git", "status", "--porcelain", "--", ":/", f":!{RESULTS}"],
        cwd=where,
        capture_output=True,
        text=True,
    )
    return head.stdout.strip() + ("+" if status.stdout.strip() else "")
