"""Three executions of one definition of softmax attention: readable, flash, and by products.

`flash` needs no L × S weights in memory and wins on GPUs and for long histories. On a CPU in
bfloat16 its backward pass is slow, and for a few hundred events the weights fit the cache: there
`products`, three batched matrix products, is 3 to 4 times as fast forward and backward.

Dimensions: B batch, H heads, L queries, S keys, E head width.
"""

from __future__ import annotations

import torch
from torch import Tensor

from recsys.attention import masks, normalizers, scores
from recsys.attention.dropout import Dropout

SHORT = 512  # keys up to which weights in memory beat flash on a CPU in bfloat16


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
    q_BHLE: Tensor,
    k_BHSE: Tensor,
    v_BHSE: Tensor,
    *,
    causal: bool,
    mask: Tensor | None = None,
    dropout: Dropout | None = None,
) -> Tensor:
    """The same output by the fastest kernel for this machine, type and length.

    Args and result as in `reference`, without the weights.

    Args:
        q_BHLE: queries.
        k_BHSE: keys.
        v_BHSE: values.
        causal: a query sees no later key.
        mask: True where a query may see a key.
        dropout: on the weights, in training; needs them in memory.
    """
    drops = dropout is not None and dropout.training and dropout.threshold > 0
    slow = q_BHLE.dtype == torch.bfloat16 and q_BHLE.device.type == "cpu"
    if drops or (slow and k_BHSE.shape[2] <= SHORT):
        return products(q_BHLE, k_BHSE, v_BHSE, causal=causal, mask=mask, dropout=dropout)
    return flash(q_BHLE, k_BHSE, v_BHSE, causal=causal, mask=mask)


def flash(
    q_BHLE: Tensor, k_BHSE: Tensor, v_BHSE: Tensor, *, causal: bool, mask: Tensor | None = None
) -> Tensor:
    """Torch's fused kernel: flash attention on CPU and GPU, without L × S weights in memory."""
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


def products(
    q_BHLE: Tensor,
    k_BHSE: Tensor,
    v_BHSE: Tensor,
    *,
    causal: bool,
    mask: Tensor | None = None,
    dropout: Dropout | None = None,
) -> Tensor:
    """Batched matrix products, the mask added to the scores inside the first."""
    B, H, L, _ = q_BHLE.shape
    S = k_BHSE.shape[2]
    visible = mask
    if causal:
        visible = masks.causal(L, q_BHLE.device)
        visible = visible if mask is None else visible & mask
    added = q_BHLE.new_zeros(1, 1, 1, 1)
    if visible is not None:
        # The lowest number, not -inf: a query that may see nothing then has no NaN to undo.
        lowest = torch.finfo(q_BHLE.dtype).min
        added = torch.zeros_like(visible, dtype=q_BHLE.dtype).masked_fill_(~visible, lowest)
    rows = B * H
    scores = torch.baddbmm(
        added.expand(B, H, L, S).reshape(rows, L, S)
        if added.shape[0] > 1
        else added[0, 0].expand(rows, L, S),
        q_BHLE.reshape(rows, L, -1),
        k_BHSE.reshape(rows, S, -1).transpose(1, 2),
        alpha=q_BHLE.shape[-1] ** -0.5,
    )
    weights = torch.softmax(scores, -1)
    if dropout is not None:
        weights = dropout(weights)
    out_BHLE = (weights @ v_BHSE.reshape(rows, S, -1)).view(B, H, L, -1)
    if mask is None or visible is None:
        return out_BHLE
    return torch.where(visible.any(-1, keepdim=True), out_BHLE, 0.0)
