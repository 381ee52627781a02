"""Click questions: nothing lost, nothing twice, and nothing of the future in a history."""

from __future__ import annotations

import dataclasses
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, reject
from hypothesis import strategies as st

from recsys.histories.click_batches import click_batch
from recsys.histories.clicks import (
    ClickQuestions,
    ViewKind,
    click_split,
    feature_rows,
    history_view,
    with_negatives,
)
from recsys.histories.negatives import NegativeSampler, Sampling
from recsys.histories.questions import Questions, Split, SplitError
from recsys.histories.store import HistoryStore

ML1M = Path(__file__).parents[3] / "shared" / "data" / "ml1m.parquet"


def store_of(
    lengths: list[int], labels: list[int] | None = None, times: list[list[int]] | None = None
) -> HistoryStore:
    """User u's i-th event is of item 1 + 20u + i, so an item says whose and which event it is."""
    histories = [[1 + 20 * u + i for i in range(n)] for u, n in enumerate(lengths)]
    store = HistoryStore.from_lists(histories, times=times)
    if labels is None:
        return store
    return replace(store, labels=np.array(labels, dtype=np.int8))


def split_of(store: HistoryStore, tested: int = 1) -> Split:
    """The last `tested` events of each user test, as many before them validate."""
    users, n = np.arange(store.users), store.lengths
    test = np.maximum(n - tested, 0)
    validation = np.maximum(test - tested, 0)
    return Split(
        "tail",
        validation,
        Questions(users, validation, validation, test),
        Questions(users, test, test, n),
        {"users": store.users},
        "the last ones",
    )


def histories_of(store: HistoryStore, kind: ViewKind, questions: ClickQuestions) -> list[list[int]]:
    view = history_view(store, kind)
    return [
        view.items[view.offsets[u] : view.offsets[u] + end].tolist()
        for u, end in zip(questions.users, questions.history_ends, strict=True)
    ]


@st.composite
def logs(draw: st.DrawFn) -> HistoryStore:
    lengths = draw(st.lists(st.integers(0, 12), min_size=1, max_size=7))
    # Somebody has something for each stage, so that nearly all of these logs can be split.
    lengths.insert(draw(st.integers(0, len(lengths))), draw(st.integers(12, 18)))
    events = sum(lengths)
    labels = draw(st.lists(st.sampled_from([0, 1, 0, 1, -1]), min_size=events, max_size=events))
    times = None
    if draw(st.booleans()):
        times = [sorted(draw(st.lists(st.integers(0, 6), min_size=n, max_size=n))) for n in lengths]
    return store_of(lengths, labels, times)


@given(store=logs(), tested=st.integers(1, 3))
def test_a_refit_learns_from_training_and_validation_and_asks_the_same_test(
    store: HistoryStore, tested: int
) -> None:
    split = split_of(store, tested)
    split = dataclasses.replace(split, refit_ends=np.maximum(store.lengths - tested, 0))
    try:
        plain = click_split(store, split, history="events")
        refit = click_split(store, split.refitted(), history="events")
    except SplitError:
        reject()  # a stage without candidates, or training of one class
    learned = np.concatenate([plain.training.rows, plain.validation.rows])
    assert refit.training.rows.tolist() == sorted(learned.tolist())
    assert len(refit.validation) == 0
    for field in dataclasses.fields(plain.test):
        before, after = getattr(plain.test, field.name), getattr(refit.test, field.name)
        assert np.array_equal(before, after) if before is not None else after is None


