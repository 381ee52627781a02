"""SASRec obeys the laws, and its options do what they say."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from recsys.models.next_item.sasrec import SASRec
from recsys.testing import NextItemLaws, batch_of


class TestSASRec(NextItemLaws):
    prefix_invariant = True  # positions count from the oldest event

    def build(self, catalogue_size: int, max_length: int) -> nn.Module:
        return SASRec(catalogue_size, max_length, width=16, heads=2, layers=2, dropout=0.3)


class TestSASRecOtherOptions(NextItemLaws):
    def build(self, catalogue_size: int, max_length: int) -> nn.Module:
        return SASRec(
            catalogue_size,
            max_length,
            width=12,
            heads=3,
            layers=3,
            dropout=0.1,
            feedforward=4,
            activation="gelu",
            norm="post",
            positions="newest",
            attention_dropout=0.2,
            combine_heads="average",
            parameter_groups=1,
            tied_output=False,
        )


class TestSASRecPreNorm(NextItemLaws):
    prefix_invariant = True

    def build(self, catalogue_size: int, max_length: int) -> nn.Module:
        return SASRec(catalogue_size, max_length, width=8, norm="pre", parameter_groups=1, layers=2)


def parameters(**options: object) -> int:
    model = SASRec(30, 10, width=8, **options)  # type: ignore[arg-type]
    return sum(parameter.numel() for parameter in model.parameters())


def test_sharing_removes_parameters_and_groups_stand_between() -> None:
    one, two, four = (parameters(layers=4, parameter_groups=g) for g in (1, 2, 4))
    assert one < two < four == parameters(layers=4)
    layer = two - one
    assert four - two == 2 * layer


@torch.no_grad()
def test_shared_layers_equal_separate_layers_with_equal_weights() -> None:
    shared = SASRec(30, 10, width=8, layers=2, parameter_groups=1).eval()
    separate = SASRec(30, 10, width=8, layers=2).eval()
    weights = dict(shared.state_dict())
    for name, value in shared.state_dict().items():
        if name.startswith("layers.groups.0."):
            weights[name.replace("groups.0.", "groups.1.")] = value
    separate.load_state_dict(weights)
    batch = batch_of([[1, 2, 3], [4, 5]])
    torch.testing.assert_close(shared(batch), separate(batch))


@torch.no_grad()
def test_tied_table_is_the_input_table() -> None:
    tied, free = SASRec(30, 10, width=8), SASRec(30, 10, width=8, tied_output=False)
    assert tied.item_table() is tied.items.weight
    assert free.item_table() is not free.items.weight


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"width": 10, "heads": 4}, "width 10 is not divisible by heads 4; .* is 5"),
        ({"norm": "between"}, "norm must be 'input', 'pre' or 'post', not 'between'"),
        ({"combine_heads": "sum"}, "'concatenate' or 'average', not 'sum'"),
        ({"activation": "selu"}, "'relu' or 'gelu', not 'selu'"),
        ({"dropout": 1.0}, r"dropout must be in \[0, 1\), not 1.0"),
        ({"layers": 0}, "layers must be at least 1, not 0"),
        ({"layers": 2, "parameter_groups": 3}, "between 1 and 2 groups of parameters, not 3"),
    ],
)
def test_wrong_options_are_named(options: dict[str, object], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        SASRec(30, 10, **options)  # type: ignore[arg-type]
