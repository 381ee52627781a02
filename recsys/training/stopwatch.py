"""Where the time of training goes."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Any

import pytorch_lightning as lightning

from recsys.batch import ClickBatch, HistoryBatch

PARTS = ("data", "forward", "backward", "optimizer", "bookkeeping", "validation")


@dataclass
class Cost:
    """What training took, since the command began (not since the run did, where it was resumed).

    Attributes:
        seconds: by part. "forward" holds the gradient of the exact softmax, which is computed
            there; "bookkeeping" the averaging of weights, checkpoints and reports. On a GPU they
            are what the host waits, not what the device works.
        steps: batches.
        rows: histories, or questions, that went in.
        events: events of their histories.
        places: the places they took, padding included.
    """

    seconds: dict[str, float] = field(default_factory=lambda: dict.fromkeys(PARTS, 0.0))
    steps: int = 0
    rows: int = 0
    events: int = 0
    places: int = 0

    @property
    def padding(self) -> float:
        """Share of the places that hold no event."""
        return 1 - self.events / self.places if self.places else 0.0

    @property
    def shares(self) -> dict[str, float]:
        """Share of each part in the whole."""
        total = sum(self.seconds.values())
        return {part: seconds / total if total else 0.0 for part, seconds in self.seconds.items()}

    @property
    def events_per_second(self) -> float:
        """Of training, without validation."""
        training = sum(self.seconds.values()) - self.seconds["validation"]
        return self.events / training if training else 0.0

    @property
    def in_words(self) -> str:
        """One line for the terminal.

        >>> seconds = dict(zip(PARTS, [1.0, 4.0, 3.0, 1.0, 0.0, 1.0]))
        >>> print(Cost(seconds, steps=3, rows=9, events=900, places=1000).in_words)
        training: data 10 %, forward 40 %, backward 30 %, optimizer 10 %, bookkeeping 0 %, \
validation 10 %; 100 events/s, padding 10 %
        """
        parts = ", ".join(f"{part} {100 * share:.0f} %" for part, share in self.shares.items())
        speed = f"{self.events_per_second:,.0f} events/s, padding {100 * self.padding:.0f} %"
        return f"training: {parts}; {speed}"

    def add(self, batch: HistoryBatch | ClickBatch) -> None:
        """Counts a batch."""
        places_BL = batch.items_BL if isinstance(batch, HistoryBatch) else batch.history_BL
        self.steps += 1
        self.rows += len(batch.lengths_B)
        self.events += int(batch.lengths_B.sum())
        self.places += places_BL.numel()


class Stopwatch(lightning.Callback):
    """Adds up a `Cost`. Must stand before all other callbacks, and `end` of it behind them.

    Args:
        cost: gets the seconds and counts; the seconds of validation are somebody else's to add.
    """

    def __init__(self, cost: Cost) -> None:
        self.cost = cost
        self.end = _End(self)
        self._since = 0.0

    def lap(self, part: str | None) -> None:
        """The time since the last lap belongs to this part (None: to none)."""
        now = time.perf_counter()
        if part is not None:
            self.cost.seconds[part] += now - self._since
        self._since = now

    def on_train_epoch_start(self, trainer: lightning.Trainer, module: Any) -> None:
        """Nothing before it counts."""
        self.lap(None)

    def on_train_batch_start(
        self, trainer: lightning.Trainer, module: Any, batch: Any, batch_idx: int
    ) -> None:
        """The batch is there."""
        self.lap("data")
        self.cost.add(batch[0])

    def on_before_backward(self, trainer: lightning.Trainer, module: Any, loss: Any) -> None:
        """The loss is there."""
        self.lap("forward")

    def on_after_backward(self, trainer: lightning.Trainer, module: Any) -> None:
        """The gradients are there."""
        self.lap("backward")

    def on_train_batch_end(
        self, trainer: lightning.Trainer, module: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """The weights have moved."""
        self.lap("optimizer")


class _End(lightning.Callback):
    """Stands behind all other callbacks: what they took is bookkeeping."""

    def __init__(self, watch: Stopwatch) -> None:
        self.watch = watch

    def on_train_batch_end(
        self, trainer: lightning.Trainer, module: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """The other callbacks are done."""
        self.watch.lap("bookkeeping")
