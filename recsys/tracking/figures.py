"""Figures of a training run: curves over time, beside what they have to beat.

Drawn with Matplotlib's object interface and the Agg canvas: no window, no global state.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
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


def _same_length(x: Sequence[float], y: Sequence[float]) -> None:
    if len(x) != len(y):
        raise ValueError(f"a curve needs as many places as values, not {len(x)} and {len(y)}")


def _new_figure(title: str) -> tuple[Figure, Axes]:
    # On a new machine Matplotlib says that it builds its font cache; nobody has to act on that.
    logging.getLogger("matplotlib.font_manager").setLevel(logging.ERROR)
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.5, 4.2))
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    axes.set_title(title, loc="left", fontsize=11)
    axes.grid(visible=True, axis="y", color="#e6e6e6", linewidth=0.8)
    axes.set_axisbelow(True)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    return figure, axes
