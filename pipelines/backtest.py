r"""Back-test: several cuts in time, a model for each, and one that is left to age.

Examples:
  python -m pipelines.backtest experiment=sasrec_ta_feng cuts=[0.5,0.6,0.7,0.8,0.9]
  python -m pipelines.backtest data=log data.path=shop.parquet \
      cuts=[2024-01-01,2024-02-01,2024-03-01]
  python -m pipelines.backtest experiment=sasrec_ml1m retrained=false

Between each two cuts that follow each other lies a window. A model is trained on what comes before
one window, its weights are chosen on that window, and it is asked about the next; the last window
ends with the log. The frozen model is the first one, asked about all later windows: how fast its
numbers fall behind those of the retrained ones is the staleness curve. Each training is a run of
its own below the back-test's.
"""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass, fields, replace
from typing import TYPE_CHECKING, Any

from pipelines.checking import ConfigError
from pipelines.class_paths import package
from pipelines.entry import main
from pipelines.examining import reporting_metric
from pipelines.headings import metric_title
from pipelines.judging import Judge, interval_text, say
from pipelines.own import model_class
from pipelines.result import check_result_path, without_nan, write_result
from pipelines.runs import name_dataset, start_run
from pipelines.schemas import (
    BacktestConfig,
    EvaluationConfig,
    NextItemModelConfig,
    OwnModelConfig,
    TimeConfig,
    TrainConfig,
)
from pipelines.story import image, markdown_table, plain
from pipelines.train import (
    check_kinds,
    check_trainer,
    model_title,
    next_item_job,
    run_folder,
    tracked_training,
)
from pipelines.ui import how_to_open, in_the_ui

if TYPE_CHECKING:
    import polars as pl

    from recsys.evaluation.intervals import Interval
    from recsys.tracking.run import TrackedRun


@dataclass(frozen=True)
class Window:
    """What was found in one window.

    Attributes:
        title: where it lies.
        questions: how many were asked.
        retrained: mean of the model that was trained just before; None: there was none.
        frozen: mean of the first model; None: it was not asked.
        lost: retrained − frozen, question by question; None where one of them is missing.
        beside: means of the baselines that were fitted just before, by name.
    """

    title: str
    questions: int
    retrained: Interval | None
    frozen: Interval | None
    lost: Interval | None
    beside: dict[str, Interval]


def run(config: BacktestConfig) -> None:
    """Cut, train, ask, compare."""
    started = time.perf_counter()
    check_result_path(config.result)
    check(config)
    from recsys.tracking.operations import NO_RESULT

    assert isinstance(config.split, TimeConfig) and isinstance(config.evaluation, EvaluationConfig)
    check_trainer(training_config(config, 0))
    metric = reporting_metric(config.evaluation.ks)
    # Every window's questions are made before anything is trained: a cut that leaves one empty is
    # said at once.
    jobs = [next_item_job(training_config(config, n)) for n in range(len(config.cuts) - 1)]
    title = f"back-test {model_title(config)} {config.data.name}"
    tags = {"store": jobs[0].store.fingerprint, "seed": str(config.seed)}
    doing = f"Back-testing in {len(jobs)} windows. {NO_RESULT}"
    trusted: list[str] = []
    if isinstance(config.model, OwnModelConfig):
        trusted.append(package(model_class(config.model).__module__))
    with start_run(
        config, "backtest", config.name or title, tags=tags, description=doing
    ) as tracked:
        name_dataset(tracked, config.data, jobs[-1], "back-test")
        windows: list[Window] = []
        first_run: str | None = None
        for number, judge in enumerate(jobs):
            say(f"\nwindow {number + 1} of {len(jobs)}: {judge.split.in_words}")
            frames: dict[str, pl.DataFrame] = {}
            rows: list[dict[str, Any]] = []
            if number == 0 or config.retrained:
                trained = training_config(config, number)
                run_id, rows, _ = tracked_training(
                    trained, judge, None, None, started, parent=tracked.run_id
                )
                first_run = first_run or run_id
                frames["retrained"] = answers_of(judge, run_id, trusted)
            if config.frozen and first_run is not None:
                frames["frozen"] = answers_of(judge, first_run, trusted)
            windows.append(window_of(judge, frames, rows, metric, config.evaluation.resamples))
            report_window(tracked, windows[-1], number, metric)
        protocol = f"test/{jobs[-1].protocol}, in the last window {jobs[-1].legend}"
        text = in_text(windows, metric, config.data.name, protocol)
        tracked.artifact_text("table.txt", text + "\n")
        tracked.artifact_json("backtest.json", without_nan([asdict(w) for w in windows]))
        tracked.figure("figures/staleness.png", staleness(windows, metric))
        seconds = time.perf_counter() - started
        tracked.metrics({"cost/seconds": seconds}, 0)
        tell_tested(tracked, windows, metric, config.data.name, protocol, f"{seconds:.0f} s")
        found = [
            {"model": window.title, "metrics": numbers_of(window, metric)} for window in windows
        ]
        write_result(config.result, run_id=tracked.run_id, seconds=seconds, rows=found)
    say("")
    say(text)
    say(f"\n{seconds:.0f} s. {in_the_ui(tracked.run_id)}")
    say(how_to_open(tracked.run_id, config.tracking.uri))


