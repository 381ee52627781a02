"""The optimizer of a run, as its trainer's settings say."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pipelines.schemas import ClickTrainerConfig, NextItemTrainerConfig

if TYPE_CHECKING:
    from recsys.training.optimizer import Optimization


def optimization_of(
    trainer: NextItemTrainerConfig | ClickTrainerConfig, batches_per_epoch: int
) -> Optimization:
    """How AdamW steps; warm-up takes a tenth of all steps at most.

    Raises:
        ValueError: a setting out of range.
    """
    from recsys.training.optimizer import Optimization

    total_steps = trainer.max_epochs * batches_per_epoch
    return Optimization(
        learning_rate=trainer.learning_rate,
        weight_decay=trainer.weight_decay,
        warmup_steps=min(trainer.warmup_steps, total_steps // 10),
        total_steps=total_steps,
        schedule=trainer.schedule,
        beta2=trainer.beta2,
    )
