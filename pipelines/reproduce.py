r"""Train a tracked run again, and say whether it comes to the same.

Examples:
  python -m pipelines.reproduce run=RUN_ID
  python -m pipelines.reproduce run=latest commit=mark
  python -m pipelines.reproduce run=RUN_ID tracking.uri=http://mlflow.example:5000

The run's own settings and seed, on a store of the same fingerprint, with the code of the same
commit; where one of these differs, the command refuses (commit=mark only says so). On the same
machine with the same versions every test metric and every rank of every question must be equal to
the last digit. Elsewhere the headline metric is compared on the same users: the interval of the
difference must hold 0. Leaves with 0 where the run is reproduced, with 3 where it is not.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

from pipelines.checking import ConfigError
from pipelines.class_paths import check_trusted, class_paths
from pipelines.compare import usual_metric
from pipelines.entry import main
from pipelines.ingest import make_store
from pipelines.judging import file_name, interval_text, say, share
from pipelines.paths import cache_dir
from pipelines.result import check_result_path, without_nan, write_result
from pipelines.runs import find_run, name_dataset, start_run, trained_run
from pipelines.schemas import ReproduceConfig, TrainConfig
from pipelines.story import about, begun, plain, run_page
from pipelines.train import job, tracked_training
from pipelines.ui import how_to_open, in_the_ui

if TYPE_CHECKING:
    import polars as pl

    from recsys.evaluation.compare import Answers
    from recsys.evaluation.intervals import Interval
    from recsys.histories.store import HistoryStore
    from recsys.tracking.reading import RunInfo

NOT_REPRODUCED = 3
MACHINE = ("host", "cpus", "threads", "platform", "python")
DRAWS = 1000


@dataclass(frozen=True)
class Numbers:
    """What a run's test left.

    Attributes:
        metrics: of each model, by name.
        frames: of each model, one row a question.
        weighting: what a user counts in GAUC.
    """

    metrics: dict[str, dict[str, float | None]]
    frames: dict[str, pl.DataFrame]
    weighting: Any

    def answers(self, name: str) -> Answers:
        """Those of the model itself, under a name."""
        from recsys.evaluation.compare import Answers

        model = next(iter(self.metrics))
        _, protocol, _ = next(iter(self.metrics[model])).split("/")
        return Answers(name, protocol, self.frames[model], self.weighting)


@dataclass(frozen=True)
class Verdict:
    """What a run and its repetition have in common.

    Attributes:
        same_machine: whether digits were compared, and not the headline metric alone.
        metrics: compared.
        ranks: compared, one a question and model; of rankers the probabilities.
        differs: what is not equal, in words.
        metric: the headline metric.
        difference: the run less its repetition, on the same users.
        correlation: Spearman's, of the model's ranks.
    """

    same_machine: bool
    metrics: int
    ranks: int
    differs: list[str]
    metric: str
    difference: Interval
    correlation: float

    @property
    def reproduced(self) -> bool:
        """Whether the run is."""
        return not self.differs if self.same_machine else not self.difference.excludes_zero


def run(config: ReproduceConfig) -> int:
    """Check, train again, compare."""
    started = time.perf_counter()
    check_result_path(config.result)
    info, trained = trained_run(config.run, config.tracking)
    if info.status != "FINISHED":
        raise ConfigError(
            f"run {info.run_id} ('{info.name}') is {info.status}: it has no numbers to come to"
        )
    named = f"run {info.run_id} ('{info.name}')"
    check_trusted(class_paths(trained), config.trusted_modules, named)
    code = other_code(info.tags)
    if code and config.commit == "refuse":
        raise ConfigError(
            f"run {info.run_id} ('{info.name}') was made by other code: {'; '.join(code)}. Check "
            "out its commit, or take commit=mark, which says so in the report"
        )
    machine = other_machine(info.tags)
    before = tested(info)
    check_store(info, trained)
    tracking = replace(config.tracking, experiment=info.experiment)
    trained = replace(trained, resume=None, result=None, register=None, tracking=tracking)
    same_threads(info.tags)
    judge = job(trained)
    tags = {"reproduces": info.run_id}
    own = {**tags, "store": judge.store.fingerprint, "protocol": judge.protocol}
    config = replace(config, tracking=tracking)
    doing = begun(judge, trained.data.name, f"Training {info.name} again.")
    with start_run(
        config, "reproduce", f"reproduce {info.name}", tags=own, description=doing
    ) as tracked:
        name_dataset(tracked, trained.data, judge, "training")
        again_id, _, _ = tracked_training(
            trained, judge, None, None, started, parent=tracked.run_id, tags=tags
        )
        # Where the server went away meanwhile, what the test left waits on this disk.
        after = tested(find_run(again_id, config.tracking.uri, waiting_too=True))
        verdict = compared(before, after, same_machine=not machine and not config.elsewhere)
        text = in_text(info, verdict, code, machine)
        tracked.tag("reproduced", str(verdict.reproduced).lower())
        tracked.metrics({"reproduced": float(verdict.reproduced)}, 0)
        tracked.artifact_text("reproduce.txt", text + "\n")
        report = {
            "format": 1,
            "reproduces": info.run_id,
            "run": again_id,
            "reproduced": verdict.reproduced,
            "other_code": code,
            "other_machine": machine,
            **asdict(verdict),
        }
        tracked.artifact_json("reproduce.json", without_nan(report))
        pages = {"the run": info.run_id, "trained again": again_id}
        links = [f"[{n}]({run_page(info.experiment_id, run_id)})" for n, run_id in pages.items()]
        lines = [plain(line) for line in text.splitlines()]
        tracked.describe("\n\n".join([*lines, ", ".join(links), *about(judge, trained.data.name)]))
        tracked.tag("headline", "reproduced" if verdict.reproduced else "not reproduced")
        tracked.tag("against", f"run {info.run_id} ('{info.name}')")
        seconds = time.perf_counter() - started
        rows = [{"model": m, "metrics": found} for m, found in after.metrics.items()]
        write_result(
            config.result, run_id=tracked.run_id, seconds=seconds, rows=rows, reproduction=report
        )
    say("")
    say(text)
    say(f"\n{seconds:.0f} s. {in_the_ui(tracked.run_id)}")
    say(how_to_open(tracked.run_id, config.tracking.uri))
    return 0 if verdict.reproduced else NOT_REPRODUCED


def other_code(tags: Mapping[str, str]) -> list[str]:
    """How the code that made a run may differ from the code here, in words."""
    from recsys.tracking.environment import environment_tags

    here = environment_tags()
    told = []
    for key in ("git.commit", "version.recsys"):
        if tags.get(key) != here.get(key):
            told.append(f"{key} {tags.get(key)} there, {here.get(key)} here")
    for where, found in (("there", tags), ("here", here)):
        if found.get("git.dirty") == "true":
            told.append(f"files that differ from the commit {where}")
    return told


def other_machine(tags: Mapping[str, str]) -> list[str]:
    """How machine and versions of a run differ from those here, in words."""
    from recsys.tracking.environment import environment_tags

    here = {**environment_tags(), "threads": tags.get("threads", "")}  # as many are taken
    keys = [*MACHINE, *sorted(k for k in {**tags, **here} if k.startswith("version."))]
    return [
        f"{key} {tags.get(key)} there, {here.get(key)} here"
        for key in keys
        if key != "version.recsys" and tags.get(key, "") != here.get(key, "")
    ]


def same_threads(tags: Mapping[str, str]) -> None:
    """As many threads as the run had: sums in another order differ in their last digit."""
    import torch

    if (threads := tags.get("threads", "")).isdigit():
        torch.set_num_threads(int(threads))


def check_store(info: RunInfo, trained: TrainConfig) -> None:
    """Refuses data of another fingerprint.

    Raises:
        ConfigError: saying which of sources and settings differ.
    """
    from recsys.histories.store import open_store

    store = open_store(make_store(trained.data))
    if store.fingerprint != info.tags["store"]:
        raise ConfigError(
            f"run {info.run_id} ('{info.name}') was trained on other data (store "
            f"{info.tags['store'][:12]} there, {store.fingerprint[:12]} here): "
            f"{'; '.join(other_sources(info, trained, store))}"
        )


def other_sources(info: RunInfo, trained: TrainConfig, store: HistoryStore) -> list[str]:
    """How the sources and settings of a run's store differ from those of another, in words."""
    from recsys.tracking.store import TrackingError

    try:
        there = json.loads(info.artifact("sources.json").read_text(encoding="utf-8"))
    except TrackingError:  # of an earlier release: the store itself may still be here
        name = f"{trained.data.name}-{info.tags['store'][:12]}"
        manifest = cache_dir() / "stores" / name / "manifest.json"
        if not manifest.exists():
            return ["what its sources were is not recorded"]
        there = json.loads(manifest.read_text(encoding="utf-8"))
    told = []
    before, now = ([s["sha256"] for s in found["sources"]] for found in (there, store.manifest))
    if len(before) != len(now):
        told.append(f"{len(before)} source files there, {len(now)} here")
    for source, digest in zip(store.manifest["sources"], before, strict=False):
        if source["sha256"] != digest:
            told.append(
                f"{source['path']} has SHA-256 {source['sha256'][:12]}… here, {digest[:12]}… there"
            )
    if there["settings"] != store.manifest["settings"]:
        told.append("it was cleaned with other settings")
    return told or ["the format of stores has changed since"]


