"""A ranker asked about the whole catalogue answers as it does one by one."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from recsys.histories.click_batches import click_batch
from recsys.histories.clicks import ClickQuestions, feature_rows, history_view
from recsys.histories.features import Label, UserId, fit_features
from recsys.histories.store import NO_TIME, HistoryStore
from recsys.models.click.din import DIN
from recsys.serving import rankers
from recsys.serving.rankers import RankerScorer


def example() -> tuple[HistoryStore, RankerScorer]:
    torch.manual_seed(0)
    store = HistoryStore.from_lists([[1, 2, 3], [4], [2, 5, 1, 3]], items=6)
    store = replace(store, labels=np.array([1, 0, 1, 1, 0, 1, 0, 1], dtype=np.int8))
    view = history_view(store, "events")
    users = np.array([0, 2])
    asked = ClickQuestions(
        users, np.array([3, 3]), np.array([1, 1]), np.ones(2, np.float32), users, users
    )
    features = fit_features(store, [UserId(), Label()], feature_rows(view, asked))
    sizes = features.sizes
    model = DIN(
        store.catalogue_size, sizes["user"], {}, sizes["event"], {}, 3, 8, initial_scale=1.0
    )
    return store, RankerScorer(model.eval(), features, "events", store)


def direct(scorer: RankerScorer, user: int, end: int, item: int) -> float:
    one = ClickQuestions(
        np.array([user]),
        np.array([end]),
        np.array([item]),
        np.zeros(1, np.float32),
        np.array([-1]),
        np.array([-1]),
        np.array([NO_TIME]),
    )
    batch = click_batch(scorer.view, one, scorer.columns, 3)
    with torch.no_grad():
        return float(torch.sigmoid(scorer.model(batch)))


@pytest.mark.parametrize("at_once", [1, 14, 1000])
def test_scores_of_the_catalogue_equal_single_questions(
    at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rankers, "QUESTIONS", at_once)
    store, scorer = example()
    users, ends = np.array([2, 0, 1]), np.array([4, 2, 0])
    scores_RV = scorer.scores(scorer.make_batch(store, users, ends))
    assert scores_RV.shape == (3, 7) and torch.isinf(scores_RV[:, 0]).all()
    expected = [
        [direct(scorer, u, e, v) for v in range(1, 7)] for u, e in zip(users, ends, strict=True)
    ]
    torch.testing.assert_close(scores_RV[:, 1:], torch.tensor(expected), rtol=1e-5, atol=1e-6)


def test_new_people_are_unknown_users_with_the_same_histories() -> None:
    store, scorer = example()
    new = HistoryStore.from_lists([[4, 4, 2], [1, 2, 3]], items=6)
    new = replace(new, labels=np.array([1, 1, 1, 1, 0, 1], dtype=np.int8))
    users, ends = np.array([0, 1]), np.array([0, 3])
    scores_RV = scorer.scores(scorer.make_batch(new, users, ends))
    assert torch.isfinite(scores_RV[:, 1:]).all()
    known = scorer.scores(scorer.make_batch(store, np.array([0]), np.array([3])))
    assert not torch.allclose(scores_RV[1, 1:], known[0, 1:])  # who it is matters
    with torch.no_grad():
        scorer.model.inputs.user_fields["user_id_"].table.weight.zero_()
    scores_RV = scorer.scores(scorer.make_batch(new, users, ends))
    known = scorer.scores(scorer.make_batch(store, np.array([0]), np.array([3])))
    torch.testing.assert_close(scores_RV[1, 1:], known[0, 1:])
