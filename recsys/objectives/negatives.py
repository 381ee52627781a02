"""Negative items for objectives that do not look at the whole catalogue.

T tokens, V catalogue size (padding included), D model width, N negatives of a token, C tokens of a
chunk, R touched rows.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

Sampling = Literal["uniform", "popularity", "batch"]
NUMBERS_PER_CHUNK = 1 << 18  # of negatives' vectors: 1 MB, so that a chunk stays in cache


class NegativeItems(nn.Module):
    """Draws negatives with replacement, from torch's seeded generator.

    Args:
        item_counts_V: training events of each item; `item_counts_V[0]` is padding's and not looked
            at.
        negatives: N.
        sampling: "uniform" over all items; "popularity", in proportion to the training events, so
            that items without any are never drawn; "batch", the answers of tokens of the same
            batch drawn uniformly, which is popularity again, without a table to draw from.
        shared_negatives: all tokens of a batch have the same N, and no T × N × D is made.

    Raises:
        ValueError: an unknown sampling, no negatives, or no item to draw.
    """

    cumulative_V: Tensor
    log_probability_V: Tensor

    def __init__(
        self, item_counts_V: Tensor, *, negatives: int, sampling: Sampling, shared_negatives: bool
    ) -> None:
        super().__init__()
        if negatives < 1:
            raise ValueError(f"objective.negatives must be at least 1, not {negatives}")
        if sampling not in ("uniform", "popularity", "batch"):
            raise ValueError(
                f"objective.sampling must be 'uniform', 'popularity' or 'batch', not {sampling!r}"
            )
        weight_V = item_counts_V.to(torch.float64, copy=True)
        if sampling == "uniform":
            weight_V.fill_(1)
        weight_V[0] = 0
        if not weight_V.sum() > 0:
            raise ValueError("there is no item with training events to draw negatives from")
        cumulative_V = weight_V.cumsum(0)
        self.negatives = negatives
        self.sampling = sampling
        self.shared_negatives = shared_negatives
        # Not part of a checkpoint: made from the log each time.
        self.register_buffer("cumulative_V", cumulative_V / cumulative_V[-1], persistent=False)
        log_probability_V = (weight_V / weight_V.sum()).log().float()
        self.register_buffer("log_probability_V", log_probability_V, persistent=False)

    def forward(self, targets_T: Tensor) -> Tensor:
        """int64 [N] if shared, else [T, N]: items from 1; a token's own answer may be among them.

        Args:
            targets_T: the answers of the batch's tokens.
        """
        shape = (self.negatives,) if self.shared_negatives else (len(targets_T), self.negatives)
        device = targets_T.device
        if self.sampling == "batch":
            return targets_T[torch.randint(len(targets_T), shape, device=device)]
        if self.sampling == "uniform":
            return torch.randint(1, len(self.cumulative_V), shape, device=device)
        drawn = torch.rand(shape, dtype=torch.float64, device=device)
        return torch.searchsorted(self.cumulative_V, drawn, right=True)


def logits_of(
    hidden_TD: Tensor,
    table_VD: Tensor,
    targets_T: Tensor,
    negatives: Tensor,
    touched_rows: bool = False,
) -> tuple[Tensor, Tensor, Tensor]:
    """Scores of answers and negatives, and which negatives are the token's own answer.

    Args:
        hidden_TD: hidden states.
        table_VD: output table.
        targets_T: int64, answers.
        negatives: int64 [N], shared by all tokens, or [T, N].
        touched_rows: the table's gradient is sparse and holds the rows of answers and negatives
            only, whatever V; else it is [V, D].

    Returns:
        float32 [T], float32 [T, N], bool [T, N].
    """
    embedding = nn.functional.embedding
    answers_TD = embedding(targets_T, table_VD, sparse=touched_rows)
    answer_T = (hidden_TD * answers_TD).float().sum(1)
    own_TN = negatives == targets_T[:, None]
    if negatives.ndim == 1:
        logits_TN = hidden_TD @ embedding(negatives, table_VD, sparse=touched_rows).T
    elif len(table_VD) <= negatives.shape[1] * hidden_TD.shape[1] and not touched_rows:
        # All T × V scores are fewer numbers than the T × N × D of the negatives' vectors.
        logits_TN = (hidden_TD @ table_VD.T).gather(1, negatives)
    else:
        device = hidden_TD.device.type
        low = torch.is_autocast_enabled(device)
        dtype = torch.get_autocast_dtype(device) if low else table_VD.dtype
        logits_TN = _OwnNegatives.apply(hidden_TD, table_VD, negatives, dtype, touched_rows)
    return answer_T, logits_TN.float(), own_TN


class _OwnNegatives(torch.autograd.Function):
    """Scores of each token's own negatives: [T, N] in `dtype`.

    Their T × N × D vectors never stand in memory together: a chunk of tokens is gathered at a time,
    and gathered again in the backward pass. Loss and gradients have the digits of
    `own_negatives_reference`.
    """

    @staticmethod
    def forward(
        ctx: Any,
        hidden_TD: Tensor,
        table_VD: Tensor,
        negatives_TN: Tensor,
        dtype: torch.dtype,
        touched_rows: bool,
    ) -> Tensor:
        low_TD = hidden_TD.to(dtype)
        logits_TN = low_TD.new_empty(negatives_TN.shape)
        for chunk in _chunks(low_TD, negatives_TN):
            vectors_CND = _vectors(table_VD, negatives_TN[chunk], dtype)
            torch.bmm(vectors_CND, low_TD[chunk, :, None], out=logits_TN[chunk, :, None])
        ctx.save_for_backward(low_TD, table_VD, negatives_TN)
        ctx.hidden_dtype, ctx.touched_rows = hidden_TD.dtype, touched_rows
        return logits_TN

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_TN: Tensor) -> tuple[Tensor | None, ...]:
        low_TD, table_VD, negatives_TN = ctx.saved_tensors
        rows_TN, height = negatives_TN, len(table_VD)
        if ctx.touched_rows:
            touched_R, rows_TN = negatives_TN.unique(return_inverse=True)
            height = len(touched_R)
        grad_hidden_TD = torch.empty_like(low_TD)
        grad_table = table_VD.new_zeros(height, table_VD.shape[1])
        for chunk in _chunks(low_TD, negatives_TN):
            vectors_CND = _vectors(table_VD, negatives_TN[chunk], low_TD.dtype)
            grad_C1N = grad_TN[chunk, None, :]
            torch.bmm(grad_C1N, vectors_CND, out=grad_hidden_TD[chunk, None, :])
            outer_CND = grad_C1N.mT * low_TD[chunk, None, :]
            grad_table.index_add_(
                0, rows_TN[chunk].flatten(), outer_CND.flatten(0, 1).to(grad_table.dtype)
            )
        if ctx.touched_rows:
            grad_table = torch.sparse_coo_tensor(
                touched_R[None], grad_table, table_VD.shape, check_invariants=False
            )
        return grad_hidden_TD.to(ctx.hidden_dtype), grad_table, None, None, None


def own_negatives_reference(hidden_TD: Tensor, table_VD: Tensor, negatives_TN: Tensor) -> Tensor:
    """The definition, with all T × N × D in memory, for tests and reading."""
    vectors_TND = nn.functional.embedding(negatives_TN, table_VD)
    return torch.matmul(vectors_TND, hidden_TD[:, :, None]).squeeze(2)


def _chunks(hidden_TD: Tensor, negatives_TN: Tensor) -> list[slice]:
    """Tokens whose negatives' vectors are in memory at a time."""
    tokens = max(1, NUMBERS_PER_CHUNK // max(1, negatives_TN.shape[1] * hidden_TD.shape[1]))
    return [slice(begin, begin + tokens) for begin in range(0, len(hidden_TD), tokens)]


def _vectors(table_VD: Tensor, negatives_CN: Tensor, dtype: torch.dtype) -> Tensor:
    """[C, N, D]; indexing with [negatives_CN] is many times as slow as index_select."""
    flat = table_VD.index_select(0, negatives_CN.flatten()).to(dtype)
    return flat.view(*negatives_CN.shape, -1)
