r"""Hold tracked runs against each other, question by question.

Examples:
  python -m pipelines.compare runs=[latest]
  python -m pipelines.compare runs=[RUN_A,RUN_B] metric=hr_10
  python -m pipelines.compare runs=[RUN_A,RUN_B,RUN_C] baselines=false resamples=10000

The first run is looked at; the others, and the baselines of the first, are what it is held against.
Differences come with intervals by drawing users and with p-values corrected for their number
(Holm). Runs whose questions differ are refused, and on fewer than 1,000 questions, or of fewer than
100 users, there is no verdict. The report, an HTML page among it, becomes a run of its own.
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any

from pipelines.checking import ConfigError
from pipelines.entry import main
from pipelines.headings import metric_title
from pipelines.judging import file_name, interval_text, say, share
from pipelines.own import metric_of
from pipelines.result import check_result_path, without_nan, write_result
from pipelines.runs import find_run, start_run
from pipelines.schemas import CompareConfig
from pipelines.story import link, markdown_table, plain
from pipelines.ui import how_to_open, in_the_ui

if TYPE_CHECKING:
    import polars as pl

    from recsys.evaluation.compare import Answers, Comparison, Verdict
    from recsys.evaluation.intervals import Interval
    from recsys.tracking.reading import RunInfo
    from recsys.tracking.run import TrackedRun

    Moved = tuple[str, pl.DataFrame]  # "gain" or "lose", and who does


def run(config: CompareConfig) -> None:
    """Read, compare, report."""
    started = time.perf_counter()
    check_result_path(config.result)
    check(config)
    from recsys.evaluation.compare import compare
    from recsys.tracking.operations import NO_RESULT

    infos = [find_run(name, config.tracking.uri) for name in config.runs]
    if len({info.run_id for info in infos}) < len(infos):
        raise ConfigError(f"runs={config.runs} names a run twice")
    reference, others, legend = gather(infos, config.baselines)
    metric = config.metric or usual_metric(reference)
    own, found = compare(
        reference,
        others,
        metric,
        resamples=config.resamples,
        seed=config.seed,
        level=config.level,
    )
    moved = [moved_users(reference, answers, metric, config.moved) for answers in others]
    text = in_text(reference, own, found, moved, metric, legend)
    report = as_json(reference, own, found, moved, metric, infos, config)
    title = f"{reference.name} beside {', '.join(answers.name for answers in others)}"
    tags = {
        "compares": ",".join(info.run_id for info in infos),
        "protocol": reference.protocol,
    }
    doing = f"Holding {plain(title)} against each other. {NO_RESULT}"
    with start_run(config, "compare", f"compare {title}", tags=tags, description=doing) as tracked:
        tracked.datasets_of(infos[0], "comparison")
        for other in found:
            prefix = f"difference/{file_name(other.other)}/{metric}"
            ends = other.difference
            tracked.metrics(
                {prefix: ends.estimate, f"{prefix}/low": ends.low, f"{prefix}/high": ends.high}, 0
            )
        tracked.artifact_text("compare.txt", text + "\n")
        tracked.artifact_json("compare.json", without_nan(report))
        tracked.artifact_text("compare.html", in_html(reference, own, found, moved, metric, legend))
        seconds = time.perf_counter() - started
        tracked.metrics({"cost/seconds": seconds}, 0)
        tell_compared(tracked, reference, own, found, metric, legend, f"{seconds:.0f} s")
        rows = [
            {"model": reference.name, "metrics": {metric: own.estimate}},
            *({"model": c.other, "metrics": {metric: c.value.estimate}} for c in found),
        ]
        write_result(
            config.result, run_id=tracked.run_id, seconds=seconds, rows=rows, comparison=report
        )
    say(text)
    say(f"\n{seconds:.0f} s. {in_the_ui(tracked.run_id, 'compare.html')}")
    say(how_to_open(tracked.run_id, config.tracking.uri))


def check(config: CompareConfig) -> None:
    """Refuses numbers out of range before any work starts.

    Raises:
        ConfigError: naming the setting.
    """
    if not config.runs:
        raise ConfigError("runs must name at least one run, such as runs=[latest]")
    if len(set(config.runs)) < len(config.runs):
        raise ConfigError(f"runs={config.runs} names a run twice")
    if len(config.runs) < 2 and not config.baselines:
        raise ConfigError("baselines=false leaves nothing to compare one run with: name two runs")
    if config.resamples < 2:
        raise ConfigError(f"resamples must be at least 2, not {config.resamples}")
    if not 0 < config.level < 1:
        raise ConfigError(f"level must be between 0 and 1, not {config.level}")
    if config.moved < 0 or config.seed < 0:
        raise ConfigError("moved and seed must not be negative")


def gather(infos: list[RunInfo], baselines: bool) -> tuple[Answers, list[Answers], str]:
    """The first run's model, what it is held against, and the protocol in words.

    Raises:
        ConfigError: a run that has not finished, or one without answers.
    """
    found: list[tuple[Answers, RunInfo]] = []
    legend = ""
    for number, info in enumerate(infos):
        found += [(made, info) for made in answers_of(info, baselines and number == 0)]
        if number == 0:
            legend = legend_of(info)
    if len(found) < 2:
        raise ConfigError(
            f"run {infos[0].run_id} ('{infos[0].name}') has no baselines to be held against "
            "(evaluation.baselines=false): name two runs"
        )
    names = [answers.name for answers, _ in found]
    renamed = []
    for answers, info in found:
        name = answers.name
        if names.count(name) > 1:
            name = f"{name} {info.run_id[:8]}"
            legend += f"\n{name}: {info.name}"
        renamed.append(replace(answers, name=name))
    return renamed[0], renamed[1:], legend


def answers_of(info: RunInfo, baselines: bool) -> list[Answers]:
    """What the model of a run answered to the test, and its baselines after it if they are asked.

    Raises:
        ConfigError: a run that has not finished, or one without answers.
    """
    import polars as pl
    import yaml

    from recsys.evaluation.compare import Answers

    if info.tags.get("pipeline") not in ("train", "evaluate"):
        raise ConfigError(
            f"run {info.run_id} ('{info.name}') is a run of {info.tags.get('pipeline')}, which "
            "answers no questions; name runs of train or evaluate"
        )
    if info.status != "FINISHED":
        raise ConfigError(
            f"run {info.run_id} ('{info.name}') is {info.status}: only finished runs can be "
            "compared"
        )
    config = yaml.safe_load(info.artifact("config.yaml").read_text(encoding="utf-8"))
    weighting = config["evaluation"].get("gauc_weighting", "impressions")
    own = tuple(map(metric_of, config["evaluation"].get("metrics", [])))
    rows = json.loads(info.artifact("table.json").read_text(encoding="utf-8"))
    found = []
    for row in rows if baselines else rows[:1]:
        _, protocol, _ = next(iter(row["metrics"])).split("/")
        file = info.artifact(f"per_question/test/{file_name(row['model'])}.parquet")
        found.append(Answers(row["model"], protocol, pl.read_parquet(file), weighting, own))
    return found


def legend_of(info: RunInfo) -> str:
    """The protocol of a run in words."""
    return info.artifact("table.txt").read_text(encoding="utf-8").strip().split("\n\n")[0]


def usual_metric(reference: Answers) -> str:
    """What is compared unless said otherwise."""
    from recsys.evaluation.compare import metrics_of

    if reference.of_clicks:
        return "auc"
    known = metrics_of(reference)
    cuts = [int(name.removeprefix("ndcg_")) for name in known if name.startswith("ndcg_")]
    return f"ndcg_{10 if 10 in cuts else max(cuts)}"


def moved_users(reference: Answers, other: Answers, metric: str, count: int) -> list[Moved]:
    """Who gains and who loses most; empty where count is 0."""
    from recsys.evaluation.compare import moved_most

    if not count:
        return []
    return list(zip(("gain", "lose"), moved_most(reference, other, metric, count), strict=True))


def in_text(
    reference: Answers,
    own: Interval,
    found: list[Comparison],
    moved: list[list[Moved]],
    metric: str,
    legend: str,
) -> str:
    """For the terminal: all of them side by side, and the strongest of them part by part."""
    from recsys.evaluation.report import table_text

    heading = (
        f"{legend}\n\ntest/{reference.protocol} · {len(reference.frame):,} questions · intervals "
        "by drawing users\n"
    )
    rows, columns = side_by_side(reference, own, found, metric)
    lines = [table_text(rows, heading, columns)]
    if found[0].verdict == "too few":
        lines.append(too_few(reference))
    place = strongest_of(found, metric)
    strongest = found[place]
    if strongest.cohorts:
        parts = [
            {
                "part": f"{part.cohort} {part.value}",
                "questions": part.questions,
                "ahead": interval_text(part.interval, signed=True),
            }
            for part in strongest.cohorts
        ]
        heading = f"\nagainst {strongest.other}, by cohort\n"
        columns = {"part": "part", "questions": "questions", "ahead": columns["ahead"]}
        lines.append(table_text(parts, heading, columns))
        if said := worst_in_words(strongest, metric):
            lines.append(said)
    for word, users in moved[place]:
        told = [moved_in_words(row) for row in users.iter_rows(named=True)]
        title = users_who(word, reference)
        lines.append(f"{title}, against {strongest.other}: {', '.join(told) or 'none'}")
    if len(found) > 1:
        lines.append("cohorts and users against the others stand in compare.html")
    return "\n".join(lines)


def moved_in_words(row: dict[str, Any]) -> str:
    """A user that moved, and of next items whence and whither.

    >>> moved_in_words({"user": "u7", "difference": 0.5, "rank": 1, "rank_other": None})
    'u7 +.5000 (rank 1, there missed)'
    """
    said = f"{row['user']} {share(row['difference'], signed=True)}"
    if "rank" not in row:
        return said
    return f"{said} (rank {_rank(row['rank'])}, there {_rank(row['rank_other'])})"


def side_by_side(
    reference: Answers, own: Interval, found: list[Comparison], metric: str
) -> tuple[list[dict[str, Any]], dict[str, str]]:
    """The table's rows, and its columns."""
    rows: list[dict[str, Any]] = [{"model": reference.name, "mean": interval_text(own)}]
    for other in found:
        rows.append(
            {
                "model": other.other,
                "mean": interval_text(other.value),
                "ahead": interval_text(other.difference, signed=True),
                "share": "–" if other.relative is None else f"{other.relative.estimate:+.0%}",
                "wins": f"{other.wins:,}/{other.ties:,}/{other.losses:,}",
                "p": f"{other.p_holm:.3f}",
                "verdict": other.verdict,
            }
        )
    columns = {
        "model": "model",
        "mean": metric,
        "ahead": ahead_by(reference, metric),
        "share": "%",
        "wins": "win/tie/loss",
        "p": "p (Holm)",
        "verdict": "verdict",
    }
    return rows, columns


