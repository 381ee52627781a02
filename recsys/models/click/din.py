"""DIN: Deep Interest Network for click-through rate prediction (arXiv 1706.06978).

The candidate attends to the history; what it finds there, the candidate itself, their product, and
the fields of user and context go through a network to one logit.

Dimensions: B questions, L padded history, D width of an item with its fields, H heads.

Deviations from the paper:

* The attended history is also multiplied with the candidate, element by element (as in the
  authors' published code), which the paper's figure leaves out.
* The activation unit sees q, k, q − k and q ∘ k (as the authors' code); the paper's figure shows
  the outer product in place of the last two.
* Weights are divided by the number of events when `scale_by_length` is set: a sum over 50 events is
  fifty times one over a single event, and the network would have to learn to undo that.
* Biases of user and candidate beside the network, when `biases` is set.
* Heads, layers, other scores and normalisers are options of `recsys.attention.target`.
* Mini-batch-aware regularisation is an option of training (`recsys.objectives.clicks`).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from recsys.attention.activations import Activation
from recsys.attention.target import Combine, Normalizer, Score, TargetAttentionStack
from recsys.batch import ClickBatch
from recsys.models.click.inputs import Biases, ClickInputs
from recsys.models.click.perceptron import DEFAULT_HIDDEN, Perceptron


class DIN(nn.Module):
    """Target attention over the history, then a network.

    Args:
        catalogue_size: V, number of items plus one for padding.
        user_fields: number of codes by name, 0 for numbers.
        item_fields: the same of items.
        event_fields: the same of past events.
        context_fields: the same of the question itself.
        max_length: newest events the model sees.
        width: of an item id's embedding.
        field_width: of every other field's embedding.
        heads: H.
        layers: of target attention.
        parameter_groups: how many of the layers have parameters of their own; None: all.
        score: "additive" (the activation unit), "dot" or "bilinear".
        normalize: "none" (the paper), "softmax" or "sigmoid".
        scale_by_length: divide the weights by the number of events; of no use after a softmax.
        combine_heads: "concatenate" or "average".
        attention_units: hidden units of each head's activation unit, None for 64; other scores
            have none.
        hidden: widths of the network's layers.
        activation: of network and activation unit: "dice", "prelu", "relu", "sigmoid".
        dropout: in the network.
        embedding_dropout: on the embeddings.
        biases: a weight of the candidate and one of the user are added to the network's logit.
        initial_scale: standard deviation of the embeddings at the start.

    Raises:
        ValueError: an argument outside its range, named in the message.
    """

    def __init__(
        self,
        catalogue_size: int,
        user_fields: dict[str, int],
        item_fields: dict[str, int],
        event_fields: dict[str, int],
        context_fields: dict[str, int],
        max_length: int,
        width: int = 32,
        field_width: int = 8,
        heads: int = 1,
        layers: int = 1,
        parameter_groups: int | None = None,
        score: Score = "additive",
        normalize: Normalizer = "none",
        scale_by_length: bool = True,
        combine_heads: Combine = "concatenate",
        attention_units: int | None = None,
        hidden: list[int] = DEFAULT_HIDDEN,
        activation: Activation = "dice",
        dropout: float = 0.0,
        embedding_dropout: float = 0.0,
        biases: bool = False,
        initial_scale: float = 0.01,
    ) -> None:
        super().__init__()
        if max_length < 1:
            raise ValueError(f"max_length must be at least 1, not {max_length}")
        self.max_length = max_length
        self.inputs = ClickInputs(
            catalogue_size,
            user_fields,
            item_fields,
            event_fields,
            context_fields,
            width,
            field_width,
            embedding_dropout,
            initial_scale,
        )
        D = self.inputs.item_width
        self.attention = TargetAttentionStack(
            D,
            layers,
            parameter_groups,
            heads,
            score,
            normalize,
            scale_by_length,
            combine_heads,
            attention_units,
            activation,
        )
        self.network = Perceptron(3 * D + self.inputs.beside_width, hidden, activation, dropout)
        self.biases = Biases(catalogue_size, user_fields) if biases else None

    def forward(self, batch: ClickBatch, weights: list[Tensor] | None = None) -> Tensor:
        """Logits [B].

        Args:
            batch: the questions.
            weights: when a list, it gets the attention weights [B, H, L] of each layer.
        """
        vectors = self.inputs(batch)
        candidates_BD = vectors.candidates_BD
        interest_BD = self.attention(candidates_BD, vectors.histories_BLD, batch.valid_BL, weights)
        logits_B: Tensor = self.network(
            torch.cat(
                [candidates_BD, interest_BD, candidates_BD * interest_BD, vectors.beside_BF], -1
            )
        )
        return logits_B if self.biases is None else logits_B + self.biases(batch)