@given(store=logs(), tested=st.integers(1, 3), skip_first=st.integers(0, 3))
@pytest.mark.parametrize("kind", ["positives", "events"])
def test_every_labelled_event_once_and_its_history_is_what_stands_strictly_before(
    kind: ViewKind, store: HistoryStore, tested: int, skip_first: int
) -> None:
    split = split_of(store, tested)
    try:
        clicks = click_split(store, split, history=kind, skip_first=skip_first)
    except SplitError:
        reject()  # a stage without candidates, or training of one class
    assert store.labels is not None
    expected: dict[str, list[tuple[int, int, float, list[int]]]] = {
        "training": [],
        "validation": [],
        "test": [],
    }
    for user in range(store.users):
        begin, n = int(store.offsets[user]), int(store.lengths[user])
        for i in range(n):
            if i >= max(n - tested, 0):
                stage = "test"
            elif i >= max(n - 2 * tested, 0):
                stage = "validation"
            else:
                stage = "training"
            row = begin + i
            if store.labels[row] < 0 or (stage == "training" and i < skip_first):
                continue
            before = [
                j
                for j in range(begin, row)
                if (kind == "events" or store.labels[j] == 1)
                and (store.times is None or store.times[j] < store.times[row])
            ]
            history = [int(store.items[j]) for j in before]
            expected[stage].append((row, int(store.items[row]), float(store.labels[row]), history))
    for stage, rows in expected.items():
        questions: ClickQuestions = getattr(clicks, stage)
        found = zip(
            questions.rows.tolist(),
            questions.candidates.tolist(),
            questions.labels.tolist(),
            histories_of(store, kind, questions),
            strict=True,
        )
        assert list(found) == rows
        fitted = feature_rows(clicks.view, questions)
        seen = {item for row in rows for item in row[3]}  # an item is one event here
        assert store.items[fitted.events].tolist() == sorted(seen)
        assert fitted.items.tolist() == [row[1] for row in rows]
        assert clicks.counts[f"{stage}_candidates"] == len(rows)
        assert clicks.counts[f"{stage}_positives"] == sum(row[2] == 1 for row in rows)
        assert clicks.counts[f"{stage}_without_history"] == sum(not row[3] for row in rows)
        if store.times is not None:
            assert questions.times is not None
            assert questions.times.tolist() == store.times[questions.rows].tolist()
    assert clicks.counts["users"] == store.users  # what the split counted stays
    assert clicks.protocol == f"tail-{kind}"
    assert clicks.in_words.startswith("the last ones; history: the earlier ")


def test_a_column_of_order_says_what_came_before_even_at_one_moment() -> None:
    store = store_of([4], [1, 0, 1, 0], times=[[5, 5, 5, 5]])
    split = Split(
        "x",
        np.array([2]),
        Questions(np.array([0]), np.array([2]), np.array([2]), np.array([3])),
        Questions(np.array([0]), np.array([3]), np.array([3]), np.array([4])),
        {},
        "",
    )
    by_time = click_split(store, split, history="events")
    assert by_time.test.history_ends.tolist() == [0]
    ordered = replace(store, manifest={"order": "order"})
    assert click_split(ordered, split, history="events").test.history_ends.tolist() == [3]
    assert click_split(ordered, split, history="positives").test.history_ends.tolist() == [2]


def test_no_event_is_viewed_where_none_is_wanted() -> None:
    store = store_of([6, 6], labels=[1, 0, 1, 1, 0, 1, 1, 0, 1, 1, 0, 1])
    clicks = click_split(store, split_of(store), history="none")
    full = click_split(store, split_of(store), history="events")
    assert clicks.in_words.endswith("history: none")
    assert full.test.history_ends.min() > 0 and clicks.test.history_ends.max() == 0
    assert np.array_equal(clicks.test.candidates, full.test.candidates)
    batch = click_batch(clicks.view, clicks.training, None, 5)
    assert batch.lengths_B.max() == 0 and batch.history_BL.shape[1] <= 1


def test_without_labels_every_event_is_viewed_and_needs_negatives() -> None:
    store = store_of([6, 6])
    with pytest.raises(SplitError, match=r"no labels.*data\.columns\.label, or sample negatives"):
        click_split(store, split_of(store), history="positives")
    split = split_of(store)
    sampler = NegativeSampler(store, split.training_ends, "uniform", 2, seed=0)
    clicks = click_split(store, split, history="positives", skip_first=1, negatives=sampler)
    assert clicks.protocol == "tail-positives-uniform2"
    assert clicks.view.event_rows is None
    assert clicks.training.labels.tolist() == [1] * 6
    assert clicks.training_size == 18 == len(clicks.training_questions(0))
    assert clicks.counts["first_events_skipped"] == 2
    assert clicks.counts["test_candidates"] == 6


@pytest.mark.parametrize("sampling", ["uniform", "popularity"])
def test_who_has_every_item_asks_nothing_and_is_counted(sampling: Sampling) -> None:
    all_items = [1, 2, 3, 4, 5, 6]
    store = HistoryStore.from_lists([[1, 2, 3, 4], all_items, [3, 4, 5, 6, 1], [5]], items=6)
    split = split_of(store)
    sampler = NegativeSampler(store, split.training_ends, sampling, 2, seed=0)
    clicks = click_split(store, split, history="events", negatives=sampler)
    stages = (clicks.training_questions(0), clicks.validation, clicks.test)
    assert [sorted(set(stage.users.tolist())) for stage in stages] == [[0, 2], [0, 2], [0, 2, 3]]
    assert clicks.counts["users_with_every_item"] == 1
    assert clicks.counts["positives_without_negatives"] == 6
    assert clicks.training_size == 3 * 5 == len(stages[0])
    assert clicks.counts["training_candidates"] == 5
    assert clicks.counts["test_candidates"] == 3 * 3
    # Nobody is left to learn from.
    store = HistoryStore.from_lists([all_items, [1]], items=6)
    split = split_of(store)
    sampler = NegativeSampler(store, np.array([6, 1]), "uniform", 2, seed=0)
    words = "no candidate is left for training: 6 positives of 1 users who have every item"
    with pytest.raises(SplitError, match=words):
        click_split(store, split, history="events", negatives=sampler)


