"""Raw ids and the indices that stand for them."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import polars as pl


@dataclass(frozen=True)
class Vocabulary:
    """A bijection between raw ids and the indices `first_index ..`.

    Attributes:
        raw_ids: the raw ids (String or Int64), unique, in index order.
        first_index: 1 for items (0 is padding), 0 for users.
    """

    raw_ids: pl.Series
    first_index: int

    def __len__(self) -> int:
        return len(self.raw_ids)

    @property
    def size(self) -> int:
        """One more than the largest index: V for items (padding counted)."""
        return self.first_index + len(self.raw_ids)

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 over the raw ids in index order and their type."""
        digest = hashlib.sha256(f"{self.raw_ids.dtype}\n".encode())
        text = self.raw_ids.cast(pl.String)
        for chunk in text.to_frame("id").iter_slices(1 << 16):
            digest.update("\x00".join(chunk["id"].to_list()).encode())
            digest.update(b"\x01")
        return digest.hexdigest()

    @cached_property
    def _lookup(self) -> dict[Any, int]:
        return {raw: self.first_index + i for i, raw in enumerate(self.raw_ids.to_list())}

    def index_of(self, raw_id: Any) -> int | None:
        """The index of a raw id, or None if it is unknown."""
        return self._lookup.get(raw_id)

    def indices(self, raw_ids: pl.Series) -> np.ndarray:
        """The indices of many raw ids, int64; -1 where one is unknown or null.

        Whole numbers and their text stand for each other ("7" and 7, but not "007").
        """
        known = self.raw_ids.to_frame("id").with_columns(
            index=np.arange(self.first_index, self.size, dtype=np.int64)
        )
        wanted = raw_ids.to_frame("id")
        if raw_ids.dtype != self.raw_ids.dtype:
            known, wanted = (frame.cast({"id": pl.String}) for frame in (known, wanted))
        found = wanted.join(known, on="id", how="left", maintain_order="left")
        return found["index"].fill_null(-1).to_numpy()

    def raw(self, indices: np.ndarray) -> pl.Series:
        """The raw ids of an array of indices (each ≥ first_index)."""
        return self.raw_ids[np.asarray(indices, dtype=np.int64) - self.first_index]

    def tie_order(self, seed: int) -> np.ndarray:
        """A total order of all indices that no model can know: by seeded hash of the raw id.

        Args:
            seed: of the hash.

        Returns:
            int64 [size]: position of each index in the order. Indices below `first_index`
            (padding) stand last.
        """
        key = f"{seed}\x00".encode()
        hashes = [
            hashlib.blake2b(key + str(raw).encode(), digest_size=8).digest()
            for raw in self.raw_ids.to_list()
        ]
        values = np.frombuffer(b"".join(hashes), dtype=">u8")
        order = np.lexsort((np.arange(len(values)), values))
        place = np.empty(self.size, dtype=np.int64)
        place[: self.first_index] = len(values)
        place[self.first_index + order] = np.arange(len(values))
        return place
