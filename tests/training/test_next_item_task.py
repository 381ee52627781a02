"""A step scores against the output table, the optimizer decays what it should, rates follow."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from recsys.models.next_item.sasrec import SASRec
from recsys.objectives.full_softmax import full_softmax
from recsys.testing import batch_of
from recsys.training.next_item_task import NextItemTask
from recsys.training.optimizer import Optimization, Schedule, learning_rate_factor


def task_of(model: nn.Module, rate: float = 0.01, schedule: Schedule = "linear") -> NextItemTask:
    return NextItemTask(
        model,
        full_softmax,
        Optimization(rate, 0.5, warmup_steps=2, total_steps=6, schedule=schedule, beta2=0.9),
    )


def test_a_step_scores_hidden_states_against_the_output_table() -> None:
    model = SASRec(30, 10, width=8, dropout=0.0, tied_output=False)
    batch, targets_T = batch_of([[1, 2, 3], [4, 5]]), torch.tensor([2, 3, 9, 5, 9])
    loss = task_of(model).training_step((batch, targets_T), 0)
    assert torch.equal(loss, full_softmax(model(batch), model.item_table(), targets_T))
    assert model.output is not None and model.item_table() is model.output.weight


def test_weight_decay_spares_embeddings_biases_and_norms() -> None:
    model = SASRec(30, 10, width=8, tied_output=False)
    decayed, plain = task_of(model).configure_optimizers()["optimizer"].param_groups
    matrices = {id(module.weight) for module in model.modules() if isinstance(module, nn.Linear)}
    assert {id(parameter) for parameter in decayed["params"]} == matrices
    assert len(decayed["params"] + plain["params"]) == len(list(model.parameters()))
    assert (decayed["weight_decay"], plain["weight_decay"]) == (0.5, 0.0)
    assert decayed["betas"] == plain["betas"] == (0.9, 0.9)


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        ("constant", [0.5, 1, 1, 1, 1, 1, 1]),
        ("linear", [0.5, 1, 1, 0.75, 0.5, 0.25, 0]),
        ("cosine", [0.5, 1, 1, 0.8535534, 0.5, 0.1464466, 0]),
    ],
)
def test_learning_rate_schedules(schedule: Schedule, expected: list[float]) -> None:
    factors = [learning_rate_factor(step, 2, 6, schedule) for step in range(7)]
    assert factors == pytest.approx(expected)
    assert learning_rate_factor(9, 2, 6, schedule) == pytest.approx(expected[-1])


def test_wrong_settings_are_named() -> None:
    model = SASRec(30, 10, width=8)
    with pytest.raises(ValueError, match="'constant', 'linear' or 'cosine', not 'square'"):
        task_of(model, schedule="square")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="learning_rate must be positive, not 0"):
        task_of(model, rate=0)
    with pytest.raises(ValueError, match="beta2 must be at least 0 and below 1, not 1"):
        Optimization(0.1, 0.0, 0, 1, "linear", beta2=1)
