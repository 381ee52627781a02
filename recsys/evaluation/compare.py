"""Two models on the same questions: how far apart, for whom, and how sure.

Everything starts from the files with one row a question that each evaluation leaves. Differences
are a reference model's value less another's, question by question; their intervals come from
drawing users, the same draws for all.

Dimensions: N questions.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
import polars as pl

from recsys.evaluation.click_metrics import Weighting, auc, gauc, log_losses
from recsys.evaluation.cohorts import Cohort, cohort_parts, cohort_table
from recsys.evaluation.intervals import (
    Interval,
    Metric,
    bootstrap_columns,
    bootstrap_gain,
    bootstrap_metric,
    jackknife,
    paired_bootstrap,
    user_groups,
)
from recsys.evaluation.metrics import METRICS

ENOUGH = 1000  # questions that a verdict takes
ENOUGH_USERS = 100  # who asked them
KEYS = ["user", "history_length", "answer", "answers"]
CLICK_KEYS = ["user", "item", "label", "history_length"]
CLICK_METRICS: tuple[Metric, ...] = get_args(Metric)

Verdict = Literal["better", "worse", "no difference shown", "too few"]


class CompareError(ValueError):
    """Answers that cannot be compared. The message says how they differ."""


@dataclass(frozen=True)
class Answers:
    """What one model answered.

    Attributes:
        name: of the model, distinct among those compared.
        protocol: of the questions, as it stands in metric names.
        weighting: what a user counted in the GAUC of its report.
        frame: one row a question, as `per_question_frame` or `per_question_click_frame` gives it.
        own_metrics: names of columns' metrics beside ours, more being better.
    """

    name: str
    protocol: str
    frame: pl.DataFrame
    weighting: Weighting = "impressions"
    own_metrics: tuple[str, ...] = ()

    @property
    def of_clicks(self) -> bool:
        """Whether the questions are clicks."""
        return "label" in self.frame.columns

    def has_column(self, metric: str) -> bool:
        """Whether a metric has one value a question: all but those of clicks that are ours."""
        return not (self.of_clicks and metric in CLICK_METRICS)

    @property
    def users(self) -> np.ndarray:
        """Whose question each one is, by number in the order of the ids [N]."""
        return self.frame["user"].rank("dense").to_numpy()


@dataclass(frozen=True)
class _Draws:
    """How users are drawn."""

    resamples: int
    seed: int
    level: float

    def of(self, values_NM: np.ndarray, users_N: np.ndarray) -> list[Interval]:
        """Means of columns, with intervals."""
        return bootstrap_columns(
            values_NM, users_N, resamples=self.resamples, seed=self.seed, level=self.level
        )


@dataclass(frozen=True)
class Comparison:
    """A reference model beside another.

    Attributes:
        other: the other model's name.
        value: its own mean.
        difference: reference − other.
        relative: the same as a share of the other's mean; None for clicks, or where that is 0.
        wins: questions (of GAUC and AUC: none) where the reference is ahead.
        ties: questions alike.
        losses: questions where it is behind.
        p_holm: p-value of the difference, corrected for the number of comparisons (Holm).
        verdict: on the reference.
        cohorts: the difference in each part of each cohort.
    """

    other: str
    value: Interval
    difference: Interval
    relative: Interval | None
    wins: int
    ties: int
    losses: int
    p_holm: float
    verdict: Verdict
    cohorts: list[Cohort]


def check_same_questions(reference: Answers, other: Answers) -> None:
    """Refuses answers to other questions.

    Raises:
        CompareError: saying how they differ.
    """
    both = f"{reference.name} and {other.name}"
    if reference.of_clicks != other.of_clicks:
        kinds = ["clicks" if a.of_clicks else "next items" for a in (reference, other)]
        raise CompareError(f"{both} answer other kinds of question: {kinds[0]} and {kinds[1]}")
    if reference.weighting != other.weighting:
        raise CompareError(
            f"{both} weigh users otherwise in GAUC (evaluation.gauc_weighting): "
            f"{reference.weighting} and {other.weighting}"
        )
    if _as_full(reference.protocol) != _as_full(other.protocol):
        raise CompareError(
            f"{both} were asked by other protocols: {reference.protocol} and {other.protocol}; "
            "evaluate one of them again as the other was (python -m pipelines.evaluate)"
        )
    keys = CLICK_KEYS if reference.of_clicks else KEYS
    for answers in (reference, other):
        if missing := [key for key in keys if key not in answers.frame.columns]:
            raise CompareError(
                f"the answers of {answers.name} lack the column{'s' * (len(missing) > 1)} "
                f"{', '.join(missing)}: they are of an older format; evaluate the run again "
                "(python -m pipelines.evaluate run=…)"
            )
    ours, theirs = (answers.frame.select(keys) for answers in (reference, other))
    if ours.schema != theirs.schema:
        raise CompareError(f"{both} name users or items by other types: evaluate them on one store")
    if ours.equals(theirs):
        return
    if len(ours) != len(theirs):
        counts = f"{len(ours):,} and {len(theirs):,} questions;"
    else:
        counts = f"{len(ours):,} questions each, of which"
    # As sets with repetitions: questions that only one of them was asked.
    known = [
        frame.with_columns(pl.int_range(pl.len()).over(keys).alias("nth"))
        for frame in (ours, theirs)
    ]
    only = [known[i].join(known[1 - i], on=[*keys, "nth"], how="anti") for i in (0, 1)]
    if not len(only[0]) and not len(only[1]):
        raise CompareError(f"{both} hold the same questions in another order")
    shown = only[0] if len(only[0]) else only[1]
    first = ", ".join(
        f"{key} {value}" for key, value in shown.drop("nth").row(0, named=True).items()
    )
    raise CompareError(
        f"{both} were asked other questions: {counts} {len(only[0]):,} were asked of "
        f"{reference.name} alone and {len(only[1]):,} of {other.name} alone, the first of them "
        f"{first}"
    )


def _as_full(protocol: str) -> str:
    """Lists of some length stand beside the whole catalogue, up to their own length."""
    return re.sub(r"-top\d+-", "-full-", protocol)


def metrics_of(answers: Answers) -> list[str]:
    """The metrics that answers can be compared by: those of accuracy, more being better.

    Of clicks logloss is the one that is less. Of lists that another system made, those that ask for
    no more items than the lists hold.
    """
    if answers.of_clicks:
        own = [name for name in answers.own_metrics if name in answers.frame.columns]
        return [*CLICK_METRICS, *own]
    listed = re.search(r"-top(\d+)-", answers.protocol)
    names = []
    for name in answers.frame.columns:
        metric, _, k = name.rpartition("_")
        known = metric in METRICS or metric in answers.own_metrics
        if known and k.isdigit() and (listed is None or int(k) <= int(listed[1])):
            names.append(name)
    return names


def compare(
    reference: Answers,
    others: Sequence[Answers],
    metric: str,
    *,
    resamples: int = 1000,
    seed: int = 0,
    level: float = 0.95,
    cohorts: bool = True,
) -> tuple[Interval, list[Comparison]]:
    """A reference model beside others.

    Args:
        reference: the model that is looked at.
        others: what it is held against.
        metric: a column of the files with one row a question; of clicks also auc, gauc or logloss.
        resamples: draws of users.
        seed: of the draws.
        level: of the intervals; a difference is a verdict when its corrected p-value is below
            1 − level.
        cohorts: whether to look into the cohorts.

    Returns:
        The reference's own mean, and one comparison for each other.

    Raises:
        CompareError: other questions, no such metric, or so few draws that no difference, however
            clear, could be told.
    """
    if 2 * len(others) >= (1 - level) * (resamples + 1):
        needed = int(2 * len(others) / (1 - level)) + 1
        raise CompareError(
            f"resamples={resamples} cannot tell any of {len(others)} differences at level {level}: "
            f"take at least {needed:,}"
        )
    for answers in others:
        check_same_questions(reference, answers)
    for answers in (reference, *others):
        if metric not in (known := metrics_of(answers)):
            raise CompareError(
                f"metric={metric} is not among what {answers.name} was measured by: "
                f"{', '.join(known)}"
            )
    draws = _Draws(resamples, seed, level)
    held = [_beside(reference, other, metric, draws) for other in others]
    corrected = holm([difference.p_value for _, difference, _ in held])
    enough = len(reference.frame) >= ENOUGH and reference.frame["user"].n_unique() >= ENOUGH_USERS
    found = []
    for other, (value, difference, moved_N), p in zip(others, held, corrected, strict=True):
        relative = None
        if not reference.of_clicks:
            ours_N, theirs_N = (a.frame[metric].to_numpy() for a in (reference, other))
            relative = bootstrap_gain(
                ours_N, theirs_N, reference.users, resamples=resamples, seed=seed, level=level
            )
        verdict: Verdict = "no difference shown"
        if not enough:
            verdict = "too few"
        elif p < 1 - level:
            verdict = "better" if (difference.estimate > 0) != (metric == "logloss") else "worse"
        ahead = -moved_N if metric == "logloss" else moved_N
        found.append(
            Comparison(
                other=other.name,
                value=value,
                difference=difference,
                relative=relative,
                wins=int((ahead > 0).sum()),
                ties=int((ahead == 0).sum()),
                losses=int((ahead < 0).sum()),
                p_holm=p,
                verdict=verdict,
                cohorts=_cohorts(reference, other, metric, moved_N, draws) if cohorts else [],
            )
        )
    own = _own(reference, metric, draws)
    return own, found


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's step-down correction of p-values (Scand. J. Statist. 6, 1979).

    >>> holm([0.01, 0.04, 0.03])
    [0.03, 0.06, 0.06]
    """
    order = sorted(range(len(p_values)), key=lambda i: p_values[i])
    corrected, highest = [0.0] * len(p_values), 0.0
    for place, i in enumerate(order):
        highest = max(highest, min(1.0, (len(p_values) - place) * p_values[i]))
        corrected[i] = highest
    return corrected


