"""Logistic regression on every field: the linear baseline of every click table.

Dimensions: B questions, L padded history.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from recsys.batch import ClickBatch
from recsys.models.click.inputs import ClickInputs, mean_of_history


class LogisticRegression(nn.Module):
    """A weight for each item, each value of each field, and each item of the history.

    logit = b + w[candidate] + Σ w[value of a field] + mean over the history of u[event], where u is
    a table of its own and an event's fields add to it. Nothing multiplies anything else, so the
    history moves all candidates of a user alike.

    Args:
        catalogue_size: V, number of items plus one for padding.
        user_fields: number of codes by name, 0 for numbers.
        item_fields: the same of items.
        event_fields: the same of past events.
        context_fields: the same of the question itself.
        max_length: newest events the model sees.

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
    ) -> None:
        super().__init__()
        if max_length < 1:
            raise ValueError(f"max_length must be at least 1, not {max_length}")
        self.max_length = max_length
        self.inputs = ClickInputs(
            catalogue_size,
            user_fields,
            item_fields,
            {},
            context_fields,
            width=1,
            field_width=1,
            dropout=0.0,
            initial_scale=0.0,
        )
        self.history = ClickInputs(
            catalogue_size,
            {},
            item_fields,
            event_fields,
            {},
            width=1,
            field_width=1,
            dropout=0.0,
            initial_scale=0.0,
        )
        self.offset = nn.Parameter(torch.zeros(1))

    def forward(self, batch: ClickBatch) -> Tensor:
        """Logits [B]."""
        vectors = self.inputs(batch)
        history_BD = mean_of_history(self.history(batch).histories_BLD, batch)
        return (
            self.offset
            + vectors.candidates_BD.sum(-1)
            + vectors.beside_BF.sum(-1)
            + history_BD.sum(-1)
        ).float()
