"""Who gets a list, what the model reads of them, and what is left out: what `recommend` asks."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipelines.checking import ConfigError
from pipelines.ingest import make_store
from pipelines.judging import say, say_unusable
from pipelines.schemas import (
    ClicksConfig,
    DataConfig,
    FeatureConfig,
    RecommendConfig,
    TrainConfig,
)

if TYPE_CHECKING:
    import numpy as np

    from recsys.histories.features import FittedFeatures
    from recsys.histories.store import HistoryStore
    from recsys.histories.vocabulary import Vocabulary
    from recsys.serving.people import People
    from recsys.serving.recommender import Seen


@dataclasses.dataclass(frozen=True)
class Reading:
    """What the model reads of a person.

    Attributes:
        history: which events: "positives", all "events", or "none".
        labels: whether labels matter, to the model or to what is left out.
        features: of a ranker; None for models of the next item.
    """

    history: str
    labels: bool
    features: FittedFeatures | None

    @property
    def taken_only(self) -> bool:
        """Whether it reads what was taken, where a log says so."""
        return self.history == "positives"


def what_is_read(config: RecommendConfig, trained: TrainConfig, folder: Path) -> Reading:
    """What the model of a run reads of a person.

    Raises:
        ValueError: `at` is given, and nothing counts from it.
    """
    features = None
    history, labels = "events", config.seen == "taken"
    if isinstance(trained.questions, ClicksConfig):
        from recsys.histories.features import FittedFeatures

        features = FittedFeatures.load(folder / "features.json")
        history = trained.questions.history
        labels = labels or history != "none"
    if config.at is not None and not (features and reads_recency(features)):
        raise ConfigError(
            f"at={config.at} is the moment that features of recency count from, and the model has "
            "none: leave it out"
        )
    return Reading(history, labels, features)


def reads_recency(features: FittedFeatures) -> bool:
    """Whether a model reads how long ago events were."""
    from recsys.histories.features import Recency

    return any(isinstance(feature, Recency) for feature in features.features)


def is_seen_filtered(config: RecommendConfig, data: DataConfig, trained: TrainConfig) -> bool:
    """Whether seen items are left out: as asked for, or as the run was judged.

    Raises:
        ValueError: `seen` is given, and nothing is left out.
    """
    filter_seen, why = config.filter_seen, "filter_seen=false"
    if filter_seen is None:
        # Click tables do not rank the catalogue, so nothing there says it.
        judged = getattr(trained.evaluation, "filter_seen", True)
        filter_seen = judged and not data.repeats
        why = "data.repeats=true" if judged else "evaluation.filter_seen=false of the run"
    if config.seen is not None and not filter_seen:
        raise ConfigError(
            f"seen={config.seen} says which items are left out, and with {why} none are: set "
            "filter_seen=true, or leave seen out"
        )
    return filter_seen


def what_is_seen(config: RecommendConfig, store: HistoryStore, reading: Reading) -> Seen:
    """Which items are left out: as asked for, or those that the model's histories hold.

    Args:
        config: of the command.
        store: the histories of the people.
        reading: of the model.

    Raises:
        ValueError: what was taken is asked for, and nothing says it.
    """
    if config.seen == "taken" and store.labels is None:
        raise ConfigError(
            "seen=taken: the log has no labels (data.columns.label), so nothing says what was "
            "taken; take seen=events"
        )
    if config.seen is not None:
        return config.seen
    return "taken" if reading.taken_only and store.labels is not None else "events"


def moments_of(
    config: RecommendConfig, features: FittedFeatures, people: People
) -> int | np.ndarray:
    """When the lists are asked for, for features of recency: see `RankerScorer`. It is said.

    Raises:
        ValueError: `at` lies before an event.
    """
    import numpy as np

    from recsys.histories.store import NO_TIME
    from recsys.logs.schema import parse_moment
    from recsys.serving.people import StoredPeople

    if not reads_recency(features):
        return NO_TIME
    store = people.store
    if config.history == "test":
        assert isinstance(people, StoredPeople) and store.times is not None
        moments = np.full(store.users, NO_TIME)
        moments[people.users_N] = store.times[store.offsets[people.users_N] + people.ends_N]
        say("recency counts from each user's test question")
        return moments
    newest = NO_TIME if store.times is None else int(store.times.max(initial=NO_TIME))
    moment = newest if config.at is None else parse_moment(config.at, "at")
    if newest == NO_TIME:
        if config.at is not None:
            raise ConfigError(f"at={config.at}: the histories have no times, so nothing counts")
        return NO_TIME  # said among what is missing
    if moment < newest:
        raise ConfigError(
            f"at={config.at} is before the newest event, of {in_words(newest)}: lists are asked "
            "for after their histories"
        )
    of = "the newest event" if config.at is None else "the moment of at="
    say(f"recency counts from {in_words(moment)}, {of}")
    return moment


def in_words(moment: int) -> str:
    """Microseconds since 1970 as ISO 8601 in UTC.

    >>> in_words(1_000_000)
    '1970-01-01T00:00:01'
    """
    import numpy as np

    return str(np.datetime64(moment, "us").astype("datetime64[s]"))


def find_people(
    config: RecommendConfig,
    data: DataConfig,
    store: HistoryStore,
    questions: Any,
    reading: Reading,
) -> tuple[People, dict[str, Any]]:
    """Whom to answer, and what says so in the parts' identity. What is left out is said.

    Args:
        config: of the command.
        data: of the store.
        store: the model's own.
        questions: the test questions if `history` asks for them.
        reading: what the model reads of a person.
    """
    import numpy as np

    from recsys.histories.store import open_store
    from recsys.logs.files import sha256_of
    from recsys.serving.people import NewPeople, StoredPeople, first_questions

    if config.histories is not None:
        theirs = open_store(their_store(config, data, config.histories, reading))
        say_unusable(theirs)
        people = NewPeople(theirs, store.item_vocabulary, taken_only=reading.taken_only)
        if skipped := people.counts["events_unknown"]:
            say(
                f"{skipped:,} of {people.store.events:,} events are skipped: they are on "
                f"{people.counts['items_unknown']:,} items the model does not know"
            )
        say_empty(people, reading)
        say_missing(reading, people.store, config.histories)
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
    stored = StoredPeople(store, users, ends, taken_only=reading.taken_only)
    say_empty(stored, reading)
    say_missing(reading)
    return stored, asked


def their_store(config: RecommendConfig, data: DataConfig, path: str, reading: Reading) -> Path:
    """The store of other people's events, with what the file has of the features' columns.

    Labels that it lacks are said. Other features that it lacks: see `say_missing`.
    """
    from recsys.logs.readers import open_log
    from recsys.logs.schema import Columns

    names = data.columns
    log = open_log(path, Columns(names.user, names.item, names.time, names.order), data.time_unit)
    there = set.intersection(*(set(schema) for schema in log.schemas))
    labels = reading.labels
    told = names.label is None or names.label in there
    if labels and not told and not data.positive_only and config.seen != "taken":
        count = "taken" if reading.taken_only else "unlabelled"
        say(f"{path} has no column '{names.label}': all of its events count as {count}")
        labels = False
    read = [] if reading.features is None else reading.features.features
    wanted = {feature.name for feature in read if feature.of in ("user", "event")}
    given = {
        name: feature
        for name, feature in data.features.items()
        if name in wanted and getattr(feature, "column", None) in there
    }
    return make_store(histories_config(data, path, labels, given))


def histories_config(
    data: DataConfig, path: str, labels: bool, features: dict[str, FeatureConfig]
) -> DataConfig:
    """The settings that read other people's events as the model's own were read.

    What makes an event stays as it was; whose events count, and from when, does not. Columns that
    say nothing to the model need not be there.

    Args:
        data: of the model's own log.
        path: of theirs.
        labels: whether labels are read.
        features: whose columns the log has; of users they are the same in all events of one.
    """
    by_rating = data.minimum_rating is not None
    labels = data.positive_only or labels
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
        features=features,
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


def say_empty(people: People, reading: Reading) -> None:
    """How many people have no history that the model reads, and what they get."""
    if reading.history == "none":
        return  # the model's own list: it reads nobody's
    if empty := int((people.read_N == 0).sum()):
        taken = reading.taken_only and people.store.labels is not None
        what = "history of items taken" if taken else "history"
        say(f"{empty:,} people have no {what}: they get the most popular items")


def say_missing(
    reading: Reading, store: HistoryStore | None = None, path: str | None = None
) -> None:
    """Which features count as missing, and why; which values are unknown.

    Args:
        reading: of the model.
        store: the histories of new people; None for users of the model's own.
        path: where they came from.
    """
    if reading.features is None:
        return
    from recsys.serving.rankers import lacking, unknown_values

    if store is not None and (absent := lacking(reading.features, store)):
        columns = [getattr(feature, "column", "times") for feature in absent]
        names = [f"{f.name} ({column})" for f, column in zip(absent, columns, strict=True)]
        say(f"{path} lacks what these features read: {', '.join(names)}; they count as missing")
    if store is not None and (unknown := unknown_values(reading.features, store)):
        counted = ", ".join(f"{name} {count:,}" for name, count in unknown.items())
        say(f"values that training did not know, in {path}: {counted}")
    context = [feature.name for feature in reading.features.features if feature.of == "context"]
    if context:
        say(
            f"features of context count as missing: {', '.join(context)}; nobody knows yet where "
            "and when the lists will be shown"
        )
