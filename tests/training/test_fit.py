"""Training learns what is known, chooses well, and resumes to the last digit."""

from __future__ import annotations

import math
import os
import signal
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from recsys.evaluation.ranking import rank
from recsys.histories.batches import TrainingBatches
from recsys.histories.questions import leave_one_out
from recsys.models.next_item.sasrec import SASRec
from recsys.objectives.full_softmax import full_softmax
from recsys.testing import planted_log
from recsys.training.callbacks import TrainingDiverged
from recsys.training.fit import CheckpointError, Fitted, fit
from recsys.training.memory import KERNEL_CACHES
from recsys.training.next_item_task import NextItemTask
from recsys.training.optimizer import Optimization
from recsys.training.precision import Precision


class Killed(Exception):
    """Stands for a process that is gone."""


class Trial:
    """A small training whose pieces a test can look at."""

    def __init__(self, folder: Path, width: int = 8, users: int = 60, seed: int = 0) -> None:
        torch.manual_seed(seed)
        self.store = planted_log(users)
        self.split = leave_one_out(self.store)
        self.model = SASRec(self.store.catalogue_size, 40, width=width, heads=2, dropout=0.2)
        self.batches = TrainingBatches(self.store, self.split.training_ends, 40, 215, seed=seed)
        self.checkpoint = folder / "last.ckpt"
        self.scores: list[float] = []
        self.losses: list[float] = []
        self.reported: list[tuple[int, dict[str, float]]] = []
        self.said: list[str] = []
        self.steps = 0
        self.kill_at: int | None = None
        self.average_weights = 0.0
        self.smaller_is_better = False

    def objective(self, hidden_TD: Tensor, table_VD: Tensor, targets_T: Tensor) -> Tensor:
        self.steps += 1
        if self.steps == self.kill_at:
            raise Killed
        assert self.model.training
        loss = full_softmax(hidden_TD, table_VD, targets_T)
        self.losses.append(loss.item())
        return loss

    def validate(self, model: nn.Module) -> Mapping[str, float]:
        ranking = rank(model, self.store, self.split.validation, filter_seen=False, k=5)  # type: ignore[arg-type]
        score = float((1 / ranking.answers.best).mean())
        self.scores.append(score)
        return {"val/score": score}

    def metrics(self, values: Mapping[str, float], step: int) -> None:
        self.reported.append((step, dict(values)))

    @property
    def epochs(self) -> list[tuple[int, dict[str, float]]]:
        return [(epoch, values) for epoch, values in self.reported if "train/loss" in values]

    def fit(
        self,
        epochs: int,
        resume: Path | None = None,
        patience: int | None = None,
        seconds: float = 0.0,  # a checkpoint after every batch
        every: int = 1,
        precision: Precision = "32",
        refit: int | None = None,  # so many epochs, and nothing is validated
    ) -> Fitted:
        task = NextItemTask(
            self.model,
            self.objective,
            Optimization(3e-3, 0.01, 5, epochs * len(self.batches), "linear", beta2=0.98),
        )
        return fit(
            task,
            self.batches,
            validate=self.validate if refit is None else None,
            monitor="val/score",
            max_epochs=refit or epochs,
            patience=patience,
            validate_every=every,
            precision=precision,
            checkpoint=self.checkpoint,
            resume=resume,
            reporter=self,
            progress=False,
            say=self.said.append,
            checkpoint_seconds=seconds,
            smaller_is_better=self.smaller_is_better,
            average_weights=self.average_weights,
        )


