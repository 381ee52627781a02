"""What every command can be told: one dataclass for one config group, its values in `conf/`.

Fields have no defaults here, but where the settings of runs recorded earlier lack them: the one
place for a value is its YAML file. A model takes the fields of its group, without `name`, as
constructor arguments; `tests/pipelines/test_config.py` holds the two equal. To add a choice to a
group, write its dataclass with its own `name: Literal[...]` and join it with `|`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

# What one's own classes and functions may be given.
Argument = bool | int | float | str | list[int] | list[float] | list[str] | None


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


Entity = Literal["user", "item", "event", "context"]


@dataclass(frozen=True)
class CategoricalConfig:
    """`recsys.histories.features.Categorical`, whose docstring explains the fields.

    Entries of `data.features` may leave out what has a default here: there is no file that says
    it once for all of them.
    """

    kind: Literal["categorical"]
    of: Entity
    column: str
    minimum_count: int = 1


@dataclass(frozen=True)
class MultiValuedConfig:
    """`recsys.histories.features.MultiValued`."""

    kind: Literal["multi"]
    of: Entity
    column: str
    minimum_count: int = 1
    separator: str = "|"


@dataclass(frozen=True)
class HashedConfig:
    """`recsys.histories.features.Hashed`."""

    kind: Literal["hashed"]
    of: Entity
    column: str
    buckets: int


@dataclass(frozen=True)
class NumericConfig:
    """`recsys.histories.features.Numeric`."""

    kind: Literal["numeric"]
    of: Entity
    column: str


@dataclass(frozen=True)
class QuantileConfig:
    """`recsys.histories.features.Quantile`."""

    kind: Literal["quantile"]
    of: Entity
    column: str
    buckets: int = 10


@dataclass(frozen=True)
class RecencyConfig:
    """`recsys.histories.features.Recency`."""

    kind: Literal["recency"]
    buckets: int = 24


@dataclass(frozen=True)
class HourOfWeekConfig:
    """`recsys.histories.features.HourOfWeek`."""

    kind: Literal["hour_of_week"]
    of: Literal["event", "context"]


FeatureConfig = (
    CategoricalConfig
    | MultiValuedConfig
    | HashedConfig
    | NumericConfig
    | QuantileConfig
    | RecencyConfig
    | HourOfWeekConfig
)


@dataclass(frozen=True)
class ImpressionColumnsConfig:
    """The names of the impression log's columns.

    Attributes:
        user: who was shown the item.
        item: what was shown.
        time: when.
        label: 0 or 1, clicked or not.
        request: which candidates were shown together; null if the log does not say.
    """

    user: str = "user"
    item: str = "item"
    time: str = "time"
    label: str = "label"
    request: str | None = "request"


@dataclass(frozen=True)
class ImpressionsConfig:
    """A log of what was shown, one row a candidate.

    Attributes:
        path: a file or a glob.
        columns: the names of its columns.
    """

    path: str
    columns: ImpressionColumnsConfig = field(default_factory=ImpressionColumnsConfig)


@dataclass(frozen=True)
class DataConfig:
    """A log and how it is cleaned.

    Attributes:
        name: of the store.
        source: a public data set that is fetched; null reads `path`.
        path: a file or a glob; with a `source`, a local copy of its canonical table.
        class_path: a function of one's own package that gives the log, such as mypackage.logs.sales
            (docs/extending.md), in place of a path.
        arguments: what it is called with.
        columns: the names of the log's columns.
        users: a table with a row a user, for features; null: none, or the source's own.
        users_key: its column with the user id; null: named as in the log.
        items: a table with a row an item, for features; null: none, or the source's own.
        items_key: its column with the item id; null: named as in the log.
        features: by name: what models may know of users, items, events and the question's context.
        impressions: a second log, of what was shown; null: the log's own events are the candidates.
        label_from_rating: label 1 from this rating on, for logs without a column of labels.
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
    users: str | None
    users_key: str | None
    items: str | None
    items_key: str | None
    features: dict[str, FeatureConfig]
    impressions: ImpressionsConfig | None
    label_from_rating: float | None
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
    class_path: str | None = None
    arguments: dict[str, Argument] = field(default_factory=dict)


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


