"""Training a next-item model, as a Lightning module."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytorch_lightning as lightning
import torch
from torch import Tensor, nn

from recsys.batch import HistoryBatch
from recsys.training.optimizer import Schedule, adamw, check_schedule

Objective = Callable[[Tensor, Tensor, Tensor], Tensor]


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
        check_schedule(learning_rate, schedule)
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
        return adamw(
            self.model,
            learning_rate=self.learning_rate,
            weight_decay=self.weight_decay,
            warmup_steps=self.warmup_steps,
            total_steps=self.total_steps,
            schedule=self.schedule,
        )
