"""The chunked softmax equals its definition, in loss and gradients, and keeps its memory bound."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from recsys.objectives.full_softmax import full_softmax, full_softmax_reference


def case(T: int, V: int, D: int, seed: int, scale: float = 1.0) -> tuple[Tensor, Tensor, Tensor]:
    torch.manual_seed(seed)
    hidden = (torch.randn(T, D) * scale).requires_grad_()
    table = torch.randn(V, D, requires_grad=True)
    return hidden, table, torch.randint(1, V, (T,))


@settings(max_examples=30, deadline=None)
@given(
    T=st.integers(1, 40),
    V=st.integers(2, 30),
    D=st.integers(1, 8),
    chunk=st.integers(1, 50),
    seed=st.integers(0, 9),
)
def test_equals_reference_in_loss_and_gradients(
    T: int, V: int, D: int, chunk: int, seed: int
) -> None:
    hidden, table, targets = case(T, V, D, seed)
    expected = full_softmax_reference(hidden, table, targets)
    got = full_softmax(hidden, table, targets, chunk)
    torch.testing.assert_close(got, expected)
    for a, b in zip(
        torch.autograd.grad(3 * got, [hidden, table]),
        torch.autograd.grad(3 * expected, [hidden, table]),
        strict=True,
    ):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)


def test_extreme_logits_stay_finite_and_right() -> None:
    hidden, table, targets = case(20, 15, 4, seed=0, scale=200.0)
    expected = full_softmax_reference(hidden, table, targets)
    assert expected > 100
    torch.testing.assert_close(full_softmax(hidden, table, targets, 8), expected)


def test_padding_row_takes_no_part() -> None:
    hidden, table, targets = case(10, 6, 4, seed=1)
    loss = full_softmax(hidden, table, targets)
    (grad,) = torch.autograd.grad(loss, [table])
    assert grad[0].abs().sum() == 0
    with torch.no_grad():
        table[0] = 1e4
    assert torch.equal(loss, full_softmax(hidden, table, targets))


def test_bfloat16_is_near_and_keeps_types() -> None:
    hidden, table, targets = case(64, 50, 16, seed=2)
    expected = full_softmax_reference(hidden, table, targets)
    with torch.autocast("cpu", torch.bfloat16):
        got = full_softmax(hidden, table, targets)
    assert got.dtype == torch.float32
    # bfloat16 keeps 8 bits: logits of size ~10 are off by up to 0.04.
    torch.testing.assert_close(got, expected, rtol=0.01, atol=0.02)
    grads = torch.autograd.grad(got, [hidden, table])
    assert [grad.dtype for grad in grads] == [torch.float32, torch.float32]
    for grad, leaf in zip(grads, [hidden, table], strict=True):
        (exact,) = torch.autograd.grad(full_softmax_reference(hidden, table, targets), [leaf])
        assert torch.nn.functional.cosine_similarity(grad.flatten(), exact.flatten(), dim=0) > 0.995


def test_the_gradient_of_the_table_is_summed_in_float32() -> None:
    hidden, table, targets = case(512, 20, 8, seed=4)
    (exact,) = torch.autograd.grad(full_softmax_reference(hidden, table, targets), [table])
    with torch.autocast("cpu", torch.bfloat16):
        loss = full_softmax(hidden, table, targets, chunk=2)
    (grad,) = torch.autograd.grad(loss, [table])
    assert (grad - exact).norm() / exact.norm() < 0.006  # 256 chunks summed in bfloat16: 0.014


@pytest.mark.parametrize("chunk", [16, 64])
def test_never_holds_tokens_times_items(chunk: int) -> None:
    T, V, D = 512, 300, 8
    hidden, table, targets = case(T, V, D, seed=3)
    largest = 0

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
            nonlocal largest
            out = func(*args, **(kwargs or {}))
            if isinstance(out, Tensor):
                largest = max(largest, out.numel())
            return out

    with Watch():
        full_softmax(hidden, table, targets, chunk).backward()
    assert largest <= max(chunk * V, T * D)
