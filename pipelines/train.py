r"""Train a model on an interaction log, judge it beside baselines, leave an MLflow run.

Examples:
  python -m pipelines.train
  python -m pipelines.train experiment=sasrec_ml1m seed=2
  python -m pipelines.train model.width=128 model.heads=2 trainer.max_epochs=20
  python -m pipelines.train experiment=sasrec_ml1m data=log data.path='events/*.parquet' \
      data.columns.user=uid data.columns.item=sku data.columns.time=ts
  python -m pipelines.train experiment=sasrec_ml1m plan=true
  python -m pipelines.train experiment=sasrec_ml1m register=films
  python -m pipelines.train resume=RUN_ID

The log is ingested first, or found in the cache. Ctrl-C keeps the last checkpoint: resume=RUN_ID
goes on from it, to the same digits as without the interruption.
"""

from __future__ import annotations

import dataclasses
import sys
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipelines.checking import ConfigError, build
from pipelines.class_paths import check_trusted, class_paths, package
from pipelines.clicks import (
    ASKED_ABOUT_CLICKS,
    RANKERS,
    ClickJudge,
    check_candidates,
    check_click_evaluation,
    check_defined,
    check_kinds,
    check_regularisers,
    click_baselines,
    click_judge,
    click_table,
    make_click_split,
    make_ranker,
    ranker_arguments,
)
from pipelines.entry import compose, main
from pipelines.examining import Report, audited, examined, make_judge
from pipelines.examining_clicks import examined_clicks
from pipelines.explaining import explain_sample
from pipelines.fitting import (
    check_memory,
    choose_rows,
    fit_model,
    make_objective,
    memory_lines,
    task_and_batches,
)
from pipelines.ingest import make_store
from pipelines.judging import (
    Judge,
    baselines,
    check_columns,
    check_evaluation,
    file_name,
    make_split,
    say,
    say_unusable,
    split_counts,
    table,
)
from pipelines.own import own_model, try_own
from pipelines.own_clicks import try_click_objective, try_ranker
from pipelines.paths import cache_dir, outbox_dir
from pipelines.result import check_result_path, peak_memory_gb, write_result
from pipelines.runs import (
    find_run,
    name_dataset,
    registered,
    report_rows,
    start_run,
    trained_run,
)
from pipelines.schemas import (
    ClickEvaluationConfig,
    ClicksConfig,
    EvaluationConfig,
    NextItemModelConfig,
    OwnClassConfig,
    OwnModelConfig,
    OwnObjectiveConfig,
    OwnRankerConfig,
    RankerConfig,
    TrainConfig,
)
from pipelines.serving import how_to_serve, make_servable
from pipelines.story import begun, tell
from pipelines.ui import as_typed, how_to_open, in_the_ui

if TYPE_CHECKING:
    from torch import nn

    from recsys.histories.store import HistoryStore
    from recsys.tracking.run import TrackedRun
    from recsys.training.fit import Fitted


def run(config: TrainConfig) -> None:
    """Ingest, train, judge, report."""
    started = time.perf_counter()
    check_result_path(config.result)
    check_register(config)
    resumed, checkpoint = None, None
    if config.resume is not None:
        resumed, checkpoint = find_checkpoint(config)
        from recsys.training.fit import read_checkpoint

        read_checkpoint(checkpoint)  # a damaged one: said before anything is written
        if resumed is not None:
            config = settings_of(resumed, config)
    if config.trusted_modules and resumed is None:
        raise ConfigError(
            "trusted_modules= is about code that a recorded run names: it goes with resume=RUN_ID; "
            "what this command line names is trusted already"
        )
    check_kinds(config)
    check_trainer(config)
    judge = job(config)
    if config.plan:
        say_plan(config, judge)
        return
    tracked_id, rows, seconds = tracked_training(config, judge, resumed, checkpoint, started)
    say(final_table(judge, rows, config.data.name))
    if config.register is not None:
        say(f"\n{register(config, config.register, tracked_id)}")
    say(f"\n{seconds:.0f} s, {peak_memory_gb():.1f} GB at most. {in_the_ui(tracked_id)}")
    say(how_to_open(tracked_id, config.tracking.uri))


