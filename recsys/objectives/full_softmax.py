"""Cross-entropy over the whole catalogue: exact, in chunks, gradient computed in the forward pass.

T tokens, V catalogue size (padding included), D model width, N = V − 1 real items, C chunk length.

The loss of token t with answer y is ``log Σ_i exp(h_t · e_i) − h_t · e_y`` over the real items i;
its gradients are ``(p − onehot(y)) E`` for the hidden state and ``(p − onehot(y))ᵀ h`` for the
table. All three matrix products of a chunk run while its logits are still in cache, so memory is
C × N whatever T is, and nothing is recomputed in the backward pass. (Cut cross-entropy,
arXiv 2411.09009, has the same aim and recomputes instead.)
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

UNDERFLOW = 1e-37  # probabilities down to here keep their digits
TOKENS_PER_CHUNK = 1024  # a few MB of logits: the three products and the softmax stay in cache


def full_softmax_reference(hidden_TD: Tensor, table_VD: Tensor, targets_T: Tensor) -> Tensor:
    """The definition: mean cross-entropy with all T × V logits in memory, for tests and reading."""
    logits_TN = hidden_TD.float() @ table_VD[1:].float().T
    return torch.nn.functional.cross_entropy(logits_TN, targets_T - 1)


def full_softmax(
    hidden_TD: Tensor, table_VD: Tensor, targets_T: Tensor, chunk: int = TOKENS_PER_CHUNK
) -> Tensor:
    """Mean cross-entropy over all real items; equals `full_softmax_reference`.

    The products run in bfloat16 under autocast, else in float32. The sum over items is taken in
    float32 either way, and so are the loss and the table's gradient.

    Args:
        hidden_TD: hidden states of T tokens.
        table_VD: output table; row 0 (padding) takes no part.
        targets_T: int64 answers, each in 1 .. V − 1.
        chunk: tokens whose logits are in memory at a time.

    Returns:
        The loss, a float32 scalar.
    """
    device = hidden_TD.device.type
    dtype = torch.float32
    if torch.is_autocast_enabled(device):
        dtype = torch.get_autocast_dtype(device)
    with torch.autocast(device, enabled=False):  # the types are chosen, here and once
        loss: Tensor = _FullSoftmax.apply(hidden_TD, table_VD, targets_T, chunk, dtype)
    return loss


class _FullSoftmax(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden_TD: Tensor,
        table_VD: Tensor,
        targets_T: Tensor,
        chunk: int,
        dtype: torch.dtype,
    ) -> Tensor:
        T = len(hidden_TD)
        items_ND = table_VD[1:].to(dtype)
        low_TD = hidden_TD.to(dtype)
        grad_hidden_TD = torch.empty_like(low_TD)
        grad_table_VD = torch.zeros_like(table_VD, dtype=torch.float32)
        loss = torch.zeros((), dtype=torch.float64, device=hidden_TD.device)
        for begin in range(0, T, chunk):
            h_CD = low_TD[begin : begin + chunk]
            answers_C1 = targets_T[begin : begin + chunk, None] - 1
            logits_CN = h_CD @ items_ND.T
            p_CN = torch.softmax(logits_CN, 1)
            answers_p_C = p_CN.gather(1, answers_C1).squeeze(1).float()
            loss_C = -answers_p_C.log()
            # On a GPU the look alone, which waits for it, would cost more than it can save.
            if hidden_TD.is_cuda or not answers_p_C.min() > UNDERFLOW:
                # log Σ exp, read off the largest item, whose probability cannot underflow.
                log_total_C = logits_CN.amax(1).float() - p_CN.amax(1).float().log()
                loss_C = log_total_C - logits_CN.gather(1, answers_C1).squeeze(1).float()
            loss += loss_C.sum(dtype=torch.float64)
            rows_C1 = torch.arange(len(h_CD), device=h_CD.device)[:, None]
            p_CN[rows_C1, answers_C1] -= 1  # scatter_add_ would copy the whole chunk
            torch.mm(p_CN, items_ND, out=grad_hidden_TD[begin : begin + chunk])
            grad_table_VD[1:] += p_CN.T @ h_CD
        ctx.save_for_backward(grad_hidden_TD, grad_table_VD)
        ctx.hidden_dtype, ctx.table_dtype = hidden_TD.dtype, table_VD.dtype
        return (loss / T).float()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_loss: Tensor) -> tuple[Tensor | None, ...]:
        grad_hidden_TD, grad_table_VD = ctx.saved_tensors
        scale = grad_loss / len(grad_hidden_TD)
        return (
            (grad_hidden_TD * scale).to(ctx.hidden_dtype),
            (grad_table_VD * scale).to(ctx.table_dtype),
            None,
            None,
            None,
        )
