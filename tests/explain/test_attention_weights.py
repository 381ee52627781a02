"""The weights that are shown are those that made the output: it is rebuilt from them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from recsys.attention.multi_head import MultiHeadSelfAttention
from recsys.attention.target import TargetAttention
from recsys.batch import HistoryBatch
from recsys.explain import attention_weights
from recsys.explain.attention_weights import (
    Attended,
    NoAttentionError,
    attend,
    check_attention,
    map_names,
)
from recsys.models.baselines.popularity import Popularity
from recsys.models.click.din import DIN
from recsys.models.click.logistic_regression import LogisticRegression
from recsys.models.click.mean_pooling import MeanPooling
from recsys.models.next_item.sasrec import SASRec
from recsys.testing import CLICK_FIELDS, batch_of, click_batch_of

HISTORIES = [[5, 2, 9, 2, 7, 1], [], [3], [8, 8, 4, 1, 6, 2, 9, 10]]


def alive(model: nn.Module) -> Any:
    """In evaluation mode, with weights large enough that no head weighs all events alike."""
    torch.manual_seed(1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.add_(torch.randn_like(parameter) * 0.4)
            if "items" in name and parameter.ndim == 2:
                parameter[0] = 0
    return model.eval()


def calls_of(model: nn.Module, kind: type, run: Any) -> list[tuple[Any, tuple[Any, ...], Tensor]]:
    """Each call of a module of a kind while `run` runs: the module, its inputs, its output."""
    calls: list[tuple[Any, tuple[Any, ...], Tensor]] = []

    def note(module: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> None:
        calls.append((module, inputs, output))

    members = [module for module in model.modules() if isinstance(module, kind)]
    hooks = [member.register_forward_hook(note) for member in members]
    run()
    for hook in hooks:
        hook.remove()
    return calls


def rebuilt(attention: MultiHeadSelfAttention, x_TD: Tensor, weights_BHLL: Tensor) -> Tensor:
    """What a layer's weights make of its values, event by event, in plain sums."""
    rows, begin = [], 0
    for row, history in enumerate(HISTORIES):
        values_LHX = attention.value(x_TD[begin : begin + len(history)]).unflatten(
            1, (attention.heads, -1)
        )
        begin += len(history)
        for asks in range(len(history)):
            heads = [
                sum(
                    weights_BHLL[row, head, asks, event] * values_LHX[event, head]
                    for event in range(len(history))
                )
                for head in range(attention.heads)
            ]
            mixed = torch.cat(heads)
            if attention.combine == "average":
                mixed = torch.stack(heads).mean(0)
            rows.append(attention.project(mixed))
    return torch.stack(rows)


