"""What training will take: the estimate changes nothing, scales, and is near what is measured."""

from __future__ import annotations

import copy
import os
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from recsys.histories.batches import TrainingBatches
from recsys.histories.click_batches import ClickBatches
from recsys.histories.clicks import click_split
from recsys.histories.questions import leave_one_out, user_share
from recsys.histories.store import HistoryStore
from recsys.models.click.din import DIN
from recsys.models.next_item.sasrec import SASRec
from recsys.objectives.clicks import binary_cross_entropy
from recsys.objectives.full_softmax import full_softmax
from recsys.testing import planted_clicks, planted_log
from recsys.training.click_task import ClickTask
from recsys.training.memory import KERNEL_CACHES
from recsys.training.next_item_task import NextItemTask
from recsys.training.optimizer import Optimization
from recsys.training.plan import expected_memory, first_rows, probe

HOW = Optimization(1e-3, 0.0, 0, 10, "constant", beta2=0.98)


def next_item(tokens: int = 4000) -> tuple[NextItemTask, TrainingBatches]:
    store = planted_log(400)
    torch.manual_seed(0)
    model = SASRec(store.catalogue_size, 40, width=16, heads=2, dropout=0.2)
    batches = TrainingBatches(store, leave_one_out(store).training_ends, 40, tokens, seed=0)
    return NextItemTask(model, full_softmax, HOW), batches


def clicks(rows: int = 300) -> tuple[ClickTask, ClickBatches]:
    histories, _, _ = planted_clicks(200, items=30, length=20)
    plain = HistoryStore.from_lists(histories, items=30)
    labels = np.random.Generator(np.random.PCG64(0)).integers(0, 2, plain.events, dtype=np.int8)
    store = replace(plain, labels=labels)
    split = click_split(store, user_share(store, 0.1), history="positives")
    torch.manual_seed(0)
    model = DIN(31, {}, {}, {}, {}, 20, width=8, hidden=[16], activation="dice")
    task = ClickTask(model, binary_cross_entropy, None, HOW)
    return task, ClickBatches(split, None, 20, rows, seed=0)


@pytest.mark.parametrize("made", [next_item, clicks])
def test_looking_changes_nothing(made: Any) -> None:
    task, batches = made()
    weights = copy.deepcopy(task.state_dict())
    generator, place = torch.get_rng_state(), batches.state_dict()
    expected_memory(task, batches.largest(), "32", 0.99)
    assert torch.equal(torch.get_rng_state(), generator) and batches.state_dict() == place
    assert all(torch.equal(weights[name], value) for name, value in task.state_dict().items())
    probe(task, batches, "32", seconds=0.0)
    assert torch.equal(torch.get_rng_state(), generator) and batches.state_dict() == place


def test_few_kernels_are_asked_for_before_the_step_that_is_tried(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for cache in KERNEL_CACHES:
        monkeypatch.delenv(cache, raising=False)
    task, batches = next_item()
    kept: list[str | None] = []

    def step(batch: Any, number: int) -> torch.Tensor:
        kept.extend(os.environ.get(cache) for cache in KERNEL_CACHES)
        return NextItemTask.training_step(task, batch, number)

    task.training_step = step  # type: ignore[method-assign]
    expected_memory(task, batches.largest(), "32", 0.0)
    assert kept == ["16", "16"]


@pytest.mark.parametrize(("made", "sizes"), [(next_item, (1500, 6000)), (clicks, (150, 600))])
def test_activations_grow_with_the_batch_and_nothing_else_does(made: Any, sizes: Any) -> None:
    small, large = (
        expected_memory(task, batches.largest(), "32", 0.0)
        for task, batches in (made(size) for size in sizes)
    )
    assert 3.2 < large.activations / small.activations < 4.8
    for part in ("tables", "layers", "optimizer", "copies"):
        assert getattr(small, part) == getattr(large, part) > 0


@pytest.mark.parametrize("made", [next_item, clicks])
def test_a_part_of_the_batch_stands_for_all_of_it(made: Any, monkeypatch: Any) -> None:
    task, batches = made()
    sampled = expected_memory(task, batches.largest(), "32", 0.0).activations
    monkeypatch.setattr("recsys.training.plan.SAMPLE_ROWS", 10**6)
    whole = expected_memory(task, batches.largest(), "32", 0.0).activations
    assert 0.8 < sampled / whole < 1.5


def test_parameters_are_counted_by_what_is_kept_of_them() -> None:
    task, batches = next_item()
    embeddings = [m for m in task.model.modules() if isinstance(m, torch.nn.Embedding)]
    in_tables = sum(m.weight.numel() for m in embeddings)
    parameters = sum(p.numel() for p in task.model.parameters())
    plain, averaged = (expected_memory(task, batches.largest(), "32", a) for a in (0.0, 0.9))
    assert plain.tables == 8 * in_tables
    assert plain.tables + plain.layers == 8 * parameters == plain.optimizer
    assert (plain.copies, averaged.copies) == (4 * parameters, 12 * parameters)
    assert plain.total == sum(vars(plain).values())


def test_the_first_rows_are_a_batch_of_their_own() -> None:
    _, batches = next_item()
    inputs, targets_T = batches.largest()
    few, own_T = first_rows((inputs, targets_T), 3)
    assert few.lengths_B.tolist() == sorted(inputs.lengths_B.tolist(), reverse=True)[:3]
    assert len(own_T) == int(few.lengths_B.sum())
    row = int(torch.argsort(inputs.lengths_B, descending=True, stable=True)[1])
    begin = int(inputs.lengths_B[:row].sum())
    length = int(inputs.lengths_B[row])
    first = int(few.lengths_B[0])
    assert torch.equal(own_T[first : first + length], targets_T[begin : begin + length])


def test_a_probe_takes_two_steps_at_least() -> None:
    task, batches = next_item(1000)
    found = probe(task, batches, "32", seconds=0.0)
    assert found.steps == 2 and found.seconds_per_step > 0
