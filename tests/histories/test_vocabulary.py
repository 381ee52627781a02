"""Vocabulary: a bijection, an identity, and an order no model can know."""

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recsys.histories.vocabulary import Vocabulary

ids = st.one_of(
    st.lists(st.integers(-(2**62), 2**62), unique=True, min_size=1, max_size=30).map(
        lambda v: pl.Series("item", v, dtype=pl.Int64)
    ),
    st.lists(st.text(max_size=8), unique=True, min_size=1, max_size=30).map(
        lambda v: pl.Series("item", v, dtype=pl.String)
    ),
)


@settings(deadline=None, max_examples=60)
@given(ids, st.integers(0, 1))
def test_ids_and_indices_are_a_bijection(raw, first):
    vocabulary = Vocabulary(raw, first)
    indices = vocabulary.indices(raw)
    assert indices.tolist() == list(range(first, vocabulary.size))
    assert vocabulary.raw(indices).to_list() == raw.to_list()
    assert [vocabulary.index_of(value) for value in raw.to_list()] == indices.tolist()


def test_unknown_and_null_ids_have_no_index():
    vocabulary = Vocabulary(pl.Series("item", ["a", "b"]), 1)
    assert vocabulary.index_of("c") is None
    assert vocabulary.indices(pl.Series(["b", None, "c", "b"])).tolist() == [2, -1, -1, 2]


@pytest.mark.parametrize("known", [pl.Series([3, 7]), pl.Series(["3", "7"])])
@pytest.mark.parametrize("asked", [pl.Series([7, 8]), pl.Series(["7", "8"])])
def test_whole_numbers_and_their_text_stand_for_each_other(known, asked):
    assert Vocabulary(known, 1).indices(asked).tolist() == [2, -1]
    assert Vocabulary(known, 1).indices(pl.Series(["007"])).tolist() == [-1]


def test_the_fingerprint_depends_on_ids_their_order_and_their_type():
    of = [
        Vocabulary(pl.Series(values), 1).fingerprint
        for values in (["1", "2"], ["2", "1"], ["12"], [1, 2], ["1", "2", "3"])
    ]
    assert len(set(of)) == len(of)
    assert of[0] == Vocabulary(pl.Series("other name", ["1", "2"]), 0).fingerprint


@settings(deadline=None, max_examples=60)
@given(ids, st.integers(0, 5))
def test_the_tie_order_is_a_permutation_with_padding_last(raw, seed):
    vocabulary = Vocabulary(raw, 1)
    place = vocabulary.tie_order(seed)
    assert sorted(place.tolist()) == list(range(len(raw) + 1))
    assert place[0] == len(raw)
    assert np.array_equal(place, vocabulary.tie_order(seed))


def test_the_tie_order_follows_the_raw_id_and_not_the_index():
    raw = pl.Series([f"item {i}" for i in range(50)])
    one, other = Vocabulary(raw, 1), Vocabulary(raw.reverse(), 1)
    order = one.raw(1 + np.argsort(one.tie_order(3)[1:])).to_list()
    assert order == other.raw(1 + np.argsort(other.tie_order(3)[1:])).to_list()
    assert order != raw.to_list()
    assert not np.array_equal(one.tie_order(3), one.tie_order(4))
