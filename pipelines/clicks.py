"""Clicks in `train` and `evaluate`: the questions, the rankers, their baselines, the table."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

from pipelines.checking import ConfigError, build, nearest
from pipelines.entry import shipped
from pipelines.fitting import SMALLER_IS_BETTER, click_batches, fit_model
from pipelines.headings import OF_ALL_CLICKS, metric_title
from pipelines.judging import about_intervals, check_resamples, digest_of, make_split, say, shown
from pipelines.own import metric_of
from pipelines.own_clicks import (
    check_click_metrics,
    fields_of,
    length_seen,
    own_click_metrics,
    own_ranker,
)
from pipelines.paths import cache_dir
from pipelines.schemas import (
    CandidatesConfig,
    ClickEvaluationConfig,
    ClicksConfig,
    ClickTrainerConfig,
    CrossEntropyConfig,
    DataConfig,
    DINConfig,
    LeaveOneOutConfig,
    LogisticRegressionConfig,
    MeanPoolingConfig,
    ObjectiveConfig,
    OwnClassConfig,
    OwnObjectiveConfig,
    OwnRankerConfig,
    RankerConfig,
    ShareConfig,
    SplitConfig,
    TimeConfig,
    TrainConfig,
)

if TYPE_CHECKING:
    import polars as pl
    from torch import nn

    from recsys.evaluation.click_report import ClickMetric
    from recsys.histories.audit import Finding
    from recsys.histories.clicks import ClickQuestions, ClickSplit
    from recsys.histories.features import EncodedColumns, Feature, FittedFeatures
    from recsys.histories.store import HistoryStore
    from recsys.models.baselines.click_means import ItemUserMeans

CLICK_BASELINE_VERSION = 2
RANKERS = {
    "din": "DIN",
    "mean_pooling": "Mean pooling",
    "logistic_regression": "Logistic regression",
}
ASKED_ABOUT_CLICKS = (*RANKERS, "own_ranker")


@dataclass(frozen=True)
class ClickJudge:
    """Asks rankers the questions of one protocol, always in the same way.

    Attributes:
        store: the histories.
        split: the questions.
        split_name: what cuts the events or impressions into stages: "share", "loo", "time-all" ….
        features: fitted on the training questions, or with the model that is judged.
        columns: the features of this store.
        max_length: newest events of each history a ranker sees.
        evaluation: what is measured.
        findings: of the split audit.
        leaking: whether the model was trained on some of the answers, or on what came later.
        trained_on: how the model was trained, where it was not on this split's training rows.
        chosen_by: asks the validation questions that this one's split, a refitted one, trains on.
    """

    store: HistoryStore
    split: ClickSplit
    split_name: str
    features: FittedFeatures
    columns: EncodedColumns
    max_length: int
    evaluation: ClickEvaluationConfig
    findings: Sequence[Finding] = ()
    leaking: bool = False
    trained_on: str = ""
    chosen_by: ClickJudge | None = None

    @property
    def protocol(self) -> str:
        """As it stands in metric names: what is asked, and where the negatives come from."""
        parts = ["clicks"]
        if self.split_name != "share" and self.store.impressions is not None:
            parts.append(self.split_name.partition("-")[0])  # all of what was shown is asked
        elif self.split_name != "share":
            parts.append(self.split_name)
        if self.store.impressions is not None:
            parts.append("impressions")
        if self.split.negatives is not None:
            parts.append(self.split.negatives.name)
        if self.leaking:
            parts.append("leaking")
        return "-".join(parts)

    @property
    def own_metrics(self) -> Mapping[str, ClickMetric]:
        """Metrics of one's own, by name."""
        return own_click_metrics(self.evaluation.metrics)

    @property
    def legend(self) -> str:
        """The protocol in words."""
        return self.split.in_words + self.trained_on

    def name(self, stage: str, metric: str) -> str:
        """Full name of a metric."""
        from recsys.evaluation.report import metric_name

        return metric_name(stage, self.protocol, metric)

    def questions(self, stage: str) -> ClickQuestions:
        """The questions of "val" or "test"."""
        return self.split.validation if stage == "val" else self.split.test

    def ask(
        self, model: nn.Module | ItemUserMeans, stage: str
    ) -> tuple[dict[str, float], pl.DataFrame, dict[str, int]]:
        """Metrics by full name, one row a question, and what was counted."""
        from recsys.evaluation.click_report import per_question_click_frame, summarise_clicks
        from recsys.evaluation.click_scores import score_clicks
        from recsys.models.baselines.click_means import ItemUserMeans

        questions = self.questions(stage)
        if isinstance(model, ItemUserMeans):
            probabilities = model.scores(questions.users, questions.candidates)
        else:
            probabilities = score_clicks(
                model, self.split.view, questions, self.columns, self.max_length
            )
        values = summarise_clicks(
            questions.labels,
            probabilities,
            questions.users,
            questions.requests,
            ks=self.evaluation.ks,
            weighting=self.evaluation.gauc_weighting,
            bins=self.evaluation.calibration_bins,
            own=self.own_metrics,
        )
        named = {self.name(stage, metric): value for metric, value in values.items()}
        frame = per_question_click_frame(questions, probabilities, self.store, self.own_metrics)
        return named, frame, {}

    def unknown_values(self, stage: str) -> dict[str, int]:
        """How many questions hold a value that training did not know, by feature."""
        from recsys.histories.clicks import feature_rows

        counts = self.columns.unknown_counts(feature_rows(self.split.view, self.questions(stage)))
        return {name: count for name, count in counts.items() if count}

    def score(self, model: nn.Module | ItemUserMeans, stage: str, metric: str) -> float:
        """One metric of a model."""
        return self.ask(model, stage)[0][self.name(stage, metric)]


