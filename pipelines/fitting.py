"""From the settings of a run to a trained model: task, batches, and the one call that fits."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipelines.checking import ConfigError
from pipelines.judging import Judge, say, show_progress
from pipelines.own import own_objective, touches_every_row
from pipelines.own_clicks import check_regularised, own_click_objective
from pipelines.schemas import (
    ClickTrainerConfig,
    CrossEntropyConfig,
    FullSoftmaxConfig,
    NextItemModelConfig,
    NextItemTrainerConfig,
    ObjectiveConfig,
    OwnModelConfig,
    OwnObjectiveConfig,
    OwnRankerConfig,
    TrainConfig,
    TrainerConfig,
)

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor, nn

    from pipelines.clicks import ClickJudge
    from recsys.histories.batches import TrainingBatches
    from recsys.histories.click_batches import ClickBatches
    from recsys.training.click_task import ClickTask
    from recsys.training.fit import Fitted
    from recsys.training.next_item_task import NextItemTask, Objective
    from recsys.training.optimizer import Optimization
    from recsys.training.plan import Memory
    from recsys.training.reporting import Reporter

SMALLER_IS_BETTER = (
    "logloss",
    "normalised_entropy",
    "calibration_error",
    "calibration_error_mass",
)


def fit_model(
    config: TrainConfig,
    judge: Judge | ClickJudge,
    model: nn.Module,
    reporter: Reporter,
    folder: Path,
    resume: Path | None,
    *,
    silent: bool = False,
) -> Fitted:
    """Trains `model` in place; the best weights stay in it, of a refit the last.

    Args:
        config: of the run.
        judge: holds the training questions, and asks those of validation.
        model: what is trained.
        reporter: gets losses and metrics.
        folder: where the checkpoint for resuming is kept.
        resume: a checkpoint to go on from, or None.
        silent: say nothing of single epochs.
    """
    from recsys.training.fit import fit

    trainer = config.trainer
    task, batches = task_and_batches(config, judge, model)
    check_memory(trainer, task, batches)

    def validate(trained: nn.Module) -> Mapping[str, float]:
        return judge.ask(trained, "val")[0]  # type: ignore[arg-type]

    return fit(
        task,
        batches,
        validate=validate if config.refit is None else None,
        monitor=judge.name("val", trainer.monitor),
        smaller_is_better=trainer.monitor in SMALLER_IS_BETTER,
        max_epochs=config.refit or trainer.max_epochs,
        patience=trainer.patience,
        validate_every=trainer.validate_every,
        precision=trainer.precision,
        checkpoint=folder / "last.ckpt",
        resume=resume,
        reporter=reporter,
        progress=show_progress(),
        say=None if silent else say,
        checkpoint_seconds=trainer.checkpoint_seconds,
        average_weights=trainer.average_weights,
    )


def check_memory(
    trainer: TrainerConfig, task: NextItemTask | ClickTask, batches: TrainingBatches | ClickBatches
) -> Memory:
    """What training will hold in memory, by part.

    Raises:
        ConfigError: more than there is; naming the largest part and what makes it smaller.
    """
    from recsys.training.plan import available_memory, expected_memory

    memory = expected_memory(task, batches.largest(), trainer.precision, trainer.average_weights)
    free = available_memory()
    if free is not None and memory.total - memory.program > free:
        parts = {name: size for name, size in vars(memory).items() if name != "program"}
        largest = max(parts, key=lambda name: parts[name])
        raise ConfigError(
            f"training needs about {in_mb(memory.total - memory.program)}, and "
            f"{in_mb(free)} of memory are free. Most of it, {in_mb(parts[largest])}, is {largest}: "
            f"{SMALLER[largest]}"
        )
    return memory


SMALLER = {
    "tables": "lower model.width, or leave rare items out with data.item_core",
    "layers": "lower model.width or the number of layers",
    "optimizer": "lower model.width, or leave rare items out with data.item_core",
    "copies": "lower model.width, or take trainer.average_weights=0",
    "logits": "take objective=sampled_softmax, or leave rare items out with data.item_core",
    "activations": "lower trainer.tokens_per_batch (trainer.rows_per_batch of rankers), "
    "model.max_length or the objective's negatives",
}


def memory_lines(memory: Memory) -> list[str]:
    """A line for each part, and the sum."""
    sizes = {**vars(memory), "in all": memory.total}
    parts = [f"  {name:12} {in_mb(size):>12}" for name, size in sizes.items()]
    return ["expected memory of training (validation and baselines not counted)", *parts]


def in_mb(size: int) -> str:
    """Bytes for people.

    >>> in_mb(1_234_000_000)
    '1,234 MB'
    """
    return f"{size / 1e6:,.0f} MB"


def task_and_batches(
    config: TrainConfig, judge: Judge | ClickJudge, model: nn.Module
) -> tuple[NextItemTask | ClickTask, TrainingBatches | ClickBatches]:
    """What one step does, and what it is done with."""
    if isinstance(judge, Judge):
        return _next_item(config, judge, model)
    return _clicks(config, judge, model)


def _next_item(
    config: TrainConfig, judge: Judge, model: nn.Module
) -> tuple[NextItemTask, TrainingBatches]:
    from recsys.histories.batches import TrainingBatches
    from recsys.training.next_item_task import NextItemTask
    from recsys.training.touched_rows import touched_tables

    trainer = config.trainer
    assert isinstance(trainer, NextItemTrainerConfig)
    scored: Any = model
    batches = TrainingBatches(
        judge.store,
        judge.split.training_ends,
        scored.max_length,
        trainer.tokens_per_batch,
        config.seed,
        trainer.minimum_batches,
        trainer.windows,
    )
    choose_rows(config, model)
    touched = any(table is scored.item_table() for table in touched_tables(model).values())
    objective = make_objective(config.objective, training_events_of_items(judge), touched)
    return NextItemTask(model, objective, optimization_of(trainer, len(batches))), batches


def _clicks(
    config: TrainConfig, judge: ClickJudge, model: nn.Module
) -> tuple[ClickTask, ClickBatches]:
    from recsys.objectives.clicks import MiniBatchAware, OccurrenceDecay, binary_cross_entropy
    from recsys.training.click_task import ClickTask

    objective, own = config.objective, config.model
    batches = click_batches(config, judge)
    choose_rows(config, model)
    how = optimization_of(config.trainer, len(batches))
    if isinstance(objective, OwnObjectiveConfig):
        return ClickTask(model, own_click_objective(objective), None, how), batches
    assert isinstance(objective, CrossEntropyConfig)
    penalty: nn.Module | None = None
    if isinstance(own, OwnRankerConfig):
        check_regularised(own, model, objective)
    if objective.l2 > 0:
        penalty = OccurrenceDecay(objective.l2)
    elif objective.mini_batch_aware > 0:
        penalty = MiniBatchAware(objective.mini_batch_aware, occurrences_of_items(judge))
    return ClickTask(model, binary_cross_entropy, penalty, how), batches


def choose_rows(config: TrainConfig, model: nn.Module) -> None:
    """Marks the tables of which a step moves the touched rows only.

    Raises:
        ValueError: the objective touches every row, and touched rows were asked for.
    """
    from recsys.training.touched_rows import choose_row_updates

    every_row = isinstance(config.objective, FullSoftmaxConfig)
    if isinstance(config.objective, OwnObjectiveConfig) and isinstance(
        config.model, NextItemModelConfig
    ):
        every_row = touches_every_row(config.objective)
        if every_row and config.trainer.row_updates == "touched":
            raise ConfigError(
                f"trainer.row_updates=touched does not go with {config.objective.class_path}, "
                "which takes no touched_rows: its gradient holds every row of the item table; take "
                "trainer.row_updates=auto"
            )
    if isinstance(config.model, OwnModelConfig) and config.trainer.row_updates == "auto":
        # A table that is computed hands its gradient on to every row.
        own: Any = model
        table = own.item_table()
        every_row = every_row or all(table is not parameter for parameter in model.parameters())
    if isinstance(config.model, OwnRankerConfig) and config.trainer.row_updates == "auto":
        every_row = True  # nobody knows what else it does with its tables
    choose_row_updates(model, config.trainer.row_updates, every_row)


def click_batches(config: TrainConfig, judge: ClickJudge) -> ClickBatches:
    """The training batches of a ranker."""
    from recsys.histories.click_batches import ClickBatches

    trainer = config.trainer
    assert isinstance(trainer, ClickTrainerConfig)
    return ClickBatches(
        judge.split,
        judge.columns,
        judge.max_length,
        trainer.rows_per_batch,
        config.seed,
        trainer.minimum_batches,
    )


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


def make_objective(
    config: ObjectiveConfig, item_counts_V: np.ndarray, touched_rows: bool = False
) -> Objective:
    """What a next-item model is trained for.

    Args:
        config: its name and numbers.
        item_counts_V: training events of each item, for drawing negatives.
        touched_rows: the item table's gradient holds touched rows only; not of the exact softmax.

    Raises:
        ValueError: a number out of range, named.
    """
    import torch

    from recsys.objectives.bce import BCE
    from recsys.objectives.bpr import BPR
    from recsys.objectives.full_softmax import full_softmax
    from recsys.objectives.gbce import GBCE
    from recsys.objectives.sampled_softmax import SampledSoftmax

    if isinstance(config, FullSoftmaxConfig):
        assert not touched_rows
        return full_softmax
    if isinstance(config, OwnObjectiveConfig):
        return own_objective(config, item_counts_V, touched_rows)
    kinds = {"sampled_softmax": SampledSoftmax, "gbce": GBCE, "bce": BCE, "bpr": BPR}
    arguments = asdict(config)
    objective: Objective = kinds[arguments.pop("name")](
        torch.from_numpy(item_counts_V), **arguments, touched_rows=touched_rows
    )
    return objective


def training_events_of_items(judge: Judge) -> np.ndarray:
    """int64 [V]: training events of each item."""
    import numpy as np

    from recsys.models.baselines.popularity import training_events

    store = judge.store
    events = training_events(store.offsets, judge.split.training_ends)
    return np.bincount(store.items[events], minlength=store.catalogue_size)


def occurrences_of_items(judge: ClickJudge) -> Tensor:
    """Tensor [V]: how often each item occurs in the training questions, with the histories."""
    import numpy as np
    import torch

    view, training = judge.split.view, judge.split.training_questions(0)
    # A history is a slice of the view: +1 where it begins, −1 where it ends, summed along the view.
    ends = view.offsets[training.users] + training.history_ends
    begins = ends - np.minimum(training.history_ends, judge.max_length)
    steps = np.bincount(begins, minlength=len(view.items) + 1) - np.bincount(
        ends, minlength=len(view.items) + 1
    )
    size = judge.store.catalogue_size
    counts = np.bincount(view.items, weights=np.cumsum(steps)[:-1], minlength=size)
    counts += np.bincount(training.candidates, minlength=size)
    return torch.from_numpy(counts)