def tested(info: RunInfo) -> Numbers:
    """Reads what a run's test left."""
    import polars as pl
    import yaml

    rows = json.loads(info.artifact("table.json").read_text(encoding="utf-8"))
    settings = yaml.safe_load(info.artifact("config.yaml").read_text(encoding="utf-8"))
    frames = {
        row["model"]: pl.read_parquet(
            info.artifact(f"per_question/test/{file_name(row['model'])}.parquet")
        )
        for row in rows
    }
    return Numbers(
        {row["model"]: row["metrics"] for row in rows},
        frames,
        settings["evaluation"].get("gauc_weighting", "impressions"),
    )


def compared(before: Numbers, after: Numbers, *, same_machine: bool) -> Verdict:
    """Holds a run against its repetition.

    Raises:
        CompareError: they were asked other questions.
    """
    from recsys.evaluation.compare import compare

    first, again = before.answers("the run"), after.answers("the run again")
    metric = usual_metric(first)
    _, (found,) = compare(first, [again], metric, resamples=DRAWS)
    differs: list[str] = []
    for model, there in before.metrics.items():
        here = after.metrics.get(model, {})
        differs += other_answers(model, before.frames[model], after.frames.get(model))
        for name in {**there, **here}:
            if there.get(name) != here.get(name):
                differs.append(f"{model} {name}: {there.get(name)!r}, now {here.get(name)!r}")
    differs += [f"{model} is new" for model in after.metrics.keys() - before.metrics.keys()]
    return Verdict(
        same_machine=same_machine,
        metrics=sum(len(found) for found in before.metrics.values()),
        ranks=sum(len(frame) for frame in before.frames.values()),
        differs=differs,
        metric=metric,
        difference=found.difference,
        correlation=correlation(first.frame, again.frame),
    )