def check_kinds(config: TrainConfig) -> None:
    """Refuses groups that belong to another kind of question than the model does.

    Raises:
        ConfigError: naming the group and its right choice.
    """
    clicks = config.model.name in ASKED_ABOUT_CLICKS
    kind = "clicks" if clicks else "next_item"
    wanted = {
        "questions": (config.questions.name == kind, kind),
        "trainer": (config.trainer.name == kind, kind),
        "evaluation": (config.evaluation.name == kind, kind),
        "objective": (
            isinstance(config.objective, OwnObjectiveConfig)
            or isinstance(config.objective, CrossEntropyConfig) == clicks,
            "cross_entropy" if clicks else "full_softmax",
        ),
    }
    for group, (fits, choice) in wanted.items():
        if not fits:
            chosen = getattr(config, group).name
            asked = "clicks" if clicks else "the next item"
            other = ""
            if isinstance(config.model, OwnClassConfig) and config.questions.name != kind:
                other = f", or model={'own' if clicks else 'own_ranker'}"
            raise ConfigError(
                f"{group}={chosen} does not go with model={config.model.name}, which is asked "
                f"about {asked}: take {group}={choice}{other}"
            )


def check_click_evaluation(evaluation: ClickEvaluationConfig, monitor: str | None = None) -> None:
    """Refuses what nothing will compute, before any work starts.

    Raises:
        ConfigError: naming what there is.
    """
    if not evaluation.ks or min(evaluation.ks) < 1:
        raise ConfigError(
            f"evaluation.ks must hold cut-offs from 1, such as [5,10], not {evaluation.ks}"
        )
    if evaluation.calibration_bins < 1:
        raise ConfigError(
            f"evaluation.calibration_bins must be at least 1, not {evaluation.calibration_bins}"
        )
    check_resamples(evaluation.resamples)
    check_click_metrics(evaluation.metrics)
    known = ["auc", "gauc", *SMALLER_IS_BETTER, *map(metric_of, evaluation.metrics)]
    known += [f"{kind}_{k}" for k in evaluation.ks for kind in ("request_ndcg", "request_mrr")]
    if monitor is not None and monitor not in known:
        hint = nearest(monitor, known) or f" Known: {', '.join(known)}."
        raise ConfigError(f"trainer.monitor: there is no metric '{monitor}'.{hint}")