@dataclass(frozen=True)
class ShareConfig:
    """The newest events of every user are the test, as many before them validation.

    Attributes:
        name: of the protocol.
        share: of the user's events, rounded up, for each of the two.
    """

    name: Literal["share"]
    share: float


@dataclass(frozen=True)
class TimeConfig:
    """Two moments cut all histories: training, validation, test.

    Attributes:
        name: of the protocol.
        validation_cut: a share of the events in time order, such as 0.8, or a moment (ISO 8601).
        test_cut: the same, later.
        target: which events after a cut are answers: each user's "last", "first", "all" together,
            or "successive", one question each.
        new_users: whether users without events before a cut are asked too.
        test_until: where the test ends, as the cuts are said; null: with the log.
    """

    name: Literal["time"]
    validation_cut: float | str
    test_cut: float | str
    target: Literal["last", "first", "all", "successive"]
    new_users: Literal["asked", "left_out"]
    test_until: float | str | None = None


SplitConfig = LeaveOneOutConfig | ShareConfig | TimeConfig


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


@dataclass(frozen=True)
class DINConfig:
    """`recsys.models.click.din.DIN`, whose docstring explains the fields."""

    name: Literal["din"]
    max_length: int
    width: int
    field_width: int
    heads: int
    layers: int
    parameter_groups: int | None
    score: Literal["additive", "dot", "bilinear"]
    normalize: Literal["none", "softmax", "sigmoid"]
    scale_by_length: bool
    combine_heads: Literal["concatenate", "average"]
    attention_units: int | None
    hidden: list[int]
    activation: Literal["relu", "sigmoid", "prelu", "dice"]
    dropout: float
    embedding_dropout: float
    biases: bool
    initial_scale: float


@dataclass(frozen=True)
class MeanPoolingConfig:
    """`recsys.models.click.mean_pooling.MeanPooling`, whose docstring explains the fields."""

    name: Literal["mean_pooling"]
    max_length: int
    width: int
    field_width: int
    hidden: list[int]
    activation: Literal["relu", "sigmoid", "prelu", "dice"]
    dropout: float
    embedding_dropout: float
    biases: bool
    initial_scale: float


@dataclass(frozen=True)
class LogisticRegressionConfig:
    """`recsys.models.click.logistic_regression.LogisticRegression`."""

    name: Literal["logistic_regression"]
    max_length: int


@dataclass(frozen=True)
class OwnModelConfig:
    """A next-item model of one's own package (docs/extending.md).

    Attributes:
        name: of the choice.
        class_path: of a class, such as mypackage.models.GRU.
        arguments: of its constructor, beside `catalogue_size`.
    """

    name: Literal["own"]
    class_path: str
    arguments: dict[str, Argument]


@dataclass(frozen=True)
class OwnRankerConfig:
    """A ranker, which is asked about clicks, of one's own package (docs/extending.md).

    Attributes:
        name: of the choice.
        class_path: of a class, such as mypackage.rankers.Interest.
        arguments: of its constructor, beside `catalogue_size` and the sizes of the fields.
    """

    name: Literal["own_ranker"]
    class_path: str
    arguments: dict[str, Argument]


OwnClassConfig = OwnModelConfig | OwnRankerConfig
NextItemModelConfig = SASRecConfig | OwnModelConfig
RankerConfig = DINConfig | MeanPoolingConfig | LogisticRegressionConfig | OwnRankerConfig
ModelConfig = (
    SASRecConfig
    | OwnModelConfig
    | DINConfig
    | MeanPoolingConfig
    | LogisticRegressionConfig
    | OwnRankerConfig
)


@dataclass(frozen=True)
class NextItemConfig:
    """Which item comes next?"""

    name: Literal["next_item"]


