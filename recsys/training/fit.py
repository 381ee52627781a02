"""One call that trains a model."""

from __future__ import annotations

import logging
import signal
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytorch_lightning as lightning
import torch
from torch import Tensor

from recsys.training.averaging import AverageWeights
from recsys.training.callbacks import (
    CHECKPOINT_VERSION,
    Batches,
    ChooseOnValidation,
    KeepLast,
    Position,
    Validate,
)
from recsys.training.click_task import ClickTask
from recsys.training.memory import keep_few_kernels, keep_freed_memory
from recsys.training.next_item_task import NextItemTask
from recsys.training.precision import Precision, resolve
from recsys.training.reporting import Reporter
from recsys.training.stopwatch import Cost, Stopwatch


class CheckpointError(ValueError):
    """A checkpoint that cannot be resumed from."""


@dataclass(frozen=True)
class Fitted:
    """What training found.

    Attributes:
        best_epoch: epoch of the chosen weights, from 1; 0 if no epoch ended.
        best_score: the monitored metric there.
        epochs: epochs trained.
        seconds_training: in training steps.
        seconds_validating: in validation.
        cost: where the time of this command's training went.
    """

    best_epoch: int
    best_score: float
    epochs: int
    seconds_training: float
    seconds_validating: float
    cost: Cost = field(compare=False)


def fit(
    task: NextItemTask | ClickTask,
    batches: Batches,
    *,
    validate: Validate | None,
    monitor: str,
    smaller_is_better: bool = False,
    max_epochs: int,
    patience: int | None,
    validate_every: int,
    precision: Precision,
    checkpoint: Path,
    resume: Path | None,
    reporter: Reporter,
    progress: bool,
    say: Callable[[str], None] | None = None,
    checkpoint_seconds: float = 60.0,
    average_weights: float = 0.0,
) -> Fitted:
    """Trains `task.model` and leaves the best weights in it.

    Args:
        task: model, objective and optimizer.
        batches: training batches; their state is part of the checkpoint.
        validate: metrics of a model; one of them is `monitor`. None: all epochs are trained, and
            the last weights stay.
        monitor: the metric that chooses weights and stops training.
        smaller_is_better: of that metric, such as a loss.
        max_epochs: passes over the training histories.
        patience: epochs without improvement before stopping; None never.
        validate_every: epochs between validations.
        precision: "auto", "32" or "bf16".
        checkpoint: where the checkpoint for resuming is kept.
        resume: a checkpoint to go on from, or None.
        reporter: gets losses and metrics.
        progress: whether to show Lightning's bar.
        say: prints one line per epoch.
        checkpoint_seconds: between two checkpoints inside an epoch.
        average_weights: decay of the averaged weights that are validated and kept; 0: none.

    Raises:
        CheckpointError: `resume` is missing, truncated, or of another model.
        TrainingDiverged: the loss is not finite.
    """
    keep_freed_memory()
    if isinstance(task, NextItemTask):
        keep_few_kernels()
    averaged = AverageWeights(average_weights) if average_weights else None
    choose = ChooseOnValidation(
        validate, monitor, smaller_is_better, patience, validate_every, reporter, say, averaged
    )
    checkpoint.parent.mkdir(parents=True, exist_ok=True)
    watch = Stopwatch(Cost())
    callbacks: list[lightning.Callback] = [
        watch,
        *([averaged] if averaged else []),
        choose,
        Position(batches),
        KeepLast(checkpoint, checkpoint_seconds),
        watch.end,
    ]
    if progress:
        callbacks.append(lightning.callbacks.TQDMProgressBar(leave=False))
    if resume is not None:
        check_checkpoint(resume, task, batches, max_epochs)
    with quiet_lightning():
        trainer = lightning.Trainer(
            max_epochs=max_epochs,
            precision=resolve(precision),
            callbacks=callbacks,
            logger=False,
            enable_checkpointing=False,
            enable_model_summary=False,
            enable_progress_bar=progress,
            num_sanity_val_steps=0,
            default_root_dir=str(checkpoint.parent),
            accelerator="auto",
            devices=1,
        )
        interrupt = signal.getsignal(signal.SIGINT)
        try:
            trainer.fit(
                task,
                batches,
                ckpt_path=None if resume is None else str(resume),
                weights_only=True,
            )
        except SystemExit as exit_:
            # Lightning turns Ctrl-C into an exit of its own and mutes the signal.
            raise KeyboardInterrupt from exit_
        finally:
            signal.signal(signal.SIGINT, interrupt)
    if choose.best_weights:
        task.model.load_state_dict(choose.best_weights)
    watch.cost.seconds["validation"] = choose.seconds_validating_here
    return Fitted(
        choose.best_epoch,
        choose.best_score,
        trainer.current_epoch,
        choose.seconds_training,
        choose.seconds_validating,
        watch.cost,
    )


def read_checkpoint(path: Path) -> dict[str, Any]:
    """Everything a checkpoint holds, once it is known to be whole.

    Raises:
        CheckpointError: it is missing, truncated, or of another format version.
    """
    if not path.exists():
        raise CheckpointError(f"there is no checkpoint {path} to resume from")
    try:
        state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
        version = state["callbacks"][Position.__qualname__]["version"]
        state["state_dict"].keys()
    except Exception as error:
        raise CheckpointError(
            f"{path} is not a whole checkpoint ({type(error).__name__}); it may have been cut off "
            "while it was copied: train again without resume="
        ) from error
    if version != CHECKPOINT_VERSION:
        raise CheckpointError(
            f"{path} has format version {version}, this release reads {CHECKPOINT_VERSION}"
        )
    return state


def check_checkpoint(
    path: Path, task: NextItemTask | ClickTask, batches: Batches, max_epochs: int
) -> None:
    """Refuses a checkpoint that is not whole, or is of another model or of other batches.

    Raises:
        CheckpointError: which of these, and what to do.
    """
    state = read_checkpoint(path)
    weights: dict[str, Tensor] = state["state_dict"]
    place: dict[str, Any] = state["callbacks"][Position.__qualname__]
    before: dict[str, Any] = place["identity"]
    own = task.state_dict()
    for name in own.keys() | weights.keys():
        here = tuple(own[name].shape) if name in own else None
        there = tuple(weights[name].shape) if name in weights else None
        if here != there:
            raise CheckpointError(
                f"{path} is of another model: {name} has shape {there} there and {here} here; "
                "resume with the configuration the run was started with"
            )
    for name, here in batches.identity().items():
        if before.get(name) != here:
            raise CheckpointError(
                f"{path} was trained on other batches: {name} was {before.get(name)!r} and is "
                f"{here!r} now; resume with the data and configuration the run was started with"
            )
    if place["batches"]["epoch"] > max_epochs:
        raise CheckpointError(
            f"{path} has {place['batches']['epoch']} epochs behind it, more than "
            f"trainer.max_epochs={max_epochs}"
        )


class quiet_lightning:
    """Keeps Lightning's hints, which speak of options of its own, out of our users' terminal."""

    def __enter__(self) -> None:
        self._log = logging.getLogger("pytorch_lightning")
        self._level = self._log.level
        self._log.setLevel(logging.ERROR)
        self._warnings = warnings.catch_warnings()
        self._warnings.__enter__()
        warnings.filterwarnings("ignore", module="pytorch_lightning")
        warnings.filterwarnings("ignore", module="lightning_utilities")

    def __exit__(self, *exception: object) -> None:
        self._warnings.__exit__(None, None, None)
        self._log.setLevel(self._level)