def check_candidates(candidates: CandidatesConfig) -> None:
    """Refuses candidates beside click questions, which are about one item each.

    Raises:
        ConfigError: naming the setting.
    """
    if candidates.name != "full":
        raise ConfigError(
            f"candidate_set={candidates.name} is of next-item questions: a click question is about "
            "one item; leave it out"
        )


def check_defined(monitor: str, asked: ClickQuestions, evaluation: ClickEvaluationConfig) -> None:
    """Refuses a monitor that has no value on the validation questions, whatever the scores.

    Raises:
        ConfigError: naming the setting.
    """
    import numpy as np

    from recsys.evaluation.click_report import summarise_clicks

    values = summarise_clicks(
        asked.labels,
        np.full(len(asked), 0.5),
        asked.users,
        asked.requests,
        ks=evaluation.ks,
        weighting=evaluation.gauc_weighting,
        bins=evaluation.calibration_bins,
        own=own_click_metrics(evaluation.metrics),
    )
    if not np.isfinite(values[monitor]):
        raise ConfigError(
            f"trainer.monitor={monitor} is not defined on the {len(asked):,} validation questions: "
            "no user, or no request, has candidates of both labels; take auc or logloss"
        )


def check_regularisers(objective: ObjectiveConfig) -> None:
    """Refuses weights out of range, and two regularisers at once.

    Raises:
        ConfigError: naming the setting.
    """
    if isinstance(objective, OwnObjectiveConfig):
        return  # which has none
    assert isinstance(objective, CrossEntropyConfig)
    for name in ("l2", "mini_batch_aware"):
        if getattr(objective, name) < 0:
            raise ConfigError(
                f"objective.{name} must not be negative, not {getattr(objective, name)}"
            )
    if objective.l2 > 0 and objective.mini_batch_aware > 0:
        raise ConfigError(
            "objective.l2 and objective.mini_batch_aware are two ways to the same end: set one of "
            "them to 0"
        )


def declared_features(
    data: DataConfig, questions: ClicksConfig, store: HistoryStore
) -> list[Feature]:
    """The features of the data, the user's id, and the label of past events where it is seen."""
    from pipelines.ingest import features_of
    from recsys.histories.features import Label, UserId

    features: list[Feature] = [UserId()] if questions.user_id else []
    features += features_of(data, store)
    if questions.history == "events" and store.labels is not None:
        features.append(Label())
    return features


def make_click_split(
    split: SplitConfig, questions: ClicksConfig, store: HistoryStore, refit: bool = False
) -> ClickSplit:
    """The click questions of the configured protocol.

    Args:
        split: what cuts the log into stages.
        questions: what is asked.
        store: the histories.
        refit: validation belongs to training; the test is the same.

    Raises:
        SplitError: the log does not give them.
    """
    from recsys.histories.questions import SplitError

    if store.impressions is None:
        made = _logged_clicks(split, questions, store, refit)
    else:
        made = _shown_clicks(split, questions, store, refit)
    for stage, asked in (("validation", made.validation), ("test", made.test)):
        if len(set(asked.labels.tolist())) < 2 and not (refit and stage == "validation"):
            raise SplitError(
                f"all {len(asked):,} {stage} candidates have label {asked.labels[0]:.0f}: AUC "
                "compares two classes; check data.columns.label and the split"
            )
    return made


def _logged_clicks(
    split: SplitConfig, questions: ClicksConfig, store: HistoryStore, refit: bool
) -> ClickSplit:
    """Candidates are events of the log."""
    from recsys.histories.clicks import click_split
    from recsys.histories.negatives import NegativeSampler

    base = make_split(split, store)
    negatives = None
    if questions.negatives_per_positive is None:
        refuse_unused(
            "questions",
            questions,
            ["sampling", "seed"],
            "is of sampled negatives, and there are none: set questions.negatives_per_positive, or "
            "leave it out",
        )
    if questions.negatives_per_positive is not None:
        negatives = NegativeSampler(
            store,
            base.training_ends,
            questions.sampling,
            questions.negatives_per_positive,
            questions.seed,
        )
    return click_split(
        store,
        base.refitted() if refit else base,  # the negatives of its test stay the same
        history=questions.history,
        skip_first=questions.skip_first,
        negatives=negatives,
    )


