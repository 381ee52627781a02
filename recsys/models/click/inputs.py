"""What every ranker starts with: vectors of the candidate, of the history, and of all beside.

Dimensions: B questions, L padded history, I distinct items of the batch, M codes of a bag, D width
of an item (its id and its fields side by side), F width of what stands beside.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from recsys.attention.dropout import Dropout
from recsys.batch import ClickBatch

USER_ID = "user_id"  # the field that is as wide as an item's id


class ClickVectors(NamedTuple):
    """A batch as vectors.

    Attributes:
        candidates_BD: the items asked about.
        histories_BLD: the events before, oldest first.
        beside_BF: fields of user and context.
    """

    candidates_BD: Tensor
    histories_BLD: Tensor
    beside_BF: Tensor


class Field(nn.Module):
    """A field as a vector: the embedding of a code, the mean over a bag, or a number's multiple.

    Missing values (code 0, an empty bag, the number 0) give zeros. So do values unknown to the
    vocabulary (code 1) until training has seen some.

    Args:
        size: number of codes, with 0 for missing and 1 for unknown; 0 means a number.
        width: of the vector.
        scale: standard deviation of the weights at the start.
    """

    def __init__(self, size: int, width: int, scale: float) -> None:
        super().__init__()
        self.table = nn.Embedding(max(size, 1), width, padding_idx=0 if size else None)
        self.is_number = size == 0
        nn.init.normal_(self.table.weight, std=scale)
        if not self.is_number:
            with torch.no_grad():
                self.table.weight[:2] = 0

    def forward(self, values: Tensor, bag: bool = False) -> Tensor:
        """The vectors: a dimension `width` is added, that of a bag taken away."""
        if self.is_number:
            return values[..., None] * self.table.weight[0]
        vectors: Tensor = self.table(values)
        if not bag:
            return vectors
        return vectors.sum(-2) / (values > 0).sum(-1, keepdim=True).clamp(min=1)


class ClickInputs(nn.Module):
    """Embeds a `ClickBatch`.

    An item is its id's embedding and its fields' side by side, one table for candidates and
    history; it is made once per distinct item. An event of the history is its item, moved and
    stretched by the event's own fields (its label, how long ago): x · (1 + a) + b, with a and b
    embeddings of those fields and a = 0 at the start. The candidate has no such fields, so nothing
    of the answer can get in.

    Args:
        catalogue_size: V, number of items plus one for padding.
        user_fields: number of codes by name, 0 for numbers. "user_id" gets the width of an item id.
        item_fields: the same of items.
        event_fields: the same of past events.
        context_fields: the same of the question itself.
        width: of an item id's embedding.
        field_width: of every other field's.
        dropout: on the vectors.
        initial_scale: standard deviation of the embeddings at the start.

    Attributes:
        item_width: D.
        beside_width: F.
    """

    def __init__(
        self,
        catalogue_size: int,
        user_fields: dict[str, int],
        item_fields: dict[str, int],
        event_fields: dict[str, int],
        context_fields: dict[str, int],
        width: int,
        field_width: int,
        dropout: float,
        initial_scale: float,
    ) -> None:
        super().__init__()
        for name, value in (("width", width), ("field_width", field_width)):
            if value < 1:
                raise ValueError(f"{name} must be at least 1, not {value}")
        self.items = nn.Embedding(catalogue_size, width, padding_idx=0)
        nn.init.normal_(self.items.weight, std=initial_scale)
        with torch.no_grad():
            self.items.weight[0] = 0
        self.item_width = width + field_width * len(item_fields)

        def fields(sizes: dict[str, int], scale: float, own: int | None = None) -> nn.ModuleDict:
            # An underscore behind each name: ModuleDict has attributes such as "type" and "items".
            return nn.ModuleDict(
                {
                    f"{name}_": Field(
                        size,
                        own or (width if sizes is user_fields and name == USER_ID else field_width),
                        scale,
                    )
                    for name, size in sizes.items()
                }
            )

        self.user_fields = fields(user_fields, initial_scale)
        self.item_fields = fields(item_fields, initial_scale)
        self.context_fields = fields(context_fields, initial_scale)
        self.event_shifts = fields(event_fields, initial_scale, self.item_width)
        self.event_stretches = fields(event_fields, 0.0, self.item_width)
        own_width = width if USER_ID in user_fields else field_width
        others = len(user_fields) + len(context_fields)
        self.beside_width = own_width + field_width * (others - 1) if others else 0
        self.dropout = Dropout(dropout)

    def forward(self, batch: ClickBatch) -> ClickVectors:
        """The vectors of a batch."""
        parts = [self.items(batch.item_ids_I)]
        for key, field in self.item_fields.items():
            values = batch.item_fields[key[:-1]]
            parts.append(field(values, bag=values.ndim == 2))
        items_ID = self.dropout(torch.cat(parts, -1))
        candidates_BD = items_ID[batch.candidates_B]
        histories_BLD = nn.functional.embedding(batch.history_BL, items_ID)
        if len(self.event_shifts):
            stretch = shift = torch.zeros((), device=items_ID.device)
            for key in self.event_shifts:
                values = batch.event_fields[key[:-1]]
                bag = values.ndim == 3
                stretch = stretch + self.event_stretches[key](values, bag)
                shift = shift + self.event_shifts[key](values, bag)
            histories_BLD = histories_BLD * (1 + stretch) + shift
        beside = [candidates_BD.new_zeros(candidates_BD.shape[0], 0)]
        for fields, given in (
            (self.user_fields, batch.user_fields),
            (self.context_fields, batch.context_fields),
        ):
            for key, field in fields.items():
                values = given[key[:-1]]
                beside.append(field(values, bag=values.ndim == 2))
        return ClickVectors(candidates_BD, histories_BLD, self.dropout(torch.cat(beside, -1)))


class Biases(nn.Module):
    """A weight of the candidate and one of the user, to be added to a network's logit.

    The wide part of arXiv 1606.07792 (eq. 3), cut down to the two fields that matter most: without
    it a network whose embeddings L2 holds small has to say "everybody likes this one" with those
    embeddings. All weights are 0 at the start, those of unknown users stay so.

    Args:
        catalogue_size: V, number of items plus one for padding.
        user_fields: number of codes by name; without "user_id" there is no weight of the user.
    """

    def __init__(self, catalogue_size: int, user_fields: dict[str, int]) -> None:
        super().__init__()
        self.items = nn.Embedding(catalogue_size, 1, padding_idx=0)
        nn.init.zeros_(self.items.weight)
        self.users: Field | None = None
        if USER_ID in user_fields:
            self.users = Field(user_fields[USER_ID], 1, 0.0)

    def forward(self, batch: ClickBatch) -> Tensor:
        """What to add to the logits: [B]."""
        biases_B1: Tensor = self.items(batch.item_ids_I[batch.candidates_B])
        if self.users is not None:
            biases_B1 = biases_B1 + self.users(batch.user_fields[USER_ID])
        return biases_B1.squeeze(1)


def mean_of_history(histories_BLD: Tensor, batch: ClickBatch) -> Tensor:
    """[B, D]: the mean over the valid events; zeros for an empty history."""
    weights_BL = batch.valid_BL / batch.lengths_B.clamp(min=1)[:, None]
    return (weights_BL[:, None].to(histories_BLD.dtype) @ histories_BLD).squeeze(1)
