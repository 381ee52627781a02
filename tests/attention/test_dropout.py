"""Dropout from bulk bytes has the right rate, expectation, independence and seed."""

from __future__ import annotations

import pytest
import torch

from recsys.attention.dropout import Dropout, random_bytes


@pytest.mark.parametrize("rate", [0.1, 0.3, 0.5, 0.9])
def test_rate_and_expectation(rate: float) -> None:
    torch.manual_seed(0)
    n = 400_000
    dropped = (Dropout(rate)(torch.ones(n)) == 0).double().mean().item()
    exact = round(256 * rate) / 256
    assert abs(exact - rate) <= 1 / 512
    assert abs(dropped - exact) < 5 * (exact * (1 - exact) / n) ** 0.5
    kept = Dropout(rate)(torch.ones(n)).max().item()
    assert kept == pytest.approx(1 / (1 - exact))


def test_the_highest_rate_keeps_one_in_256() -> None:
    torch.manual_seed(5)
    kept = Dropout(0.999)(torch.ones(100_000)).unique().tolist()
    assert kept == [0, 256]


def test_elements_are_independent() -> None:
    torch.manual_seed(1)
    keep = (Dropout(0.5)(torch.ones(800_000)) > 0).double() - 0.5
    for lag in (1, 2, 7, 8, 64):
        correlation = (keep[lag:] * keep[:-lag]).mean().item() / 0.25
        assert abs(correlation) < 5 / 800_000**0.5, lag


def test_bytes_are_uniform() -> None:
    torch.manual_seed(2)
    counts = torch.bincount(random_bytes(256 * 1000 + 3, torch.device("cpu")).long(), minlength=256)
    chi_square = ((counts - 1000.0) ** 2 / 1000).sum().item()
    assert 160 < chi_square < 370  # 255 degrees of freedom: 255 ± 5 standard deviations


def test_gradient_goes_where_the_values_went() -> None:
    torch.manual_seed(3)
    x = torch.randn(50, 9, requires_grad=True)
    out = Dropout(0.4)(x)
    out.sum().backward()
    assert x.grad is not None
    torch.testing.assert_close(x.grad * x, out)


def test_same_seed_same_elements_and_nothing_in_evaluation() -> None:
    x = torch.randn(1000)
    layer = Dropout(0.5)
    torch.manual_seed(4)
    first = layer(x)
    second = layer(x)
    torch.manual_seed(4)
    assert torch.equal(first, layer(x))
    assert not torch.equal(first, second)
    assert layer.eval()(x) is x