@pytest.mark.parametrize("seconds", [0.0, 1e9], ids=["every batch kept", "every epoch kept"])
@pytest.mark.parametrize("kill_at", [1, 8, 9, 12, 16, 17], ids=lambda n: f"killed at step {n}")
def test_interrupted_and_resumed_equals_uninterrupted(
    tmp_path: Path, kill_at: int, seconds: float
) -> None:
    average = 0.9 if kill_at % 2 else 0.0
    whole = Trial(tmp_path)
    whole.average_weights = average
    steps_per_epoch = len(whole.batches)
    assert steps_per_epoch == 8
    expected = whole.fit(3)

    first = Trial(tmp_path)
    first.checkpoint = tmp_path / "cut.ckpt"
    first.kill_at = kill_at
    first.average_weights = average
    with pytest.raises(Killed):
        first.fit(3, seconds=seconds)
    second = Trial(tmp_path, seed=5)  # other weights, other order: all must come from the file
    second.batches.seed = 0
    second.checkpoint = first.checkpoint
    second.average_weights = average
    if not first.checkpoint.exists():
        assert kill_at == 1 or (kill_at == 8 and seconds)
        with pytest.raises(CheckpointError, match="there is no checkpoint"):
            second.fit(3, resume=first.checkpoint)
        return
    got = second.fit(3, resume=first.checkpoint)
    done = kill_at - 1 if seconds == 0 else (kill_at - 1) // steps_per_epoch * steps_per_epoch
    assert second.steps == 3 * steps_per_epoch - done
    assert first.scores + second.scores == whole.scores
    assert first.epochs + second.epochs == whole.epochs
    assert (got.best_epoch, got.best_score) == (expected.best_epoch, expected.best_score)
    assert len(set(whole.scores)) == 3  # so that equal scores mean something
    last, expected_last = (torch.load(t.checkpoint, weights_only=True) for t in (second, whole))
    for name, value in expected_last["state_dict"].items():
        assert torch.equal(last["state_dict"][name], value), name


def test_same_seed_same_digits(tmp_path: Path) -> None:
    scores = []
    for seed in (0, 0, 1):
        trial = Trial(tmp_path, seed=seed)
        trial.fit(2)
        scores.append(trial.scores)
    assert scores[0] == scores[1] != scores[2]


def test_the_best_weights_are_kept_not_the_last(tmp_path: Path) -> None:
    trial = Trial(tmp_path)
    kept: list[Tensor] = []

    def validate(model: nn.Module) -> Mapping[str, float]:
        assert not model.training
        kept.append(model.item_table().clone())  # type: ignore[operator]
        return {"val/score": [0.1, 0.5, 0.5, 0.4, 0.6][len(kept) - 1]}

    trial.validate = validate  # type: ignore[method-assign]
    fitted = trial.fit(5, patience=2)
    assert (fitted.best_epoch, fitted.best_score, fitted.epochs) == (2, 0.5, 4)
    assert torch.equal(trial.model.item_table(), kept[1])
    assert not torch.equal(kept[1], kept[3])


def test_of_a_loss_the_smallest_is_best(tmp_path: Path) -> None:
    trial = Trial(tmp_path)
    values = iter([0.3, 0.1, 0.2])
    trial.validate = lambda model: {"val/score": next(values)}  # type: ignore[method-assign]
    trial.smaller_is_better = True
    fitted = trial.fit(3)
    assert (fitted.best_epoch, fitted.best_score) == (2, 0.1)


def test_averaged_weights_are_what_is_validated_and_kept(tmp_path: Path) -> None:
    trial = Trial(tmp_path)
    trial.average_weights = 0.5
    steps: list[Tensor] = [trial.model.item_table().detach().clone()]
    validated: list[Tensor] = []
    objective = trial.objective

    def watch(hidden_TD: Tensor, table_VD: Tensor, targets_T: Tensor) -> Tensor:
        steps.append(table_VD.detach().clone())  # before the step: the first one twice
        return objective(hidden_TD, table_VD, targets_T)

    def validate(model: nn.Module) -> Mapping[str, float]:
        validated.append(model.item_table().clone())  # type: ignore[operator]
        return {"val/score": float(len(validated))}

    trial.objective = watch  # type: ignore[method-assign]
    trial.validate = validate  # type: ignore[method-assign]
    trial.fit(2)
    average = steps[0]
    for step, weights in enumerate(steps[2:10]):  # after each step of the first epoch
        decay = min(0.5, (1 + step) / (10 + step))
        average = decay * average + (1 - decay) * weights
    torch.testing.assert_close(validated[0], average)
    assert torch.equal(trial.model.item_table(), validated[1])


def test_every_epoch_is_reported(tmp_path: Path) -> None:
    trial = Trial(tmp_path)
    trial.fit(2)
    (first, one), (second, two) = trial.epochs
    assert (first, second) == (1, 2)
    assert one["train/loss"] == pytest.approx(sum(trial.losses[:8]) / 8)
    assert two["train/loss"] == pytest.approx(sum(trial.losses[8:]) / 8)
    assert [one["val/score"], two["val/score"]] == trial.scores
    # 5 steps of warm-up, then down to nothing at step 16.
    assert one["train/learning_rate"] == pytest.approx(3e-3 * 8 / 11)
    assert two["train/learning_rate"] == 0
    steps = [(step, values) for step, values in trial.reported if "train/loss_step" in values]
    assert steps == [(n, {"train/loss_step": trial.losses[n - 1]}) for n in (1, 11)]
    assert [line.partition("  ")[0] for line in trial.said] == ["epoch 1/2", "epoch 2/2"]