def register(config: TrainConfig, name: str, run_id: str) -> str:
    """Makes the run's model a version of a name; returns what to say."""
    from recsys.tracking.outbox import is_waiting

    if is_waiting(outbox_dir(), run_id):
        later = as_typed("promote", f"run={run_id}", f"name={name}")
        return f"not registered, as its results wait; once they are delivered: {later}"
    info, _ = trained_run(run_id, config.tracking)
    return f"registered as {registered(name, info, config)}"


def tracked_training(
    config: TrainConfig,
    judge: Judge | ClickJudge,
    resumed: str | None,
    checkpoint: Path | None,
    started: float,
    parent: str | None = None,
    tags: Mapping[str, str] | None = None,
) -> tuple[str, list[dict[str, Any]], float]:
    """Trains and judges inside a run.

    Args:
        config: the settings.
        judge: asks.
        resumed: the run to go on with.
        checkpoint: what to go on from.
        started: when the command began.
        parent: the run below which this one is shown.
        tags: more of them.

    Returns:
        The run's id, the final table's rows, and the seconds since the start.
    """
    store, folder = judge.store, judge.store.path
    assert folder is not None
    from recsys.histories.ingest_report import read_report

    report = read_report(folder)
    say_unusable(store)
    title = config.name or run_title(config)
    tags = {**(tags or {}), "store": store.fingerprint, "protocol": judge.protocol}
    tags |= {"seed": str(config.seed), "threads": str(threads())}
    if config.refit is not None:
        tags["refit"] = "training + validation"
    doing = begun(judge, config.data.name, f"Training {model_title(config)}.")
    with start_run(
        config, "train", title, tags=tags, description=doing, parent=parent, run_id=resumed
    ) as tracked:
        say(f"run {tracked.run_id} ({title})")
        tracked.artifact_json("ingest_report.json", report)
        made_of = {key: store.manifest[key] for key in ("fingerprint", "sources", "settings")}
        tracked.artifact_json("sources.json", made_of)
        name_dataset(tracked, config.data, judge, "training")
        try:
            found, cost = train_and_judge(config, judge, tracked, checkpoint)
        except KeyboardInterrupt as stopped:
            if parent is None and (run_folder(tracked.run_id) / "last.ckpt").exists():
                stopped.add_note(f"What goes on with it: {how_to_resume(config, tracked.run_id)}")
            raise
        rows, seconds = found.rows, time.perf_counter() - started
        tracked.metrics({"cost/seconds": seconds, "cost/peak_memory_gb": peak_memory_gb()}, 0)
        say("")
        cost = [f"{seconds:.0f} s, {peak_memory_gb():.1f} GB at most", *cost]
        tell(tracked, judge, found, config.data.name, cost)
        tracked.artifact_text("table.txt", final_table(judge, rows, config.data.name) + "\n")
        write_result(config.result, run_id=tracked.run_id, seconds=seconds, rows=rows)
    return tracked.run_id, rows, seconds


def how_to_resume(config: TrainConfig, run_id: str) -> str:
    """The command that goes on with an interrupted run."""
    from recsys.tracking.store import without_password

    uri = config.tracking.uri
    more = [] if uri is None else [f"tracking.uri={without_password(uri)}"]
    if packages := sorted({package(path) for path in class_paths(config)}):
        more.append(f"trusted_modules=[{','.join(packages)}]")
    return as_typed("train", f"resume={run_id}", *more)


def check_register(config: TrainConfig) -> None:
    """Refuses a name that the registry would not take, before any work starts.

    Raises:
        ValueError: naming the nearest; or settings that leave nothing to register.
    """
    if config.register is None:
        return
    from recsys.tracking.registry import check_model_name

    check_model_name(config.register, "register")
    if config.plan:
        raise ConfigError(f"plan=true trains nothing that register={config.register} could name")


def threads() -> int:
    """How many threads torch takes: sums in another order differ in their last digit."""
    import torch

    return torch.get_num_threads()


def final_table(judge: Judge | ClickJudge, rows: list[dict[str, Any]], title: str) -> str:
    """The models beside each other."""
    if isinstance(judge, Judge):
        return table(judge, rows, title)
    return click_table(judge, rows, title)


