r"""Search settings of train on validation; the winner is refitted and tested once.

Examples:
  python -m pipelines.tune study=first experiment=sasrec_ml100k
  python -m pipelines.tune study=more experiment=sasrec_ml100k test=false
  python -m pipelines.tune study=more experiment=sasrec_ml100k trials=40
  python -m pipelines.tune study=wide experiment=sasrec_ml1m test=false \
      space.model.heads.choices=[1,2,4] ~space.model.dropout
  python -m pipelines.tune study=clicks experiment=din_ml1m space=din
  python -m pipelines.tune study=mine model=own model.class_path=shop.models.GRU space=own \
      space.model.arguments.width.choices=[32,64]

Optuna asks (TPE), each trial is composed as `train` would be, trained and validated; trials never
see the test. From epoch prune_from on, a trial that is worse than the median of those before is
stopped: its run ends with the tag trial=pruned. A study lies in data/cache/studies/STUDY.db: the
same command again goes on where it was, after Ctrl-C or kill -9 too, and comes to the same trials
as without the interruption. The winner is trained on training + validation for the epochs that its
trial found best, with that trial's learning rates, and asked the test questions beside the
baselines: that is a run of train, whose settings do it again. After that the study is closed.
"""

from __future__ import annotations

import fcntl
import re
import shutil
import sqlite3
import time
import warnings
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipelines.checking import ConfigError, hints_of, nearest
from pipelines.class_paths import argument_hints, check_arguments
from pipelines.clicks import ClickJudge, check_kinds, check_regularisers
from pipelines.entry import as_overrides, choices, compose, in_hydra, main
from pipelines.fitting import SMALLER_IS_BETTER, fit_model, make_objective
from pipelines.judging import Judge, say, share
from pipelines.own import (
    KNOWN_TO_OBJECTIVES,
    OF_CLICKS,
    OF_NEXT_ITEMS,
    OF_THE_STORE,
    model_class,
    objective_target,
)
from pipelines.own_clicks import OF_THE_DATA, length_seen, ranker_class
from pipelines.paths import cache_dir, outbox_dir, tracking_uri
from pipelines.result import check_result_path, without_nan, write_result
from pipelines.runs import name_dataset, start_run
from pipelines.schemas import (
    OwnClassConfig,
    OwnModelConfig,
    OwnObjectiveConfig,
    OwnRankerConfig,
    RankerConfig,
    SearchConfig,
    Searched,
    TrainConfig,
    TuneConfig,
)
from pipelines.story import begun, image
from pipelines.train import (
    Book,
    check_trainer,
    final_table,
    flat,
    job,
    model_title,
    run_folder,
    tracked_training,
    untrained,
)
from pipelines.ui import how_to_open, in_the_ui

if TYPE_CHECKING:
    import polars as pl
    from optuna import Study
    from optuna.distributions import BaseDistribution
    from optuna.trial import FrozenTrial, Trial

    from recsys.tracking.run import TrackedRun

STUDY_VERSION = 1
GROUPS = ("model", "objective", "trainer")
ARGUMENTS = "arguments."  # of one's own class


