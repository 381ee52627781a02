"""Layers of attention, stacked.

Dimensions: T packed events, D width.
"""

from __future__ import annotations

from typing import Literal

from torch import Tensor, nn

from recsys.attention.dropout import Dropout
from recsys.attention.multi_head import Heads, MultiHeadSelfAttention
from recsys.batch import HistoryBatch

Norm = Literal["input", "pre", "post"]


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

    * input: ``n + f(n)`` with ``n = norm(x)``; attention takes its queries from n, its keys and
      values from x. The form of SASRec's authors: what is passed on keeps the scale of the norm, so
      that small embeddings are not drowned by the first attention output.
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
        norm: Norm = "input",
        activation: Literal["relu", "gelu"] = "relu",
        attention_dropout: float = 0.0,
    ) -> None:
        super().__init__()
        if norm not in ("input", "pre", "post"):
            raise ValueError(f"norm must be 'input', 'pre' or 'post', not {norm!r}")
        self.norm = norm
        self.attention = MultiHeadSelfAttention(width, heads, combine, causal, attention_dropout)
        self.feed_forward = FeedForward(width, hidden, dropout, activation)
        self.attention_norm = nn.LayerNorm(width)
        self.feed_forward_norm = nn.LayerNorm(width)
        self.dropout = Dropout(dropout)

    def forward(
        self,
        x_TD: Tensor,
        batch: HistoryBatch,
        packed_T: Tensor,
        weights: list[Tensor] | None = None,
    ) -> Tensor:
        """[T, D] to [T, D]; appends the attention weights to `weights` when it is a list."""
        attend, forward, drop = self.attention, self.feed_forward, self.dropout
        if self.norm == "input":
            n_TD = self.attention_norm(x_TD)
            n_TD = self.feed_forward_norm(n_TD + drop(attend(n_TD, x_TD, batch, packed_T, weights)))
            x_TD = n_TD + drop(forward(n_TD))
        elif self.norm == "pre":
            n_TD = self.attention_norm(x_TD)
            x_TD = x_TD + drop(attend(n_TD, n_TD, batch, packed_T, weights))
            x_TD = x_TD + drop(forward(self.feed_forward_norm(x_TD)))
        else:
            x_TD = self.attention_norm(x_TD + drop(attend(x_TD, x_TD, batch, packed_T, weights)))
            x_TD = self.feed_forward_norm(x_TD + drop(forward(x_TD)))
        return x_TD


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
        self,
        x_TD: Tensor,
        batch: HistoryBatch,
        packed_T: Tensor,
        weights: list[Tensor] | None = None,
    ) -> Tensor:
        """[T, D] to [T, D]; `weights`, when a list, gets one [B, H, L, L] per layer."""
        for i in range(self.depth):
            layer = self.groups[i * len(self.groups) // self.depth]
            x_TD = layer(x_TD, batch, packed_T, weights)
        return x_TD
