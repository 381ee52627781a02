"""Objectives of rankers: binary cross-entropy, and two ways of holding embeddings small.

Dimensions: B questions, I distinct items of the batch, L padded history, V catalogue.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from recsys.batch import ClickBatch


def binary_cross_entropy(logits_B: Tensor, labels_B: Tensor) -> Tensor:
    """Mean of −[y log σ(z) + (1 − y) log(1 − σ(z))], from logits, so that no log meets a zero.

    >>> float(binary_cross_entropy(torch.tensor([0.0, 200.0]), torch.tensor([1.0, 1.0])))
    0.34657...
    """
    return nn.functional.binary_cross_entropy_with_logits(logits_B.float(), labels_B)


def occurrences(batch: ClickBatch) -> tuple[Tensor, Tensor]:
    """How often each item of the batch is a candidate, and an event of a history: two [I]."""
    count = len(batch.item_ids_I)
    candidates_I = torch.bincount(batch.candidates_B, minlength=count)
    histories_I = torch.bincount(batch.history_BL.flatten(), minlength=count)
    histories_I[0] = 0  # padding
    return candidates_I, histories_I


class OccurrenceDecay(nn.Module):
    """L2 on the embeddings of what occurs, each as often as it occurs.

    λ · (mean over candidates of |w|² + mean over the histories' events of |w|² + mean over the
    questions of |w of each user field's code|²): the plain L2 of the vectors that went through the
    network, so frequent items are held as firmly as they are trained.

    Args:
        weight: λ.
    """

    def __init__(self, weight: float) -> None:
        super().__init__()
        self.weight = weight

    def forward(self, model: nn.Module, batch: ClickBatch) -> Tensor:
        """The penalty on a model that has `inputs: ClickInputs`."""
        inputs: Any = model.inputs
        candidates_I, histories_I = occurrences(batch)
        shares_I = candidates_I / candidates_I.sum() + histories_I / histories_I.sum().clamp(min=1)
        penalty = shares_I @ inputs.items(batch.item_ids_I).square().sum(-1)
        for key, field in inputs.user_fields.items():
            values = batch.user_fields[key[:-1]]
            vectors = field(values, bag=values.ndim == 2)
            penalty = penalty + vectors.square().sum(-1).mean()
        return self.weight * penalty


class MiniBatchAware(nn.Module):
    """DIN's mini-batch-aware regularisation (arXiv 1706.06978, eq. 4 to 6), of item vectors only.

    λ/2 · Σ_j α_mj / n_j |w_j|² over the items j, with α_mj = 1 if j occurs in the batch and n_j how
    often it occurs in the training questions, as candidate or in a history. Only what occurs in a
    batch is regularised in its step, and rare items more than frequent ones.

    The paper sums over the embeddings of all sparse features. Here those of users, of fields of
    items and events, and of context are left free: only items are counted. `OccurrenceDecay` holds
    user fields too.

    Args:
        weight: λ.
        counts_V: n_j.
    """

    counts_V: Tensor

    def __init__(self, weight: float, counts_V: Tensor) -> None:
        super().__init__()
        self.weight = weight
        self.register_buffer("counts_V", counts_V.clamp(min=1).float(), persistent=False)

    def forward(self, model: nn.Module, batch: ClickBatch) -> Tensor:
        """The penalty on a model that has `inputs: ClickInputs`."""
        inputs: Any = model.inputs
        candidates_I, histories_I = occurrences(batch)
        occurs_I = (candidates_I + histories_I) > 0
        shares_I = occurs_I / self.counts_V[batch.item_ids_I]
        squares_I = inputs.items(batch.item_ids_I).square().sum(-1)
        return 0.5 * self.weight * (shares_I @ squares_I)