def run(config: TuneConfig) -> None:
    """Ask, train, validate, tell; then refit the winner and test it."""
    started = time.perf_counter()
    check_result_path(config.result)
    base = training_config(config)
    check(config, base)
    space = distributions(config, base)
    judge = job(trial_config(base, first_arguments(space)))
    with opened_study(config, judge) as study:
        done = study.user_attrs.get("tested")
        if done is not None and len(ended(study)) < config.trials:
            done = run_now(done)
            raise ConfigError(
                f"study={config.study} is closed after {len(ended(study))} trials: its winner was "
                f"tested (run {done}), and what is searched now would be searched with the test "
                "known; name another study"
            )
        if done is not None:
            say(in_text(study, config))
            run_id = run_now(study.user_attrs["run"])
            say(f"\nstudy {config.study} is finished; its winner was tested. {in_the_ui(run_id)}")
            say(how_to_open(run_id, config.tracking.uri))
            return
        with parent_run(config, judge, study) as tracked:
            say(f"run {tracked.run_id} (study {config.study}: {len(ended(study))} trials before)")
            name_dataset(tracked, config.data, judge, "tuning")
            search(config, base, judge, study, space, tracked)
            best = best_trial(study, config)
            found = in_text(study, config)
            rows: list[dict[str, Any]] = []
            if config.test:
                say("")
                winner = winner_config(config, base, best)
                asked = job(winner)
                winner_id, rows, _ = tracked_training(
                    winner, asked, None, None, started, parent=tracked.run_id
                )
                study.set_user_attr("tested", winner_id)  # at once: it is tested once
                tracked.tag("winner", winner_id)
                tracked.metrics(rows[0]["metrics"], 0)
                found += "\n\n" + final_table(asked, rows, config.data.name)
            tracked.artifact_text("table.txt", found + "\n")
            report_study(config, study, tracked)
            seconds = time.perf_counter() - started
            tracked.metrics({"cost/seconds": seconds}, 0)
            write_result(
                config.result,
                run_id=tracked.run_id,
                seconds=seconds,
                rows=rows,
                study=config.study,
                trials=trial_table(study).to_dicts(),
                best=best.params | {"epoch": best.user_attrs["best_epoch"], "value": best.value},
            )
    say("")
    say(found)
    say(f"\n{seconds:.0f} s. {in_the_ui(tracked.run_id)}")
    say(how_to_open(tracked.run_id, config.tracking.uri))


def training_config(config: TuneConfig) -> TrainConfig:
    """What all trials have in common."""
    values = {field.name: getattr(config, field.name) for field in fields(TrainConfig)}
    return TrainConfig(**{**values, "result": None, "name": None})


def check(config: TuneConfig, base: TrainConfig) -> None:
    """Refuses settings that a study cannot use, before any work starts.

    Raises:
        ConfigError: naming the setting.
    """
    check_kinds(base)
    of_train = {
        "plan": "",
        "resume": ": the same study= goes on",
        "refit": ": the winner is",
        "register": ": python -m pipelines.promote takes the winner's run",
        "trusted_modules": ": what this command line names is trusted already",
    }
    for name, instead in of_train.items():
        if getattr(config, name):
            raise ConfigError(f"{name}= is of train, not of tune{instead}")
    check_trainer(base)
    if not re.fullmatch(r"[^\W_][\w.-]*", config.study):
        raise ConfigError(
            f"study={config.study!r} is no name: letters, digits, '_', '-' and '.', such as "
            f"study={re.sub(r'[^-.0-9a-zA-Z]+', '_', config.study).strip('._-') or 'first'}"
        )
    for name, least in (("trials", 1), ("startup", 1)):
        if getattr(config, name) < least:
            raise ConfigError(f"{name} must be at least {least}, not {getattr(config, name)}")
    if config.prune_from is not None and config.prune_from < 1:
        raise ConfigError(f"prune_from must be null or at least 1, not {config.prune_from}")


# --- the space ---


def distributions(config: TuneConfig, base: TrainConfig) -> dict[str, BaseDistribution]:
    """What Optuna draws from, by setting of train.

    Raises:
        ConfigError: a setting that train does not have, or values that it does not take.
    """
    found: dict[str, BaseDistribution] = {}
    tried: dict[str, list[Any]] = {}
    for group in GROUPS:
        part = getattr(base, group)
        entries = entries_of(getattr(config.space, group))
        known = searchable(part, base, entries)
        for name, entry in entries.items():
            if name not in known:
                front = ARGUMENTS if hasattr(part, "arguments") else ""
                bare = [setting.removeprefix(front) for setting in known]
                near = nearest(name.removeprefix(front), bare, f"space.{group}.{front}")
                near = near or f" Known: {', '.join(known) or 'none'}."
                space = "own" if isinstance(part, OwnClassConfig) else part.name
                if group == "model" and space in choices("space"):
                    near += f" The space that is shipped for it is space={space}."
                raise ConfigError(
                    f"space.{group}.{name}: {group}={part.name} has nothing of that name to "
                    f"search.{near}"
                )
            key = f"{group}.{name}"
            found[key] = distribution(key, entry, known[name])
            tried[key] = entry.choices or ends_of(entry, known[name])
    if not found:
        raise ConfigError("space holds nothing to search: add space.model.width.choices=[32,64]")
    # Every value is composed once, the last ones of short lists again.
    for nth in range(max(map(len, tried.values()))):
        drawn = {key: values[min(nth, len(values) - 1)] for key, values in tried.items()}
        trial = trial_config(base, drawn)
        check_trainer(trial)
        for group in ("model", "objective"):
            part = getattr(trial, group)
            if (own := own_target(part, trial)) is not None:
                setting, path = f"{group}.arguments", part.class_path
                check_arguments(own[0], part.arguments, setting, path, own[1])
    return found


