"""Batches of click questions, for training and evaluation alike.

Dimensions: B questions in the batch, L padded length, I items in the batch, V catalogue incl.
padding.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from recsys.batch import ClickBatch
from recsys.histories.clicks import ClickQuestions, ClickSplit, HistoryView

# Up to so many items the whole catalogue stands in every batch, which costs less than finding out
# which items occur. It depends on the catalogue alone, so all batches of a store look alike.
WHOLE_CATALOGUE = 8192


class Columns(Protocol):
    """Fields by name, encoded; `recsys.histories.features.EncodedColumns` is one.

    Each gives codes or numbers in the shape of its rows, or bags of codes (one dimension more).
    """

    @property
    def sizes(self) -> Mapping[str, Mapping[str, int]]:
        """Of "user", "item", "event" and "context": the names, each with its number of codes."""
        ...

    def user(self, name: str, users: np.ndarray) -> np.ndarray:
        """A field of users."""
        ...

    def item(self, name: str, items: np.ndarray) -> np.ndarray:
        """A field of items; item 0 is the padding."""
        ...

    def event(
        self, name: str, event_rows_BL: np.ndarray, question_times_B: np.ndarray | None
    ) -> np.ndarray:
        """A field of past events (a row below 0 is padding), as seen when the question is asked."""
        ...

    def context(self, name: str, rows: np.ndarray) -> np.ndarray:
        """A field of the questions' own rows."""
        ...


def click_batch(
    view: HistoryView, questions: ClickQuestions, columns: Columns | None, max_length: int
) -> ClickBatch:
    """All given questions as one batch.

    Args:
        view: the histories.
        questions: B questions.
        columns: the fields; None for none.
        max_length: newest events of each history a model sees.
    """
    lengths_B = np.minimum(questions.history_ends, max_length)
    begins_B = view.offsets[questions.users] + questions.history_ends - lengths_B
    steps_L = np.arange(max(int(lengths_B.max(initial=0)), 1))
    valid_BL = steps_L < lengths_B[:, None]
    places_BL = begins_B[:, None] + steps_L
    if len(view.items) == 0:  # nobody has an event in view
        history_BL = np.zeros(valid_BL.shape, dtype=np.int64)
    else:
        # Behind the last event stands whatever comes next in the store, until it is multiplied out.
        history_BL = view.items.take(places_BL, mode="clip").astype(np.int64)
        history_BL *= valid_BL

    V = view.store.catalogue_size
    candidates_B = questions.candidates
    if V <= WHOLE_CATALOGUE:
        item_ids_I = np.arange(V)
    else:
        occurs_V = np.zeros(V, dtype=bool)
        occurs_V[0] = True
        occurs_V[candidates_B] = True
        occurs_V[history_BL] = True
        item_ids_I = np.flatnonzero(occurs_V)
        position_V = np.empty(V, dtype=np.int64)  # only what occurs is ever read
        position_V[item_ids_I] = np.arange(len(item_ids_I))
        candidates_B, history_BL = position_V[candidates_B], position_V[history_BL]

    fields: dict[str, dict[str, Tensor]] = {"user": {}, "item": {}, "event": {}, "context": {}}
    if columns is not None:
        sizes = columns.sizes
        for name in sizes.get("user", ()):
            fields["user"][name] = _field(columns.user(name, questions.users))
        for name in sizes.get("item", ()):
            fields["item"][name] = _field(columns.item(name, item_ids_I))
        for name in sizes.get("context", ()):
            fields["context"][name] = _field(columns.context(name, questions.rows))
        if sizes.get("event"):
            rows_BL = np.full(valid_BL.shape, -1)
            rows_BL[valid_BL] = view.rows(places_BL[valid_BL])
            for name in sizes["event"]:
                values = columns.event(name, rows_BL, questions.times)
                fields["event"][name] = _field(values)
    return ClickBatch(
        item_ids_I=torch.from_numpy(item_ids_I),
        candidates_B=torch.from_numpy(np.ascontiguousarray(candidates_B)),
        history_BL=torch.from_numpy(history_BL),
        lengths_B=torch.from_numpy(lengths_B),
        user_fields=fields["user"],
        item_fields=fields["item"],
        event_fields=fields["event"],
        context_fields=fields["context"],
    )


