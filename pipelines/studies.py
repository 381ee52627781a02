"""Studies of `tune`: an SQLite file each, of one search, gone on with by its name."""

from __future__ import annotations

import fcntl
import sqlite3
import warnings
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipelines.checking import ConfigError
from pipelines.clicks import ClickJudge
from pipelines.fitting import SMALLER_IS_BETTER
from pipelines.judging import Judge
from pipelines.paths import cache_dir
from pipelines.schemas import TuneConfig
from pipelines.train import flat

if TYPE_CHECKING:
    from optuna import Study
    from optuna.trial import FrozenTrial

STUDY_VERSION = 1


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
