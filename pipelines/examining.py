"""The test report of next-item models: accuracy with intervals, cohorts, lists, audit, verdict.

What training and evaluation say of a test beyond the means; both call the same functions.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipelines.headings import metric_title
from pipelines.judging import Judge, file_name, interval_text, make_split, say, share, shown
from pipelines.result import without_nan
from pipelines.schemas import (
    AuditConfig,
    CandidatesConfig,
    EvaluationConfig,
    GivenCandidatesConfig,
    SampledCandidatesConfig,
    SplitConfig,
)

if TYPE_CHECKING:
    import numpy as np
    import polars as pl

    from recsys.evaluation.beyond_accuracy import Surroundings
    from recsys.evaluation.candidates import Candidates
    from recsys.evaluation.cohorts import Cohort
    from recsys.evaluation.compare import Comparison
    from recsys.evaluation.ranking import Ranking
    from recsys.histories.audit import Finding
    from recsys.histories.clicks import ClickSplit
    from recsys.histories.questions import Split
    from recsys.histories.store import HistoryStore
    from recsys.tracking.run import TrackedRun


def make_candidates(
    config: CandidatesConfig, store: HistoryStore, split: Split
) -> dict[str, Candidates] | None:
    """What the questions of each stage let a model choose from; None: the whole catalogue.

    Raises:
        CandidateError: they cannot be drawn, or the given lists do not fit.
    """
    from recsys.evaluation.candidates import given, sampled

    stages = {"val": split.validation, "test": split.test}
    if isinstance(config, SampledCandidatesConfig):
        return {
            stage: sampled(
                store,
                questions,
                split.training_ends,
                count=config.count,
                sampling=config.sampling,
                seed=config.seed,
                stage=number,
            )
            for number, (stage, questions) in enumerate(stages.items())
        }
    if isinstance(config, GivenCandidatesConfig):
        from recsys.logs.readers import read_table

        settings = {"user": "candidate_set.path", "item": "candidate_set.path"}
        frame = read_table(config.path, settings, "candidate_set.path")
        return {
            stage: given(frame, store, questions, Path(config.path).name)
            for stage, questions in stages.items()
        }
    return None


def make_judge(
    store: HistoryStore,
    split: SplitConfig,
    evaluation: EvaluationConfig,
    *,
    repeats: bool,
    candidates: CandidatesConfig,
    audit: AuditConfig,
    refit: bool = False,
) -> Judge:
    """Asks the questions of a protocol, once its split has been audited.

    Args:
        store: the histories.
        split: which events are questions.
        evaluation: what is measured.
        repeats: whether items of the history may be the answer, whatever `evaluation` says.
        candidates: what a question lets a model choose from.
        audit: what the split may look like.
        refit: whether models are refitted on training + validation.

    Raises:
        AuditError: beyond a threshold.
        CandidateError: the candidates cannot be had.
        SplitError: the log does not give the questions.
    """
    made = make_split(split, store)
    judge = Judge(
        store,
        made,
        evaluation,
        evaluation.filter_seen and not repeats,
        candidates=make_candidates(candidates, store, made),
    )
    if refit:  # the same questions and candidates
        judge = replace(judge, split=made.refitted(), chosen_by=judge)
    return replace(judge, findings=audited(store, judge.split, audit))


class Examination:
    """Looks at the test answers of several models beside the same things.

    Args:
        judge: asks.
        keep: takes a file's name and the frame with one row a question.
        model: whose item vectors, if it has any, tell how diverse the lists of all models are.

    Raises:
        CohortError: a cohort, or the column of genres, that the data lack.
    """

    def __init__(
        self, judge: Judge, keep: Callable[[str, pl.DataFrame], None], model: Any = None
    ) -> None:
        from recsys.evaluation.cohorts import asked_next, cohort_columns

        self.judge = judge
        self.keep = keep
        self.around = self._surroundings(_vectors(model))
        self.cohorts = cohort_columns(
            judge.evaluation.cohorts,
            judge.store,
            asked_next(judge.store, judge.split.test),
            self.around.counts_V,
        )
        self.frames: dict[str, pl.DataFrame] = {}
        self.rankings: dict[str, Ranking] = {}
        self.rows: list[dict[str, Any]] = []
        self.counts: dict[str, int] = {}

    def _surroundings(self, vectors_VD: np.ndarray | None) -> Surroundings:
        from recsys.evaluation.beyond_accuracy import (
            Surroundings,
            popularity_ranks,
            users_of_items,
        )
        from recsys.evaluation.cohorts import item_column, training_counts
        from recsys.evaluation.ranking import question_answers
        from recsys.models.baselines.popularity import popularity_places

        store, test = self.judge.store, self.judge.split.test
        ends, genres = self.judge.split.training_ends, self.judge.evaluation.genres
        counts_V = training_counts(store, ends)
        return Surroundings(
            counts_V=counts_V,
            users_V=users_of_items(store, ends),
            users=store.users,
            popular_ranks_A=None
            if self.judge.candidates is not None
            else popularity_ranks(
                store,
                test,
                question_answers(store, test)[:2],
                popularity_places(counts_V),
                filter_seen=self.judge.filter_seen,
            ),
            genres=None if genres is None else item_column(genres, store),
            vectors_VD=vectors_VD,
        )

    def add(self, name: str, ranking: Ranking) -> None:
        """Takes what a model answered to the test questions."""
        import numpy as np
        import polars as pl

        from recsys.evaluation.beyond_accuracy import describe

        judge = self.judge
        metrics, frame, self.counts = judge.report(ranking, "test")
        values, columns = describe(
            ranking, judge.store, judge.split.test, self.around, judge.evaluation.ks
        )
        metrics |= {judge.name("test", metric): value for metric, value in values.items()}
        frame = frame.with_columns(
            *(pl.Series(name, column).fill_nan(None) for name, column in columns.items()),
            *self.cohorts.get_columns(),
        )
        self.keep(f"per_question/test/{file_name(name)}.parquet", frame)
        row: dict[str, Any] = {"model": name, "metrics": metrics}
        if judge.evaluation.resamples:
            from recsys.evaluation.beyond_accuracy import intervals_of_lists
            from recsys.evaluation.intervals import bootstrap_columns

            users = frame["user"].rank("dense").to_numpy()
            accuracy = [c for c in frame.columns if c in _bare(metrics) and c not in columns]
            of_each = {metric: frame[metric].to_numpy() for metric in accuracy} | columns
            everywhere = [m for m, column in of_each.items() if not np.isnan(column).any()]
            found = bootstrap_columns(
                np.column_stack([of_each[metric] for metric in everywhere]),
                users,
                resamples=judge.evaluation.resamples,
            )
            intervals = dict(zip(everywhere, found, strict=True))
            for metric, column in of_each.items():
                known = np.flatnonzero(~np.isnan(column))
                if metric not in intervals and len(known):
                    intervals[metric] = bootstrap_columns(
                        column[known, None],
                        users[known],
                        resamples=judge.evaluation.resamples,
                    )[0]
            intervals |= intervals_of_lists(
                ranking,
                judge.store,
                judge.split.test,
                self.around,
                judge.evaluation.ks,
                judge.evaluation.resamples,
            )
            row["intervals"] = {
                judge.name("test", metric): [interval.low, interval.high]
                for metric, interval in intervals.items()
            }
        self.frames[name] = frame
        self.rankings[name] = ranking
        self.rows.append(row)

    @cache  # noqa: B019  # an examination lives as long as its command
    def cohorts_of(self, name: str, metric: str) -> list[Cohort]:
        """The means of a model in each part of each cohort."""
        from recsys.evaluation.cohorts import cohort_table

        frame = self.frames[name]
        return cohort_table(
            frame, frame[metric].to_numpy(), resamples=max(self.judge.evaluation.resamples, 2)
        )

    def sentinel(self, metric: str) -> list[str]:
        """How the first model stands against each of the others, the strongest first, in words."""
        from recsys.evaluation.compare import Answers, compare

        name, *others = self.frames
        if not others or not self.judge.evaluation.resamples:
            return []
        answers = [Answers(n, self.judge.protocol, frame) for n, frame in self.frames.items()]
        # Fewer draws could tell no difference of several.
        draws = max(self.judge.evaluation.resamples, 1000)
        _, found = compare(answers[0], answers[1:], metric, resamples=draws, cohorts=False)
        found.sort(key=lambda comparison: -comparison.value.estimate)
        return [in_a_sentence(name, comparison, metric) for comparison in found]

    def suspicions(self) -> list[str]:
        """What is odd about the first model's answers."""
        from recsys.evaluation.suspicions import suspicions

        name, *_ = self.rankings
        others = {other: ranking for other, ranking in self.rankings.items() if other != name}
        found = suspicions(
            self.rankings[name],
            self.judge.store,
            self.judge.split.test,
            others,
            filter_seen=self.judge.filter_seen,
        )
        return [f"{name} {said}" for said in found]

    def tie_spread(self, model: Any, orders: int, metric: str) -> list[float]:
        """A metric of a model with events of equal time in so many other orders."""
        from recsys.evaluation.ranking import Ranking
        from recsys.histories.audit import other_tie_order

        store = self.judge.store
        if orders == 0 or store.times is None or isinstance(model, Ranking):
            return []
        if self.judge.candidates is not None:
            return []  # they were drawn for these answers
        if not _has_ties(store):
            return []
        return [
            replace(
                self.judge, store=other_tie_order(store, self.judge.split.training_ends, seed)
            ).score(model, "test", metric)
            for seed in range(orders)
        ]

    def say_counts(self) -> None:
        """What of the questions could not be answered, or was answered without history."""
        if cold := self.counts.get("questions_cold", 0):
            say(f"{cold:,} questions come from users without history: they are asked too")
        if missed := self.counts.get("answers_filtered", 0):
            why = "are in their own history and left out"
            if self.judge.candidates is not None:
                why = "are in their own history, or not among their candidates"
            say(f"{missed:,} answers {why}: they count as misses")


