"""Probabilities of clicks: how far they are off, and two ways to mend them.

Both ways are fitted on validation and leave the order of the rows as it is (isotonic regression
may make neighbours equal), so AUC hardly moves and logloss and calibration error do.

Dimensions: N rows, S bins.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.optimize import isotonic_regression, minimize_scalar

from recsys.evaluation.click_metrics import checked, log_losses, probabilities

_SMALLEST = 1e-7  # probabilities are kept this far from 0 and 1: a single row decides no logit


@dataclass(frozen=True)
class Reliability:
    """How often rows of about one probability were clicked.

    Attributes:
        predicted_S: float64, mean probability of each bin.
        clicked_S: float64, share of its rows that were clicked.
        rows_S: int64, rows in it.
    """

    predicted_S: np.ndarray
    clicked_S: np.ndarray
    rows_S: np.ndarray


def reliability(labels_N: np.ndarray, probabilities_N: np.ndarray, bins: int = 15) -> Reliability:
    """The reliability curve, in bins of equally many rows; equal probabilities stay together.

    >>> curve = reliability(np.array([0, 1, 1, 1]), np.array([0.2, 0.2, 0.7, 0.9]), bins=2)
    >>> curve.predicted_S.round(2).tolist(), curve.clicked_S.tolist(), curve.rows_S.tolist()
    ([0.2, 0.8], [0.5, 1.0], [2, 2])

    Args:
        labels_N: 0 or 1.
        probabilities_N: of a click.
        bins: at most so many.

    Raises:
        ValueError: no rows, or what `click_metrics` refuses.
    """
    if bins < 1:
        raise ValueError(f"a reliability curve takes at least 1 bin, not {bins}")
    clicked_N, scores_N = checked(labels_N, probabilities_N)
    order = np.argsort(scores_N, kind="stable")
    ascending_N = scores_N[order]
    # The bin of a row is that of the first row with its probability.
    first_N = np.searchsorted(ascending_N, ascending_N, side="left")
    bin_N = first_N * bins // len(ascending_N)
    _, bin_N = np.unique(bin_N, return_inverse=True)
    rows_S = np.bincount(bin_N)
    return Reliability(
        predicted_S=np.bincount(bin_N, weights=ascending_N) / rows_S,
        clicked_S=np.bincount(bin_N, weights=clicked_N[order].astype(np.float64)) / rows_S,
        rows_S=rows_S,
    )


@dataclass(frozen=True)
class Temperature:
    """Probabilities whose logits are divided by a number (Guo et al., arXiv 1706.04599).

    Attributes:
        temperature: above 1 moves probabilities towards ½.
    """

    temperature: float

    @classmethod
    def fit(cls, labels_N: np.ndarray, probabilities_N: np.ndarray) -> Temperature:
        """The temperature with the lowest logloss, between 1/20 and 20."""
        checked(labels_N, probabilities_N)
        logits_N = _logits(probabilities_N)

        def loss(log_temperature: float) -> float:
            scaled_N = probabilities(logits_N / np.exp(log_temperature))
            return float(log_losses(labels_N, scaled_N).mean())

        limit = np.log(20)
        found = minimize_scalar(loss, bounds=(-limit, limit), method="bounded")
        return cls(float(np.exp(found.x)))

    def __call__(self, probabilities_N: np.ndarray) -> np.ndarray:
        """float64 [N]."""
        return probabilities(_logits(probabilities_N) / self.temperature)


@dataclass(frozen=True)
class Isotonic:
    """Probabilities that the best ascending step function puts in place of the model's own.

    Between two probabilities that it was fitted on it is a straight line, beyond them level.

    Attributes:
        given_S: float64, ascending.
        fitted_S: float64, ascending.
    """

    given_S: np.ndarray
    fitted_S: np.ndarray

    @classmethod
    def fit(cls, labels_N: np.ndarray, probabilities_N: np.ndarray) -> Isotonic:
        """Least squares among ascending functions (Zadrozny and Elkan, KDD 2002)."""
        clicked_N, scores_N = checked(labels_N, probabilities_N)
        given_S, row_N, rows_S = np.unique(scores_N, return_inverse=True, return_counts=True)
        clicks_S = np.bincount(row_N, weights=clicked_N.astype(np.float64))
        found = isotonic_regression(clicks_S / rows_S, weights=rows_S)
        # The ends of each step are enough.
        fitted_S = np.clip(found.x, _SMALLEST, 1 - _SMALLEST)
        same_S = fitted_S[1:] == fitted_S[:-1]
        ends_S = ~(np.append(same_S, False) & np.append(False, same_S))
        return cls(given_S[ends_S], fitted_S[ends_S])

    def __call__(self, probabilities_N: np.ndarray) -> np.ndarray:
        """float64 [N]."""
        mended_N: np.ndarray = np.interp(probabilities_N, self.given_S, self.fitted_S)
        return mended_N


def _logits(probabilities_N: np.ndarray) -> np.ndarray:
    inside_N = np.clip(np.asarray(probabilities_N, dtype=np.float64), _SMALLEST, 1 - _SMALLEST)
    logits_N: np.ndarray = np.log(inside_N) - np.log1p(-inside_N)
    return logits_N
