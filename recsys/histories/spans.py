"""Many spans of one long array at once."""

from __future__ import annotations

import numpy as np


def ragged(begins: np.ndarray, lengths: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(row, position) of the elements `begins[row] : begins[row] + lengths[row]`, row by row.

    >>> row, position = ragged(np.array([7, 2]), np.array([2, 1]))
    >>> row.tolist(), position.tolist()
    ([0, 0, 1], [7, 8, 2])
    """
    row = np.repeat(np.arange(len(lengths)), lengths)
    before = np.cumsum(lengths) - lengths
    return row, np.arange(len(row)) + np.repeat(begins - before, lengths)


def different(values: np.ndarray) -> np.ndarray:
    """The different values, ascending.

    By sorting: numpy's own `unique` hashes, which takes several times as long for millions of
    whole numbers.

    >>> different(np.array([3, 1, 3])).tolist()
    [1, 3]
    """
    ascending = np.sort(values)
    kept: np.ndarray = ascending[np.append(True, ascending[1:] != ascending[:-1])[: len(values)]]
    return kept