def hardest_to_beat(means: Sequence[float], metric: str) -> int:
    """Which of several means of a metric is best."""
    sign = -1 if metric == "logloss" else 1
    return max(range(len(means)), key=lambda number: sign * means[number])


def strongest_of(found: list[Comparison], metric: str) -> int:
    """Which of them is hardest to beat."""
    return hardest_to_beat([other.value.estimate for other in found], metric)


def tell_compared(
    tracked: TrackedRun,
    reference: Answers,
    own: Interval,
    found: list[Comparison],
    metric: str,
    legend: str,
    cost: str,
) -> None:
    """Has the run's page, and the table of runs, say what was found."""
    strongest = found[strongest_of(found, metric)]
    headline = f"{metric_title(metric)} {interval_text(own)}"
    against = (
        f"{ahead_by(reference, metric)} {interval_text(strongest.difference, signed=True)} "
        f"({strongest.other}): {strongest.verdict}"
    )
    rows, columns = side_by_side(reference, own, found, metric)
    lines = [line for line in legend.splitlines() if line]
    if said := worst_in_words(strongest, metric):
        lines.append(said)
    tracked.describe(
        "\n".join(
            [
                f"**{plain(reference.name)}: {plain(headline)}** on {len(reference.frame):,} "
                f"questions. {plain(against)}",
                "",
                *(f"* {plain(line)}" for line in lines),
                f"* **Cost:** {plain(cost)}",
                "",
                markdown_table(rows, columns),
                "",
                f"Worth opening: {link(tracked, 'compare.html')}",
            ]
        )
    )
    tracked.tag("headline", headline)
    tracked.tag("against", against)