def _has_ties(store: HistoryStore) -> bool:
    """Whether any two events of a user that follow each other have one known time."""
    import numpy as np

    from recsys.histories.store import NO_TIME

    times = np.asarray(store.times)
    equal = (times[1:] == times[:-1]) & (times[1:] != NO_TIME)
    equal[store.offsets[1:-1] - 1] = False  # of two users
    return bool(equal.any())


def _vectors(model: Any) -> np.ndarray | None:
    """The item vectors of a model that scores by them."""
    if not hasattr(model, "item_table"):
        return None
    vectors: np.ndarray = model.item_table().detach().float().cpu().numpy()
    return vectors


def examine_all(
    judge: Judge, models: Mapping[str, Any], keep: Callable[[str, pl.DataFrame], None]
) -> Examination:
    """Asks every model the test questions, and looks at the answers.

    Args:
        judge: asks.
        models: by name, the one that is looked at first; in place of a model, what it answered.
        keep: takes a file's name and the frame with one row a question.
    """
    from recsys.evaluation.ranking import Ranking

    examination = Examination(judge, keep, next(iter(models.values())))
    for name, model in models.items():
        given = isinstance(model, Ranking)
        examination.add(name, model if given else judge.rank(model, "test"))
    examination.say_counts()
    return examination


def examined(
    judge: Judge,
    models: Mapping[str, Any],
    tracked: TrackedRun,
    title: str,
) -> Report:
    """Asks every model the test questions.

    The report goes to the run, its lines to the terminal.
    """
    examination = examine_all(judge, models, tracked.artifact_frame)
    first = next(iter(models.values()))
    report = make_report(examination, title, first)
    tracked.artifact_json("report.json", without_nan(report.values))
    tracked.artifact_text("report.html", report.page)
    for line in report.lines:
        say(line)
    from pipelines.drawing import draw_examination

    metric = reporting_metric(judge.evaluation.ks)
    return replace(report, figures=draw_examination(examination, tracked, metric))


