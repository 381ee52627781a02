"""Averaged weights: what is judged and kept is a mean over the newest steps, not the last step."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytorch_lightning as lightning
import torch
from torch import Tensor, nn

from recsys.training.touched_rows import touched_rows, touched_tables


class AverageWeights(lightning.Callback):
    """An exponential moving average of the weights (Polyak and Juditsky 1992).

    After step t: average ← d · average + (1 − d) · weights, with d = min(decay, (1 + t) / (10 + t))
    so that the start is soon forgotten. Training itself goes on with its own weights; buffers (the
    running means of Dice) are not averaged twice.

    Of tables whose steps move touched rows only (`recsys.training.touched_rows`), a step averages
    only these, too. A row that rests at w for some steps has the average w + (average − w) · Π d
    after them: it is brought up to date when the row is touched again, and all rows are before
    validation. This is the average over every step, to float rounding.

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
        # Σ log d of all steps, and for each row of a touched table (float64 [V]) up to when its
        # average is right.
        self.log_decay = 0.0
        self.right_until: dict[str, Tensor] = {}
        self._rows: dict[str, Tensor] = {}

    def on_train_start(self, trainer: lightning.Trainer, module: Any) -> None:
        """Starts from the first weights, unless it was resumed."""
        own = dict(module.model.named_parameters())
        if not self.average:
            self.average = {name: weight.detach().clone() for name, weight in own.items()}
        self.average = {name: value.to(own[name].device) for name, value in self.average.items()}
        for name, table in touched_tables(module.model).items():
            known = self.right_until.get(name, torch.zeros(len(table), dtype=torch.float64))
            self.right_until[name] = known.to(table.device)

    @torch.no_grad()
    def on_before_optimizer_step(
        self, trainer: lightning.Trainer, module: Any, optimizer: Any
    ) -> None:
        """The rows that are about to move have rested until now."""
        for name, table in touched_tables(module.model).items():
            rows_R = self._rows[name] = touched_rows(table)
            average_RD = self.average[name].index_select(0, rows_R)
            right_until_R = self.right_until[name].index_select(0, rows_R)
            average_RD.lerp_(table.index_select(0, rows_R), self._rested(right_until_R))
            self.average[name].index_copy_(0, rows_R, average_RD)

    @torch.no_grad()
    def on_train_batch_end(
        self, trainer: lightning.Trainer, module: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Takes in the newest weights."""
        decay = min(self.decay, (1 + self.steps) / (10 + self.steps))
        self.steps += 1
        self.log_decay += math.log(decay)
        own = {name: weight.detach() for name, weight in module.model.named_parameters()}
        dense = [name for name in own if name not in self.right_until]
        averages, weights = [self.average[name] for name in dense], [own[name] for name in dense]
        torch._foreach_lerp_(averages, weights, 1 - decay)
        for name, right_until_V in self.right_until.items():
            rows_R = self._rows.pop(name)
            average_RD = self.average[name].index_select(0, rows_R)
            average_RD.lerp_(own[name].index_select(0, rows_R), 1 - decay)
            self.average[name].index_copy_(0, rows_R, average_RD)
            right_until_V.index_fill_(0, rows_R, self.log_decay)

    def _rested(self, right_until: Tensor) -> Tensor:
        """The share 1 − Π d of a row's resting value, float32 [rows, 1]; exactly 0 without rest."""
        return -torch.expm1(self.log_decay - right_until)[:, None].float()

    @torch.no_grad()
    def _catch_up(self, model: nn.Module) -> None:
        """Brings the averages of all rows up to date."""
        own = dict(model.named_parameters())
        for name, right_until_V in self.right_until.items():
            self.average[name].lerp_(own[name], self._rested(right_until_V))
            right_until_V.fill_(self.log_decay)

    @contextmanager
    def in_place(self, model: nn.Module) -> Iterator[None]:
        """Inside, the model has the averaged weights."""
        self._catch_up(model)
        own = {name: weight.detach().clone() for name, weight in model.named_parameters()}
        _copy(self.average, model)
        try:
            yield
        finally:
            _copy(own, model)

    def state_dict(self) -> dict[str, Any]:
        """The average, for resuming."""
        return {
            "steps": self.steps,
            "average": self.average,
            "log_decay": self.log_decay,
            "right_until": self.right_until,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """See `state_dict`."""
        self.steps = state_dict["steps"]
        self.average = dict(state_dict["average"])
        # Checkpoints had neither before there were touched tables.
        self.log_decay = state_dict.get("log_decay", 0.0)
        self.right_until = dict(state_dict.get("right_until", {}))


@torch.no_grad()
def _copy(weights: dict[str, Tensor], model: nn.Module) -> None:
    for name, weight in model.named_parameters():
        weight.copy_(weights[name])