def entries_of(part: Mapping[str, Searched]) -> dict[str, SearchConfig]:
    """What is searched of a group, by its setting: `arguments.width` of one's own class."""
    found: dict[str, SearchConfig] = {}
    for name, entry in part.items():
        if isinstance(entry, SearchConfig):
            found[name] = entry
        else:
            found |= {f"{name}.{inner}": one for inner, one in entry.items()}
    return found


def searchable(part: Any, base: TrainConfig, entries: Iterable[str]) -> dict[str, Any]:
    """The settings of a group that can be searched, with their types.

    Of one's own class those are its arguments, `arguments.width`, as its signature has them.
    """
    own = own_target(part, base)
    if own is None:
        names = [field.name for field in fields(part) if field.name not in ("name", "monitor")]
        return {name: hints_of(type(part), name)[0] for name in names}
    named = [name.removeprefix(ARGUMENTS) for name in entries if name.startswith(ARGUMENTS)]
    hints = argument_hints(own[0], named, own[1])
    return {ARGUMENTS + name: hint for name, hint in hints.items()}


def own_target(part: Any, base: TrainConfig) -> tuple[Callable[..., Any], Collection[str]] | None:
    """The class or function that a group names by class path, and what is no argument of it.

    Raises:
        ConfigError: there is none, or it is of another kind.
    """
    if isinstance(part, OwnModelConfig):
        return model_class(part), OF_THE_STORE
    if isinstance(part, OwnRankerConfig):
        return ranker_class(part), OF_THE_DATA
    if isinstance(part, OwnObjectiveConfig):
        if isinstance(base.model, RankerConfig):
            return objective_target(part, OF_CLICKS)
        return objective_target(part, OF_NEXT_ITEMS, KNOWN_TO_OBJECTIVES)
    return None


def first_arguments(space: Mapping[str, BaseDistribution]) -> dict[str, Any]:
    """A value of each argument that is searched, without which one's own class may not be made."""
    from optuna.distributions import CategoricalDistribution

    return {
        key: drawn.choices[0] if isinstance(drawn, CategoricalDistribution) else drawn.low  # type: ignore[attr-defined]
        for key, drawn in space.items()
        if key.partition(".")[2].startswith(ARGUMENTS)
    }


def ends_of(entry: SearchConfig, hint: Any) -> list[float]:
    """The least and the greatest value."""
    assert entry.low is not None and entry.high is not None
    ends = [entry.low, entry.high]
    return [int(end) for end in ends] if is_whole(hint) else ends


def is_whole(hint: Any) -> bool:
    """Whether a setting takes whole numbers, and no others."""
    members = set(getattr(hint, "__args__", (hint,)))
    return int in members and float not in members


