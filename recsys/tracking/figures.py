"""Figures of a run: curves over time, answers in parts, beside what they have to beat.

Drawn with Matplotlib's object interface and the Agg canvas: no window, no global state.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito: told apart by colour-blind readers too. The model's own line is the first.
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#666666")


def loss_curve(
    steps: Sequence[float],
    losses: Sequence[float],
    *,
    smoothing: float = 0.9,
    epoch_ends: Sequence[float] = (),
) -> Figure:
    """Training loss over steps: the points pale, their moving average strong.

    Args:
        steps: of each point.
        losses: at these steps; points that are not finite leave gaps.
        smoothing: share of the past in the moving average, 0 ≤ smoothing < 1. It is started
            without bias, so the first value is the first loss.
        epoch_ends: steps to mark with a thin line.

    Raises:
        ValueError: steps and losses differ in number.
    """
    _same_length(steps, losses)
    figure, axes = _new_figure("Training loss")
    axes.plot(steps, losses, color=_COLOURS[0], alpha=0.3, linewidth=0.8)
    smooth = moving_average(losses, smoothing)
    axes.plot(steps, smooth, color=_COLOURS[0], linewidth=1.8, label="moving average")
    for end in epoch_ends if len(epoch_ends) <= 60 else ():
        axes.axvline(end, color="#cccccc", linewidth=0.5, zorder=0)
    axes.set_xlabel("step")
    axes.set_ylabel("loss")
    return figure


def metric_curve(
    name: str,
    epochs: Sequence[float],
    values: Sequence[float],
    *,
    baselines: Mapping[str, float] | None = None,
    best_epoch: float | None = None,
    model: str = "model",
) -> Figure:
    """A validation metric over epochs, with one line per baseline.

    Args:
        name: full name of the metric, with its protocol.
        epochs: of each value.
        values: of the model at these epochs.
        baselines: name → value of the same metric on the same questions.
        best_epoch: marked: the checkpoint that was kept.
        model: name of the model, for the legend.

    Raises:
        ValueError: epochs and values differ in number.
    """
    _same_length(epochs, values)
    figure, axes = _new_figure(name)
    few = len(values) <= 60
    axes.plot(
        epochs,
        values,
        color=_COLOURS[0],
        linewidth=1.8,
        marker="o" if few else None,
        markersize=3.5,
        label=model,
    )
    # Best baseline first, so that the legend reads like the drawing, from top to bottom.
    ranked = sorted((baselines or {}).items(), key=lambda pair: -pair[1])
    for number, (baseline, value) in enumerate(ranked):
        colour = _COLOURS[1 + number % (len(_COLOURS) - 1)]
        axes.axhline(
            value, color=colour, linewidth=1.2, linestyle="--", label=f"{baseline} {value:.4f}"
        )
    if best_epoch is not None and best_epoch in list(epochs):
        best = values[list(epochs).index(best_epoch)]
        axes.plot(
            [best_epoch],
            [best],
            linestyle="none",
            marker="*",
            markersize=13,
            color=_COLOURS[0],
            label=f"kept: epoch {best_epoch:g}, {best:.4f}",
        )
    axes.set_xlabel("epoch")
    axes.set_ylabel(name.rsplit("/", 1)[-1])
    axes.legend(loc="center left", bbox_to_anchor=(1.01, 0.5), frameon=False, fontsize=9)
    return figure


def interval_curve(
    name: str,
    places: Sequence[str],
    curves: Mapping[str, Sequence[tuple[float, float, float] | None]],
) -> Figure:
    """A metric over places in order, each value with its interval.

    Args:
        name: of the metric.
        places: what each value stands for, in words.
        curves: by name: low end, value and high end at each place; None where there is none.
    """
    figure, axes = _new_figure(name)
    for number, (curve, values) in enumerate(curves.items()):
        known = [(x, *ends) for x, ends in enumerate(values) if ends is not None]
        if not known:
            continue
        x, low, middle, high = (list(column) for column in zip(*known, strict=True))
        colour = _COLOURS[number % len(_COLOURS)]
        axes.plot(x, middle, color=colour, marker="o", markersize=3.5, label=curve)
        axes.fill_between(x, low, high, color=colour, alpha=0.15, linewidth=0)
    axes.set_xticks(range(len(places)), places, rotation=20, ha="right", fontsize=8)
    axes.legend(frameon=False, fontsize=9)
    return figure


def reliability_curve(
    name: str, curves: Mapping[str, tuple[Sequence[float], Sequence[float]]]
) -> Figure:
    """How often was clicked what was given some probability; the diagonal is perfect.

    Args:
        name: of the model.
        curves: by name: mean probabilities and shares clicked.
    """
    figure, axes = _new_figure(name)
    axes.plot([0, 1], [0, 1], color="#999999", linewidth=0.8, linestyle="--")
    for number, (curve, (predicted, clicked)) in enumerate(curves.items()):
        colour = _COLOURS[number % len(_COLOURS)]
        axes.plot(predicted, clicked, color=colour, marker="o", markersize=3.5, label=curve)
    axes.set_xlabel("probability given")
    axes.set_ylabel("share clicked")
    axes.legend(frameon=False, fontsize=9)
    return figure


def interval_points(
    name: str,
    places: Sequence[str],
    groups: Mapping[str, Sequence[tuple[float, float, float]]],
) -> Figure:
    """A metric in parts that have no order of their own: a point and its interval for each.

    Args:
        name: of the metric, and of what makes the parts.
        places: the parts.
        groups: by name, the model first: low end, value and high end in each part.

    Raises:
        ValueError: not one value for each part.
    """
    figure, axes = _new_figure(name)
    for number, (group, values) in enumerate(groups.items()):
        _same_length(places, values)
        low, middle, high = ([ends[i] for ends in values] for i in range(3))
        beside = 0.16 * (number - (len(groups) - 1) / 2)
        axes.errorbar(
            [place + beside for place in range(len(places))],
            middle,
            yerr=(_gaps(middle, low), _gaps(high, middle)),
            color=_COLOURS[number % len(_COLOURS)],
            linestyle="none",
            marker="o",
            markersize=5,
            capsize=3,
            label=group,
        )
    axes.set_xticks(range(len(places)), places, fontsize=8)
    if len(places) > 6:
        axes.tick_params("x", rotation=30)
    axes.legend(loc="center left", bbox_to_anchor=(1.01, 0.5), frameon=False, fontsize=9)
    return figure


def _gaps(high: Sequence[float], low: Sequence[float]) -> list[float]:
    """How far apart; rounding may put an end on the wrong side of its mean."""
    return [max(a - b, 0.0) for a, b in zip(high, low, strict=True)]


def rank_curves(name: str, ranks: Mapping[str, Sequence[int] | np.ndarray]) -> Figure:
    """Share of the questions whose answer stands at some rank or before it, over the ranks.

    Args:
        name: of the figure.
        ranks: by model, the model of the run first: rank of each answer, 0 where it was missed.
    """
    import numpy as np

    figure, axes = _new_figure(name)
    for number, (model, found) in enumerate(ranks.items()):
        ranks_N = np.asarray(found)
        known, counts = np.unique(ranks_N[ranks_N > 0], return_counts=True)
        reached = np.cumsum(counts) / max(len(found), 1)
        axes.step(
            known,
            reached,
            where="post",
            color=_COLOURS[number % len(_COLOURS)],
            linewidth=1.8 if number == 0 else 1.0,
            label=model,
            zorder=3 if number == 0 else 2,
        )
    axes.set_xscale("log")
    axes.grid(visible=True, axis="x", color="#e6e6e6", linewidth=0.8)
    axes.set_ylim(0, None)
    axes.set_xlabel("rank")
    axes.set_ylabel("share of answers at this rank or before")
    axes.legend(frameon=False, fontsize=9)
    return figure


def item_map(
    name: str, vectors_VD: np.ndarray, counts_V: np.ndarray, labels: Mapping[int, str]
) -> Figure:
    """Items in the two directions in which their vectors differ most, coloured by popularity.

    Args:
        name: of the figure.
        vectors_VD: of the items that are drawn.
        counts_V: training events of each.
        labels: row → what is written beside it.
    """
    import numpy as np
    from matplotlib.colors import LogNorm

    places_V2, shares = principal_plane(vectors_VD)
    figure, axes = _new_figure(name)
    axes.grid(visible=False)
    order = np.argsort(counts_V, kind="stable")  # popular ones are drawn last, on top
    counted = np.maximum(counts_V[order], 1)
    drawn = axes.scatter(
        places_V2[order, 0],
        places_V2[order, 1],
        c=counted,
        norm=LogNorm(1, max(int(counted.max(initial=1)), 2)),
        cmap="viridis",
        s=9,
        linewidths=0,
    )
    for row, label in labels.items():
        axes.annotate(
            label,
            (float(places_V2[row, 0]), float(places_V2[row, 1])),
            xytext=(4, 3),
            textcoords="offset points",
            fontsize=8,
        )
    figure.colorbar(drawn, ax=axes, label="training events")
    axes.set_xlabel(f"first direction, {shares[0]:.0%} of the variance")
    axes.set_ylabel(f"second, {shares[1]:.0%}")
    return figure


def principal_plane(vectors_VD: np.ndarray) -> tuple[np.ndarray, tuple[float, float]]:
    """Coordinates in the first two principal components, and the share of variance in each.

    The same vectors give the same picture: each direction points to where its largest weight is
    positive.
    """
    import numpy as np

    centred_VD = vectors_VD.astype(np.float64) - vectors_VD.mean(0)
    variances_D, directions_DD = np.linalg.eigh(centred_VD.T @ centred_VD)
    first_D2 = directions_DD[:, ::-1][:, :2]
    largest_2 = first_D2[np.abs(first_D2).argmax(0), range(first_D2.shape[1])]
    places_V2 = np.zeros((len(vectors_VD), 2))
    places_V2[:, : first_D2.shape[1]] = centred_VD @ (first_D2 * np.sign(largest_2))
    total = max(float(variances_D.sum()), 1e-30)
    shares = [*(float(v) / total for v in variances_D[::-1][:2]), 0.0]
    return places_V2, (shares[0], shares[1])


def importance_bars(metric: str, weights: Mapping[str, float]) -> Figure:
    """What tells the best trials of a study from the others, the heaviest on top.

    Args:
        metric: what the trials were compared by.
        weights: by setting; shares of one.
    """
    figure, axes = _new_figure(f"importance for {metric}")
    ranked = sorted(weights.items(), key=lambda pair: pair[1])
    bars = axes.barh([key for key, _ in ranked], [w for _, w in ranked], color=_COLOURS[0])
    axes.bar_label(bars, fmt="%.2f", padding=3, fontsize=8)
    axes.grid(visible=False, axis="y")
    axes.set_xlim(0, 1.1 * max(weights.values(), default=1.0))
    axes.set_xlabel("share")
    return figure


def parallel_coordinates(
    metric: str,
    settings: Mapping[str, Sequence[object]],
    scores: Sequence[float],
    *,
    logarithmic: Sequence[str] = (),
    smaller_is_better: bool = False,
) -> Figure:
    """The trials of a study: an axis for each setting and one for the score, a line for each trial.

    The best trial is strong, the best quarter blue, the others pale.

    Args:
        metric: what the scores are.
        settings: by name, the value of each trial; numbers, or words as categories.
        scores: of the trials.
        logarithmic: settings whose axis is logarithmic.
        smaller_is_better: of the scores.

    Raises:
        ValueError: settings and scores differ in number.
    """
    columns: list[tuple[str, Sequence[object]]] = [*settings.items(), (metric, scores)]
    for _, values in columns:
        _same_length(values, scores)
    figure, axes = _new_figure(metric)
    places = [_places(values, name in logarithmic) for name, values in columns]
    order = sorted(range(len(scores)), key=lambda i: scores[i], reverse=smaller_is_better)
    strong = max(1, len(order) // 4)
    for rank, trial in enumerate(order):  # the best last, on top
        left = len(order) - rank
        colour, width, alpha = "#bbbbbb", 0.8, 0.7
        if left <= strong:
            colour, width, alpha = _COLOURS[0], 1.2, 0.8
        if left == 1:
            colour, width, alpha = _COLOURS[1], 2.2, 1.0
        line = [heights[trial] for heights, _ in places]
        label = {strong: "the best quarter", 1: "the best trial"}.get(left)
        axes.plot(line, color=colour, linewidth=width, alpha=alpha, label=label)
    for x, (_, ticks) in enumerate(places):
        axes.axvline(x, color="#666666", linewidth=0.8)
        for text, height in ticks.items():
            axes.annotate(text, (x, height), (4, 0), textcoords="offset points", fontsize=7)
    titles = [name.rpartition("." if name in settings else "/")[2] for name, _ in columns]
    axes.set_xticks(range(len(columns)), titles, fontsize=8)
    axes.set_yticks([])
    axes.grid(visible=False)
    axes.spines["left"].set_visible(False)
    axes.legend(loc="upper left", bbox_to_anchor=(1.01, 1), frameon=False, fontsize=9)
    return figure


def _places(values: Sequence[object], logarithmic: bool) -> tuple[list[float], dict[str, float]]:
    """The height of each value between 0 and 1, and of what is written beside the axis.

    >>> _places([1, 100, 10], True)
    ([0.0, 1.0, 0.5], {'1': 0.0, '100': 1.0})
    >>> _places(["b", "a", "b"], False)
    ([1.0, 0.0, 1.0], {'a': 0.0, 'b': 1.0})
    """
    numbers = [v for v in values if isinstance(v, int | float) and not isinstance(v, bool)]
    if len(numbers) < len(values) or not numbers:
        words = sorted({str(value) for value in values})
        heights = {word: i / max(1, len(words) - 1) for i, word in enumerate(words)}
        return [heights[str(value)] for value in values], heights
    scaled = [math.log10(n) for n in numbers] if logarithmic else [float(n) for n in numbers]
    low, high = min(scaled), max(scaled)
    width = (high - low) or 1.0
    ends = {f"{min(numbers):.3g}": 0.0, f"{max(numbers):.3g}": (high - low) / width}
    return [(value - low) / width for value in scaled], ends


def moving_average(values: Sequence[float], smoothing: float) -> list[float]:
    """Exponential moving average, each value divided by the weight it has gathered so far.

    >>> moving_average([2.0, 4.0], 0.5)
    [2.0, 3.3333333333333335]
    """
    assert 0 <= smoothing < 1, smoothing
    result, total, weight = [], 0.0, 0.0
    for value in values:
        if abs(value) < float("inf"):  # False for NaN: one bad batch must not blank the rest
            total = smoothing * total + (1 - smoothing) * value
            weight = smoothing * weight + (1 - smoothing)
        result.append(total / weight if weight else float("nan"))
    return result


def _same_length(x: Sequence[object], y: Sequence[object]) -> None:
    if len(x) != len(y):
        raise ValueError(f"a curve needs as many places as values, not {len(x)} and {len(y)}")


def _new_figure(title: str) -> tuple[Figure, Axes]:
    # On a new machine Matplotlib says that it builds its font cache; nobody has to act on that.
    logging.getLogger("matplotlib.font_manager").setLevel(logging.ERROR)
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.4, 4.0))
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    axes.set_title(title, loc="left", fontsize=11)
    axes.grid(visible=True, axis="y", color="#e6e6e6", linewidth=0.8)
    axes.set_axisbelow(True)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    return figure, axes
