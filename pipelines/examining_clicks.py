"""The test report of rankers: intervals, cohorts, calibration before and after, verdict."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from pipelines.clicks import ClickJudge
from pipelines.drawing import draw_cohorts, draw_reliability, points_of
from pipelines.examining import Report, in_a_sentence
from pipelines.judging import file_name, interval_text, say, share
from pipelines.result import without_nan

if TYPE_CHECKING:
    import numpy as np
    import polars as pl

    from recsys.evaluation.calibration import Reliability
    from recsys.evaluation.cohorts import Cohort
    from recsys.evaluation.intervals import Interval
    from recsys.tracking.run import TrackedRun


def examined_clicks(
    judge: ClickJudge, models: Mapping[str, Any], tracked: TrackedRun, title: str
) -> Report:
    """Asks every ranker the test questions.

    The report goes to the run, its lines to the terminal.
    """
    from recsys.evaluation import html_report
    from recsys.evaluation.cohorts import cohort_table, worst
    from recsys.evaluation.compare import Answers, compare
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
            row["intervals"] = {
                judge.name("test", metric): [interval.low, interval.high]
                for metric, interval in intervals_of(judge, frame["score"].to_numpy()).items()
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
        _, compared = compare(answers[0], answers[1:], "auc", resamples=draws, cohorts=False)
        compared.sort(key=lambda comparison: -comparison.value.estimate)
        sentences = [in_a_sentence(name, comparison, "auc") for comparison in compared]
        lines += sentences[:1]
    lines += [f"WARNING: {said}" for said in odd]
    parts: list[Cohort] = []
    figures: list[str] = []
    if resamples:
        from recsys.evaluation.click_metrics import log_losses

        loss = judge.name("test", "logloss")
        best = min(rows[1:], key=lambda row: row["metrics"][loss], default=None)
        groups = {}
        for kind in (name, *([] if best is None else [best["model"]])):
            frame = frames[kind]
            losses = log_losses(frame["label"].to_numpy(), frame["score"].to_numpy())
            groups[kind] = cohort_table(frame, losses, resamples=resamples)
        figures = draw_cohorts(groups, tracked, "Logloss")
        parts = groups[name]
        # The worst part is the one with the highest logloss.
        if (least := worst(parts, largest=True)) is not None:
            lines.append(
                f"worst cohort: {least.cohort} {least.value} ({least.questions:,} questions), "
                f"logloss {interval_text(least.interval)}"
            )
    mended, curves = calibrated(judge, model, frames[name])
    figures = [draw_reliability(name, curves, tracked), *figures]
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
            html_report.table(["probabilities", "logloss", "calibration error", "AUC"], table)
            + html_report.reliability(points_of(curves)),
        ),
        ("Split audit", html_report.paragraphs([str(finding) for finding in judge.findings])),
    ]
    legend = f"{judge.legend} · test/{judge.protocol} · {len(judge.split.test):,} questions"
    values = {
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
    page = html_report.page(title, legend, sections)
    tracked.artifact_text("report.html", page)
    tracked.artifact_json("report.json", without_nan(values))
    for line in lines:
        say(line)
    return Report(lines, page, values, figures)


def _cell(numbers: dict[str, float], metric: str) -> str:
    """A number, with its interval where there is one."""
    from recsys.evaluation.intervals import Interval

    if f"{metric}_low" not in numbers:
        return share(numbers[metric])
    low, high = (numbers[f"{metric}_{end}"] for end in ("low", "high"))
    return interval_text(Interval(numbers[metric], low, high))


def intervals_of(
    judge: ClickJudge, scores: np.ndarray, metrics: list[str] | None = None
) -> dict[str, Interval]:
    """The interval of each metric of these answers to the test questions, or of some metrics."""
    from recsys.evaluation.click_report import click_intervals

    asked = judge.split.test
    return click_intervals(
        asked.labels,
        scores,
        asked.users,
        asked.requests if metrics is None else None,
        metrics=metrics,
        ks=judge.evaluation.ks,
        weighting=judge.evaluation.gauc_weighting,
        bins=judge.evaluation.calibration_bins,
        resamples=judge.evaluation.resamples,
        own=judge.own_metrics if metrics is None else {},
    )


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
        for kind, probabilities in mended.items():
            for metric, found in intervals_of(judge, probabilities, list(numbers[kind])).items():
                numbers[kind] |= {f"{metric}_low": found.low, f"{metric}_high": found.high}
    return numbers, {kind: reliability(labels, p, bins) for kind, p in mended.items()}
