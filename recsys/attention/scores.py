"""Step one of attention: score each history element against a query.

Dimensions: B batch, H heads, L queries, S keys, E head width.
"""

from __future__ import annotations

from torch import Tensor


def scaled_dot_product(q_BHLE: Tensor, k_BHSE: Tensor) -> Tensor:
    """Q · k / √E, the Transformer's score (arXiv 1706.03762, eq. 1).

    Args:
        q_BHLE: queries.
        k_BHSE: keys.

    Returns:
        Scores [B, H, L, S].
    """
    return (q_BHLE @ k_BHSE.transpose(-1, -2)) * q_BHLE.shape[-1] ** -0.5