def _cohorts(
    reference: Answers, other: Answers, metric: str, moved_N: np.ndarray, draws: _Draws
) -> list[Cohort]:
    """The difference in each part; of AUC and GAUC in those where it is defined."""
    if len(moved_N):
        return cohort_table(
            reference.frame,
            moved_N,
            resamples=draws.resamples,
            seed=draws.seed,
            level=draws.level,
        )
    columns = [reference.frame["label"].to_numpy(), reference.users]
    columns += [answers.frame["score"].to_numpy() for answers in (reference, other)]
    found = []
    for cohort, names, parts_NM in cohort_parts(reference.frame):
        for name, part_N in zip(names, parts_NM.T, strict=True):
            labels, users, ours, theirs = (column[part_N] for column in columns)
            if metric == "auc":
                interval = _auc_ahead(labels, users, ours, theirs, draws)
            elif np.isnan(gauc(labels, ours, users, reference.weighting)):
                interval = None
            else:
                interval = paired_bootstrap(
                    labels,
                    users,
                    ours,
                    theirs,
                    "gauc",
                    weighting=reference.weighting,
                    resamples=draws.resamples,
                    seed=draws.seed,
                    level=draws.level,
                )
            if interval is not None:
                found.append(Cohort(cohort, name, len(labels), interval))
    return found


