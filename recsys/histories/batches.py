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
    events_T = ((store.offsets[users] + begins)[:, None] + columns)[valid_BL]
    items_BL = np.zeros(valid_BL.shape, dtype=np.int64)
    items_BL[valid_BL] = store.items[events_T]
    times_BL = None
    if store.times is not None:
        times = np.zeros(valid_BL.shape, dtype=np.int64)
        times[valid_BL] = store.times[events_T]
        times_BL = torch.from_numpy(times)
    return HistoryBatch(
        torch.from_numpy(items_BL), torch.from_numpy(lengths.astype(np.int64)), times_BL
    )


class TrainingBatches:
    """The training batches of an epoch, about `tokens_per_batch` events each.

    Histories are shuffled in blocks of 2,048 and sorted by length inside each block, upwards and
    downwards in turn so that neighbours stay alike across borders; the row of histories is cut into
    a fixed number of batches of nearly equal token counts, and the batches are shuffled. The order
    is a pure function of (seed, epoch), so the state is two integers: a run that stops mid-epoch
    goes on with the next batch.

    Each history gives its newest `max_length + 1` training events: inputs are all but the last,
    targets all but the first. Histories with fewer than two training events have no target.

    Args:
        store: the histories.
        training_ends: int64 [users], training sees the user's events `[0, training_end)`.
        max_length: newest events a model sees.
        tokens_per_batch: events aimed at in one batch.
        seed: of the order.
        minimum_batches: on small logs batches hold fewer events, so that an epoch has this many
            steps; a model learns in steps, not in epochs.

    Raises:
        ValueError: no history has two training events, or a number is out of range.
    """

    def __init__(
        self,
        store: HistoryStore,
        training_ends: np.ndarray,
        max_length: int,
        tokens_per_batch: int,
        seed: int,
        minimum_batches: int = 1,
    ) -> None:
        if tokens_per_batch < 1:
            raise ValueError(f"trainer.tokens_per_batch must be at least 1, not {tokens_per_batch}")
        self.store = store
        self.max_length = max_length
        self.seed = seed
        self.users = np.flatnonzero(training_ends >= 2)
        if len(self.users) == 0:
            raise ValueError(
                "nobody has two training events, so there is nothing to learn from: after the "
                f"split the longest of {len(training_ends):,} training histories has "
                f"{int(training_ends.max(initial=0))}"
            )
        self.ends = training_ends[self.users]
        self.lengths = np.minimum(self.ends - 1, max_length)
        wanted = max(minimum_batches, -(-self.tokens_per_epoch // tokens_per_batch))
        self.batches_per_epoch = min(wanted, len(self.users))
        self.epoch = 0
        self.next_batch = 0

    @property
    def tokens_per_epoch(self) -> int:
        """Targets per epoch."""
        return int(self.lengths.sum())

    def plan(self, epoch: int) -> list[np.ndarray]:
        """The batches of one epoch: row numbers into `self.users`, each row in one batch."""
        draw = np.random.Generator(np.random.PCG64([self.seed, epoch, 0xBA7C4]))
        order = draw.permutation(len(self.users))
        blocks = []
        for number, begin in enumerate(range(0, len(order), BLOCK)):
            block = order[begin : begin + BLOCK]
            block = block[np.argsort(self.lengths[block], kind="stable")]
            blocks.append(block if number % 2 == 0 else block[::-1])
        row = np.concatenate(blocks)
        ends = np.cumsum(self.lengths[row])
        n = self.batches_per_epoch
        cuts = np.searchsorted(ends, np.arange(1, n) * (ends[-1] / n))
        # Every batch holds at least one history, whatever the lengths.
        index = np.arange(1, n)
        cuts = np.maximum.accumulate(np.maximum(cuts - index, 0)) + index
        cuts = np.minimum(cuts, len(row) - n + index)
        batches = np.split(row, cuts)
        return [batches[i] for i in draw.permutation(n)]

    def __len__(self) -> int:
        return self.batches_per_epoch

    def __iter__(self) -> Iterator[tuple[HistoryBatch, torch.Tensor]]:
        """Yields (inputs, targets_T) from the current position to the end of the epoch."""
        plan = self.plan(self.epoch)
        while self.next_batch < len(plan):
            rows = plan[self.next_batch]
            self.next_batch += 1
            if self.next_batch == len(plan):
                # Stepped before the last batch is handed out, so that a state saved at the end of
                # an epoch points at the next one.
                self.epoch += 1
                self.next_batch = 0
                yield self.batch(rows)
                return
            yield self.batch(rows)

    def batch(self, rows: np.ndarray) -> tuple[HistoryBatch, torch.Tensor]:
        """Inputs and the packed targets of the given rows of `self.users`."""
        users, ends = self.users[rows], self.ends[rows]
        inputs = history_batch(self.store, users, ends - 1, self.max_length)
        shifted_BL = history_batch(self.store, users, ends, self.max_length + 1).items_BL[:, 1:]
        return inputs, shifted_BL.flatten()[inputs.packed_T]

    def largest(self) -> tuple[HistoryBatch, torch.Tensor]:
        """The batch of the first epoch that takes most places."""
        plan = self.plan(0)
        return self.batch(max(plan, key=lambda rows: len(rows) * int(self.lengths[rows].max())))

    def identity(self) -> dict[str, Any]:
        """What the stream is made from; a place in it means nothing in another one."""
        return {
            "store": self.store.fingerprint,
            "seed": self.seed,
            "max_length": self.max_length,
            "batches_per_epoch": self.batches_per_epoch,
            "tokens_per_epoch": self.tokens_per_epoch,
        }

    def state_dict(self) -> dict[str, Any]:
        """Position in the stream."""
        return {"epoch": self.epoch, "next_batch": self.next_batch}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where `state_dict` was taken."""
        self.epoch = int(state["epoch"])
        self.next_batch = int(state["next_batch"])
