"""Cross-entropy of clicks and the regularisers of rankers, against sums written out."""

from __future__ import annotations

import torch

from recsys.models.click.mean_pooling import MeanPooling
from recsys.objectives.clicks import MiniBatchAware, OccurrenceDecay, binary_cross_entropy
from recsys.testing import CLICK_FIELDS, click_batch_of


def example() -> tuple[MeanPooling, torch.Tensor, torch.Tensor]:
    torch.manual_seed(0)
    model = MeanPooling(10, **CLICK_FIELDS, max_length=5, width=4, initial_scale=1.0)
    items_V = model.inputs.items.weight.square().sum(1)
    users = model.inputs.user_fields["user_id_"].table.weight.square().sum(1)
    return model, items_V, users


def test_cross_entropy_of_extreme_logits_is_finite() -> None:
    loss = binary_cross_entropy(torch.tensor([1000.0, -1000.0]), torch.tensor([0.0, 0.0]))
    assert loss == 500.0


def test_occurrence_decay_is_the_mean_square_of_what_went_in() -> None:
    model, items_V, users = example()
    batch = click_batch_of([[1, 2, 2], [], [3]], [4, 4, 5], catalogue_size=10)
    expected = (items_V[4] * 2 + items_V[5]) / 3 + (items_V[1] + items_V[2] * 2 + items_V[3]) / 4
    expected = expected + users[batch.user_fields["user_id"]].mean()
    torch.testing.assert_close(OccurrenceDecay(0.5)(model, batch), 0.5 * expected)
    alone = click_batch_of([[]], [4], catalogue_size=10)
    assert torch.isfinite(OccurrenceDecay(0.5)(model, alone))


def test_mini_batch_aware_is_equation_6() -> None:
    model, items_V, _ = example()
    counts_V = torch.arange(10) * 2
    batch = click_batch_of([[1, 2, 2], []], [4, 2], catalogue_size=10)
    expected = items_V[1] / 2 + items_V[2] / 4 + items_V[4] / 8
    torch.testing.assert_close(MiniBatchAware(0.3, counts_V)(model, batch), 0.15 * expected)
