r"""Another system's lists judged at scale: top-100 of a million people, with every interval.

    python -m benchmarks.lists
    python -m benchmarks.lists --users 100000 --k 20

The log: each user has 12 events on items of unequal popularity; the lists are random items, made
once into `--folder`. Timed is the whole command `python -m pipelines.evaluate recommendations=…`
without baselines, from the store's reading to the report, and beside it the intervals alone of
6,000 users with 1,000 resamples. Prints seconds and peak memory, and writes everything to
`benchmarks/results/`.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from benchmarks.figures import Figure, of_rounds
from benchmarks.record import circumstances, command_line, show_again, write

EVENTS = 12  # of a user
_PEOPLE = 50_000  # whose lists are made at a time


def main() -> None:
    """Runs, prints, writes."""
    parser = command_line(__doc__)
    parser.add_argument("--users", type=int, default=1_000_000)
    parser.add_argument("--items", type=int, default=100_000)
    parser.add_argument("--k", type=int, default=100)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--folder", type=Path, help="for log and lists; default: a temporary one")
    arguments = parser.parse_args()
    if show_again(arguments, render):
        return
    with tempfile.TemporaryDirectory() as aside:
        folder = arguments.folder or Path(aside)
        folder.mkdir(parents=True, exist_ok=True)
        made = make(folder, arguments.users, arguments.items, arguments.k)
        rounds = [judge(folder, *made) for _ in range(arguments.rounds)]
    report = {
        **circumstances("lists"),
        "users": arguments.users,
        "items": arguments.items,
        "k": arguments.k,
        "seconds": [found["seconds"] for found in rounds],
        "peak_memory_gb": [found["peak_memory_gb"] for found in rounds],
        "interval_seconds": [intervals() for _ in range(5)],
    }
    print(render(report), flush=True)
    write(report, "lists")


def make(folder: Path, users: int, items: int, k: int) -> tuple[Path, Path]:
    """The log and the lists, made once."""
    log, lists = (
        folder / f"log-{users}-{items}.parquet",
        folder / f"lists-{users}-{items}-{k}.parquet",
    )
    draw = np.random.Generator(np.random.PCG64(1))
    if not log.exists():
        # Item i with weight 1 / (i + 10): unequal, and all of them drawn.
        ends = np.cumsum(1 / (np.arange(items) + 10))
        drawn = np.searchsorted(ends, draw.random(users * EVENTS) * ends[-1])
        pl.DataFrame(
            {
                "user": np.repeat(np.arange(users), EVENTS),
                "item": drawn,
                "time": np.tile(np.arange(EVENTS), users) + 1_600_000_000,
            }
        ).write_parquet(log)
    if not lists.exists():
        known = pl.read_parquet(log, columns=["item"])["item"].unique().to_numpy()
        parts = []
        for begin in range(0, users, _PEOPLE):
            people = np.arange(begin, min(begin + _PEOPLE, users))
            # A random start and a step that is coprime to a prime: distinct items.
            start, step = draw.integers(len(known), size=(2, len(people), 1))
            places = (start + np.arange(k) * (1 + step % 97)) % len(known)
            part = folder / f".part-{begin}.parquet"
            pl.DataFrame(
                {
                    "user": np.repeat(people, k),
                    "item": known[places].ravel(),
                    "rank": np.tile(np.arange(1, k + 1, dtype=np.int32), len(people)),
                }
            ).write_parquet(part)
            parts.append(part)
        aside = folder / f".{lists.name}"
        pl.scan_parquet(parts).sink_parquet(aside)
        aside.replace(lists)
        for part in parts:
            part.unlink()
    return log, lists


def judge(folder: Path, log: Path, lists: Path) -> dict[str, Any]:
    """One run of the command, the log being ingested before."""
    environment = {**os.environ, "RECSYS_HOME": str((folder / "home").resolve())}
    data = ["data=log", f"data.path={log.resolve()}"]
    subprocess.run(
        [sys.executable, "-m", "pipelines.ingest", *data],
        env=environment,
        check=True,
        stdout=subprocess.DEVNULL,
    )
    result = folder / "result.json"
    command = [sys.executable, "-m", "pipelines.evaluate", f"recommendations={lists.resolve()}"]
    command += [*data, "split=loo", "evaluation.baselines=false", f"result={result.resolve()}"]
    begun = time.perf_counter()
    subprocess.run(command, env=environment, check=True, stdout=subprocess.DEVNULL)
    seconds = time.perf_counter() - begun
    return {**json.loads(result.read_text()), "seconds": seconds}


def intervals() -> float:
    """Seconds of the intervals of 18 metrics of 6,000 users, 1,000 resamples."""
    from recsys.evaluation.intervals import bootstrap_columns

    values = np.random.Generator(np.random.PCG64(1)).random((6000, 18))
    begun = time.perf_counter()
    bootstrap_columns(values, np.arange(6000))
    return time.perf_counter() - begun


def render(report: dict[str, Any]) -> str:
    """The table as Markdown."""
    hardware = report["hardware"]
    seconds = ", ".join(f"{s:.0f} s" for s in report["seconds"])
    return "\n".join(
        [
            f"Lists of another system, {hardware['cores']} cores of {hardware['cpu']}",
            "",
            "| what | seconds | memory |",
            "|---|--:|--:|",
            f"| top-{report['k']} of {report['users']:,} users, the whole command | {seconds} "
            f"| {max(report['peak_memory_gb']):.1f} GB |",
            "| intervals of 18 metrics, 6,000 users × 1,000 resamples "
            f"| {min(report['interval_seconds']):.2f} s | |",
            "",
        ]
    )


def figures(report: dict[str, Any]) -> list[Figure]:
    """Seconds and memory."""
    return [
        of_rounds("lists, s", report["seconds"], "lower"),
        of_rounds("lists, GB", report["peak_memory_gb"], "lower"),
        of_rounds("intervals, s", report["interval_seconds"], "lower"),
    ]


if __name__ == "__main__":
    main()
