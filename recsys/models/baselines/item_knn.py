"""Item-to-item nearest neighbours by cosine, over the newest events.

Dimensions: B histories in the batch, V catalogue incl. padding (index 0).
"""

from __future__ import annotations

from typing import Self

import numpy as np
import scipy.sparse as sp
from torch import Tensor

from recsys.batch import HistoryBatch
from recsys.models.baselines.popularity import (
    back_off,
    newest_items,
    popularity_places,
    training_events,
)

CELLS = 1 << 22  # of the co-occurrence table held at a time, were all of them filled


class ItemKNN:
    """Sum of the similarities between a candidate and the newest m items of the history.

    Item-based collaborative filtering (Sarwar et al., WWW 2001; Linden et al., 2003); well tuned
    it beats many published models (arXiv 1907.06902). With n_i users of item i in training and n_ij
    of both, similarity is n_ij / (√(n_i · n_j) + shrinkage); each candidate keeps its `neighbours`
    most similar items, equal similarities by popularity. Candidates similar to none stand below
    the others, by popularity.

    Args:
        neighbours: similar items kept for each candidate, itself not counted.
        shrinkage: added to the denominator; damps similarities that few users support.
        newest: m, the newest events of a history that count; None counts all.
        include_self: keep an item's similarity with itself, so that an item of the history is a
            candidate like others: for logs with repeats, where the seen filter is off.
    """

    def __init__(
        self,
        neighbours: int = 200,
        shrinkage: float = 20.0,
        newest: int | None = 3,
        include_self: bool = False,
    ) -> None:
        if neighbours < 1 or shrinkage < 0 or (newest is not None and newest < 1):
            raise ValueError(
                "ItemKNN needs neighbours ≥ 1, shrinkage ≥ 0 and newest ≥ 1 or None, "
                f"not {neighbours}, {shrinkage}, {newest}"
            )
        self.neighbours = neighbours
        self.shrinkage = shrinkage
        self.newest = newest
        self.include_self = include_self
        self.similarity_VV = sp.csr_array((0, 0), dtype=np.float32)
        self.places_V = np.zeros(0, dtype=np.int64)

    @property
    def name(self) -> str:
        """As it stands in tables."""
        return "ItemKNN"

    @property
    def parameters(self) -> dict[str, float | None]:
        """What it was made with."""
        return {
            "neighbours": self.neighbours,
            "shrinkage": self.shrinkage,
            "newest": self.newest,
            "include_self": self.include_self,
        }

    @property
    def max_length(self) -> int | None:
        """Newest events it reads."""
        return self.newest

    def fit(
        self,
        items: np.ndarray,
        offsets: np.ndarray,
        ends: np.ndarray,
        catalogue_size: int,
        times: np.ndarray | None = None,
    ) -> Self:
        """Computes the similarities from the training events, an item counting once a user.

        Args:
            items: int32 [events], item indices ≥ 1.
            offsets: int64 [users + 1].
            ends: int64 [users], training events of each user.
            catalogue_size: V.
            times: not used.
        """
        V = catalogue_size
        users_UV = user_item_matrix(items, offsets, ends, V)
        items_VU = users_UV.T.tocsr()
        events = training_events(offsets, ends)
        self.places_V = popularity_places(np.bincount(items[events], minlength=V))
        norms_V = np.sqrt(np.diff(items_VU.indptr)).astype(np.float32)
        step = max(1, CELLS // V)
        blocks = []
        for begin in range(0, V, step):
            together = (items_VU[begin : begin + step] @ users_UV).tocsr()
            row = np.repeat(np.arange(together.shape[0]), np.diff(together.indptr))
            norms = norms_V[row + begin] * norms_V[together.indices]
            together.data /= norms + np.float32(self.shrinkage)
            blocks.append(self._nearest(together, row, row + begin == together.indices))
        # Rows are candidates up to here; scoring sums rows of history items.
        self.similarity_VV = sp.vstack(blocks, format="csr").T.tocsr()
        return self

    def _nearest(self, block_RV: sp.csr_array, row: np.ndarray, own: np.ndarray) -> sp.csr_array:
        """Keeps the largest `neighbours` entries of each row, and its own item's if wanted."""
        V = block_RV.shape[1]
        bits = int(V - 1).bit_length()
        # One key for (row, most similar first, most popular first); a positive float's bits are
        # ordered as its value is. An item's own similarity goes to the end of its row.
        closeness = np.where(own, 0, block_RV.data.view(np.int32).astype(np.int64))
        key = (row << (31 + bits)) | ((2**31 - 1 - closeness) << bits)
        key |= V - 1 - self.places_V[block_RV.indices]
        order = np.argsort(key)
        number = np.arange(len(order)) - block_RV.indptr[row]
        kept = order[(number < self.neighbours) & ~own[order]]
        if self.include_self:
            kept = np.append(kept, np.flatnonzero(own))
        entries = (block_RV.data[kept], (row[kept], block_RV.indices[kept]))
        return sp.csr_array(entries, shape=block_RV.shape)

    def with_newest(self, newest: int | None) -> ItemKNN:
        """The same similarities over another number of newest events."""
        model = ItemKNN(self.neighbours, self.shrinkage, newest, self.include_self)
        model.similarity_VV = self.similarity_VV
        model.places_V = self.places_V
        return model

    def scores(self, batch: HistoryBatch) -> Tensor:
        """float32 [B, V]: summed similarities, below them popularity (see `back_off`)."""
        history_BV = newest_items(batch, len(self.places_V), self.newest)
        return back_off(history_BV @ self.similarity_VV, self.places_V)

    def state(self) -> dict[str, np.ndarray]:
        """What `from_state` rebuilds the fitted model from."""
        newest = 0 if self.newest is None else self.newest
        return {
            "parameters": np.array([self.neighbours, self.shrinkage, newest, self.include_self]),
            "values": self.similarity_VV.data,
            "columns": self.similarity_VV.indices,
            "row_begins": self.similarity_VV.indptr,
            "places_V": self.places_V,
        }

    @classmethod
    def from_state(cls, state: dict[str, np.ndarray]) -> Self:
        """The fitted model."""
        neighbours, shrinkage, newest, include_self = state["parameters"].tolist()
        model = cls(int(neighbours), shrinkage, int(newest) or None, bool(include_self))
        model.places_V = state["places_V"]
        V = len(model.places_V)
        model.similarity_VV = sp.csr_array(
            (state["values"], state["columns"], state["row_begins"]), shape=(V, V)
        )
        return model


def user_item_matrix(
    items: np.ndarray, offsets: np.ndarray, ends: np.ndarray, catalogue_size: int
) -> sp.csr_array:
    """float32 [users, V]: 1 where the user has a training event with the item, however many."""
    events = training_events(offsets, ends)
    row_begins = np.concatenate([[0], np.cumsum(ends)])
    matrix = sp.csr_array(
        (np.ones(len(events), dtype=np.float32), items[events].astype(np.int64), row_begins),
        shape=(len(ends), catalogue_size),
    )
    matrix.sum_duplicates()
    matrix.data[:] = 1
    return matrix