@dataclass(frozen=True)
class ClicksConfig:
    """Will this user take this candidate?

    Attributes:
        name: of the kind of question.
        history: what makes a history: the earlier "positives", all earlier "events", with their
            labels as behaviour, or "none", to see what histories are worth.
        skip_first: events at the start of each history that are no training questions.
        negatives_per_positive: sampled for a log that holds positives only; null samples none.
        sampling: "uniform" over the catalogue, or by "popularity" in training.
        user_id: whether the user as such is a field.
        seed: of the sampled negatives; not the run's seed, so that runs of
            several seeds answer the same questions.
    """

    name: Literal["clicks"]
    history: Literal["positives", "events", "none"]
    skip_first: int
    negatives_per_positive: int | None
    sampling: Literal["uniform", "popularity"]
    user_id: bool
    seed: int


QuestionsConfig = NextItemConfig | ClicksConfig


@dataclass(frozen=True)
class FullSoftmaxConfig:
    """`recsys.objectives.full_softmax`: exact softmax over the whole catalogue."""

    name: Literal["full_softmax"]


@dataclass(frozen=True)
class SampledSoftmaxConfig:
    """`recsys.objectives.sampled_softmax.SampledSoftmax`, whose docstring explains the fields."""

    name: Literal["sampled_softmax"]
    negatives: int
    sampling: Literal["uniform", "popularity", "batch"]
    shared_negatives: bool
    temperature: float


@dataclass(frozen=True)
class GBCEConfig:
    """`recsys.objectives.gbce.GBCE`, whose docstring explains the fields."""

    name: Literal["gbce"]
    negatives: int
    t: float
    shared_negatives: bool


@dataclass(frozen=True)
class BCEConfig:
    """`recsys.objectives.bce.BCE`, whose docstring explains the fields."""

    name: Literal["bce"]
    negatives: int
    sampling: Literal["uniform", "popularity", "batch"]
    shared_negatives: bool


@dataclass(frozen=True)
class BPRConfig:
    """`recsys.objectives.bpr.BPR`, whose docstring explains the fields."""

    name: Literal["bpr"]
    negatives: int
    sampling: Literal["uniform", "popularity", "batch"]
    shared_negatives: bool


@dataclass(frozen=True)
class CrossEntropyConfig:
    """Binary cross-entropy of clicks; `recsys.objectives.clicks` explains the regularisers.

    Attributes:
        name: of the objective.
        l2: weight of `OccurrenceDecay`.
        mini_batch_aware: weight of `MiniBatchAware`, DIN's own.
    """

    name: Literal["cross_entropy"]
    l2: float
    mini_batch_aware: float


@dataclass(frozen=True)
class OwnObjectiveConfig:
    """An objective of one's own package (docs/extending.md).

    Attributes:
        name: of the choice.
        class_path: of a function of (hidden_TD, table_VD, targets_T), of clicks one of
            (logits_B, labels_B), or of a class of such.
        arguments: of the function, beside these, or of the class.
    """

    name: Literal["own"]
    class_path: str
    arguments: dict[str, Argument]


ObjectiveConfig = (
    FullSoftmaxConfig
    | OwnObjectiveConfig
    | SampledSoftmaxConfig
    | GBCEConfig
    | BCEConfig
    | BPRConfig
    | CrossEntropyConfig
)


