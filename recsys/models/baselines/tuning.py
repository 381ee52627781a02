"""Choosing the baselines' parameters on validation, so that none of them is a straw man."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import reduce
from typing import Any, Protocol

import numpy as np
from torch import Tensor

from recsys.batch import HistoryBatch
from recsys.models.baselines.ease import EASE
from recsys.models.baselines.ials import IALS
from recsys.models.baselines.item_knn import ItemKNN
from recsys.models.baselines.markov import LastItemMarkov
from recsys.models.baselines.popularity import Popularity

WINDOWS = (None, 0.5, 0.1, 0.02)
NEWEST = (1, 2, 3, 5, 10, 20, None)
NEIGHBOURHOODS = ((50, 20.0), (500, 20.0), (200, 0.0), (200, 10.0), (200, 50.0))
WEIGHTS = (0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0)  # λ of iALS
ALPHAS = (2.0, 5.0, 10.0, 20.0, 50.0, 100.0, 200.0)
FACTORS = (32, 64, 128)
REGULARISATIONS = (10.0, 25.0, 50.0, 100.0, 250.0, 500.0, 1000.0, 2500.0, 5000.0)


class Baseline(Protocol):
    """What all baselines can do."""

    @property
    def name(self) -> str:
        """As it stands in tables."""

    @property
    def parameters(self) -> dict[str, float | None]:
        """What it was made with."""

    @property
    def max_length(self) -> int | None:
        """Newest events it reads; None for all."""

    def scores(self, batch: HistoryBatch) -> Tensor:
        """[B, V] float32."""

    def state(self) -> dict[str, np.ndarray]:
        """Arrays that the class's `from_state` rebuilds it from."""


@dataclass(frozen=True)
class Trial:
    """One setting that was tried: the model's name, its parameters, the mean of its judgement."""

    model: str
    parameters: dict[str, float | None]
    score: float


@dataclass(frozen=True)
class Tuned:
    """The best model of its kind, fitted, what was said of it, and all that was tried, in order."""

    model: Baseline
    judgement: np.ndarray
    trials: list[Trial]

    @property
    def score(self) -> float:
        """Mean of the judgement."""
        return float(self.judgement.mean())


Judge = Callable[[Baseline], np.ndarray]


def tune_baselines(
    items: np.ndarray,
    offsets: np.ndarray,
    ends: np.ndarray,
    catalogue_size: int,
    times: np.ndarray | None,
    judge: Judge,
    *,
    repeats: bool = False,
    max_items: int = 8000,
) -> list[Tuned]:
    """Fits and tunes all baselines on the training events `offsets[u] : offsets[u] + ends[u]`.

    Args:
        items: int32 [events], item indices ≥ 1.
        offsets: int64 [users + 1].
        ends: int64 [users], training events of each user.
        catalogue_size: V.
        times: int64 [events], microseconds, or None: then popularity is that of all time.
        judge: how good a fitted model is on each validation question, higher is better: float64,
            as the functions in `recsys.evaluation.metrics` return it.
        repeats: an item may be the right answer again (the seen filter is off): ItemKNN then also
            tries to keep items of the history among the candidates.
        max_items: of EASE.

    Returns:
        Popularity, Markov, ItemKNN, EASE and iALS, in this order.
    """
    log = (items, offsets, ends, catalogue_size, times)
    windows = WINDOWS if times is not None else (None,)
    return [
        _best(judge, (Popularity(window).fit(*log) for window in windows)),
        _best(judge, [LastItemMarkov().fit(*log)]),
        _tune_item_knn(judge, lambda model: model.fit(*log), repeats),
        _tune_ease(judge, lambda strength: EASE(strength, max_items).fit(*log)),
        _tune_ials(judge, lambda factors, weight, alpha: IALS(factors, weight, alpha).fit(*log)),
    ]


def fit_again(
    model: Baseline,
    items: np.ndarray,
    offsets: np.ndarray,
    ends: np.ndarray,
    catalogue_size: int,
    times: np.ndarray | None,
) -> Baseline:
    """A baseline of the same parameters on other events; see `tune_baselines`."""
    kind: Any = type(model)
    again: Baseline = kind(**model.parameters).fit(items, offsets, ends, catalogue_size, times)
    return again


def _best(judge: Judge, models: Iterable[Baseline]) -> Tuned:
    """The first of the best; models are fitted one by one and only the best is kept."""
    return reduce(_better, (_judged(judge, model) for model in models))


def _judged(judge: Judge, model: Baseline) -> Tuned:
    judgement = judge(model)
    trial = Trial(model.name, model.parameters, float(judgement.mean()))
    return Tuned(model, judgement, [trial])


def _better(first: Tuned, second: Tuned, standard_errors: float = 0.0) -> Tuned:
    """The second where its mean gain exceeds so many standard errors of the gain, else the first.

    Either way with the trials of both.
    """
    gain = second.judgement - first.judgement
    needed = standard_errors * gain.std() / np.sqrt(len(gain))
    winner = second if gain.mean() > needed else first
    return Tuned(winner.model, winner.judgement, first.trials + second.trials)


def _tune_item_knn(judge: Judge, fit: Callable[[ItemKNN], ItemKNN], repeats: bool) -> Tuned:
    """First the number of newest events, which matters most, then the neighbourhood.

    The neighbourhood changes little on most logs: the usual one stands unless another gains more
    than two standard errors, or the choice would be among noise.
    """
    kept = (False, True) if repeats else (False,)
    starts = [fit(ItemKNN(200, 20.0, 3, include_self)) for include_self in kept]
    first = _best(judge, (start.with_newest(newest) for start in starts for newest in NEWEST))
    chosen = first.model
    assert isinstance(chosen, ItemKNN)
    others = (
        fit(ItemKNN(neighbours, shrinkage, chosen.newest, chosen.include_self))
        for neighbours, shrinkage in NEIGHBOURHOODS
    )
    return _better(first, _best(judge, others), standard_errors=2.0)


def _tune_ease(judge: Judge, fit: Callable[[float], EASE]) -> Tuned:
    return _walk(judge, REGULARISATIONS, fit, _judged(judge, fit(250.0)), "regularisation")


def _tune_ials(judge: Judge, fit: Callable[[int, float, float], IALS]) -> Tuned:
    """λ, then α, then the factors, each beside the best of those before."""
    best = _judged(judge, fit(64, 3.0, 10.0))
    best = _walk(judge, WEIGHTS, lambda weight: fit(64, weight, 10.0), best, "regularisation")
    weight = float(best.model.parameters["regularisation"] or 0)
    best = _walk(judge, ALPHAS, lambda alpha: fit(64, weight, alpha), best, "alpha")
    alpha = float(best.model.parameters["alpha"] or 0)
    return _walk(judge, FACTORS, lambda factors: fit(int(factors), weight, alpha), best, "factors")


def _walk(
    judge: Judge,
    values: Sequence[float],
    fit: Callable[[float], Baseline],
    middle: Tuned,
    parameter: str,
) -> Tuned:
    """Walks along a parameter from the middle in the direction that helps, until it does not."""
    best = middle
    at = [float(value) for value in values].index(float(middle.model.parameters[parameter] or 0))
    for steps in (range(at - 1, -1, -1), range(at + 1, len(values))):
        for step in steps:
            tried = _judged(judge, fit(values[step]))
            best = _better(best, tried)
            if best.model is not tried.model:
                break
        if best.model is not middle.model:
            break
    return best