def _shown_clicks(
    split: SplitConfig, questions: ClicksConfig, store: HistoryStore, refit: bool
) -> ClickSplit:
    """Candidates are impressions, which have a log of their own."""
    from recsys.histories.impression_splits import impressions_by_time, impressions_by_user

    if questions.negatives_per_positive is not None:
        raise ConfigError(
            "questions.negatives_per_positive: impressions have negatives of their own; leave it "
            "out, or leave out data.impressions"
        )
    unused: list[str] = []
    if isinstance(split, LeaveOneOutConfig):
        unused = ["validation_users", "seed"]
    elif isinstance(split, TimeConfig):
        unused = ["target", "new_users", "test_until"]
    of_no_use = "says nothing about impressions, all of which are asked: leave it out"
    refuse_unused("questions", questions, ["skip_first"], of_no_use)
    refuse_unused("split", split, unused, of_no_use)
    if isinstance(split, TimeConfig):
        return impressions_by_time(
            store,
            history=questions.history,
            validation_cut=split.validation_cut,
            test_cut=split.test_cut,
            refit=refit,
        )
    share = split.share if isinstance(split, ShareConfig) else None
    return impressions_by_user(store, history=questions.history, share=share, refit=refit)


def refuse_unused(group: str, config: Any, names: list[str], why: str) -> None:
    """Refuses settings that nothing reads if they are not as shipped: somebody meant something.

    Raises:
        ConfigError: naming the setting.
    """
    usual = shipped(group, config.name)
    for name in names:
        if (value := getattr(config, name)) != usual[name]:
            raise ConfigError(f"{group}.{name}={value} {why}")


def click_judge(
    config: TrainConfig,
    store: HistoryStore,
    *,
    split: SplitConfig | None = None,
    evaluation: ClickEvaluationConfig | None = None,
    features: FittedFeatures | None = None,
    refit: bool = False,
) -> ClickJudge:
    """The judge of a training run, or of a tracked run that is evaluated again.

    Args:
        config: of the training run.
        store: the histories.
        split: another split; None: the run's own.
        evaluation: another evaluation; None: the run's own.
        features: those of a trained model; None: fitted on the training questions.
        refit: whether models are refitted on training + validation.
    """
    from recsys.histories.clicks import feature_rows
    from recsys.histories.features import fit_features

    questions, ranker = config.questions, config.model
    assert isinstance(questions, ClicksConfig) and isinstance(ranker, RankerConfig)
    measured = evaluation or config.evaluation
    assert isinstance(measured, ClickEvaluationConfig)
    split = split or config.split
    chosen_by = None
    if refit:
        chosen_by = click_judge(config, store, split=split, evaluation=measured)
    made = make_click_split(split, questions, store, refit)
    if features is None:
        features = fit_features(
            store,
            declared_features(config.data, questions, store),
            feature_rows(made.view, made.training_questions(0)),
        )
    return ClickJudge(
        store,
        made,
        f"time-{split.target}" if isinstance(split, TimeConfig) else split.name,
        features,
        features.columns(store),
        length_seen(ranker, features.sizes),
        measured,
        chosen_by=chosen_by,
    )


def ranker_arguments(
    config: RankerConfig, catalogue_size: int, sizes: Mapping[str, Mapping[str, int]]
) -> dict[str, Any]:
    """The constructor's arguments."""
    arguments = asdict(config)
    del arguments["name"]
    if isinstance(config, OwnRankerConfig):
        arguments = config.arguments
    return {"catalogue_size": catalogue_size, **fields_of(sizes), **arguments}


