r"""Global time on Ta-Feng: SASRec beside tuned baselines, with intervals.

    python -m benchmarks.ta_feng                          # publisher's data
    python -m benchmarks.ta_feng --path ta_feng.parquet   # a local copy of the canonical table
    python -m benchmarks.ta_feng --seeds 1 2 3 --set trainer.max_epochs=5
    python -m benchmarks.ta_feng --show benchmarks/results/*_ta_feng.json

What do customers buy in the last tenth of the log, asked with what was known before it? Buying
again is a right answer: Popularity counts the newest share of the events, ItemKNN keeps an item's
similarity with itself, each where validation says so. Each seed is one run of `python -m
pipelines.train experiment=sasrec_ta_feng`, tracked like any other. Per-question values are the
means over the seeds; intervals are 95 % of bootstraps over the customers, those of a difference
paired. Prints the tables and writes them, with hardware, versions and settings, to
`benchmarks/results/`.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from benchmarks.figures import Figure, of_interval, of_rounds
from benchmarks.quality import train
from benchmarks.record import circumstances, command_line, show_again, write

RECIPE = "sasrec_ta_feng"
METRICS = ("ndcg_10", "hr_10", "recall_10")
RESAMPLES = 1000
COHORTS = {
    "all customers": pl.lit(True),
    "with history": pl.col("history_length") > 0,
    "new customers": pl.col("history_length") == 0,
}


def main() -> None:
    """Runs, prints, writes."""
    parser = command_line(__doc__)
    parser.add_argument("--path", type=Path, help="local copy of the canonical table")
    parser.add_argument("--seeds", nargs="+", type=int, default=[1])
    parser.add_argument("--set", nargs="+", default=[], metavar="KEY=VALUE", help="more settings")
    arguments = parser.parse_args()
    if show_again(arguments, render):
        return
    settings = [f"experiment={RECIPE}", *arguments.set]
    if arguments.path:
        if not arguments.path.is_file():
            sys.exit(f"there is no {arguments.path}")
        settings.append(f"data.path={arguments.path.resolve()}")
    runs = [train(settings, seed) for seed in arguments.seeds]
    frames = {row["model"]: per_question(runs, row["model"]) for row in runs[0]["rows"]}
    report = {
        **circumstances("ta_feng"),
        "recipe": RECIPE,
        "settings": arguments.set,
        "seeds": arguments.seeds,
        "protocol": next(iter(runs[0]["rows"][0]["metrics"])).rpartition("/")[0],
        "seconds": [run["command_seconds"] for run in runs],
        "peak_memory_gb": [run["peak_memory_gb"] for run in runs],
        "resamples": RESAMPLES,
        "cohorts": cohorts(frames),
    }
    print(render(report), flush=True)
    write(report, "ta_feng")


def per_question(runs: Sequence[dict[str, Any]], model: str) -> pl.DataFrame:
    """One row a test question: user, history_length and each metric, mean over the runs."""
    from pipelines.judging import file_name
    from pipelines.paths import tracking_uri
    from recsys.tracking.reading import load_run

    name = f"per_question/test/{file_name(model)}.parquet"
    frames = [
        pl.read_parquet(load_run(tracking_uri(), run["run_id"]).artifact(name)) for run in runs
    ]
    keys = frames[0].select("user", "history_length")
    for frame in frames:
        assert frame.select(keys.columns).equals(keys)
    means = {
        metric: np.mean([frame[metric].to_numpy() for frame in frames], axis=0)
        for metric in METRICS
    }
    return keys.with_columns(**{name: pl.Series(values) for name, values in means.items()})


def cohorts(frames: dict[str, pl.DataFrame]) -> list[dict[str, Any]]:
    """Of each cohort: how many questions, and of each model and metric the mean with its interval.

    Args:
        frames: of each model `per_question`, the judged one first.

    Returns:
        `{"cohort", "questions", "rows": [{"model", metric: [mean, low, high], "ahead": {metric:
        [difference of the first model to this one, low, high]}}]}`; cohorts without questions are
        left out.
    """
    first = next(iter(frames))
    result = []
    for cohort, condition in COHORTS.items():
        rows = []
        ours = frames[first].filter(condition)
        if len(ours) == 0:
            continue
        for model, frame in frames.items():
            theirs = frame.filter(condition)
            row: dict[str, Any] = {"model": model}
            row |= {metric: interval(theirs[metric], theirs["user"]) for metric in METRICS}
            if model != first:
                row["ahead"] = {
                    metric: interval(ours[metric] - theirs[metric], theirs["user"])
                    for metric in METRICS
                }
            rows.append(row)
        result.append({"cohort": cohort, "questions": len(ours), "rows": rows})
    return result


def interval(values: pl.Series, users: pl.Series) -> list[float]:
    """[mean, low, high]: 95 % of bootstraps over the users."""
    from recsys.evaluation.intervals import bootstrap_means

    found = bootstrap_means(values.to_numpy(), users.to_numpy(), resamples=RESAMPLES, seed=0)
    return [found.estimate, found.low, found.high]


def render(report: dict[str, Any]) -> str:
    """The tables for the terminal and the README."""
    seeds = len(report["seeds"])
    what = " ".join([report["recipe"], *report["settings"]])
    lines = [
        f"`{what}` · {report['protocol']} · {seeds} seed{'s' * (seeds > 1)}"
        f" · {np.mean(report['seconds']):.0f} s a seed, {max(report['peak_memory_gb']):.1f} GB"
    ]
    for cohort in report["cohorts"]:
        lines += [
            "",
            f"{cohort['cohort']}, {cohort['questions']:,} questions",
            "",
            "| model | NDCG@10 | HR@10 | recall@10 | NDCG@10: SASRec is ahead by |",
            "|---|--:|--:|--:|--:|",
        ]
        for row in cohort["rows"]:
            cells = [shown(row[metric]) for metric in METRICS]
            ahead = shown(row["ahead"]["ndcg_10"], sign="+") if "ahead" in row else ""
            lines.append(f"| {row['model']} | {' | '.join(cells)} | {ahead} |")
    return "\n".join(lines) + "\n"


def figures(report: dict[str, Any]) -> list[Figure]:
    """Each model's metrics in each cohort, and by how much the first is ahead."""
    found = []
    for cohort in report["cohorts"]:
        for row in cohort["rows"]:
            name = f"{cohort['cohort']}, {row['model']}"
            for metric in METRICS:
                found.append(of_interval(f"{name}: {metric}", *row[metric], "higher"))
                if "ahead" in row:
                    ahead = row["ahead"][metric]
                    found.append(of_interval(f"ahead of {name}: {metric}", *ahead, "higher"))
    for key in ("seconds", "peak_memory_gb"):
        found.append(of_rounds(key, report[key], "lower"))
    return found


def shown(numbers: Sequence[float], sign: str = "") -> str:
    """A mean with its interval.

    >>> shown([0.02, 0.01, 0.03])
    '0.0200 (0.0100–0.0300)'
    """
    mean, low, high = (f"{number:{sign}.4f}" for number in numbers)
    return f"{mean} ({low}–{high})" if not sign else f"{mean} ({low} … {high})"


if __name__ == "__main__":
    main()