@dataclass(frozen=True)
class NextItemTrainerConfig:
    """How long and how fast to train a next-item model.

    Attributes:
        name: of the kind of question.
        max_epochs: at most so many passes over the training histories.
        patience: stop after so many epochs without a better validation; null never stops early.
        validate_every: epochs between validations.
        monitor: the validation metric that chooses the weights, such as ndcg_10.
        tokens_per_batch: events in a batch.
        minimum_batches: steps an epoch has at least; on small logs batches are smaller then.
        windows: of histories longer than the model sees: the "newest" window only, or "all" of
            their events, in windows that begin elsewhere each epoch. Runs recorded before there was
            a choice took the newest.
        learning_rate: of AdamW, at its peak.
        weight_decay: of AdamW; embeddings, biases and norms are spared.
        warmup_steps: until the learning rate is reached; at most a tenth of all steps.
        schedule: constant, or falling to zero over max_epochs: linear, cosine.
        beta2: of AdamW: how long it remembers the size of gradients.
        precision: "auto" takes bf16 where the machine has it in hardware.
        checkpoint_seconds: between two checkpoints inside an epoch.
        average_weights: decay of the moving average of the weights that is validated and kept;
            0 takes the weights as they are.
        row_updates: which rows of embedding tables a step moves: "all"; "touched" by the batch, in
            a time that does not grow with the catalogue; "auto": touched rows of tables with more
            than 200,000 rows, unless the objective is full_softmax. Runs recorded before there was
            a choice moved all.
    """

    name: Literal["next_item"]
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
    beta2: float
    precision: Literal["auto", "32", "bf16"]
    checkpoint_seconds: float
    average_weights: float
    row_updates: Literal["auto", "all", "touched"] = "all"
    windows: Literal["all", "newest"] = "newest"


@dataclass(frozen=True)
class ClickTrainerConfig:
    """How long and how fast to train a ranker.

    Attributes:
        name: of the kind of question.
        max_epochs: at most so many passes over the training questions.
        patience: stop after so many epochs without a better validation; null never stops early.
        validate_every: epochs between validations.
        monitor: the validation metric that chooses the weights, such as auc, gauc or logloss.
        rows_per_batch: questions in a batch.
        minimum_batches: steps an epoch has at least; on small logs batches are smaller then.
        learning_rate: of AdamW, at its peak.
        weight_decay: of AdamW; embeddings, biases and norms are spared.
        warmup_steps: until the learning rate is reached; at most a tenth of all steps.
        schedule: constant, or falling to zero over max_epochs: linear, cosine.
        beta2: of AdamW: how long it remembers the size of gradients.
        precision: "auto" takes bf16 where the machine has it in hardware.
        checkpoint_seconds: between two checkpoints inside an epoch.
        average_weights: decay of the moving average of the weights that is validated and kept;
            0 takes the weights as they are.
        row_updates: which rows of embedding tables a step moves: "all"; "touched" by the batch, in
            a time that does not grow with the catalogue; "auto": touched rows of tables with more
            than 200,000 rows, unless the objective is full_softmax. Runs recorded before there was
            a choice moved all.
    """

    name: Literal["clicks"]
    max_epochs: int
    patience: int | None
    validate_every: int
    monitor: str
    rows_per_batch: int
    minimum_batches: int
    learning_rate: float
    weight_decay: float
    warmup_steps: int
    schedule: Literal["constant", "linear", "cosine"]
    beta2: float
    precision: Literal["auto", "32", "bf16"]
    checkpoint_seconds: float
    average_weights: float
    row_updates: Literal["auto", "all", "touched"] = "all"


TrainerConfig = NextItemTrainerConfig | ClickTrainerConfig


@dataclass(frozen=True)
class FullCandidatesConfig:
    """The whole catalogue is ranked."""

    name: Literal["full"]


@dataclass(frozen=True)
class SampledCandidatesConfig:
    """`recsys.evaluation.candidates.sampled`: the answers among items that the user never had.

    Attributes:
        name: of the candidates.
        count: items drawn for each question.
        sampling: "uniform" over the catalogue, or by "popularity" in training.
        seed: of the draw.
    """

    name: Literal["sampled"]
    count: int
    sampling: Literal["uniform", "popularity"]
    seed: int


@dataclass(frozen=True)
class GivenCandidatesConfig:
    """`recsys.evaluation.candidates.given`: lists from a file.

    Attributes:
        name: of the candidates.
        path: a Parquet file with the columns user and item.
    """

    name: Literal["given"]
    path: str


CandidatesConfig = FullCandidatesConfig | SampledCandidatesConfig | GivenCandidatesConfig


