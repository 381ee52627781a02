"""Our layers with torch's weights give torch's outputs."""

from __future__ import annotations

from typing import Literal

import pytest
import torch
from torch import Tensor, nn

from recsys.attention.layers import AttentionLayer
from recsys.attention.multi_head import MultiHeadSelfAttention
from recsys.testing import batch_of

D, H, L = 12, 3, 7


def copy_attention(ours: MultiHeadSelfAttention, theirs: nn.MultiheadAttention) -> None:
    assert theirs.in_proj_weight is not None
    for i, part in enumerate((ours.query, ours.key, ours.value)):
        part.weight.copy_(theirs.in_proj_weight[i * D : (i + 1) * D])
        part.bias.copy_(theirs.in_proj_bias[i * D : (i + 1) * D])
    ours.project.load_state_dict(theirs.out_proj.state_dict())


def randomise(module: nn.Module) -> None:
    for parameter in module.parameters():
        parameter.copy_(torch.randn_like(parameter) * 0.3)


@torch.no_grad()
@pytest.mark.parametrize("causal", [True, False])
def test_multi_head_attention(causal: bool) -> None:
    torch.manual_seed(0)
    theirs = nn.MultiheadAttention(D, H, batch_first=True)
    randomise(theirs)
    ours = MultiHeadSelfAttention(D, H, causal=causal)
    copy_attention(ours, theirs)
    batch = batch_of([[1] * L, [1] * 3])
    packed = batch.packed_T
    asks_BLD, x_BLD = torch.randn(2, 2, L, D)
    hidden = torch.ones(L, L, dtype=torch.bool).triu(1) if causal else None
    expected, expected_weights = theirs(
        asks_BLD,
        x_BLD,
        x_BLD,
        key_padding_mask=~batch.valid_BL,
        attn_mask=hidden,
        average_attn_weights=False,
    )
    asks_TD, x_TD = asks_BLD.flatten(0, 1)[packed], x_BLD.flatten(0, 1)[packed]
    weights: list[Tensor] = []
    for got in (ours(asks_TD, x_TD, batch, packed), ours(asks_TD, x_TD, batch, packed, weights)):
        torch.testing.assert_close(got, expected.flatten(0, 1)[packed])
    torch.testing.assert_close(weights[0][0], expected_weights[0])


@torch.no_grad()
@pytest.mark.parametrize("norm", ["pre", "post"])
@pytest.mark.parametrize("activation", ["relu", "gelu"])
def test_transformer_layer(
    norm: Literal["pre", "post"], activation: Literal["relu", "gelu"]
) -> None:
    torch.manual_seed(1)
    theirs = nn.TransformerEncoderLayer(
        D, H, 20, 0.0, activation, batch_first=True, norm_first=norm == "pre"
    )
    randomise(theirs)
    ours = AttentionLayer(D, H, 20, 0.0, norm=norm, activation=activation)
    copy_attention(ours.attention, theirs.self_attn)
    ours.attention_norm.load_state_dict(theirs.norm1.state_dict())
    ours.feed_forward_norm.load_state_dict(theirs.norm2.state_dict())
    ours.feed_forward.expand.load_state_dict(theirs.linear1.state_dict())
    ours.feed_forward.contract.load_state_dict(theirs.linear2.state_dict())
    batch = batch_of([[1] * L, [1] * L])
    x_BLD = torch.randn(2, L, D)
    hidden = torch.ones(L, L, dtype=torch.bool).triu(1)
    expected = theirs.train()(x_BLD, src_mask=hidden)
    got = ours(x_BLD.flatten(0, 1), batch, batch.packed_T)
    torch.testing.assert_close(got, expected.flatten(0, 1))


@torch.no_grad()
def test_input_norm_is_the_authors_form() -> None:
    torch.manual_seed(2)
    ours = AttentionLayer(D, H, 20, 0.0, norm="input")
    randomise(ours)
    batch = batch_of([[1] * L, [1] * 3])
    x_TD = torch.randn(L + 3, D)
    asks_TD = ours.attention_norm(x_TD)  # keys and values stay as they came
    attended_TD = asks_TD + ours.attention(asks_TD, x_TD, batch, batch.packed_T)
    normed_TD = ours.feed_forward_norm(attended_TD)
    expected = normed_TD + ours.feed_forward(normed_TD)
    torch.testing.assert_close(ours(x_TD, batch, batch.packed_T), expected)
