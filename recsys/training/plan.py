"""What a training will take, before it begins: memory by part, and time from a short probe."""

from __future__ import annotations

import resource
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from recsys.batch import ClickBatch, HistoryBatch
from recsys.objectives.full_softmax import TOKENS_PER_CHUNK, full_softmax
from recsys.training.click_task import ClickTask
from recsys.training.memory import keep_few_kernels
from recsys.training.next_item_task import NextItemTask
from recsys.training.optimizer import adamw
from recsys.training.precision import Precision, resolve
from recsys.training.touched_rows import touched_tables

Task = NextItemTask | ClickTask
FIRST_STEP = 150_000_000  # bytes of code and workspaces, measured on two models
SAMPLE_ROWS = 64  # of the largest batch: what they keep for the backward pass scales with rows


@dataclass(frozen=True)
class Memory:
    """Bytes that a training holds at its peak, by part.

    Attributes:
        tables: embeddings, with their gradients, unless these hold touched rows only.
        layers: all other parameters, with their gradients.
        optimizer: two moments of each parameter.
        copies: the averaged weights, if any, the best ones so far, and while validation runs on the
            averaged ones the model's own.
        logits: of the exact softmax, a chunk at a time, and what it makes of the table.
        activations: what the largest batch keeps for the backward pass, and as much again for the
            gradients that come back.
        program: what the process holds already, and what torch loads at its first step.
    """

    tables: int
    layers: int
    optimizer: int
    copies: int
    logits: int
    activations: int
    program: int

    @property
    def total(self) -> int:
        """All parts."""
        return sum(vars(self).values())


def expected_memory(
    task: Task, largest: tuple[Any, Tensor], precision: Precision, average_weights: float
) -> Memory:
    """Adds up what is known, and measures a few rows of the largest batch.

    Args:
        task: model, objective, optimizer.
        largest: the batch that takes most places.
        precision: of training.
        average_weights: decay of the averaged weights; 0 keeps none.
    """
    tables = {id(m.weight): m.weight for m in task.model.modules() if isinstance(m, nn.Embedding)}
    in_tables = sum(table.numel() for table in tables.values())
    by_rows = touched_tables(task.model).values()
    without_gradient = sum(table.numel() for table in by_rows)
    parameters = sum(p.numel() for p in task.model.parameters())
    inputs, _ = largest
    rows = len(inputs.lengths_B)
    few, labels = first_rows(largest, SAMPLE_ROWS)
    if isinstance(task, NextItemTask):
        keep_few_kernels()  # what follows may be the first products of the process
    kept = _kept_for_backward(task, (few, labels), precision)
    logits = 0
    if getattr(task, "objective", None) is full_softmax:
        table = task.model.item_table()  # type: ignore[operator]
        size = 2 if resolve(precision) == "bf16-mixed" else 4
        tokens = int(inputs.lengths_B.sum())
        # Logits and probabilities of a chunk, the table in the low precision, its gradient.
        logits = 2 * min(TOKENS_PER_CHUNK, tokens) * len(table) * size
        logits += table.numel() * (size + 4)
    return Memory(
        tables=8 * in_tables - 4 * without_gradient,
        layers=8 * (parameters - in_tables),
        optimizer=8 * parameters,
        copies=4 * parameters * (3 if average_weights else 1)
        + (8 * sum(len(table) for table in by_rows) if average_weights else 0),
        logits=logits,
        activations=int(2 * kept * max(1.0, rows / len(few.lengths_B))),
        program=_resident() + FIRST_STEP,
    )


def first_rows(batch: tuple[Any, Tensor], rows: int) -> tuple[Any, Tensor]:
    """The longest histories of a batch, at most so many, with their targets."""
    inputs, targets = batch
    longest = torch.argsort(inputs.lengths_B, descending=True, stable=True)[:rows]
    if isinstance(inputs, HistoryBatch):
        ends = inputs.lengths_B.cumsum(0)
        own = [targets[ends[i] - inputs.lengths_B[i] : ends[i]] for i in longest.tolist()]
        times = None if inputs.times_BL is None else inputs.times_BL[longest]
        few = HistoryBatch(inputs.items_BL[longest], inputs.lengths_B[longest], times)
        return few, torch.cat(own)
    assert isinstance(inputs, ClickBatch)
    return (
        ClickBatch(
            inputs.item_ids_I,
            inputs.candidates_B[longest],
            inputs.history_BL[longest],
            inputs.lengths_B[longest],
            {name: values[longest] for name, values in inputs.user_fields.items()},
            inputs.item_fields,
            {name: values[longest] for name, values in inputs.event_fields.items()},
            {name: values[longest] for name, values in inputs.context_fields.items()},
        ),
        targets[longest],
    )


def _kept_for_backward(task: Task, batch: tuple[Any, Tensor], precision: Precision) -> int:
    """Bytes of the tensors that one step keeps, parameters left out."""
    own = {p.untyped_storage().data_ptr() for p in task.model.parameters()}
    kept: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    state = torch.get_rng_state()
    buffers = {name: buffer.clone() for name, buffer in task.model.named_buffers()}
    saved = torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor)
    with saved, autocast(precision):
        task.training_step(batch, 0)
    torch.set_rng_state(state)
    for name, buffer in task.model.named_buffers():
        buffer.copy_(buffers[name])  # Dice's running averages have moved
    return sum(kept.values())


def autocast(precision: Precision) -> torch.autocast:
    """The precision of training, as Lightning sets it."""
    low = resolve(precision) == "bf16-mixed"
    return torch.autocast("cpu", dtype=torch.bfloat16, enabled=low)


@dataclass(frozen=True)
class Probe:
    """What a few steps took.

    Attributes:
        steps: taken.
        seconds: of them, without the first.
    """

    steps: int
    seconds: float

    @property
    def seconds_per_step(self) -> float:
        """Mean of all but the first, which warms up."""
        return self.seconds / max(1, self.steps - 1)


def probe(task: Task, batches: Any, precision: Precision, seconds: float = 2.0) -> Probe:
    """Trains for about two seconds, to see how long a step takes.

    Args:
        task: model, objective, optimizer; its weights move.
        batches: those of training, from their current place; they do not move.
        precision: of training.
        seconds: how long, at least two steps in any case.
    """
    place, state = batches.state_dict(), torch.get_rng_state()
    optimizer = adamw(task.model, task.optimization)["optimizer"]
    steps, begun = 0, time.perf_counter()
    for batch in batches:
        with autocast(precision):
            loss = task.training_step(batch, steps)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        steps += 1
        if steps == 1:
            begun = time.perf_counter()
        elif time.perf_counter() - begun >= seconds:
            break
    passed = time.perf_counter() - begun
    batches.load_state_dict(place)
    torch.set_rng_state(state)
    return Probe(steps, passed)


def available_memory() -> int | None:
    """Bytes that may still be taken, of the machine and of the control group; None: unknown."""
    limits = []
    info = Path("/proc/meminfo")
    if info.exists():
        for line in info.read_text().splitlines():
            if line.startswith("MemAvailable:"):
                limits.append(int(line.split()[1]) * 1024)
    group = Path("/sys/fs/cgroup")
    limit, used = group / "memory.max", group / "memory.current"
    if limit.exists() and used.exists() and (text := limit.read_text().strip()) != "max":
        limits.append(int(text) - int(used.read_text()))
    return min(limits, default=None)


def _resident() -> int:
    """Bytes this process holds now."""
    status = Path("/proc/self/statm")
    if status.exists():
        return int(status.read_text().split()[1]) * resource.getpagesize()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak * (1 if sys.platform == "darwin" else 1024)
