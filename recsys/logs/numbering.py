"""Numbers for raw ids, while a log is read: the text of an id is dropped as soon as it has one.

A hash table of whole arrays: a slot holds 31 bits of an id's hash and the id's number. What the
slots say is compared with the ids themselves, so that no collision of hashes ever joins two ids.
"""

from __future__ import annotations

import secrets

import numpy as np
import polars as pl

_NUMBER_BITS = np.uint64(32)
_MARK = np.uint64(1) << _NUMBER_BITS  # in every slot that is taken
_SPARSE = 4  # slots per id, at least: most look-ups then end at the first


class IdNumbers:
    """Numbers ids from 0 in the order in which they first appear.

    Args:
        dtype: of the ids: String or Int64.
    """

    def __init__(self, dtype: pl.DataType) -> None:
        self._raw = pl.Series("id", [], dtype=dtype)
        self._seed = secrets.randbits(32)
        self._slots = np.zeros(1 << 10, dtype=np.uint64)
        # Ids for which the slots have the number of another one; there are next to none.
        self._collided: dict[str | int, int] = {}

    @property
    def raw_ids(self) -> pl.Series:
        """The ids, by number."""
        return self._raw

    def of(self, ids: pl.Series) -> np.ndarray:
        """The numbers of ids; those that are new get the next ones.

        Args:
            ids: of the type that was named, no nulls.

        Returns:
            uint32 [ids].
        """
        hashes = ids.hash(self._seed).to_numpy()
        numbers, found = self._look_up(hashes)
        unknown = np.flatnonzero(~found)
        if len(unknown):
            self._add(ids.gather(unknown).unique(maintain_order=True))
            numbers[unknown], found = self._look_up(hashes[unknown])
            assert found.all()
        wrong = (self._raw.gather(numbers) != ids).arg_true().to_numpy()
        if len(wrong):
            numbers[wrong] = self._of_collided(ids.gather(wrong))
        return numbers

    def _look_up(self, hashes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Numbers (uint32) by hashes, and whether there was one (bool)."""
        place = self._first_place(hashes)
        slots = self._slots.take(place)
        marked = (hashes << _NUMBER_BITS) | _MARK
        found = (slots ^ marked) < _MARK
        numbers = slots.astype(np.uint32)
        rest = np.flatnonzero(~found)
        rest = rest[slots[rest] != 0]
        place, marked = place[rest], marked[rest]
        while len(rest):
            place = (place + 1) & (len(self._slots) - 1)
            slots = self._slots.take(place)
            same = (slots ^ marked) < _MARK
            numbers[rest[same]] = slots[same].astype(np.uint32)
            found[rest[same]] = True
            on = ~same & (slots != 0)
            rest, place, marked = rest[on], place[on], marked[on]
        return numbers, found

    def _first_place(self, hashes: np.ndarray) -> np.ndarray:
        bits = len(self._slots).bit_length() - 1
        return (hashes >> np.uint64(64 - bits)).view(np.int64)

    def _add(self, ids: pl.Series) -> None:
        """Give numbers and slots to ids: different ones, none of them there before."""
        hashes = ids.hash(self._seed).to_numpy()
        numbers = np.arange(len(self._raw), len(self._raw) + len(ids), dtype=np.uint64)
        self._append(ids)
        if _SPARSE * len(self._raw) > len(self._slots):
            size = 1 << (2 * _SPARSE * len(self._raw) - 1).bit_length()
            self._slots = np.zeros(size, dtype=np.uint64)
            hashes = self._raw.hash(self._seed).to_numpy()
            numbers = np.arange(len(self._raw), dtype=np.uint64)
        self._fill(hashes, numbers)

    def _append(self, ids: pl.Series) -> None:
        # By way of a list, since a series would keep all the text that was read with it.
        fresh = pl.Series("id", ids.to_list(), dtype=self._raw.dtype)
        self._raw = pl.concat([self._raw, fresh], rechunk=True)

    def _fill(self, hashes: np.ndarray, numbers: np.ndarray) -> None:
        """Put ids into the first free slots from their places on."""
        place = self._first_place(hashes)
        values = (hashes << _NUMBER_BITS) | _MARK | numbers
        while len(place):
            free = np.flatnonzero(self._slots[place] == 0)
            self._slots[place[free]] = values[free]  # of several in one place the last one stays
            left = self._slots[place] != values
            place, values = (place[left] + 1) & (len(self._slots) - 1), values[left]

    def _of_collided(self, ids: pl.Series) -> np.ndarray:
        """The numbers (uint32) of ids for which the slots have that of another id."""
        for raw in ids.unique(maintain_order=True).to_list():
            if raw not in self._collided:
                there = (self._raw == raw).arg_true()
                if len(there) == 0:
                    self._append(pl.Series([raw], dtype=self._raw.dtype))
                self._collided[raw] = there[0] if len(there) else len(self._raw) - 1
        return np.array([self._collided[raw] for raw in ids.to_list()], dtype=np.uint32)
