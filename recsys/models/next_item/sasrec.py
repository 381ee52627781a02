"""SASRec: self-attentive sequential recommendation (arXiv 1808.09781).

A causal Transformer over the items of a history; the hidden state of an event is scored against
every item by dot product to predict the event that follows.

Dimensions: B histories, L padded length, T packed events, D width, V catalogue incl. padding.

Deviations from the paper:

* Trained by any objective of `recsys.objectives`, by default the exact softmax over the catalogue
  in place of one sampled negative (which is worth a third of the NDCG, arXiv 2309.07602).
* Heads are projected after concatenation, as in the Transformer; the authors' code adds them up
  without a projection.
* Histories are padded on the right, so padding is never attended to. Positions count from the
  oldest event in view; the authors pad on the left, which counts from the newest
  (positions="newest").
* The item embedding is multiplied by `embedding_scale` (the paper's code: √D), and by nothing
  when it is 1.
* The epsilon of the layer norms is torch's 1e-5; the authors' is 1e-8.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from recsys.attention.dropout import Dropout
from recsys.attention.layers import AttentionLayer, LayerStack, Norm
from recsys.attention.multi_head import Heads
from recsys.attention.positions import CountFrom, LearnedPositions
from recsys.batch import HistoryBatch

# A product of fewer rows is summed in another order, even by one thread: the last bits of a score
# would depend on who is asked together.
FEWEST_ROWS = 8


class SASRec(nn.Module):
    """Self-attentive next-item model.

    Args:
        catalogue_size: V, number of items plus one for padding.
        max_length: newest events the model sees.
        width: D.
        heads: H, must divide D.
        layers: number of attention layers.
        dropout: on embeddings, attention output and feed-forward.
        attention_dropout: on the attention weights.
        embedding_scale: factor on the item embeddings where they enter; None: √D, as the paper.
        feedforward: width inside the feed-forward, as a multiple of D (the paper: 1).
        activation: of the feed-forward.
        norm: "input" (the authors' form), "pre" or "post"; see `AttentionLayer`.
        positions: counted from "newest" or "oldest"; see `LearnedPositions`.
        combine_heads: "concatenate" or "average".
        parameter_groups: how many of the layers have parameters of their own; None: all.
        tied_output: score with the input item table; else with a table of its own.
        initial_scale: standard deviation of the item table at the start.

    Raises:
        ValueError: an argument outside its range, named in the message.
    """

    def __init__(
        self,
        catalogue_size: int,
        max_length: int = 200,
        width: int = 64,
        heads: int = 1,
        layers: int = 2,
        dropout: float = 0.2,
        attention_dropout: float = 0.0,
        embedding_scale: float | None = None,
        feedforward: int = 1,
        activation: Literal["relu", "gelu"] = "relu",
        norm: Norm = "input",
        positions: CountFrom = "oldest",
        combine_heads: Heads = "concatenate",
        parameter_groups: int | None = None,
        tied_output: bool = True,
        initial_scale: float = 0.02,
    ) -> None:
        super().__init__()
        for name, value in (
            ("max_length", max_length),
            ("width", width),
            ("layers", layers),
            ("feedforward", feedforward),
        ):
            if value < 1:
                raise ValueError(f"{name} must be at least 1, not {value}")
        if not 0 < initial_scale < float("inf"):
            raise ValueError(f"initial_scale must be positive, not {initial_scale}")
        self.max_length = max_length
        self.embedding_scale = width**0.5 if embedding_scale is None else embedding_scale
        self.items = nn.Embedding(catalogue_size, width, padding_idx=0)
        self.positions = LearnedPositions(max_length, width, positions)
        self.dropout = Dropout(dropout)
        groups = layers if parameter_groups is None else parameter_groups
        self.layers = LayerStack(
            [
                AttentionLayer(
                    width,
                    heads,
                    feedforward * width,
                    dropout,
                    combine=combine_heads,
                    norm=norm,
                    activation=activation,
                    attention_dropout=attention_dropout,
                )
                for _ in range(groups)
            ],
            layers,
        )
        self.final_norm = nn.LayerNorm(width)
        self.output = None if tied_output else nn.Embedding(catalogue_size, width, padding_idx=0)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)
            elif isinstance(module, nn.Embedding):
                nn.init.normal_(module.weight, std=initial_scale)
                if module.padding_idx is not None:
                    with torch.no_grad():
                        module.weight[module.padding_idx].zero_()

    def forward(self, batch: HistoryBatch, weights: list[Tensor] | None = None) -> Tensor:
        """Hidden states of all events.

        Args:
            batch: histories, none longer than `max_length`.
            weights: when a list, gets the attention weights [B, H, L, L] of every layer, from the
                reference path.

        Returns:
            [T, D], in the order of `batch.packed_T`.
        """
        packed_T = batch.packed_T
        x_TD = self.layers(self._embedded(batch, packed_T), batch, packed_T, weights)
        hidden_TD: Tensor = self.final_norm(x_TD)
        return hidden_TD

    def _embedded(self, batch: HistoryBatch, packed_T: Tensor) -> Tensor:
        x_TD = self.items(batch.items_BL.flatten()[packed_T]) * self.embedding_scale
        embedded_TD: Tensor = self.dropout(x_TD + self.positions(batch, packed_T))
        return embedded_TD

    def encode(self, batch: HistoryBatch) -> Tensor:
        """What each history asks for: the hidden state of its newest event, [B, D] float32.

        An empty history gives zeros: every item scores 0.
        """
        packed_T = batch.packed_T
        if 0 < len(packed_T) < FEWEST_ROWS:
            return self.encode(batch.with_others(FEWEST_ROWS))[:-FEWEST_ROWS]
        x_TD = self._embedded(batch, packed_T)
        if len(x_TD) == 0:
            return x_TD.new_zeros(len(batch.lengths_B), x_TD.shape[1], dtype=torch.float32)
        # The last layer works on the newest events alone: nobody asks for the others.
        newest_B = (batch.lengths_B.cumsum(0) - 1).clamp(min=0)
        newest_R = nn.functional.pad(newest_B, (0, max(0, FEWEST_ROWS - len(newest_B))))
        x_RD = self.layers.newest(x_TD, batch, packed_T, newest_R)
        hidden_BD = self.final_norm(x_RD[: len(newest_B)]).float()
        return torch.where((batch.lengths_B > 0)[:, None], hidden_BD, 0.0)

    def item_table(self) -> Tensor:
        """What the hidden states are scored against, [V, D]; row 0 is padding."""
        return (self.items if self.output is None else self.output).weight