@dataclass(frozen=True)
class EvaluationConfig:
    """What is measured of next-item questions.

    Attributes:
        name: of the kind of question.
        ks: cut-offs of the metrics.
        filter_seen: leave items of the question's own history out of the candidates.
        tie_seed: of the order among equal scores.
        baselines: also fit, tune and judge the baselines.
        cohorts: parts in which the test is also looked at: history_length, recency, popularity,
            repeat, or user.COLUMN and item.COLUMN of the data's features.
        genres: the item column, such as item.genres, behind diversity and calibration; null leaves
            them out.
        resamples: draws of users behind each interval; 0 gives none.
        tie_orders: other orders of events of equal time in which the model is asked again, to see
            how far its metrics hang on the order of a file.
        explained_users: a sample whose histories and lists `explain.html` shows; 0 leaves it out.
        metrics: functions of one's own package that are measured too, more being better, such as
            [mypackage.metrics.reach] (docs/extending.md).
    """

    name: Literal["next_item"]
    ks: list[int]
    filter_seen: bool
    tie_seed: int
    baselines: bool
    cohorts: list[str] = field(default_factory=list)
    genres: str | None = None
    resamples: int = 0
    tie_orders: int = 0
    explained_users: int = 0
    metrics: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class ClickEvaluationConfig:
    """What is measured of click questions.

    Attributes:
        name: of the kind of question.
        ks: cut-offs of the metrics per request, where the log has requests.
        gauc_weighting: of a user's AUC: by "impressions", "clicks", or all "users" alike.
        calibration_bins: of the expected calibration error.
        baselines: also train and judge the baselines.
        cohorts: parts in which the test is also looked at: history_length, recency, popularity,
            repeat, or user.COLUMN and item.COLUMN of the data's features.
        resamples: draws of users behind each interval; 0 gives none.
        explained_users: a sample whose histories and candidates `explain.html` shows; 0 leaves it
            out.
        metrics: functions of one's own package that are measured too, more being better, such as
            [mypackage.metrics.profit] (docs/extending.md).
    """

    name: Literal["clicks"]
    ks: list[int]
    gauc_weighting: Literal["impressions", "clicks", "users"]
    calibration_bins: int
    baselines: bool
    cohorts: list[str] = field(default_factory=list)
    resamples: int = 0
    explained_users: int = 0
    metrics: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class AuditConfig:
    """Shares beyond which a split is refused; null allows any. `recsys.histories.audit` has them.

    Attributes:
        future: training events later than a test question, over all pairs of the two.
        future_questions: test questions with any training event that is not earlier.
        duplicates: answers whose user, item and time stand in the same user's training too.
        ties: answers at the very time of another event of the user.
        cold_users: test questions of users without training events.
        cold_items: answers that no training event holds.
        repeats: answers that the history holds already.
    """

    future: float | None = None
    future_questions: float | None = None
    duplicates: float | None = None
    ties: float | None = None
    cold_users: float | None = None
    cold_items: float | None = None
    repeats: float | None = None


NO_AUDIT = AuditConfig()


@dataclass(frozen=True)
class TrackingConfig:
    """Where MLflow keeps the run.

    Attributes:
        experiment: its name.
        uri: of the tracking server or database; null: `mlflow.db` in the project's root folder.
        system_metrics: also keep the machine's load and memory over the run, a look every 5 s.
    """

    experiment: str
    uri: str | None
    system_metrics: bool = False


@dataclass(frozen=True)
class IngestConfig:
    """Settings of `python -m pipelines.ingest`.

    Attributes:
        data: the log and how it is cleaned.
        split: which events would be questions: what the split audit looks at.
        questions: the kind it audits; null: next items, and where the log has labels or impressions
            clicks are reported too, without thresholds.
        audit: what the split may look like.
        result: a file for the final table as JSON.
    """

    data: DataConfig
    split: SplitConfig
    questions: QuestionsConfig | None
    audit: AuditConfig
    result: str | None


