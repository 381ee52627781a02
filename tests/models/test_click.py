"""Rankers obey the laws; DIN reads what mean pooling and a linear model cannot."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score
from torch import nn

from recsys.histories.click_batches import click_batch
from recsys.histories.clicks import click_split, feature_rows
from recsys.histories.features import Label, fit_features
from recsys.histories.questions import Questions, Split
from recsys.histories.store import HistoryStore
from recsys.models.click.din import DIN
from recsys.models.click.logistic_regression import LogisticRegression
from recsys.models.click.mean_pooling import MeanPooling
from recsys.testing import CLICK_FIELDS, ClickLaws, click_batch_of, planted_clicks

Sizes = dict[str, int]


class TestDIN(ClickLaws):
    def build(
        self, catalogue_size: int, user_fields: Sizes, item_fields: Sizes, event_fields: Sizes,
        context_fields: Sizes, max_length: int,
    ) -> nn.Module:  # fmt: skip
        return DIN(
            catalogue_size, user_fields, item_fields, event_fields, context_fields, max_length,
            width=8, field_width=3, attention_units=5, hidden=[12, 6],
        )  # fmt: skip


class TestDINOtherOptions(ClickLaws):
    def build(
        self, catalogue_size: int, user_fields: Sizes, item_fields: Sizes, event_fields: Sizes,
        context_fields: Sizes, max_length: int,
    ) -> nn.Module:  # fmt: skip
        return DIN(
            catalogue_size, user_fields, item_fields, event_fields, context_fields, max_length,
            width=8, field_width=4, heads=4, layers=2, score="dot", normalize="softmax",
            scale_by_length=False, hidden=[12], activation="prelu", dropout=0.2,
            embedding_dropout=0.1,
        )  # fmt: skip


class TestDINSharedBilinear(ClickLaws):
    def build(
        self, catalogue_size: int, user_fields: Sizes, item_fields: Sizes, event_fields: Sizes,
        context_fields: Sizes, max_length: int,
    ) -> nn.Module:  # fmt: skip
        return DIN(
            catalogue_size, user_fields, item_fields, event_fields, context_fields, max_length,
            width=6, field_width=2, heads=3, layers=3, parameter_groups=1, score="bilinear",
            normalize="sigmoid", combine_heads="average", hidden=[], activation="relu", biases=True,
        )  # fmt: skip


class TestMeanPooling(ClickLaws):
    def build(
        self, catalogue_size: int, user_fields: Sizes, item_fields: Sizes, event_fields: Sizes,
        context_fields: Sizes, max_length: int,
    ) -> nn.Module:  # fmt: skip
        return MeanPooling(
            catalogue_size, user_fields, item_fields, event_fields, context_fields, max_length,
            width=8, field_width=3, hidden=[12, 6],
        )  # fmt: skip


class TestLogisticRegression(ClickLaws):
    def build(
        self, catalogue_size: int, user_fields: Sizes, item_fields: Sizes, event_fields: Sizes,
        context_fields: Sizes, max_length: int,
    ) -> nn.Module:  # fmt: skip
        return LogisticRegression(
            catalogue_size, user_fields, item_fields, event_fields, context_fields, max_length
        )


@torch.no_grad()
def test_logistic_regression_moves_all_candidates_of_a_user_alike() -> None:
    model = TestLogisticRegression().model()
    a, b, c, d = model(
        click_batch_of([[1, 2], [1, 2], [3], [3]], [5, 7, 5, 7], catalogue_size=40, fields=True)
    )
    torch.testing.assert_close(a - b, c - d)


@pytest.mark.parametrize("kind", [DIN, MeanPooling])
@torch.no_grad()
def test_biases_are_added_to_the_logit(kind: type[DIN] | type[MeanPooling]) -> None:
    torch.manual_seed(0)
    plain = kind(40, **CLICK_FIELDS, max_length=24, width=8).eval()
    torch.manual_seed(0)
    model = kind(40, **CLICK_FIELDS, max_length=24, width=8, biases=True).eval()
    batch = click_batch_of([[1, 2], [3]], [5, 7], catalogue_size=40, fields=True)
    assert torch.equal(model(batch), plain(batch))  # zero at the start
    biases = model.biases
    assert biases is not None
    biases.items.weight[5] += 2
    added = torch.tensor([2.0, 0.0])
    assert (biases.users is None) == ("user_id" not in CLICK_FIELDS["user_fields"])
    if biases.users is not None:
        user = batch.user_fields["user_id"][1]
        biases.users.table.weight[user] -= 3
        added = added - 3 * (batch.user_fields["user_id"] == user)
    torch.testing.assert_close(model(batch), plain(batch) + added)


@torch.no_grad()
def test_the_weights_on_request_made_the_output() -> None:
    torch.manual_seed(0)
    model = DIN(40, **CLICK_FIELDS, max_length=24, width=8, heads=2, layers=2).eval()
    batch = click_batch_of([[1, 2, 3], [4]], [5, 6], catalogue_size=40)
    weights: list[torch.Tensor] = []
    assert torch.equal(model(batch, weights), model(batch))
    vectors = model.inputs(batch)
    first, second = model.attention.attention
    found_BD = first.combined(weights[0], vectors.histories_BLD)
    asked_BD = model.attention.norms[0](vectors.candidates_BD + found_BD)
    rebuilt_BD = second.combined(weights[1], vectors.histories_BLD)
    direct_BD = second(asked_BD, vectors.histories_BLD, batch.valid_BL)
    torch.testing.assert_close(rebuilt_BD, direct_BD)
    assert weights[1].shape == (2, 2, 3) and (weights[1][1, :, 1:] == 0).all()


@torch.no_grad()
def test_the_answer_is_not_among_the_inputs_of_a_candidate() -> None:
    """Labels of the asked moment change no score of it, those of earlier events all of them."""
    times = [[1, 1, 2, 3, 3], [1, 2, 3, 3], [1, 2, 3, 4]]
    plain = HistoryStore.from_lists([[1, 2, 3, 4, 5], [6, 7, 8, 9], [5, 6, 1, 2]], times=times)
    labels = np.array([1, 0, 1, 0, 1, 0, 1, 1, 0, 1, 0, 0, 1], dtype=np.int8)
    begins = np.array([3, 2, 3])  # of each user's last moment
    asked = Questions(np.arange(3), begins, begins, plain.lengths)
    split = Split("last", begins, asked, asked, {}, "")
    torch.manual_seed(0)
    model = DIN(10, {}, {}, {"label": 4}, {}, 24, width=8, initial_scale=1.0).eval()

    def scores(store: HistoryStore) -> torch.Tensor:
        clicks = click_split(store, split, history="events")
        fitted = fit_features(store, [Label()], feature_rows(clicks.view, clicks.training))
        return model(click_batch(clicks.view, clicks.test, fitted.columns(store), 24))

    last = np.concatenate([plain.offsets[:-1] + begins, plain.offsets[1:] - 1])
    of_last, of_earlier = labels.copy(), 1 - labels
    of_last[last] = 1 - labels[last]
    of_earlier[last] = labels[last]
    before = scores(replace(plain, labels=labels))
    assert torch.equal(scores(replace(plain, labels=of_last)), before)
    assert (scores(replace(plain, labels=of_earlier)) != before).all()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"max_length": 0}, "max_length must be at least 1, not 0"),
        ({"width": 0}, "width must be at least 1, not 0"),
        ({"heads": 0}, "heads must be at least 1, not 0"),
        ({"heads": 3, "score": "dot"}, "width 43 is not divisible by heads 3; the nearest"),
        ({"layers": 0}, "layers must be at least 1, not 0"),
        ({"layers": 2, "parameter_groups": 3}, "parameter_groups must be null or from 1 to 2"),
        ({"score": "cosine"}, "score must be one of additive, dot, bilinear, not 'cosine'"),
        ({"normalize": "max"}, "normalize must be one of none, softmax, sigmoid, not 'max'"),
        ({"normalize": "softmax"}, "normalize=softmax takes scale_by_length=false"),
        ({"combine_heads": "sum"}, "combine_heads must be one of concatenate, average"),
        ({"attention_units": 0}, "attention_units must be at least 1, not 0"),
        ({"attention_units": 8, "score": "dot"}, "score=dot takes attention_units=null"),
        ({"hidden": [8, 0]}, "hidden must hold widths from 1, not [8, 0]"),
        ({"activation": "tanh"}, "activation must be 'relu', 'sigmoid', 'prelu' or 'dice'"),
        ({"dropout": 1.0}, "dropout must be in [0, 1), not 1.0"),
    ],
)
def test_wrong_arguments_are_named(options: dict, words: str) -> None:
    with pytest.raises(ValueError, match="^" + words.replace("[", r"\[").replace(")", r"\)")):
        DIN(40, {}, {"a": 3, "b": 0}, {}, {}, **{"max_length": 5, "width": 27, **options})


def area_after_training(model: nn.Module, epochs: int) -> float:
    """AUC on fresh planted questions."""
    draw = torch.Generator().manual_seed(0)
    histories, candidates, labels = planted_clicks()
    every = click_batch_of(histories, candidates, catalogue_size=101, fields=False)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    for _ in range(epochs):
        for rows in torch.randperm(len(labels), generator=draw).split(500):
            batch = replace(
                every,
                candidates_B=every.candidates_B[rows],
                history_BL=every.history_BL[rows],
                lengths_B=every.lengths_B[rows],
            )
            loss = nn.functional.binary_cross_entropy_with_logits(model(batch), labels[rows])
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
    histories, candidates, labels = planted_clicks(2000, seed=1)
    with torch.no_grad():
        logits = model.eval()(
            click_batch_of(histories, candidates, catalogue_size=101, fields=False)
        )
    return float(roc_auc_score(labels, logits))


def test_din_reads_the_planted_clicks() -> None:
    torch.manual_seed(0)
    model = DIN(101, {}, {}, {}, {}, 20, 8, attention_units=16, hidden=[32], initial_scale=0.5)
    assert area_after_training(model, epochs=8) >= 0.95


def test_mean_pooling_and_logistic_regression_do_not() -> None:
    torch.manual_seed(0)
    pooling = MeanPooling(101, {}, {}, {}, {}, 20, width=8, hidden=[32], initial_scale=0.5)
    assert area_after_training(pooling, epochs=12) <= 0.8
    assert area_after_training(LogisticRegression(101, {}, {}, {}, {}, 20), epochs=4) <= 0.6
