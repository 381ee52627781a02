"""What came next after the last item, in other people's histories.

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


class LastItemMarkov:
    """First-order Markov chain: how often each item directly followed the last one in training.

    The unsmoothed maximum-likelihood chain that FPMC starts from (Rendle et al., WWW 2010); items
    that never followed stand below those that did, by popularity.
    """

    max_length: int | None = 1

    def __init__(self) -> None:
        self.transitions_VV = sp.csr_array((0, 0), dtype=np.float32)
        self.places_V = np.zeros(0, dtype=np.int64)

    @property
    def name(self) -> str:
        """As it stands in tables."""
        return "Markov"

    @property
    def parameters(self) -> dict[str, float | None]:
        """What it was made with."""
        return {}

    def fit(
        self,
        items: np.ndarray,
        offsets: np.ndarray,
        ends: np.ndarray,
        catalogue_size: int,
        times: np.ndarray | None = None,
    ) -> Self:
        """Counts transitions between neighbouring training events of a user.

        Args:
            items: int32 [events], item indices ≥ 1.
            offsets: int64 [users + 1].
            ends: int64 [users], training events of each user.
            catalogue_size: V.
            times: not used.
        """
        V = catalogue_size
        firsts = training_events(offsets, np.maximum(ends - 1, 0))
        counts = np.ones(len(firsts), dtype=np.float32)
        pairs = (items[firsts], items[firsts + 1])
        self.transitions_VV = sp.csr_array((counts, pairs), shape=(V, V))
        self.transitions_VV.sum_duplicates()
        events = training_events(offsets, ends)
        self.places_V = popularity_places(np.bincount(items[events], minlength=V))
        return self

    def scores(self, batch: HistoryBatch) -> Tensor:
        """float32 [B, V]: transition counts, below them popularity (see `back_off`)."""
        history_BV = newest_items(batch, len(self.places_V), newest=1)
        return back_off(history_BV @ self.transitions_VV, self.places_V)

    def state(self) -> dict[str, np.ndarray]:
        """What `from_state` rebuilds the fitted model from."""
        return {
            "values": self.transitions_VV.data,
            "columns": self.transitions_VV.indices,
            "row_begins": self.transitions_VV.indptr,
            "places_V": self.places_V,
        }

    @classmethod
    def from_state(cls, state: dict[str, np.ndarray]) -> Self:
        """The fitted model."""
        model = cls()
        model.places_V = state["places_V"]
        V = len(model.places_V)
        model.transitions_VV = sp.csr_array(
            (state["values"], state["columns"], state["row_begins"]), shape=(V, V)
        )
        return model