def _auc_ahead(
    labels_N: np.ndarray,
    users_N: np.ndarray,
    ours_N: np.ndarray,
    theirs_N: np.ndarray,
    draws: _Draws,
) -> Interval | None:
    """A difference of AUCs by leaving out groups of users, a twentieth of the price of drawing.

    Returns:
        None where there is no AUC; from −1 to 1 where there is none without some group.
    """

    def ahead(rows: np.ndarray) -> float:
        return auc(labels_N[rows], ours_N[rows]) - auc(labels_N[rows], theirs_N[rows])

    group_N = user_groups(users_N, seed=draws.seed)
    rests = [np.flatnonzero(group_N != group) for group in range(group_N.max() + 1)]
    estimate = ahead(np.arange(len(labels_N)))
    if np.isnan(estimate):
        return None
    without_G = np.array([ahead(rest) for rest in rests if len(rest)])
    unknown = Interval(estimate, -1.0, 1.0)
    return jackknife(estimate, without_G, level=draws.level, least=-1.0) or unknown


def moved_most(
    reference: Answers, other: Answers, metric: str, count: int = 5
) -> tuple[pl.DataFrame, pl.DataFrame]:
    """The users who gain most and lose most from the other model to the reference.

    By the mean of the metric over their questions, ties settled by the change in rank of the
    answer, then by the user's id. Of clicks by mean logloss whatever the metric: an AUC is no mean
    over a user's questions. A loss that falls is a gain.

    Returns:
        Two frames of at most `count` rows: `user`, `questions`, `difference`, and of next items
        `rank` and `rank_other` (of the user's first question; null is a miss).
    """
    if reference.of_clicks:
        return _moved_clicks(reference, other, count)
    rows = reference.frame.select(
        "user",
        "rank",
        rank_other=other.frame["rank"],
        difference=reference.frame[metric] - other.frame[metric],
    )
    users = (
        rows.group_by("user", maintain_order=True)
        .agg(
            pl.len().alias("questions"),
            pl.col("difference").mean(),
            pl.col("rank").first(),
            pl.col("rank_other").first(),
        )
        .with_columns(
            gained=pl.col("rank_other").fill_null(1 << 40) - pl.col("rank").fill_null(1 << 40)
        )
    )
    columns = ["user", "questions", "difference", "rank", "rank_other"]
    up = users.filter(pl.col("difference") > 0).sort(
        ["difference", "gained", "user"], descending=[True, True, False]
    )
    down = users.filter(pl.col("difference") < 0).sort(["difference", "gained", "user"])
    return up.head(count).select(columns), down.head(count).select(columns)


