"""Candidates: drawn once for each question, never what the user had; or given, and checked."""

import numpy as np
import polars as pl
import pytest
from hypothesis import given as given_examples
from hypothesis import strategies as st

from recsys.evaluation.candidates import CandidateError, Candidates, given, sampled
from recsys.histories.questions import Questions, leave_one_out, user_share
from recsys.histories.store import HistoryStore


def random_store(seed: int, items: int = 30, users: int = 25) -> HistoryStore:
    draw = np.random.Generator(np.random.PCG64(seed))
    return HistoryStore.from_lists(
        [draw.integers(1, items + 1, draw.integers(3, 20)).tolist() for _ in range(users)],
        items=items,
    )


def lists(candidates: Candidates) -> list[list[int]]:
    return [part.tolist() for part in np.split(candidates.items, candidates.offsets[1:-1])]


@given_examples(
    st.integers(0, 300), st.sampled_from(["uniform", "popularity"]), st.sampled_from([1, 5, 12, 40])
)
def test_the_answers_and_so_many_that_the_user_never_had(seed, sampling, count):
    store = random_store(seed)
    split = user_share(store, 0.2) if seed % 2 else leave_one_out(store)
    found = sampled(
        store, split.test, split.training_ends, count=count, sampling=sampling, seed=seed
    )
    learned = {
        int(i)
        for u, end in enumerate(split.training_ends)
        for i in store.history(u, int(end)).tolist()
    }
    asked = zip(
        lists(found),
        split.test.users,
        split.test.target_begins,
        split.test.target_ends,
        strict=True,
    )
    for chosen, user, begin, end in asked:
        assert chosen == sorted(set(chosen))
        history = store.history(int(user)).tolist()
        answers = set(history[begin:end])
        others = set(chosen) - answers
        assert answers <= set(chosen)
        assert not others & set(history)
        drawable = set(range(1, 31)) if sampling == "uniform" else learned
        assert len(others) == min(count, len(drawable - set(history)))
        assert others <= drawable


def test_the_draw_has_a_seed_and_nothing_else():
    store = random_store(1)
    split = leave_one_out(store)
    again = [
        sampled(store, split.test, split.training_ends, count=5, sampling="uniform", seed=seed)
        for seed in (1, 1, 2)
    ]
    assert np.array_equal(again[0].items, again[1].items)
    assert not np.array_equal(again[0].items, again[2].items)
    assert [found.name for found in again] == ["uniform5seed1", "uniform5seed1", "uniform5seed2"]
    first, second = (
        sampled(
            store, split.test, split.training_ends, count=5, sampling="uniform", seed=0, stage=s
        )
        for s in (0, 1)
    )
    assert first.name == "uniform5" and not np.array_equal(first.items, second.items)


@pytest.mark.parametrize("items", [12, 400])
def test_draws_follow_their_weights(items):
    """One user who had nothing of it; items drawn as often as they should be, few left or many."""
    histories = [[1, 2, 3]] + [[i] * (3 if i % 2 else 9) for i in range(4, items + 1)]
    store = HistoryStore.from_lists(histories, items=items)
    ends = store.lengths.copy()
    ends[0] = 1
    n = 4000
    questions = Questions(*(np.full(n, value) for value in (0, 2, 2, 3)))
    evens, odds = (sum(i % 2 == rest for i in range(4, items + 1)) for rest in (0, 1))
    for sampling, weight in (("uniform", 1), ("popularity", 3)):
        found = sampled(store, questions, ends, count=1, sampling=sampling, seed=3)
        drawn = found.items[found.items > 3]
        assert len(drawn) == n
        even = (drawn % 2 == 0).mean()
        assert even == pytest.approx(weight * evens / (weight * evens + odds), abs=0.03)


def test_given_lists_are_taken_by_user():
    store = random_store(2)
    questions = Questions(*(np.array(a) for a in ([1, 0], [2, 2], [2, 2], [3, 3])))
    frame = pl.DataFrame(
        {"user": ["u0", "u1", "u0"], "item": ["i3", "i1", "i2"], "score": [1, 2, 3]}
    )
    found = given(frame, store, questions, "lists.parquet")
    assert lists(found) == [[1], [2, 3]]
    assert "lists.parquet" in found.in_words and found.name.startswith("given")
    other = given(frame[:2], store, questions, "lists.parquet")
    assert other.name != found.name


@pytest.mark.parametrize(
    ("columns", "words"),
    [
        ({"user": ["u0"], "itm": ["i1"]}, "has no column item; it has user, itm"),
        ({"user": ["u0", "u0"], "item": ["i1", "i1"]}, "user 'u0' has item 'i1' twice .row 2"),
        ({"user": ["u0", "x"], "item": ["i1", "i1"]}, "user 'x' in row 2 is not in the store"),
        ({"user": ["u0"], "item": ["i999"]}, "item 'i999' in row 1 is not in the store"),
        ({"user": ["u1"], "item": ["i1"]}, "no candidates for user 'u0' and 0 more questions"),
    ],
)
def test_lists_that_do_not_fit_are_refused(columns, words):
    store = random_store(2)
    questions = Questions(*(np.array(a) for a in ([0], [2], [2], [3])))
    with pytest.raises(CandidateError, match=words):
        given(pl.DataFrame(columns), store, questions, "lists.parquet")


def test_a_count_below_one_is_refused():
    store = random_store(2)
    split = leave_one_out(store)
    with pytest.raises(CandidateError, match="count must be at least 1"):
        sampled(store, split.test, split.training_ends, count=0, sampling="uniform", seed=0)
