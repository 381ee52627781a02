"""The test report of rankers: intervals, cohorts, calibration before and after, verdict."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from pipelines.clicks import ClickJudge
from pipelines.examining import in_a_sentence
from pipelines.judging import file_name, interval_text, say, share
from pipelines.result import without_nan

if TYPE_CHECKING:
    import numpy as np
    import polars as pl

    from recsys.evaluation.calibration import Reliability
    from recsys.tracking.run import TrackedRun


def examined_clicks(
    judge: ClickJudge, models: Mapping[str, Any], tracked: TrackedRun, title: str
) -> list[dict[str, Any]]:
    """Asks every ranker the test questions; the report goes to the run, its lines to the terminal.

    Returns:
        The final table's rows.
    """
    from recsys.evaluation import html_report
    from recsys.evaluation.cohorts import cohort_table, worst
    from recsys.evaluation.compare import CLICK_METRICS, Answers, compare
    from recsys.evaluation.intervals import bootstrap_metric
    from recsys.evaluation.suspicions import click_suspicions

    cohorts = cohorts_of(judge)
    frames: dict[str, pl.DataFrame] = {}
    rows: list[dict[str, Any]] = []
    resamples = judge.evaluation.resamples
    for name, model in models.items():
        metrics, frame, _ = judge.ask(model, "test")
        frame = frame.with_columns(cohorts.get_columns())
        tracked.artifact_frame(f"per_question/test/{file_name(name)}.parquet", frame)
        row: dict[str, Any] = {"model": name, "metrics": metrics}
        if resamples:
            columns = (frame[c].to_numpy() for c in ("label", "user", "score"))
            labels, users, scores = columns
            found = {
                metric: bootstrap_metric(
                    labels,
                    users,
                    scores,
                    metric,
                    weighting=judge.evaluation.gauc_weighting,
                    resamples=resamples,
                )
                for metric in CLICK_METRICS
                if not math.isnan(metrics[judge.name("test", metric)])
            }
            row["intervals"] = {
                judge.name("test", metric): [interval.low, interval.high]
                for metric, interval in found.items()
            }
        frames[name], rows = frame, [*rows, row]
    name, model = next(iter(models.items()))
    lines: list[str] = []
    sentences: list[str] = []
    odd = []
    for_others = {n: frame["score"].to_numpy() for n, frame in frames.items() if n != name}
    own = frames[name]
    for said in click_suspicions(own["label"].to_numpy(), own["score"].to_numpy(), for_others):
        odd.append(f"{name} {said}")
    if len(frames) > 1 and judge.name("test", "auc") in rows[0].get("intervals", {}):
        answers = [
            Answers(n, judge.protocol, frame, judge.evaluation.gauc_weighting)
            for n, frame in frames.items()
        ]
        draws = max(resamples, 1000)  # fewer could tell no difference of several
        _, compared = compare(answers[0], answers[1:], "auc", resamples=draws)
        compared.sort(key=lambda comparison: -comparison.value.estimate)
        sentences = [in_a_sentence(name, comparison, "auc") for comparison in compared]
        lines += sentences[:1]
    lines += [f"WARNING: {said}" for said in odd]
    parts = []
    if resamples:
        from recsys.evaluation.click_metrics import log_losses

        first = frames[name]
        losses = log_losses(first["label"].to_numpy(), first["score"].to_numpy())
        # The worst part is the one with the highest logloss.
        parts = cohort_table(first, losses, resamples=resamples)
        if (least := worst(parts, largest=True)) is not None:
            lines.append(
                f"worst cohort: {least.cohort} {least.value} ({least.questions:,} questions), "
                f"logloss {interval_text(least.interval)}"
            )
    mended, curves = calibrated(judge, model, frames[name])
    tracked.figure("calibration.png", calibration_figure(name, curves))
    before, after = mended["as it is"], mended.get("isotonic")
    if after is None:
        lines.append(f"calibration error {before['calibration_error']:.4f}")
    else:
        lines.append(
            f"calibration error {before['calibration_error']:.4f}, isotonic on validation "
            f"{after['calibration_error']:.4f}; logloss {before['logloss']:.4f} and "
            f"{after['logloss']:.4f}"
        )
    table = [
        [kind, *(_cell(numbers, n) for n in ("logloss", "calibration_error", "auc"))]
        for kind, numbers in mended.items()
    ]
    sections = [
        ("In short", html_report.paragraphs([*sentences, *lines[len(sentences[:1]) :]])),
        (
            "Logloss by cohort",
            html_report.intervals(
                [(f"{p.cohort} {p.value} ({p.questions:,})", p.interval) for p in parts], zero=False
            ),
        ),
        (
            f"Calibration of {name}" + ", fitted on validation" * (after is not None),
            html_report.table(["probabilities", "logloss", "calibration error", "AUC"], table),
        ),
        ("Split audit", html_report.paragraphs([str(finding) for finding in judge.findings])),
    ]
    legend = f"{judge.legend} · test/{judge.protocol} · {len(judge.split.test):,} questions"
    tracked.artifact_text("report.html", html_report.page(title, legend, sections))
    tracked.artifact_json(
        "report.json",
        without_nan(
            {
                "format": 1,
                "protocol": judge.protocol,
                "in_words": judge.legend,
                "sentinel": sentences,
                "suspicions": odd,
                "cohorts": [asdict(part) for part in parts],
                "calibration": mended,
                "audit": [{**asdict(f), "share": f.share} for f in judge.findings],
                "rows": rows,
            }
        ),
    )
    for line in lines:
        say(line)
    return rows


def _cell(numbers: dict[str, float], metric: str) -> str:
    """A number, with its interval where there is one."""
    from recsys.evaluation.intervals import Interval

    if f"{metric}_low" not in numbers:
        return share(numbers[metric])
    low, high = (numbers[f"{metric}_{end}"] for end in ("low", "high"))
    return interval_text(Interval(numbers[metric], low, high))


def cohorts_of(judge: ClickJudge) -> pl.DataFrame:
    """The cohort of each test question."""
    import numpy as np

    from recsys.evaluation.cohorts import asked_clicks, cohort_columns

    training = judge.split.training
    counts_V = np.bincount(training.candidates, minlength=judge.store.catalogue_size)
    asked = asked_clicks(judge.split.view, judge.split.test)
    return cohort_columns(judge.evaluation.cohorts, judge.store, asked, counts_V)


def calibrated(
    judge: ClickJudge, model: Any, frame: pl.DataFrame
) -> tuple[dict[str, dict[str, float]], dict[str, Reliability]]:
    """Metrics and reliability on test, as the model says it and mended on validation.

    Nothing is mended where the model was refitted on validation too: it knows those answers.
    """
    from recsys.evaluation.calibration import Isotonic, Temperature, reliability
    from recsys.evaluation.click_metrics import auc, calibration_error, logloss
    from recsys.evaluation.intervals import bootstrap_metric

    labels, scores = frame["label"].to_numpy(), frame["score"].to_numpy()
    mended: dict[str, np.ndarray] = {"as it is": scores}
    if judge.chosen_by is None:
        validation = judge.ask(model, "val")[1]
        on_validation = validation["label"].to_numpy(), validation["score"].to_numpy()
        temperature = Temperature.fit(*on_validation)
        mended[f"temperature {temperature.temperature:.3f}"] = temperature(scores)
        mended["isotonic"] = Isotonic.fit(*on_validation)(scores)
    bins = judge.evaluation.calibration_bins
    numbers = {
        kind: {
            "logloss": logloss(labels, probabilities),
            "calibration_error": calibration_error(labels, probabilities, bins),
            "auc": auc(labels, probabilities),
        }
        for kind, probabilities in mended.items()
    }
    if judge.evaluation.resamples:
        users = frame["user"].rank("dense").to_numpy()
        for kind, probabilities in mended.items():
            for metric in ("logloss", "auc"):
                if math.isnan(numbers[kind][metric]):
                    continue
                found = bootstrap_metric(
                    labels,
                    users,
                    probabilities,
                    "auc" if metric == "auc" else "logloss",
                    resamples=judge.evaluation.resamples,
                )
                numbers[kind] |= {f"{metric}_low": found.low, f"{metric}_high": found.high}
    return numbers, {kind: reliability(labels, p, bins) for kind, p in mended.items()}


def calibration_figure(name: str, curves: Mapping[str, Reliability]) -> Any:
    """The reliability curves."""
    from recsys.tracking.figures import reliability_curve

    return reliability_curve(
        name, {kind: (c.predicted_S.tolist(), c.clicked_S.tolist()) for kind, c in curves.items()}
    )
