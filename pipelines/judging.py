"""What training and evaluation share: the questions, the models beside, the table, the files.

The same code runs in both, so a run evaluated again gives the same digits.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
import sys
import time
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipelines.checking import ConfigError
from pipelines.headings import metric_title
from pipelines.own import all_metrics, check_metrics, metric_of
from pipelines.paths import cache_dir
from pipelines.schemas import (
    ClickEvaluationConfig,
    EvaluationConfig,
    ShareConfig,
    SplitConfig,
    TimeConfig,
)

if TYPE_CHECKING:
    import numpy as np
    import polars as pl

    from recsys.evaluation.candidates import Candidates
    from recsys.evaluation.intervals import Interval
    from recsys.evaluation.metrics import Metric
    from recsys.evaluation.ranking import Encoder, Ranking, Scorer
    from recsys.histories.audit import Finding
    from recsys.histories.clicks import ClickQuestions, ClickSplit
    from recsys.histories.questions import Questions, Split
    from recsys.histories.store import HistoryStore
    from recsys.models.baselines.tuning import Baseline

BASELINE_CACHE_VERSION = 2


def say(text: str) -> None:
    """A line for the person at the terminal, at once, also into a pipe."""
    print(text, flush=True)


def make_split(split: SplitConfig, store: HistoryStore) -> Split:
    """The questions of the configured protocol."""
    from recsys.histories.questions import global_time, leave_one_out, user_share

    if isinstance(split, TimeConfig):
        return global_time(
            store,
            validation_cut=split.validation_cut,
            test_cut=split.test_cut,
            target=split.target,
            new_users=split.new_users,
            test_until=split.test_until,
        )
    if isinstance(split, ShareConfig):
        return user_share(store, split.share)
    users = None if split.validation_users == "all" else split.validation_users
    return leave_one_out(store, users, split.seed)


def split_counts(split: Split | ClickSplit) -> str:
    """What a split did, exclusions among it, in one line.

    >>> from recsys.histories.questions import user_share
    >>> from recsys.histories.store import HistoryStore
    >>> split_counts(user_share(HistoryStore.from_lists([[1] * 4, [1]])))[:54]
    'split share: users 2 · users only training 1 · trainin'
    """
    counts = (f"{name.replace('_', ' ')} {count:,}" for name, count in split.counts.items())
    return f"split {split.protocol}: " + " · ".join(counts)


def unusable_rows(report: Mapping[str, Any]) -> str:
    """What the ingest set aside, in one line; "" where nothing was.

    >>> unusable_rows({"quarantined": {"no item": 2}, "impressions": None})
    '2 rows of the log could not be used (no item: 2): quarantine.parquet of the store holds them'
    >>> unusable_rows({"quarantined": {}, "impressions": None})
    ''
    """
    shown = report["impressions"] or {}
    said = []
    for log, rejected in (
        ("the log", report["quarantined"]),
        ("the impressions", shown.get("quarantined", {})),
    ):
        if rejected:
            reasons = ", ".join(f"{why}: {count:,}" for why, count in rejected.items())
            said.append(f"{sum(rejected.values()):,} rows of {log} could not be used ({reasons})")
    if not said:
        return ""
    if lost := shown.get("requests_without_candidates"):
        said.append(f"{lost:,} requests have no usable candidate left")
    return "; ".join(said) + ": quarantine.parquet of the store holds them"


def say_unusable(store: HistoryStore) -> None:
    """What the ingest of a store set aside, if anything."""
    from recsys.histories.ingest_report import read_report

    assert store.path is not None
    if aside := unusable_rows(read_report(store.path)):
        say(aside)


@dataclass(frozen=True)
class Judge:
    """Asks models the questions of one protocol, always in the same way.

    Attributes:
        store: the histories.
        split: the questions.
        evaluation: cut-offs, filter, order of ties.
        filter_seen: whether items of the history are left out: the setting, unless the data say
            that repeats are right answers.
        candidates: what each question of "val" and of "test" lets a model choose from; None: the
            whole catalogue.
        findings: of the split audit.
        listed: length of the lists that another system made, where such are judged.
        leaking: whether the model was trained on some of the answers, or on what came later.
        trained_on: how the model was trained, where it was not on this split's training rows.
        chosen_by: asks the validation questions that this one's split, a refitted one, trains on.
    """

    store: HistoryStore
    split: Split
    evaluation: EvaluationConfig
    filter_seen: bool
    candidates: Mapping[str, Candidates] | None = None
    findings: Sequence[Finding] = ()
    listed: int | None = None
    leaking: bool = False
    trained_on: str = ""
    chosen_by: Judge | None = None

    @property
    def protocol(self) -> str:
        """As it stands in metric names."""
        from recsys.evaluation.report import protocol_name

        candidates = "full" if self.candidates is None else self.candidates["test"].name
        if self.listed is not None:
            candidates = f"top{self.listed}"
        name = protocol_name(self.split.protocol, self.filter_seen, candidates)
        return name + "-leaking" * self.leaking

    @property
    def legend(self) -> str:
        """The protocol in words."""
        seen = (
            "items already in the history left out" if self.filter_seen else "all items, seen too"
        )
        ranked = "whole catalogue ranked"
        if self.candidates is not None:
            ranked = self.candidates["test"].in_words
        if self.listed is not None:
            ranked = f"lists of at most {self.listed:,} items, an answer beyond them is a miss"
        return f"{self.split.in_words}; {ranked}, {seen}{self.trained_on}"

    @property
    def metrics(self) -> Mapping[str, Metric]:
        """What is measured of the ranks, by name: ours, then those of one's own."""
        return all_metrics(self.evaluation.metrics)

    def name(self, stage: str, metric: str) -> str:
        """Full name of a metric."""
        from recsys.evaluation.report import metric_name

        return metric_name(stage, self.protocol, metric)

    def ask(
        self, model: Encoder | Scorer, stage: str
    ) -> tuple[dict[str, float], pl.DataFrame, dict[str, int]]:
        """Metrics by full name, one row a question, and what was counted."""
        return self.report(self.rank(model, stage), stage)

    def rank(self, model: Encoder | Scorer, stage: str) -> Ranking:
        """What a model answers to the questions of a stage."""
        from recsys.evaluation.ranking import rank

        return rank(
            model,
            self.store,
            self.questions(stage),
            filter_seen=self.filter_seen,
            k=max(self.evaluation.ks),
            candidates=None if self.candidates is None else self.candidates[stage],
            tie_seed=self.evaluation.tie_seed,
        )

    def report(
        self, ranking: Ranking, stage: str
    ) -> tuple[dict[str, float], pl.DataFrame, dict[str, int]]:
        """Metrics by full name, one row a question, and what was counted, of these answers."""
        from recsys.evaluation.report import per_question_frame, summarise

        ks, metrics = self.evaluation.ks, self.metrics
        values = summarise(ranking, self.store, ks, metrics)
        named = {self.name(stage, metric): value for metric, value in values.items()}
        frame = per_question_frame(ranking, self.store, self.questions(stage), ks, metrics)
        return named, frame, ranking.counts

    def score(self, model: Encoder | Scorer, stage: str, metric: str) -> float:
        """One metric of a model."""
        return self.ask(model, stage)[0][self.name(stage, metric)]

    def questions(self, stage: str) -> Questions:
        """The questions of "val" or "test"."""
        return self.split.validation if stage == "val" else self.split.test