@dataclass(frozen=True)
class TrainConfig:
    """Settings of `python -m pipelines.train`.

    Attributes:
        data: the log and how it is cleaned.
        split: which events are questions.
        questions: what is asked: the next item, or clicks.
        model: what is trained.
        objective: what it is trained for.
        trainer: how it is trained.
        evaluation: what is measured.
        tracking: where the run is kept.
        seed: of everything random.
        name: of the run; null makes one up.
        resume: a run id, which goes on with that run's own settings, or a checkpoint file.
        plan: only say what training would take: memory by part, and time from a short probe.
        result: a file for the final table as JSON.
        candidate_set: what a question lets a model choose from.
        audit: what the split may look like.
        register: name in the registry, of which the finished model becomes a version.
        trusted_modules: with resume=RUN_ID: packages beside recsys whose code that run may use.
        refit: train on training + validation together, for exactly so many epochs, such as a run
            before found best; nothing is chosen then. The learning rate falls over
            trainer.max_epochs, as in that run.
    """

    data: DataConfig
    split: SplitConfig
    questions: QuestionsConfig
    model: ModelConfig
    objective: ObjectiveConfig
    trainer: TrainerConfig
    evaluation: EvaluationConfig | ClickEvaluationConfig
    tracking: TrackingConfig
    seed: int
    name: str | None
    resume: str | None
    result: str | None
    plan: bool = False
    candidate_set: CandidatesConfig = FullCandidatesConfig("full")
    audit: AuditConfig = NO_AUDIT
    register: str | None = None
    trusted_modules: list[str] = field(default_factory=list)
    refit: int | None = None


@dataclass(frozen=True)
class BacktestConfig(TrainConfig):
    """Settings of `python -m pipelines.backtest`: those of train, and the cuts.

    Attributes:
        seed: of everything random.
        name: of the run; null makes one up.
        resume: not of use here.
        result: a file for the table as JSON.
        plan: not of use here.
        register: not of use here.
        trusted_modules: not of use here.
        refit: not of use here.
        cuts: two or more moments, as shares of the events or ISO dates. Between each two that
            follow each other lies a window; a model is trained on what comes before one window,
            chosen on it, and asked about the next.
        retrained: train a model for each window.
        frozen: ask the first model about all later windows.
    """

    cuts: list[float | str] = field(default_factory=list)
    retrained: bool = True
    frozen: bool = True


@dataclass(frozen=True)
class SearchConfig:
    """Which values of a setting are tried: some choices, or everything from low to high.

    Attributes:
        choices: the values.
        low: the least value.
        high: the greatest value.
        log: whether values are drawn evenly by their magnitude, as of learning rates.
        step: between two values, from low on.
    """

    choices: list[Argument] | None = None  # lists among them are refused with the reason
    low: float | None = None
    high: float | None = None
    log: bool = False
    step: float | None = None


Searched = SearchConfig | dict[str, SearchConfig]  # a setting, or the arguments of one's own class


@dataclass(frozen=True)
class SpaceConfig:
    """The settings of train that a study searches, by the group they are of.

    Attributes:
        model: settings of the model, such as `width: {choices: [32, 64]}`; of one of one's own
            `arguments: {width: {choices: [32, 64]}}`.
        objective: settings of the objective.
        trainer: settings of the trainer, such as
            `learning_rate: {low: 0.0001, high: 0.01, log: true}`.
    """

    model: dict[str, Searched] = field(default_factory=dict)
    objective: dict[str, Searched] = field(default_factory=dict)
    trainer: dict[str, SearchConfig] = field(default_factory=dict)


@dataclass(frozen=True)
class TuneConfig(TrainConfig):
    """Settings of `python -m pipelines.tune`: those of train, and the search.

    Attributes:
        seed: of everything random, the search among it.
        name: of the run; null makes one up.
        resume: not of use here: the same study= goes on.
        result: a file for the table as JSON.
        plan: not of use here.
        refit: not of use here: the winner is refitted for the epochs that its trial found.
        register: not of use here: promote takes the winner's run.
        trusted_modules: not of use here.
        space: what is searched.
        study: its name; a study of that name goes on.
        trials: how many there are in the end, those of an earlier call among them.
        startup: trials that are drawn at random, and never stopped, before the search learns.
        prune_from: the epoch from which on a trial is stopped whose best validation so far is
            worse than the median of the finished trials at that epoch; null stops none.
        test: refit the winner and test it, once; false only searches, so that a later call may go
            on with more trials.
    """

    space: SpaceConfig = field(default_factory=SpaceConfig)
    study: str = ""
    trials: int = 20
    startup: int = 5
    prune_from: int | None = None
    test: bool = True


