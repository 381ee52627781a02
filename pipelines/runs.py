"""Tracked runs as the commands start, fill and read them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, Protocol

from pipelines.checking import ConfigError, build
from pipelines.entry import as_yaml
from pipelines.judging import file_name, say
from pipelines.paths import artifact_root, outbox_dir, tracking_uri
from pipelines.result import without_nan
from pipelines.schemas import (
    ClickEvaluationConfig,
    DataConfig,
    EvaluationConfig,
    TrackingConfig,
    TrainConfig,
)

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

    from pipelines.clicks import ClickJudge
    from pipelines.judging import Judge
    from recsys.histories.store import HistoryStore
    from recsys.tracking.reading import RunInfo
    from recsys.tracking.registry import Version
    from recsys.tracking.run import TrackedRun

    class Tracked(DataclassInstance, Protocol):
        """Settings of a command that leaves a run."""

        @property
        def tracking(self) -> TrackingConfig:
            """Where it is kept."""


def start_run(
    config: Tracked,
    pipeline: str,
    name: str,
    *,
    tags: Mapping[str, str],
    description: str = "",
    parent: str | None = None,
    run_id: str | None = None,
) -> TrackedRun:
    """Opens the run of a command.

    Args:
        config: the command's settings, all of which the run keeps.
        pipeline: name of the command.
        name: what a person reads in the table of runs.
        tags: beside those of code, versions and machine.
        description: Markdown for the run's page while it has nothing to tell yet.
        parent: the run below which this one is shown.
        run_id: an interrupted run to go on with.
    """
    from recsys.tracking.environment import environment_tags
    from recsys.tracking.run import TrackedRun

    return TrackedRun.start(
        uri=config.tracking.uri or tracking_uri(),
        artifact_root=str(artifact_root()),
        experiment=config.tracking.experiment,
        run_name=name[:200],
        params=asdict(config),
        config_yaml=as_yaml(config),
        tags={**environment_tags(), **tags},
        pipeline=pipeline,
        description=description,
        system_metrics=config.tracking.system_metrics,
        parent_run_id=parent,
        run_id=run_id,
        outbox=outbox_dir(),
        say=say,
    )


def find_run(run: str, uri: str | None, *, waiting_too: bool = False) -> RunInfo:
    """A tracked run.

    Args:
        run: its id, also one it had while it waited in the outbox, or "latest".
        uri: `tracking.uri`, null for the default store.
        waiting_too: whether one that waits will do. It has its settings and what else waits.

    Raises:
        ValueError: no such run, or one that waits.
    """
    from recsys.tracking.outbox import delivered_as, is_waiting, read_waiting
    from recsys.tracking.reading import load_run, load_waiting

    if not is_waiting(outbox_dir(), run):
        return load_run(uri or tracking_uri(), delivered_as(outbox_dir(), run))
    folder = outbox_dir() / run
    if waiting_too:
        return load_waiting(folder)
    waiting = read_waiting(folder)
    raise ConfigError(
        f"run {run} ('{waiting.name}') waits in {folder} until {waiting.uri} can be reached: "
        "deliver it with python -m pipelines.sync"
    )


def name_dataset(
    tracked: TrackedRun, data: DataConfig, judge: Judge | ClickJudge, context: str
) -> None:
    """The data set of a run, with what its split made of it.

    Args:
        tracked: the run.
        data: where it came from.
        judge: holds the store and the questions.
        context: what it was used for.
    """
    name_store(tracked, data, judge.store, context, judge.split.counts)


def name_store(
    tracked: TrackedRun,
    data: DataConfig,
    store: HistoryStore,
    context: str,
    more: Mapping[str, int] | None = None,
) -> None:
    """The data set of a run.

    Args:
        tracked: the run.
        data: where it came from.
        store: that was made of it.
        context: what it was used for.
        more: counts beside those of the store.
    """
    counts = {"events": store.events, "users": store.users, "items": store.catalogue_size - 1}
    profile = {**counts, **(more or {})}
    source = data.class_path or data.path or data.source or data.name
    tracked.dataset(data.name, store.fingerprint, profile, source, context=context)


def report_rows(tracked: TrackedRun, rows: Sequence[Mapping[str, Any]]) -> None:
    """The final table's numbers as metrics: the first model's own, and what it stands against.

    The others' names come last in the alphabet, and so on the run's page.
    """
    tracked.metrics(rows[0]["metrics"], 0)
    for row in rows[1:]:
        prefix = f"versus/{file_name(row['model'])}"
        tracked.metrics({f"{prefix}/{name}": v for name, v in row["metrics"].items()}, 0)
    tracked.artifact_json("table.json", without_nan(list(rows)))


def run_of(run: str | None, model: str | None, tracking: TrackingConfig) -> str:
    """The run that `run=` names, or of which the version is that `model=` names.

    Args:
        run: its id, or "latest".
        model: `NAME@ALIAS` or `NAME/3`, in the registry.
        tracking: where both are kept.

    Raises:
        ValueError: neither or both are given, or there is no such version.
    """
    if (run is None) == (model is None):
        raise ConfigError(
            "run= names a training run, model= a version in the registry (NAME@champion, NAME/3): "
            "one of them is needed, and only one"
        )
    if model is None:
        assert run is not None
        return run
    from recsys.tracking.registry import find_version

    return find_version(tracking.uri or tracking_uri(), model).run_id


def registered(name: str, info: RunInfo, trained: TrainConfig) -> Version:
    """The version of a name that is the model of a training run, made if absent.

    A new version is tagged with protocol, headline metric and fingerprint of the data.
    """
    from recsys.tracking.registry import register_run

    tags = {key: value for key, value in info.tags.items() if key in ("protocol", "store")}
    headline = headline_metric(trained.evaluation)
    for metric, value in info.metrics.items():
        if metric == f"test/{info.tags.get('protocol')}/{headline}":
            tags[metric] = f"{value:.6g}"
    return register_run(info.uri, name, info.run_id, tags)


def headline_metric(evaluation: EvaluationConfig | ClickEvaluationConfig) -> str:
    """What a model is known by: NDCG at 10 or the largest cut-off, of clicks AUC."""
    from pipelines.examining import reporting_metric

    return reporting_metric(evaluation.ks) if isinstance(evaluation, EvaluationConfig) else "auc"


def trained_run(run: str, tracking: TrackingConfig) -> tuple[RunInfo, TrainConfig]:
    """A tracked run that holds a model, and the settings it was trained with.

    Args:
        run: its id, or "latest".
        tracking: where it is kept.

    Raises:
        ValueError: no such run, or one that holds no model.
    """
    import yaml

    info = find_run(run, tracking.uri)
    if info.tags.get("pipeline") != "train":
        raise ConfigError(
            f"run={run}: '{info.name}' is a run of {info.tags.get('pipeline')}, which holds "
            "no model; name a training run, or run=latest"
        )
    text = info.artifact("config.yaml").read_text(encoding="utf-8")
    return info, build(TrainConfig, yaml.safe_load(text), lambda key: f" in run {info.run_id}")
