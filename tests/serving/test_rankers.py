"""A ranker asked about the whole catalogue answers as it does one by one."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import polars as pl
import pytest
import torch

from recsys.histories.attributes import attribute_of
from recsys.histories.click_batches import click_batch
from recsys.histories.clicks import ClickQuestions, feature_rows, history_view
from recsys.histories.features import (
    Categorical,
    FeatureError,
    HourOfWeek,
    Label,
    MultiValued,
    Numeric,
    Recency,
    UserId,
    fit_features,
)
from recsys.histories.store import NO_TIME, HistoryStore
from recsys.histories.vocabulary import Vocabulary
from recsys.models.click.din import DIN
from recsys.serving import rankers
from recsys.serving.people import NewPeople
from recsys.serving.rankers import RankerScorer, lacking


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


def test_new_people_are_unknown_users_whatever_their_ids() -> None:
    store, scorer = example()
    with torch.no_grad():  # as if training had seen unknown users too
        scorer.model.inputs.user_fields["user_id_"].table.weight[1] = 1.0
    # u0 and u2 are the users that training knew; here their names stand with others' histories.
    new = HistoryStore.from_lists([[2, 5, 1, 3], [4], [1, 2, 3]], items=6)
    new = replace(new, labels=np.array([0, 1, 0, 1, 1, 1, 0, 1], dtype=np.int8))
    strangers = replace(new, user_vocabulary=Vocabulary(pl.Series(["x", "y", "z"]), 0))
    users, ends = np.array([0, 1, 2]), np.array([3, 0, 3])
    scores_RV = scorer.scores(scorer.make_batch(new, users, ends))
    assert torch.isfinite(scores_RV[:, 1:]).all()
    torch.testing.assert_close(scores_RV, scorer.scores(scorer.make_batch(strangers, users, ends)))
    known = scorer.make_batch(store, np.array([2, 2, 0]), ends)
    knowns_RV = scorer.scores(known)
    for row in (0, 2):  # the same history, and who it is matters
        assert not torch.allclose(scores_RV[row, 1:], knowns_RV[row, 1:])
    with torch.no_grad():
        scorer.model.inputs.user_fields["user_id_"].table.weight.zero_()
    scores_RV = scorer.scores(scorer.make_batch(new, users, ends))
    torch.testing.assert_close(scores_RV, scorer.scores(known))  # and nothing else does


HOUR = 3_600_000_000
OF_PEOPLE = [
    Categorical("device", "event", "device"),
    MultiValued("tags", "event", "tags"),
    Numeric("dwell", "event", "dwell"),
    Recency("ago"),
    HourOfWeek("hour", "event"),
    Label(),
    Categorical("city", "user", "city"),
    MultiValued("likes", "user", "likes", separator=","),
]


def told() -> tuple[HistoryStore, RankerScorer]:
    """Users with times, labels and features of every form, of themselves and of their events."""
    torch.manual_seed(0)
    store = HistoryStore.from_lists(
        [[1, 2, 3], [4], [2, 5, 1, 3], [], [6, 1]],
        items=6,
        times=[[1 * HOUR, 5 * HOUR, 9 * HOUR], [2 * HOUR], [2, 3, 4, 5], [], [7 * HOUR, NO_TIME]],
    )
    columns = {
        "event.device": ["pc", "pc", "tv", None, "pc", "tv", "tv", "watch", "pc", "tv"],
        "event.tags": [["a"], [], ["b", "a"], ["c"], None, ["a"], ["b"], ["a", "c"], ["d"], ["a"]],
        "event.dwell": [0.5, 1.5, None, 2.5, 3.5, 0.25, 9.5, 1.5, 2.5, 4.5],
        "user.city": ["Rome", "Oslo", None, "Rome", "Lima"],
        "user.likes": ["x,y", "", "y", None, "z,x"],
    }
    store = replace(
        store,
        labels=np.array([1, 0, 1, 1, 0, 1, 0, 1, -1, 1], dtype=np.int8),
        attributes={k: attribute_of(pl.Series(k, v), "here") for k, v in columns.items()},
    )
    view = history_view(store, "events")
    users, ends = np.arange(5), store.lengths
    ones = np.ones(5, np.int64)
    # Training knew no "watch", no "d" and no Lima: they are unknown values.
    asked = ClickQuestions(users, np.minimum(ends, 3), ones, ones * 1.0, users, users, ones)
    features = fit_features(store, OF_PEOPLE, feature_rows(view, asked.take(np.arange(4))))
    sizes = features.sizes
    model = DIN(7, sizes["user"], {}, sizes["event"], {}, 3, 8, initial_scale=0.3)
    with torch.no_grad():  # stretches and unknown values start at zero; what is missing stays there
        for name, parameter in model.named_parameters():
            parameter += 0.1 * torch.randn_like(parameter)
            if name.endswith("table.weight") and len(parameter) > 1:
                parameter[0] = 0
    return store, RankerScorer(model.eval(), features, "events", store, 10 * HOUR)


def others(store: HistoryStore) -> HistoryStore:
    """The same people and events by other names, in item indices of another log."""
    raw = ["i6", "new", "i1", "i2", "i3", "i4", "i5"]
    items = Vocabulary(pl.Series("item", raw), 1)
    return replace(
        store,
        items=items.indices(store.item_vocabulary.raw(store.items)).astype(np.int32),
        item_vocabulary=items,
        user_vocabulary=Vocabulary(pl.Series("user", [f"n{u}" for u in range(store.users)]), 0),
    )


@pytest.mark.parametrize("step", [1, 2, 5])
def test_new_people_with_the_same_log_get_the_same_scores(step: int) -> None:
    store, scorer = told()
    everybody = np.arange(store.users)
    stored_RV = scorer.scores(scorer.make_batch(store, everybody, store.lengths))
    people = NewPeople(others(store), store.item_vocabulary)
    for begin in range(0, len(people), step):
        some = people.slice(begin, min(begin + step, len(people)))
        assert not lacking(scorer.features, some.store)
        new_RV = scorer.scores(scorer.make_batch(some.store, some.users_M, some.ends_M))
        torch.testing.assert_close(new_RV, stored_RV[begin : begin + step], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("feature", OF_PEOPLE, ids=lambda feature: feature.name)
def test_each_feature_of_new_people_matters_and_may_be_missing(feature) -> None:
    store, scorer = told()
    whole = others(store)
    lacks = whole
    if hasattr(feature, "column"):
        attributes = dict(whole.attributes)
        del attributes[f"{feature.of}.{feature.column}"]
        lacks = replace(whole, attributes=attributes)
    elif isinstance(feature, Label):
        lacks = replace(whole, labels=None)  # unlabelled, which is no lack
    else:
        lacks = replace(whole, times=None)
    named = [lack.name for lack in lacking(scorer.features, lacks)]
    expected = {"ago": ["ago", "hour"], "hour": ["ago", "hour"], "label": []}
    assert named == expected.get(feature.name, [feature.name])

    def scores(theirs: HistoryStore) -> torch.Tensor:
        some = NewPeople(theirs, store.item_vocabulary).slice(0, 5)
        return scorer.scores(scorer.make_batch(some.store, some.users_M, some.ends_M))

    assert torch.isfinite(scores(lacks)[:, 1:]).all()
    assert not torch.allclose(scores(whole)[:, 1:], scores(lacks)[:, 1:])


def test_a_column_of_new_people_that_holds_other_things_is_refused() -> None:
    store, scorer = told()
    words = attribute_of(pl.Series("dwell", ["long"] * store.events), "here")
    theirs = replace(store, attributes={**store.attributes, "event.dwell": words})
    some = NewPeople(theirs, store.item_vocabulary).slice(0, 5)
    with pytest.raises(FeatureError, match=r"dwell.* the first other value is 'long'"):
        scorer.make_batch(some.store, some.users_M, some.ends_M)


def test_recency_counts_from_the_moment_of_each_user() -> None:
    store, scorer = told()
    users, ends = np.array([0, 4]), np.array([3, 2])

    def scores(moments: int | np.ndarray) -> torch.Tensor:
        asked = RankerScorer(scorer.model, scorer.features, "events", store, moments)
        return asked.scores(asked.make_batch(store, users, ends))[:, 1:]

    soon, late, unknown = scores(10 * HOUR), scores(1000 * HOUR), scores(NO_TIME)
    assert not torch.allclose(soon, late) and not torch.allclose(late, unknown)
    moments = np.array([1000, 0, 0, 0, 10]) * HOUR
    torch.testing.assert_close(scores(moments), torch.stack([late[0], soon[1]]))