def distribution(key: str, entry: SearchConfig, hint: Any) -> BaseDistribution:
    """What one setting is drawn from.

    Raises:
        ConfigError: an entry that says too little, or too much.
    """
    from optuna.distributions import (
        CategoricalDistribution,
        FloatDistribution,
        IntDistribution,
    )

    where = f"space.{key}"
    ends = (entry.low, entry.high)
    if (entry.choices is None) == (ends == (None, None)) or ends.count(None) == 1:
        raise ConfigError(f"{where} takes choices=[…], or low= and high=, and not both")
    if entry.choices is not None:
        if entry.log or entry.step is not None:
            raise ConfigError(f"{where}: log and step are of low and high, not of choices")
        if not entry.choices or len(set(map(repr, entry.choices))) < len(entry.choices):
            raise ConfigError(f"{where}.choices={entry.choices} must hold different values")
        return CategoricalDistribution(entry.choices)
    low, high = entry.low, entry.high
    assert low is not None and high is not None
    if not low < high:
        raise ConfigError(f"{where}.low={low:g} must be less than {where}.high={high:g}")
    if entry.log and (entry.step is not None or low <= 0):
        raise ConfigError(f"{where}: log takes a low above 0, and no step")
    if entry.step is not None and not 0 < entry.step <= high - low:
        raise ConfigError(f"{where}.step must be positive and at most high - low, not {entry.step}")
    if not is_whole(hint):
        return FloatDistribution(low, high, log=entry.log, step=entry.step)
    step = 1 if entry.step is None else entry.step
    if any(number != int(number) for number in (low, high, step)):
        raise ConfigError(f"{where}: {key} is a whole number, and so are low, high and step")
    return IntDistribution(int(low), int(high), log=entry.log, step=int(step))


def trial_config(base: TrainConfig, values: Mapping[str, Any]) -> TrainConfig:
    """The settings of a trial, composed as if they had been typed.

    Raises:
        ConfigError: a value that train does not take.
    """
    drawn = [f"{key}={in_hydra(value)}" for key, value in values.items()]
    return compose("train", TrainConfig, [*as_overrides("train", base), *drawn])


def winner_config(config: TuneConfig, base: TrainConfig, best: FrozenTrial) -> TrainConfig:
    """The settings of the winner's training on training + validation.

    max_epochs stays: the learning rate falls over as many epochs as in the trial, and the refit
    stops where the trial was best, with the same learning rates up to there.
    """
    return replace(trial_config(base, best.params), refit=int(best.user_attrs["best_epoch"]))


# --- the study ---


def study_file(name: str) -> Path:
    """Where a study is kept."""
    return cache_dir() / "studies" / f"{name}.db"


@contextmanager
def opened_study(config: TuneConfig, judge: Judge | ClickJudge) -> Iterator[Study]:
    """The study of a name, made if absent; nobody else may run it meanwhile.

    Raises:
        ConfigError: a study of something else, a file that holds none, or one that runs now.
    """
    path = study_file(config.study)
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.with_suffix(".lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ConfigError(
                f"study={config.study} is being run by another process: wait for it, or name "
                "another study"
            ) from None
        check_file(path)
        with quiet_optuna():
            yield make_study(config, judge, path)


@contextmanager
def quiet_optuna() -> Iterator[None]:
    """Keeps Optuna's own lines out of our users' terminal."""
    import optuna

    before = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module="optuna")
        warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)
        try:
            yield
        finally:
            optuna.logging.set_verbosity(before)


def check_file(path: Path) -> None:
    """Refuses a file that is not a study's.

    Raises:
        ConfigError: naming it.
    """
    if not path.exists():
        return
    try:
        with closing(sqlite3.connect(path)) as database:
            names = {row[0] for row in database.execute("select name from sqlite_master")}
    except sqlite3.DatabaseError as error:
        raise ConfigError(f"{path} is damaged, or no study ({error}): move it away") from error
    if names and "studies" not in names:
        raise ConfigError(f"{path} is no study: move it away, or name another study")


def make_study(config: TuneConfig, judge: Judge | ClickJudge, path: Path) -> Study:
    """The study in a file, begun now or before.

    Raises:
        ConfigError: it was begun before on something else.
    """
    import optuna

    metric = judge.name("val", config.trainer.monitor)
    pruner: optuna.pruners.BasePruner = optuna.pruners.NopPruner()
    if config.prune_from is not None:
        pruner = optuna.pruners.MedianPruner(config.startup, n_warmup_steps=config.prune_from)
    smaller = config.trainer.monitor in SMALLER_IS_BETTER
    study = optuna.create_study(
        storage=f"sqlite:///{path}",
        study_name=config.study,
        direction="minimize" if smaller else "maximize",
        pruner=pruner,
        load_if_exists=True,
    )
    about = {
        "format": STUDY_VERSION,
        "data": judge.store.fingerprint,
        "protocol": judge.protocol,
        "metric": metric,
        "search space": searched(config),
        "settings": fixed_settings(config),
    }
    if (before := study.user_attrs.get("about")) is None:
        study.set_user_attr("about", about)
    else:
        check_same(config.study, before, about)
    return study