def job(config: TrainConfig) -> Judge | ClickJudge:
    """The questions of a model, once everything about the settings has been checked."""
    return click_job(config) if config.model.name in ASKED_ABOUT_CLICKS else next_item_job(config)


def next_item_job(config: TrainConfig) -> Judge:
    """The questions of a next-item model, once everything about the settings has been checked."""
    import numpy as np

    evaluation = config.evaluation
    assert isinstance(evaluation, EvaluationConfig)
    assert isinstance(config.model, NextItemModelConfig)
    check_evaluation(evaluation, config.trainer.monitor)
    # Wrong arguments: said at once.
    try_own(config)
    choose_rows(config, make_model(config.model, catalogue_size=2, seed=config.seed))
    make_objective(config.objective, np.array([0, 1]))
    folder = make_store(
        config.data,
        accept=lambda store: make_split(config.split, check_columns(evaluation, store)),
    )
    from recsys.histories.store import open_store

    store = open_store(folder)
    judge = make_judge(
        store,
        config.split,
        evaluation,
        repeats=config.data.repeats,
        candidates=config.candidate_set,
        audit=config.audit,
        refit=config.refit is not None,
    )
    split = judge.split
    say(
        f"{config.data.name}: {store.events:,} events, {store.users:,} users, "
        f"{store.catalogue_size - 1:,} items; {split.counts['training_events']:,} events to train "
        f"on, {len(split.validation):,} validation and {len(split.test):,} test questions"
    )
    say(split_counts(split))
    return judge


def click_job(config: TrainConfig) -> ClickJudge:
    """The questions of a ranker, once everything about the settings has been checked."""
    questions, evaluation, model = config.questions, config.evaluation, config.model
    assert isinstance(questions, ClicksConfig) and isinstance(evaluation, ClickEvaluationConfig)
    assert isinstance(model, RankerConfig)
    check_click_evaluation(evaluation, config.trainer.monitor)
    check_candidates(config.candidate_set)
    check_regularisers(config.objective)
    # Wrong arguments: said at once.
    if isinstance(config.objective, OwnObjectiveConfig):
        try_click_objective(config.objective)
    if isinstance(model, OwnRankerConfig):
        try_ranker(config)
    else:
        make_ranker(model, 2, {}, config.seed)
    monitor = config.trainer.monitor

    def accept(store: HistoryStore) -> None:
        check_columns(evaluation, store)
        asked = make_click_split(config.split, questions, store).validation
        if monitor.startswith("request_") and not bool((asked.requests >= 0).any()):
            raise ConfigError(
                f"trainer.monitor={monitor}: the log has no requests; take auc, or name them in "
                "data.impressions.columns.request"
            )
        check_defined(monitor, asked, evaluation)

    folder = make_store(config.data, accept)
    from recsys.histories.store import open_store

    judge = click_judge(config, open_store(folder), refit=config.refit is not None)
    judge = dataclasses.replace(judge, findings=audited(judge.store, judge.split, config.audit))
    store, split = judge.store, judge.split
    say(
        f"{config.data.name}: {store.events:,} events, {store.users:,} users, "
        f"{store.catalogue_size - 1:,} items; {split.training_size:,} questions to train on, "
        f"{len(split.validation):,} to validate, {len(split.test):,} to test"
    )
    say(split_counts(split))
    return judge


def untrained(config: TrainConfig, judge: Judge | ClickJudge) -> nn.Module:
    """The model of a run, with weights drawn by seed."""
    if isinstance(judge, ClickJudge):
        assert isinstance(config.model, RankerConfig)
        catalogue_size = judge.store.catalogue_size
        return make_ranker(config.model, catalogue_size, judge.features.sizes, config.seed)
    assert isinstance(config.model, NextItemModelConfig)
    return make_model(config.model, judge.store.catalogue_size, config.seed)


