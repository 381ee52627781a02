r"""Top-K lists from a tracked run, as Parquet: user, rank, item, score, model, protocol.

Examples:
  python -m pipelines.recommend run=latest output=top.parquet
  python -m pipelines.recommend run=RUN_ID k=100 output=top.parquet users=people.csv
  python -m pipelines.recommend run=latest output=top.parquet histories='new/*.parquet'
  python -m pipelines.recommend run=latest output=top.parquet \
      candidates=items.csv candidates_where='price < 20' exclude=sold_out.txt

Files of ids are tables (.csv, .tsv, .parquet, .ndjson) with the log's column of users or items, or
a .txt with one id a line. histories= takes a log in the columns of the run's data: people the model
has never seen, read with its vocabulary. Unknown ids are skipped and counted; who has no history
gets the most popular items, and `model` then says Popularity.

A million users take no more memory than a few thousand. Ctrl-C keeps what is done: the same command
goes on from there. The file appears when it is whole.
"""

from __future__ import annotations

import dataclasses
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipelines.checking import ConfigError, build
from pipelines.entry import main
from pipelines.ingest import make_store
from pipelines.judging import make_split, say
from pipelines.paths import tracking_uri
from pipelines.result import check_result_path, write_result
from pipelines.schemas import ClicksConfig, DataConfig, RecommendConfig, TrainConfig

if TYPE_CHECKING:
    import numpy as np
    import polars as pl

    from recsys.histories.store import HistoryStore
    from recsys.histories.vocabulary import Vocabulary
    from recsys.serving.people import People
    from recsys.tracking.run import RunInfo

SECONDS_BETWEEN_LINES = 10.0


