"""The figures of a run: how it was trained, and what a test found, beside the best baseline."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from pipelines.headings import metric_title
from pipelines.judging import file_name

if TYPE_CHECKING:
    import numpy as np

    from pipelines.examining import Examination
    from recsys.evaluation.calibration import Reliability
    from recsys.evaluation.cohorts import Cohort
    from recsys.tracking.run import TrackedRun

MOST_POINTS = 5000  # of the map of items
MOST_NAMES = 12  # written beside them


def draw_examination(examination: Examination, tracked: TrackedRun, metric: str) -> list[str]:
    """Ranks, cohorts and items of a test.

    Args:
        examination: of the answers, the model first.
        tracked: keeps the figures.
        metric: of the cohorts.

    Returns:
        The names of the figures that a page shows.
    """
    from recsys.tracking.figures import rank_curves

    judge = examination.judge
    name, *others = examination.frames
    drawn: list[str] = []
    if judge.evaluation.resamples:
        means = {
            row["model"]: row["metrics"][judge.name("test", metric)] for row in examination.rows
        }
        best = sorted(others, key=lambda other: -means[other])[:1]
        groups = {model: examination.cohorts_of(model, metric) for model in (name, *best)}
        drawn = draw_cohorts(groups, tracked, metric_title(metric))
    ranks = {n: frame["rank"].fill_null(0).to_numpy() for n, frame in examination.frames.items()}
    tracked.figure("figures/ranks.png", rank_curves(f"Ranks, test/{judge.protocol}", ranks))
    drawn.append("figures/ranks.png")
    vectors_VD = examination.around.vectors_VD
    if vectors_VD is not None:
        draw_items(name, vectors_VD, examination, tracked)
        drawn.append("figures/items.png")
    return drawn


def draw_cohorts(
    groups: Mapping[str, Sequence[Cohort]], tracked: TrackedRun, metric: str
) -> list[str]:
    """A figure for each cohort, the model beside what it has to beat.

    Args:
        groups: by model: the means in each part of each cohort, the same parts for all.
        tracked: keeps the figures.
        metric: as it stands in a title.

    Returns:
        The names of those that a page shows: by length of the history and by popularity.
    """
    from recsys.tracking.figures import interval_points

    first = next(iter(groups.values()))
    for cohort in dict.fromkeys(part.cohort for part in first):
        own = [part for part in first if part.cohort == cohort]
        places = [f"{part.value}\n({part.questions:,})" for part in own]
        ends = {
            model: [
                (part.interval.low, part.interval.estimate, part.interval.high)
                for part in parts
                if part.cohort == cohort
            ]
            for model, parts in groups.items()
        }
        title = f"{metric} by {cohort.replace('_', ' ')} (questions)"
        tracked.figure(by(cohort), interval_points(title, places, ends))
    shown = [name for name in ("history_length", "popularity") if name in {p.cohort for p in first}]
    return [by(cohort) for cohort in shown]


def by(cohort: str) -> str:
    """The figure of a cohort."""
    return f"figures/by_{file_name(cohort)}.png"


def draw_items(
    name: str, vectors_VD: np.ndarray, examination: Examination, tracked: TrackedRun
) -> None:
    """The map of the items, the most popular ones with their names."""
    import numpy as np

    from recsys.tracking.figures import item_map

    counts_V = examination.around.counts_V
    # Item 0 is padding. Equals in their order: the picture is the same each time.
    shown = 1 + np.argsort(-counts_V[1:], kind="stable")[:MOST_POINTS]
    raw = examination.judge.store.item_vocabulary.raw(shown[:MOST_NAMES])
    title = f"The items of {name}, those with most training events named"
    if len(shown) < len(counts_V) - 1:
        title = f"The {len(shown):,} most popular items of {name}"
    labels = {row: str(item) for row, item in enumerate(raw)}
    figure = item_map(title, vectors_VD[shown], counts_V[shown], labels)
    tracked.figure("figures/items.png", figure)


def draw_reliability(name: str, curves: Mapping[str, Reliability], tracked: TrackedRun) -> str:
    """The reliability curves of a ranker; the name of the figure."""
    from recsys.tracking.figures import reliability_curve

    tracked.figure("figures/reliability.png", reliability_curve(name, points_of(curves)))
    return "figures/reliability.png"


def points_of(curves: Mapping[str, Reliability]) -> dict[str, tuple[Any, Any]]:
    """Mean probabilities and shares clicked, by curve."""
    return {kind: (c.predicted_S.tolist(), c.clicked_S.tolist()) for kind, c in curves.items()}