def searched(config: TuneConfig) -> dict[str, Any]:
    """The search space with dotted keys, without what it leaves open."""
    space = flat(asdict(config.space))
    return {key: value for key, value in space.items() if value is not None and value is not False}


def fixed_settings(config: TuneConfig) -> dict[str, Any]:
    """Every setting that a trial's number depends on; files may have moved."""
    free = ("name", "result", "tracking", "plan", "resume", "refit", "trials", "test", "study")
    values = flat({k: v for k, v in asdict(config).items() if k not in (*free, "space", "audit")})
    beside = ["data.path", "data.users", "data.items", "data.verify", "data.name"]
    beside += ["data.impressions.path", "trainer.checkpoint_seconds", "evaluation.resamples"]
    return {key: value for key, value in values.items() if key not in beside}


def check_same(name: str, before: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """Refuses to go on with a study of something else.

    Raises:
        ConfigError: saying what differs.
    """
    for what, here in now.items():
        there = before.get(what)
        if there == here:
            continue
        differs = f"{what} ({there} there, {here} here)"
        if isinstance(here, dict) and isinstance(there, dict):
            keys = [key for key in {**there, **here} if there.get(key) != here.get(key)]
            told = [f"{k} ({there.get(k)!r} there, {here.get(k)!r} here)" for k in keys[:5]]
            differs = ", ".join(told) + f" and {len(keys) - 5} more" * (len(keys) > 5)
        raise ConfigError(
            f"study={name} was begun with another {what}: {differs}. Leave the change out to go "
            "on with it, or name another study"
        )


def run_now(run: str) -> str:
    """What a run of the study is called now: one that waited for its server got an id there."""
    from recsys.tracking.outbox import delivered_as

    return delivered_as(outbox_dir(), run)


@contextmanager
def parent_run(config: TuneConfig, judge: Judge | ClickJudge, study: Study) -> Iterator[TrackedRun]:
    """The study's own run, new or gone on with; the runs that an interruption left open are closed.

    Raises:
        ConfigError: the run is not in this tracking store.
    """
    from recsys.tracking.operations import end_open_children
    from recsys.tracking.outbox import is_waiting
    from recsys.tracking.store import TrackingError

    before = study.user_attrs.get("run")
    if before is not None:
        before = run_now(before)
    title = config.name or f"tune {model_title(config)} {config.data.name}"
    tags = {
        "study": config.study,
        "store": judge.store.fingerprint,
        "protocol": judge.protocol,
        "seed": str(config.seed),
    }
    try:
        if before is not None and not is_waiting(outbox_dir(), before):
            end_open_children(config.tracking.uri or tracking_uri(), before)
        doing = begun(judge, config.data.name, f"Searching settings of {model_title(config)}.")
        tracked = start_run(config, "tune", title, tags=tags, description=doing, run_id=before)
    except TrackingError as error:
        if before is None:
            raise
        raise ConfigError(
            f"study={config.study} goes on in its run {before}, which cannot be had: {error}"
        ) from error
    with tracked:
        study.set_user_attr("run", tracked.run_id)
        yield tracked


def ended(study: Study) -> list[FrozenTrial]:
    """The trials that came to an end: with a value, stopped, or by an error of their own."""
    from optuna.trial import TrialState

    whole = (TrialState.COMPLETE, TrialState.PRUNED)
    return [t for t in study.get_trials() if t.state in whole or "error" in t.user_attrs]


def best_trial(study: Study, config: TuneConfig) -> FrozenTrial:
    """The winner.

    Raises:
        ConfigError: no trial came to a value.
    """
    from optuna.trial import TrialState

    if not study.get_trials(states=(TrialState.COMPLETE,)):
        why = [trial.user_attrs["error"] for trial in ended(study)]
        raise ConfigError(
            f"study={config.study}: none of {len(why)} trials came to a value. The last: {why[-1]}"
        )
    return study.best_trial


# --- the search ---


def search(
    config: TuneConfig,
    base: TrainConfig,
    judge: Judge | ClickJudge,
    study: Study,
    space: dict[str, BaseDistribution],
    tracked: TrackedRun,
) -> None:
    """Trials until there are enough; those that an interruption cut off are done again first."""
    import numpy as np
    import optuna
    from optuna.trial import TrialState

    for cut_off in study.get_trials(states=(TrialState.RUNNING,)):
        study.tell(cut_off.number, state=TrialState.FAIL)
        if cut_off.params.keys() == space.keys():
            study.enqueue_trial(cut_off.params)
        if (left := cut_off.user_attrs.get("run")) is not None:
            shutil.rmtree(run_folder(run_now(left)), ignore_errors=True)
    for number, trial in enumerate(ended(study)):
        report_trial(study, trial, number, tracked)
    while (number := len(ended(study))) < config.trials:
        # What is drawn hangs on seed, number and the trials before: not on when it is asked.
        seed = int(np.random.SeedSequence([config.seed, number]).generate_state(1)[0])
        study.sampler = optuna.samplers.TPESampler(n_startup_trials=config.startup, seed=seed)
        asked = study.ask(space)
        one_trial(config, base, judge, study, asked, number, tracked)
        report_trial(study, ended(study)[-1], number, tracked)
        tracked.flush()


class Pruned(Exception):
    """A trial that is not worth going on with."""


@dataclass
class Watch:
    """Passes metrics on to the trial's run, and each validation to the pruner.

    Attributes:
        book: of the trial's run.
        trial: Optuna's.
        metric: that chooses.
        last: the epoch after which there is nothing to stop.
    """

    book: Book
    trial: Trial
    metric: str
    last: int

    def metrics(self, values: Mapping[str, float], step: int) -> None:
        """See `recsys.training.reporting.Reporter`.

        Raises:
            Pruned: the trial is to stop.
        """
        self.book.metrics(values, step)
        if self.metric in values:
            self.trial.report(values[self.metric], step)
            if step < self.last and self.trial.should_prune():
                raise Pruned


def one_trial(
    config: TuneConfig,
    base: TrainConfig,
    judge: Judge | ClickJudge,
    study: Study,
    trial: Trial,
    number: int,
    tracked: TrackedRun,
) -> None:
    """Trains and validates the settings that were drawn, in a run of their own, and tells."""
    from optuna.trial import TrialState

    from recsys.training.callbacks import TrainingDiverged

    settings = trial_config(base, trial.params)
    said = in_words(trial.params)
    started = time.perf_counter()
    try:
        refused = None
        make_model_of(settings, judge)
    except ValueError as error:  # settings that do not go together
        refused = str(error)
    if refused is not None:
        trial.set_user_attr("error", refused)
        study.tell(trial, state=TrialState.FAIL)
        say(f"trial {number + 1}/{config.trials} cannot be trained: {refused}  {said}")
        return
    state = TrialState.COMPLETE
    try:
        value, text = tracked_trial(settings, judge, trial, number, tracked)
        if value is None:
            state = TrialState.PRUNED
    except (TrainingDiverged, ConfigError) as error:
        value, text, state = None, f"failed: {error}", TrialState.FAIL
        trial.set_user_attr("error", str(error))
    trial.set_user_attr("seconds", time.perf_counter() - started)
    study.tell(trial, value, state=state)
    seconds = time.perf_counter() - started
    say(f"trial {number + 1}/{config.trials}  {text}  {said}  {seconds:.0f} s")


def make_model_of(settings: TrainConfig, judge: Judge | ClickJudge) -> None:
    """Refuses settings that do not go together, before a run is made for them."""
    import numpy as np

    from pipelines.fitting import choose_rows

    choose_rows(settings, untrained(settings, judge))
    if isinstance(judge, Judge):
        make_objective(settings.objective, np.array([0, 1]))
    else:
        check_regularisers(settings.objective)


def tracked_trial(
    settings: TrainConfig,
    judge: Judge | ClickJudge,
    trial: Trial,
    number: int,
    tracked: TrackedRun,
) -> tuple[float | None, str]:
    """The best validation of a trial (None: stopped before its end), and that in words."""
    if isinstance(judge, ClickJudge):
        assert isinstance(settings.model, RankerConfig)
        judge = replace(judge, max_length=length_seen(settings.model, judge.features.sizes))
    metric = judge.name("val", settings.trainer.monitor)
    tags = {"trial": "running", "study": trial.study.study_name}
    tags |= {"store": judge.store.fingerprint, "protocol": judge.protocol}
    tags["seed"] = str(settings.seed)
    name = f"trial {number + 1}: {in_words(trial.params)}"
    with start_run(settings, "trial", name, tags=tags, parent=tracked.run_id) as child:
        trial.set_user_attr("run", child.run_id)
        name_dataset(child, settings.data, judge, "tuning")
        book = Book(child)
        watch = Watch(book, trial, metric, settings.trainer.max_epochs)
        folder = run_folder(child.run_id)
        model = untrained(settings, judge)
        fitted = None
        try:
            fitted = fit_model(settings, judge, model, watch, folder, None, silent=True)
        except Pruned:
            child.tag("trial", "pruned")
        finally:
            shutil.rmtree(folder, ignore_errors=True)
        validated = book.points.get(metric, [])
        if fitted is None:
            epoch = validated[-1][0]
            trial.set_user_attr("epochs", epoch)
            text = f"stopped after epoch {epoch}, {settings.trainer.monitor} "
            return None, text + share(validated[-1][1])
        child.metrics({"best_epoch": fitted.best_epoch, f"best/{metric}": fitted.best_score}, 0)
        child.tag("trial", "complete")
        trial.set_user_attr("best_epoch", fitted.best_epoch)
        trial.set_user_attr("epochs", fitted.epochs)
        text = f"{settings.trainer.monitor} {share(fitted.best_score)} @{fitted.best_epoch}"
        return fitted.best_score, text


def in_words(params: Mapping[str, Any]) -> str:
    """Drawn values for people.

    >>> in_words({"model.width": 32, "trainer.learning_rate": 0.00123456})
    'width 32, learning_rate 0.00123'
    """
    return ", ".join(f"{key.rpartition('.')[2]} {short(value)}" for key, value in params.items())


def short(value: Any) -> str:
    """A drawn value in three digits."""
    return f"{value:.3g}" if isinstance(value, float) else str(value)


# --- the report ---


def report_trial(study: Study, trial: FrozenTrial, number: int, tracked: TrackedRun) -> None:
    """A trial's value as a metric over trials, beside the best so far."""
    from optuna.trial import TrialState

    if trial.state != TrialState.COMPLETE:
        return
    metric = study.user_attrs["about"]["metric"]
    values = [t.value for t in ended(study)[: number + 1] if t.state == TrialState.COMPLETE]
    smaller = study.direction.name == "MINIMIZE"
    best = min(values) if smaller else max(values)  # type: ignore[type-var]
    tracked.metrics({f"trial/{metric}": trial.value, f"best/{metric}": best}, number + 1)  # type: ignore[dict-item]


def trial_table(study: Study) -> pl.DataFrame:
    """One row a trial: what was drawn, how it ended, its value."""
    import polars as pl

    rows = []
    for number, trial in enumerate(ended(study), start=1):
        rows.append(
            {
                "trial": number,
                "state": trial.state.name.lower(),
                "value": trial.value if "error" not in trial.user_attrs else None,
                "best_epoch": trial.user_attrs.get("best_epoch"),
                "epochs": trial.user_attrs.get("epochs"),
                "seconds": trial.user_attrs.get("seconds"),
                "run": trial.user_attrs.get("run"),
                "error": trial.user_attrs.get("error"),
                **{key: trial.params.get(key) for key in trial.distributions},
            }
        )
    return pl.DataFrame(rows, infer_schema_length=None, strict=False)


def in_text(study: Study, config: TuneConfig, most: int = 10) -> str:
    """The best trials for the terminal."""
    from recsys.evaluation.report import table_text

    frame = trial_table(study).filter(state="complete")
    rows = frame.sort("value", descending=study.direction.name == "MAXIMIZE").head(most).to_dicts()
    states = trial_table(study)["state"].value_counts().sort("state").rows()
    counted = ", ".join(f"{count} {state}" for state, count in states)
    names = [key for key in frame.columns if "." in key]
    columns = {"trial": "trial", "value": config.trainer.monitor, "best_epoch": "epoch"}
    columns |= {name: name for name in names}
    heading = f"study {config.study} · {study.user_attrs['about']['metric']} · trials: {counted}"
    for row in rows:
        row |= {name: short(row[name]) for name in names}
        row["trial"] = str(row["trial"])
    return table_text(rows, heading, columns)


def importances(study: Study) -> dict[str, float]:
    """How much of the difference between the best trials and the others each setting tells.

    PED-ANOVA (arXiv 2304.10255): how unlike a setting's values are in the best tenth of the
    finished trials, and in all of them. Empty where fewer than four trials finished.
    """
    from optuna.importance import PedAnovaImportanceEvaluator, get_param_importances
    from optuna.trial import TrialState

    if len(study.get_trials(states=(TrialState.COMPLETE,))) < 4:
        return {}
    return get_param_importances(study, evaluator=PedAnovaImportanceEvaluator())


def report_study(config: TuneConfig, study: Study, tracked: TrackedRun) -> None:
    """Table, figures and description."""
    from optuna.distributions import FloatDistribution, IntDistribution
    from optuna.trial import TrialState

    from recsys.tracking.figures import importance_bars, parallel_coordinates

    frame = trial_table(study)
    tracked.artifact_frame("trials.parquet", frame)
    whole = study.get_trials(states=(TrialState.COMPLETE,))
    best = study.best_trial
    metric = study.user_attrs["about"]["metric"]
    if weights := importances(study):
        tracked.figure("figures/importance.png", importance_bars(metric, weights))
    even = (FloatDistribution, IntDistribution)
    logarithmic = [k for k, d in best.distributions.items() if isinstance(d, even) and d.log]
    tracked.figure(
        "figures/parallel_coordinates.png",
        parallel_coordinates(
            metric,
            {key: [trial.params[key] for trial in whole] for key in best.params},
            [float(trial.value or 0) for trial in whole],
            logarithmic=logarithmic,
            smaller_is_better=study.direction.name == "MINIMIZE",
        ),
    )
    tracked.artifact_json(
        "study.json",
        without_nan(
            {
                **study.user_attrs["about"],
                "trials": frame.to_dicts(),
                "importance": weights,
                "best": {
                    "settings": best.params,
                    "value": best.value,
                    "epoch": best.user_attrs["best_epoch"],
                },
            }
        ),
    )
    figures = ["figures/importance.png"] * bool(weights) + ["figures/parallel_coordinates.png"]
    shown = "\n\n".join(image(tracked, name) for name in figures)
    tracked.describe(f"{description(config, study, weights)}\n\n{shown}")
    tracked.tag("headline", f"best of {len(ended(study))}: {metric} {share(best.value or 0)}")


def description(config: TuneConfig, study: Study, weights: Mapping[str, float]) -> str:
    """What stands on top of the run's page, in Markdown."""
    best = study.best_trial
    number = [trial.number for trial in ended(study)].index(best.number) + 1
    drawn = ", ".join(f"`{key}={short(value)}`" for key, value in best.params.items())
    lines = [
        f"Study **{config.study}**: {len(ended(study))} trials, chosen by "
        f"`{study.user_attrs['about']['metric']}` ({study.direction.name.lower()}d).",
        f"The best is trial {number}: {share(best.value or 0)} at epoch "
        f"{best.user_attrs['best_epoch']}, with {drawn}.",
    ]
    if weights:
        told = ", ".join(f"{key} {weight:.0%}" for key, weight in weights.items())
        lines.append(f"What tells the best trials from the others (PED-ANOVA): {told}.")
    if config.test:
        lines.append(
            f"The winner was trained on training + validation for {best.user_attrs['best_epoch']} "
            "epochs and tested once: the run below that is no trial."
        )
    return "\n\n".join(lines)


if __name__ == "__main__":
    main("tune", TuneConfig, run, __doc__ or "")
