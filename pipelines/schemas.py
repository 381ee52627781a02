"""What every command can be told: one dataclass for one config group, its values in `conf/`.

Fields have no defaults here: the one place for a value is its YAML file. A model takes the fields
of its group, without `name`, as constructor arguments; `tests/pipelines/test_config.py` holds the
two equal. To add a choice to a group, write its dataclass with its own `name: Literal[...]` and
join it with `|`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class ColumnsConfig:
    """The names of the log's columns.

    Attributes:
        user: who.
        item: what.
        time: when; null for logs that only have an order.
        order: the position of an event in its user's history; null orders by time.
        rating: a number; null if the log has none.
        label: 0 or 1, clicked or not; null if the log has none.
    """

    user: str
    item: str
    time: str | None
    order: str | None
    rating: str | None
    label: str | None


@dataclass(frozen=True)
class DataConfig:
    """A log and how it is cleaned.

    Attributes:
        name: of the store.
        source: a public data set that is fetched; null reads `path`.
        path: a file or a glob; with a `source`, a local copy of its canonical table.
        columns: the names of the log's columns.
        time_unit: of whole-number times.
        deduplicate: "exact" rows, or keep the "first" or "last" event of a user with an item.
        user_core: drop users with fewer events than this, and again until nothing changes.
        item_core: the same for items.
        minimum_rating: drop events rated lower.
        positive_only: drop events whose label is 0.
        drop_consecutive_repeats: drop an event on the same item as the one before it.
        time_from: ISO date or time; drop earlier events.
        time_until: ISO date or time; drop events from then on.
        max_bad_share: stop if more than this share of the rows is unusable.
        repeats: whether an item of the history may be the right answer again (groceries, music).
        verify: read every source again to see that it is unchanged, whatever its size and date say.
    """

    name: str
    source: str | None
    path: str | None
    columns: ColumnsConfig
    time_unit: Literal["auto", "s", "ms", "us"]
    deduplicate: Literal["off", "exact", "first", "last"]
    user_core: int
    item_core: int
    minimum_rating: float | None
    positive_only: bool
    drop_consecutive_repeats: bool
    time_from: str | None
    time_until: str | None
    max_bad_share: float
    repeats: bool
    verify: bool


@dataclass(frozen=True)
class LeaveOneOutConfig:
    """The last event of every user is the test, the one before it the validation question.

    Attributes:
        name: of the protocol.
        validation_users: "all", or how many users (drawn by seed) give their validation answer;
            the others' goes into training.
        seed: of that draw; not the run's seed, so that runs of several seeds answer the same
            questions.
    """

    name: Literal["loo"]
    validation_users: int | Literal["all"]
    seed: int


SplitConfig = LeaveOneOutConfig


@dataclass(frozen=True)
class SASRecConfig:
    """`recsys.models.next_item.sasrec.SASRec`, whose docstring explains the fields."""

    name: Literal["sasrec"]
    max_length: int
    width: int
    heads: int
    layers: int
    dropout: float
    attention_dropout: float
    embedding_scale: float | None
    feedforward: int
    activation: Literal["relu", "gelu"]
    norm: Literal["input", "pre", "post"]
    positions: Literal["newest", "oldest"]
    combine_heads: Literal["concatenate", "average"]
    parameter_groups: int | None
    tied_output: bool
    initial_scale: float


ModelConfig = SASRecConfig


@dataclass(frozen=True)
class FullSoftmaxConfig:
    """`recsys.objectives.full_softmax`: exact softmax over the whole catalogue."""

    name: Literal["full_softmax"]


ObjectiveConfig = FullSoftmaxConfig


@dataclass(frozen=True)
class TrainerConfig:
    """How long and how fast to train.

    Attributes:
        max_epochs: at most so many passes over the training histories.
        patience: stop after so many epochs without a better validation; null never stops early.
        validate_every: epochs between validations.
        monitor: the validation metric that chooses the weights, such as ndcg_10.
        tokens_per_batch: events in a batch.
        minimum_batches: steps an epoch has at least; on small logs batches are smaller then.
        learning_rate: of AdamW, at its peak.
        weight_decay: of AdamW; embeddings, biases and norms are spared.
        warmup_steps: until the learning rate is reached; at most a tenth of all steps.
        schedule: constant, or falling to zero over max_epochs: linear, cosine.
        precision: "auto" takes bf16 where the machine has it in hardware.
        checkpoint_seconds: between two checkpoints inside an epoch.
    """

    max_epochs: int
    patience: int | None
    validate_every: int
    monitor: str
    tokens_per_batch: int
    minimum_batches: int
    learning_rate: float
    weight_decay: float
    warmup_steps: int
    schedule: Literal["constant", "linear", "cosine"]
    precision: Literal["auto", "32", "bf16"]
    checkpoint_seconds: float


@dataclass(frozen=True)
class EvaluationConfig:
    """What is measured.

    Attributes:
        ks: cut-offs of the metrics.
        filter_seen: leave items of the question's own history out of the candidates.
        tie_seed: of the order among equal scores.
        baselines: also fit, tune and judge the baselines.
    """

    ks: list[int]
    filter_seen: bool
    tie_seed: int
    baselines: bool


@dataclass(frozen=True)
class TrackingConfig:
    """Where MLflow keeps the run.

    Attributes:
        experiment: its name.
        uri: of the tracking server or database; null: `mlflow.db` in the project's root folder.
    """

    experiment: str
    uri: str | None


@dataclass(frozen=True)
class IngestConfig:
    """Settings of `python -m pipelines.ingest`.

    Attributes:
        data: the log and how it is cleaned.
        result: a file for the final table as JSON.
    """

    data: DataConfig
    result: str | None


@dataclass(frozen=True)
class TrainConfig:
    """Settings of `python -m pipelines.train`.

    Attributes:
        data: the log and how it is cleaned.
        split: which events are questions.
        model: what is trained.
        objective: what it is trained for.
        trainer: how it is trained.
        evaluation: what is measured.
        tracking: where the run is kept.
        seed: of everything random.
        name: of the run; null makes one up.
        resume: a run id, which goes on with that run's own settings, or a checkpoint file.
        result: a file for the final table as JSON.
    """

    data: DataConfig
    split: SplitConfig
    model: ModelConfig
    objective: ObjectiveConfig
    trainer: TrainerConfig
    evaluation: EvaluationConfig
    tracking: TrackingConfig
    seed: int
    name: str | None
    resume: str | None
    result: str | None


@dataclass(frozen=True)
class EvaluateConfig:
    """Settings of `python -m pipelines.evaluate`.

    Attributes:
        run: the id of a tracked run, or "latest".
        data: another store with the same items; null takes the run's own.
        split: another split; null takes the run's own.
        evaluation: what is measured.
        tracking: where the run is kept.
        result: a file for the final table as JSON.
    """

    run: str
    data: DataConfig | None
    split: SplitConfig | None
    evaluation: EvaluationConfig
    tracking: TrackingConfig
    result: str | None
