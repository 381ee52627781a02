r"""Judge a tracked run again: an offline evaluation job.

Examples:
  python -m pipelines.evaluate run=latest
  python -m pipelines.evaluate run=RUN_ID evaluation.filter_seen=false
  python -m pipelines.evaluate run=CLICK_RUN_ID evaluation.gauc_weighting=clicks
  python -m pipelines.evaluate run=RUN_ID data=log data.path=newer.parquet

The same code as in training: the same store and settings give the same digits (data and split are
the run's own unless given; evaluation is as given here). Any store with the same items will do. The
results, one row a question among them, become a run of their own.
"""

from __future__ import annotations

import time
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any

from pipelines.checking import ConfigError, build
from pipelines.clicks import (
    ClickJudge,
    check_click_evaluation,
    click_baselines,
    click_judge,
    click_table,
    make_click_split,
)
from pipelines.entry import as_yaml, compose, main
from pipelines.ingest import make_store
from pipelines.judging import (
    Judge,
    ask_all,
    baselines,
    check_evaluation,
    file_name,
    make_split,
    say,
    say_unusable,
    split_counts,
    table,
)
from pipelines.paths import artifact_root, cache_dir, tracking_uri
from pipelines.result import check_result_path, write_result
from pipelines.schemas import (
    ClickEvaluationConfig,
    ClicksConfig,
    EvaluateConfig,
    EvaluationConfig,
    TimeConfig,
    TrainConfig,
)
from pipelines.ui import how_to_open

if TYPE_CHECKING:
    from recsys.tracking.run import RunInfo


def implied(overrides: list[str]) -> list[str]:
    """`evaluation=` as the run's own where something of it is set and none was chosen."""
    given = {key.lstrip("+"): value for key, _, value in (o.partition("=") for o in overrides)}
    of_evaluation = any(key.startswith("evaluation.") for key in given)
    if not of_evaluation or "evaluation" in given or "run" not in given:
        return []
    import yaml

    from recsys.tracking.run import load_run

    info = load_run(given.get("tracking.uri") or tracking_uri(), given["run"])
    if info.tags.get("pipeline") != "train":
        return []  # refused later on
    trained = yaml.safe_load(info.artifact("config.yaml").read_text(encoding="utf-8"))
    return [f"evaluation={trained['evaluation']['name']}"]


def run(config: EvaluateConfig) -> None:
    """Load, ask, report."""
    started = time.perf_counter()
    check_result_path(config.result)
    if isinstance(config.evaluation, EvaluationConfig):
        check_evaluation(config.evaluation)
    else:
        check_click_evaluation(config.evaluation)
    import yaml

    from recsys.tracking.run import TrackedRun, environment_tags, load_run

    uri = config.tracking.uri or tracking_uri()
    info = load_run(uri, config.run)
    if info.tags.get("pipeline") != "train":
        raise ConfigError(
            f"run={config.run}: '{info.name}' is a run of {info.tags.get('pipeline')}, which holds "
            "no model; name a training run, or run=latest"
        )
    text = info.artifact("config.yaml").read_text(encoding="utf-8")
    trained = build(TrainConfig, yaml.safe_load(text), lambda key: f" in run {info.run_id}")
    data, split_config = config.data or trained.data, config.split or trained.split
    clicks = isinstance(trained.evaluation, ClickEvaluationConfig)
    evaluation = config.evaluation
    if clicks and evaluation == compose("evaluate", EvaluateConfig, ["run=latest"]).evaluation:
        evaluation = trained.evaluation  # nothing was said about it
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

    folder = info.artifact("model")
    described = read_description(folder)
    from recsys.histories.store import HistoryStore, open_store

    def accept(store: HistoryStore) -> None:
        if store.item_vocabulary.fingerprint != described["item_vocabulary"]:
            raise ModelError(
                f"run {info.run_id} ('{info.name}') was trained on other items than this store of "
                f"'{data.name}' holds ({described['arguments']['catalogue_size'] - 1:,} there, "
                f"{store.catalogue_size - 1:,} here): a model can only be judged on items it "
                "knows; leave out data= to take the run's own"
            )
        if isinstance(trained.questions, ClicksConfig):
            make_click_split(split_config, trained.questions, store)
        else:
            make_split(split_config, store)

    store = open_store(make_store(data, accept))
    say_unusable(store)
    model, _ = load_model(folder)
    judge: Judge | ClickJudge
    models: dict[str, Any] = {described["name"]: model}
    if isinstance(evaluation, ClickEvaluationConfig):
        from recsys.histories.features import FittedFeatures

        features = FittedFeatures.load(folder / "features.json")
        judge = click_judge(
            trained, store, split=split_config, evaluation=evaluation, features=features
        )
        if unknown := judge.unknown_values("test"):
            said = ", ".join(f"{name} {count:,}" for name, count in unknown.items())
            say(f"values that training did not know, in the test questions: {said}")
    else:
        filter_seen = evaluation.filter_seen and not data.repeats
        judge = Judge(store, make_split(split_config, store), evaluation, filter_seen)
    say(split_counts(judge.split))
    if config.data is not None or config.split is not None:
        judge = with_leaks(config, trained, judge, info)
        if evaluation.baselines:
            say("the baselines are fitted on this test's own training rows")
    if evaluation.baselines and isinstance(judge, ClickJudge):
        models |= click_baselines(trained, judge)
    elif evaluation.baselines and isinstance(judge, Judge):
        beside = baselines(judge, trained.trainer.monitor, data.repeats)
        models |= {baseline.name: baseline for baseline in beside}
    with TrackedRun.start(
        uri=uri,
        artifact_root=str(artifact_root()),
        experiment=config.tracking.experiment,
        run_name=f"evaluate {info.name}",
        params=asdict(config),
        config_yaml=as_yaml(config),
        tags={
            **environment_tags(),
            "evaluates": info.run_id,
            "store": store.fingerprint,
            "protocol": judge.protocol,
        },
        pipeline="evaluate",
    ) as tracked:
        rows = ask_all(judge, models, tracked.artifact_frame)
        tracked.metrics(rows[0]["metrics"], 0)
        for row in rows[1:]:
            prefix = f"baseline/{file_name(row['model'])}"
            tracked.metrics({f"{prefix}/{name}": v for name, v in row["metrics"].items()}, 0)
        text = (
            table(judge, rows, data.name)
            if isinstance(judge, Judge)
            else click_table(judge, rows, data.name)
        )
        tracked.artifact_text("table.txt", text + "\n")
        tracked.artifact_json("table.json", rows)
        seconds = time.perf_counter() - started
        write_result(config.result, run_id=tracked.run_id, seconds=seconds, rows=rows)
    say("")
    say(text)
    say(f"\n{seconds:.0f} s. The run in the MLflow UI:")
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

    what = f"split={trained.split.name}"
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
        learned: Any = make_click_split(trained.split, trained.questions, store)
    else:
        learned = make_split(trained.split, store)
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
