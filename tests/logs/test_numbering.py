"""Numbers for ids: one each, in order of appearance, whatever the hashes do."""

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recsys.logs.numbering import IdNumbers

texts = st.text(max_size=20)
wholes = st.integers(-(2**63), 2**63 - 1)
batches = st.one_of(
    st.lists(st.lists(texts, max_size=30), min_size=1, max_size=6),
    st.lists(st.lists(wholes, max_size=30), min_size=1, max_size=6),
)


def number_all(data, dtype):
    """The numbers of every batch, and the raw ids."""
    numbers = IdNumbers(dtype)
    found = [numbers.of(pl.Series("id", batch, dtype=dtype)).tolist() for batch in data]
    return found, numbers.raw_ids.to_list()


def check(data):
    whole = any(isinstance(raw, int) for batch in data for raw in batch)
    found, raw_ids = number_all(data, pl.Int64() if whole else pl.String())
    expected = {raw: None for batch in data for raw in batch}
    assert sorted(map(str, raw_ids)) == sorted(map(str, expected))
    place = {raw: number for number, raw in enumerate(raw_ids)}
    assert found == [[place[raw] for raw in batch] for batch in data]
    return raw_ids


@settings(deadline=None, max_examples=20)
@given(batches)
def test_every_id_has_one_number_and_they_count_up_as_ids_appear(data):
    expected = list({raw: None for batch in data for raw in batch})
    assert check(data) == expected


@settings(deadline=None, max_examples=12)
@given(batches, st.sampled_from([0, 1, 3]))
def test_ids_with_one_hash_are_still_told_apart(data, hashes):
    with pytest.MonkeyPatch.context() as patch:
        true_hash = pl.Series.hash
        patch.setattr(
            pl.Series,
            "hash",
            lambda ids, seed: true_hash(ids, seed) % hashes if hashes else true_hash(ids, seed) * 0,
        )
        check(data)


def test_the_table_grows_and_forgets_nothing():
    draw = np.random.Generator(np.random.PCG64(0))
    ids = [[f"id {n}" for n in draw.integers(0, 20_000, 4_000)] for _ in range(10)]
    check(ids)


@settings(deadline=None, max_examples=5)
@given(st.integers(0, 2**32 - 1))
def test_a_full_table_is_searched_beyond_its_end(seed):
    # All places are among the last: what does not fit goes on at the beginning.
    with pytest.MonkeyPatch.context() as patch:
        true_hash = pl.Series.hash
        last = np.uint64(0xFFF << 52)
        patch.setattr(
            pl.Series, "hash", lambda ids, _: pl.Series(true_hash(ids, seed).to_numpy() | last)
        )
        assert len(check([[f"{n}" for n in range(200)], [f"{n}" for n in range(100, 250)]])) == 250