def check_evaluation(evaluation: EvaluationConfig, monitor: str | None = None) -> None:
    """Refuses cut-offs and a monitor that nothing will compute, before any work starts.

    Raises:
        ValueError: naming what there is.
    """
    import difflib

    if not evaluation.ks or min(evaluation.ks) < 1:
        raise ValueError(
            f"evaluation.ks must hold cut-offs from 1, such as [5,10,20], not {evaluation.ks}"
        )
    check_resamples(evaluation.resamples)
    if evaluation.tie_orders < 0:
        raise ValueError(f"evaluation.tie_orders must be at least 0, not {evaluation.tie_orders}")
    check_metrics(evaluation.metrics)
    if monitor is None:
        return
    known = [f"{kind}_{k}" for k in evaluation.ks for kind in all_metrics(evaluation.metrics)]
    if monitor not in known:
        near = difflib.get_close_matches(monitor, known, n=1)
        hint = f" Did you mean '{near[0]}'?" if near else f" Known: {', '.join(known)}."
        raise ValueError(f"trainer.monitor: there is no metric '{monitor}'.{hint}")


def check_resamples(resamples: int) -> None:
    """Refuses numbers of draws that give no interval.

    Raises:
        ValueError: naming the setting.
    """
    if resamples < 0 or resamples == 1:
        raise ValueError(
            f"evaluation.resamples must be 0, for no intervals, or at least 2, not {resamples}"
        )


