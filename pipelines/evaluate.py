r"""Judge a tracked run again: an offline evaluation job.

Examples:
  python -m pipelines.evaluate run=latest
  python -m pipelines.evaluate run=RUN_ID evaluation.filter_seen=false
  python -m pipelines.evaluate model=NAME@champion
  python -m pipelines.evaluate run=CLICK_RUN_ID evaluation.gauc_weighting=clicks
  python -m pipelines.evaluate run=RUN_ID data=log data.path=newer.parquet
  python -m pipelines.evaluate recommendations=their_top100.parquet data=ml_1m split=loo

The same code as in training: the same store and settings give the same digits. Data, split and what
is measured are the run's own unless given; any store with the same items will do. The results, one
row a question and a report among them, become a run of their own.

Lists that another system made (columns user, item, and rank or score) get the same report.
"""

from __future__ import annotations

import json
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipelines.checking import ConfigError
from pipelines.class_paths import check_consent
from pipelines.clicks import (
    ClickJudge,
    check_candidates,
    check_click_evaluation,
    click_baselines,
    click_judge,
    click_table,
    make_click_split,
)
from pipelines.entry import main
from pipelines.examining import audited, examined, make_judge, reporting_metric
from pipelines.examining_clicks import examined_clicks
from pipelines.explaining import explain_sample
from pipelines.ingest import make_store
from pipelines.judging import (
    Judge,
    baselines,
    check_columns,
    check_evaluation,
    make_split,
    say,
    say_unusable,
    split_counts,
    table,
)
from pipelines.paths import cache_dir
from pipelines.result import check_result_path, write_result
from pipelines.runs import (
    find_run,
    name_dataset,
    report_rows,
    run_of,
    start_run,
    trained_run,
)
from pipelines.schemas import (
    ClickEvaluationConfig,
    ClicksConfig,
    DataConfig,
    EvaluateConfig,
    EvaluationConfig,
    SplitConfig,
    TimeConfig,
    TrackingConfig,
    TrainConfig,
)
from pipelines.story import begun, tell
from pipelines.ui import how_to_open, in_the_ui

if TYPE_CHECKING:
    from recsys.histories.store import HistoryStore
    from recsys.tracking.reading import RunInfo


def implied(overrides: list[str]) -> list[str]:
    """What of `evaluation` and `candidate_set` was not said is as in the run's training."""
    given = {key.lstrip("+"): value for key, _, value in (o.partition("=") for o in overrides)}
    run, model = (None if (v := given.get(k)) == "null" else v for k in ("run", "model"))
    if (run is None) == (model is None):
        return []  # lists of another system, or refused later on
    import yaml

    uri = given.get("tracking.uri")
    info = find_run(run_of(run, model, TrackingConfig("", uri)), uri)
    if info.tags.get("pipeline") != "train":
        return []  # refused later on
    trained = yaml.safe_load(info.artifact("config.yaml").read_text(encoding="utf-8"))
    return [
        setting
        for group in ("evaluation", "candidate_set")
        if group in trained and group not in given
        for setting in _as_overrides(group, trained[group], given)
    ]


def _as_overrides(group: str, own: dict[str, Any], given: dict[str, str]) -> list[str]:
    return [f"{group}={own['name']}"] + [
        f"{group}.{key}={json.dumps(value)}"
        for key, value in own.items()
        if key != "name" and f"{group}.{key}" not in given
    ]


