"""AdamW and its schedule, the same for every task."""

from __future__ import annotations

import math
from typing import Any, Literal

import torch
from torch import nn

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


def check_schedule(learning_rate: float, schedule: str) -> None:
    """Refuses what `adamw` cannot do.

    Raises:
        ValueError: an unknown schedule, or a rate out of range.
    """
    if schedule not in ("constant", "linear", "cosine"):
        raise ValueError(
            f"trainer.schedule must be 'constant', 'linear' or 'cosine', not {schedule!r}"
        )
    if learning_rate <= 0:
        raise ValueError(f"trainer.learning_rate must be positive, not {learning_rate}")


def adamw(
    model: nn.Module,
    *,
    learning_rate: float,
    weight_decay: float,
    warmup_steps: int,
    total_steps: int,
    schedule: Schedule,
) -> dict[str, Any]:
    """AdamW with its schedule, stepped after every batch, as Lightning takes it.

    Weight decay acts on matrices of the layers, not on embeddings, biases and norms.
    """
    tables = {id(module.weight) for module in model.modules() if isinstance(module, nn.Embedding)}
    decayed: list[nn.Parameter] = []
    plain: list[nn.Parameter] = []
    for parameter in model.parameters():
        matrix = parameter.ndim >= 2 and id(parameter) not in tables
        (decayed if matrix else plain).append(parameter)
    optimizer = torch.optim.AdamW(
        [
            {"params": decayed, "weight_decay": weight_decay},
            {"params": plain, "weight_decay": 0.0},
        ],
        lr=learning_rate,
        betas=(0.9, 0.98),
        fused=True,
    )
    scheduler = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: learning_rate_factor(step, warmup_steps, total_steps, schedule)
    )
    return {
        "optimizer": optimizer,
        "lr_scheduler": {"scheduler": scheduler, "interval": "step"},
    }
