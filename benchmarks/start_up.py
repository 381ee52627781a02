r"""Seconds from the start of a command to its end, where it has nothing to do but to answer.

    python -m benchmarks.start_up                   # all commands: --help, and a misspelt setting
    python -m benchmarks.start_up --rounds 20
    python -m benchmarks.start_up --show benchmarks/results/*_start_up.json

Beside them stand a Python that does nothing, and one that imports Hydra, which every command needs
as soon as it has settings. Each is a process of its own, on one thread; a round is one of each, and
a first round, which warms up the files, is not counted. Prints best and median, and the ratio of
the medians to the Python that does nothing; writes everything to `benchmarks/results/`.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from statistics import median
from typing import Any

from benchmarks.figures import Figure, of_rounds
from benchmarks.record import circumstances, command_line, show_again, write

COMMANDS = ("train", "evaluate", "recommend", "ingest", "ui")
TYPO = "tracknig.uri=x"
NOTHING = "python -c pass"
ONE_THREAD = {"OMP_NUM_THREADS": "1", "POLARS_MAX_THREADS": "1"}


def main() -> None:
    """Runs, prints, writes."""
    parser = command_line(__doc__)
    parser.add_argument("--rounds", type=int, default=10, help="that are counted")
    arguments = parser.parse_args()
    if show_again(arguments, render):
        return
    if arguments.rounds < 1:
        sys.exit("--rounds: 1 at least")
    report = {
        **circumstances("start_up"),
        "rounds": arguments.rounds,
        "results": measure(arguments.rounds),
    }
    print(render(report), flush=True)
    write(report, "start_up")


def measure(rounds: int) -> list[dict[str, Any]]:
    """Name and seconds of each, as it stands in the JSON."""
    told = {NOTHING: ["-c", "pass"], 'python -c "import hydra"': ["-c", "import hydra"]}
    for command in COMMANDS:
        told[f"{command} --help"] = ["-m", f"pipelines.{command}", "--help"]
        told[f"{command} {TYPO}"] = ["-m", f"pipelines.{command}", TYPO]
    results: list[dict[str, Any]] = [{"name": name, "seconds": []} for name in told]
    for number in range(rounds + 1):
        for result in results:
            arguments = told[result["name"]]
            seconds = once(arguments, expected=2 if TYPO in arguments else 0)
            if number:
                result["seconds"].append(seconds)
    return results


def once(arguments: list[str], expected: int) -> float:
    """Seconds of one process; it has to end with the expected code."""
    begun = time.perf_counter()
    done = subprocess.run(
        [sys.executable, *arguments],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env={**os.environ, **ONE_THREAD},
        check=False,
    )
    seconds = time.perf_counter() - begun
    if done.returncode != expected:
        sys.exit(f"python {' '.join(arguments)} ended with code {done.returncode}")
    return seconds


def render(report: dict[str, Any]) -> str:
    """The table as Markdown, ratio first."""
    hardware = report["hardware"]
    nothing = median(report["results"][0]["seconds"])
    lines = [
        f"From start to end, 1 thread of {hardware['cores']} cores of {hardware['cpu']}, "
        f"{report['rounds']} rounds",
        "",
        "| what | × doing nothing | best | median |",
        "|---|--:|--:|--:|",
    ]
    for result in report["results"]:
        seconds = result["seconds"]
        lines.append(
            f"| `{result['name']}` | {median(seconds) / nothing:.1f} "
            f"| {min(seconds):.2f} s | {median(seconds):.2f} s |"
        )
    return "\n".join(lines) + "\n"


def figures(report: dict[str, Any]) -> list[Figure]:
    """Seconds of each, and how many times those of doing nothing in the same round."""
    nothing = report["results"][0]["seconds"]
    found = []
    for result in report["results"]:
        seconds, name = result["seconds"], result["name"]
        ratios = [a / b for a, b in zip(seconds, nothing, strict=True)]
        if seconds is not nothing:
            found.append(of_rounds(f"{name}: × doing nothing", ratios, "lower"))
        found.append(of_rounds(f"{name}: s", seconds, "lower"))
    return found


if __name__ == "__main__":
    main()