def make_ranker(
    config: RankerConfig, catalogue_size: int, sizes: Mapping[str, Mapping[str, int]], seed: int
) -> nn.Module:
    """A ranker with weights drawn by seed; the rest of the run draws from the same generator.

    Raises:
        ValueError: an argument out of range, named.
    """
    import torch

    from recsys.models.click.din import DIN
    from recsys.models.click.logistic_regression import LogisticRegression
    from recsys.models.click.mean_pooling import MeanPooling

    kinds: dict[str, Callable[..., nn.Module]] = {
        "din": DIN,
        "mean_pooling": MeanPooling,
        "logistic_regression": LogisticRegression,
    }
    torch.manual_seed(seed)
    if isinstance(config, OwnRankerConfig):
        return own_ranker(config, catalogue_size, sizes)
    return kinds[config.name](**ranker_arguments(config, catalogue_size, sizes))


def click_baselines(config: TrainConfig, judge: ClickJudge) -> dict[str, nn.Module | ItemUserMeans]:
    """Item + user mean, logistic regression, and the same network with mean pooling.

    The two that are trained see the run's own training settings, but that logistic regression is
    not regularised; where the split is refitted, each is too, for its own best epochs. They come
    from the cache where it has them. Beside a ranker of one's own mean pooling has the size that we
    ship, and beside an objective of one's own both have cross-entropy as we ship it.

    Args:
        config: of the run.
        judge: asks the questions.

    Raises:
        ConfigError: the monitor is a metric that is not measured here.
    """
    from recsys.models.baselines.click_means import ItemUserMeans

    mine = {metric_of(path) for path in config.evaluation.metrics}
    if (monitor := config.trainer.monitor) in mine - judge.own_metrics.keys():
        raise ConfigError(
            f"the baselines are chosen by {monitor}, which chose the model too: keep it among "
            "evaluation.metrics, or take evaluation.baselines=false"
        )
    training = judge.split.training_questions(0)
    means = ItemUserMeans().fit(
        training.users,
        training.candidates,
        training.labels,
        judge.store.users,
        judge.store.catalogue_size,
    )
    beside: dict[str, nn.Module | ItemUserMeans] = {means.name: means}
    kinds: list[RankerConfig] = []
    model, objective = config.model, config.objective
    assert isinstance(model, RankerConfig)
    if isinstance(objective, OwnObjectiveConfig):
        objective = build(CrossEntropyConfig, shipped("objective", "cross_entropy"), lambda key: "")
    if not isinstance(model, LogisticRegressionConfig):
        kinds.append(LogisticRegressionConfig("logistic_regression", judge.max_length))
    if isinstance(model, OwnRankerConfig):
        usual = shipped("model", "mean_pooling") | {"max_length": judge.max_length}
        del usual["defaults"]
        kinds.append(build(MeanPoolingConfig, usual, lambda key: ""))
    if isinstance(model, DINConfig):
        kinds.append(
            MeanPoolingConfig(
                name="mean_pooling",
                max_length=model.max_length,
                width=model.width,
                field_width=model.field_width,
                hidden=model.hidden,
                activation=model.activation,
                dropout=model.dropout,
                embedding_dropout=model.embedding_dropout,
                biases=model.biases,
                initial_scale=model.initial_scale,
            )
        )
    # What holds 32-wide embeddings would crush a single weight each: no straw man.
    unregularised = CrossEntropyConfig("cross_entropy", l2=0.0, mini_batch_aware=0.0)
    for kind in kinds:
        linear = isinstance(kind, LogisticRegressionConfig)
        own = replace(
            config, model=kind, objective=unregularised if linear else objective, refit=None
        )
        if judge.chosen_by is not None:
            own = replace(own, refit=trained_baseline(own, judge.chosen_by)[1])
        beside[RANKERS[kind.name]] = trained_baseline(own, judge)[0]
    return beside


