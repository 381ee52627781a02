"""Averaged weights: what is judged and kept is a mean over the newest steps, not the last step."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytorch_lightning as lightning
import torch
from torch import Tensor, nn


class AverageWeights(lightning.Callback):
    """An exponential moving average of the weights (Polyak and Juditsky 1992).

    After step t: average ← d · average + (1 − d) · weights, with d = min(decay, (1 + t) / (10 + t))
    so that the start is soon forgotten. Training itself goes on with its own weights; buffers (the
    running means of Dice) are not averaged twice.

    Args:
        decay: in (0, 1); the average looks back about 1 / (1 − decay) steps.

    Raises:
        ValueError: decay out of range.
    """

    def __init__(self, decay: float) -> None:
        if not 0 < decay < 1:
            raise ValueError(f"trainer.average_weights must be 0 (off) or below 1, not {decay}")
        self.decay = decay
        self.steps = 0
        self.average: dict[str, Tensor] = {}

    def on_train_start(self, trainer: lightning.Trainer, module: Any) -> None:
        """Starts from the first weights, unless it was resumed."""
        own = dict(module.model.named_parameters())
        if not self.average:
            self.average = {name: weight.detach().clone() for name, weight in own.items()}
        self.average = {name: value.to(own[name].device) for name, value in self.average.items()}

    @torch.no_grad()
    def on_train_batch_end(
        self, trainer: lightning.Trainer, module: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Takes in the newest weights."""
        decay = min(self.decay, (1 + self.steps) / (10 + self.steps))
        self.steps += 1
        weights = [weight.detach() for weight in module.model.parameters()]
        torch._foreach_lerp_(list(self.average.values()), weights, 1 - decay)

    @contextmanager
    def in_place(self, model: nn.Module) -> Iterator[None]:
        """Inside, the model has the averaged weights."""
        own = {name: weight.detach().clone() for name, weight in model.named_parameters()}
        _copy(self.average, model)
        try:
            yield
        finally:
            _copy(own, model)

    def state_dict(self) -> dict[str, Any]:
        """The average, for resuming."""
        return {"steps": self.steps, "average": self.average}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """See `state_dict`."""
        self.steps = state_dict["steps"]
        self.average = dict(state_dict["average"])


@torch.no_grad()
def _copy(weights: dict[str, Tensor], model: nn.Module) -> None:
    for name, weight in model.named_parameters():
        weight.copy_(weights[name])
