"""The attention weights that made an output, from the forward pass that made it.

A model has attention to show if its `forward(batch, weights)` fills a list with the weights of each
layer: [B, H, L, L] where every event looks at the others, [B, H, L] where a candidate looks at the
history.

Dimensions: B histories, L padded length, D width, H heads, M maps (each head of each layer).
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from recsys.batch import ClickBatch, HistoryBatch

LARGEST_MAPS = 1 << 22  # weights of one head in one forward pass


class NoAttentionError(ValueError):
    """A model that has no attention weights to show, or more of them than fit."""


@dataclass(frozen=True)
class Attended:
    """An output and the weights that made it.

    Attributes:
        output: of a next-item model the hidden states of the newest events [B, D] (zeros for an
            empty history), of a ranker the logits [B].
        weights: of each layer, [B, H, L, L] or [B, H, L].
        lengths: events of each of the B histories.
    """

    output: Tensor
    weights: list[Tensor]
    lengths: list[int]

    def maps(self, row: int) -> np.ndarray:
        """What one history's question looked at: float64 [M, length], layer by layer.

        Where every event looks at the others, the one that asks is the newest.
        """
        length = self.lengths[row]
        parts = [
            layer[row, :, max(length - 1, 0)] if layer.ndim == 4 else layer[row]
            for layer in self.weights
        ]
        return torch.cat(parts)[:, :length].double().cpu().numpy()

    def rolled_out(self, row: int) -> np.ndarray | None:
        """What reached the newest event through all layers: float64 [length].

        Attention rollout (arXiv 2005.00928): of each layer half is the mean of its heads and half
        the event itself, which the residual path hands on; the layers are multiplied. None where a
        candidate looks at the history, of which no layer changes anything.
        """
        if self.weights[0].ndim == 3:
            return None
        length = self.lengths[row]
        reached_L = np.zeros(length)
        reached_L[-1:] = 1
        for layer in reversed(self.weights):
            mean_LL = layer[row, :, :length, :length].double().mean(0).cpu().numpy()
            reached_L = (reached_L @ mean_LL + reached_L) / 2
        return reached_L


def has_attention(model: object) -> bool:
    """Whether a model gives its weights on request."""
    if not isinstance(model, nn.Module):
        return False
    return "weights" in inspect.signature(model.forward).parameters


def check_attention(model: object, name: str) -> None:
    """Refuses a model without attention.

    Args:
        model: any.
        name: what a person calls it.

    Raises:
        NoAttentionError: saying which models have some.
    """
    if not has_attention(model):
        raise NoAttentionError(
            f"{name} has no attention to explain; models that have: SASRec (model=sasrec) for the "
            "next item, DIN (model=din) for clicks, and those of one's own whose forward takes "
            "weights"
        )


@torch.no_grad()
def attend(model: Any, batch: HistoryBatch | ClickBatch) -> Attended:
    """Runs a model once and keeps the weights of every layer.

    Args:
        model: in evaluation mode, with attention.
        batch: the histories, or the questions of a ranker.

    Raises:
        NoAttentionError: the model gives no weights, or those of so long a history do not fit into
            memory.
    """
    assert not model.training
    device = next(model.parameters()).device
    rows, length = len(batch.lengths_B), batch.valid_BL.shape[1]
    if isinstance(batch, HistoryBatch) and rows * length**2 > LARGEST_MAPS:
        raise NoAttentionError(
            f"the model reads {length:,} events: maps of {length:,} × {length:,} weights a head "
            f"are more than the {int(LARGEST_MAPS**0.5):,} × {int(LARGEST_MAPS**0.5):,} that can "
            "be explained"
        )
    weights: list[Tensor] = []
    batch = batch.to(device)
    output: Tensor = model(batch, weights)
    if not weights or not all(
        isinstance(layer, Tensor) and layer.ndim in (3, 4) and layer.shape[0] == rows
        for layer in weights
    ):
        raise NoAttentionError(
            f"{type(model).__name__}.forward takes weights and does not fill the list with one "
            "tensor [B, H, L, L] or [B, H, L] a layer"
        )
    if isinstance(batch, HistoryBatch):
        newest_B = (batch.lengths_B.cumsum(0) - 1).clamp(min=0)
        hidden_TD = output if len(output) else output.new_zeros(1, output.shape[1])
        output = torch.where((batch.lengths_B > 0)[:, None], hidden_TD[newest_B], 0.0)
    return Attended(output, weights, batch.lengths_B.tolist())


def map_names(weights: Sequence[Tensor]) -> list[str]:
    """What the M maps are called, in the order of `Attended.maps`.

    >>> map_names([torch.zeros(1, 2, 5)] * 2)
    ['layer 1 head 1', 'layer 1 head 2', 'layer 2 head 1', 'layer 2 head 2']
    >>> map_names([torch.zeros(1, 2, 5)]), map_names([torch.zeros(1, 1, 5)] * 2)
    (['head 1', 'head 2'], ['layer 1', 'layer 2'])
    >>> map_names([torch.zeros(1, 1, 5)])
    ['attention']
    """
    heads, layers = weights[0].shape[1], len(weights)
    if heads == layers == 1:
        return ["attention"]
    names = []
    for layer in range(1, layers + 1):
        for head in range(1, heads + 1):
            parts = [f"layer {layer}"] * (layers > 1) + [f"head {head}"] * (heads > 1)
            names.append(" ".join(parts))
    return names