@torch.no_grad()
@pytest.mark.parametrize(
    "options",
    [
        {"layers": 1, "heads": 1},
        {"layers": 1, "heads": 3, "combine_heads": "average"},
        {"layers": 2, "heads": 2, "norm": "pre"},
        {"layers": 2, "heads": 2, "positions": "newest", "parameter_groups": 1},
        {"layers": 3, "heads": 3, "norm": "post"},
        {"layers": 3, "heads": 2, "combine_heads": "average", "parameter_groups": 2},
    ],
    ids=str,
)
def test_each_layers_output_on_the_fast_path_is_rebuilt_from_its_weights(
    options: dict[str, Any],
) -> None:
    model = alive(SASRec(12, 8, width=12, **options))
    batch = batch_of(HISTORIES)
    fast = calls_of(model, MultiHeadSelfAttention, lambda: model(batch))
    attended = attend(model, batch)
    assert len(attended.weights) == options["layers"] == len(fast)
    for (attention, (_, x_TD, *_), out_TD), weights in zip(fast, attended.weights, strict=True):
        assert weights.shape == (4, options["heads"], 8, 8)
        torch.testing.assert_close(rebuilt(attention, x_TD, weights), out_TD, rtol=1e-4, atol=1e-5)
    # And what comes of them is what the model recommends by.
    torch.testing.assert_close(attended.output, model.encode(batch), rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_next_item_weights_are_distributions_over_what_came_before() -> None:
    attended = attend(alive(SASRec(12, 8, width=12, heads=3, layers=2)), batch_of(HISTORIES))
    for weights in attended.weights:
        assert torch.equal(weights.triu(1), torch.zeros_like(weights))
        for row, history in enumerate(HISTORIES):
            some = weights[row, :, : len(history), : len(history)]
            torch.testing.assert_close(some.sum(-1), torch.ones(3, len(history)))
    for row, history in enumerate(HISTORIES):
        maps = attended.maps(row)
        assert maps.shape == (6, len(history))
        newest = attended.weights[1][row, 2, len(history) - 1, : len(history)]
        assert len(history) == 0 or np.array_equal(maps[5], newest.double().numpy())


@torch.no_grad()
@pytest.mark.parametrize("layers", [1, 2])
@pytest.mark.parametrize("heads", [1, 2])
@pytest.mark.parametrize("combine", ["concatenate", "average"])
@pytest.mark.parametrize("normalize", ["none", "softmax"])
def test_dins_interest_is_rebuilt_from_its_weights(
    normalize: Any, combine: Any, heads: int, layers: int
) -> None:
    model = alive(
        DIN(
            12,
            **CLICK_FIELDS,
            max_length=8,
            width=8,
            heads=heads,
            layers=layers,
            normalize=normalize,
            scale_by_length=normalize == "none",
            combine_heads=combine,
            activation="relu",
        )
    )
    batch = click_batch_of(HISTORIES, [1, 2, 3, 4], catalogue_size=12)
    fast = calls_of(model, TargetAttention, lambda: model(batch))
    attended = attend(model, batch)
    torch.testing.assert_close(attended.output, model(batch))
    for (attention, (_, keys_BLD, *_), out_BD), weights in zip(fast, attended.weights, strict=True):
        for row, history in enumerate(HISTORIES):
            pooled = [
                sum(
                    (
                        weights[row, head, event] * keys_BLD[row, event]
                        for event in range(len(history))
                    ),
                    torch.zeros(keys_BLD.shape[-1]),
                )
                for head in range(heads)
            ]
            interest = torch.cat(pooled)
            if heads > 1 and combine == "average":
                interest = torch.stack(pooled).mean(0)
            elif heads > 1:
                interest = attention.project(interest)
            torch.testing.assert_close(interest, out_BD[row], rtol=1e-4, atol=1e-5)
            if normalize == "softmax" and history:
                torch.testing.assert_close(weights[row].sum(-1), torch.ones(heads))
    assert [attended.maps(row).shape for row in range(4)] == [
        (layers * heads, len(history)) for history in HISTORIES
    ]
    assert attended.rolled_out(0) is None


def test_rollout_is_the_product_of_layers_half_of_which_is_the_event_itself() -> None:
    torch.manual_seed(0)
    layers = [torch.softmax(torch.randn(1, 2, 4, 4), -1).tril() for _ in range(3)]
    product = np.eye(3)
    for layer in layers:
        product = (layer[0, :, :3, :3].double().mean(0).numpy() / 2 + np.eye(3) / 2) @ product
    found = Attended(torch.zeros(1, 1), layers, [3]).rolled_out(0)
    np.testing.assert_allclose(found, product[-1])


def test_models_without_attention_are_named() -> None:
    rankers = [kind(12, **CLICK_FIELDS, max_length=8) for kind in (MeanPooling, LogisticRegression)]
    for model in (*rankers, Popularity()):
        with pytest.raises(NoAttentionError, match=r"Mine has no attention to explain; .*SASRec"):
            check_attention(model, "Mine")
    check_attention(SASRec(12, 8, width=4), "SASRec")
    check_attention(DIN(12, **CLICK_FIELDS, max_length=8), "DIN")


class Forgetful(SASRec):
    """Takes the list and does not fill it."""

    def forward(self, batch, weights=None):
        return super().forward(batch)


class Misshapen(SASRec):
    """Fills it with one number an event."""

    def forward(self, batch, weights=None):
        if weights is not None:
            weights.append(torch.ones(batch.valid_BL.shape))
        return super().forward(batch)


@pytest.mark.parametrize("kind", [Forgetful, Misshapen])
def test_a_model_that_gives_no_weights_is_no_reason_to_fail(kind: type[SASRec]) -> None:
    model = alive(kind(12, 8, width=4))
    check_attention(model, "Mine")
    with pytest.raises(
        NoAttentionError, match=f"{kind.__name__}.forward takes weights and does not"
    ):
        attend(model, batch_of([[1, 2]]))


def test_maps_that_do_not_fit_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attention_weights, "LARGEST_MAPS", 63)
    model = alive(SASRec(12, 8, width=4))
    with pytest.raises(NoAttentionError, match="reads 8 events: maps of 8 × 8 weights"):
        attend(model, batch_of([[1] * 8]))
    attend(model, batch_of([[1] * 7]))


@torch.no_grad()
def test_nobody_with_events_gives_zeros() -> None:
    model = alive(SASRec(12, 8, width=4))
    empty = HistoryBatch(torch.zeros(2, 1, dtype=torch.int64), torch.zeros(2, dtype=torch.int64))
    attended = attend(model, empty)
    assert torch.equal(attended.output, torch.zeros(2, 4)) and attended.maps(0).shape == (2, 0)


def test_names_tell_layers_and_heads_apart_and_no_more() -> None:
    shape = torch.zeros(1, 2, 5)
    assert map_names([shape, shape])[-1] == "layer 2 head 2"
    assert map_names([shape]) == ["head 1", "head 2"]
