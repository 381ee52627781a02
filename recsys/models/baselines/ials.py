"""iALS: matrix factorisation of implicit feedback by alternating least squares.

The solver is the library `implicit`'s; here stand the order of items that it leaves open, and
answers for histories it was not fitted on.

Dimensions: B histories in the batch, V catalogue incl. padding (index 0), D factors.
"""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Self

import numpy as np
import scipy.sparse as sp
import torch
from torch import Tensor

from recsys.batch import HistoryBatch
from recsys.models.baselines.item_knn import user_item_matrix
from recsys.models.baselines.popularity import newest_items, popularity_places, training_events

if TYPE_CHECKING:
    from implicit.cpu.als import AlternatingLeastSquares


class IALS:
    """Collaborative filtering for implicit feedback (Hu, Koren, Volinsky, ICDM 2008).

    Minimises Σ c_ui (p_ui − x_u · y_i)² + λ (Σ |x_u|² + Σ |y_i|²) over all pairs of user and item,
    with p = 1 and confidence c = α where the user had the item, p = 0 and c = 1 elsewhere. Each
    half step is solved exactly (Cholesky). A history's vector is solved for when it is asked about,
    from its own items, so that people who were not trained on are answered alike; a candidate's
    score is its dot product with the item's vector. Items without training events stand below the
    others, by popularity, and a history without any other gets popularity.

    Args:
        factors: D.
        regularisation: λ.
        alpha: confidence of what was had.
        iterations: over both sides.
    """

    max_length: int | None = None

    def __init__(
        self,
        factors: int = 64,
        regularisation: float = 1.0,
        alpha: float = 10.0,
        iterations: int = 15,
    ) -> None:
        if min(factors, iterations) < 1 or regularisation <= 0 or alpha < 1:
            raise ValueError(
                "iALS needs factors ≥ 1, iterations ≥ 1, regularisation > 0 and alpha ≥ 1, not "
                f"{factors}, {iterations}, {regularisation} and {alpha}"
            )
        self.factors = factors
        self.regularisation = regularisation
        self.alpha = alpha
        self.iterations = iterations
        self.vectors_VD = np.zeros((0, factors), dtype=np.float32)
        self.places_V = np.zeros(0, dtype=np.int64)
        self.trained_V = np.zeros(0, dtype=bool)

    @property
    def name(self) -> str:
        """As it stands in tables."""
        return "iALS"

    @property
    def parameters(self) -> dict[str, float | None]:
        """What it was made with."""
        return {
            "factors": self.factors,
            "regularisation": self.regularisation,
            "alpha": self.alpha,
            "iterations": self.iterations,
        }

    def fit(
        self,
        items: np.ndarray,
        offsets: np.ndarray,
        ends: np.ndarray,
        catalogue_size: int,
        times: np.ndarray | None = None,
    ) -> Self:
        """Solves for the item vectors from the training events, an item counting once a user.

        Args:
            items: int32 [events], item indices ≥ 1.
            offsets: int64 [users + 1].
            ends: int64 [users], training events of each user.
            catalogue_size: V.
            times: not used.
        """
        counts = np.bincount(items[training_events(offsets, ends)], minlength=catalogue_size)
        self.places_V = popularity_places(counts)
        self.trained_V = counts > 0
        had_UV = user_item_matrix(items, offsets, ends, catalogue_size)
        solver = self._solver()
        solver.fit(sp.csr_matrix(had_UV, dtype=np.float32), show_progress=False)
        self.vectors_VD = np.asarray(solver.item_factors, dtype=np.float32)
        return self

    def scores(self, batch: HistoryBatch) -> Tensor:
        """float32 [B, V]: products with each history's own vector."""
        had_BV = newest_items(batch, len(self.places_V), None)
        solver = self._solver()
        solver.item_factors = self.vectors_VD
        asks_BD = solver.recalculate_user(np.arange(had_BV.shape[0]), sp.csr_matrix(had_BV))
        scores_BV = torch.from_numpy(asks_BD @ self.vectors_VD.T)
        below_V = torch.from_numpy((self.places_V / len(self.places_V) - 2).astype(np.float32))
        lowest_B = scores_BV.amin(dim=1, keepdim=True).clamp(max=0)
        known = torch.from_numpy(self.trained_V)
        answering_B1 = torch.from_numpy(asks_BD).abs().amax(dim=1, keepdim=True) > 0
        return torch.where(known & answering_B1, scores_BV, below_V + lowest_B)

    def _solver(self) -> AlternatingLeastSquares:
        """The library's, which warns of threads that numpy keeps for itself."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            from implicit.cpu.als import AlternatingLeastSquares

            return AlternatingLeastSquares(
                factors=self.factors,
                regularization=self.regularisation,
                alpha=self.alpha,
                iterations=self.iterations,
                use_cg=False,
                random_state=0,
            )

    def state(self) -> dict[str, np.ndarray]:
        """What `from_state` rebuilds the fitted model from."""
        return {
            "parameters": np.array(list(self.parameters.values())),
            "vectors_VD": self.vectors_VD,
            "places_V": self.places_V,
            "trained_V": self.trained_V,
        }

    @classmethod
    def from_state(cls, state: dict[str, np.ndarray]) -> Self:
        """The fitted model."""
        factors, regularisation, alpha, iterations = state["parameters"].tolist()
        model = cls(int(factors), regularisation, alpha, int(iterations))
        model.vectors_VD = state["vectors_VD"]
        model.places_V = state["places_V"]
        model.trained_V = state["trained_V"]
        return model