def check_columns(
    evaluation: EvaluationConfig | ClickEvaluationConfig, store: HistoryStore
) -> HistoryStore:
    """Refuses cohorts and genres that these data do not have, before anything is trained.

    Returns:
        The store.

    Raises:
        CohortError: naming the nearest.
    """
    from recsys.evaluation.cohorts import check_cohorts, item_column

    check_cohorts(evaluation.cohorts, store)
    if isinstance(evaluation, EvaluationConfig) and evaluation.genres is not None:
        item_column(evaluation.genres, store)
    return store


def baselines(judge: Judge, monitor: str, repeats: bool) -> list[Baseline]:
    """The five baselines, tuned on validation, from the cache where it has them.

    Where the split is refitted, they are fitted again, as tuned, on training + validation.

    Args:
        judge: asks the validation questions.
        monitor: the metric that chooses.
        repeats: whether items of the history may be the answer.

    Raises:
        ConfigError: `monitor` is a metric that is not measured here.
    """
    import numpy as np

    from recsys.models.baselines.tuning import fit_again, tune_baselines

    # The cut-off that tunes need not be one that is reported.
    metric, _, cut = monitor.rpartition("_")
    if metric not in judge.metrics:
        raise ConfigError(
            f"the baselines are tuned by {monitor}, which chose the model too: keep it among "
            "evaluation.metrics, or take evaluation.baselines=false"
        )
    judge = dataclasses.replace(
        judge, evaluation=dataclasses.replace(judge.evaluation, ks=[int(cut)])
    )
    store, split = judge.store, judge.split
    made_from = {
        "version": BASELINE_CACHE_VERSION,
        "store": store.fingerprint,
        "protocol": judge.protocol,
        "training_ends": hashlib.sha256(split.training_ends.tobytes()).hexdigest(),
        "validation": digest_of(split.validation),
        "monitor": monitor,
        "tie_seed": judge.evaluation.tie_seed,
        "repeats": repeats,
    }
    key = hashlib.sha256(json.dumps(made_from, sort_keys=True).encode()).hexdigest()[:16]
    folder = cache_dir() / "baselines" / key
    # What was tuned by a metric of one's own is not kept: its code may be another one tomorrow.
    kept = bool(store.fingerprint) and metric not in map(metric_of, judge.evaluation.metrics)
    found = _read_baselines(folder) if kept else None
    if found is not None:
        return found
    items, offsets, times = np.asarray(store.items), np.asarray(store.offsets), _known_times(store)
    log = (items, offsets, split.training_ends, store.catalogue_size, times)
    if judge.chosen_by is not None:
        chosen_models = baselines(judge.chosen_by, monitor, repeats)
        say("fitting the baselines again, as tuned, on training + validation …")
        models = [fit_again(model, *log) for model in chosen_models]
        if store.fingerprint:
            _write_baselines(folder, models, {"made_from": made_from})
        return models
    started = time.perf_counter()
    say("fitting the baselines and tuning them on validation …")
    tuned = tune_baselines(
        *log,
        lambda model: judge.ask(model, "val")[1][monitor].to_numpy(),
        repeats=repeats,
    )
    for best in tuned:
        chosen = ", ".join(f"{k}={v}" for k, v in best.model.parameters.items()) or "no parameters"
        say(f"  {best.model.name}: {chosen}  (validation {monitor} {best.score:.4f})")
    say(f"  in {time.perf_counter() - started:.0f} s")
    models = [best.model for best in tuned]
    if kept:
        trials = [asdict(trial) for best in tuned for trial in best.trials]
        _write_baselines(folder, models, {"made_from": made_from, "trials": trials})
    return models


def digest_of(questions: Questions | ClickQuestions) -> str:
    """Identity of what is asked."""
    digest = hashlib.sha256()
    for field in dataclasses.fields(questions):
        array = getattr(questions, field.name)
        digest.update(b"none" if array is None else array.tobytes())
    return digest.hexdigest()


