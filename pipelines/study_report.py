"""What a study found: in a line, in a table, and on the page of its run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from pipelines.clicks import ClickJudge, click_columns
from pipelines.judging import Judge, about_intervals, share, shown, table_columns
from pipelines.result import without_nan
from pipelines.schemas import TuneConfig
from pipelines.story import about, image, markdown_table, plain
from pipelines.studies import ended

if TYPE_CHECKING:
    import polars as pl
    from optuna import Study
    from optuna.trial import FrozenTrial

    from recsys.tracking.run import TrackedRun


def in_words(params: Mapping[str, Any]) -> str:
    """Drawn values for people.

    >>> in_words({"model.width": 32, "trainer.learning_rate": 0.00123456})
    'width 32, learning_rate 0.00123'
    """
    return ", ".join(f"{key.rpartition('.')[2]} {short(value)}" for key, value in params.items())


def short(value: Any) -> str:
    """A drawn value in three digits."""
    return f"{value:.3g}" if isinstance(value, float) else str(value)


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


def report_study(
    config: TuneConfig,
    study: Study,
    tracked: TrackedRun,
    judge: Judge | ClickJudge,
    rows: Sequence[Mapping[str, Any]],
) -> None:
    """Table, figures and description.

    Args:
        config: of the study.
        study: that has a winner.
        tracked: its run.
        judge: asked the trials.
        rows: of the test: the winner's, then the baselines'; none where nothing was tested.
    """
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
    pictures = "\n\n".join(image(tracked, name) for name in figures)
    said = [*description(config, study, weights), *result(judge, rows)]
    tracked.describe("\n\n".join([*said, *about(judge, config.data.name), pictures]))
    tracked.tag("headline", f"best of {len(ended(study))}: {metric} {share(best.value or 0)}")


def result(judge: Judge | ClickJudge, rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """The winner's test beside the baselines', in Markdown."""
    if not rows:
        return []
    columns = table_columns(judge) if isinstance(judge, Judge) else click_columns(judge)
    table = markdown_table([shown(row) for row in rows], {"model": "model", **columns})
    return [table, plain(about_intervals(rows).strip())]


def description(config: TuneConfig, study: Study, weights: Mapping[str, float]) -> list[str]:
    """What was searched and found, in Markdown, a paragraph each."""
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
    return lines