def run(config: EvaluateConfig) -> None:
    """Load, ask, report."""
    started = time.perf_counter()
    check_result_path(config.result)
    if [config.run, config.model, config.recommendations].count(None) != 2:
        raise ConfigError(
            "run= names the run whose model is judged, model= its version in the registry "
            "(NAME@champion, NAME/3), recommendations= the file of another system's lists: one of "
            "them is needed, and only one"
        )
    if config.recommendations is not None:
        check(config)
        judge_recommendations(config, started)
        return
    run_id = run_of(config.run, config.model, config.tracking)
    info, trained = trained_run(run_id, config.tracking)
    check_consent(
        trained,
        config.trusted_modules,
        f"run {info.run_id} ('{info.name}')",
        data=config.data is None,
        metrics=getattr(config.evaluation, "metrics", []),
    )
    check(config)
    data, split_config = config.data or trained.data, config.split or trained.split
    evaluation = config.evaluation
    if evaluation.name != trained.evaluation.name:
        raise ConfigError(
            f"evaluation={evaluation.name} does not go with run {info.run_id} ('{info.name}'), "
            f"which answers {trained.evaluation.name} questions: take "
            f"evaluation={trained.evaluation.name}"
        )
    for name, value in asdict(evaluation).items():
        if value != (own := getattr(trained.evaluation, name)):
            say(f"evaluation.{name} is {value} here and was {own} in training")

    from recsys.training.saved_model import ModelError, load_model, read_description

    folder = info.model()
    described = read_description(folder)
    from recsys.histories.store import open_store

    def accept(store: HistoryStore) -> None:
        if store.item_vocabulary.fingerprint != described["item_vocabulary"]:
            raise ModelError(
                f"run {info.run_id} ('{info.name}') was trained on other items than this store of "
                f"'{data.name}' holds ({described['arguments']['catalogue_size'] - 1:,} there, "
                f"{store.catalogue_size - 1:,} here): a model can only be judged on items it "
                "knows; leave out data= to take the run's own"
            )
        check_columns(evaluation, store)
        if isinstance(trained.questions, ClicksConfig):
            make_click_split(split_config, trained.questions, store)
        else:
            make_split(split_config, store)

    store = open_store(make_store(data, accept))
    say_unusable(store)
    elsewhere = config.data is not None or config.split is not None
    refit = trained.refit is not None and not elsewhere
    model, _ = load_model(folder, config.trusted_modules)
    judge: Judge | ClickJudge
    models: dict[str, Any] = {described["name"]: model}
    if isinstance(evaluation, ClickEvaluationConfig):
        from recsys.histories.features import FittedFeatures

        features = FittedFeatures.load(folder / "features.json")
        check_candidates(config.candidate_set)
        judge = click_judge(
            trained,
            store,
            split=split_config,
            evaluation=evaluation,
            features=features,
            refit=refit,
        )
        judge = replace(judge, findings=audited(store, judge.split, config.audit))
        if unknown := judge.unknown_values("test"):
            said = ", ".join(f"{name} {count:,}" for name, count in unknown.items())
            say(f"values that training did not know, in the test questions: {said}")
    else:
        judge = next_item_judge(config, data, split_config, store, refit=refit)
    say(split_counts(judge.split))
    if elsewhere:
        judge = with_leaks(config, trained, judge, info)
        if evaluation.baselines:
            say("the baselines are fitted on this test's own training rows")
    if evaluation.baselines and isinstance(judge, ClickJudge):
        models |= click_baselines(trained, judge)
    elif evaluation.baselines and isinstance(judge, Judge):
        beside = baselines(judge, trained.trainer.monitor, data.repeats)
        models |= {baseline.name: baseline for baseline in beside}
    track(
        config,
        judge,
        models,
        f"evaluate {info.name}",
        {"evaluates": info.run_id},
        data,
        started,
    )


def check(config: EvaluateConfig) -> None:
    """Refuses what nothing will compute, before any work starts.

    Raises:
        ValueError: naming the setting.
    """
    if isinstance(config.evaluation, EvaluationConfig):
        check_evaluation(config.evaluation)
    else:
        check_click_evaluation(config.evaluation)


def next_item_judge(
    config: EvaluateConfig,
    data: DataConfig,
    split: SplitConfig,
    store: HistoryStore,
    *,
    refit: bool = False,
) -> Judge:
    """Asks about next items, on the data and split that the command or the run names."""
    assert isinstance(config.evaluation, EvaluationConfig)
    return make_judge(
        store,
        split,
        config.evaluation,
        repeats=data.repeats,
        candidates=config.candidate_set,
        audit=config.audit,
        refit=refit,
    )


def judge_recommendations(config: EvaluateConfig, started: float) -> None:
    """Another system's lists, beside the baselines.

    Raises:
        ConfigError: data or split are not said, or settings that do not go with lists.
        ListError: lists that cannot be judged.
    """
    from recsys.evaluation.given_lists import judge_lists
    from recsys.histories.store import open_store
    from recsys.logs.files import sha256_of

    assert config.recommendations is not None
    path, data, split_config = Path(config.recommendations), config.data, config.split
    if data is None or split_config is None:
        missing = " and ".join(
            name for name, value in (("data=", data), ("split=", split_config)) if value is None
        )
        raise ConfigError(f"recommendations={path}: {missing} must say what the lists answer")
    if not isinstance(config.evaluation, EvaluationConfig):
        raise ConfigError("recommendations= answers next-item questions: take evaluation=next_item")
    if config.leaks != "refuse":
        raise ConfigError(
            f"leaks={config.leaks} does not go with recommendations=: nobody knows what another "
            "system was trained on; leave it out"
        )
    if config.trusted_modules:
        raise ConfigError(
            "trusted_modules= is about code that a run names: it goes with run= or model="
        )
    if config.candidate_set.name != "full":
        raise ConfigError(
            f"candidate_set={config.candidate_set.name} does not go with recommendations=, whose "
            "lists are chosen already"
        )

    evaluation = config.evaluation

    def accept_lists(made: HistoryStore) -> None:
        make_split(split_config, check_columns(evaluation, made))

    store = open_store(make_store(data, accept_lists))
    say_unusable(store)
    judge = next_item_judge(config, data, split_config, store)
    say(split_counts(judge.split))
    ranking = judge_lists(
        path,
        store,
        judge.split.test,
        filter_seen=judge.filter_seen,
        k=max(evaluation.ks),
        tie_seed=evaluation.tie_seed,
    )
    if max(evaluation.ks) > ranking.counts["longest"]:
        raise ConfigError(
            f"evaluation.ks={evaluation.ks}: the longest list of {path} holds "
            f"{ranking.counts['longest']} items, beyond which nothing can be said"
        )
    judge = replace(judge, listed=ranking.counts["longest"])
    if seen := ranking.counts["listed_seen"]:
        say(f"{seen:,} of the {ranking.counts['listed']:,} listed items are in the user's history")
    if other := ranking.counts["users_not_asked"]:
        say(f"{other:,} users have lists and are not asked")
    beside = []
    if evaluation.baselines:
        beside = baselines(judge, reporting_metric(evaluation.ks), data.repeats)
    name = path.stem
    if name in {baseline.name for baseline in beside}:
        name = f"{name} of {path.name}"  # not our baseline of that name
    models: dict[str, Any] = {name: ranking}
    models |= {baseline.name: baseline for baseline in beside}
    digest = {"recommendations": sha256_of(path)}
    track(config, judge, models, f"evaluate {path.name}", digest, data, started)