def say_plan(config: TrainConfig, judge: Judge | ClickJudge) -> None:
    """What training would take, without training.

    Raises:
        ConfigError: it cannot fit into memory.
    """
    from recsys.training.plan import probe

    model = untrained(config, judge)
    task, batches = task_and_batches(config, judge, model)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    say(f"{model_title(config)}: {parameters:,} parameters")
    for line in memory_lines(check_memory(config.trainer, task, batches)):
        say(line)
    found = probe(task.train(), batches, config.trainer.precision)
    epoch = found.seconds_per_step * len(batches)
    epochs = config.refit or config.trainer.max_epochs
    say(
        f"{len(batches):,} steps an epoch, about {epoch:,.0f} s ({found.steps} steps tried); "
        f"{epochs} epochs at most, {epoch * epochs / 60:,.0f} minutes, validation and baselines "
        "not counted"
    )


def train_and_judge(
    config: TrainConfig, judge: Judge | ClickJudge, tracked: TrackedRun, checkpoint: Path | None
) -> tuple[Report, list[str]]:
    """What the test says, and what training took in words; all on the way goes to the run."""
    from recsys.training.saved_model import save_model

    store = judge.store
    title = model_title(config)
    beside: dict[str, Any] = {}
    if isinstance(judge, ClickJudge):
        if config.evaluation.baselines:
            beside = click_baselines(config, judge)
        assert isinstance(config.model, RankerConfig)
        arguments = ranker_arguments(config.model, store.catalogue_size, judge.features.sizes)
    else:
        if config.evaluation.baselines:
            repeats = config.data.repeats
            beside = {b.name: b for b in baselines(judge, config.trainer.monitor, repeats)}
        assert isinstance(config.model, NextItemModelConfig)
        arguments = model_arguments(config.model, store.catalogue_size)
    model = untrained(config, judge)
    reference = {}
    if config.refit is None:
        monitor = config.trainer.monitor
        reference = {name: judge.score(other, "val", monitor) for name, other in beside.items()}
    else:
        say(
            f"refit={config.refit}: so many epochs on training + validation, as are the baselines; "
            "trainer.patience and trainer.validate_every have nothing to choose here"
        )
    parameters = sum(parameter.numel() for parameter in model.parameters())
    say(f"{title}: {parameters:,} parameters")
    book = Book(tracked)
    fitted = fit_model(config, judge, model, book, run_folder(tracked.run_id), checkpoint)
    monitor = judge.name("val", config.trainer.monitor)
    epochs = [epoch for epoch, _ in book.points.get(monitor, [])]
    for name, value in reference.items():  # lines as long as the model's curve
        for epoch in sorted({*epochs[:1], *epochs[-1:]}) or [0]:
            tracked.metrics({f"versus/{file_name(name)}/{monitor}": value}, epoch)
    drawn = draw_curves(tracked, book, monitor, reference, fitted, title)
    tracked.metrics(
        {
            "cost/seconds_training": fitted.seconds_training,
            "cost/seconds_validating": fitted.seconds_validating,
            "cost/events_per_second": fitted.cost.events_per_second,
            "cost/share_padding": fitted.cost.padding,
            **{f"cost/share_{part}": share for part, share in fitted.cost.shares.items()},
            "best_epoch": fitted.best_epoch,
            **({f"best/{monitor}": fitted.best_score} if config.refit is None else {}),
        },
        0,
    )
    say(fitted.cost.in_words)
    folder = run_folder(tracked.run_id) / "model"
    save_model(
        folder,
        model,
        arguments,
        {
            "name": title,
            "item_vocabulary": store.item_vocabulary.fingerprint,
            "store": store.fingerprint,
            "epoch": fitted.best_epoch,
        },
    )
    if isinstance(judge, ClickJudge):
        judge.features.save(folder / "features.json")
    make_servable(folder, config, judge)
    tracked.model(folder, title, arguments, how_to_serve(tracked.run_id))

    models = {title: model.eval(), **beside}
    if isinstance(judge, ClickJudge):
        found = examined_clicks(judge, models, tracked, config.data.name)
    else:
        found = examined(judge, models, tracked, config.data.name)
    report_rows(tracked, found.rows)
    explain_sample(title, model, judge, config.data, tracked)
    kept = f"{parameters:,} parameters, epoch {fitted.best_epoch} of {fitted.epochs} kept"
    shown = dataclasses.replace(found, figures=[*drawn, *found.figures])
    return shown, [kept, fitted.cost.in_words]


