"""AdamW and its schedule, the same for every task."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import nn

from recsys.training.touched_rows import TouchedRowsAdamW, touched_tables

Schedule = Literal["constant", "linear", "cosine"]


def learning_rate_factor(step: int, warmup: int, total: int, schedule: Schedule) -> float:
    """Share of the learning rate at a step: linear warm-up, then constant or falling to zero.

    >>> [round(learning_rate_factor(s, 2, 6, "linear"), 2) for s in range(7)]
    [0.5, 1.0, 1.0, 0.75, 0.5, 0.25, 0.0]
    """
    if step < warmup:
        return (step + 1) / warmup
    left = max(0.0, (total - step) / max(1, total - warmup))
    if schedule == "linear":
        return left
    if schedule == "cosine":
        return 0.5 * (1 - math.cos(math.pi * left))
    return 1.0


@dataclass(frozen=True)
class Optimization:
    """How AdamW steps.

    Attributes:
        learning_rate: at its peak.
        weight_decay: decoupled; acts on matrices of the layers, not on embeddings, biases, norms.
        warmup_steps: of linear warm-up.
        total_steps: where a falling schedule reaches zero.
        schedule: "constant", "linear" or "cosine".
        beta2: decay of the squared gradients' average. Rows of a table that few batches touch need
            a long memory: with a short one each touch is a step of nearly full size.

    Raises:
        ValueError: an unknown schedule, or a number out of range.
    """

    learning_rate: float
    weight_decay: float
    warmup_steps: int
    total_steps: int
    schedule: Schedule
    beta2: float

    def __post_init__(self) -> None:
        if self.schedule not in ("constant", "linear", "cosine"):
            raise ValueError(
                f"trainer.schedule must be 'constant', 'linear' or 'cosine', not {self.schedule!r}"
            )
        if self.learning_rate <= 0:
            raise ValueError(f"trainer.learning_rate must be positive, not {self.learning_rate}")
        if not 0 <= self.beta2 < 1:
            raise ValueError(f"trainer.beta2 must be at least 0 and below 1, not {self.beta2}")


def adamw(model: nn.Module, how: Optimization) -> dict[str, Any]:
    """AdamW with its schedule, stepped after every batch, as Lightning takes it.

    Of tables that `choose_row_updates` marked it moves the touched rows only.
    """
    tables = {id(module.weight) for module in model.modules() if isinstance(module, nn.Embedding)}
    decayed: list[nn.Parameter] = []
    plain: list[nn.Parameter] = []
    for parameter in model.parameters():
        matrix = parameter.ndim >= 2 and id(parameter) not in tables
        (decayed if matrix else plain).append(parameter)
    optimizer = TouchedRowsAdamW(
        [
            {"params": decayed, "weight_decay": how.weight_decay},
            {"params": plain, "weight_decay": 0.0},
        ],
        touched_tables(model),
        how.learning_rate,
        (0.9, how.beta2),
    )
    scheduler = torch.optim.lr_scheduler.LambdaLR(
        optimizer,
        lambda step: learning_rate_factor(step, how.warmup_steps, how.total_steps, how.schedule),
    )
    return {
        "optimizer": optimizer,
        "lr_scheduler": {"scheduler": scheduler, "interval": "step"},
    }
