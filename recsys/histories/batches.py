"""Right-padded batches cut from the store: length-bucketed and token-budgeted for training."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch

from recsys.batch import HistoryBatch
from recsys.histories.store import HistoryStore

BLOCK = 2048  # histories shuffled together before sorting by length


WindowKind = Literal["all", "newest"]


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
    lengths = ends if max_length is None else np.minimum(ends, max_length)
    return _padded(store, *_events(store, users, ends - lengths, lengths), lengths)


def _events(
    store: HistoryStore, users: np.ndarray, begins: np.ndarray, lengths: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Where the users' events `[begin, begin + length)` go, valid_BL, and their rows, events_T."""
    columns = np.arange(max(int(lengths.max(initial=0)), 1))
    valid_BL = columns < lengths[:, None]
    return valid_BL, ((store.offsets[users] + begins)[:, None] + columns)[valid_BL]


def _padded(
    store: HistoryStore, valid_BL: np.ndarray, events_T: np.ndarray, lengths: np.ndarray
) -> HistoryBatch:
    """The batch of what `_events` found."""
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


@dataclass(frozen=True)
class Windows:
    """Stretches of training histories, each with at least one target.

    The targets of a row are the user's events `[end - length, end)`, its inputs the same stretch
    one event earlier.

    Attributes:
        users: int64 [N], user indices.
        ends: int64 [N].
        lengths: int64 [N], targets of each.
    """

    users: np.ndarray
    ends: np.ndarray
    lengths: np.ndarray

    def __len__(self) -> int:
        return len(self.users)

    def take(self, rows: np.ndarray) -> Windows:
        """The windows at the given places."""
        return Windows(self.users[rows], self.ends[rows], self.lengths[rows])