@dataclass(frozen=True)
class EvaluateConfig:
    """Settings of `python -m pipelines.evaluate`.

    Attributes:
        run: the id of a tracked run, or "latest".
        data: another store with the same items; null takes the run's own.
        split: another split; null takes the run's own.
        evaluation: what is measured.
        leaks: what happens where the model was trained on answers of the test: "refuse", or "mark"
            every number's name with "leaking".
        recommendations: lists of another system to judge in place of a run's model: a Parquet file
            with the columns user, item and rank or score; data= and split= say what they answer.
        candidate_set: what a question lets a model choose from.
        audit: what the split may look like.
        tracking: where the run is kept.
        result: a file for the final table as JSON.
        model: in place of run: a version in the registry, NAME@champion or NAME/3.
        trusted_modules: packages beside recsys whose code the run may use, such as [mypackage].
    """

    run: str | None
    recommendations: str | None
    data: DataConfig | None
    split: SplitConfig | None
    evaluation: EvaluationConfig | ClickEvaluationConfig
    candidate_set: CandidatesConfig
    audit: AuditConfig
    leaks: Literal["refuse", "mark"]
    tracking: TrackingConfig
    result: str | None
    model: str | None = None
    trusted_modules: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class ReproduceConfig:
    """Settings of `python -m pipelines.reproduce`.

    Attributes:
        run: the id of a tracked run of train, or "latest".
        commit: what happens where the run was made by other code: "refuse", or "mark" the report.
        elsewhere: compare as on another machine: the headline metric, not the digits.
        tracking: where the run is kept.
        result: a file for the final table as JSON.
        trusted_modules: packages beside recsys whose code the run may use, such as [mypackage].
    """

    run: str
    commit: Literal["refuse", "mark"]
    elsewhere: bool
    tracking: TrackingConfig
    result: str | None
    trusted_modules: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class CompareConfig:
    """Settings of `python -m pipelines.compare`.

    Attributes:
        runs: ids of tracked runs of train or evaluate; the first is looked at.
        baselines: also hold it against the baselines of its own run.
        metric: what is compared; null: ndcg_10 or the largest cut-off there is, of clicks auc.
        resamples: draws of users behind each interval.
        level: of the intervals.
        seed: of the draws.
        moved: users listed of those who gain and lose most.
        tracking: where the runs are kept.
        result: a file for the comparison as JSON.
    """

    runs: list[str]
    baselines: bool
    metric: str | None
    resamples: int
    level: float
    seed: int
    moved: int
    tracking: TrackingConfig
    result: str | None


@dataclass(frozen=True)
class PromoteConfig:
    """Settings of `python -m pipelines.promote`.

    Attributes:
        run: the id of the training run that may become champion, or "latest".
        name: of the registered model.
        margin: what the run may lose against the champion, in the metric's own units.
        metric: what is compared; null: ndcg_10 or the largest cut-off there is, of clicks auc.
        cohorts: whose every part is guarded as the whole is.
        level: of the lower bounds.
        resamples: draws of users.
        seed: of the draws.
        answers: runs of evaluate, of the run or of the champion, whose answers are compared in
            place of those of the training.
        tracking: where runs and registry are kept.
        result: a file for the decision as JSON.
    """

    run: str
    name: str
    margin: float
    metric: str | None
    cohorts: list[str]
    level: float
    resamples: int
    seed: int
    answers: list[str]
    tracking: TrackingConfig
    result: str | None


