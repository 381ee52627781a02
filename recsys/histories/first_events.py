"""Where in their histories users first had an item."""

from __future__ import annotations

import numpy as np

from recsys.histories.store import HistoryStore

NEVER = np.iinfo(np.int64).max


class FirstEvents:
    """Looks up, for pairs of user and item, the user's first event with the item.

    >>> first = FirstEvents(HistoryStore.from_lists([[5, 2, 5], [2]]))
    >>> places = first.places(np.array([0, 0, 1]), np.array([5, 2, 5]))
    >>> places.tolist() == [0, 1, NEVER]
    True

    Args:
        store: the histories; sorted once, 16 bytes for each pair that occurs.
    """

    def __init__(self, store: HistoryStore) -> None:
        self._V = store.catalogue_size
        owners = np.repeat(np.arange(store.users), store.lengths)
        self._pairs, events = np.unique(owners * self._V + store.items, return_index=True)
        self._places = events - store.offsets[self._pairs // self._V]

    def places(self, users_R: np.ndarray, items_R: np.ndarray) -> np.ndarray:
        """int64 [R]: places in the user's own history from 0, `NEVER` for items never had."""
        if len(self._pairs) == 0:
            return np.full(len(users_R), NEVER)
        keys_R = users_R.astype(np.int64) * self._V + items_R
        at_R = np.minimum(np.searchsorted(self._pairs, keys_R), len(self._pairs) - 1)
        return np.where(self._pairs[at_R] == keys_R, self._places[at_R], NEVER)