def check(config: BacktestConfig) -> None:
    """Refuses settings that a back-test cannot use, before any work starts.

    Raises:
        ConfigError: naming the setting.
    """
    check_kinds(config)
    if not isinstance(config.model, NextItemModelConfig):
        raise ConfigError(f"model={config.model.name}: a back-test asks next-item models")
    if config.evaluation.resamples < 2:
        raise ConfigError(
            f"evaluation.resamples={config.evaluation.resamples}: a back-test says how sure its "
            "curve is; take at least 2"
        )
    if len(config.cuts) < 2:
        raise ConfigError(
            f"cuts={config.cuts}: a back-test takes at least two, such as cuts=[0.6,0.7,0.8]"
        )
    if not config.retrained and not config.frozen:
        raise ConfigError("retrained=false and frozen=false leave nobody to ask")
    for name in ("plan", "resume", "register", "refit"):
        if getattr(config, name):
            raise ConfigError(f"{name}= is of train, not of backtest")
    if config.trusted_modules:
        raise ConfigError(
            "trusted_modules= is about code that a recorded run names; what this command line "
            "names is trusted already"
        )
    if not isinstance(config.split, TimeConfig):
        raise ConfigError(f"split={config.split.name} has no cuts: a back-test takes split=time")
    usual = replace(config.split, validation_cut=0.8, test_cut=0.9, test_until=None)
    if config.split != usual:
        raise ConfigError(
            "split.validation_cut, split.test_cut and split.test_until are what cuts= sets here"
        )


def training_config(config: BacktestConfig, number: int) -> TrainConfig:
    """The settings of the training before window `number`: cuts n and n + 1, up to cut n + 2."""
    assert isinstance(config.split, TimeConfig)
    cuts = config.cuts
    split = replace(
        config.split,
        validation_cut=cuts[number],
        test_cut=cuts[number + 1],
        test_until=cuts[number + 2] if number + 2 < len(cuts) else None,
    )
    values = {field.name: getattr(config, field.name) for field in fields(TrainConfig)}
    return TrainConfig(**{**values, "split": split, "result": None, "name": None})


def answers_of(judge: Judge, run_id: str, trusted_modules: list[str]) -> pl.DataFrame:
    """What the model of a training answers to a window, one row a question."""
    from recsys.training.saved_model import load_model

    model: Any = load_model(run_folder(run_id) / "model", trusted_modules)[0]
    return judge.ask(model, "test")[1]


def window_of(
    judge: Judge,
    frames: dict[str, pl.DataFrame],
    rows: list[dict[str, Any]],
    metric: str,
    resamples: int,
) -> Window:
    """The means of a window, with intervals on the same draws of users."""
    import numpy as np

    from recsys.evaluation.intervals import bootstrap_columns

    names = list(frames)
    columns = [frame[metric].to_numpy() for frame in frames.values()]
    if len(columns) == 2:
        columns.append(columns[0] - columns[1])
        names.append("lost")
    users = next(iter(frames.values()))["user"].rank("dense").to_numpy()
    found = dict(
        zip(
            names,
            bootstrap_columns(np.column_stack(columns), users, resamples=resamples),
            strict=True,
        )
    )
    title = judge.split.in_words.partition(";")[0].partition(" from ")[2]
    return Window(
        title=title,
        questions=len(judge.split.test),
        retrained=found.get("retrained"),
        frozen=found.get("frozen"),
        lost=found.get("lost"),
        beside={row["model"]: _interval(row, judge.name("test", metric)) for row in rows[1:]},
    )


