r"""Let a training run's model become the champion of its name, if it is shown not to lose.

Examples:
  python -m pipelines.promote run=latest name=films
  python -m pipelines.promote run=RUN_ID name=films margin=0.002 cohorts=[history_length,repeat]
  python -m pipelines.promote run=RUN_ID name=films answers=[EVALUATION_OF_THE_CHAMPION]

The run's model becomes a version of the name (train register=NAME does so too) and is held against
the champion on the same test questions. The alias moves if the lower bound of the paired difference
lies above −margin, overall and in every part of the guarded cohorts, at levels corrected for their
number (Holm). On fewer than 1,000 questions, or 100 users, it stays; guarded parts with fewer are
listed as not judged. Where there is no champion yet, the strongest baseline of the run's own test
takes its place.

Decision and evidence are noted on the version before the alias moves, and become a run of their
own. Exit codes: 0 the run's model is the champion, 3 it is refused, 2 a wrong setting or input.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from pipelines.checking import ConfigError
from pipelines.compare import answers_of, hardest_to_beat, legend_of, usual_metric
from pipelines.entry import main
from pipelines.headings import metric_title
from pipelines.judging import say, share
from pipelines.paths import tracking_uri
from pipelines.result import check_result_path, without_nan, write_result
from pipelines.runs import find_run, registered, start_run, trained_run
from pipelines.schemas import PromoteConfig
from pipelines.story import link, markdown_table, plain
from pipelines.ui import how_to_open, in_the_ui

if TYPE_CHECKING:
    from recsys.evaluation.compare import Answers
    from recsys.evaluation.promotion import Decision
    from recsys.tracking.reading import RunInfo
    from recsys.tracking.registry import Version

REFUSED = 3  # exit code


def run(config: PromoteConfig) -> int:
    """Register, compare, decide, note it, move the alias."""
    started = time.perf_counter()
    check_result_path(config.result)
    check(config)
    from recsys.evaluation.compare import CompareError, check_same_questions
    from recsys.evaluation.promotion import decide
    from recsys.tracking.registry import champion_of, make_champion, write_decision

    uri = config.tracking.uri or tracking_uri()
    info, trained = trained_run(config.run, config.tracking)
    if info.status != "FINISHED":
        raise ConfigError(
            f"run {info.run_id} ('{info.name}') is {info.status}: only finished runs are promoted"
        )
    champion = champion_of(uri, config.name)
    if champion is not None and champion.run_id == info.run_id:
        write_result(config.result, run_id=None, seconds=0, rows=[], promoted=True)
        say(f"{champion} is the champion of {config.name} already: run {info.run_id}")
        say(how_to_open(info.run_id, config.tracking.uri))
        return 0
    asked, legend = whose_answers(config, info, champion)
    metric = config.metric or usual_metric(asked.challenger)
    if champion is None:
        asked = replace(asked, champion=strongest(asked.baselines, metric, info))
    assert asked.champion is not None
    try:
        check_same_questions(asked.challenger, asked.champion)
    except CompareError as error:
        if champion is None:
            raise
        raise CompareError(
            f"{error}. To compare them, ask both the same: python -m pipelines.evaluate "
            f"run={champion.run_id} with the data= and split= of run {info.run_id}, then promote "
            "with answers=[ID of that evaluation]"
        ) from error
    decision = decide(
        asked.challenger,
        asked.champion,
        metric,
        cohorts=config.cohorts,
        margin=config.margin,
        level=config.level,
        resamples=config.resamples,
        seed=config.seed,
    )
    version = registered(config.name, info, trained)
    against = str(champion)
    if champion is None:
        against = f"the baseline {asked.champion.name}, for want of a champion"
    outcome = f"{version} {'promoted' if decision.promoted else 'refused'}: {decision.reason}"
    text = in_text(decision, against, outcome, legend)
    report = as_json(config, decision, version, champion, asked, outcome)
    tags = {
        "decides": info.run_id,
        "protocol": asked.challenger.protocol,
        "decision": report["decision"],
        "version": str(version),
    }
    with start_run(config, "promote", f"promote {version}", tags=tags) as tracked:
        tracked.datasets_of(asked.judged, "promotion")
        overall = decision.parts[0]
        if overall.bound is not None:
            name = f"difference/champion/{metric}"
            tracked.metrics({name: overall.ahead, f"{name}/low": overall.bound}, 0)
        opening = f"Worth opening: {link(tracked, 'promote.html')}"
        asked_what = (plain(line) for line in legend.splitlines())
        told = [in_markdown(decision, against, outcome), *asked_what, opening]
        tracked.describe("\n\n".join(told))
        tracked.tag("headline", f"{version} {'promoted' if decision.promoted else 'refused'}")
        tracked.tag("against", against)
        tracked.artifact_text("promote.txt", text + "\n")
        tracked.artifact_json("promote.json", without_nan(report))
        tracked.artifact_text("promote.html", in_html(decision, against, outcome, legend))
        write_decision(
            uri,
            version,
            {
                "decision": report["decision"],
                "decided_at": datetime.now(UTC).isoformat(timespec="seconds"),
                "decided_in": tracked.run_id,
                "against": against,
                "against_run": info.run_id if champion is None else champion.run_id,
                "metric": f"test/{asked.challenger.protocol}/{metric}",
                "margin": f"{config.margin:g}",
                "level": f"{config.level:g}",
                "reason": decision.reason,
            },
            in_markdown(decision, against, outcome),
        )
        if decision.promoted:
            make_champion(uri, version, champion)
    seconds = time.perf_counter() - started
    write_result(
        config.result,
        run_id=tracked.run_id,
        seconds=seconds,
        rows=[{"model": str(version), "metrics": {metric: report["challenger"]["mean"]}}],
        promoted=decision.promoted,
        promotion=report,
    )
    say(text)
    say(f"\n{seconds:.0f} s. {in_the_ui(tracked.run_id, 'promote.html')}")
    say(how_to_open(tracked.run_id, config.tracking.uri))
    return 0 if decision.promoted else REFUSED


def check(config: PromoteConfig) -> None:
    """Refuses what cannot be, before any work starts.

    Raises:
        ValueError: naming the setting.
    """
    from recsys.evaluation.promotion import check_numbers
    from recsys.tracking.registry import check_model_name

    check_model_name(config.name, "name")
    check_numbers(config.margin, config.level)
    if config.resamples < 2:
        raise ConfigError(f"resamples must be at least 2, not {config.resamples}")
    if config.seed < 0:
        raise ConfigError(f"seed must not be negative, not {config.seed}")
    for name, values in (("cohorts", config.cohorts), ("answers", config.answers)):
        if len(set(values)) < len(values):
            raise ConfigError(f"{name}={values} names one twice")


@dataclass(frozen=True)
class Asked:
    """Whose answers are compared.

    Attributes:
        challenger: of the run that may become champion.
        champion: of the champion; None where there is none.
        baselines: of the challenger's test.
        runs: that they were read from.
        judged: the one of them with the challenger's.
    """

    challenger: Answers
    champion: Answers | None
    baselines: list[Answers]
    runs: list[str]
    judged: RunInfo


def whose_answers(
    config: PromoteConfig, info: RunInfo, champion: Version | None
) -> tuple[Asked, str]:
    """The answers of training, or those of the evaluations that are named, and their protocol.

    Raises:
        ConfigError: an evaluation of neither run, two of one, or a test that the model learned.
    """
    from recsys.tracking.reading import load_run

    sides = {info.run_id: info}
    if champion is not None:
        sides[champion.run_id] = load_run(info.uri, champion.run_id)
    given: dict[str, RunInfo] = {}
    for name in config.answers:
        answers = find_run(name, config.tracking.uri)
        side = answers.tags.get("evaluates", "")
        if side not in sides:
            whose = " and ".join(sides)
            raise ConfigError(
                f"answers: run {answers.run_id} ('{answers.name}') is no evaluation of {whose}; "
                "python -m pipelines.evaluate run=… makes one"
            )
        if side in given:
            raise ConfigError(f"answers={config.answers} names two evaluations of run {side}")
        given[side] = answers
    read = {side: given.get(side, own) for side, own in sides.items()}
    ours, *baselines = answers_of(read[info.run_id], champion is None)
    found = [replace(ours, name=f"{ours.name} of run {info.run_id[:8]}")]
    if champion is not None:
        theirs = answers_of(read[champion.run_id], False)[0]
        found.append(replace(theirs, name=f"{theirs.name} of {champion}"))
    for made in found:
        if made.protocol.endswith("-leaking"):
            raise ConfigError(
                f"{made.name} was trained on answers of this test ({made.protocol}): its "
                "numbers decide nothing"
            )
    asked = Asked(
        challenger=found[0],
        champion=None if champion is None else found[1],
        baselines=baselines,
        runs=[side.run_id for side in read.values()],
        judged=read[info.run_id],
    )
    return asked, legend_of(asked.judged)


def strongest(baselines: Sequence[Answers], metric: str, info: RunInfo) -> Answers:
    """The baseline with the best mean.

    Raises:
        ConfigError: there is none.
    """
    if not baselines:
        raise ConfigError(
            f"there is no champion yet, and the test of run {info.run_id} ('{info.name}') has no "
            "baselines to be held against (evaluation.baselines=false): python -m "
            f"pipelines.evaluate run={info.run_id} evaluation.baselines=true, then promote with "
            "answers=[ID of that evaluation]"
        )
    from recsys.evaluation.promotion import mean_of

    means = [mean_of(answers, metric) for answers in baselines]
    return baselines[hardest_to_beat(means, metric)]


def in_text(decision: Decision, against: str, outcome: str, legend: str) -> str:
    """For the terminal."""
    from recsys.evaluation.report import table_text

    rows: list[dict[str, Any]] = [
        dict(zip(("part", "questions", "ahead", "bound", "p", "verdict"), cells, strict=True))
        for cells in cells_of(decision)
    ]
    columns = {
        "part": "part",
        "questions": "questions",
        "ahead": f"ahead in {metric_title(decision.metric)}",
        "bound": "at least",
        "p": "p (Holm)",
        "verdict": f"loses at most {decision.margin:g}",
    }
    heading = f"{legend}\n\nagainst {against}\n"
    return f"{table_text(rows, heading, columns)}\n\n{outcome}"


def cells_of(decision: Decision) -> list[list[str]]:
    """The table: part, questions, difference, bound, p-value, verdict."""
    return [
        [
            part.name,
            f"{part.questions:,}",
            "–" if part.ahead != part.ahead else share(part.ahead, signed=True),
            "–" if part.bound is None else share(part.bound, signed=True),
            "–" if part.p_holm is None else f"{part.p_holm:.4f}",
            part.verdict,
        ]
        for part in decision.parts
    ]


def in_markdown(decision: Decision, against: str, outcome: str) -> str:
    """For the pages of version and run."""
    titles = ("part", "questions", f"ahead in {decision.metric}", "at least", "p (Holm)", "verdict")
    rows = [dict(zip(titles, cells, strict=True)) for cells in cells_of(decision)]
    lines = [
        f"**{plain(outcome)}**",
        "",
        plain(
            f"Against {against}, at level {decision.level:g} (Holm), margin {decision.margin:g}."
        ),
        "",
        markdown_table(rows, {title: title for title in titles}),
    ]
    return "\n".join(lines)


def in_html(decision: Decision, against: str, outcome: str, legend: str) -> str:
    """The page."""
    from recsys.evaluation import html_report
    from recsys.evaluation.html_report import Cell
    from recsys.evaluation.intervals import Interval

    kinds = {"holds": "better", "not shown": "worse", "not judged": "unsure"}
    rows: list[list[Cell | str]] = []
    drawn: list[tuple[str, Interval, str]] = []
    for part, cells in zip(decision.parts, cells_of(decision), strict=True):
        kind = kinds[part.verdict]
        *plain, verdict = cells
        rows.append([*plain, Cell(verdict, kind), Cell(part.why, "words")])
        if part.bound is not None:
            ends = Interval(part.ahead, part.bound, part.ahead)
            drawn.append((f"{part.name} ({part.questions:,})", ends, kind))
    ahead = f"ahead in {decision.metric}"
    titles = ["part", "questions", ahead, "at least", "p (Holm)", "verdict", ""]
    sections = [
        ("Decision", html_report.paragraphs([outcome, f"Against {against}."])),
        (f"Loses at most {decision.margin:g} {decision.metric}", html_report.table(titles, rows)),
    ]
    if drawn:
        plot = html_report.intervals(
            [(name, ends) for name, ends, _ in drawn],
            zero=True,
            kinds=[kind for _, _, kind in drawn],
        )
        sections.append((f"{ahead}, and its lower bound", plot))
    return html_report.page(outcome.partition(":")[0], legend, sections)


def as_json(
    config: PromoteConfig,
    decision: Decision,
    version: Version,
    champion: Version | None,
    asked: Asked,
    outcome: str,
) -> dict[str, Any]:
    """Everything that was found, as plain values."""
    from recsys.evaluation.promotion import mean_of

    assert asked.champion is not None

    return {
        "format": 1,
        "decision": "promoted" if decision.promoted else "refused",
        "outcome": outcome,
        "reason": decision.reason,
        "name": config.name,
        "version": version.number,
        "run": version.run_id,
        "against_version": None if champion is None else champion.number,
        "against_run": None if champion is None else champion.run_id,
        "answers": asked.runs,
        "protocol": asked.challenger.protocol,
        "metric": decision.metric,
        "margin": decision.margin,
        "level": decision.level,
        "resamples": config.resamples,
        "seed": config.seed,
        "challenger": {
            "model": asked.challenger.name,
            "mean": mean_of(asked.challenger, decision.metric),
        },
        "champion": {
            "model": asked.champion.name,
            "mean": mean_of(asked.champion, decision.metric),
        },
        "parts": [asdict(part) for part in decision.parts],
    }


if __name__ == "__main__":
    main("promote", PromoteConfig, run, __doc__ or "")