def _known_times(store: HistoryStore) -> np.ndarray | None:
    import numpy as np

    from recsys.histories.store import NO_TIME

    if store.times is None or bool((store.times == NO_TIME).any()):
        return None
    return np.asarray(store.times)


def _read_baselines(folder: Path) -> list[Baseline] | None:
    import numpy as np

    from recsys.models.baselines.ease import EASE
    from recsys.models.baselines.ials import IALS
    from recsys.models.baselines.item_knn import ItemKNN
    from recsys.models.baselines.markov import LastItemMarkov
    from recsys.models.baselines.popularity import Popularity

    if not (folder / "trials.json").exists():
        return None
    models: list[Baseline] = []
    try:
        for kind in (Popularity, LastItemMarkov, ItemKNN, EASE, IALS):
            with np.load(folder / f"{kind.__name__}.npz", allow_pickle=False) as arrays:
                models.append(kind.from_state(dict(arrays)))
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        return None  # a damaged cache is no cache: they are fitted again
    return models


def _write_baselines(folder: Path, models: list[Baseline], facts: Mapping[str, Any]) -> None:
    """The arrays first, then `trials.json`, which says that they are whole."""
    import numpy as np

    from recsys.logs.files import name_aside, sync, write_text

    folder.mkdir(parents=True, exist_ok=True)
    for model in models:
        target = folder / f"{type(model).__name__}.npz"
        aside = name_aside(target)
        try:
            with aside.open("xb") as file:
                np.savez(file, allow_pickle=False, **model.state())
            sync(aside)
            aside.replace(target)
        except BaseException:
            aside.unlink(missing_ok=True)
            raise
    write_text(folder / "trials.json", json.dumps(facts, indent=1))


def file_name(model: str) -> str:
    """A model's name, legal in MLflow's names."""
    return model.replace("@", ":").replace("+", "and")


def table(judge: Judge, rows: list[dict[str, Any]], title: str) -> str:
    """The final table: the models beside each other, the protocol in the heading."""
    from recsys.evaluation.report import table_text

    heading = (
        f"{title} · test/{judge.protocol} · {len(judge.split.test):,} questions, "
        f"{judge.store.catalogue_size - 1:,} items\n({judge.legend})\n{about_intervals(rows)}"
    )
    return table_text(
        [shown(row) for row in rows], heading, {"model": "model", **table_columns(judge)}
    )


def table_columns(judge: Judge) -> dict[str, str]:
    """The final table's columns: metric by name, and its heading."""
    ks = judge.evaluation.ks
    k = 10 if 10 in ks else max(ks)
    own = map(metric_of, judge.evaluation.metrics)
    metrics = [f"{name}_{k}" for name in ("hr", "ndcg", "mrr", *own, "coverage")]
    return {judge.name("test", metric): metric_title(metric) for metric in metrics}


def shown(row: Mapping[str, Any]) -> dict[str, Any]:
    """A row of the final table: numbers, or text where there is an interval."""
    from recsys.evaluation.intervals import Interval

    cells = {"model": row["model"], **row["metrics"]}
    for metric, (low, high) in row.get("intervals", {}).items():
        cells[metric] = interval_text(Interval(cells[metric], low, high))
    return cells


def about_intervals(rows: Sequence[Mapping[str, Any]]) -> str:
    """The line that says what the brackets are; "" where there are none."""
    said = "([…]: 95 % intervals over users, docs/metrics.md)\n"
    return said if any("intervals" in row for row in rows) else ""


def share(value: float, signed: bool = False) -> str:
    """Four digits, without the leading zero.

    >>> share(0.05), share(0.05, signed=True), share(-1.25)
    ('.0500', '+.0500', '-1.2500')
    """
    return re.sub(r"^([+-]?)0\.", r"\1.", f"{value:{'+' if signed else ''}.4f}")


def interval_text(interval: Interval, signed: bool = False) -> str:
    """As it stands in tables and sentences.

    >>> from recsys.evaluation.intervals import Interval
    >>> interval_text(Interval(0.12, -0.1, 0.2), signed=True)
    '+.1200 [-.1000, +.2000]'
    """
    ends = interval.estimate, interval.low, interval.high
    estimate, low, high = (share(end, signed) for end in ends)
    return f"{estimate} [{low}, {high}]"


def show_progress() -> bool:
    """Whether a person watches."""
    return sys.stderr.isatty()
