"""Layers of attention, stacked.

Dimensions: T packed events, D width.
"""

from __future__ import annotations

from typing import Literal

from torch import Tensor, nn

from recsys.attention.dropout import Dropout
from recsys.attention.multi_head import Heads, MultiHeadSelfAttention
from recsys.batch import HistoryBatch

Norm = Literal["pre", "post"]


class FeedForward(nn.Module):
    """Two linear maps with an activation between, applied to each event alone.

    Args:
        width: D.
        hidden: width in between.
        dropout: rate behind the activation.
        activation: "relu" (SASRec) or "gelu".

    Raises:
        ValueError: unknown activation.
    """

    def __init__(
        self, width: int, hidden: int, dropout: float, activation: Literal["relu", "gelu"] = "relu"
    ) -> None:
        super().__init__()
        if activation not in ("relu", "gelu"):
            raise ValueError(f"activation must be 'relu' or 'gelu', not {activation!r}")
        self.expand = nn.Linear(width, hidden)
        self.activation = nn.ReLU() if activation == "relu" else nn.GELU()
        self.dropout = Dropout(dropout)
        self.contract = nn.Linear(hidden, width)

    def forward(self, x_TD: Tensor) -> Tensor:
        """[T, D] to [T, D]."""
        out_TD: Tensor = self.contract(self.dropout(self.activation(self.expand(x_TD))))
        return out_TD


class AttentionLayer(nn.Module):
    """Self-attention, then feed-forward, each with a residual path, dropout and layer norm.

    * pre: ``x + f(norm(x))``, stable when deep.
    * post: ``norm(x + f(x))``, the original Transformer.
    """

    def __init__(
        self,
        width: int,
        heads: int,
        hidden: int,
        dropout: float,
        *,
        combine: Heads = "concatenate",
        causal: bool = True,
        norm: Norm = "pre",
        activation: Literal["relu", "gelu"] = "relu",
        attention_dropout: float = 0.0,
    ) -> None:
        super().__init__()
        if norm not in ("pre", "post"):
            raise ValueError(f"norm must be 'pre' or 'post', not {norm!r}")
        self.pre = norm == "pre"
        self.attention = MultiHeadSelfAttention(width, heads, combine, causal, attention_dropout)
        self.feed_forward = FeedForward(width, hidden, dropout, activation)
        self.attention_norm = nn.LayerNorm(width)
        self.feed_forward_norm = nn.LayerNorm(width)
        self.dropout = Dropout(dropout)

    def forward(
        self, x_TD: Tensor, batch: HistoryBatch, packed_T: Tensor, weights: list[Tensor] | None = None
    ) -> Tensor:
        """[T, D] to [T, D]; appends the attention weights to `weights` when it is a list."""
        if self.pre:
            attended_TD = self.attention(self.attention_norm(x_TD), batch, packed_T, weights)
            x_TD = x_TD + self.dropout(attended_TD)
            out_TD: Tensor = x_TD + self.dropout(self.feed_forward(self.feed_forward_norm(x_TD)))
            return out_TD
        attended_TD = self.attention(x_TD, batch, packed_T, weights)
        x_TD = self.attention_norm(x_TD + self.dropout(attended_TD))
        out_TD = self.feed_forward_norm(x_TD + self.dropout(self.feed_forward(x_TD)))
        return out_TD


class LayerStack(nn.Module):
    """Layers applied one after the other, with parameters separate or shared.

    Args:
        layers: made one by one by the caller; as many as there are parameter groups.
        depth: how many layers are applied. With g groups, layer i uses group ``i · g // depth``:
            g = depth is separate, g = 1 shared by all (ALBERT, arXiv 1909.11942), between: in
            groups.

    Raises:
        ValueError: fewer layers than groups.
    """

    def __init__(self, layers: list[AttentionLayer], depth: int) -> None:
        super().__init__()
        if not 1 <= len(layers) <= depth:
            raise ValueError(
                f"{depth} layers can share between 1 and {depth} groups of parameters, "
                f"not {len(layers)}"
            )
        self.groups = nn.ModuleList(layers)
        self.depth = depth

    def forward(
        self, x_TD: Tensor, batch: HistoryBatch, packed_T: Tensor, weights: list[Tensor] | None = None
    ) -> Tensor:
        """[T, D] to [T, D]; `weights`, when a list, gets one [B, H, L, L] per layer."""
        for i in range(self.depth):
            layer = self.groups[i * len(self.groups) // self.depth]
            x_TD = layer(x_TD, batch, packed_T, weights)
        return x_TD
