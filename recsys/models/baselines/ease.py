"""EASE: a linear item-to-item model with a closed form.

Dimensions: B histories in the batch, V catalogue incl. padding (index 0), M modelled items.
"""

from __future__ import annotations

from typing import Self

import numpy as np
import torch
from scipy.linalg import lapack
from torch import Tensor, nn

from recsys.batch import HistoryBatch
from recsys.models.baselines.item_knn import user_item_matrix
from recsys.models.baselines.popularity import popularity_places, training_events


class EASE:
    """Embarrassingly shallow autoencoder (arXiv 1905.03375).

    With the binary user–item matrix X, P = (XᵀX + λI)⁻¹ and weights −P_ij / P_jj off the diagonal,
    a candidate's score is the sum of the weights from the history's items to it. P is dense: exact
    up to `max_items` items with training events, above that on the most popular ones, and then the
    name says so. Items that are not modelled stand below the others, by popularity, and a history
    without any modelled item gets popularity.

    Args:
        regularisation: λ.
        max_items: most items modelled; memory grows with its square, time with its cube.
    """

    max_length: int | None = None

    def __init__(self, regularisation: float = 250.0, max_items: int = 8000) -> None:
        if regularisation <= 0 or max_items < 1:
            raise ValueError(
                "EASE needs regularisation > 0 and max_items ≥ 1, "
                f"not {regularisation} and {max_items}"
            )
        self.regularisation = regularisation
        self.max_items = max_items
        self.is_exact = True
        self.modelled_M = np.zeros(0, dtype=np.int64)
        self.weights_MM = np.zeros((0, 0), dtype=np.float32)
        self.places_V = np.zeros(0, dtype=np.int64)

    @property
    def name(self) -> str:
        """As it stands in tables: 'EASE', or 'EASE@8000' where not all items are modelled."""
        return "EASE" if self.is_exact else f"EASE@{self.max_items}"

    @property
    def parameters(self) -> dict[str, float | None]:
        """What it was made with."""
        return {"regularisation": self.regularisation, "max_items": self.max_items}

    def fit(
        self,
        items: np.ndarray,
        offsets: np.ndarray,
        ends: np.ndarray,
        catalogue_size: int,
        times: np.ndarray | None = None,
    ) -> Self:
        """Solves for the weights from the training events, an item counting once a user.

        Args:
            items: int32 [events], item indices ≥ 1.
            offsets: int64 [users + 1].
            ends: int64 [users], training events of each user.
            catalogue_size: V.
            times: not used.
        """
        counts = np.bincount(items[training_events(offsets, ends)], minlength=catalogue_size)
        self.places_V = popularity_places(counts)
        known = np.flatnonzero(counts)
        self.is_exact = len(known) <= self.max_items
        by_popularity = known[np.argsort(-self.places_V[known])]
        self.modelled_M = np.sort(by_popularity[: self.max_items])

        users_UM = user_item_matrix(items, offsets, ends, catalogue_size)[:, self.modelled_M]
        gram_MM = (users_UM.T @ users_UM).toarray(order="F")
        gram_MM[np.diag_indices_from(gram_MM)] += np.float32(self.regularisation)
        # The inverse in place, in the lower triangle: a third of the memory of numpy's.
        factor, failed = lapack.spotrf(gram_MM, lower=1, overwrite_a=1)
        assert failed == 0, "XᵀX + λI is positive definite"
        inverse, failed = lapack.spotri(factor, lower=1, overwrite_c=1)
        assert failed == 0
        weights_MM = inverse.T  # row-major, with its upper triangle filled
        for begin in range(0, len(weights_MM), 256):
            end = begin + 256
            corner = np.triu(weights_MM[begin:end, begin:end])
            weights_MM[begin:end, begin:end] = corner + np.triu(corner, 1).T
            weights_MM[end:, begin:end] = weights_MM[begin:end, end:].T
        weights_MM /= -np.diag(weights_MM).copy()
        np.fill_diagonal(weights_MM, 0)
        self.weights_MM = weights_MM
        return self

    def scores(self, batch: HistoryBatch) -> Tensor:
        """float32 [B, V]: summed weights; items not modelled below them, by popularity."""
        V, M = len(self.places_V), len(self.modelled_M)
        column_V = torch.full((V,), M)
        column_V[torch.from_numpy(self.modelled_M)] = torch.arange(M)
        columns_BL = torch.where(batch.valid_BL, column_V[batch.items_BL], M)
        columns_BL = columns_BL.sort(dim=1).values
        used_BL = columns_BL < M
        used_BL[:, 1:] &= columns_BL[:, 1:] != columns_BL[:, :-1]
        used_B = used_BL.sum(dim=1)
        scores_BM = nn.functional.embedding_bag(
            columns_BL[used_BL],
            torch.from_numpy(self.weights_MM),
            used_B.cumsum(0) - used_B,
            mode="sum",
        )
        below_V = torch.from_numpy((self.places_V / V - 2).astype(np.float32))
        lowest_B = scores_BM.amin(dim=1).clamp(max=0)
        scores_BV = below_V + lowest_B[:, None]
        modelled = torch.from_numpy(self.modelled_M)
        answering = used_B > 0
        scores_BV[answering.nonzero(), modelled] = scores_BM[answering]
        return scores_BV

    def state(self) -> dict[str, np.ndarray]:
        """What `from_state` rebuilds the fitted model from."""
        return {
            "parameters": np.array([self.regularisation, self.max_items, self.is_exact]),
            "modelled_M": self.modelled_M,
            "weights_MM": self.weights_MM,
            "places_V": self.places_V,
        }

    @classmethod
    def from_state(cls, state: dict[str, np.ndarray]) -> Self:
        """The fitted model."""
        regularisation, max_items, is_exact = state["parameters"].tolist()
        model = cls(regularisation, int(max_items))
        model.is_exact = bool(is_exact)
        model.modelled_M = state["modelled_M"]
        model.weights_MM = state["weights_MM"]
        model.places_V = state["places_V"]
        return model
