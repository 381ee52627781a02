"""What a model sees: dataclasses of tensors, torch only.

Dimensions: B histories in the batch, L padded length, T valid (packed) events in the batch.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class HistoryBatch:
    """Right-padded histories, oldest event first.

    Attributes:
        items_BL: int64, item indices; 0 is padding and stands only behind the last event.
        lengths_B: int64, number of events of each history; 0 is allowed.
        times_BL: int64 microseconds since 1970, or None where the log has no times.
    """

    items_BL: Tensor
    lengths_B: Tensor
    times_BL: Tensor | None = None

    @property
    def valid_BL(self) -> Tensor:
        """True where an event stands, False on padding."""
        L = self.items_BL.shape[1]
        return torch.arange(L, device=self.items_BL.device) < self.lengths_B[:, None]

    @property
    def packed_T(self) -> Tensor:
        """Flat positions (row · L + column) of the T valid events, row by row."""
        return self.valid_BL.flatten().nonzero().squeeze(1)

    def to(self, device: torch.device | str) -> HistoryBatch:
        """The same batch on another device."""
        times = None if self.times_BL is None else self.times_BL.to(device)
        return HistoryBatch(self.items_BL.to(device), self.lengths_B.to(device), times)
