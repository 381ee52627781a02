"""The description of a run: what a person reads first on its page in MLflow's UI.

The UI shows a few lines of it, and the rest on request: so the result stands first, then what it is
a result of, then the table and the figures.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, urlencode

from pipelines.clicks import ClickJudge, click_columns
from pipelines.examining import Report
from pipelines.headings import metric_title
from pipelines.judging import Judge, about_intervals, share, shown, table_columns
from pipelines.runs import headline_metric

if TYPE_CHECKING:
    from recsys.tracking.run import TrackedRun


def begun(judge: Judge | ClickJudge, title: str, doing: str) -> str:
    """What a run says of itself until it has a result.

    Args:
        judge: asks.
        title: of the data.
        doing: what is going on, in words.
    """
    from recsys.tracking.operations import NO_RESULT

    return "\n\n".join([f"**{plain(doing)}** {NO_RESULT}", *about(judge, title)])


def told(
    tracked: TrackedRun,
    judge: Judge | ClickJudge,
    report: Report,
    title: str,
    cost: Sequence[str],
) -> str:
    """What a run with a result says of itself.

    Args:
        tracked: the run, which holds the report and the figures.
        judge: asked.
        report: of the test.
        title: of the data.
        cost: what it took, in words.
    """
    columns = table_columns(judge) if isinstance(judge, Judge) else click_columns(judge)
    table = markdown_table(
        [shown(row) for row in report.rows], {"model": "model", **columns}
    ).splitlines()
    artifacts = ["report.html", *report.figures, "table.txt", "per_question/test", "config.yaml"]
    first, *others = report.lines if report.sentinel else ["", *report.lines]
    said = [
        f"**{plain(report.rows[0]['model'])}: {plain(headline(judge, report))}** "
        f"on {len(judge.split.test):,} questions. {bold_warning(first)}".strip(),
        *("* " + bold_warning(line) for line in others),
        *("* " + line for line in about(judge, title)),
        f"* **Cost:** {plain('; '.join(cost))}",
        "",
        *table,
        "",
        plain(about_intervals(report.rows).strip()),
        "",
        *(image(tracked, name) for name in report.figures),
        "",
        "Worth opening: " + " · ".join(link(tracked, name) for name in artifacts),
    ]
    return re.sub("\n{3,}", "\n\n", "\n".join(said))


def about(judge: Judge | ClickJudge, title: str, stage: str = "test") -> list[str]:
    """The data and the protocol: whose questions are asked, those of test or of val."""
    from recsys.histories.clicks import ClickSplit

    store, split = judge.store, judge.split
    if isinstance(split, ClickSplit):
        training = f"{split.training_size:,} questions"
    else:
        training = f"{split.counts['training_events']:,} events"
    return [
        f"**Data:** {plain(title)}, {store.events:,} events, {store.users:,} users, "
        f"{store.catalogue_size - 1:,} items; {training} to train on",
        f"**Protocol:** `{stage}/{judge.protocol}`, {plain(judge.legend)}",
    ]


def headline(judge: Judge | ClickJudge, report: Report) -> str:
    """The main metric of the first model, with its interval where there is one."""
    metric = headline_metric(judge.evaluation)
    value = shown(report.rows[0])[judge.name("test", metric)]
    text = value if isinstance(value, str) else share(value)
    return f"{metric_title(metric)} {text}"


def tell(
    tracked: TrackedRun,
    judge: Judge | ClickJudge,
    report: Report,
    title: str,
    cost: Sequence[str],
) -> None:
    """Has the run's page, and the table of runs, say what was found; the arguments are `told`'s."""
    tracked.describe(told(tracked, judge, report, title, cost))
    tracked.tag("headline", headline(judge, report))
    if report.sentinel:
        tracked.tag("against", report.sentinel[0])
    tracked.columns([judge.name("test", headline_metric(judge.evaluation))])


def bold_warning(line: str) -> str:
    r"""A line of a report.

    >>> bold_warning("WARNING: EASE [.1] loses")
    '**WARNING:** EASE \\[.1\\] loses'
    """
    word = "WARNING:"
    return f"**{word}**{plain(line.removeprefix(word))}" if line.startswith(word) else plain(line)


def plain(text: str) -> str:
    r"""Text as Markdown shows it, whatever is in it.

    >>> plain("a_b [.1, .2] <i>")
    'a\\_b \\[.1, .2\\] &lt;i>'
    """
    return re.sub(r"([\\`*_\[\]|~])", r"\\\1", text).replace("<", "&lt;")


def markdown_table(rows: Sequence[Mapping[str, Any]], columns: Mapping[str, str]) -> str:
    """A table; the first column to the left, the others to the right.

    MLflow draws cells without any room between them, so each begins with a blank that stays.

    >>> print(markdown_table([{"model": "EASE", "hr": 0.25}], {"model": "model", "hr": "HR"}))
    | model | &emsp;HR |
    |:--|--:|
    | EASE | &emsp;.2500 |
    """
    between = " | &emsp;"
    lines = ["| " + between.join(plain(title) for title in columns.values()) + " |"]
    lines.append("|:--" + "|--:" * (len(columns) - 1) + "|")
    for row in rows:
        cells = (row.get(key) for key in columns)
        texts = (share(cell) if isinstance(cell, float) else str(cell) for cell in cells)
        lines.append("| " + between.join(plain(text) for text in texts) + " |")
    return "\n".join(lines)


def image(tracked: TrackedRun, name: str) -> str:
    """A figure of the run, which MLflow's UI fetches from where its own page comes from."""
    address = urlencode({"path": name, "run_uuid": tracked.run_id})
    return f"![{plain(name)}](get-artifact?{address})"


def link(tracked: TrackedRun, name: str) -> str:
    """The page of an artifact of the run."""
    page = run_page(tracked.experiment_id, tracked.run_id)
    return f"[{plain(name)}]({page}/artifacts/{quote(name)}?{_training_view()})"


def run_page(experiment_id: str, run_id: str) -> str:
    """A run's page, as other pages of the same UI can link to it."""
    return f"#/experiments/{experiment_id}/runs/{run_id}"


def _training_view() -> str:
    from recsys.tracking.experiments import TRAINING_VIEW

    return TRAINING_VIEW