def in_a_sentence(name: str, comparison: Comparison, metric: str) -> str:
    """What a comparison means for a model.

    >>> from recsys.evaluation.compare import Comparison
    >>> from recsys.evaluation.intervals import Interval
    >>> made = Comparison("EASE", Interval(0.1, 0.09, 0.11), Interval(0.011, 0.008, 0.014),
    ...                   Interval(0.11, 0.08, 0.14), 5, 90, 5, 0.001, "better", [])
    >>> in_a_sentence("SASRec", made, "ndcg_10")
    'SASRec +11 % NDCG@10 over EASE [+8, +14]'
    """
    relative = comparison.relative
    ends = comparison.difference if relative is None else relative
    factor, unit = (1, "") if relative is None else (100, " %")
    digits = 4 if relative is None else 0
    by, low, high = (f"{factor * end:+.{digits}f}" for end in (ends.estimate, ends.low, ends.high))
    said = f"{by}{unit} {metric_title(metric)} over {comparison.other} [{low}, {high}]"
    if comparison.verdict == "worse":
        return f"WARNING: {name} loses to {comparison.other}: {said}"
    if comparison.verdict == "better":
        return f"{name} {said}"
    why = "too few questions or users for a verdict"
    if comparison.verdict == "no difference shown":
        why = "no difference shown"
    return f"{'WARNING: ' if comparison.difference.estimate <= 0 else ''}{name} {said}: {why}"