def too_few(reference: Answers) -> str:
    """Why there is no verdict."""
    from recsys.evaluation.compare import ENOUGH, ENOUGH_USERS

    if len(reference.frame) < ENOUGH:
        return f"too few: fewer than {ENOUGH:,} questions give no verdict"
    users = reference.frame["user"].n_unique()
    return f"too few: {users:,} users asked, and fewer than {ENOUGH_USERS:,} give no verdict"


def users_who(word: str, reference: Answers) -> str:
    """The title of the users that moved most."""
    return f"users who {word} most{' in logloss' if reference.of_clicks else ''}"


def ahead_by(reference: Answers, metric: str) -> str:
    """The title of the differences, of which more is better, but for a loss."""
    return f"{reference.name} {'less the other' if metric == 'logloss' else 'ahead by'}"


def worst_in_words(comparison: Comparison, metric: str) -> str:
    """Where the reference gains least; "" where there are no cohorts."""
    from recsys.evaluation.cohorts import worst

    least = worst(comparison.cohorts, largest=metric == "logloss")
    if least is None:
        return ""
    return (
        f"least against {comparison.other}: {least.cohort} {least.value} "
        f"({least.questions:,} questions) {interval_text(least.interval, signed=True)}"
    )


def as_json(
    reference: Answers,
    own: Interval,
    found: list[Comparison],
    moved: list[list[Moved]],
    metric: str,
    infos: list[RunInfo],
    config: CompareConfig,
) -> dict[str, Any]:
    """Everything that was found, as plain values."""
    return {
        "format": 1,
        "metric": metric,
        "protocol": reference.protocol,
        "questions": len(reference.frame),
        "runs": [info.run_id for info in infos],
        "level": config.level,
        "resamples": config.resamples,
        "seed": config.seed,
        "reference": {"model": reference.name, **asdict(own)},
        "others": [
            {**asdict(other), **{f"{word}_most": users.to_dicts() for word, users in who}}
            for other, who in zip(found, moved, strict=True)
        ],
    }


