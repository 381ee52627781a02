"""Two executions of one definition of softmax attention: readable and fused.

Dimensions: B batch, H heads, L queries, S keys, E head width.
"""

from __future__ import annotations

import torch
from torch import Tensor

from recsys.attention import masks, normalizers, scores


def reference(
    q_BHLE: Tensor, k_BHSE: Tensor, v_BHSE: Tensor, *, causal: bool, mask: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Score, normalise, aggregate; the specification of `fused`.

    Args:
        q_BHLE: queries.
        k_BHSE: keys.
        v_BHSE: values.
        causal: a query sees no later key (L = S).
        mask: True where a query may see a key, broadcasting to [B, H, L, S]; on top of `causal`.

    Returns:
        Output [B, H, L, E] and the weights [B, H, L, S] that produced it.
    """
    visible = mask
    if causal:
        visible = masks.causal(q_BHLE.shape[2], q_BHLE.device)
        visible = visible if mask is None else visible & mask
    weights_BHLS = normalizers.softmax(scores.scaled_dot_product(q_BHLE, k_BHSE), visible)
    return weights_BHLS @ v_BHSE, weights_BHLS


def fused(
    q_BHLE: Tensor, k_BHSE: Tensor, v_BHSE: Tensor, *, causal: bool, mask: Tensor | None = None
) -> Tensor:
    """The same output in torch's fused kernel: flash on CPU and GPU, without L × S weights.

    Args and result as in `reference`, without the weights.
    """
    if causal and mask is not None:
        mask, causal = masks.causal(q_BHLE.shape[2], q_BHLE.device) & mask, False
    if mask is None:
        return torch.nn.functional.scaled_dot_product_attention(
            q_BHLE, k_BHSE, v_BHSE, is_causal=causal
        )
    out_BHLE = torch.nn.functional.scaled_dot_product_attention(
        q_BHLE, k_BHSE, v_BHSE, attn_mask=mask
    )
    # A query that may see nothing: zeros, as in the reference, on every kernel.
    return torch.where(mask.any(-1, keepdim=True), out_BHLE, 0.0)
