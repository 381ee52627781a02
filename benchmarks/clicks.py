r"""The MovieLens-1M click tables: DIN beside its baselines, and what the labels of the history add.

    python -m benchmarks.clicks                   # publisher's data
    python -m benchmarks.clicks --data DIR        # ml1m.parquet, ml1m_items, ml1m_users in DIR
    python -m benchmarks.clicks --data DIR --seeds 1 --peer OUT/test_scores.npy …
    python -m benchmarks.clicks --data DIR --seeds 1 --variants
    python -m benchmarks.clicks --data DIR --alone --set objective.l2=1 --peer OUT/test_scores.npy …
    python -m benchmarks.clicks --show benchmarks/results/*_clicks.json

Two tables, each model on both: the history is the newest 50 earlier positives, or the newest 50
earlier events with their labels. `--variants` adds what else attention could be on the first table,
and the same network without any history, which says how much there is to attend to; `--alone` runs
DIN on the first table and nothing else.

Each seed is one run of `python -m pipelines.train experiment=din_ml1m`; `--notes` lets the command
be stopped, and go on between runs. Differences are paired on the same users, with 95 % intervals by
drawing users (`recsys.evaluation.intervals`), the mean over the seeds against the mean over the
seeds. `--peer` takes another system's scores of the same test rows in the same order, one file a
seed, such as `benchmarks/peers/fuxictr_din.py` writes.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from benchmarks.figures import Better, Figure, of_interval, of_rounds
from benchmarks.quality import train
from benchmarks.record import circumstances, command_line, commit, show_again, write
from pipelines.paths import tracking_uri
from recsys.evaluation.click_metrics import auc, gauc, logloss
from recsys.evaluation.intervals import paired_bootstrap
from recsys.tracking.reading import load_run

HISTORIES = ("positives", "events")
MODELS = ("DIN", "Mean pooling", "Logistic regression", "Item and user mean")
VARIANTS = {
    "No history": ["model=mean_pooling", "questions.history=none"],
    "DIN, softmax": ["model.normalize=softmax", "model.scale_by_length=false"],
    "DIN, 4 heads": ["model.heads=4", "model.attention_units=16"],
    "DIN, dot product and softmax": [
        "model.score=dot",
        "model.normalize=softmax",
        "model.scale_by_length=false",
    ],
    "DIN, 2 layers": ["model.layers=2"],
}
METRICS = ("auc", "gauc", "logloss")
Answers = dict[str, np.ndarray]  # "user", "label", and by model: [seeds, rows]


def main() -> None:
    """Runs, prints, writes."""
    parser = command_line(__doc__)
    parser.add_argument("--data", type=Path, help="folder with the canonical tables")
    parser.add_argument("--seeds", nargs="+", type=int, default=[1, 2, 3])
    parser.add_argument("--set", nargs="+", default=[], metavar="KEY=VALUE", help="more settings")
    either = parser.add_mutually_exclusive_group()
    either.add_argument("--variants", action="store_true", help="of attention, on the first table")
    either.add_argument("--alone", action="store_true", help="DIN only, on the first table only")
    parser.add_argument("--peer", nargs="+", type=Path, metavar="FILE", help="a peer's scores")
    parser.add_argument("--notes", type=Path, metavar="FILE", help="of runs done; goes on there")
    arguments = parser.parse_args()
    if show_again(arguments, render):
        return
    settings = ["experiment=din_ml1m", *arguments.set]
    if arguments.data:
        path = arguments.data / "ml1m.parquet"
        if not path.is_file():
            sys.exit(f"there is no {path}")
        settings.append(f"data.path={path.resolve()}")
    answers: dict[str, Answers] = {}
    seconds = []
    alone = ["evaluation.baselines=false"] if arguments.alone else []
    for history in HISTORIES[:1] if alone else HISTORIES:
        own = [*settings, f"questions.history={history}", *alone]
        runs = [once(own, seed, arguments.notes) for seed in arguments.seeds]
        seconds += [run["command_seconds"] for run in runs]
        answers[history] = gather([run["run_id"] for run in runs], MODELS[:1] if alone else MODELS)
    for name, changes in VARIANTS.items() if arguments.variants else ():
        own = [*settings, *changes, "evaluation.baselines=false"]
        runs = [once(own, seed, arguments.notes) for seed in arguments.seeds]
        seconds += [run["command_seconds"] for run in runs]
        model = runs[0]["rows"][0]["model"]
        scores = gather([run["run_id"] for run in runs], [model])
        assert np.array_equal(scores["user"], answers["positives"]["user"])
        answers["positives"][name] = scores[model]
    if arguments.peer:
        answers["positives"]["FuxiCTR DIN"] = np.stack([np.load(file) for file in arguments.peer])
    report = {
        **circumstances("clicks"),
        "settings": arguments.set,
        "seeds": arguments.seeds,
        "seconds": seconds,
        "tables": {history: table(found) for history, found in answers.items()},
        "differences": differences(answers),
    }
    print(render(report), flush=True)
    write(report, "clicks")


def once(settings: list[str], seed: int, notes: Path | None) -> dict[str, Any]:
    """One run, or what is noted of the same run of the same commit.

    Several such commands, of other seeds, may share the file.
    """
    key = " ".join([commit(), *settings, f"seed={seed}"])
    noted = read_notes(notes)
    if key not in noted:
        run = train(settings, seed)
        noted = {**read_notes(notes), key: run}  # others may have added theirs meanwhile
        if notes is not None:
            notes.write_text(json.dumps(noted, indent=1))
    found: dict[str, Any] = noted[key]
    return found


def read_notes(notes: Path | None) -> dict[str, Any]:
    """What is noted so far."""
    if notes is None or not notes.exists():
        return {}
    noted: dict[str, Any] = json.loads(notes.read_text())
    return noted


def gather(run_ids: list[str], models: Sequence[str] = MODELS) -> Answers:
    """The answers of one table's runs, row by row in the same order."""
    answers: dict[str, list[np.ndarray]] = {}
    first: pl.DataFrame | None = None
    for run_id in run_ids:
        info = load_run(tracking_uri(), run_id)
        for model in models:
            frame = pl.read_parquet(info.artifact(f"per_question/test/{model}.parquet"))
            answers.setdefault(model, []).append(frame["score"].to_numpy())
            rows = frame.select("user", "item", "label")
            assert first is None or rows.equals(first), "every file asks the same rows"
            first = rows
            answers["user"] = [frame["user"].to_numpy()]
            answers["label"] = [frame["label"].to_numpy()]
    own = {name: np.stack(rows) for name, rows in answers.items()}
    return {**own, "user": own["user"][0], "label": own["label"][0]}