@dataclass(frozen=True)
class RecommendConfig:
    """Settings of `python -m pipelines.recommend`.

    Attributes:
        run: the id of a tracked run, or "latest".
        output: the Parquet file.
        k: length of the lists.
        data: another store with the same items; null takes the run's own.
        users: a file of user ids; null answers all users of the store.
        histories: a log of other people, in the columns of `data`; they are answered instead.
        history: "all" events of a user, or those before the user's first "test" question.
        candidates: a file of items that may be recommended; null for all.
        candidates_where: an SQL condition on the rows of `candidates`, such as "price < 20".
        exclude: a file of items that may not be recommended.
        filter_seen: leave out items of the history; null: as the run was judged.
        seen: which items those are: of all "events", or those "taken" (label 1); null: those that
            the model's histories hold.
        at: ISO date or time that features of recency count from; null: the newest event, and with
            history=test each user's test question.
        tie_seed: of the order among equal scores.
        tracking: where the run is kept.
        result: a file for counts and times as JSON.
        model: in place of run: a version in the registry, NAME@champion or NAME/3.
        trusted_modules: packages beside recsys whose code the run may use, such as [mypackage].
    """

    run: str | None
    output: str
    k: int
    data: DataConfig | None
    users: str | None
    histories: str | None
    history: Literal["all", "test"]
    candidates: str | None
    candidates_where: str | None
    exclude: str | None
    filter_seen: bool | None
    seen: Literal["events", "taken"] | None
    at: str | None
    tie_seed: int
    tracking: TrackingConfig
    result: str | None
    model: str | None = None
    trusted_modules: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class ServerConfig:
    """A tracking server or database, whatever its experiments."""

    uri: str | None


@dataclass(frozen=True)
class SyncConfig:
    """Settings of `python -m pipelines.sync`.

    Attributes:
        run: deliver only this one, also to another server than the one it waits for; null: all.
        tracking.uri: only what waits for this server, and only its runs are closed; null: all
            servers that something waits for, and the default store.
    """

    run: str | None
    tracking: ServerConfig


@dataclass(frozen=True)
class ExportConfig:
    """Settings of `python -m pipelines.export`.

    Attributes:
        run: the id of a tracked run, or "latest".
        output: the file: .onnx or .pt2, as the format says.
        format: "onnx", or "torch" for a program of torch.export.
        tracking: where the run is kept.
        trusted_modules: packages beside recsys whose code the run may use, such as [mypackage].
    """

    run: str
    output: str
    format: Literal["onnx", "torch"]
    tracking: TrackingConfig
    trusted_modules: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class ExplainConfig:
    """Settings of `python -m pipelines.explain`.

    Attributes:
        run: the id of a tracked run, or "latest".
        users: ids of the run's store, such as [1,5,7], or a file of them; null draws a sample of
            histories of all lengths.
        count: how many users that sample holds; null: 8.
        k: items of each user's list that are explained.
        history: the events before the user's first "test" question, whose answer is then explained
            too, or "all" of them.
        sample: histories behind what is said of heads: how far back they look, how alike they are.
        seed: of both samples.
        titles: a table with the titles of items; null: that of the data, if there is one.
        titles_key: its column with the item id; null: named as in the log.
        title: the column with the titles; null: "title" or "name".
        output: a file for the page, beside the run's artifact; null for none.
        tracking: where the runs are kept.
        result: a file for the mean correlations as JSON.
        trusted_modules: packages beside recsys whose code the run may use, such as [mypackage].
    """

    run: str
    users: list[int | str] | str | None
    count: int | None
    k: int
    history: Literal["all", "test"]
    sample: int
    seed: int
    titles: str | None
    titles_key: str | None
    title: str | None
    output: str | None
    tracking: TrackingConfig
    result: str | None
    trusted_modules: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class UIConfig:
    """Settings of `python -m pipelines.ui`.

    Attributes:
        run: the id of a run to open on, "latest", or null for the table of runs.
        port: of this machine; the next free one if another program has it.
        browser: open a browser where there is a screen.
        tracking: where the runs are kept.
    """

    run: str | None
    port: int
    browser: bool
    tracking: TrackingConfig
