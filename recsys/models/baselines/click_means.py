"""Item mean + user mean: how often this item is taken, and how much oftener this user takes.

Dimensions: N questions, U users, V catalogue incl. padding (index 0).
"""

from __future__ import annotations

from typing import Self

import numpy as np


class ItemUserMeans:
    """The baseline that every click model must beat: two means, both on the log-odds scale.

    The item's mean is p_i = (Σ y + a·ȳ) / (n_i + a) over the n_i training questions about it, ȳ
    being the mean of all. The user's mean is how far the labels lie above the means of the same
    items: b_u = Σ (y − p_i) / (Σ p_i (1 − p_i) + c·ȳ (1 − ȳ)) over the user's training questions,
    one Newton step from 0 towards the user's log-odds. (The plain mean of a user's labels would
    count it as generosity that somebody picks good items.) The answer is σ(logit p_i + b_u).

    Items and users without training questions have the mean of all and no shift.

    Args:
        item_rows: a, questions that the mean of all counts for in an item's mean.
        user_rows: c, the same for a user's.

    Raises:
        ValueError: one of them is not positive.
    """

    def __init__(self, item_rows: float = 5.0, user_rows: float = 8.0) -> None:
        for name, value in (("item_rows", item_rows), ("user_rows", user_rows)):
            if not value > 0:
                raise ValueError(f"{name} must be more than 0, not {value}")
        self.item_rows = item_rows
        self.user_rows = user_rows
        self.item_log_odds_V = np.zeros(0)
        self.user_shifts_U = np.zeros(0)

    @property
    def name(self) -> str:
        """As it stands in tables."""
        return "Item + user mean"

    @property
    def parameters(self) -> dict[str, float]:
        """What it was made with."""
        return {"item_rows": self.item_rows, "user_rows": self.user_rows}

    def fit(
        self,
        users: np.ndarray,
        candidates: np.ndarray,
        labels: np.ndarray,
        user_count: int,
        catalogue_size: int,
    ) -> Self:
        """Takes the means of the training questions.

        Args:
            users: int64 [N], user indices.
            candidates: int64 [N], item indices.
            labels: [N], 0 or 1.
            user_count: U.
            catalogue_size: V.

        Raises:
            ValueError: the labels are not of both classes.
        """
        mean = float(labels.mean(dtype=np.float64)) if len(labels) else 0.0
        if not 0 < mean < 1:
            raise ValueError(f"all {len(labels):,} training labels are alike: there is no mean")
        taken_V = np.bincount(candidates, weights=labels, minlength=catalogue_size)
        shown_V = np.bincount(candidates, minlength=catalogue_size)
        means_V = (taken_V + self.item_rows * mean) / (shown_V + self.item_rows)
        self.item_log_odds_V = np.log(means_V / (1 - means_V))
        expected = means_V[candidates]
        above_U = np.bincount(users, weights=labels - expected, minlength=user_count)
        spread_U = np.bincount(users, weights=expected * (1 - expected), minlength=user_count)
        self.user_shifts_U = above_U / (spread_U + self.user_rows * mean * (1 - mean))
        return self

    def scores(self, users: np.ndarray, candidates: np.ndarray) -> np.ndarray:
        """float64 [N]: the probability that the user takes the candidate."""
        log_odds = self.item_log_odds_V[candidates] + self.user_shifts_U[users]
        return 1 / (1 + np.exp(-log_odds))

    def state(self) -> dict[str, np.ndarray]:
        """What `from_state` rebuilds the fitted model from."""
        return {
            "rows": np.array([self.item_rows, self.user_rows]),
            "item_log_odds_V": self.item_log_odds_V,
            "user_shifts_U": self.user_shifts_U,
        }

    @classmethod
    def from_state(cls, state: dict[str, np.ndarray]) -> Self:
        """The fitted model."""
        model = cls(*(float(rows) for rows in state["rows"]))
        model.item_log_odds_V = state["item_log_odds_V"]
        model.user_shifts_U = state["user_shifts_U"]
        return model
