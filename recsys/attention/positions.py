"""Where in the history an event stands.

Dimensions: B batch, L padded length, T packed events, D width.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from recsys.batch import HistoryBatch

CountFrom = Literal["newest", "oldest"]


class LearnedPositions(nn.Module):
    """One learned vector per position, counted from either end of the history.

    * newest: the event that predicts has position 0, whatever the length. (SASRec pads on the left,
      which is the same count.) Only the newest event of a training history is ever seen there.
    * oldest: the oldest event in view has position 0, so every prefix of a training history is seen
      just as it would be asked. Histories longer than `max_length` shift.

    Args:
        max_length: the longest history.
        width: D.
        count_from: "newest" or "oldest".

    Raises:
        ValueError: another word.
    """

    def __init__(self, max_length: int, width: int, count_from: CountFrom = "newest") -> None:
        super().__init__()
        if count_from not in ("newest", "oldest"):
            raise ValueError(f"positions count from 'newest' or 'oldest', not {count_from!r}")
        self.from_newest = count_from == "newest"
        self.table = nn.Embedding(max_length, width)

    def forward(self, batch: HistoryBatch, packed_T: Tensor) -> Tensor:
        """Position vectors of the T packed events, [T, D]."""
        L = batch.items_BL.shape[1]
        place_BL = torch.arange(L, device=packed_T.device).expand(batch.items_BL.shape)
        if self.from_newest:
            # No event stands below 0, only padding, which an exported model embeds too.
            place_BL = (batch.lengths_B[:, None] - 1 - place_BL).clamp(min=0)
        vectors: Tensor = self.table(place_BL.flatten()[packed_T])
        return vectors