SIZES = ("width", "heads", "layers")
MODEL_NAMES = {"sasrec": "SASRec", **RANKERS}


def model_title(config: TrainConfig) -> str:
    """What the model is called in tables: one's own by the name of its class."""
    model = config.model
    if isinstance(model, OwnClassConfig):
        return model.class_path.rpartition(".")[2]
    return MODEL_NAMES[model.name]


def model_arguments(config: NextItemModelConfig, catalogue_size: int) -> dict[str, Any]:
    """The constructor's arguments."""
    if isinstance(config, OwnModelConfig):
        return {"catalogue_size": catalogue_size, **config.arguments}
    arguments = asdict(config)
    del arguments["name"]
    return {"catalogue_size": catalogue_size, **arguments}


def make_model(config: NextItemModelConfig, catalogue_size: int, seed: int) -> nn.Module:
    """A model with weights drawn by seed; the rest of the run draws from the same generator.

    Raises:
        ValueError: an argument out of range, named.
    """
    import torch

    from recsys.models.next_item.sasrec import SASRec

    torch.manual_seed(seed)
    if isinstance(config, OwnModelConfig):
        return own_model(config, catalogue_size)
    return SASRec(**model_arguments(config, catalogue_size))


def check_trainer(config: TrainConfig) -> None:
    """Refuses numbers out of range before any work starts.

    Raises:
        ConfigError: naming the setting.
    """
    trainer = config.trainer
    for name in (
        "max_epochs",
        "validate_every",
        "tokens_per_batch",
        "rows_per_batch",
        "minimum_batches",
    ):
        if getattr(trainer, name, 1) < 1:
            raise ConfigError(f"trainer.{name} must be at least 1, not {getattr(trainer, name)}")
    if trainer.patience is not None and trainer.patience < 1:
        raise ConfigError(f"trainer.patience must be null or at least 1, not {trainer.patience}")
    for name in ("weight_decay", "warmup_steps", "checkpoint_seconds"):
        if getattr(trainer, name) < 0:
            raise ConfigError(f"trainer.{name} must not be negative, not {getattr(trainer, name)}")
    if not 0 <= trainer.average_weights < 1:
        raise ConfigError(
            "trainer.average_weights must be at least 0 (off) and below 1, not "
            f"{trainer.average_weights}"
        )
    if config.refit is not None and not 1 <= config.refit <= trainer.max_epochs:
        raise ConfigError(
            f"refit={config.refit} must be from 1 to trainer.max_epochs={trainer.max_epochs}, over "
            "which the learning rate falls"
        )
    if trainer.learning_rate <= 0:
        raise ConfigError(f"trainer.learning_rate must be positive, not {trainer.learning_rate}")
    seeds = [config.seed, getattr(config.split, "seed", 0), getattr(config.questions, "seed", 0)]
    if min(seeds) < 0:
        raise ConfigError(f"seed must not be negative, not {min(seeds)}")


def run_title(config: TrainConfig) -> str:
    """A name a person can read."""
    sizes = [f"{name} {value}" for name, value in sizes_of(config).items()]
    if config.refit is not None:
        sizes.append("refitted")
    return " ".join([model_title(config), config.data.name, *sizes, f"seed {config.seed}"])


def sizes_of(config: TrainConfig) -> dict[str, Any]:
    """How large a model is, in its own words."""
    model = config.model
    values = model.arguments if isinstance(model, OwnClassConfig) else vars(model)
    return {name: values[name] for name in SIZES if name in values}


def run_folder(run_id: str) -> Path:
    """Where a run keeps what it needs to go on."""
    return cache_dir() / "runs" / run_id


def find_checkpoint(config: TrainConfig) -> tuple[str | None, Path]:
    """The run to go on with (None for a plain file), and its checkpoint.

    Raises:
        ConfigError: neither a file nor a run, or a run without checkpoint here.
    """
    assert config.resume is not None
    from recsys.tracking.names import PARENT_TAG

    path = Path(config.resume)
    if path.is_file():
        return None, path
    if path.suffix or path.parent != Path():
        raise ConfigError(f"resume={config.resume}: there is no such file")
    info = find_run(config.resume, config.tracking.uri, waiting_too=True)
    if (above := info.tags.get(PARENT_TAG)) is not None:
        raise ConfigError(
            f"resume={config.resume}: the run '{info.name}' stands below run {above}, and only the "
            "command of that one makes it again or goes on with it"
        )
    checkpoint = run_folder(info.run_id) / "last.ckpt"
    if not checkpoint.exists():
        raise ConfigError(
            f"resume={config.resume}: the run '{info.name}' ({info.status}) left no checkpoint at "
            f"{checkpoint}; it ended before its first epoch, or ran on another machine"
        )
    return info.run_id, checkpoint