class ClickBatches:
    """The training batches of an epoch: all training questions, shuffled, in batches of one size.

    (Of nearly one size: they differ by one row at most, so that none is much smaller than others.
    They are not sorted by length, because a batch of short histories only is a batch of newcomers
    only, and what is normalised over a batch would notice.)

    The order is a pure function of (seed, epoch), and so are sampled negatives; the state is two
    integers: a run that stops mid-epoch goes on with the next batch.

    Args:
        split: the training questions and the histories.
        columns: the fields; None for none.
        max_length: newest events of each history a model sees.
        rows_per_batch: questions in a batch, at most.
        seed: of the order.
        minimum_batches: on small logs batches hold fewer questions, so that an epoch has this many
            steps; a model learns in steps, not in epochs.

    Raises:
        ValueError: a number is out of range.
    """

    def __init__(
        self,
        split: ClickSplit,
        columns: Columns | None,
        max_length: int,
        rows_per_batch: int,
        seed: int,
        minimum_batches: int = 1,
    ) -> None:
        if rows_per_batch < 1:
            raise ValueError(f"trainer.rows_per_batch must be at least 1, not {rows_per_batch}")
        if max_length < 1:
            raise ValueError(f"max_length must be at least 1, not {max_length}")
        self.split = split
        self.columns = columns
        self.max_length = max_length
        self.seed = seed
        wanted = max(minimum_batches, -(-split.training_size // rows_per_batch))
        self.batches_per_epoch = min(wanted, split.training_size)
        self.epoch = 0
        self.next_batch = 0

    def plan(self, epoch: int) -> list[np.ndarray]:
        """The batches of one epoch: row numbers into its questions, each row in one batch."""
        draw = np.random.Generator(np.random.PCG64([self.seed, epoch, 0xC11C4]))
        order = draw.permutation(self.split.training_size)
        return np.array_split(order, self.batches_per_epoch)

    def __len__(self) -> int:
        return self.batches_per_epoch

    def __iter__(self) -> Iterator[tuple[ClickBatch, Tensor]]:
        """Yields (batch, labels_B) from the current position to the end of the epoch."""
        questions = self.split.training_questions(self.epoch)
        plan = self.plan(self.epoch)
        while self.next_batch < len(plan):
            rows = plan[self.next_batch]
            self.next_batch += 1
            last = self.next_batch == len(plan)
            if last:
                # Stepped before the last batch is handed out, so that a state saved at the end of
                # an epoch points at the next one.
                self.epoch += 1
                self.next_batch = 0
            asked = questions.take(rows)
            batch = click_batch(self.split.view, asked, self.columns, self.max_length)
            yield batch, torch.from_numpy(asked.labels)
            if last:
                return

    def largest(self) -> tuple[ClickBatch, Tensor]:
        """The first batch of the first epoch: all are alike."""
        asked = self.split.training_questions(0).take(self.plan(0)[0])
        batch = click_batch(self.split.view, asked, self.columns, self.max_length)
        return batch, torch.from_numpy(asked.labels)

    def identity(self) -> dict[str, Any]:
        """What the stream is made from; a place in it means nothing in another one."""
        sizes: Mapping[str, Mapping[str, int]] = {} if self.columns is None else self.columns.sizes
        return {
            "store": self.split.view.store.fingerprint,
            "protocol": self.split.protocol,
            "seed": self.seed,
            "max_length": self.max_length,
            "batches_per_epoch": self.batches_per_epoch,
            "questions_per_epoch": self.split.training_size,
            "fields": sorted(f"{of}.{name}" for of, names in sizes.items() for name in names),
        }

    def state_dict(self) -> dict[str, Any]:
        """Position in the stream."""
        return {"epoch": self.epoch, "next_batch": self.next_batch}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where `state_dict` was taken."""
        self.epoch = int(state["epoch"])
        self.next_batch = int(state["next_batch"])


def _field(values: np.ndarray) -> Tensor:
    """Codes as int64, numbers as float32."""
    dtype = np.float32 if np.issubdtype(values.dtype, np.floating) else np.int64
    return torch.from_numpy(np.ascontiguousarray(values, dtype=dtype))
