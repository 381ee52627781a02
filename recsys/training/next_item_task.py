"""Training a next-item model, as a Lightning module."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Literal

import pytorch_lightning as lightning
import torch
from torch import Tensor, nn

from recsys.batch import HistoryBatch

Objective = Callable[[Tensor, Tensor, Tensor], Tensor]
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


class NextItemTask(lightning.LightningModule):
    """A next-item model, its objective and its optimizer (AdamW).

    Weight decay acts on matrices of the layers, not on embeddings, biases and norms.

    Args:
        model: gives hidden states [T, D] of a batch and an item table [V, D].
        objective: loss of (hidden_TD, table_VD, targets_T): a function, or a module with constants
            of its own (no parameters).
        learning_rate: at its peak.
        weight_decay: decoupled.
        warmup_steps: of linear warm-up.
        total_steps: where a falling schedule reaches zero.
        schedule: "constant", "linear" or "cosine".

    Raises:
        ValueError: an unknown schedule, or a rate out of range.
    """

    def __init__(
        self,
        model: nn.Module,
        objective: Objective,
        *,
        learning_rate: float,
        weight_decay: float,
        warmup_steps: int,
        total_steps: int,
        schedule: Schedule,
    ) -> None:
        super().__init__()
        if schedule not in ("constant", "linear", "cosine"):
            raise ValueError(
                f"trainer.schedule must be 'constant', 'linear' or 'cosine', not {schedule!r}"
            )
        if learning_rate <= 0:
            raise ValueError(f"trainer.learning_rate must be positive, not {learning_rate}")
        self.model = model
        self.objective = objective
        self.learning_rate = learning_rate
        self.weight_decay = weight_decay
        self.warmup_steps = warmup_steps
        self.total_steps = total_steps
        self.schedule = schedule

    def training_step(self, batch: tuple[HistoryBatch, Tensor], batch_idx: int) -> Tensor:
        """The loss of one batch."""
        inputs, targets_T = batch
        model: Any = self.model
        return self.objective(model(inputs), model.item_table(), targets_T)

    def transfer_batch_to_device(
        self, batch: tuple[HistoryBatch, Tensor], device: torch.device, dataloader_idx: int
    ) -> tuple[HistoryBatch, Tensor]:
        """Lightning does not move frozen dataclasses."""
        inputs, targets_T = batch
        return inputs.to(device), targets_T.to(device)

    def configure_optimizers(self) -> Any:
        """AdamW with its schedule, stepped after every batch."""
        tables = {
            id(module.weight) for module in self.model.modules() if isinstance(module, nn.Embedding)
        }
        decayed: list[nn.Parameter] = []
        plain: list[nn.Parameter] = []
        for parameter in self.model.parameters():
            matrix = parameter.ndim >= 2 and id(parameter) not in tables
            (decayed if matrix else plain).append(parameter)
        optimizer = torch.optim.AdamW(
            [
                {"params": decayed, "weight_decay": self.weight_decay},
                {"params": plain, "weight_decay": 0.0},
            ],
            lr=self.learning_rate,
            betas=(0.9, 0.98),
            fused=True,
        )
        scheduler = torch.optim.lr_scheduler.LambdaLR(
            optimizer,
            lambda step: learning_rate_factor(
                step, self.warmup_steps, self.total_steps, self.schedule
            ),
        )
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": scheduler, "interval": "step"},
        }