def test_validation_every_other_epoch_and_after_the_last(tmp_path: Path) -> None:
    trial = Trial(tmp_path)
    trial.fit(5, every=2)
    assert [epoch for epoch, values in trial.epochs if "val/score" in values] == [2, 4, 5]
    assert len(trial.scores) == 3


def test_low_precision_is_taken_when_asked_for(tmp_path: Path) -> None:
    trial = Trial(tmp_path)
    seen: set[tuple[bool, torch.dtype]] = set()

    def objective(hidden_TD: Tensor, table_VD: Tensor, targets_T: Tensor) -> Tensor:
        seen.add((torch.is_autocast_enabled(table_VD.device.type), table_VD.dtype))
        return full_softmax(hidden_TD, table_VD, targets_T)

    trial.objective = objective  # type: ignore[method-assign]
    trial.fit(1, precision="bf16")
    assert seen == {(True, torch.float32)}


def test_few_kernels_are_asked_for_before_the_first_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for cache in KERNEL_CACHES:
        monkeypatch.delenv(cache, raising=False)
    trial = Trial(tmp_path)
    kept: set[str | None] = set()

    def objective(hidden_TD: Tensor, table_VD: Tensor, targets_T: Tensor) -> Tensor:
        kept.update(os.environ.get(cache) for cache in KERNEL_CACHES)
        return full_softmax(hidden_TD, table_VD, targets_T)

    trial.objective = objective  # type: ignore[method-assign]
    trial.fit(1)
    assert kept == {"16"}


def test_a_loss_that_is_no_number_stops_at_once(tmp_path: Path) -> None:
    trial = Trial(tmp_path)
    trial.objective = lambda h, table, targets: (h * math.nan).sum()  # type: ignore[method-assign]
    with pytest.raises(TrainingDiverged, match=r"the loss became nan at step 1: lower trainer"):
        trial.fit(2)
    assert not trial.checkpoint.exists()


def test_bad_checkpoints_are_refused_by_name(tmp_path: Path) -> None:
    trial = Trial(tmp_path)
    trial.fit(1)
    broken = tmp_path / "broken.ckpt"
    broken.write_bytes(trial.checkpoint.read_bytes()[:1000])
    with pytest.raises(CheckpointError, match=r"broken\.ckpt is not a whole checkpoint"):
        Trial(tmp_path).fit(1, resume=broken)
    with pytest.raises(CheckpointError, match=r"is of another model: .* has shape .* there and"):
        Trial(tmp_path, width=16).fit(1, resume=trial.checkpoint)


def test_a_checkpoint_of_another_format_is_refused(tmp_path: Path) -> None:
    trial = Trial(tmp_path)
    trial.fit(1)
    state = torch.load(trial.checkpoint, weights_only=True)
    state["callbacks"]["Position"]["version"] = 99
    torch.save(state, trial.checkpoint)
    with pytest.raises(CheckpointError, match="has format version 99, this release reads 1"):
        Trial(tmp_path).fit(2, resume=trial.checkpoint)


