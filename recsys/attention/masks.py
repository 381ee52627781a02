"""Who may look at whom. Masks are True where a query may see a key.

Dimensions: B batch, L queries, S keys. A mask broadcasts to [B, H, L, S].
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from recsys.batch import HistoryBatch

Mask = Callable[[HistoryBatch], Tensor]


def causal(L: int, device: torch.device | None = None) -> Tensor:
    """[1, 1, L, L]: a position sees itself and everything before it (GPT, SASRec)."""
    return torch.ones(L, L, dtype=torch.bool, device=device).tril()[None, None]


def valid(valid_BL: Tensor) -> Tensor:
    """[B, 1, 1, L]: nobody sees padding. Every attention that is not causal needs it."""
    return valid_BL[:, None, None, :]