def track(
    config: EvaluateConfig,
    judge: Judge | ClickJudge,
    models: dict[str, Any],
    name: str,
    tags: dict[str, str],
    data: DataConfig,
    started: float,
) -> None:
    """Asks the models, and leaves a run with what they answered."""
    title = data.name
    tags = {**tags, "store": judge.store.fingerprint, "protocol": judge.protocol}
    doing = begun(judge, title, f"Asking {', '.join(models)}.")
    with start_run(config, "evaluate", name, tags=tags, description=doing) as tracked:
        name_dataset(tracked, data, judge, "evaluation")
        if isinstance(judge, Judge):
            report = examined(judge, models, tracked, title)
        else:
            report = examined_clicks(judge, models, tracked, title)
        rows = report.rows
        report_rows(tracked, rows)
        if config.recommendations is None:
            explain_sample(*next(iter(models.items())), judge, data, tracked)
        text = (
            table(judge, rows, title)
            if isinstance(judge, Judge)
            else click_table(judge, rows, title)
        )
        tracked.artifact_text("table.txt", text + "\n")
        seconds = time.perf_counter() - started
        tracked.metrics({"cost/seconds": seconds}, 0)
        tell(tracked, judge, report, title, [f"{seconds:.0f} s"])
        write_result(config.result, run_id=tracked.run_id, seconds=seconds, rows=rows)
    say("")
    say(text)
    say(f"\n{seconds:.0f} s. {in_the_ui(tracked.run_id)}")
    say(how_to_open(tracked.run_id, config.tracking.uri))


def with_leaks(
    config: EvaluateConfig, trained: TrainConfig, judge: Judge | ClickJudge, info: RunInfo
) -> Judge | ClickJudge:
    """The judge, which knows what the model was trained on.

    Raises:
        ConfigError: on answers of this test, unless `leaks=mark`.
    """
    from recsys.histories.leaks import find_leak
    from recsys.histories.store import StoreError, open_store

    refit = trained.refit is not None
    what = f"split={trained.split.name}" + " (refitted on training + validation)" * refit
    if config.data is not None:
        what += f" on data={trained.data.name}"
    judge = replace(judge, trained_on=f"; the model was trained with {what}")
    store = judge.store
    if store.fingerprint != info.tags["store"]:
        folder = cache_dir() / "stores" / f"{trained.data.name}-{info.tags['store'][:12]}"
        try:
            store = open_store(folder)
        except StoreError:
            say(
                "whether the model was trained on answers of this test is not known: the store it "
                f"was trained on is not at {folder}"
            )
            return judge
    if isinstance(trained.questions, ClicksConfig):
        learned: Any = make_click_split(trained.split, trained.questions, store, refit)
    else:
        learned = make_split(trained.split, store)
        learned = learned.refitted() if refit else learned
    leak = find_leak(judge.split, judge.store, learned, store)
    future = isinstance(config.split or trained.split, TimeConfig)
    if leak.answers == 0 and not (future and leak.later):
        return judge
    said = f"{leak.answers:,} of the {leak.questions:,} test questions have answers"
    if future:
        said += f", and {leak.later:,} training events are not earlier than the first of them,"
    said += f" that the model was trained on ({what})"
    if config.leaks == "refuse":
        raise ConfigError(
            f"{said}: its numbers would say nothing about new questions. Train with the split that "
            "you judge by, or take leaks=mark, which marks every number's name"
        )
    say(said)
    return replace(judge, leaking=True)


if __name__ == "__main__":
    main("evaluate", EvaluateConfig, run, __doc__ or "", implied)