def settings_of(run_id: str, config: TrainConfig) -> TrainConfig:
    """The settings a run was started with, for going on with it.

    Args:
        run_id: of the run.
        config: of this command, which may repeat them but not change them.

    Raises:
        ConfigError: a setting was changed on the command line, or the run names code that neither
            the command line names nor `trusted_modules` allows.
    """
    import yaml

    info = find_run(run_id, config.tracking.uri, waiting_too=True)
    text = info.artifact("config.yaml").read_text(encoding="utf-8")
    own = build(TrainConfig, yaml.safe_load(text), lambda key: f" in config.yaml of run {run_id}")
    named = class_paths(config)
    strangers = {path: s for path, s in class_paths(own).items() if path not in named}
    check_trusted(strangers, config.trusted_modules, f"run {run_id}")
    given, plain = flat(asdict(config)), flat(asdict(compose("train", TrainConfig)))
    before = flat(asdict(own))
    free = {"resume", "result", "tracking.uri", "trusted_modules"}
    typed = {argument.lstrip("+").partition("=")[0] for argument in sys.argv[1:]}

    def was_given(key: str, value: Any) -> bool:
        parts = key.split(".")
        prefixes = {".".join(parts[: i + 1]) for i in range(len(parts))}
        return value != plain.get(key) or bool(prefixes & typed)

    changed = [
        f"{key} ({before.get(key)!r} there, {value!r} here)"
        for key, value in given.items()
        if key not in free and was_given(key, value) and value != before.get(key)
    ]
    if changed:
        raise ConfigError(
            f"resume={run_id} goes on with the settings of that run; leave out {', '.join(changed)}"
        )
    tracking = dataclasses.replace(own.tracking, uri=config.tracking.uri or own.tracking.uri)
    return dataclasses.replace(
        own,
        resume=config.resume,
        result=config.result,
        tracking=tracking,
        trusted_modules=config.trusted_modules,
    )


def flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested mappings with dotted keys."""
    result: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, Mapping):
            result |= flat(value, f"{prefix}{key}.")
        else:
            result[prefix + key] = value
    return result


@dataclass
class Book:
    """Passes metrics on to the run and remembers those that are drawn.

    Attributes:
        tracked: the run.
        points: (step, value) of every metric seen.
    """

    tracked: TrackedRun
    points: dict[str, list[tuple[int, float]]] = field(default_factory=dict)

    def metrics(self, values: Mapping[str, float], step: int) -> None:
        """See `recsys.training.reporting.Reporter`."""
        for name, value in values.items():
            self.points.setdefault(name, []).append((step, value))
        self.tracked.metrics(values, step)


def draw_curves(
    tracked: TrackedRun,
    book: Book,
    monitor: str,
    reference: Mapping[str, float],
    fitted: Fitted,
    model: str,
) -> list[str]:
    """Loss over steps, the monitored metric over epochs beside the baselines.

    Returns:
        The names of the figures that a page shows.
    """
    from recsys.tracking.figures import loss_curve, metric_curve

    losses = book.points.get("train/loss_step", [])
    if losses:
        steps, values = zip(*losses, strict=True)
        tracked.figure("figures/loss.png", loss_curve(steps, values))
    curve = book.points.get(monitor, [])
    if curve:
        epochs, values = zip(*curve, strict=True)
        figure = metric_curve(
            monitor,
            epochs,
            values,
            baselines=reference,
            best_epoch=fitted.best_epoch,
            model=model,
        )
        tracked.figure("figures/validation.png", figure)
        return ["figures/validation.png"]
    return []


if __name__ == "__main__":
    main("train", TrainConfig, run, __doc__ or "")