def _interval(row: dict[str, Any], metric: str) -> Interval:
    from recsys.evaluation.intervals import Interval

    return Interval(row["metrics"][metric], *row["intervals"][metric])


def numbers_of(window: Window, metric: str) -> dict[str, float]:
    """The means by name."""
    own = {"retrained": window.retrained, "frozen": window.frozen, "lost": window.lost}
    return {
        f"{name}/{metric}": found.estimate
        for name, found in (own | window.beside).items()
        if found is not None
    }


def report_window(tracked: Any, window: Window, number: int, metric: str) -> None:
    """The means as metrics over the windows."""
    from pipelines.judging import file_name

    numbers = numbers_of(window, metric)
    tracked.metrics({file_name(name): value for name, value in numbers.items()}, number)


def in_text(windows: list[Window], metric: str, title: str, protocol: str) -> str:
    """The table for the terminal."""
    from recsys.evaluation.report import table_text

    rows, columns = side_by_side(windows, metric)
    heading = f"{title} · back-test, {len(windows)} windows\n({protocol})\n"
    return table_text(rows, heading, columns)


def side_by_side(windows: list[Window], metric: str) -> tuple[list[dict[str, Any]], dict[str, str]]:
    """The table's rows, and its columns."""
    rows = []
    for window in windows:
        row: dict[str, Any] = {"window": window.title, "questions": window.questions}
        for name in ("retrained", "frozen", "lost"):
            found = getattr(window, name)
            row[name] = "–" if found is None else interval_text(found, signed=name == "lost")
        beside = {name: interval_text(found) for name, found in window.beside.items()}
        rows.append({**row, **beside})
    columns = {"window": "window", "questions": "questions"}
    columns |= {"retrained": f"{metric} retrained", "frozen": "frozen", "lost": "lost by age"}
    columns |= {name: name for name in windows[0].beside}
    return rows, columns


def tell_tested(
    tracked: TrackedRun,
    windows: list[Window],
    metric: str,
    title: str,
    protocol: str,
    cost: str,
) -> None:
    """Has the run's page, and the table of runs, say what was found."""
    newest = windows[-1]
    said = {"retrained": newest.retrained, "frozen": newest.frozen}
    headline = ", ".join(
        f"{name} {interval_text(found)}" for name, found in said.items() if found is not None
    )
    headline = f"{metric_title(metric)} {headline}"
    against = ""
    if newest.lost is not None:
        against = f"lost by age {interval_text(newest.lost, signed=True)}"
        tracked.tag("against", against)
    rows, columns = side_by_side(windows, metric)
    tracked.describe(
        "\n".join(
            [
                f"**{plain(headline)}** in the last of {len(windows)} windows. {plain(against)}",
                "",
                f"* **Data:** {plain(title)}; each window's trainings are runs below this one",
                f"* **Protocol:** {plain(protocol)}",
                "* **Retrained:** on what came before the window. **Frozen:** the first model",
                f"* **Cost:** {plain(cost)}",
                "",
                markdown_table(rows, columns),
                "",
                image(tracked, "figures/staleness.png"),
            ]
        )
    )
    tracked.tag("headline", headline)


def staleness(windows: list[Window], metric: str) -> Any:
    """The staleness curve."""
    from recsys.tracking.figures import interval_curve

    curves = {
        name: [
            None if found is None else (found.low, found.estimate, found.high)
            for found in (getattr(window, name) for window in windows)
        ]
        for name in ("retrained", "frozen")
    }
    return interval_curve(metric, [window.title for window in windows], curves)


if __name__ == "__main__":
    main("backtest", BacktestConfig, run, __doc__ or "")
