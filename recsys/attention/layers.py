"""Layers of attention, stacked.

Dimensions: T packed events, D width.
"""

from __future__ import annotations

from typing import Literal, cast

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
        if self.norm == "input":
            asks_TD = self.attention_norm(x_TD)
            attended_TD = self.attention(asks_TD, x_TD, batch, packed_T, weights)
        elif self.norm == "pre":
            n_TD = self.attention_norm(x_TD)
            asks_TD, attended_TD = x_TD, self.attention(n_TD, n_TD, batch, packed_T, weights)
        else:
            asks_TD, attended_TD = x_TD, self.attention(x_TD, x_TD, batch, packed_T, weights)
        return self._behind_attention(asks_TD, attended_TD)

    def newest(
        self, x_TD: Tensor, batch: HistoryBatch, packed_T: Tensor, newest_R: Tensor
    ) -> Tensor:
        """Only the newest event of each history, all that a last layer is asked for: [R, D].

        Args:
            x_TD: all packed events.
            batch: whose events they are.
            packed_T: `batch.packed_T`.
            newest_R: where each history's newest event stands in `x_TD`; any place for an empty
                one, whose row then means nothing. There may be more rows behind the last history,
                of no meaning either.
        """
        x_RD = x_TD[newest_R]
        if self.norm == "input":
            asks_RD = self.attention_norm(x_RD)
            attended_RD = self.attention.newest(asks_RD, x_TD, batch, packed_T)
        elif self.norm == "pre":
            n_TD = self.attention_norm(x_TD)
            asks_RD = x_RD
            attended_RD = self.attention.newest(n_TD[newest_R], n_TD, batch, packed_T)
        else:
            asks_RD = x_RD
            attended_RD = self.attention.newest(x_RD, x_TD, batch, packed_T)
        return self._behind_attention(asks_RD, attended_RD)

    def _behind_attention(self, x: Tensor, attended: Tensor) -> Tensor:
        """Residual paths and feed-forward, each event for itself."""
        forward, drop = self.feed_forward, self.dropout
        if self.norm == "input":
            n = self.feed_forward_norm(x + drop(attended))
            out: Tensor = n + drop(forward(n))
        elif self.norm == "pre":
            x = x + drop(attended)
            out = x + drop(forward(self.feed_forward_norm(x)))
        else:
            x = self.attention_norm(x + drop(attended))
            out = self.feed_forward_norm(x + drop(forward(x)))
        return out


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
        for layer in self._applied():
            x_TD = layer(x_TD, batch, packed_T, weights)
        return x_TD

    def newest(
        self, x_TD: Tensor, batch: HistoryBatch, packed_T: Tensor, newest_R: Tensor
    ) -> Tensor:
        """[T, D] to [R, D], the newest events' rows of `forward`; see `AttentionLayer.newest`."""
        *others, last = self._applied()
        for layer in others:
            x_TD = layer(x_TD, batch, packed_T)
        return last.newest(x_TD, batch, packed_T, newest_R)

    def _applied(self) -> list[AttentionLayer]:
        groups = len(self.groups)
        return [
            cast(AttentionLayer, self.groups[i * groups // self.depth]) for i in range(self.depth)
        ]
