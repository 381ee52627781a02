"""Whether a challenger may take the champion's place: shown to lose no more than a margin.

Both answered the same questions. δ is how far the mean of the challenger is ahead (of a loss:
below) over all questions, and in every part of the guarded cohorts. Each δ has the hypothesis "the
challenger is worse here by more than the margin", δ < −margin. Its p-value is the share of draws of
users in which the difference is at or below −margin, the sample itself counting as one of them.
Holm's procedure corrects for the number m of parts, and the challenger is promoted if every
hypothesis is rejected at 1 − level. In other words: with the parts sorted by p-value, the lower
bound of the i-th difference, one-sided at 1 − (1 − level) / (m − i + 1), lies above −margin, for
all i from 1 to m.

Where any part is truly worse than that, a promotion takes that its own hypothesis is rejected,
which Holm does with a probability of at most 1 − level. (Since all must be rejected, single tests
would keep that bound without a correction; with it each part's verdict can be read by itself.) The
bound is as good as the bootstrap, so two things are done about small numbers. Where losses are rare
and large the percentiles of a bootstrap promise too much; the bound is then read further down, by
the acceleration of BCa (Efron 1987), and never further up. And what is lost in fewer than about 3
of N questions is often in none of the N: to this rule two models that answer every question alike
are alike.

Dimensions: N questions, R draws of users, U users.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Literal

import numpy as np

from recsys.evaluation.click_metrics import auc, gauc, log_losses, logloss
from recsys.evaluation.cohorts import PREFIX, parts_of
from recsys.evaluation.compare import (
    CLICK_METRICS,
    ENOUGH,
    ENOUGH_USERS,
    Answers,
    CompareError,
    check_same_questions,
    holm,
    metrics_of,
)
from recsys.evaluation.intervals import Drawn, drawn_difference, drawn_parts

OVERALL = "overall"
_ROUNDING = 1e-12  # differences that cancel, and shares, need not be exact to the last bit

Held = Literal["holds", "not shown", "not judged"]


@dataclass(frozen=True)
class Guarded:
    """A part of the questions in which the challenger must not lose.

    Attributes:
        cohort: its name, "overall" for all questions.
        value: which part of the cohort; "" overall.
        questions: how many.
        users: who asked them.
        ahead: how far the challenger's mean is ahead; NaN where it is not defined.
        bound: lower bound of `ahead` at the level of Holm's step; None where it is not judged.
        p_holm: corrected p-value of "worse by more than the margin"; None likewise.
        verdict: "holds": shown to lose no more than the margin; "not shown"; or "not judged".
        why: it was not judged; else "".
    """

    cohort: str
    value: str
    questions: int
    users: int
    ahead: float
    bound: float | None
    p_holm: float | None
    verdict: Held
    why: str = ""

    @property
    def name(self) -> str:
        """In words."""
        return f"{self.cohort} {self.value}".strip()


@dataclass(frozen=True)
class Decision:
    """What becomes of a challenger.

    Attributes:
        metric: that was compared.
        margin: what it may lose.
        level: of the lower bounds.
        parts: all questions first, then the parts of the guarded cohorts.
    """

    metric: str
    margin: float
    level: float
    parts: list[Guarded]

    @property
    def promoted(self) -> bool:
        """Whether nothing that can be judged stands in the way, and the whole can be judged."""
        judged = [part.verdict for part in self.parts if part.verdict != "not judged"]
        return self.parts[0].verdict == "holds" and set(judged) == {"holds"}

    @property
    def reason(self) -> str:
        """Why, in words."""
        overall, *parts = self.parts
        if overall.verdict == "not judged":
            return overall.why
        open_ = [part for part in self.parts if part.verdict == "not shown"]
        if open_:
            named = ", ".join(
                f"{part.name} ({part.ahead:+.4f}, at least {part.bound:+.4f})" for part in open_
            )
            return f"not shown to lose at most {self.margin:g} {self.metric}: {named}"
        judged = sum(part.verdict == "holds" for part in parts)
        also = f" and in {judged} guarded part{'s' * (judged != 1)}" if judged else ""
        aside = len(parts) - judged
        left = f"; {aside} guarded part{'s' * (aside != 1)} not judged" if aside else ""
        return f"loses at most {self.margin:g} {self.metric} overall{also}{left}"


def decide(
    challenger: Answers,
    champion: Answers,
    metric: str,
    *,
    cohorts: Sequence[str] = (),
    margin: float = 0.0,
    level: float = 0.95,
    resamples: int = 10_000,
    seed: int = 0,
) -> Decision:
    """Whether the challenger may take the champion's place.

    Args:
        challenger: its answers, with a column for each of the cohorts.
        champion: the answers to the same questions.
        metric: a column of the files with one row a question; of clicks also auc, gauc or logloss.
        cohorts: whose every part is guarded. Parts under the numbers that a verdict takes
            (`ENOUGH`, `ENOUGH_USERS`) are listed and not judged.
        margin: what the challenger may lose, in the metric's own units.
        level: of the lower bounds.
        resamples: draws of users.
        seed: of the draws.

    Raises:
        CompareError: other questions, no such metric or cohort, a margin or level out of range, or
            so few draws that nothing could be shown.
    """
    check_numbers(margin, level)
    check_same_questions(challenger, champion)
    for answers in (challenger, champion):
        _check_metric(answers, metric)
    check_guards(challenger, cohorts)
    N = len(challenger.frame)
    rows = {(OVERALL, ""): np.ones(N, dtype=bool)}
    for cohort in cohorts:
        # A part that is everything is tested already.
        named = parts_of(challenger.frame, cohort).items()
        rows |= {(cohort, name): part_N for name, part_N in named if not part_N.all()}
    users = challenger.users
    asked_by = [len(np.unique(users[part_N])) for part_N in rows.values()]
    whys = [
        _too_few(int(part_N.sum()), by) for part_N, by in zip(rows.values(), asked_by, strict=True)
    ]
    alpha = 1 - level + _ROUNDING
    strictest = alpha / max(1, whys.count(""))
    if not whys[0] and _below(strictest, resamples) < 1:
        raise CompareError(
            f"resamples={resamples} can show nothing of {whys.count('')} differences at level "
            f"{level}: take at least {math.ceil(1 / strictest):,}"
        )
    drawn = list(_ahead(challenger, champion, metric, list(rows.values()), resamples, seed))
    whys = [
        why or "the metric is not defined here" * math.isnan(d.estimate)
        for why, d in zip(whys, drawn, strict=True)
    ]
    judged = [i for i, why in enumerate(whys) if not why]
    lean = _lean(challenger, champion, metric, list(rows.values()))
    same = [_alike(challenger, champion, metric, part_N) for part_N in rows.values()]
    p_values = [
        _careful(_p_value(drawn[i].draws_R, margin, same[i]), lean[i], backwards=True)
        for i in judged
    ]
    corrected = dict(zip(judged, holm(p_values), strict=True))
    steps = dict(zip(judged, _steps(p_values, alpha), strict=True))
    found = []
    for i, ((cohort, value), part_N) in enumerate(rows.items()):
        bound, verdict = None, "not judged"
        if i in corrected:
            bound = _bound(drawn[i].draws_R, _careful(steps[i], lean[i]))
            verdict = "holds" if corrected[i] <= alpha else "not shown"
        found.append(
            Guarded(
                cohort=cohort,
                value=value,
                questions=int(part_N.sum()),
                users=asked_by[i],
                ahead=drawn[i].estimate,
                bound=bound,
                p_holm=corrected.get(i),
                verdict=verdict,  # type: ignore[arg-type]
                why=whys[i],
            )
        )
    return Decision(metric, margin, level, found)


def check_numbers(margin: float, level: float) -> None:
    """Refuses a margin or level out of range.

    Raises:
        CompareError: naming it.
    """
    if not (math.isfinite(margin) and margin >= 0):
        raise CompareError(f"margin must be a number from 0, not {margin}")
    if not 0 < level < 1:
        raise CompareError(f"level must be between 0 and 1, not {level}")


def _check_metric(answers: Answers, metric: str) -> None:
    if metric not in (known := metrics_of(answers)):
        raise CompareError(
            f"metric={metric} is not among what {answers.name} was measured by: {', '.join(known)}"
        )


def mean_of(answers: Answers, metric: str) -> float:
    """A metric of one model's answers.

    Raises:
        CompareError: it was not measured.
    """
    _check_metric(answers, metric)
    frame = answers.frame
    if answers.has_column(metric):
        return float(frame[metric].to_numpy().mean())
    labels_N, scores_N = frame["label"].to_numpy(), frame["score"].to_numpy()
    if metric == "gauc":
        return gauc(labels_N, scores_N, answers.users, answers.weighting)
    return (auc if metric == "auc" else logloss)(labels_N, scores_N)


def check_guards(answers: Answers, cohorts: Sequence[str]) -> None:
    """Refuses cohorts that the answers were not looked at in.

    Raises:
        CompareError: naming the nearest.
    """
    known = [c.removeprefix(PREFIX) for c in answers.frame.columns if c.startswith(PREFIX)]
    for cohort in cohorts:
        if cohort not in known:
            near = difflib.get_close_matches(cohort, known, n=1)
            hint = f"did you mean '{near[0]}'?" if near else f"it has {', '.join(known) or 'none'};"
            raise CompareError(
                f"cohorts: the test of {answers.name} was not looked at by '{cohort}'; {hint} "
                f"evaluate it again with evaluation.cohorts=[…] to have others"
            )


def _too_few(questions: int, users: int) -> str:
    if questions >= ENOUGH and users >= ENOUGH_USERS:
        return ""
    return (
        f"too few: {questions:,} questions of {users:,} users, and a verdict takes {ENOUGH:,} of "
        f"{ENOUGH_USERS:,}"
    )


def _ahead(
    challenger: Answers,
    champion: Answers,
    metric: str,
    parts: Sequence[np.ndarray],
    resamples: int,
    seed: int,
) -> Iterator[Drawn]:
    """How far the challenger is ahead in each part, and in draws of users."""
    if challenger.has_column(metric) or metric == "logloss":
        moved_N = _moved(challenger, champion, metric)
        yield from drawn_parts(
            moved_N, np.column_stack(parts), challenger.users, resamples=resamples, seed=seed
        )
        return
    labels_N = challenger.frame["label"].to_numpy()
    ours_N, theirs_N = (answers.frame["score"].to_numpy() for answers in (challenger, champion))
    for part_N in parts:
        yield drawn_difference(
            labels_N[part_N],
            challenger.users[part_N],
            ours_N[part_N],
            theirs_N[part_N],
            CLICK_METRICS[CLICK_METRICS.index(metric)],
            weighting=challenger.weighting,
            resamples=resamples,
            seed=seed,
        )


def _moved(challenger: Answers, champion: Answers, metric: str) -> np.ndarray:
    """How far the challenger is ahead in each question, of metrics that are means [N]."""
    frames = challenger.frame, champion.frame
    if challenger.has_column(metric):
        ours_N, theirs_N = (frame[metric].to_numpy() for frame in frames)
        return np.asarray(ours_N - theirs_N)
    labels_N = challenger.frame["label"].to_numpy()
    ours_N, theirs_N = (log_losses(labels_N, frame["score"].to_numpy()) for frame in frames)
    return np.asarray(theirs_N - ours_N)


def _alike(challenger: Answers, champion: Answers, metric: str, part_N: np.ndarray) -> bool:
    """Whether both answer every question of a part alike."""
    column = metric if challenger.has_column(metric) else "score"
    ours_N, theirs_N = (a.frame[column].to_numpy()[part_N] for a in (challenger, champion))
    return np.array_equal(ours_N, theirs_N)


def _p_value(draws_R: np.ndarray, margin: float, alike: bool) -> float:
    """Of "worse by more than the margin".

    Draws at −margin count against the challenger: with margin 0, a handful of questions that
    differ must not pass because most draws hold none of them. Where none differs there is nothing
    to lose.
    """
    below = 0 if alike else int((draws_R <= -margin + _ROUNDING).sum())
    return (below + 1) / (len(draws_R) + 1)


def _lean(
    challenger: Answers, champion: Answers, metric: str, parts: Sequence[np.ndarray]
) -> list[float]:
    """BCa's acceleration of each part's mean where it is negative: rare and large losses.

    AUC and GAUC, whose differences hang on many pairs each, have none.
    """
    if not challenger.has_column(metric) and metric != "logloss":
        return [0.0] * len(parts)
    moved_N = _moved(challenger, champion, metric)
    found = []
    for part_N in parts:
        _, user = np.unique(challenger.users[part_N], return_inverse=True)
        values = moved_N[part_N]
        influence_U = np.bincount(user, weights=values - values.mean())
        spread = float((influence_U**2).sum())
        lean = float((influence_U**3).sum()) / (6 * spread**1.5) if spread else 0.0
        found.append(min(lean, 0.0))
    return found


def _careful(error: float, lean: float, backwards: bool = False) -> float:
    """The percentile at which an error of this size is read (BCa with its bias equal to `lean`).

    Args:
        error: between 0 and 1.
        lean: of `_lean`.
        backwards: the error that reading at this percentile makes.
    """
    if not lean or not 0 < error < 1:
        return error
    normal = NormalDist()
    z = normal.inv_cdf(error)
    if backwards:
        stretched = (z - lean) / (1 + lean * (z - lean))
        return normal.cdf(stretched - lean)
    return normal.cdf(lean + (lean + z) / (1 - lean * (lean + z)))


def _steps(p_values: Sequence[float], alpha: float) -> list[float]:
    """The error that Holm allows each; from the first that is not rejected on, the same."""
    order = sorted(range(len(p_values)), key=lambda i: p_values[i])
    allowed, step, going = [0.0] * len(p_values), 0.0, True
    for place, i in enumerate(order):
        if going:
            step = alpha / (len(p_values) - place)
            going = p_values[i] <= step
        allowed[i] = step
    return allowed


def _below(error: float, draws: int) -> int:
    """How many draws, the sample itself among them, may lie at or below the bound."""
    return math.floor(error * (draws + 1))


def _bound(draws_R: np.ndarray, error: float) -> float:
    """The lower bound: above −margin exactly where the p-value is at most `error`."""
    return float(draws_R[max(_below(error, len(draws_R)), 1) - 1])
