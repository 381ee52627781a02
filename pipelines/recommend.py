r"""Top-K lists from a tracked run, as Parquet: user, rank, item, score, model, protocol.

Examples:
  python -m pipelines.recommend run=latest output=top.parquet
  python -m pipelines.recommend model=NAME@champion output=top.parquet
  python -m pipelines.recommend run=RUN_ID k=100 output=top.parquet users=people.csv
  python -m pipelines.recommend run=latest output=top.parquet histories='new/*.parquet'
  python -m pipelines.recommend run=latest output=top.parquet \
      candidates=items.csv candidates_where='price < 20' exclude=sold_out.txt

Files of ids are tables (.csv, .tsv, .parquet, .ndjson) with the log's column of users or items, or
a .txt with one id a line. histories= takes a log in the columns of the run's data: people the model
has never seen, whatever their ids, read with its vocabulary. Unknown ids are skipped and counted;
who has no history that the model reads gets the most popular items, and `model` then says
Popularity (a ranker that reads no histories answers itself).

Items of the history are left out: of a ranker that reads what was taken (label 1), those that were
taken; else all. seen=events and seen=taken choose, filter_seen=false leaves nothing out. Recency
counts from the newest event, or from at=2024-05-31T12:00.

A million users take no more memory than a few thousand. Ctrl-C keeps what is done: the same command
goes on from there. The file appears when it is whole.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING

from pipelines.checking import ConfigError
from pipelines.class_paths import check_consent
from pipelines.entry import main
from pipelines.ingest import make_store
from pipelines.judging import make_split, say, say_unusable
from pipelines.people import (
    find_candidates,
    find_people,
    is_seen_filtered,
    moments_of,
    what_is_read,
    what_is_seen,
)
from pipelines.result import check_result_path, write_result
from pipelines.runs import run_of, trained_run
from pipelines.schemas import ClicksConfig, RecommendConfig
from pipelines.ui import how_to_open

if TYPE_CHECKING:
    import polars as pl

    from recsys.histories.store import HistoryStore
    from recsys.serving.people import People
    from recsys.tracking.reading import RunInfo

SECONDS_BETWEEN_LINES = 10.0
LEFT_OUT = {
    "events": "items of the history are left out",
    "taken": "items that were taken (label 1) are left out",
    None: "items of the history are listed too",
}


def run(config: RecommendConfig) -> None:
    """Load, answer everybody, write."""
    started = time.perf_counter()
    check_settings(config)
    from recsys.histories.store import open_store
    from recsys.serving.parts import parts_folder, people_in_a_part, write_in_parts
    from recsys.serving.recommender import Recommender, check_vocabulary, event_counts
    from recsys.training.saved_model import ModelError, read_description

    run_id = run_of(config.run, config.model, config.tracking)
    info, trained = trained_run(run_id, config.tracking)
    named = f"run {info.run_id} ('{info.name}')"
    check_consent(trained, config.trusted_modules, named, data=config.data is None)
    data = config.data or trained.data
    folder = info.model()
    described = read_description(folder)
    reading = what_is_read(config, trained, folder)
    filter_seen = is_seen_filtered(config, data, trained)

    def accept(store: HistoryStore) -> None:
        try:
            check_vocabulary(described, store.item_vocabulary)
        except ModelError as error:
            raise ModelError(
                f"run {info.run_id} ('{info.name}'), store of '{data.name}': {error}; leave out "
                "data= to take the run's own, or give other people's events as histories="
            ) from error

    store = open_store(make_store(data, accept))
    say_unusable(store)
    split = make_split(trained.split, store) if config.history == "test" else None
    clicks = reading.features is not None
    if clicks and config.history == "test" and store.impressions is not None:
        raise ConfigError(
            "history=test: the questions of this run are impressions, which are cut by request and "
            "not by event; take history=all"
        )
    asked_at = None if split is None else split.test
    people, asked = find_people(config, data, store, asked_at, reading)
    candidates, restricted = find_candidates(config, data, store.item_vocabulary)
    seen = what_is_seen(config, people.store, reading) if filter_seen else None
    popularity_V = event_counts(
        store, None if split is None else split.training_ends, taken_only=clicks
    )
    if reading.features is not None:
        assert isinstance(trained.questions, ClicksConfig)
        from recsys.serving.rankers import RankerScorer
        from recsys.training.saved_model import load_model

        scorer = RankerScorer(
            load_model(folder, config.trusted_modules)[0],
            reading.features,
            trained.questions.history,
            store,
            moments_of(config, reading.features, people),
        )
        recommender = Recommender(
            scorer,  # type: ignore[arg-type]  # its batches are its own
            store.item_vocabulary,
            name=described["name"],
            popularity_V=None if reading.history == "none" else popularity_V,
            candidates_C=candidates,
            tie_seed=config.tie_seed,
            make_batch=scorer.make_batch,
        )
    else:
        recommender = Recommender.load(
            folder,
            store.item_vocabulary,
            popularity_V=popularity_V,
            candidates_C=candidates,
            tie_seed=config.tie_seed,
            trusted_modules=config.trusted_modules,
        )
    protocol = "-".join(
        (
            "all" if split is None else split.protocol,
            "full" if candidates is None else "listed",
            {"events": "unseen", "taken": "untaken", None: "all"}[seen],
        )
    )
    K = min(config.k, recommender.candidates)
    if config.k > K:
        say(f"there are {K:,} candidates: the lists hold so many, and not k={config.k:,}")
    step = people_in_a_part(K)

    def part(number: int) -> pl.DataFrame:
        import polars as pl

        some = people.slice(number * step, min((number + 1) * step, len(people)))
        top = recommender.top_k(
            some.store,
            some.users_M,
            some.ends_M,
            k=K,
            filter_seen=filter_seen,
            seen=seen or "events",
            read_N=some.read_M,
        )
        return recommender.frame(some.raw_users, top).with_columns(protocol=pl.lit(protocol))

    output = Path(config.output).expanduser()
    say(
        f"{recommender.name} of run {info.run_id} ('{info.name}'): {protocol}, {K} of "
        f"{recommender.candidates:,} items for {len(people):,} people; {LEFT_OUT[seen]}"
    )
    try:
        found = write_in_parts(
            output,
            -(-len(people) // step),
            part,
            {
                "run": info.run_id,
                "model": digests_below(folder),
                "store": store.fingerprint,
                "k": config.k,
                "filter_seen": filter_seen,
                "seen": seen,
                "at": config.at,
                "tie_seed": config.tie_seed,
                "history": config.history,
                "people_in_a_part": step,
                **asked,
                **restricted,
            },
            Progress(len(people), step),
        )
    except KeyboardInterrupt:
        say(f"what is done is kept in {parts_folder(output)}: the same command goes on with it")
        raise
    seconds = time.perf_counter() - started
    report(config, output, recommender.name, info, people, found, seconds)


def check_settings(config: RecommendConfig) -> None:
    """Refuses what cannot be, before any work starts.

    Raises:
        ValueError: naming the setting.
    """
    from recsys.serving.parts import check_output

    check_result_path(config.result)
    check_output(Path(config.output).expanduser())
    if config.k < 1:
        raise ConfigError(f"k must be at least 1, not {config.k}")
    if config.users is not None and config.histories is not None:
        raise ConfigError(
            "users= chooses users of the run's store, histories= brings other people: give one"
        )
    if config.histories is not None and config.history != "all":
        raise ConfigError(
            f"history={config.history} is about users of the run's split; histories= are read whole"
        )
    if config.at is not None:
        from recsys.logs.schema import parse_moment

        parse_moment(config.at, "at")
        if config.history == "test":
            raise ConfigError(
                "history=test asks each user at the time of the own test question: leave at= out"
            )
    if config.candidates_where is not None and config.candidates is None:
        raise ConfigError("candidates_where is a condition on the table of candidates=: give it")


def digests_below(folder: Path) -> dict[str, str]:
    """SHA-256 of every file of a model."""
    from recsys.logs.files import sha256_of

    files = sorted(file for file in folder.rglob("*") if file.is_file())
    return {file.relative_to(folder).as_posix(): sha256_of(file) for file in files}


class Progress:
    """Says now and then how far the lists are."""

    def __init__(self, people: int, step: int) -> None:
        self.people, self.step = people, step
        self.said: float | None = None

    def __call__(self, done: int) -> None:
        """Takes the number of finished parts; the first call is about those found."""
        answered = min(done * self.step, self.people)
        if self.said is None:
            if done:
                say(f"going on: {answered:,} people were answered before")
        elif time.perf_counter() - self.said < SECONDS_BETWEEN_LINES:
            return
        else:
            say(f"{answered:,} of {self.people:,} people")
        self.said = time.perf_counter()


def report(
    config: RecommendConfig,
    output: Path,
    model: str,
    info: RunInfo,
    people: People,
    found: int,
    seconds: float,
) -> None:
    """The last lines, and the result file."""
    import polars as pl

    rows = pl.scan_parquet(output, glob=False).select(pl.len()).collect().item()
    counts = {"people": len(people), "lists_rows": rows, "parts_found": found}
    write_result(
        config.result,
        run_id=info.run_id,
        seconds=seconds,
        rows=[{"model": model, "metrics": counts}],
        output=str(output),
    )
    say(f"{rows:,} rows for {len(people):,} people in {seconds:.0f} s: {output}")
    say("The run of the model in the MLflow UI:")
    say(how_to_open(info.run_id, config.tracking.uri))


if __name__ == "__main__":
    main("recommend", RecommendConfig, run, __doc__ or "")