def table(answers: Answers) -> list[dict[str, Any]]:
    """AUC, GAUC and logloss of each model and seed."""
    label, user = answers["label"], answers["user"]
    return [
        {
            "model": model,
            "auc": [auc(label, row) for row in scores],
            "gauc": [gauc(label, row, user) for row in scores],
            "logloss": [logloss(label, row) for row in scores],
        }
        for model, scores in answers.items()
        if model not in ("user", "label")
    ]


def differences(answers: dict[str, Answers]) -> list[dict[str, Any]]:
    """DIN less each other model of its table, and DIN with labels less DIN without."""
    pairs = [
        (f"DIN − {other}, {history}", answers[history]["DIN"], answers[history][other], history)
        for history in answers
        for other in answers[history]
        if other not in ("user", "label", "DIN")
    ]
    if "events" in answers:
        same = np.array_equal(answers["events"]["user"], answers["positives"]["user"])
        assert same, "both tables ask the same questions"
        both = (answers["events"]["DIN"], answers["positives"]["DIN"], "positives")
        pairs.append(("DIN, events − DIN, positives", *both))
    found = []
    for name, a, b, history in pairs:
        label, user = answers[history]["label"], answers[history]["user"]
        for metric in METRICS:
            interval = paired_bootstrap(label, user, a, b, metric=metric)
            found.append(
                {
                    "pair": name,
                    "metric": metric,
                    "estimate": interval.estimate,
                    "low": interval.low,
                    "high": interval.high,
                }
            )
    return found


def render(report: dict[str, Any]) -> str:
    """The tables as Markdown."""
    seeds = len(report["seeds"])
    lines = []
    for history, rows in report["tables"].items():
        lines += [
            f"History: the newest 50 earlier {history} · mean of {seeds} seed{'s' * (seeds > 1)}",
            "",
            "| model | AUC | GAUC | logloss |",
            "|---|--:|--:|--:|",
        ]
        for row in rows:
            cells = [f"{np.mean(row[metric]):.4f}{spread(row[metric])}" for metric in METRICS]
            lines.append(f"| {row['model']} | {' | '.join(cells)} |")
        lines.append("")
    lines += ["| paired difference | AUC | GAUC | logloss |", "|---|--:|--:|--:|"]
    by_pair: dict[str, list[str]] = {}
    for entry in report["differences"]:
        text = f"{entry['estimate']:+.4f} [{entry['low']:+.4f}, {entry['high']:+.4f}]"
        by_pair.setdefault(entry["pair"], []).append(text)
    lines += [f"| {pair} | {' | '.join(cells)} |" for pair, cells in by_pair.items()]
    return "\n".join(lines) + "\n"


def figures(report: dict[str, Any]) -> list[Figure]:
    """Each model's metrics, of every seed, and the paired differences."""
    found = [
        of_rounds(f"{history}, {row['model']}: {metric}", row[metric], better_of(metric))
        for history, rows in report["tables"].items()
        for row in rows
        for metric in METRICS
    ]
    for entry in report["differences"]:
        interval = (entry["estimate"], entry["low"], entry["high"])
        name, metric = f"{entry['pair']}: {entry['metric']}", entry["metric"]
        found.append(of_interval(name, *interval, better_of(metric)))
    return found


def better_of(metric: str) -> Better:
    """Whether more of a metric is good."""
    return "lower" if metric == "logloss" else "higher"


def spread(values: list[float]) -> str:
    """Lowest and highest of several seeds."""
    return f" ({min(values):.4f}–{max(values):.4f})" if len(values) > 1 else ""


if __name__ == "__main__":
    main()