class Code:
    """Unpickled, makes a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> tuple[object, ...]:
        return Path.mkdir, (self.folder,)


def test_code_in_a_checkpoint_is_not_run(tmp_path: Path) -> None:
    trial = Trial(tmp_path)
    torch.save({"state_dict": Code(tmp_path / "run")}, trial.checkpoint)
    with pytest.raises(CheckpointError, match="is not a whole checkpoint"):
        trial.fit(1, resume=trial.checkpoint)
    assert not (tmp_path / "run").exists()


def test_a_checkpoint_that_cannot_be_finished_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(path: Path) -> None:
        raise OSError("no space left")

    monkeypatch.setattr("recsys.training.callbacks.sync", full)
    with pytest.raises(OSError, match="no space left"):
        Trial(tmp_path).fit(1)
    assert not list(tmp_path.iterdir())


def test_a_run_that_stopped_early_stays_stopped(tmp_path: Path) -> None:
    trial = Trial(tmp_path)
    falling = iter([0.5, 0.4, 0.3, 0.9, 0.9])
    trial.validate = lambda model: {"val/score": next(falling)}  # type: ignore[method-assign]
    stopped = trial.fit(5, patience=2)
    assert (stopped.best_epoch, stopped.epochs) == (1, 3)
    again = Trial(tmp_path)
    again.validate = trial.validate  # type: ignore[method-assign]
    resumed = again.fit(5, patience=2, resume=trial.checkpoint)
    assert again.steps == 0
    assert resumed == stopped
    for name, value in trial.model.state_dict().items():
        assert torch.equal(again.model.state_dict()[name], value), name


def test_a_finished_run_has_nothing_left_to_do(tmp_path: Path) -> None:
    trial = Trial(tmp_path)
    finished = trial.fit(2)
    again = Trial(tmp_path, seed=5)
    again.batches.seed = 0
    assert again.fit(2, resume=trial.checkpoint) == finished
    assert again.steps == 0
    assert torch.equal(again.model.item_table(), trial.model.item_table())


def test_a_checkpoint_of_other_batches_is_refused(tmp_path: Path) -> None:
    trial = Trial(tmp_path)
    trial.fit(2)
    other = Trial(tmp_path)
    other.batches = TrainingBatches(other.store, other.split.training_ends, 40, 500, seed=0)
    with pytest.raises(
        CheckpointError, match="other batches: batches_per_epoch was 8 and is 4 now"
    ):
        other.fit(2, resume=trial.checkpoint)
    ends = other.split.training_ends
    another = replace(other.store, manifest={"fingerprint": "b"})
    for words, batches in (
        ("seed was 0 and is 7", TrainingBatches(other.store, ends, 40, 215, seed=7)),
        ("max_length was 40 and is 39", TrainingBatches(other.store, ends, 39, 215, seed=0)),
        ("store was '' and is 'b'", TrainingBatches(another, ends, 40, 215, seed=0)),
    ):
        other.batches = batches
        with pytest.raises(CheckpointError, match=f"other batches: {words} now"):
            other.fit(2, resume=trial.checkpoint)
    with pytest.raises(CheckpointError, match=r"has 2 epochs behind it, more than .*max_epochs=1"):
        Trial(tmp_path).fit(1, resume=trial.checkpoint)


def test_checkpoints_hold_nothing_but_tensors_numbers_and_strings(tmp_path: Path) -> None:
    trial = Trial(tmp_path)
    trial.fit(1)
    state = torch.load(trial.checkpoint, weights_only=True)
    assert {"state_dict", "optimizer_states", "loops", "callbacks"} <= state.keys()
    assert [path.name for path in tmp_path.iterdir()] == ["last.ckpt"]


def test_ctrl_c_stays_ctrl_c_and_keeps_the_checkpoint(tmp_path: Path) -> None:
    trial = Trial(tmp_path)

    def interrupted(model: nn.Module) -> Mapping[str, float]:
        if trial.scores:
            raise KeyboardInterrupt
        return Trial.validate(trial, model)

    trial.validate = interrupted  # type: ignore[method-assign]
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        trial.fit(3)
    assert signal.getsignal(signal.SIGINT) is before
    assert trial.checkpoint.exists()
    other = Trial(tmp_path)
    other.fit(3, resume=trial.checkpoint)
    whole = Trial(tmp_path)
    whole.fit(3)
    assert trial.scores + other.scores == whole.scores


@pytest.mark.parametrize("average", [0.0, 0.9])
def test_a_refit_stops_at_the_weights_that_validation_had_chosen(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, average: float
) -> None:
    """On the same rows: the schedule has the same horizon, and validating draws nothing."""
    chosen = Trial(tmp_path / "chosen")
    chosen.average_weights = average
    scores = iter([0.1, 0.5, 0.3, 0.2])
    monkeypatch.setattr(chosen, "validate", lambda model: {"val/score": next(scores)})
    assert chosen.fit(4).best_epoch == 2
    again = Trial(tmp_path / "again")
    again.average_weights = average
    fitted = again.fit(4, refit=2)
    assert (fitted.best_epoch, fitted.epochs, again.scores) == (2, 2, [])
    for name, value in chosen.model.state_dict().items():
        assert torch.equal(value, again.model.state_dict()[name]), name
    assert all("val/score" not in values for _, values in again.reported)
