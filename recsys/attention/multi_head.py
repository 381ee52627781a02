"""Multi-head attention over packed histories.

Dimensions: B histories, L padded length, T packed events, D width, H heads, E = D / H.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from recsys.attention import kernels, masks
from recsys.attention.dropout import Dropout
from recsys.batch import HistoryBatch

Heads = Literal["concatenate", "average"]


class MultiHeadSelfAttention(nn.Module):
    """H independent heads over the same history, combined in one of two ways.

    * concatenate: each head works on E = D / H channels; the outputs are laid side by side and
      projected (arXiv 1706.03762, section 3.2.2).
    * average: each head has values of full width D, and the outputs are averaged, then projected.
      Queries and keys keep E channels. More parameters, and a head's output can be read on its own.

    Args:
        width: D.
        heads: H, must divide D.
        combine: "concatenate" or "average".
        causal: an event sees no later event; else every event sees every valid one.
        dropout: rate on the attention weights in training.

    Raises:
        ValueError: width not divisible by heads, or an unknown way to combine.
    """

    def __init__(
        self,
        width: int,
        heads: int,
        combine: Heads = "concatenate",
        causal: bool = True,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        if heads < 1 or width % heads:
            fitting = [h for h in range(1, width + 1) if width % h == 0]
            nearest = min(fitting, key=lambda h: abs(h - heads))
            raise ValueError(
                f"width {width} is not divisible by heads {heads}; the nearest number of heads "
                f"that divides it is {nearest}"
            )
        if combine not in ("concatenate", "average"):
            raise ValueError(f"heads combine by 'concatenate' or 'average', not {combine!r}")
        self.heads = heads
        self.causal = causal
        self.value_width = width if combine == "average" else width // heads
        self.combine = combine
        self.query = nn.Linear(width, width)
        self.key = nn.Linear(width, width)
        self.value = nn.Linear(width, heads * self.value_width)
        self.project = nn.Linear(width, width)
        self.dropout = Dropout(dropout)

    def forward(
        self,
        queries_TD: Tensor,
        x_TD: Tensor,
        batch: HistoryBatch,
        packed_T: Tensor,
        weights: list[Tensor] | None = None,
    ) -> Tensor:
        """Attend.

        Args:
            queries_TD: the packed events as they ask.
            x_TD: the packed events as they answer: keys and values come from here.
            batch: whose events they are.
            packed_T: `batch.packed_T`.
            weights: when a list, the reference path runs, without dropout, and appends its
                weights [B, H, L, L].

        Returns:
            [T, D].
        """
        B, L = batch.items_BL.shape
        H, D = self.heads, x_TD.shape[1]
        qkv_TF = torch.cat([self.query(queries_TD), self.key(x_TD), self.value(x_TD)], 1)
        qkv_BLF = qkv_TF.new_zeros(B * L, qkv_TF.shape[1]).index_copy_(0, packed_T, qkv_TF)
        q_BHLE, k_BHLE, v_BHLE = (
            part.unflatten(-1, (H, -1)).transpose(1, 2)
            for part in qkv_BLF.view(B, L, -1).split([D, D, H * self.value_width], -1)
        )
        # Right padding: under a causal mask a real event never sees padding, so no key mask.
        mask = None if self.causal else masks.valid(batch.valid_BL)
        if weights is None:
            out_BHLE = kernels.fused(
                q_BHLE, k_BHLE, v_BHLE, causal=self.causal, mask=mask, dropout=self.dropout
            )
        else:
            out_BHLE, weights_BHLL = kernels.reference(
                q_BHLE, k_BHLE, v_BHLE, causal=self.causal, mask=mask
            )
            weights.append(weights_BHLL)
        if self.combine == "average":
            out_BLD = out_BHLE.mean(1)
        else:
            out_BLD = out_BHLE.transpose(1, 2).flatten(2)
        projected: Tensor = self.project(out_BLD.reshape(B * L, D)[packed_T])
        return projected

    def newest(
        self, queries_RD: Tensor, x_TD: Tensor, batch: HistoryBatch, packed_T: Tensor
    ) -> Tensor:
        """Attend from the newest event of each history alone: those rows of `forward`.

        Args:
            queries_RD: the newest event of each of the B histories as it asks, and rows of no
                meaning behind them, if any.
            x_TD: all packed events as they answer.
            batch: whose events they are.
            packed_T: `batch.packed_T`.

        Returns:
            [R, D]; of no meaning where a history is empty, and behind the B-th row.
        """
        B, L = batch.items_BL.shape
        H, D = self.heads, x_TD.shape[1]
        kv_TF = torch.cat([self.key(x_TD), self.value(x_TD)], 1)
        kv_BLF = kv_TF.new_zeros(B * L, kv_TF.shape[1]).index_copy_(0, packed_T, kv_TF)
        k_BHLE, v_BHLE = (
            part.unflatten(-1, (H, -1)).transpose(1, 2)
            for part in kv_BLF.view(B, L, -1).split([D, H * self.value_width], -1)
        )
        q_BH1E = self.query(queries_RD)[:B].view(B, 1, H, -1).transpose(1, 2)
        # The newest event sees every event of its history, whether attention is causal or not.
        mask = masks.valid(batch.valid_BL)
        out_BH1E = kernels.fused(
            q_BH1E, k_BHLE, v_BHLE, causal=False, mask=mask, dropout=self.dropout
        )
        combined = out_BH1E.mean(1) if self.combine == "average" else out_BH1E.transpose(1, 2)
        out_RD = nn.functional.pad(combined.reshape(B, D), (0, 0, 0, len(queries_RD) - B))
        projected: Tensor = self.project(out_RD)
        return projected
