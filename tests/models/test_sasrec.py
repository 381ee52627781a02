"""SASRec obeys the laws, and its options do what they say."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from recsys.attention.dropout import Dropout
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
@pytest.mark.parametrize("group_of_layer", [[0, 0, 0, 0], [0, 0, 1, 1], [0, 0, 1, 2]])
def test_shared_layers_equal_separate_layers_with_equal_weights(group_of_layer: list[int]) -> None:
    groups = len(set(group_of_layer))
    shared = SASRec(30, 10, width=8, layers=4, parameter_groups=groups).eval()
    separate = SASRec(30, 10, width=8, layers=4).eval()
    for layer, group in zip(separate.layers.groups, group_of_layer, strict=True):
        layer.load_state_dict(shared.layers.groups[group].state_dict())
    for name in ("items", "positions", "final_norm"):
        getattr(separate, name).load_state_dict(getattr(shared, name).state_dict())
    batch = batch_of([[1, 2, 3], [4, 5]])
    torch.testing.assert_close(shared(batch), separate(batch))


@torch.no_grad()
@pytest.mark.parametrize(
    "options",
    [
        {"heads": 4},
        {"embedding_scale": 1.0},
        {"feedforward": 4},
        {"activation": "gelu"},
        {"norm": "pre"},
        {"norm": "post"},
        {"positions": "newest"},
        {"combine_heads": "average"},
        {"parameter_groups": 1},
        {"initial_scale": 0.1},
    ],
)
def test_every_option_changes_the_scores(options: dict[str, object]) -> None:
    batch = batch_of([[1, 2, 3], [4, 5]])
    scores = []
    for given in ({}, options):
        torch.manual_seed(0)
        model = SASRec(30, 10, width=8, **{"heads": 2, **given}).eval()  # type: ignore[arg-type]
        scores.append(model.encode(batch) @ model.item_table().T)
    assert not torch.allclose(*scores)


@torch.no_grad()
def test_every_dropout_drops_in_training() -> None:
    model = SASRec(30, 10, width=8, layers=1, dropout=0.5, attention_dropout=0.25).eval()
    places = [module for module in model.modules() if isinstance(module, Dropout)]
    # Embeddings, attention weights, inside the feed-forward, both residual paths.
    assert sorted(place.rate for place in places) == [0.25, 0.5, 0.5, 0.5]
    batch = batch_of([[1, 2, 3], [4, 5]])
    expected = model(batch)
    for place in places:
        place.train()
        assert not torch.allclose(model(batch), expected)
        place.eval()


@torch.no_grad()
def test_embeddings_enter_times_the_root_of_the_width() -> None:
    batch = batch_of([[1, 2, 3], [4, 5]])
    plain, scaled = (SASRec(30, 10, width=16, embedding_scale=s).eval() for s in (1.0, None))
    plain.load_state_dict(scaled.state_dict())
    plain.items.weight *= 4
    torch.testing.assert_close(plain(batch), scaled(batch))


@torch.no_grad()
def test_weights_at_the_start() -> None:
    torch.manual_seed(0)
    model = SASRec(3000, 50, width=64, initial_scale=0.05, tied_output=False)
    assert model.output is not None
    for table in (model.items, model.output):
        assert table.weight[1:].std().item() == pytest.approx(0.05, rel=0.02)
        assert table.weight[0].abs().sum() == 0
    linear = [module for module in model.modules() if isinstance(module, nn.Linear)]
    assert len(linear) == 2 * 6
    for module in linear:
        assert module.weight.std().item() == pytest.approx((1 / 64) ** 0.5, rel=0.05)  # Xavier
        assert module.bias.abs().sum() == 0


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
        ({"initial_scale": 0.0}, "initial_scale must be positive, not 0.0"),
        ({"layers": 2, "parameter_groups": 3}, "between 1 and 2 groups of parameters, not 3"),
    ],
)
def test_wrong_options_are_named(options: dict[str, object], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        SASRec(30, 10, **options)  # type: ignore[arg-type]
