"""Step two of attention: turn scores into weights.

Dimensions: B batch, H heads, L queries, S keys.
"""

from __future__ import annotations

import torch
from torch import Tensor


def softmax(scores_BHLS: Tensor, mask: Tensor | None = None) -> Tensor:
    """exp(s) / Σ exp(s) over the keys a query may see.

    Args:
        scores_BHLS: scores.
        mask: True where a query may see a key; broadcasts to [B, H, L, S]. None: sees all.

    Returns:
        Weights [B, H, L, S], summing to 1 over S. A query that may see nothing gets all zeros
        (not NaN), so an empty history attends to nothing.
    """
    if mask is None:
        return torch.softmax(scores_BHLS, -1)
    weights_BHLS = torch.softmax(scores_BHLS.masked_fill(~mask, float("-inf")), -1)
    return torch.where(mask.any(-1, keepdim=True), weights_BHLS, 0.0)
