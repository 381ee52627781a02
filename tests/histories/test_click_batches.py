"""Click batches: what a row shows is its own history, whoever stands beside it and whenever."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from recsys.batch import ClickBatch
from recsys.histories import click_batches
from recsys.histories.click_batches import ClickBatches, Columns, click_batch
from recsys.histories.clicks import (
    ClickQuestions,
    ClickSplit,
    click_split,
    feature_rows,
    history_view,
)
from recsys.histories.features import Label, Recency, UserId, fit_features
from recsys.histories.negatives import NegativeSampler
from recsys.histories.questions import Questions, Split
from recsys.histories.store import HistoryStore


class PlainColumns:
    """Fields that tell which rows they were asked for: twice the index, a bag, an age."""

    def __init__(self, store: HistoryStore) -> None:
        self.store = store
        self.sizes: Mapping[str, Mapping[str, int]] = {
            "user": {"twice": 99},
            "item": {"bag": 99},
            "event": {"row": 99, "pair": 99, "age": 0},
            "context": {"row": 99},
        }

    def user(self, name: str, users: np.ndarray) -> np.ndarray:
        return (2 * users).astype(np.int32)

    def item(self, name: str, items: np.ndarray) -> np.ndarray:
        return np.column_stack([items + 1, items + 2]).astype(np.int32)

    def event(
        self, name: str, event_rows_BL: np.ndarray, question_times_B: np.ndarray | None
    ) -> np.ndarray:
        rows = event_rows_BL
        assert self.store.times is not None and question_times_B is not None
        if name == "age":
            ages = question_times_B[:, None] - self.store.times[np.maximum(rows, 0)]
            return np.where(rows < 0, 0.0, ages)
        bags = np.stack([rows + 1, np.where(rows < 0, 0, rows + 2)], axis=2)
        return rows + 1 if name == "row" else bags

    def context(self, name: str, rows: np.ndarray) -> np.ndarray:
        return rows


def store_of(lengths: list[int], items: int = 30) -> HistoryStore:
    draw = np.random.Generator(np.random.PCG64(len(lengths)))
    histories = [draw.integers(1, items + 1, n).tolist() for n in lengths]
    store = HistoryStore.from_lists(histories, items, times=[list(range(n)) for n in lengths])
    labels = draw.integers(0, 2, store.events).astype(np.int8)
    return replace(store, labels=labels)


def clicks_of(store: HistoryStore, kind: str = "events", negatives: int = 0) -> ClickSplit:
    users, n = np.arange(store.users), store.lengths
    test, validation = np.maximum(n - 1, 0), np.maximum(n - 2, 0)
    split = Split(
        "tail",
        validation,
        Questions(users, validation, validation, test),
        Questions(users, test, test, n),
        {},
        "",
    )
    sampler = None
    if negatives:
        store = replace(store, labels=None)
        sampler = NegativeSampler(store, validation, "uniform", negatives, seed=0)
    return click_split(store, split, history=kind, negatives=sampler)  # type: ignore[arg-type]


def same(a: ClickBatch, b: ClickBatch) -> bool:
    """Equal to the last bit."""

    def parts(batch: ClickBatch) -> list[torch.Tensor]:
        fields = (batch.user_fields, batch.item_fields, batch.event_fields, batch.context_fields)
        return [
            batch.item_ids_I,
            batch.candidates_B,
            batch.history_BL,
            batch.lengths_B,
            *(field[name] for field in fields for name in sorted(field)),
        ]

    return all(torch.equal(x, y) for x, y in zip(parts(a), parts(b), strict=True))


@given(
    lengths=st.lists(st.integers(0, 9), min_size=1, max_size=8).filter(any),
    max_length=st.integers(1, 7),
    kind=st.sampled_from(["positives", "events"]),
    whole=st.booleans(),
    data=st.data(),
)
def test_a_row_shows_the_newest_viewed_events_before_its_end(
    lengths: list[int], max_length: int, kind: str, whole: bool, data: st.DataObject
) -> None:
    store = store_of(lengths)
    view = history_view(store, kind)  # type: ignore[arg-type]
    assert store.labels is not None and store.times is not None
    users = np.array(data.draw(st.lists(st.integers(0, store.users - 1), min_size=1, max_size=6)))
    ends = np.array([data.draw(st.integers(0, lengths[user])) for user in users])
    n = len(users)
    questions = ClickQuestions(
        users=users,
        history_ends=view.ends(users, ends),
        candidates=np.array(data.draw(st.lists(st.integers(1, 30), min_size=n, max_size=n))),
        labels=np.zeros(n, np.float32),
        requests=np.full(n, -1),
        rows=np.arange(n) + 5,
        times=np.full(n, 100),
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(click_batches, "WHOLE_CATALOGUE", 99 if whole else 0)
        batch = click_batch(view, questions, PlainColumns(store), max_length)

    ids = batch.item_ids_I.tolist()
    assert ids[0] == 0 and ids == sorted(set(ids))
    assert [ids[i] for i in batch.candidates_B] == questions.candidates.tolist()
    assert batch.item_fields["bag"].tolist() == [[i + 1, i + 2] for i in ids]
    assert batch.user_fields["twice"].tolist() == (2 * users).tolist()
    assert batch.context_fields["row"].tolist() == questions.rows.tolist()
    occurring = {0, *questions.candidates.tolist()}
    L = batch.history_BL.shape[1]
    for row, (user, end) in enumerate(zip(users.tolist(), ends.tolist(), strict=True)):
        begin = int(store.offsets[user])
        before = [r for r in range(begin, begin + end) if kind == "events" or store.labels[r] == 1]
        before = before[max(0, len(before) - max_length) :]
        items = [int(store.items[r]) for r in before]
        occurring |= set(items)
        padding = [0] * (L - len(before))
        assert batch.lengths_B[row] == len(before)
        assert [ids[i] for i in batch.history_BL[row]] == items + padding
        assert batch.event_fields["row"][row].tolist() == [r + 1 for r in before] + padding
        pairs = [[r + 1, r + 2] for r in before] + [[0, 0] for _ in padding]
        assert batch.event_fields["pair"][row].tolist() == pairs
        ages = [100.0 - float(store.times[r]) for r in before] + padding
        assert batch.event_fields["age"][row].tolist() == ages
    assert max(int(batch.lengths_B.max()), 1) == L
    assert ids == (list(range(31)) if whole else sorted(occurring))


def test_codes_are_int64_and_numbers_float32() -> None:
    clicks = clicks_of(store_of([9] * 4))
    batch = click_batch(clicks.view, clicks.test, PlainColumns(clicks.view.store), 5)
    assert batch.event_fields["age"].dtype == torch.float32
    for field in (
        batch.user_fields["twice"],
        batch.item_fields["bag"],
        batch.context_fields["row"],
    ):
        assert field.dtype == torch.int64
    for tensor in (batch.item_ids_I, batch.candidates_B, batch.history_BL, batch.lengths_B):
        assert tensor.dtype == torch.int64
    assert click_batch(clicks.view, clicks.test, None, 5).event_fields == {}


def test_fitted_features_are_columns() -> None:
    store = store_of([4, 3])
    assert store.times is not None
    store = replace(
        store,
        times=store.times * 1_000_000,
        labels=np.array([1, 0, 1, 1, 0, 1, 0], dtype=np.int8),
    )
    clicks = clicks_of(store)
    fitted = fit_features(
        store,
        [UserId(), Label(), Recency("ago")],
        feature_rows(clicks.view, clicks.training_questions(0)),
    )
    batch = click_batch(clicks.view, clicks.test, fitted.columns(store), 2)
    assert batch.user_fields["user_id"].tolist() == [2, 3]
    assert batch.event_fields["label"].tolist() == [[2, 3], [2, 3]]
    # Two seconds ago and one: floor(log2(1 + seconds)) = 1, and codes start at 2.
    assert batch.event_fields["ago"].tolist() == [[3, 3], [3, 3]]
    longer = click_batch(clicks.view, clicks.test, fitted.columns(store), 3)
    assert longer.event_fields["ago"].tolist() == [[4, 3, 3], [3, 3, 0]]


def test_a_log_where_nothing_is_in_view_has_empty_histories() -> None:
    store = store_of([5] * 3)
    store = replace(store, labels=np.zeros(15, np.int8))
    questions = replace(clicks_of(store_of([5] * 3)).test, history_ends=np.zeros(3, np.int64))
    batch = click_batch(history_view(store, "positives"), questions, PlainColumns(store), 4)
    assert batch.history_BL.tolist() == [[0]] * 3
    assert batch.lengths_B.tolist() == [0] * 3
    assert batch.event_fields["row"].tolist() == [[0]] * 3


@pytest.mark.parametrize("negatives", [0, 2])
def test_every_question_once_per_epoch_in_batches_of_one_size(negatives: int) -> None:
    clicks = clicks_of(store_of([3 + i % 7 for i in range(40)]), negatives=negatives)
    batches = ClickBatches(clicks, None, 4, 16, seed=1)
    for epoch in range(2):
        wanted = clicks.training_questions(epoch)
        rows, sizes = [], []
        for batch, labels in batches:
            sizes.append(len(labels))
            rows += zip(
                batch.candidates_B.tolist(), labels.tolist(), batch.lengths_B.tolist(), strict=True
            )
        lengths = np.minimum(wanted.history_ends, 4)
        expected = zip(
            wanted.candidates.tolist(), wanted.labels.tolist(), lengths.tolist(), strict=True
        )
        assert sorted(rows) == sorted(expected)
        assert len(sizes) == len(batches)
        assert max(sizes) - min(sizes) <= 1 and max(sizes) <= 16


@pytest.mark.parametrize("stop", [1, 3, 7, 13])
@pytest.mark.parametrize("negatives", [0, 2])
def test_goes_on_where_it_stopped(stop: int, negatives: int) -> None:
    clicks = clicks_of(store_of([4 + i % 5 for i in range(30)]), negatives=negatives)

    def make() -> ClickBatches:
        count = len(clicks.training_questions(0))
        columns: Columns = PlainColumns(clicks.view.store)
        return ClickBatches(clicks, columns, 6, -(-count // 7), seed=1)

    whole = make()
    assert len(whole) == 7
    expected = [pair for _ in range(2) for pair in whole]
    part = make()
    iterator = iter(part)
    got = []
    for _ in range(stop):
        pair = next(iterator, None)
        if pair is None:
            iterator = iter(part)
            pair = next(iterator)
        got.append(pair)
    other = make()
    other.load_state_dict(part.state_dict())
    while len(got) < len(expected):
        got += list(other)
    for (batch, labels), (wanted, wanted_labels) in zip(got, expected, strict=True):
        assert same(batch, wanted) and torch.equal(labels, wanted_labels)


def test_epochs_differ_and_seeds_differ_and_both_repeat() -> None:
    clicks = clicks_of(store_of([9] * 20))

    def first(seed: int, epoch: int) -> list[int]:
        batches = ClickBatches(clicks, None, 4, 20, seed)
        batches.epoch = epoch
        return next(iter(batches))[0].candidates_B.tolist()

    assert first(0, 0) == first(0, 0)
    assert first(0, 0) != first(0, 1)
    assert first(0, 0) != first(1, 0)


def test_identity_tells_streams_apart() -> None:
    clicks = clicks_of(store_of([9] * 20))
    columns = PlainColumns(clicks.view.store)
    own = ClickBatches(clicks, columns, 4, 20, seed=0).identity()
    assert own == ClickBatches(clicks, columns, 4, 20, seed=0).identity()
    others = [
        ClickBatches(clicks, None, 4, 20, seed=0),
        ClickBatches(clicks, columns, 5, 20, seed=0),
        ClickBatches(clicks, columns, 4, 30, seed=0),
        ClickBatches(clicks, columns, 4, 20, seed=1),
        ClickBatches(clicks_of(store_of([9] * 20), "positives"), columns, 4, 20, seed=0),
    ]
    assert all(other.identity() != own for other in others)


def test_small_logs_have_steps_too_and_numbers_are_checked() -> None:
    clicks = clicks_of(store_of([9] * 4))
    total = len(clicks.training)
    assert len(ClickBatches(clicks, None, 4, 4096, seed=0, minimum_batches=5)) == 5
    assert len(ClickBatches(clicks, None, 4, 4096, seed=0, minimum_batches=999)) == total
    with pytest.raises(ValueError, match=r"trainer\.rows_per_batch must be at least 1, not 0"):
        ClickBatches(clicks, None, 4, 0, seed=0)
    with pytest.raises(ValueError, match="max_length must be at least 1, not 0"):
        ClickBatches(clicks, None, 0, 8, seed=0)