def test_a_positive_and_its_negatives_are_one_request_about_one_moment() -> None:
    store = store_of([6, 6], times=[[1, 2, 3, 4, 5, 6]] * 2)
    split = split_of(store)
    sampler = NegativeSampler(store, split.training_ends, "uniform", 3, seed=0)
    positives = click_split(store, split, history="events", negatives=sampler).training
    both = with_negatives(positives, sampler, 9)
    assert both.labels.tolist() == [1, 0, 0, 0] * len(positives)
    assert both.candidates[::4].tolist() == positives.candidates.tolist()
    assert both.requests.tolist() == np.repeat(np.arange(len(positives)), 4).tolist()
    assert both.times is not None and positives.times is not None
    for name in ("users", "history_ends", "rows", "times"):
        assert getattr(both, name).tolist() == np.repeat(getattr(positives, name), 4).tolist()


def test_training_negatives_change_with_the_epoch_and_the_others_never() -> None:
    store = store_of([12] * 10)
    split = split_of(store)

    def make(seed: int = 0):  # type: ignore[no-untyped-def]
        sampler = NegativeSampler(store, split.training_ends, "uniform", 2, seed)
        return click_split(store, split, history="events", negatives=sampler)

    def drawn(epoch: int) -> list[int]:
        return make().training_questions(epoch).candidates.tolist()

    assert drawn(0) == drawn(0) != drawn(1)
    assert make().test.candidates.tolist() == make().test.candidates.tolist()
    assert make().test.candidates.tolist() != make(1).test.candidates.tolist()
    # Validation, test and training have streams of their own.
    validation, test = (
        s.candidates.reshape(10, 3)[:, 1:] for s in (make().validation, make().test)
    )
    assert (validation != test).any()


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ([1] * 6, "all 4 training candidates have label 1.*or sample negatives"),
        ([0] * 6, r"all 4 training candidates have label 0.*check data\.columns\.label$"),
        ([-1] * 4 + [0, 1], "no candidate is left for training.*4 candidates have no label"),
        ([0, 1, 0, 1, 0, -1], "no candidate is left for test"),
    ],
)
def test_one_class_or_nothing_to_learn_from_is_said(labels: list[int], message: str) -> None:
    store = store_of([6], labels)
    with pytest.raises(SplitError, match=message):
        click_split(store, split_of(store), history="events")


def test_options_that_mean_nothing_are_refused() -> None:
    store = store_of([6, 6], [0, 1] * 6)
    split = split_of(store)
    sampler = NegativeSampler(store, split.training_ends, "uniform", 1, seed=0)
    with pytest.raises(SplitError, match=r"negatives of its own \(6 of 12.*positive_only=true"):
        click_split(store, split, history="events", negatives=sampler)
    with pytest.raises(SplitError, match="skip_first must be at least 0, not -1"):
        click_split(store, split, history="events", skip_first=-1)
    with pytest.raises(SplitError, match="'positives', 'events' or 'none', not 'clicks'"):
        click_split(store, split, history="clicks")  # type: ignore[arg-type]
    with pytest.raises(SplitError, match=r"no candidate is left for training.*8 first events"):
        click_split(store, split, history="events", skip_first=9)


@pytest.mark.skipif(not ML1M.exists(), reason="needs ML-1M, which is not in the repository")
def test_the_click_table_of_ml1m_has_the_published_number_of_rows() -> None:
    import polars as pl

    from recsys.histories.questions import user_share

    frame = pl.read_parquet(ML1M, columns=["user_id", "item_id", "label", "position"]).sort(
        "user_id", "position"
    )
    lengths = frame.group_by("user_id", maintain_order=True).len()["len"].to_list()
    histories = np.split(frame["item_id"].to_numpy(), np.cumsum(lengths)[:-1])
    store = replace(
        HistoryStore.from_lists([[1] * n for n in lengths], items=1),
        labels=frame["label"].to_numpy().astype(np.int8),
        items=np.concatenate(histories).astype(np.int32),
    )
    clicks = click_split(store, user_share(store, share=0.1), history="positives", skip_first=5)
    assert len(clicks.training) == 764_017
    assert len(clicks.validation) == len(clicks.test) == 102_697
    assert clicks.counts["unlabelled_events"] == 0
