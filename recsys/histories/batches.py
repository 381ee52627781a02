"""Right-padded batches cut from the store: length-bucketed and token-budgeted for training."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch

from recsys.batch import HistoryBatch
from recsys.histories.store import HistoryStore

BLOCK = 2048  # histories shuffled together before sorting by length


def history_batch(
    store: HistoryStore, users: np.ndarray, ends: np.ndarray, max_length: int | None = None
) -> HistoryBatch:
    """The newest `max_length` events before `ends` of each user, right-padded.

    Args:
        store: the histories.
        users: int64 [B], user indices.
        ends: int64 [B], the history is the user's events `[0, end)`.
        max_length: newest events kept; None keeps all.
    """
    begins = np.zeros_like(ends) if max_length is None else np.maximum(ends - max_length, 0)
    lengths = ends - begins
    L = max(int(lengths.max(initial=0)), 1)
    columns = np.arange(L)
    valid_BL = columns < lengths[:, None]
    flat_BL = np.where(valid_BL, (store.offsets[users] + begins)[:, None] + columns, 0)
    items_BL = np.where(valid_BL, store.items[flat_BL], 0).astype(np.int64)
    times_BL = None
    if store.times is not None:
        times_BL = torch.from_numpy(np.where(valid_BL, store.times[flat_BL], 0))
    return HistoryBatch(
        torch.from_numpy(items_BL), torch.from_numpy(lengths.astype(np.int64)), times_BL
    )


class TrainingBatches:
    """Endless-epoch source of training batches of about `tokens_per_batch` events each.

    Histories are shuffled, sorted by length inside blocks of 2,048 and cut into batches of similar
    length; the batches are then shuffled. The order is a pure function of (seed, epoch), so the
    state is two integers: a run that stops mid-epoch goes on with the next batch.

    Each history gives its newest `max_length + 1` training events: inputs are all but the last,
    targets all but the first. Histories with fewer than two training events have no target.
    """

    def __init__(
        self,
        store: HistoryStore,
        training_ends: np.ndarray,
        max_length: int,
        tokens_per_batch: int,
        seed: int,
    ) -> None:
        self.store = store
        self.max_length = max_length
        self.tokens_per_batch = tokens_per_batch
        self.seed = seed
        self.users = np.flatnonzero(training_ends >= 2)
        self.ends = training_ends[self.users]
        self.lengths = np.minimum(self.ends - 1, max_length)
        self.epoch = 0
        self.next_batch = 0

    @property
    def tokens_per_epoch(self) -> int:
        """Targets per epoch."""
        return int(self.lengths.sum())

    def plan(self, epoch: int) -> list[np.ndarray]:
        """The batches of one epoch: row numbers into `self.users`."""
        draw = np.random.Generator(np.random.PCG64([self.seed, epoch, 0xBA7C4]))
        order = draw.permutation(len(self.users))
        batches: list[np.ndarray] = []
        for begin in range(0, len(order), BLOCK):
            block = order[begin : begin + BLOCK]
            block = block[np.argsort(self.lengths[block], kind="stable")]
            totals = np.cumsum(self.lengths[block])
            cuts = np.arange(1, totals[-1] // self.tokens_per_batch + 1) * self.tokens_per_batch
            batches += [part for part in np.split(block, np.searchsorted(totals, cuts)) if len(part)]
        return [batches[i] for i in draw.permutation(len(batches))]

    def __len__(self) -> int:
        return len(self.plan(self.epoch))

    def __iter__(self) -> Iterator[tuple[HistoryBatch, torch.Tensor]]:
        """Yields (inputs, targets_T) from the current position to the end of the epoch."""
        plan = self.plan(self.epoch)
        while self.next_batch < len(plan):
            rows = plan[self.next_batch]
            self.next_batch += 1
            yield self.batch(rows)
        self.epoch += 1
        self.next_batch = 0

    def batch(self, rows: np.ndarray) -> tuple[HistoryBatch, torch.Tensor]:
        """Inputs and the packed targets of the given rows."""
        users, ends = self.users[rows], self.ends[rows]
        inputs = history_batch(self.store, users, ends - 1, self.max_length)
        shifted = history_batch(self.store, users, ends, self.max_length + 1).items_BL[:, 1:]
        return inputs, shifted.flatten()[inputs.packed_T]

    def state_dict(self) -> dict[str, Any]:
        """Position in the stream."""
        return {"epoch": self.epoch, "next_batch": self.next_batch, "seed": self.seed}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where `state_dict` was taken."""
        self.epoch = int(state["epoch"])
        self.next_batch = int(state["next_batch"])
        self.seed = int(state["seed"])