def trained_baseline(config: TrainConfig, judge: ClickJudge) -> tuple[nn.Module, int]:
    """A ranker trained as `config` says, from the cache or into it, and the epoch of its weights.

    Where an earlier command was interrupted, training goes on from its checkpoint.
    """
    from recsys.training.fit import CheckpointError
    from recsys.training.reporting import Silent
    from recsys.training.saved_model import ModelError, load_model, save_model

    model_config, trainer = config.model, config.trainer
    cut = trainer.monitor.rpartition("_")[2]
    if trainer.monitor.startswith("request_") and int(cut) not in judge.evaluation.ks:
        ks = sorted({*judge.evaluation.ks, int(cut)})  # what chooses need not be reported
        judge = replace(judge, evaluation=replace(judge.evaluation, ks=ks))
    assert isinstance(model_config, RankerConfig)
    assert isinstance(trainer, ClickTrainerConfig)
    # What a metric of one's own chose is not kept: its code may be another one tomorrow.
    kept = bool(judge.store.fingerprint) and trainer.monitor not in judge.own_metrics
    identity = click_batches(config, judge).identity()
    made_from = {
        "version": CLICK_BASELINE_VERSION,
        "batches": identity,
        "questions_asked": [
            digest_of(judge.split.training_questions(0)),
            digest_of(judge.split.validation),
        ],
        "features": judge.features.to_json(),
        "model": asdict(model_config),
        "objective": asdict(config.objective),
        "trainer": asdict(trainer),
        "questions": asdict(config.questions),
        "evaluation": [judge.evaluation.gauc_weighting, judge.evaluation.calibration_bins],
        "refit": config.refit,
    }
    key = hashlib.sha256(json.dumps(made_from, sort_keys=True).encode()).hexdigest()[:16]
    folder = cache_dir() / "baselines" / key
    if kept:
        try:
            model, described = load_model(folder)
            return model, int(described["epoch"])
        except ModelError:
            pass  # not there, or damaged: it is trained again
    say(f"training the baseline {RANKERS[model_config.name]} …")
    sizes = judge.features.sizes
    model = make_ranker(model_config, judge.store.catalogue_size, sizes, config.seed)
    interrupted = folder / "last.ckpt"
    try:
        resume = interrupted if interrupted.exists() else None
        fitted = fit_model(config, judge, model, Silent(), folder, resume)
    except CheckpointError:  # cut off, or of an earlier release
        fitted = fit_model(config, judge, model, Silent(), folder, None)
    interrupted.unlink(missing_ok=True)
    arguments = ranker_arguments(model_config, judge.store.catalogue_size, sizes)
    facts = {"made_from": made_from, "epoch": fitted.best_epoch}
    if kept:
        save_model(folder, model, arguments, facts)
    return model.eval(), fitted.best_epoch


def click_columns(judge: ClickJudge) -> dict[str, str]:
    """The final table's columns: metric by name, and its heading."""
    metrics = [*OF_ALL_CLICKS]
    if bool((judge.split.test.requests >= 0).any()):
        k = 10 if 10 in judge.evaluation.ks else max(judge.evaluation.ks)
        metrics += [f"request_ndcg_{k}", f"request_mrr_{k}"]
    metrics += judge.own_metrics
    return {judge.name("test", metric): metric_title(metric) for metric in metrics}


def click_table(judge: ClickJudge, rows: list[dict[str, Any]], title: str) -> str:
    """The final table: the models beside each other, the protocol in the heading."""
    from recsys.evaluation.report import table_text

    first = rows[0]["metrics"]
    excluded = int(first[judge.name("test", "users_excluded")])
    heading = (
        f"{title} · test/{judge.protocol} · {len(judge.split.test):,} questions, "
        f"{judge.store.catalogue_size - 1:,} items\n({judge.legend})\n"
        f"(GAUC: weighted by {judge.evaluation.gauc_weighting}; {excluded:,} users without both "
        f"classes left out)\n{about_intervals(rows)}"
    )
    return table_text(
        [shown(row) for row in rows],
        heading,
        {"model": "model", **click_columns(judge)},
    )
