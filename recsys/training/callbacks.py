"""What happens around the training steps: choosing, keeping, reporting."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any, Protocol

import pytorch_lightning as lightning
import torch
from torch import Tensor, nn

from recsys.logs.files import name_aside, sync
from recsys.training.averaging import AverageWeights
from recsys.training.reporting import Reporter

CHECKPOINT_VERSION = 1
Validate = Callable[[nn.Module], Mapping[str, float]]


class Batches(Protocol):
    """A stream of training batches that knows its place, such as `TrainingBatches`."""

    epoch: int

    def __len__(self) -> int: ...

    def __iter__(self) -> Iterator[Any]: ...

    def identity(self) -> dict[str, Any]:
        """What the stream is made from; a place in it means nothing in another one."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """The place."""
        ...

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go to a place."""
        ...


class TrainingDiverged(ValueError):
    """The loss is no longer a number."""


class UndefinedMonitor(ValueError):
    """The metric that should choose has no value on these questions."""


class ChooseOnValidation(lightning.Callback):
    """Validates after every epoch, keeps the best weights, stops when nothing improves.

    Args:
        validate: metrics of a model in evaluation mode; None keeps the last weights.
        monitor: the metric that chooses.
        smaller_is_better: of that metric, such as a loss.
        patience: epochs without improvement before training stops; None never stops early.
        every: validate every so many epochs (and after the last).
        reporter: gets every value.
        say: prints a line, or None.
        averaged: when given, its averaged weights are validated and kept.
    """

    def __init__(
        self,
        validate: Validate | None,
        monitor: str,
        smaller_is_better: bool,
        patience: int | None,
        every: int,
        reporter: Reporter,
        say: Callable[[str], None] | None = None,
        averaged: AverageWeights | None = None,
    ) -> None:
        self.averaged = averaged
        self.validate = validate
        self.monitor = monitor
        self.smaller_is_better = smaller_is_better
        self.patience = patience
        self.every = every
        self.reporter = reporter
        self.say = say
        self.best_score = math.inf if smaller_is_better else -math.inf
        self.best_epoch = 0
        self.best_weights: dict[str, Tensor] = {}
        self.stopped = False
        self.seconds_training = 0.0
        self.seconds_validating = 0.0
        self.seconds_validating_here = 0.0  # without those before a resumption
        self._loss_sum = torch.zeros((), dtype=torch.float64)
        self._steps = 0
        self._started = 0.0

    def on_train_start(self, trainer: lightning.Trainer, module: Any) -> None:
        """A run that had stopped early stays stopped when it is resumed."""
        if self.stopped:
            trainer.should_stop = True

    def on_train_epoch_start(self, trainer: lightning.Trainer, module: Any) -> None:
        """Starts the epoch's clock."""
        self._started = time.perf_counter()

    def on_train_batch_end(
        self, trainer: lightning.Trainer, module: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Adds up the loss, and stops at once when it is not finite."""
        loss = float(outputs["loss"])
        if not math.isfinite(loss):
            raise TrainingDiverged(
                f"the loss became {loss} at step {trainer.global_step}: lower "
                f"trainer.learning_rate (now {module.optimization.learning_rate}) or take "
                "trainer.precision=32"
            )
        self._loss_sum += loss
        self._steps += 1
        if trainer.global_step % 10 == 1:
            self.reporter.metrics({"train/loss_step": loss}, trainer.global_step)

    def on_train_epoch_end(self, trainer: lightning.Trainer, module: Any) -> None:
        """Validates, reports, chooses."""
        epoch = trainer.current_epoch + 1
        self.seconds_training += time.perf_counter() - self._started
        loss = float(self._loss_sum) / max(1, self._steps)
        self._loss_sum.zero_()
        self._steps = 0
        values = {
            "train/loss": loss,
            "train/learning_rate": trainer.optimizers[0].param_groups[0]["lr"],
        }
        text = f"epoch {epoch}/{trainer.max_epochs}  loss {loss:.4f}"
        last = epoch == trainer.max_epochs
        if self.validate is None and last:
            with self.averaged.in_place(module.model) if self.averaged else nullcontext():
                self.keep(module.model, math.nan, epoch)
        elif self.validate is not None and (epoch % self.every == 0 or last):
            started = time.perf_counter()
            module.model.eval()
            with self.averaged.in_place(module.model) if self.averaged else nullcontext():
                with torch.inference_mode():
                    scores = dict(self.validate(module.model))
                score = scores[self.monitor]
                if math.isnan(score):
                    raise UndefinedMonitor(
                        f"{self.monitor} is not defined on the validation questions, so it cannot "
                        "choose the weights: take another trainer.monitor (auc, logloss), or a "
                        "split that asks several candidates of a user"
                    )
                if self.smaller_is_better:
                    better = score < self.best_score
                else:
                    better = score > self.best_score
                if better:
                    self.keep(module.model, score, epoch)
            module.model.train()
            seconds = time.perf_counter() - started
            self.seconds_validating += seconds
            self.seconds_validating_here += seconds
            values |= scores
            text += f"  {self.monitor} {score:.4f}  best {self.best_score:.4f} @{self.best_epoch}"
            if self.patience is not None and epoch - self.best_epoch >= self.patience:
                self.stopped = True
                trainer.should_stop = True
        self.reporter.metrics(values, epoch)
        if self.say:
            self.say(f"{text}  {time.perf_counter() - self._started:.1f} s")

    def keep(self, model: nn.Module, score: float, epoch: int) -> None:
        """Remembers these weights as the best."""
        self.best_score, self.best_epoch = score, epoch
        self.best_weights = {
            name: value.detach().clone() for name, value in model.state_dict().items()
        }

    def state_dict(self) -> dict[str, Any]:
        """Everything a resumed run needs to choose as if it had not been interrupted."""
        return {
            "best_score": self.best_score,
            "best_epoch": self.best_epoch,
            "best_weights": self.best_weights,
            "stopped": self.stopped,
            "loss_sum": self._loss_sum.clone(),
            "steps": self._steps,
            "seconds_training": self.seconds_training,
            "seconds_validating": self.seconds_validating,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """See `state_dict`."""
        self.best_score = state_dict["best_score"]
        self.best_epoch = state_dict["best_epoch"]
        self.best_weights = state_dict["best_weights"]
        self.stopped = state_dict["stopped"]
        self._loss_sum = state_dict["loss_sum"].clone()
        self._steps = state_dict["steps"]
        self.seconds_training = state_dict["seconds_training"]
        self.seconds_validating = state_dict["seconds_validating"]


class Position(lightning.Callback):
    """Keeps in the checkpoint where training stands: torch's generator and the next batch.

    (The order of batches is a pure function of seed and epoch, so the loader needs no generator.
    Lightning restores a loader's state in the middle of an epoch, but not at the end of one.)

    Args:
        batches: the training batches.
    """

    def __init__(self, batches: Batches) -> None:
        self.batches = batches
        self._resumed: dict[str, Any] | None = None

    def state_dict(self) -> dict[str, Any]:
        """State of the generators and of the loader."""
        state: dict[str, Any] = {
            "version": CHECKPOINT_VERSION,
            "identity": self.batches.identity(),
            "cpu": torch.get_rng_state(),
            "batches": self.batches.state_dict(),
        }
        if torch.cuda.is_available():
            state["cuda"] = torch.cuda.get_rng_state_all()
        return state

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Kept until training starts, since setting up draws too."""
        self._resumed = state_dict

    def on_train_start(self, trainer: lightning.Trainer, module: Any) -> None:
        """Goes back to where the checkpoint was written."""
        if self._resumed is None:
            return
        torch.set_rng_state(self._resumed["cpu"])
        if "cuda" in self._resumed and torch.cuda.is_available():
            torch.cuda.set_rng_state_all(self._resumed["cuda"])
        self.batches.load_state_dict(self._resumed["batches"])


class KeepLast(lightning.Callback):
    """Writes the checkpoint for resuming: after every epoch, and every so many seconds between.

    Must stand behind the other callbacks, so that it saves what they did.

    Args:
        path: of the checkpoint; replaced whole.
        seconds: between two checkpoints inside an epoch.
    """

    def __init__(self, path: Path, seconds: float = 60.0) -> None:
        self.path = path
        self.seconds = seconds
        self._saved = time.monotonic()

    def save(self, trainer: lightning.Trainer) -> None:
        """Writes aside, then renames."""
        aside = name_aside(self.path)
        try:
            trainer.save_checkpoint(aside)
            sync(aside)
            aside.replace(self.path)
        except BaseException:
            aside.unlink(missing_ok=True)
            raise
        self._saved = time.monotonic()

    def on_train_batch_end(
        self, trainer: lightning.Trainer, module: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Saves when the time has come, except at the end of an epoch, which saves anyway."""
        due = time.monotonic() - self._saved >= self.seconds
        if due and batch_idx + 1 < trainer.num_training_batches:
            self.save(trainer)

    def on_train_epoch_end(self, trainer: lightning.Trainer, module: Any) -> None:
        """Saves."""
        self.save(trainer)
