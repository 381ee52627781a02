"""Target attention and learned activations: the fast form equals the formula."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from recsys.attention import activations
from recsys.attention.activations import Activate, Dice
from recsys.attention.target import ActivationUnit, TargetAttention, TargetAttentionStack


def example(B: int = 3, L: int = 5, D: int = 6) -> tuple[Tensor, Tensor, Tensor]:
    """Queries, histories of 5, 2 and no events, and where they are valid."""
    torch.manual_seed(0)
    valid_BL = torch.arange(L) < torch.tensor([5, 2, 0])[:B, None]
    keys_BLD = torch.randn(B, L, D) * valid_BL[..., None]
    return torch.randn(B, D), keys_BLD.requires_grad_(), valid_BL


@pytest.mark.parametrize("heads", [1, 3])
@pytest.mark.parametrize("activation", ["relu", "sigmoid", "prelu", "dice"])
def test_the_activation_unit_equals_its_formula(heads: int, activation: str) -> None:
    query_BD, keys_BLD, valid_BL = example()
    query_BD.requires_grad_()
    unit = ActivationUnit(6, heads, 4, activation)  # type: ignore[arg-type]
    torch.nn.init.normal_(unit.offset)
    inputs = [query_BD, keys_BLD, *unit.parameters()]
    valid_BHL = valid_BL[:, None].expand(-1, heads, -1)
    results = []
    for scores_BHL in (unit(*inputs[:2], valid_BL), unit.reference(*inputs[:2], valid_BL)):
        gradients = torch.autograd.grad(scores_BHL[valid_BHL].square().sum(), inputs)
        results.append((scores_BHL[valid_BHL], *gradients))
    for fast, formula in zip(*results, strict=True):
        torch.testing.assert_close(fast, formula, rtol=1e-4, atol=1e-5)
    assert scores_BHL.shape == (3, heads, 5)


@torch.no_grad()
def test_dot_scores_are_projected_queries_times_projected_keys() -> None:
    query_BD, keys_BLD, valid_BL = example()
    attention = TargetAttention(6, heads=2, score="dot")
    q_BHE = attention.query(query_BD).view(3, 2, 3)
    k_BLHE = attention.key(keys_BLD).view(3, 5, 2, 3)
    expected_BHL = torch.einsum("bhe,blhe->bhl", q_BHE, k_BLHE) / 3**0.5
    torch.testing.assert_close(attention.scores(query_BD, keys_BLD, valid_BL), expected_BHL)


@torch.no_grad()
def test_bilinear_scores() -> None:
    query_BD, keys_BLD, valid_BL = example()
    attention = TargetAttention(6, heads=2, score="bilinear")
    attention.form.normal_()
    expected_BHL = torch.einsum("bd,hde,ble->bhl", query_BD, attention.form, keys_BLD)
    torch.testing.assert_close(attention.scores(query_BD, keys_BLD, valid_BL), expected_BHL)


@torch.no_grad()
def test_normalisers() -> None:
    scores_BHL, valid_BL = torch.tensor([[[0.5, -1.0, 9.0]]]), torch.tensor([[True, True, False]])
    plain = TargetAttention(4).weigh(scores_BHL, valid_BL)
    assert plain.tolist() == [[[0.5, -1.0, 0.0]]]
    scaled = TargetAttention(4, scale_by_length=True).weigh(scores_BHL, valid_BL)
    assert scaled.tolist() == [[[0.25, -0.5, 0.0]]]
    soft = TargetAttention(4, normalize="softmax").weigh(scores_BHL, valid_BL)
    torch.testing.assert_close(soft[0, 0, :2], torch.softmax(torch.tensor([0.5, -1.0]), 0))
    assert soft[0, 0, 2] == 0
    sigmoid = TargetAttention(4, normalize="sigmoid").weigh(scores_BHL, valid_BL)
    torch.testing.assert_close(sigmoid[0, 0, :2], torch.sigmoid(torch.tensor([0.5, -1.0])))
    for normalize in ("none", "softmax", "sigmoid"):
        nobody = TargetAttention(4, normalize=normalize).weigh(  # type: ignore[arg-type]
            scores_BHL, torch.zeros_like(valid_BL)
        )
        assert nobody.abs().sum() == 0


@torch.no_grad()
@pytest.mark.parametrize("combine", ["concatenate", "average"])
def test_heads_are_independent(combine: str) -> None:
    query_BD, keys_BLD, valid_BL = example()
    attention = TargetAttention(6, heads=3, combine=combine)  # type: ignore[arg-type]
    before: list[Tensor] = []
    attention(query_BD, keys_BLD, valid_BL, before)
    attention.unit.first.weight[64:128] += 1  # the second head's network
    after: list[Tensor] = []
    attention(query_BD, keys_BLD, valid_BL, after)
    changed_BHL = before[0] != after[0]
    assert changed_BHL[0, 1].all() and not changed_BHL[:, [0, 2]].any()


@torch.no_grad()
def test_averaged_heads_are_the_mean_of_single_heads() -> None:
    query_BD, keys_BLD, valid_BL = example()
    both = TargetAttention(6, heads=2, score="bilinear", combine="average")
    both.form.normal_()
    singles = []
    for head in range(2):
        single = TargetAttention(6, score="bilinear")
        single.form.copy_(both.form[head : head + 1])
        singles.append(single(query_BD, keys_BLD, valid_BL))
    torch.testing.assert_close(both(query_BD, keys_BLD, valid_BL), sum(singles) / 2)


@torch.no_grad()
def test_layers_of_a_stack_share_parameters_where_told() -> None:
    def stack(layers: int, groups: int | None) -> TargetAttentionStack:
        return TargetAttentionStack(
            6, layers, groups, 1, "additive", "none", True, "concatenate", 4, "relu"
        )

    assert [len(stack(4, groups).attention) for groups in (None, 2, 1)] == [4, 2, 1]
    assert stack(4, 2).members == [0, 0, 1, 1]
    query_BD, keys_BLD, valid_BL = example()
    shared, separate = stack(2, 1), stack(2, None)
    state = shared.attention[0].state_dict()
    for attention in separate.attention:
        attention.load_state_dict(state)
    inputs = (query_BD, keys_BLD, valid_BL)
    assert torch.equal(shared(*inputs), separate(*inputs))
    one = stack(1, None)
    one.attention[0].load_state_dict(state)
    assert torch.equal(one(*inputs), one.attention[0](*inputs))
    assert not torch.allclose(one(*inputs), shared(*inputs))


def test_dice_is_its_formula_and_padding_does_not_move_it() -> None:
    torch.manual_seed(0)
    dice = Dice(2)
    torch.nn.init.constant_(dice.alpha, 0.3)
    x_ND, valid_N = torch.randn(6, 2) * 3 + 1, torch.arange(6) < 4
    rows = x_ND[:4]
    p = torch.sigmoid((x_ND - rows.mean(0)) / (rows.var(0, correction=0) + 1e-8).sqrt())
    torch.testing.assert_close(dice(x_ND, valid_N), p * x_ND + (1 - p) * 0.3 * x_ND)
    torch.testing.assert_close(dice.mean, 0.1 * rows.mean(0))
    torch.testing.assert_close(dice.variance, 0.9 + 0.1 * rows.var(0, correction=0))
    dice.eval()
    alone = dice(x_ND[:1])
    torch.testing.assert_close(alone, dice(x_ND)[:1])  # running averages: no company
    p = torch.sigmoid((x_ND[:1] - dice.mean) / (dice.variance + 1e-8).sqrt())
    torch.testing.assert_close(alone, p * x_ND[:1] + (1 - p) * 0.3 * x_ND[:1])


def test_prelu_equals_torchs() -> None:
    torch.manual_seed(0)
    x_ND = torch.randn(5, 3)
    ours, torchs = Activate("prelu", 3), torch.nn.PReLU(3)
    torch.testing.assert_close(ours(x_ND), torchs(x_ND))


@torch.no_grad()
def test_without_a_normaliser_it_starts_near_mean_pooling() -> None:
    query_BD, keys_BLD, valid_BL = example()
    attention = TargetAttention(6, scale_by_length=True, activation="relu")
    attention.unit.last.zero_()
    found_BD = attention(query_BD, keys_BLD, valid_BL)
    torch.testing.assert_close(found_BD[0], keys_BLD[0].mean(0))
    torch.testing.assert_close(found_BD[1], keys_BLD[1, :2].mean(0))


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("padding", [True, False])
def test_dice_in_portions_is_its_reference(
    monkeypatch: pytest.MonkeyPatch, training: bool, padding: bool
) -> None:
    monkeypatch.setattr(activations, "PORTION", 12)  # four rows
    draw = torch.Generator().manual_seed(0)
    dice = Dice(3).double().train(training)
    dice.mean += 0.7
    x_BLD = 2 * torch.randn(4, 5, 3, generator=draw, dtype=torch.float64) + 3
    valid_BL = torch.rand(4, 5, generator=draw) > 0.3 if padding else None
    above_BLD = torch.randn(4, 5, 3, generator=draw, dtype=torch.float64)
    found = []
    for way in (dice.reference, dice):
        torch.nn.init.constant_(dice.alpha, -0.3)
        dice.alpha.grad = None
        own_BLD = x_BLD.clone().requires_grad_()
        out_BLD = way(own_BLD, valid_BL)
        (out_BLD * above_BLD).sum().backward()
        found.append((out_BLD.detach(), own_BLD.grad, dice.alpha.grad))
        assert torch.equal(own_BLD, x_BLD)  # nothing is written into the input
    for expected, value in zip(*found, strict=True):
        torch.testing.assert_close(value, expected)


def test_the_variance_of_dice_survives_a_large_mean() -> None:
    dice = Dice(1)
    x_ND = torch.tensor([[1e4 - 1], [1e4 + 1]]).repeat(500, 1)
    for _ in range(200):
        dice(x_ND)
    torch.testing.assert_close(dice.variance, torch.ones(1))