class TrainingBatches:
    """The training batches of an epoch, about `tokens_per_batch` events each.

    Histories are shuffled in blocks of 2,048 and sorted by length inside each block, upwards and
    downwards in turn so that neighbours stay alike across borders; the row of histories is cut into
    a fixed number of batches of nearly equal token counts, and the batches are shuffled. The order
    is a pure function of (seed, epoch), so the state is two integers: a run that stops mid-epoch
    goes on with the next batch.

    A history of up to `max_length + 1` training events is one window: inputs are all but the last,
    targets all but the first. Of a longer one "newest" takes the newest `max_length + 1` events and
    leaves the rest; "all" cuts the rest too, so that every event but the first is a target once an
    epoch: into windows of `max_length` targets from the newest backwards, but that the first of
    them, just before the newest window, is from 1 to `max_length` targets long, drawn each epoch,
    so that windows begin somewhere else each time. Histories with fewer than two training events
    have no target.

    Args:
        store: the histories.
        training_ends: int64 [users], training sees the user's events `[0, training_end)`.
        max_length: newest events a model sees.
        tokens_per_batch: events aimed at in one batch.
        seed: of the order.
        minimum_batches: on small logs batches hold fewer events, so that an epoch has this many
            steps; a model learns in steps, not in epochs.
        windows: what is taken of histories longer than the model sees.

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
        windows: WindowKind = "newest",
    ) -> None:
        if tokens_per_batch < 1:
            raise ValueError(f"trainer.tokens_per_batch must be at least 1, not {tokens_per_batch}")
        self.store = store
        self.max_length = max_length
        self.seed = seed
        self.windows = windows
        self.users = np.flatnonzero(training_ends >= 2)
        if len(self.users) == 0:
            raise ValueError(
                "nobody has two training events, so there is nothing to learn from: after the "
                f"split the longest of {len(training_ends):,} training histories has "
                f"{int(training_ends.max(initial=0))}"
            )
        self.ends = training_ends[self.users]
        targets = self.ends - 1
        fewest = len(self.users)  # windows of an epoch, whatever is drawn
        if windows == "all":
            fewest = int((-(-targets // max_length)).sum())
            self.tokens_per_epoch = int(targets.sum())
        else:
            self.tokens_per_epoch = int(np.minimum(targets, max_length).sum())
        wanted = max(minimum_batches, -(-self.tokens_per_epoch // tokens_per_batch))
        self.batches_per_epoch = min(wanted, fewest)
        self.epoch = 0
        self.next_batch = 0

    def cut(self, epoch: int) -> Windows:
        """The windows of one epoch, by user, newest first."""
        L, targets = self.max_length, self.ends - 1
        if self.windows == "newest":
            return Windows(self.users, self.ends, np.minimum(targets, L))
        draw = np.random.Generator(np.random.PCG64([self.seed, epoch, 0xC07]))
        second = draw.integers(1, L, len(self.users), endpoint=True)  # length of the second window
        counts = 1 + (targets > L) + -(-np.maximum(targets - L - second, 0) // L)
        place = np.arange(int(counts.sum())) - np.repeat(np.cumsum(counts) - counts, counts)
        targets, second = np.repeat(targets, counts), np.repeat(second, counts)
        # Targets newer than the window, and those with the window's own.
        newer = np.where(place < 2, place * L, second + (place - 1) * L)
        through = np.minimum(np.where(place < 1, L, second + place * L), targets)
        ends = np.repeat(self.ends, counts) - newer
        return Windows(np.repeat(self.users, counts), ends, through - newer)

    def plan(self, epoch: int) -> list[Windows]:
        """The batches of one epoch: each window in one batch."""
        windows = self.cut(epoch)
        draw = np.random.Generator(np.random.PCG64([self.seed, epoch, 0xBA7C4]))
        order = draw.permutation(len(windows))
        blocks = []
        for number, begin in enumerate(range(0, len(order), BLOCK)):
            block = order[begin : begin + BLOCK]
            block = block[np.argsort(windows.lengths[block], kind="stable")]
            blocks.append(block if number % 2 == 0 else block[::-1])
        row = np.concatenate(blocks)
        ends = np.cumsum(windows.lengths[row])
        n = self.batches_per_epoch
        cuts = np.searchsorted(ends, np.arange(1, n) * (ends[-1] / n))
        # Every batch holds at least one window, whatever the lengths.
        index = np.arange(1, n)
        cuts = np.maximum.accumulate(np.maximum(cuts - index, 0)) + index
        cuts = np.minimum(cuts, len(row) - n + index)
        batches = np.split(row, cuts)
        return [windows.take(batches[i]) for i in draw.permutation(n)]

    def __len__(self) -> int:
        return self.batches_per_epoch

    def __iter__(self) -> Iterator[tuple[HistoryBatch, torch.Tensor]]:
        """Yields (inputs, targets_T) from the current position to the end of the epoch."""
        plan = self.plan(self.epoch)
        while self.next_batch < len(plan):
            windows = plan[self.next_batch]
            self.next_batch += 1
            if self.next_batch == len(plan):
                # Stepped before the last batch is handed out, so that a state saved at the end of
                # an epoch points at the next one.
                self.epoch += 1
                self.next_batch = 0
                yield self.batch(windows)
                return
            yield self.batch(windows)

    def batch(self, windows: Windows) -> tuple[HistoryBatch, torch.Tensor]:
        """Inputs and packed targets."""
        begins = windows.ends - 1 - windows.lengths
        valid_BL, events_T = _events(self.store, windows.users, begins, windows.lengths)
        inputs = _padded(self.store, valid_BL, events_T, windows.lengths)
        return inputs, torch.from_numpy(self.store.items[events_T + 1].astype(np.int64))

    def largest(self) -> tuple[HistoryBatch, torch.Tensor]:
        """The batch of the first epoch that takes most places."""
        return self.batch(max(self.plan(0), key=lambda rows: len(rows) * int(rows.lengths.max())))

    def identity(self) -> dict[str, Any]:
        """What the stream is made from; a place in it means nothing in another one."""
        return {
            "store": self.store.fingerprint,
            "seed": self.seed,
            "max_length": self.max_length,
            "windows": self.windows,
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
