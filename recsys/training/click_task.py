"""Training a ranker, as a Lightning module."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytorch_lightning as lightning
import torch
from torch import Tensor, nn

from recsys.batch import ClickBatch
from recsys.training.optimizer import Optimization, adamw

ClickObjective = Callable[[Tensor, Tensor], Tensor]
Penalty = Callable[[nn.Module, ClickBatch], Tensor]


class ClickTask(lightning.LightningModule):
    """A ranker, its objective and its optimizer (AdamW).

    Args:
        model: gives logits [B] of a `ClickBatch`.
        objective: loss of (logits_B, labels_B).
        penalty: added to the loss, of (model, batch); None for none.
        optimization: how AdamW steps.
    """

    def __init__(
        self,
        model: nn.Module,
        objective: ClickObjective,
        penalty: Penalty | None,
        optimization: Optimization,
    ) -> None:
        super().__init__()
        self.model = model
        self.objective = objective
        self.penalty = penalty
        self.optimization = optimization

    def training_step(self, batch: tuple[ClickBatch, Tensor], batch_idx: int) -> Tensor:
        """The loss of one batch."""
        inputs, labels_B = batch
        loss = self.objective(self.model(inputs), labels_B)
        return loss if self.penalty is None else loss + self.penalty(self.model, inputs)

    def transfer_batch_to_device(
        self, batch: tuple[ClickBatch, Tensor], device: torch.device, dataloader_idx: int
    ) -> tuple[ClickBatch, Tensor]:
        """Lightning does not move frozen dataclasses."""
        inputs, labels_B = batch
        return inputs.to(device), labels_B.to(device)

    def configure_optimizers(self) -> Any:
        """AdamW with its schedule, stepped after every batch."""
        return adamw(self.model, self.optimization)