def audited(store: HistoryStore, split: Split | ClickSplit, config: AuditConfig) -> list[Finding]:
    """Audits a split, says so in a line, and refuses it beyond the configured thresholds.

    Raises:
        AuditError: naming what is beyond.
    """
    from recsys.histories.audit import audit_clicks, audit_split, check_thresholds
    from recsys.histories.clicks import ClickSplit

    if isinstance(split, ClickSplit):
        findings = audit_clicks(split)
        say(f"split audit of clicks: {audit_line(findings)}")
    else:
        findings = audit_split(store, split)
        say(f"split audit: {audit_line(findings)}")
    check_thresholds(findings, asdict(config))
    return findings


def audit_line(findings: Sequence[Finding]) -> str:
    """The audit in one line: what there is, the future first.

    >>> from recsys.histories.audit import Finding
    >>> audit_line([Finding("future", 3, 8, ""), Finding("ties", 0, 9, "")])
    "37.5% of training lies in the questions' future"
    """
    titles = {
        "future": "of training lies in the questions' future",
        "duplicates": "of the answers stand in training with the same time",
        "ties": "of the answers share their time with another event",
        "cold_users": "of the questions come from users without training events",
        "cold_items": "of the answers are items that training never saw",
        "repeats": "of the answers were in the history before",
    }
    said = [
        f"{finding.share:.1%} {titles[finding.name]}"
        for finding in findings
        if finding.count and finding.name in titles
    ]
    return "; ".join(said) or "nothing found"


def _bare(metrics: Mapping[str, float]) -> set[str]:
    return {name.rsplit("/", 1)[-1] for name in metrics}


def reporting_metric(ks: Sequence[int]) -> str:
    """The metric that a report is about: NDCG at 10, or at the largest cut-off there is."""
    return f"ndcg_{10 if 10 in ks else max(ks)}"


@dataclass(frozen=True)
class Report:
    """What a test says beside its table.

    Attributes:
        lines: for the terminal and the run's description.
        page: HTML that stands alone.
        values: everything, as plain values.
        figures: names of the artifacts that draw it, those first that say most.
    """

    lines: list[str]
    page: str
    values: dict[str, Any]
    figures: Sequence[str] = ()

    @property
    def rows(self) -> list[dict[str, Any]]:
        """Of the final table, the model first."""
        rows: list[dict[str, Any]] = self.values["rows"]
        return rows

    @property
    def sentinel(self) -> list[str]:
        """How the model stands against each of the others, the strongest first, in words."""
        sentences: list[str] = self.values["sentinel"]
        return sentences


