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

import re
import shutil
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any

from pipelines.checking import ConfigError
from pipelines.clicks import ClickJudge, check_kinds, check_regularisers
from pipelines.entry import main
from pipelines.fitting import fit_model, make_objective
from pipelines.judging import Judge, say, share
from pipelines.own_clicks import length_seen, own_click_objective
from pipelines.paths import outbox_dir, tracking_uri
from pipelines.result import check_result_path, write_result
from pipelines.runs import name_dataset, start_run
from pipelines.schemas import OwnObjectiveConfig, RankerConfig, TrainConfig, TuneConfig
from pipelines.search_space import distributions, first_arguments, trial_config
from pipelines.story import about, begun, plain
from pipelines.studies import best_trial, ended, opened_study
from pipelines.study_report import in_text, in_words, report_study, report_trial, trial_table
from pipelines.train import (
    Book,
    check_trainer,
    final_table,
    job,
    model_title,
    run_folder,
    tracked_training,
    untrained,
)
from pipelines.ui import how_to_open, in_the_ui

if TYPE_CHECKING:
    from optuna import Study
    from optuna.distributions import BaseDistribution
    from optuna.trial import FrozenTrial, Trial

    from recsys.tracking.run import TrackedRun


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
            asked = judge
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
            report_study(config, study, tracked, asked, rows)
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


def winner_config(config: TuneConfig, base: TrainConfig, best: FrozenTrial) -> TrainConfig:
    """The settings of the winner's training on training + validation.

    max_epochs stays: the learning rate falls over as many epochs as in the trial, and the refit
    stops where the trial was best, with the same learning rates up to there.
    """
    return replace(trial_config(base, best.params), refit=int(best.user_attrs["best_epoch"]))


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

    from recsys.tracking.store import TrackingError

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
    except (OSError, TrackingError):  # of the place, not of what was drawn: to be done again
        raise
    except Exception as error:  # training diverged, or one's own code raised
        value, text, state = None, f"failed: {error_text(error)}", TrialState.FAIL
        trial.set_user_attr("error", error_text(error))
    trial.set_user_attr("seconds", time.perf_counter() - started)
    study.tell(trial, value, state=state)
    seconds = time.perf_counter() - started
    say(f"trial {number + 1}/{config.trials}  {text}  {said}  {seconds:.0f} s")


def error_text(error: Exception) -> str:
    """What a trial's error says, which its own run holds whole; a user's needs no kind."""
    return str(error) if isinstance(error, ValueError) else f"{type(error).__name__}: {error}"


def make_model_of(settings: TrainConfig, judge: Judge | ClickJudge) -> None:
    """Refuses settings that do not go together, before a run is made for them."""
    import numpy as np

    from pipelines.fitting import choose_rows

    choose_rows(settings, untrained(settings, judge))
    if isinstance(judge, Judge):
        make_objective(settings.objective, np.array([0, 1]))
    elif isinstance(settings.objective, OwnObjectiveConfig):
        own_click_objective(settings.objective)
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
            epoch, value = validated[-1]
            trial.set_user_attr("epochs", epoch)
            text = f"stopped after epoch {epoch}, {settings.trainer.monitor} {share(value)}"
            describe_trial(child, trial, judge, settings, text)
            return None, text
        child.metrics({"best_epoch": fitted.best_epoch, f"best/{metric}": fitted.best_score}, 0)
        child.tag("trial", "complete")
        trial.set_user_attr("best_epoch", fitted.best_epoch)
        trial.set_user_attr("epochs", fitted.epochs)
        text = f"{settings.trainer.monitor} {share(fitted.best_score)} @{fitted.best_epoch}"
        describe_trial(child, trial, judge, settings, text)
        return fitted.best_score, text


def describe_trial(
    child: TrackedRun, trial: Trial, judge: Judge | ClickJudge, settings: TrainConfig, text: str
) -> None:
    """Has a trial's page, and the table of runs, say how it went."""
    of = f"Trial of study {trial.study.study_name}: {in_words(trial.params)}."
    what = about(judge, settings.data.name, "val")
    child.describe("\n\n".join([f"**{plain(text)}**", plain(of), *what]))
    child.tag("headline", text)


if __name__ == "__main__":
    main("tune", TuneConfig, run, __doc__ or "")
