"""Mean pooling: DIN's network without attention, the baseline that DIN has to beat.

It is the base model of arXiv 1706.06978, figure 2, and of arXiv 1606.07792 and its kin: every event
of the history counts alike, whatever the candidate.

Dimensions: B questions, D width of an item with its fields.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from recsys.attention.activations import Activation
from recsys.batch import ClickBatch
from recsys.models.click.inputs import Biases, ClickInputs, mean_of_history
from recsys.models.click.perceptron import DEFAULT_HIDDEN, Perceptron


class MeanPooling(nn.Module):
    """The mean of the history, then the same network as DIN's.

    Args:
        catalogue_size: V, number of items plus one for padding.
        user_fields: number of codes by name, 0 for numbers.
        item_fields: the same of items.
        event_fields: the same of past events.
        context_fields: the same of the question itself.
        max_length: newest events the model sees.
        width: of an item id's embedding.
        field_width: of every other field's embedding.
        hidden: widths of the network's layers.
        activation: of the network: "dice", "prelu", "relu", "sigmoid".
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
        self.network = Perceptron(3 * D + self.inputs.beside_width, hidden, activation, dropout)
        self.biases = Biases(catalogue_size, user_fields) if biases else None

    def forward(self, batch: ClickBatch) -> Tensor:
        """Logits [B]."""
        vectors = self.inputs(batch)
        candidates_BD = vectors.candidates_BD
        interest_BD = mean_of_history(vectors.histories_BLD, batch)
        logits_B: Tensor = self.network(
            torch.cat(
                [candidates_BD, interest_BD, candidates_BD * interest_BD, vectors.beside_BF], -1
            )
        )
        return logits_B if self.biases is None else logits_B + self.biases(batch)
