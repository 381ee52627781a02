r"""A whole training run, from the command to the evaluated model, in epochs of RecTools' SASRec.

    python -m benchmarks.time_to_quality --peer VENV/bin/python    # publishers' data
    python -m benchmarks.time_to_quality --peer VENV/bin/python --data DIR --only ml1m
    python -m benchmarks.time_to_quality --show benchmarks/results/*_time_to_quality.json

Ours is `python -m pipelines.train experiment=RECIPE seed=1` from the table of events on, in an
empty home: ingest, training, the baselines tuned, everything evaluated and tracked. RecTools'
is an epoch of the model that `benchmarks.training` describes, in each precision: one to warm up,
which is not counted, and one after each of our runs. Prints how many of the peer's epochs (of its
faster precision) our run took, what it reached on the test questions, and its peak memory; writes
all of it to `benchmarks/results/`.
VENV is described in `peers/requirements-rectools.txt`.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from statistics import mean
from typing import Any

from benchmarks import sides
from benchmarks.figures import Figure, of_rounds
from benchmarks.quality import train
from benchmarks.record import circumstances, show_again, write
from benchmarks.training import PRECISIONS, TABLES, canonical, rectools_epochs
from benchmarks.turns import Player


def main() -> None:
    """Runs, prints, writes."""
    parser = sides.peer_command_line(__doc__, list(TABLES), list(PRECISIONS))
    parser.set_defaults(rounds=2)
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    if show_again(arguments, render):
        return
    sides.check_peer(arguments, "requirements-rectools.txt")
    with tempfile.TemporaryDirectory() as folder:
        results = [measure(name, arguments, Path(folder)) for name in arguments.only]
    report = {
        **circumstances("time_to_quality"),
        "seeds": [arguments.seed],
        "rounds": arguments.rounds,
        "results": results,
    }
    print(render(report), flush=True)
    write(report, "time_to_quality")


def measure(name: str, arguments: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Our runs, one less than there are rounds, between the peer's epochs."""
    recipe = TABLES[name][0]
    table = canonical(name, arguments.data, folder)
    settings = [f"experiment={recipe}", f"data.path={table.resolve()}"]
    peers = [
        Player(precision, rectools_epochs(name, table, arguments.peer, precision))
        for precision in arguments.precisions
    ]
    runs = []
    for number in range(arguments.rounds):
        if number:
            runs.append(train(settings, arguments.seed, folder / f"{name}-{number}"))
        for peer in peers:
            print(f"RecTools, {peer.name}, an epoch: {peer.play():.1f} s", flush=True)
    return {
        "name": name,
        "recipe": recipe,
        "seconds": [run["command_seconds"] for run in runs],
        "peak_memory_gb": [run["peak_memory_gb"] for run in runs],
        "rows": runs[-1]["rows"],
        "peers": [{"name": p.name, "seconds": p.seconds, **p.end()} for p in peers],
    }


def epochs_of(result: dict[str, Any]) -> list[float]:
    """Our runs' seconds in epochs of the peer's faster precision."""
    epoch = min(mean(peer["seconds"][1:]) for peer in result["peers"])
    return [seconds / epoch for seconds in result["seconds"]]


def reached(result: dict[str, Any]) -> tuple[float, float]:
    """HR@10 and NDCG@10 of the model on the test questions."""
    metrics: dict[str, float] = result["rows"][0]["metrics"]
    hit, gain = (
        next(v for k, v in metrics.items() if k.startswith("test/") and k.endswith(f"/{name}"))
        for name in ("hr_10", "ndcg_10")
    )
    return hit, gain


def render(report: dict[str, Any]) -> str:
    """The table as Markdown."""
    hardware = report["hardware"]
    lines = [
        f"Command to evaluated run, seed {report['seeds'][0]}, {hardware['cores']} cores of "
        f"{hardware['cpu']}",
        "",
        "| recipe | RecTools epochs | ours | an epoch of RecTools | HR@10 | NDCG@10 | memory |",
        "|---|--:|--:|--:|--:|--:|--:|",
    ]
    for result in report["results"]:
        hit, gain = reached(result)
        epochs = ", ".join(
            f"{mean(peer['seconds'][1:]):.0f} s in {peer['name']}" for peer in result["peers"]
        )
        lines.append(
            f"| {result['recipe']} | {mean(epochs_of(result)):.1f} "
            f"| {mean(result['seconds']):.0f} s | {epochs} | {hit:.4f} | {gain:.4f} "
            f"| {max(result['peak_memory_gb']):.1f} GB |"
        )
    return "\n".join(lines) + "\n"


def figures(report: dict[str, Any]) -> list[Figure]:
    """Times, peak memory and what was reached."""
    found = []
    for result in report["results"]:
        name = result["name"]
        hit, gain = reached(result)
        found += [
            of_rounds(f"{name}: RecTools epochs", epochs_of(result), "lower"),
            of_rounds(f"{name}: ours, s", result["seconds"], "lower"),
            of_rounds(f"{name}: ours, GB", result["peak_memory_gb"], "lower"),
            of_rounds(f"{name}: HR@10", [hit], "higher"),
            of_rounds(f"{name}: NDCG@10", [gain], "higher"),
        ]
    return found


if __name__ == "__main__":
    main()
