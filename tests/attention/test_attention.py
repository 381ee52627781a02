"""Every fused path equals the reference, on values and gradients; heads and weights as claimed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import pytest
import torch
from torch import Tensor

from recsys.attention import kernels, masks
from recsys.attention.dropout import Dropout
from recsys.attention.multi_head import MultiHeadSelfAttention
from recsys.testing import batch_of


def random_qkv(seed: int, value_width: int = 4) -> list[Tensor]:
    torch.manual_seed(seed)
    shapes = [(3, 2, 7, 4), (3, 2, 7, 4), (3, 2, 7, value_width)]
    return [torch.randn(shape, requires_grad=True) for shape in shapes]


VALID = batch_of([[1] * 7, [1] * 3, []]).valid_BL


@pytest.mark.parametrize("kernel", [kernels.flash, kernels.products, kernels.fused])
@pytest.mark.parametrize("value_width", [4, 8])
@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("mask", [None, masks.valid(VALID)], ids=["no mask", "valid"])
def test_every_kernel_equals_the_reference(
    kernel: Callable[..., Tensor], causal: bool, mask: Tensor | None, value_width: int
) -> None:
    q, k, v = random_qkv(0, value_width)
    out, _ = kernels.reference(q, k, v, causal=causal, mask=mask)
    fused = kernel(q, k, v, causal=causal, mask=mask)
    torch.testing.assert_close(fused, out)
    direction = torch.randn_like(out)
    expected = torch.autograd.grad((out * direction).sum(), [q, k, v])
    got = torch.autograd.grad((fused * direction).sum(), [q, k, v])
    for a, b in zip(got, expected, strict=True):
        torch.testing.assert_close(a, b)
    assert torch.isfinite(out).all()


def test_causal_weights_are_a_lower_triangle_of_distributions() -> None:
    q, k, v = random_qkv(1)
    _, weights = kernels.reference(q, k, v, causal=True)
    assert torch.equal(weights.triu(1), torch.zeros_like(weights))
    torch.testing.assert_close(weights.sum(-1), torch.ones(3, 2, 7))


def test_who_sees_nothing_attends_to_nothing() -> None:
    q, k, v = random_qkv(2)
    out, weights = kernels.reference(q, k, v, causal=False, mask=masks.valid(VALID))
    assert weights[2].abs().sum() == 0 and out[2].abs().sum() == 0


def test_the_fused_kernel_is_really_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    attention = MultiHeadSelfAttention(8, 2)
    batch = batch_of([[1, 2, 3], [4]])
    x_TD = torch.randn(4, 8)
    calls: list[str] = []
    real = torch.nn.functional.scaled_dot_product_attention

    def watched(*args: Tensor, **options: object) -> Tensor:
        calls.append("fused")
        assert options.get("is_causal") is True and "attn_mask" not in options
        return real(*args, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", watched)
    attention(x_TD, x_TD, batch, batch.packed_T)
    assert calls == ["fused"]
    attention(x_TD, x_TD, batch, batch.packed_T, weights=[])
    assert calls == ["fused"]


def test_which_kernel_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    taken: list[str] = []
    for name in ("flash", "products"):
        monkeypatch.setattr(kernels, name, lambda *_, name=name, **__: taken.append(name))
    q, k, v = random_qkv(0)
    drop = Dropout(0.5)
    kernels.fused(q, k, v, causal=True)
    kernels.fused(q.bfloat16(), k.bfloat16(), v.bfloat16(), causal=True)
    kernels.fused(q, k, v, causal=True, dropout=drop)
    kernels.fused(q, k, v, causal=True, dropout=drop.eval())
    long = torch.zeros(1, 1, kernels.SHORT + 1, 4, dtype=torch.bfloat16)
    kernels.fused(long, long, long, causal=True)
    short = long[:, :, 1:]
    kernels.fused(short, short, short, causal=True)
    assert taken == ["flash", "products", "products", "flash", "flash", "products"]


def test_dropout_drops_weights() -> None:
    q, k, _ = random_qkv(6)
    ones = torch.ones(3, 2, 7, 1)
    torch.manual_seed(0)
    out = kernels.products(q, k, ones, causal=True, dropout=Dropout(0.5))
    assert (out - 1).abs().max() > 0.1
    torch.testing.assert_close(kernels.products(q, k, ones, causal=True), torch.ones_like(out))


def test_flash_is_the_kernel_behind_causal_attention() -> None:
    from torch.nn.attention import SDPBackend, sdpa_kernel

    q, k, v = random_qkv(3)
    with sdpa_kernel(SDPBackend.FLASH_ATTENTION):  # raises when flash cannot take it
        kernels.flash(q, k, v, causal=True)


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("combine", ["concatenate", "average"])
def test_output_is_rebuilt_from_the_weights_of_each_head(
    combine: Literal["concatenate", "average"], causal: bool
) -> None:
    torch.manual_seed(4)
    H, D = 2, 8
    attention = MultiHeadSelfAttention(D, H, combine, causal=causal)
    batch = batch_of([[1, 2, 3, 4, 5]])
    x_TD = torch.randn(5, D)
    weights: list[Tensor] = []
    out_TD = attention(x_TD, x_TD, batch, batch.packed_T, weights)
    values_THX = attention.value(x_TD).unflatten(1, (H, -1))
    heads = [weights[0][0, h] @ values_THX[:, h] for h in range(H)]
    mixed = torch.cat(heads, 1) if combine == "concatenate" else torch.stack(heads).mean(0)
    torch.testing.assert_close(out_TD, attention.project(mixed))
    torch.testing.assert_close(out_TD, attention(x_TD, x_TD, batch, batch.packed_T))


@torch.no_grad()
def test_heads_are_independent() -> None:
    torch.manual_seed(5)
    attention = MultiHeadSelfAttention(8, 2)
    batch = batch_of([[1, 2, 3, 4, 5]])
    x_TD = torch.randn(5, 8)
    before: list[Tensor] = []
    attention(x_TD, x_TD, batch, batch.packed_T, before)
    attention.query.weight[:4] += 1.0  # queries of head 0
    after: list[Tensor] = []
    attention(x_TD, x_TD, batch, batch.packed_T, after)
    assert not torch.allclose(before[0][:, 0], after[0][:, 0])
    assert torch.equal(before[0][:, 1], after[0][:, 1])