def make_report(examination: Examination, title: str, model: Any) -> Report:
    """The report of a test whose models have all been added.

    Args:
        examination: of the answers.
        title: of the page.
        model: the model that is looked at, asked again in other tie orders.
    """
    from recsys.evaluation import html_report
    from recsys.evaluation.cohorts import worst
    from recsys.histories.audit import answers_that_can_move

    judge = examination.judge
    metric = reporting_metric(judge.evaluation.ks)
    name, *_ = examination.frames
    sentences, odd = examination.sentinel(metric), examination.suspicions()
    lines = sentences[:1] + [f"WARNING: {said}" for said in odd]
    cohorts = examination.cohorts_of(name, metric) if judge.evaluation.resamples else []
    if (least := worst(cohorts)) is not None:
        lines.append(
            f"worst cohort: {least.cohort} {least.value} ({least.questions:,} questions), "
            f"{metric_title(metric)} {interval_text(least.interval)}"
        )
    spread = examination.tie_spread(model, judge.evaluation.tie_orders, metric)
    if spread:
        own = examination.rows[0]["metrics"][judge.name("test", metric)]
        ends = [min([own, *spread]), max([own, *spread])]
        moving = answers_that_can_move(judge.store, judge.split)
        if ends[1] > ends[0]:
            lines.append(
                f"in {len(spread)} other orders of events of equal time: {metric_title(metric)} "
                f"{share(ends[0])} to {share(ends[1])}; {moving:,} of the answers can be another "
                "one there, training stays as it is"
            )
    sections = [
        (
            "In short",
            html_report.paragraphs([*sentences, *odd, *lines[len(sentences[:1] + odd) :]]),
        ),
        ("Accuracy", accuracy_table(examination)),
        (
            f"{metric_title(metric)} by cohort",
            html_report.intervals(
                [(f"{c.cohort} {c.value} ({c.questions:,})", c.interval) for c in cohorts],
                zero=False,
            ),
        ),
        ("Beyond accuracy", beyond_table(examination)),
        ("Split audit", html_report.paragraphs([str(finding) for finding in judge.findings])),
    ]
    values = {
        "format": 1,
        "protocol": judge.protocol,
        "in_words": judge.legend,
        "sentinel": sentences,
        "suspicions": odd,
        "cohorts": [asdict(cohort) for cohort in cohorts],
        "tie_orders": spread,
        "audit": [{**asdict(finding), "share": finding.share} for finding in judge.findings],
        "rows": examination.rows,
    }
    legend = f"{judge.legend} · test/{judge.protocol} · {len(judge.split.test):,} questions"
    page = html_report.page(title, legend, [s for s in sections if s[1]])
    return Report(lines, page, values)


def accuracy_table(examination: Examination) -> str:
    """All accuracy metrics of all models, with intervals, as HTML."""
    from recsys.evaluation import html_report

    judge = examination.judge
    names = [f"{metric}_{k}" for k in judge.evaluation.ks for metric in judge.metrics]
    rows = []
    for row in examination.rows:
        cells = [row["model"]]
        for metric in names:
            full = judge.name("test", metric)
            cells.append(_cell(shown(row)[full]))
        rows.append(cells)
    # Models side by side: metrics run down the page.
    titles = ["metric", *(row[0] for row in rows)]
    lines = [
        [metric_title(metric), *(row[place] for row in rows)]
        for place, metric in enumerate(names, start=1)
    ]
    return html_report.table(titles, lines)


def _cell(value: float | str) -> str:
    return value if isinstance(value, str) else share(value)


def beyond_table(examination: Examination) -> str:
    """What the lists of all models are like, as HTML."""
    from recsys.evaluation import html_report

    judge = examination.judge
    metrics = judge.metrics
    k = 10 if 10 in judge.evaluation.ks else max(judge.evaluation.ks)
    prefix = f"test/{judge.protocol}/"
    first = examination.rows[0]["metrics"]
    names = [
        full.removeprefix(prefix)
        for full in first
        if full.endswith(f"_{k}") and full.removeprefix(prefix).rpartition("_")[0] not in metrics
    ]
    lines = [
        [
            metric_title(metric),
            *(_cell(shown(row)[prefix + metric]) for row in examination.rows),
        ]
        for metric in names
    ]
    return html_report.table(["of the lists", *(row["model"] for row in examination.rows)], lines)
