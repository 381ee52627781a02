"""Slices together hold everybody, each with what the model knows of their history."""

from dataclasses import replace

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from recsys.histories.attributes import Attribute, attribute_of
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


def rows_of(attribute: Attribute) -> list:
    """What stands in each row, whatever the codes."""
    if attribute.numbers is not None:
        return [None if np.isnan(number) else number for number in attribute.numbers]
    values = [None, *attribute.values.to_list()]
    raw = [values[code] for code in attribute.codes]
    if attribute.offsets is None:
        return raw
    spans = zip(attribute.offsets[:-1], attribute.offsets[1:], strict=True)
    return [raw[begin:end] for begin, end in spans]


LETTERS = st.sampled_from("abcd")
FORMS = {
    "values": (st.none() | LETTERS, pl.String),
    "lists": (st.lists(LETTERS, max_size=3, unique=True), pl.List(pl.String)),
    "numbers": (st.none() | st.sampled_from([0.5, 1.5, 2.25]), pl.Float64),
}


@pytest.mark.parametrize("form", FORMS)
@given(
    st.lists(st.lists(st.integers(1, 9), max_size=4), min_size=1, max_size=6),
    st.integers(1, 7),
    st.data(),
)
def test_new_people_keep_what_is_told_of_them_and_their_known_events(
    form, histories, step, data
) -> None:
    theirs = HistoryStore.from_lists(histories, 9)
    one, dtype = FORMS[form]

    def told(rows: int) -> list:
        return data.draw(st.lists(one, min_size=rows, max_size=rows))

    columns = {"event.x": told(theirs.events), "user.y": told(theirs.users)}
    attributes = {k: attribute_of(pl.Series(v, dtype=dtype), "here") for k, v in columns.items()}
    theirs = replace(theirs, attributes=attributes)
    people = NewPeople(theirs, HistoryStore.from_lists([[]], KNOWN).item_vocabulary)
    found: dict[str, list] = {"event.x": [], "user.y": []}
    for begin in range(0, len(people), step):
        small = people.slice(begin, min(begin + step, len(people))).store
        for key, attribute in small.attributes.items():
            found[key] += rows_of(attribute)
            used = (
                {part for row in rows_of(attribute) for part in (row or [])}
                if (form == "lists")
                else {row for row in rows_of(attribute) if row is not None}
            )
            assert attribute.values is None or set(attribute.values) == used  # and no more
    known = theirs.items <= KNOWN
    expected = [
        row for row, kept in zip(rows_of(attributes["event.x"]), known, strict=True) if kept
    ]
    assert found == {"event.x": expected, "user.y": rows_of(attributes["user.y"])}


@given(
    st.lists(st.lists(st.tuples(st.integers(1, 9), st.integers(-1, 1)), max_size=6), min_size=1),
    st.booleans(),
    st.booleans(),
)
def test_what_the_model_reads_of_everybody(rows, labelled, taken_only) -> None:
    store = HistoryStore.from_lists([[item for item, _ in row] for row in rows], 9)
    if labelled:
        labels = np.array([label for row in rows for _, label in row], dtype=np.int8)
        store = replace(store, labels=labels)

    def read(row: list, known: int) -> int:
        taken = [item for item, label in row if label == 1 or not (labelled and taken_only)]
        return sum(item <= known for item in taken)

    stored = StoredPeople(store, np.arange(store.users), taken_only=taken_only)
    assert stored.read_N.tolist() == [read(row, 9) for row in rows]
    items = HistoryStore.from_lists([[]], KNOWN).item_vocabulary
    new = NewPeople(store, items, taken_only=taken_only)
    assert new.read_N.tolist() == [read(row, KNOWN) for row in rows]
    for people in (stored, new):
        half = len(rows) // 2
        some = [people.slice(0, half), people.slice(half, len(rows))]
        assert [n for part in some for n in part.read_M.tolist()] == people.read_N.tolist()
    before = np.maximum(store.lengths - 1, 0)
    stored = StoredPeople(store, np.arange(store.users), before, taken_only=taken_only)
    assert stored.read_N.tolist() == [read(row[:-1], 9) for row in rows]


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
