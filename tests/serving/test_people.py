"""Slices together hold everybody, each with what the model knows of their history."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from recsys.histories.questions import Questions
from recsys.histories.store import HistoryStore
from recsys.serving.people import NewPeople, Slice, StoredPeople, first_questions

KNOWN = 5


def histories_of(some: Slice) -> list[tuple[str, list[str]]]:
    raw = some.store.item_vocabulary.raw
    return [
        (user, raw(some.store.history(int(index), int(end))).to_list())
        for user, index, end in zip(some.raw_users, some.users_M, some.ends_M, strict=True)
    ]


@given(
    st.lists(st.lists(st.integers(1, 9), max_size=6), min_size=1, max_size=12),
    st.integers(1, 13),
)
def test_new_people_keep_their_known_events_in_order(histories, step) -> None:
    theirs = HistoryStore.from_lists(histories, 9, [list(range(len(h))) for h in histories])
    items = HistoryStore.from_lists([[]], KNOWN).item_vocabulary
    people = NewPeople(theirs, items)
    slices = [
        people.slice(begin, min(begin + step, len(people))) for begin in range(0, len(people), step)
    ]
    expected = [
        (f"u{u}", [f"i{item}" for item in history if item <= KNOWN])
        for u, history in enumerate(histories)
    ]
    assert [row for some in slices for row in histories_of(some)] == expected
    assert people.ends_N.tolist() == [len(history) for _, history in expected]
    unknown = [item for history in histories for item in history if item > KNOWN]
    assert people.counts == {"events_unknown": len(unknown), "items_unknown": 9 - KNOWN}
    for some in slices:
        assert some.store.times is not None and len(some.store.times) == some.store.events


def test_stored_people_in_the_order_asked_for() -> None:
    store = HistoryStore.from_lists([[1, 2], [3], [4, 5, 1]], KNOWN)
    people = StoredPeople(store, np.array([2, 0]), np.array([2, 2]))
    rows = [*histories_of(people.slice(0, 1)), *histories_of(people.slice(1, 2))]
    assert rows == [("u2", ["i4", "i5"]), ("u0", ["i1", "i2"])]
    assert StoredPeople(store, np.array([1])).ends_N.tolist() == [1]


@pytest.mark.parametrize("ends", [[3, 0, 1], [1, 0, 3]])
def test_the_first_question_of_several(ends) -> None:
    at = np.array(ends)
    questions = Questions(np.array([2, 0, 2]), at, at, at + 1)
    assert first_questions(questions, 4).tolist() == [0, -1, 1, -1]