def _moved_clicks(
    reference: Answers, other: Answers, count: int
) -> tuple[pl.DataFrame, pl.DataFrame]:
    labels_N = reference.frame["label"].to_numpy()
    ours_N, theirs_N = (
        log_losses(labels_N, answers.frame["score"].to_numpy()) for answers in (reference, other)
    )
    users = (
        reference.frame.select("user", difference=pl.Series(ours_N - theirs_N))
        .group_by("user", maintain_order=True)
        .agg(pl.len().alias("questions"), pl.col("difference").mean())
    )
    gain = users.filter(pl.col("difference") < 0).sort(["difference", "user"])
    lose = users.filter(pl.col("difference") > 0).sort(
        ["difference", "user"], descending=[True, False]
    )
    return gain.head(count), lose.head(count)


def _beside(
    reference: Answers, other: Answers, metric: str, draws: _Draws
) -> tuple[Interval, Interval, np.ndarray]:
    """The other's mean, the difference, and the differences of the questions."""
    if reference.has_column(metric):
        values_N = other.frame[metric].to_numpy()
        moved_N = reference.frame[metric].to_numpy() - values_N
        value, difference = draws.of(np.column_stack([values_N, moved_N]), reference.users)
        return value, difference, moved_N
    labels_N = reference.frame["label"].to_numpy()
    ours_N, theirs_N = (answers.frame["score"].to_numpy() for answers in (reference, other))
    difference = paired_bootstrap(
        labels_N,
        reference.users,
        ours_N,
        theirs_N,
        _click_metric(metric),
        weighting=reference.weighting,
        resamples=draws.resamples,
        seed=draws.seed,
        level=draws.level,
    )
    moved_N = np.empty(0)
    if metric == "logloss":
        moved_N = log_losses(labels_N, ours_N) - log_losses(labels_N, theirs_N)
    return _own(other, metric, draws), difference, moved_N


def _own(answers: Answers, metric: str, draws: _Draws) -> Interval:
    frame = answers.frame
    if answers.has_column(metric):
        return draws.of(frame[metric].to_numpy()[:, None], answers.users)[0]
    return bootstrap_metric(
        frame["label"].to_numpy(),
        answers.users,
        frame["score"].to_numpy(),
        _click_metric(metric),
        weighting=answers.weighting,
        resamples=draws.resamples,
        seed=draws.seed,
        level=draws.level,
    )


def _click_metric(name: str) -> Metric:
    return CLICK_METRICS[CLICK_METRICS.index(name)]
