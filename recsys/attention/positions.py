"""Where in the history an event stands.

Dimensions: B batch, L padded length, T packed events, D width.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from recsys.batch import HistoryBatch


class LearnedPositions(nn.Module):
    """One learned vector per position, counted from the newest event of the history (position 0).

    Counting from the end makes the newest event, the one that predicts, position 0 whatever the
    length. (SASRec pads on the left, which is the same count.)

    Args:
        max_length: the longest history.
        width: D.
    """

    def __init__(self, max_length: int, width: int) -> None:
        super().__init__()
        self.table = nn.Embedding(max_length, width)

    def forward(self, batch: HistoryBatch, packed_T: Tensor) -> Tensor:
        """Position vectors of the T packed events, [T, D]."""
        L = batch.items_BL.shape[1]
        columns_L = torch.arange(L, device=packed_T.device)
        from_end_BL = batch.lengths_B[:, None] - 1 - columns_L
        vectors: Tensor = self.table(from_end_BL.flatten()[packed_T])
        return vectors