def answered(frame: pl.DataFrame) -> str:
    """The column that holds what a model answered."""
    return "rank" if "rank" in frame.columns else "score"


def other_answers(model: str, before: pl.DataFrame, after: pl.DataFrame | None) -> list[str]:
    """How many questions a model answered otherwise, in words; nothing where none."""
    if after is None:
        return []  # its metrics say so
    column = answered(before)
    moved = int((before[column].ne_missing(after[column])).sum())
    if not moved:
        return []
    what = "ranks" if column == "rank" else "probabilities"
    return [f"{model}: {moved:,} of {len(before):,} {what} are others"]


def correlation(before: pl.DataFrame, after: pl.DataFrame) -> float:
    """Spearman's correlation of what two models answered; a missed answer ranks behind all."""
    import polars as pl

    column = answered(before)
    last = 1 << 40 if column == "rank" else 0.0
    both = pl.DataFrame({"a": before[column].fill_null(last), "b": after[column].fill_null(last)})
    if both["a"].equals(both["b"]):
        return 1.0  # also where all ranks are equal
    return float(both.select(pl.corr("a", "b", method="spearman")).item())


def in_text(info: RunInfo, verdict: Verdict, code: list[str], machine: list[str]) -> str:
    """For the terminal."""
    lines = [f"{'reproduced' if verdict.reproduced else 'NOT reproduced'}: {info.name}"]
    compared_on = "ranks" if "_" in verdict.metric else "probabilities"
    if not verdict.differs:
        lines.append(
            f"equal to the last digit: {verdict.metrics:,} metrics, {verdict.ranks:,} {compared_on}"
        )
    elif verdict.same_machine:
        lines += [f"  {said}" for said in verdict.differs[:20]]
        if (more := len(verdict.differs) - 20) > 0:
            lines.append(f"  and {more:,} more: reproduce.json has them")
    else:
        why = "; ".join(machine) or "elsewhere=true"
        lines.append(f"elsewhere ({why}): digits may differ, and {len(verdict.differs):,} do")
    inside = "holds" if not verdict.difference.excludes_zero else "does not hold"
    lines.append(
        f"{verdict.metric} there less here, on the same users: "
        f"{interval_text(verdict.difference, signed=True)}, which {inside} 0; correlation of "
        f"{compared_on} {share(verdict.correlation)}"
    )
    if code:
        lines.append(f"MARK, other code: {'; '.join(code)}")
    return "\n".join(lines)


if __name__ == "__main__":
    main("reproduce", ReproduceConfig, run, __doc__ or "")
