r"""What a tracked run's model looked at in its users' histories, and whether that is what counted.

Examples:
  python -m pipelines.explain run=latest
  python -m pipelines.explain run=RUN_ID users=[1,5,7] k=10 output=explain.html
  python -m pipelines.explain run=RUN_ID users=people.csv history=all
  python -m pipelines.explain run=latest titles=products.csv titles_key=sku title=product_name

One HTML page, without network: the histories as titled items, the weights of each layer and head,
and beside them how far each item's score drops when an event is removed, with the rank correlation
of the two: a map that does not track the model is no explanation. It shows the lists that
`recommend` gives and, with history=test, what came next; of a ranker the candidates of the user's
first test questions (history=all: the list). How far back heads look, and how alike they are, is
said over a larger sample.

The page becomes an artifact of a run of its own, with its numbers in explain.json. Every training
run has such a page of a sample: evaluation.explained_users.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipelines.checking import ConfigError, nearest
from pipelines.class_paths import check_consent
from pipelines.entry import main
from pipelines.explaining import (
    Asked,
    Report,
    by_length,
    drawn,
    explain_candidates,
    explain_lists,
    first_asked,
    first_candidates,
    make_report,
    outcomes,
    sum_up_candidates,
    sum_up_lists,
)
from pipelines.ingest import make_store
from pipelines.judging import Judge, make_split, say, say_unusable
from pipelines.people import known_ids
from pipelines.result import check_result_path, write_result
from pipelines.runs import name_store, start_run, trained_run
from pipelines.schemas import ClicksConfig, EvaluationConfig, ExplainConfig, TrainConfig
from pipelines.story import link, plain
from pipelines.titles import Titles, item_titles
from pipelines.ui import how_to_open, in_the_ui

if TYPE_CHECKING:
    import numpy as np

    from recsys.histories.store import HistoryStore

COUNT = 8


def run(config: ExplainConfig) -> None:
    """Load, look, ask again without each event, draw."""
    started = time.perf_counter()
    check_settings(config)
    from recsys.explain.attention_weights import NoAttentionError, check_attention
    from recsys.histories.store import open_store
    from recsys.serving.recommender import check_vocabulary
    from recsys.training.saved_model import load_model, read_description

    info, trained = trained_run(config.run, config.tracking)
    named = f"run {info.run_id} ('{info.name}')"
    check_consent(trained, config.trusted_modules, named, data=True)
    folder = info.model()
    described = read_description(folder)
    name = described["name"]
    model, _ = load_model(folder, config.trusted_modules)
    try:
        check_attention(model, name)
    except NoAttentionError as error:
        raise ConfigError(f"{named}: {error}") from error
    store = open_store(
        make_store(trained.data, lambda made: check_vocabulary(described, made.item_vocabulary))
    )
    say_unusable(store)
    users = named_users(config, trained, store)
    titles = item_titles(
        trained.data, store, table=config.titles, key=config.titles_key, column=config.title
    )
    report = explained(config, trained, store, model, folder, name, users, titles)
    tags = {"explains": info.run_id, "store": store.fingerprint}
    with start_run(config, "explain", f"explain {info.name}", tags=tags) as tracked:
        name_store(tracked, trained.data, store, "explanation")
        report.keep(tracked)
        tracked.describe(
            "\n\n".join(
                [
                    *(plain(line) for line in report.lines),
                    f"Explains: {plain(named)}",
                    f"Worth opening: {link(tracked, 'explain.html')}",
                ]
            )
        )
        tracked.tag("headline", f"{name}, attention beside score drops")
        tracked.metrics(
            {f"rank_correlation/{n}": value for n, value in report.correlations.items()}, 0
        )
        if config.output is not None:
            from recsys.logs.files import write_text

            write_text(Path(config.output).expanduser(), report.page)
        seconds = time.perf_counter() - started
        write_result(
            config.result,
            run_id=tracked.run_id,
            seconds=seconds,
            rows=[{"model": name, "metrics": report.correlations}],
            output=config.output,
        )
    for line in report.lines:
        say(line)
    if config.output is not None:
        say(f"The page: {config.output}")
    say(f"\n{seconds:.0f} s. {in_the_ui(tracked.run_id, 'explain.html')}")
    say(how_to_open(tracked.run_id, config.tracking.uri))


def check_settings(config: ExplainConfig) -> None:
    """Refuses what cannot be, before any work starts.

    Raises:
        ConfigError: naming the setting.
    """
    check_result_path(config.result)
    if config.k < 1:
        raise ConfigError(f"k must be at least 1, not {config.k}")
    if config.sample < 1 or config.seed < 0 or (config.count is not None and config.count < 1):
        raise ConfigError("sample and count must be at least 1, seed must not be negative")
    if config.users is not None and config.count is not None:
        raise ConfigError(f"count={config.count} is of a sample, users= names them: give one")
    if config.users == []:
        raise ConfigError("users=[] names nobody: leave it out for a sample")
    if config.titles is None and config.titles_key is not None:
        raise ConfigError(f"titles_key={config.titles_key} says nothing without a table in titles=")
    if config.output is None:
        return
    output = Path(config.output).expanduser()
    if output.is_dir():
        raise ConfigError(f"output={output} is a folder: add the name of a file in it")
    if output.suffix not in (".html", ".htm"):
        raise ConfigError(f"output={output}: the page is HTML; name it {output.stem}.html")


def named_users(config: ExplainConfig, trained: TrainConfig, store: HistoryStore) -> Any:
    """Indices of the users that were asked for, in that order; None where nobody was.

    Raises:
        ConfigError: the store does not know one of a list, or none of a file.
    """
    import numpy as np
    import polars as pl

    if config.users is None:
        return None
    if isinstance(config.users, str):
        column = trained.data.columns.user
        return known_ids(config.users, column, "users", store.user_vocabulary)
    raw = [str(user) for user in config.users]
    found = store.user_vocabulary.indices(pl.Series("user", raw, dtype=pl.String))
    unknown = [user for user, index in zip(raw, found, strict=True) if index < 0]
    if unknown:
        there = store.user_vocabulary.raw_ids.cast(pl.String).to_list()
        named = "; ".join(f"'{u}'.{nearest(u, there)}" for u in unknown[:3])
        more = f" (and {len(unknown) - 3:,} more)" if len(unknown) > 3 else ""
        raise ConfigError(f"users: the run's store does not know {named}{more}")
    return found[np.sort(np.unique(found, return_index=True)[1])]


def explained(
    config: ExplainConfig,
    trained: TrainConfig,
    store: HistoryStore,
    model: Any,
    folder: Path,
    name: str,
    users: np.ndarray | None,
    titles: Titles,
) -> Report:
    """The report of the users that were asked for, or of a sample."""
    from recsys.explain.attention_weights import NoAttentionError

    try:
        if isinstance(trained.questions, ClicksConfig):
            parts = of_clicks(config, trained, store, model, folder, users, titles)
        else:
            parts = of_lists(config, trained, store, model, users, titles)
    except NoAttentionError as error:
        raise ConfigError(f"{name} cannot be explained: {error}") from error
    return make_report(f"{name} on {trained.data.name}, explained", *parts, titles)


def of_lists(
    config: ExplainConfig,
    trained: TrainConfig,
    store: HistoryStore,
    model: Any,
    users: np.ndarray | None,
    titles: Titles,
) -> tuple[str, list[Any], Any]:
    """Legend, people and summary of a model of the next item."""
    import numpy as np

    evaluation = trained.evaluation
    assert isinstance(evaluation, EvaluationConfig)
    split = make_split(trained.split, store)
    filter_seen = evaluation.filter_seen and not trained.data.repeats
    judge = Judge(store, split, evaluation, filter_seen)
    everybody = Asked(np.arange(store.users), store.lengths, np.zeros(store.users, dtype=np.int64))
    if config.history == "test":
        everybody = first_asked(split.test, store)
    asked = everybody.take(
        by_length(everybody.ends, config.count or COUNT, config.seed)
        if users is None
        else rows_of(users, everybody.users, store)
    )
    people = explain_lists(model, judge, asked, titles, config.k)
    some = everybody.take(drawn(everybody.ends, config.sample, config.seed))
    when = "before the first test question" if config.history == "test" else "whole"
    legend = f"lists from each history, {when}; {judge.legend}"
    return legend, people, sum_up_lists(model, store, some)


def of_clicks(
    config: ExplainConfig,
    trained: TrainConfig,
    store: HistoryStore,
    model: Any,
    folder: Path,
    users: np.ndarray | None,
    titles: Titles,
) -> tuple[str, list[Any], Any]:
    """Legend, people and summary of a ranker."""
    import numpy as np

    from pipelines.clicks import click_judge
    from recsys.histories.features import FittedFeatures

    judge = click_judge(trained, store, features=FittedFeatures.load(folder / "features.json"))
    view, columns, questions = judge.split.view, judge.columns, judge.split.test
    groups = first_candidates(questions)
    ends = questions.history_ends[[rows[0] for rows in groups]]
    some = [groups[row][0] for row in drawn(ends, config.sample, config.seed)]
    summary = sum_up_candidates(model, view, columns, questions, some)
    roles = outcomes(questions)
    if config.history == "test":
        theirs = questions.users[[rows[0] for rows in groups]]
        rows = (
            by_length(ends, config.count or COUNT, config.seed)
            if users is None
            else rows_of(users, theirs, store)
        )
        chosen = [groups[row] for row in rows]
        legend = f"candidates of each user's first test questions; {judge.legend}"
    else:
        whole = np.diff(view.offsets)
        if users is None:
            users = by_length(whole, config.count or COUNT, config.seed)
        questions = listed(config, trained, store, model, judge.features, users)
        questions.history_ends[:] = whole[questions.users]
        chosen = [np.flatnonzero(questions.users == user) for user in users]
        chosen = [rows for rows in chosen if len(rows)]
        roles = ["recommended"] * len(questions)
        legend = "lists from each whole history; the catalogue ranked"
    people = explain_candidates(model, view, columns, questions, chosen, roles, titles, config.k)
    return legend, people, summary


def listed(
    config: ExplainConfig,
    trained: TrainConfig,
    store: HistoryStore,
    model: Any,
    features: Any,
    users: np.ndarray,
) -> Any:
    """The items of each user's list as click questions, asked at the newest event's time."""
    import numpy as np

    from recsys.histories.clicks import ClickQuestions
    from recsys.histories.store import NO_TIME
    from recsys.serving.rankers import RankerScorer
    from recsys.serving.recommender import Recommender

    assert isinstance(trained.questions, ClicksConfig)
    now = NO_TIME if store.times is None else int(store.times.max(initial=NO_TIME))
    scorer = RankerScorer(model, features, trained.questions.history, store, now)
    recommender = Recommender(
        scorer,  # type: ignore[arg-type]  # its batches are its own
        store.item_vocabulary,
        name="",
        make_batch=scorer.make_batch,
    )
    taken = trained.questions.history == "positives" and store.labels is not None
    top = recommender.top_k(
        store,
        users,
        store.lengths[users],
        k=config.k,
        filter_seen=not trained.data.repeats,
        seen="taken" if taken else "events",
    )
    row, place = np.nonzero(top.items_NK)
    nothing = np.full(len(row), -1, dtype=np.int64)
    return ClickQuestions(
        users=users[row],
        history_ends=np.zeros(len(row), dtype=np.int64),
        candidates=top.items_NK[row, place].astype(np.int64),
        labels=np.zeros(len(row), dtype=np.float32),
        requests=nothing,
        rows=nothing,
        times=np.full(len(row), now),
    )


def rows_of(users: np.ndarray, there: np.ndarray, store: HistoryStore) -> np.ndarray:
    """Where the named users stand among those who have a test question. Who has none is said.

    Raises:
        ConfigError: nobody has one.
    """
    import numpy as np

    place = np.full(store.users, -1, dtype=np.int64)
    place[there] = np.arange(len(there))
    found = place[users]
    missing = store.user_vocabulary.raw(users[found < 0]).to_list()
    if len(missing) == len(users):
        raise ConfigError(
            f"history=test: {missing[0]!r} has no test question"
            + (f", nor have {len(missing) - 1:,} others" if len(missing) > 1 else "")
            + "; take history=all"
        )
    if missing:
        say(f"{len(missing):,} users have no test question and are left out, such as {missing[0]}")
    return found[found >= 0]


if __name__ == "__main__":
    main("explain", ExplainConfig, run, __doc__ or "")