def run(config: RecommendConfig) -> None:
    """Load, answer everybody, write."""
    started = time.perf_counter()
    check_settings(config)
    from recsys.histories.store import open_store
    from recsys.serving.parts import parts_folder, people_in_a_part, write_in_parts
    from recsys.serving.recommender import Recommender, check_vocabulary, event_counts
    from recsys.training.saved_model import ModelError, read_description

    info, trained = trained_run(config)
    data = config.data or trained.data
    folder = info.artifact("model")
    described = read_description(folder)

    def accept(store: HistoryStore) -> None:
        try:
            check_vocabulary(described, store.item_vocabulary)
        except ModelError as error:
            raise ModelError(
                f"run {info.run_id} ('{info.name}'), store of '{data.name}': {error}; leave out "
                "data= to take the run's own, or give other people's events as histories="
            ) from error

    store = open_store(make_store(data, accept))
    split = make_split(trained.split, store) if config.history == "test" else None
    clicks = isinstance(trained.questions, ClicksConfig)
    if clicks and config.history == "test" and store.impressions is not None:
        raise ConfigError(
            "history=test: the questions of this run are impressions, which are cut by request and "
            "not by event; take history=all"
        )
    asked_at = None if split is None else split.test
    people, asked = find_people(config, data, store, asked_at, clicks)
    candidates, restricted = find_candidates(config, data, store.item_vocabulary)
    filter_seen = config.filter_seen
    if filter_seen is None:
        # Click tables do not rank the catalogue, so nothing there says it.
        filter_seen = getattr(trained.evaluation, "filter_seen", True) and not data.repeats
    popularity_V = event_counts(store, None if split is None else split.training_ends)
    if clicks:
        assert isinstance(trained.questions, ClicksConfig)
        from recsys.histories.features import FittedFeatures
        from recsys.serving.rankers import RankerScorer
        from recsys.training.saved_model import load_model

        scorer = RankerScorer(
            load_model(folder)[0],
            FittedFeatures.load(folder / "features.json"),
            trained.questions.history,
            store,
        )
        recommender = Recommender(
            scorer,  # type: ignore[arg-type]  # its batches are its own
            store.item_vocabulary,
            name=described["name"],
            candidates_C=candidates,  # no popularity list: a ranker reads more than the history
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
        )
    protocol = "-".join(
        (
            "all" if split is None else split.protocol,
            "full" if candidates is None else "listed",
            "unseen" if filter_seen else "all",
        )
    )
    K = min(config.k, recommender.candidates)
    if config.k > K:
        say(f"there are {K:,} candidates: the lists hold so many, and not k={config.k:,}")
    step = people_in_a_part(K)

    def part(number: int) -> pl.DataFrame:
        import polars as pl

        some = people.slice(number * step, min((number + 1) * step, len(people)))
        top = recommender.top_k(some.store, some.users_M, some.ends_M, k=K, filter_seen=filter_seen)
        return recommender.frame(some.raw_users, top).with_columns(protocol=pl.lit(protocol))

    output = Path(config.output).expanduser()
    say(
        f"{recommender.name} of run {info.run_id} ('{info.name}'): {protocol}, {K} of "
        f"{recommender.candidates:,} items for {len(people):,} people"
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
    if config.candidates_where is not None and config.candidates is None:
        raise ConfigError("candidates_where is a condition on the table of candidates=: give it")


def trained_run(config: RecommendConfig) -> tuple[RunInfo, TrainConfig]:
    """The tracked run with the model, and the settings it was trained with.

    Raises:
        ValueError: no such run, or one that holds no model.
    """
    import yaml

    from recsys.tracking.run import load_run

    info = load_run(config.tracking.uri or tracking_uri(), config.run)
    if info.tags.get("pipeline") != "train":
        raise ConfigError(
            f"run={config.run}: '{info.name}' is a run of {info.tags.get('pipeline')}, which holds "
            "no model; name a training run, or run=latest"
        )
    text = info.artifact("config.yaml").read_text(encoding="utf-8")
    return info, build(TrainConfig, yaml.safe_load(text), lambda key: f" in run {info.run_id}")


def find_people(
    config: RecommendConfig, data: DataConfig, store: HistoryStore, questions: Any, clicks: bool
) -> tuple[People, dict[str, Any]]:
    """Whom to answer, and what says so in the parts' identity. What is left out is said.

    Args:
        config: of the command.
        data: of the store.
        store: the model's own.
        questions: the test questions if `history` asks for them.
        clicks: whether the model is a ranker, which reads labels too.
    """
    import numpy as np

    from recsys.histories.store import open_store
    from recsys.logs.files import sha256_of
    from recsys.serving.people import NewPeople, StoredPeople, first_questions

    if config.histories is not None:
        people = NewPeople(
            open_store(their_store(data, config.histories, clicks)), store.item_vocabulary
        )
        if skipped := people.counts["events_unknown"]:
            say(
                f"{skipped:,} of {people.store.events:,} events are skipped: they are on "
                f"{people.counts['items_unknown']:,} items the model does not know"
            )
        say_empty(people.ends_N)
        return people, {"histories": people.store.fingerprint}
    users, asked = np.arange(store.users), {}
    if config.users is not None:
        users = known_ids(config.users, data.columns.user, "users", store.user_vocabulary)
        asked = {"users": sha256_of(Path(config.users).expanduser())}
    ends = store.lengths[users]
    if questions is not None:
        ends = first_questions(questions, store.users)[users]
        if left_out := int((ends < 0).sum()):
            say(f"{left_out:,} users have no test question and are left out")
        users, ends = users[ends >= 0], ends[ends >= 0]
        if len(users) == 0:
            raise ConfigError("history=test: nobody who was asked for has a test question")
    say_empty(ends)
    return StoredPeople(store, users, ends), asked


def their_store(data: DataConfig, path: str, clicks: bool) -> Path:
    """The store of other people's events; without labels if they have none, which is said."""
    from recsys.logs.errors import LogError

    try:
        return make_store(histories_config(data, path, clicks))
    except LogError as error:
        if not clicks or data.positive_only or "data.columns.label" not in str(error):
            raise
    say(f"{path} has no column '{data.columns.label}': all of its events count as taken")
    return make_store(histories_config(data, path, clicks=False))


def histories_config(data: DataConfig, path: str, clicks: bool) -> DataConfig:
    """The settings that read other people's events as the model's own were read.

    What makes an event stays as it was; whose events count, and from when, does not. Columns that
    say nothing to a model of item histories need not be there.
    """
    by_rating = data.minimum_rating is not None
    labels = data.positive_only or clicks  # a ranker reads them as behaviour
    labels_from_ratings = labels and data.label_from_rating is not None
    return dataclasses.replace(
        data,
        name="histories",
        source=None,
        path=path,
        columns=dataclasses.replace(
            data.columns,
            rating=data.columns.rating if by_rating or labels_from_ratings else None,
            label=data.columns.label if labels else None,
        ),
        label_from_rating=data.label_from_rating if labels else None,
        users=None,
        users_key=None,
        items=None,
        items_key=None,
        features={},
        impressions=None,
        user_core=1,
        item_core=1,
        time_from=None,
        time_until=None,
    )


def find_candidates(
    config: RecommendConfig, data: DataConfig, items: Vocabulary
) -> tuple[np.ndarray | None, dict[str, Any]]:
    """Item indices that may be recommended (None: all), and what says so in the identity."""
    import numpy as np

    from recsys.logs.files import sha256_of

    chosen, restricted = None, {}
    if config.candidates is not None:
        chosen = known_ids(
            config.candidates, data.columns.item, "candidates", items, config.candidates_where
        )
        restricted = {
            "candidates": sha256_of(Path(config.candidates).expanduser()),
            "candidates_where": config.candidates_where,
        }
    if config.exclude is not None:
        excluded = known_ids(config.exclude, data.columns.item, "exclude", items)
        chosen = np.setdiff1d(np.arange(1, items.size) if chosen is None else chosen, excluded)
        restricted["exclude"] = sha256_of(Path(config.exclude).expanduser())
        if len(chosen) == 0:
            raise ConfigError(f"exclude={config.exclude} leaves no candidates")
    return chosen, restricted


def known_ids(
    path: str, column: str, option: str, vocabulary: Vocabulary, where: str | None = None
) -> np.ndarray:
    """Indices of the ids in a file that the store knows; how many it does not know is said.

    Raises:
        ValueError: it knows none of them.
    """
    from recsys.serving.id_lists import look_up, read_ids

    found = look_up(read_ids(path, column, option, where), vocabulary)
    if len(found.indices) == 0:
        raise ConfigError(
            f"{option}={path}: the store knows none of its {found.unknown:,} ids; the first is "
            f"{found.example}"
        )
    if found.unknown:
        say(
            f"{option}={path}: {found.unknown:,} of {found.unknown + len(found.indices):,} ids are "
            f"not in the store and are skipped; the first is {found.example}"
        )
    return found.indices


def say_empty(ends: np.ndarray) -> None:
    """How many people have no history, and what they get."""
    if empty := int((ends == 0).sum()):
        say(f"{empty:,} people have no history: they get the most popular items")


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


if __name__ == "__main__":
    main("recommend", RecommendConfig, run, __doc__ or "")