def in_html(
    reference: Answers,
    own: Interval,
    found: list[Comparison],
    moved: list[list[Moved]],
    metric: str,
    legend: str,
) -> str:
    """The page."""
    from recsys.evaluation import html_report
    from recsys.evaluation.html_report import Cell

    rows: list[list[Cell | str]] = [[reference.name, interval_text(own), "", "", "", "", ""]]
    for other in found:
        kind = _kind(other.verdict)
        rows.append(
            [
                other.other,
                interval_text(other.value),
                Cell(interval_text(other.difference, signed=True), kind),
                "–" if other.relative is None else f"{other.relative.estimate:+.1%}",
                f"{other.wins:,} / {other.ties:,} / {other.losses:,}",
                f"{other.p_holm:.4f}",
                Cell(other.verdict, kind),
            ]
        )
    ahead = ahead_by(reference, metric)
    titles = ["model", metric, ahead, "%", "win / tie / loss", "p (Holm)", "verdict"]
    sections = [
        ("In short", html_report.table(titles, rows)),
        (
            f"{ahead}, in {metric}",
            html_report.intervals(
                [(o.other, o.difference) for o in found],
                zero=True,
                kinds=[_kind(o.verdict) for o in found],
            ),
        ),
    ]
    for other, who in zip(found, moved, strict=True):
        if other.cohorts:
            plot = html_report.intervals(
                [(f"{c.cohort} {c.value} ({c.questions:,})", c.interval) for c in other.cohorts],
                zero=True,
            )
            sections.append((f"Against {other.other}, by cohort", plot))
        if who:
            tables = []
            for word, users in who:
                titles = [users_who(word, reference), "questions", "difference"]
                titles += [] if reference.of_clicks else ["rank", f"rank by {other.other}"]
                lines = [
                    [
                        str(row["user"]),
                        f"{row['questions']:,}",
                        f"{row['difference']:+.4f}",
                        *(_rank(row[name]) for name in ("rank", "rank_other") if name in row),
                    ]
                    for row in users.iter_rows(named=True)
                ]
                tables.append(html_report.table(titles, lines))
            sections.append((f"Against {other.other}, user by user", "\n".join(tables)))
    return html_report.page(
        f"{reference.name} beside {len(found)} others",
        legend,
        sections,
    )


def _kind(verdict: Verdict) -> str:
    """Its colour; parts have none, since nothing corrects for how many of them there are."""
    return verdict if verdict in ("better", "worse") else "unsure"


def _rank(rank: int | None) -> str:
    return "missed" if rank is None else f"{rank:,}"


if __name__ == "__main__":
    main("compare", CompareConfig, run, __doc__ or "")
