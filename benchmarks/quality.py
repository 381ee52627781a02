r"""Test quality of the shipped recipes, mean of three seeds, beside tuned baselines.

    python -m benchmarks.quality                      # publishers' data
    python -m benchmarks.quality --data DIR           # the canonical tables in DIR
    python -m benchmarks.quality --only beauty --seeds 1 2 3 --set split.validation_users=all
    python -m benchmarks.quality --show benchmarks/results/*_quality_*.json

Each seed is one run of `python -m pipelines.train` in a process of its own, as a user would start
it, tracked like any other run. In brackets: where 95 % of the means lie when users are drawn anew
(the mean of the seeds' intervals); in parentheses: the lowest and the highest seed. Prints a table
per recipe and writes it, with hardware, versions and settings, to `benchmarks/results/`.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import mean
from typing import Any

from benchmarks.figures import Figure, of_rounds
from benchmarks.record import circumstances, command_line, show_again, write

RECIPES = {
    "ml100k": ("sasrec_ml100k", "ml100k.parquet"),
    "ml1m": ("sasrec_ml1m", "ml1m.parquet"),
    "beauty": ("sasrec_beauty", "amazon_beauty_s3rec.parquet"),
}
SHOWN = ("hr_10", "ndcg_10", "mrr_10", "coverage_10")


def main() -> None:
    """Runs, prints, writes."""
    parser = command_line(__doc__)
    parser.add_argument("--data", type=Path, help="folder with the canonical tables")
    parser.add_argument("--only", nargs="+", choices=sorted(RECIPES), default=list(RECIPES))
    parser.add_argument("--seeds", nargs="+", type=int, default=[1, 2, 3])
    parser.add_argument("--set", nargs="+", default=[], metavar="KEY=VALUE", help="more settings")
    arguments = parser.parse_args()
    if show_again(arguments, render):
        return
    for name in arguments.only:
        recipe, table = RECIPES[name]
        settings = [f"experiment={recipe}", *arguments.set]
        if arguments.data:
            path = arguments.data / table
            if not path.is_file():
                sys.exit(f"there is no {path}")
            settings.append(f"data.path={path.resolve()}")
        runs = [train(settings, seed) for seed in arguments.seeds]
        report = summary(name, recipe, arguments.seeds, arguments.set, runs)
        print(render(report), flush=True)
        write(report, f"quality_{name}")


def train(settings: list[str], seed: int, home: Path | None = None) -> dict[str, Any]:
    """One run; its result file, with the wall-clock seconds of the whole command added.

    Args:
        settings: of the command.
        seed: of the run.
        home: the project's home folder, for stores, baselines and runs; None: the user's.
    """
    with tempfile.TemporaryDirectory() as folder:
        result = Path(folder) / "result.json"
        command = [sys.executable, "-m", "pipelines.train", *settings, f"seed={seed}"]
        print("+", *command[1:], flush=True)
        started = time.perf_counter()
        env = {**os.environ, **({} if home is None else {"RECSYS_HOME": str(home)})}
        done = subprocess.run([*command, f"result={result}"], check=False, env=env)
        if done.returncode:
            sys.exit(f"seed {seed} ended with code {done.returncode}")
        table: dict[str, Any] = json.loads(result.read_text())
        return {"seed": seed, "command_seconds": round(time.perf_counter() - started, 1), **table}


def summary(
    name: str, recipe: str, seeds: list[int], more: list[str], runs: list[dict[str, Any]]
) -> dict[str, Any]:
    """Means over the seeds, the spread, and everything needed to read them."""
    models = [row["model"] for row in runs[0]["rows"]]
    rows = []
    for i, model in enumerate(models):
        values: dict[str, list[float]] = {}
        ends: dict[str, list[list[float]]] = {}
        for run in runs:
            for metric, value in run["rows"][i]["metrics"].items():
                values.setdefault(metric, []).append(value)
            for metric, interval in run["rows"][i].get("intervals", {}).items():
                ends.setdefault(metric, []).append(interval)
        rows.append(
            {
                "model": model,
                "mean": {metric: mean(v) for metric, v in values.items()},
                "seeds": values,
                "intervals": {m: [mean(e) for e in zip(*v, strict=True)] for m, v in ends.items()},
            }
        )
    return {
        **circumstances("quality"),
        "name": name,
        "recipe": recipe,
        "settings": more,
        "seeds": seeds,
        "seconds": [run["command_seconds"] for run in runs],
        "peak_memory_gb": [run["peak_memory_gb"] for run in runs],
        "rows": rows,
    }


def render(report: dict[str, Any]) -> str:
    """The table for the terminal and the README."""
    first = report["rows"][0]["mean"]
    protocol = next(iter(first)).rpartition("/")[0]
    seeds = len(report["seeds"])
    what = " ".join([report["recipe"], *report["settings"]])
    questions = int(first[f"{protocol}/questions"])
    lines = [
        f"`{what}` · {protocol} · {questions:,} questions"
        f" · mean of {seeds} seed{'s' * (seeds > 1)}"
        f" · {mean(report['seconds']):.0f} s a seed, {max(report['peak_memory_gb']):.1f} GB",
        "",
        "| model | HR@10 | NDCG@10 | MRR@10 | coverage@10 |",
        "|---|--:|--:|--:|--:|",
    ]
    for row in report["rows"]:
        cells = []
        for metric in SHOWN:
            values = row["seeds"][f"{protocol}/{metric}"]
            cell = f"{mean(values):.4f}"
            if metric in ("hr_10", "ndcg_10"):
                if interval := row.get("intervals", {}).get(f"{protocol}/{metric}"):
                    cell += f" [{interval[0]:.4f}, {interval[1]:.4f}]"
                if max(values) > min(values):
                    cell += f" ({min(values):.4f}–{max(values):.4f})"
            cells.append(cell)
        lines.append(f"| {row['model']} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def figures(report: dict[str, Any]) -> list[Figure]:
    """Each model's metrics, of every seed; seconds and memory of a run."""
    found = [
        of_rounds(f"{report['name']}, {row['model']}: {metric}", values, "higher")
        for row in report["rows"]
        for metric, values in row["seeds"].items()
        if metric.rpartition("/")[2] in SHOWN
    ]
    for key, unit in (("seconds", "s"), ("peak_memory_gb", "GB")):
        found.append(of_rounds(f"{report['name']}: {key}, {unit}", report[key], "lower"))
    return found


if __name__ == "__main__":
    main()
