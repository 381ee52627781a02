"""Training a next-item model, as a Lightning module."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytorch_lightning as lightning
import torch
from torch import Tensor, nn

from recsys.batch import HistoryBatch
from recsys.training.optimizer import Optimization, adamw

Objective = Callable[[Tensor, Tensor, Tensor], Tensor]


class NextItemTask(lightning.LightningModule):
    """A next-item model, its objective and its optimizer (AdamW).

    Args:
        model: gives hidden states [T, D] of a batch and an item table [V, D].
        objective: loss of (hidden_TD, table_VD, targets_T): a function, or a module with constants
            of its own (no parameters).
        optimization: how AdamW steps.
    """

    def __init__(
        self,
        model: nn.Module,
        objective: Objective,
        optimization: Optimization,
    ) -> None:
        super().__init__()
        self.model = model
        self.objective = objective
        self.optimization = optimization

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
        return adamw(self.model, self.optimization)
