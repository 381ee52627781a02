"""What a model sees: dataclasses of tensors, torch only.

Dimensions: B histories in the batch, L padded length, T valid (packed) events in the batch.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn


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

    def with_others(self, count: int) -> HistoryBatch:
        """The same histories, and behind them so many of one event each, of item 1."""
        added = (0, 0, 0, count)
        items_BL = nn.functional.pad(self.items_BL, added)
        items_BL[len(self.lengths_B) :, 0] = 1
        lengths_B = nn.functional.pad(self.lengths_B, (0, count), value=1)
        times = None if self.times_BL is None else nn.functional.pad(self.times_BL, added)
        return HistoryBatch(items_BL, lengths_B, times)

    def to(self, device: torch.device | str) -> HistoryBatch:
        """The same batch on another device."""
        times = None if self.times_BL is None else self.times_BL.to(device)
        return HistoryBatch(self.items_BL.to(device), self.lengths_B.to(device), times)


@dataclass(frozen=True)
class ClickBatch:
    """B questions "will this user take this candidate?", as a ranker sees them.

    The I distinct items that occur stand once in `item_ids_I`; candidates and histories point into
    it, so a ranker embeds each item once, however often it occurs.

    A field is a tensor of codes (int64; 0 is missing, 1 a value unknown to the vocabulary), of bags
    of codes (one dimension more, padded with 0), or of numbers (float32).

    Attributes:
        item_ids_I: int64, item indices; `item_ids_I[0]` is 0, the padding.
        candidates_B: int64, positions in `item_ids_I`.
        history_BL: int64, positions in `item_ids_I`, oldest event first; 0 behind the last event.
        lengths_B: int64, number of events of each history; 0 is allowed.
        user_fields: by name, [B] or [B, M].
        item_fields: by name, [I] or [I, M].
        event_fields: of the events of the history, by name, [B, L] or [B, L, M].
        context_fields: of the question itself, by name, [B] or [B, M].
    """

    item_ids_I: Tensor
    candidates_B: Tensor
    history_BL: Tensor
    lengths_B: Tensor
    user_fields: dict[str, Tensor]
    item_fields: dict[str, Tensor]
    event_fields: dict[str, Tensor]
    context_fields: dict[str, Tensor]

    @property
    def valid_BL(self) -> Tensor:
        """True where an event stands, False on padding."""
        L = self.history_BL.shape[1]
        return torch.arange(L, device=self.history_BL.device) < self.lengths_B[:, None]

    def to(self, device: torch.device | str) -> ClickBatch:
        """The same batch on another device."""

        def moved(fields: dict[str, Tensor]) -> dict[str, Tensor]:
            return {name: field.to(device) for name, field in fields.items()}

        return ClickBatch(
            self.item_ids_I.to(device),
            self.candidates_B.to(device),
            self.history_BL.to(device),
            self.lengths_B.to(device),
            moved(self.user_fields),
            moved(self.item_fields),
            moved(self.event_fields),
            moved(self.context_fields),
        )
