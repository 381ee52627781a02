"""Training batches lose nothing, double nothing, and go on where they stopped."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from recsys.histories.batches import TrainingBatches, WindowKind, history_batch
from recsys.histories.store import HistoryStore


def store_of(lengths: list[int]) -> HistoryStore:
    return HistoryStore.from_lists(
        [[10 * u + i + 1 for i in range(n)] for u, n in enumerate(lengths)]
    )


@settings(max_examples=60, deadline=None)
@given(
    lengths=st.lists(st.integers(0, 9), min_size=1, max_size=30).filter(lambda x: max(x) >= 2),
    budget=st.integers(1, 60),
    max_length=st.integers(1, 12),
    epoch=st.integers(0, 3),
    windows=st.sampled_from(["all", "newest"]),
)
@example(lengths=[2, 2, 9], budget=1, max_length=8, epoch=0, windows="all")  # one holds most
@example(lengths=[9], budget=1, max_length=1, epoch=0, windows="all")
def test_every_pair_once_per_epoch(
    lengths: list[int], budget: int, max_length: int, epoch: int, windows: WindowKind
) -> None:
    store = store_of(lengths)
    batches = TrainingBatches(store, store.lengths, max_length, budget, seed=3, windows=windows)
    batches.epoch = epoch
    pairs = []
    count = 0
    for inputs, targets in batches:
        count += 1
        assert len(inputs.lengths_B) >= 1
        assert 1 <= inputs.lengths_B.min() <= inputs.lengths_B.max() <= max_length
        before = inputs.items_BL.flatten()[inputs.packed_T]
        pairs += list(zip(before.tolist(), targets.tolist(), strict=True))
    assert count == len(batches)
    expected = [
        (10 * u + i + 1, 10 * u + i + 2)
        for u, n in enumerate(lengths)
        for i in range(max(0, n - 1 - max_length) if windows == "newest" else 0, n - 1)
    ]
    assert sorted(pairs) == sorted(expected)
    assert batches.tokens_per_epoch == len(expected)


def test_epochs_differ_and_seeds_differ_and_both_repeat() -> None:
    store = store_of([5] * 50)

    def first(seed: int, epoch: int) -> list[int]:
        batches = TrainingBatches(store, store.lengths, 4, 20, seed)
        batches.epoch = epoch
        return next(iter(batches))[1].tolist()

    assert first(0, 0) == first(0, 0)
    assert first(0, 0) != first(0, 1)
    assert first(0, 0) != first(1, 0)


def test_histories_meet_others_and_lengths_come_in_any_order() -> None:
    store = store_of([3 + i % 20 for i in range(200)])
    batches = TrainingBatches(store, store.lengths, 30, 100, seed=0)
    plans = [batches.plan(epoch) for epoch in (0, 1)]
    company = [{frozenset(windows.users.tolist()) for windows in plan} for plan in plans]
    assert len(company[0] & company[1]) < len(plans[0]) / 2
    longest = [windows.lengths.max() for windows in plans[0]]
    assert longest != sorted(longest) and longest != sorted(longest, reverse=True)


def test_the_newest_window_is_whole_and_the_others_begin_elsewhere_each_epoch() -> None:
    store = store_of([48, 3])
    batches = TrainingBatches(store, store.lengths, 10, 20, seed=0, windows="all")
    second = set()
    for epoch in range(200):
        cut = batches.cut(epoch)
        assert cut.users.tolist() == [0] * (len(cut) - 1) + [1]
        assert (cut.ends[0], cut.lengths[0], cut.ends[-1], cut.lengths[-1]) == (48, 10, 3, 2)
        assert (cut.ends[1:-1] == cut.ends[:-2] - cut.lengths[:-2]).all()
        assert (cut.lengths[2:-2] == 10).all()  # all but the second and the oldest
        second.add(int(cut.lengths[1]))
    assert second == set(range(1, 11))


@pytest.mark.parametrize("stop", [1, 3, 7, 12])
@pytest.mark.parametrize("windows", ["all", "newest"])
def test_goes_on_where_it_stopped(stop: int, windows: WindowKind) -> None:
    store = store_of([4 + i % 5 for i in range(40)])

    def make() -> TrainingBatches:
        return TrainingBatches(store, store.lengths, 6, 25, seed=1, windows=windows)

    whole = make()
    expected = [t.tolist() for _ in range(2) for _, t in whole]
    assert whole.state_dict() == {"epoch": 2, "next_batch": 0}
    part = make()
    iterator = (t.tolist() for _ in range(2) for _, t in part)
    got = [next(iterator) for _ in range(stop)]
    other = make()
    other.load_state_dict(part.state_dict())
    while len(got) < len(expected):
        got += [t.tolist() for _, t in other]
    assert got == expected


def test_batches_are_even_and_waste_little() -> None:
    draw = np.random.Generator(np.random.PCG64(0))
    store = store_of(np.minimum(draw.geometric(0.05, 6000), 200).tolist())
    batches = TrainingBatches(store, store.lengths, 200, 2000, seed=0)
    tokens, padded = [], 0
    for inputs, targets in batches:
        tokens.append(len(targets))
        padded += inputs.items_BL.numel()
    assert max(tokens) < 1.25 * np.mean(tokens)
    assert padded < 1.15 * sum(tokens)


def test_small_logs_have_steps_too() -> None:
    store = store_of([9] * 50)
    batches = TrainingBatches(store, store.lengths, 8, 6400, seed=0, minimum_batches=20)
    assert len(batches) == 20
    assert sum(len(targets) for _, targets in batches) == 400
    assert len(TrainingBatches(store, store.lengths, 8, 6400, seed=0, minimum_batches=99)) == 50
    assert len(TrainingBatches(store, store.lengths, 8, 150, seed=0)) == 3  # 400 tokens, rounded up


def test_history_is_the_newest_events_before_the_end() -> None:
    store = store_of([6, 2])
    batch = history_batch(store, np.array([0, 1, 1]), np.array([5, 1, 0]), max_length=3)
    assert batch.items_BL.tolist() == [[3, 4, 5], [11, 0, 0], [0, 0, 0]]
    assert batch.lengths_B.tolist() == [3, 1, 0]
    assert batch.times_BL is None


def test_nothing_to_learn_from_is_said() -> None:
    store = store_of([1, 1])
    with pytest.raises(ValueError, match="nobody has two training events"):
        TrainingBatches(store, store.lengths, 4, 10, seed=0)
    with pytest.raises(ValueError, match="tokens_per_batch must be at least 1, not 0"):
        TrainingBatches(store_of([3]), np.array([3]), 4, 0, seed=0)


def test_times_stand_where_their_events_stand() -> None:
    store = HistoryStore.from_lists([[1, 2, 3], [], [4]], 4, [[10, 20, 30], [], [40]])
    batch = history_batch(store, np.arange(3), np.array([3, 0, 1]), max_length=2)
    assert batch.times_BL is not None
    assert batch.times_BL.tolist() == [[20, 30], [0, 0], [40, 0]]
    assert batch.items_BL.tolist() == [[2, 3], [0, 0], [4, 0]]


def test_a_store_without_events_gives_empty_histories() -> None:
    store = HistoryStore.from_lists([[], []], 4, [[], []])
    batch = history_batch(store, np.arange(2), np.zeros(2, dtype=np.int64))
    assert batch.lengths_B.tolist() == [0, 0] and not batch.items_BL.any()
