"""Features: attributes fitted on training rows, and their codes for any rows of any store.

A feature gives codes (0 is missing, 1 a value that training did not know, 2 … the known ones), bags
of codes (padded with 0) or numbers (a missing one is 0, the mean). The raw columns stay where the
store keeps them; per store a feature adds a table of codes by raw value, and rows are looked up
when they are asked for.

Dimensions: B questions, L history length, M codes of a bag.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal, get_args

import numpy as np
import polars as pl

from recsys.histories.attributes import Attribute
from recsys.histories.store import NO_TIME, HistoryStore
from recsys.logs.errors import nearest
from recsys.logs.files import write_text

Entity = Literal["user", "item", "event", "context"]
FORMAT = "recsys-features"
VERSION = 1
MISSING, UNKNOWN, FIRST = 0, 1, 2
HOURS_OF_WEEK = 168
_MICROS_PER_HOUR = 3_600_000_000
_MONDAY = 4 * 24  # hours from Thursday, 1 January 1970, to the first Monday


class FeatureError(ValueError):
    """A feature that the data do not give: names the feature, the column and what there is."""


@dataclass(frozen=True)
class Categorical:
    """One value of a vocabulary.

    Attributes:
        name: of the feature.
        of: whom it describes: users, items, the history's events or the question ("context").
        column: the raw column.
        minimum_count: values in fewer training rows are unknown.
    """

    kind: ClassVar[str] = "categorical"
    name: str
    of: Entity
    column: str
    minimum_count: int = 1


@dataclass(frozen=True)
class MultiValued:
    """Several values of a vocabulary: a list, or text with separators.

    Attributes:
        name: of the feature.
        of: whom it describes.
        column: the raw column.
        minimum_count: values in fewer training rows are unknown.
        separator: between the values of a text; lists need none.
    """

    kind: ClassVar[str] = "multi"
    name: str
    of: Entity
    column: str
    minimum_count: int = 1
    separator: str = "|"


@dataclass(frozen=True)
class Hashed:
    """One value, by hash: no vocabulary, so no value is unknown, and some share a code.

    Attributes:
        name: of the feature.
        of: whom it describes.
        column: the raw column.
        buckets: number of codes.
    """

    kind: ClassVar[str] = "hashed"
    name: str
    of: Entity
    column: str
    buckets: int


@dataclass(frozen=True)
class Numeric:
    """A number, less its mean and divided by its standard deviation over the training rows.

    Attributes:
        name: of the feature.
        of: whom it describes.
        column: the raw column.
    """

    kind: ClassVar[str] = "numeric"
    name: str
    of: Entity
    column: str


@dataclass(frozen=True)
class Quantile:
    """A number's bucket among quantiles of the training rows.

    Attributes:
        name: of the feature.
        of: whom it describes.
        column: the raw column.
        buckets: at most so many; equal quantiles fall together.
    """

    kind: ClassVar[str] = "quantile"
    name: str
    of: Entity
    column: str
    buckets: int = 10


@dataclass(frozen=True)
class Recency:
    """How long before the question an event of its history was: ⌊log₂(1 + seconds)⌋.

    Attributes:
        name: of the feature.
        buckets: the last one holds all longer times; 24 reach 97 days.
    """

    kind: ClassVar[str] = "recency"
    of: ClassVar[Entity] = "event"
    name: str
    buckets: int = 24


@dataclass(frozen=True)
class HourOfWeek:
    """The hour of the week in UTC, 0 … 167 from Monday.

    Attributes:
        name: of the feature.
        of: the question's time ("context"; of an impression, its request's first) or that of the
            history's events ("event").
    """

    kind: ClassVar[str] = "hour_of_week"
    name: str
    of: Literal["event", "context"]


@dataclass(frozen=True)
class UserId:
    """The user as such; users whom training did not see are unknown.

    Attributes:
        name: of the feature.
        minimum_count: users with fewer training rows are unknown.
    """

    kind: ClassVar[str] = "user_id"
    of: ClassVar[Entity] = "user"
    name: str = "user_id"
    minimum_count: int = 1


@dataclass(frozen=True)
class Label:
    """The label of a history's event as behaviour: 1 unlabelled, 2 label 0, 3 label 1.

    Attributes:
        name: of the feature.
    """

    kind: ClassVar[str] = "label"
    of: ClassVar[Entity] = "event"
    name: str = "label"


ColumnFeature = Categorical | MultiValued | Hashed | Numeric | Quantile
Feature = ColumnFeature | Recency | HourOfWeek | UserId | Label
KINDS: dict[str, type[Feature]] = {kind.kind: kind for kind in get_args(Feature)}


@dataclass(frozen=True)
class ClickRows:
    """The rows that features are fitted on, or counted in.

    Attributes:
        users: int64 [N], the questions' users.
        items: int64 [N], their candidates.
        rows: int64 [N], their rows in the log, or in the impressions where the store has them.
        events: int64 [E], the events of the log that their histories hold, each once
            (`events_before` gives them).
    """

    users: np.ndarray
    items: np.ndarray
    rows: np.ndarray
    events: np.ndarray


def events_before(store: HistoryStore, users: np.ndarray, ends: np.ndarray) -> np.ndarray:
    """The events of the log that some history `[0, end)` of its user holds, ascending.

    Args:
        store: the histories.
        users: int64 [N], user indices, any number of times each.
        ends: int64 [N], counted in the user's own events.
    """
    longest = np.zeros(store.users, dtype=np.int64)
    np.maximum.at(longest, users, ends)
    place = np.arange(store.events) - np.repeat(store.offsets[:-1], store.lengths)
    return np.flatnonzero(place < np.repeat(longest, store.lengths))


@dataclass(frozen=True)
class _Fitted:
    """A feature and what training taught it; fields that its kind has no use for are None.

    Attributes:
        feature: as declared.
        values: the vocabulary as text; `values[i]` has the code i + 2.
        mean: of the training rows.
        deviation: of the training rows; 1 where they are all alike.
        edges: ascending bounds between buckets; a number equal to one falls above it.
    """

    feature: Feature
    values: list[str] | None = None
    mean: float | None = None
    deviation: float | None = None
    edges: list[float] | None = None

    @property
    def size(self) -> int:
        """Number of codes, 0 for numbers."""
        feature = self.feature
        if isinstance(feature, Numeric):
            return 0
        if isinstance(feature, Hashed | Recency):
            return FIRST + feature.buckets
        if isinstance(feature, HourOfWeek):
            return FIRST + HOURS_OF_WEEK
        if isinstance(feature, Label):
            return 4
        if isinstance(feature, Quantile):
            assert self.edges is not None
            return FIRST + len(self.edges) + 1
        assert self.values is not None
        return FIRST + len(self.values)


@dataclass(frozen=True)
class FittedFeatures:
    """Features that know their vocabularies, buckets and means. They travel with the model.

    Attributes:
        fitted: one entry a feature, in the order they were declared.
    """

    fitted: tuple[_Fitted, ...]

    @property
    def features(self) -> list[Feature]:
        """As they were declared."""
        return [entry.feature for entry in self.fitted]

    @property
    def sizes(self) -> dict[str, dict[str, int]]:
        """Entity → feature → number of codes, missing and unknown among them; 0 for numbers."""
        return {
            of: {e.feature.name: e.size for e in self.fitted if e.feature.of == of}
            for of in get_args(Entity)
        }

    def columns(self, store: HistoryStore) -> EncodedColumns:
        """The features of a store, which need not be the one they were fitted on.

        Raises:
            FeatureError: the store lacks a column, or it holds other things than in training.
        """
        return EncodedColumns(self, store)

    def to_json(self) -> dict[str, Any]:
        """Everything as JSON values; `from_json` gives it back."""
        return {
            "format": FORMAT,
            "version": VERSION,
            "features": [
                {
                    "kind": entry.feature.kind,
                    "settings": asdict(entry.feature),
                    **{
                        name: getattr(entry, name)
                        for name in ("values", "mean", "deviation", "edges")
                        if getattr(entry, name) is not None
                    },
                }
                for entry in self.fitted
            ],
        }

    @staticmethod
    def from_json(content: dict[str, Any]) -> FittedFeatures:
        """What `to_json` gave.

        Raises:
            FeatureError: it is something else, or of another version.
        """
        if content.get("format") != FORMAT or content.get("version") != VERSION:
            raise FeatureError(
                f"these are no fitted features that this program reads ({FORMAT} {VERSION}): "
                f"{content.get('format')} {content.get('version')}"
            )
        try:
            return FittedFeatures(
                tuple(
                    _Fitted(
                        KINDS[entry["kind"]](**entry["settings"]),
                        **{k: v for k, v in entry.items() if k not in ("kind", "settings")},
                    )
                    for entry in content["features"]
                )
            )
        except (KeyError, TypeError) as error:
            raise FeatureError(f"the fitted features are damaged: {error!r}") from error

    def save(self, path: Path) -> None:
        """Write them as one JSON file, whole or not at all."""
        write_text(path, json.dumps(self.to_json(), ensure_ascii=False))

    @staticmethod
    def load(path: Path) -> FittedFeatures:
        """Read what `save` wrote.

        Raises:
            FeatureError: the file is missing, damaged or of another version.
        """
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise FeatureError(f"{path} cannot be read: {error}") from error
        if not isinstance(content, dict):
            raise FeatureError(f"{path} holds no fitted features")
        return FittedFeatures.from_json(content)


def check_features(store: HistoryStore, features: Sequence[Feature]) -> None:
    """See that a store has what the features need, without fitting them.

    Raises:
        FeatureError: a setting is out of range, two features share a name, a column is missing or
            holds values of another type than the feature takes.
    """
    names: set[tuple[str, str]] = set()
    for feature in features:
        place = _place(feature)
        if not re.fullmatch(r"[A-Za-z0-9_]+", feature.name):
            raise FeatureError(f"{place}: use letters, digits and _ for the name of a feature")
        if (feature.of, feature.name) in names:
            raise FeatureError(f"{place}: two features of {feature.of} have this name")
        names.add((feature.of, feature.name))
        for option, least in (("minimum_count", 1), ("buckets", 2)):
            if getattr(feature, option, least) < least:
                raise FeatureError(
                    f"{place}.{option}={getattr(feature, option)}: it must be at least {least}"
                )
        if isinstance(feature, MultiValued) and not feature.separator:
            raise FeatureError(f"{place}.separator is empty")
        if isinstance(feature, ColumnFeature):
            attribute = _attribute(store, feature)
            if isinstance(feature, Numeric | Quantile):
                _numbers(attribute, feature)
        if isinstance(feature, Recency | HourOfWeek):
            _times(store, feature)


def fit_features(
    store: HistoryStore, features: Sequence[Feature], training: ClickRows
) -> FittedFeatures:
    """Learn vocabularies, means and buckets from the training rows, and from nothing else.

    A value counts once for each training row that it stands in: a user's for each of the user's
    questions, an item's for each time it is the candidate, an event's once for each event that a
    training history holds.

    Args:
        store: the histories.
        features: what to fit.
        training: the rows.

    Raises:
        FeatureError: see `check_features`; or no training row has a number.
    """
    check_features(store, features)
    return FittedFeatures(tuple(_fit(store, feature, training) for feature in features))


class EncodedColumns:
    """The features of one store, row by row.

    Each method takes an array of rows of any shape and gives codes (int64, the same shape), bags
    (int64, one dimension more) or numbers (float32, the same shape). A row below 0 is padding: it
    has the code 0, an empty bag, the number 0.
    """

    def __init__(self, fitted: FittedFeatures, store: HistoryStore) -> None:
        check_features(store, fitted.features)
        self.fitted = fitted
        self.sizes = fitted.sizes
        self._store = store
        self._columns: dict[tuple[str, str], _Lookup] = {}
        self._recency: dict[str, int] = {}
        for entry in fitted.fitted:
            feature = entry.feature
            if isinstance(feature, Recency):
                self._recency[feature.name] = feature.buckets
            else:
                self._columns[feature.of, feature.name] = _lookup(store, entry)

    def user(self, name: str, users: np.ndarray) -> np.ndarray:
        """A feature of users, by user index."""
        return self._at("user", name, users)

    def item(self, name: str, items: np.ndarray) -> np.ndarray:
        """A feature of items, by item index; the padding, item 0, has no value."""
        return self._at("item", name, items)

    def event(
        self, name: str, event_rows_BL: np.ndarray, question_times_B: np.ndarray | None = None
    ) -> np.ndarray:
        """A feature of the events of histories.

        Args:
            name: of the feature.
            event_rows_BL: rows of the log.
            question_times_B: int64 microseconds, one for each history; only recency looks at them.
        """
        if name not in self._recency:
            return self._at("event", name, event_rows_BL)
        if question_times_B is None:
            raise FeatureError(f"{name!r} is a recency: it needs the questions' times")
        times_BL = np.asarray(self._store.times)[np.maximum(event_rows_BL, 0)]
        now_B1 = question_times_B[..., None]
        unknown_BL = (event_rows_BL < 0) | (times_BL == NO_TIME) | (now_B1 == NO_TIME)
        passed_BL = np.where(unknown_BL, 0, np.maximum(now_B1 - times_BL, 0))
        # frexp: 1 + seconds = mantissa · 2^exponent with mantissa in [½, 1).
        bucket_BL = np.frexp(1 + passed_BL // 1_000_000)[1].astype(np.int64) - 1
        codes_BL = FIRST + np.minimum(bucket_BL, self._recency[name] - 1)
        return np.where(unknown_BL, MISSING, codes_BL)

    def context(self, name: str, rows: np.ndarray) -> np.ndarray:
        """A feature of questions, by row of the log, or of the impressions where there are some."""
        return self._at("context", name, rows)

    def unknown_counts(self, rows: ClickRows) -> dict[str, int]:
        """How many rows hold a value that training did not know (code 1), by "<of>.<feature>".

        Features that have no unknown values (numbers, hashes, buckets, times, labels) are absent.
        """
        asked = _rows_by_entity(rows)
        counts = {}
        for entry in self.fitted.fitted:
            feature = entry.feature
            if isinstance(feature, Categorical | MultiValued | UserId):
                codes = self._at(feature.of, feature.name, asked[feature.of]) == UNKNOWN
                per_row = codes.any(axis=1) if codes.ndim == 2 else codes
                counts[f"{feature.of}.{feature.name}"] = int(per_row.sum())
        return counts

    def _at(self, of: str, name: str, rows: np.ndarray) -> np.ndarray:
        if (of, name) not in self._columns:
            known = [known for entity, known in self._columns if entity == of]
            raise FeatureError(
                f"no feature of {of} is called {name!r}.{nearest(name, known)} "
                f"There are: {', '.join(known) or 'none'}"
            )
        rows = np.asarray(rows)
        padding = rows < 0
        if not padding.any():
            return self._columns[of, name](rows)
        values = self._columns[of, name](np.where(padding, 0, rows))
        values[padding] = 0
        return values


_Lookup = Callable[[np.ndarray], np.ndarray]


def _place(feature: Feature) -> str:
    return f"data.features.{feature.name}"


def _rows_by_entity(rows: ClickRows) -> dict[str, np.ndarray]:
    return {"user": rows.users, "item": rows.items, "event": rows.events, "context": rows.rows}


def _attribute(store: HistoryStore, feature: ColumnFeature) -> Attribute:
    attributes, key = store.attributes, f"{feature.of}.{feature.column}"
    if feature.of == "context":
        if store.impressions is not None:
            attributes = store.impressions.attributes
        else:
            key = f"event.{feature.column}"
    if key not in attributes:
        of = key.partition(".")[0]
        columns = [k.partition(".")[2] for k in attributes if k.startswith(f"{of}.")]
        raise FeatureError(
            f"{_place(feature)}: the store has no column {feature.column!r} of {feature.of}."
            f"{nearest(feature.column, columns)} It has: {', '.join(columns) or 'none'}"
        )
    attribute = attributes[key]
    if attribute.form == "lists" and not isinstance(feature, MultiValued):
        raise FeatureError(
            f"{_place(feature)}: column {feature.column!r} holds lists; only kind=multi takes them"
        )
    if attribute.form == "numbers" and not isinstance(feature, Numeric | Quantile):
        raise FeatureError(
            f"{_place(feature)}: column {feature.column!r} holds numbers with fractions; "
            "kind=numeric and kind=quantile take them"
        )
    return attribute


def _times(store: HistoryStore, feature: Recency | HourOfWeek) -> np.ndarray:
    if feature.of == "context" and store.impressions is not None:
        return store.impressions.times
    if store.times is None:
        raise FeatureError(f"{_place(feature)}: kind={feature.kind} needs a log with times")
    return store.times


def _numbers(attribute: Attribute, feature: Numeric | Quantile) -> np.ndarray:
    """Float64: the numbers by raw code (0, the missing one, is NaN), or row by row."""
    if attribute.numbers is not None:
        return attribute.numbers
    assert attribute.values is not None
    # As in a log: spaces around a number are no part of it.
    parsed = attribute.values.str.strip_chars().cast(pl.Float64, strict=False)
    wrong = parsed.is_null() | ~parsed.is_finite()
    if wrong.any():
        raise FeatureError(
            f"{_place(feature)}: column {feature.column!r} of {feature.of} does not hold numbers "
            f"only; the first other value is {attribute.values.filter(wrong)[0]!r}. "
            "kind=categorical takes any values"
        )
    return np.concatenate([[np.nan], parsed.to_numpy()])


def _fit(store: HistoryStore, feature: Feature, training: ClickRows) -> _Fitted:
    rows = _rows_by_entity(training)[feature.of]
    if isinstance(feature, UserId):
        counts = np.bincount(rows, minlength=store.users)
        known = np.flatnonzero(counts >= feature.minimum_count)
        return _Fitted(feature, store.user_vocabulary.raw(known).cast(pl.String).to_list())
    if not isinstance(feature, ColumnFeature) or isinstance(feature, Hashed):
        return _Fitted(feature)
    attribute = _attribute(store, feature)
    weights = np.bincount(rows, minlength=len(attribute))
    if isinstance(feature, Numeric | Quantile):
        return _fit_numbers(feature, attribute, weights)
    assert attribute.codes is not None and attribute.values is not None
    if attribute.offsets is not None:
        weights = np.repeat(weights, np.diff(attribute.offsets))
    size = len(attribute.values) + 1
    counts = np.bincount(attribute.codes, weights=weights, minlength=size)[1:]
    found = attribute.values.to_frame("value").with_columns(count=counts)
    if isinstance(feature, MultiValued) and attribute.offsets is None:
        found = found.with_columns(_parts(feature.separator)).explode("value")
    found = found.filter(pl.col("value").is_not_null()).group_by("value").agg(pl.col("count").sum())
    kept = found.filter(pl.col("count") >= feature.minimum_count)["value"].sort()
    return _Fitted(feature, kept.to_list())


def _fit_numbers(feature: Numeric | Quantile, attribute: Attribute, weights: np.ndarray) -> _Fitted:
    numbers = _numbers(attribute, feature)
    if attribute.codes is not None:
        weights = np.bincount(attribute.codes, weights=weights, minlength=len(numbers))
    used = (weights > 0) & ~np.isnan(numbers)
    if not used.any():
        raise FeatureError(
            f"{_place(feature)}: column {feature.column!r} of {feature.of} has no value in any "
            "training row"
        )
    numbers, weights = numbers[used], weights[used].astype(np.int64)
    if isinstance(feature, Numeric):
        mean = float(np.average(numbers, weights=weights))
        deviation = float(np.sqrt(np.average((numbers - mean) ** 2, weights=weights)))
        return _Fitted(feature, mean=mean, deviation=deviation if deviation > 0 else 1.0)
    inner = np.arange(1, feature.buckets) / feature.buckets
    edges = np.quantile(np.repeat(numbers, weights), inner, method="higher")
    # An edge at the smallest number would leave an empty bucket below it.
    edges = np.unique(edges[edges > numbers.min()])
    return _Fitted(feature, edges=edges.tolist())


def _parts(separator: str) -> pl.Expr:
    """The distinct values in a text, without the spaces around them."""
    parts = pl.col("value").str.split(separator, literal=True)
    return parts.list.eval(
        pl.element()
        .str.strip_chars()
        .filter(pl.element().str.strip_chars() != "")
        .unique(maintain_order=True)
    )


def _lookup(store: HistoryStore, entry: _Fitted) -> _Lookup:
    """From rows, none below 0, to codes, bags or numbers."""
    feature = entry.feature
    if isinstance(feature, UserId):
        users = _codes_of(store.user_vocabulary.raw_ids.cast(pl.String), entry)
        return lambda rows: users[rows]
    if isinstance(feature, Label):
        if store.labels is None:
            return lambda rows: np.full(rows.shape, 1, dtype=np.int64)
        labels, by_label = np.asarray(store.labels), np.array([2, 3, 1])  # -1 takes the last
        return lambda rows: by_label[labels[rows]]
    if isinstance(feature, HourOfWeek):
        times = np.asarray(_times(store, feature))
        if feature.of == "context" and store.impressions is not None:
            times = times[store.impressions.asked_rows()]
        return lambda rows: _hour_of_week(times[rows])
    assert isinstance(feature, ColumnFeature)
    attribute = _attribute(store, feature)
    if isinstance(feature, Numeric | Quantile):
        numbers = _numbers(attribute, feature)
        if attribute.numbers is not None:
            return lambda rows: _scaled(numbers[rows], entry)
        table = _scaled(numbers, entry)
    elif isinstance(feature, MultiValued) and attribute.offsets is None:
        table = _bags_of(attribute, feature.separator, entry)
    else:
        assert attribute.values is not None
        table = np.concatenate([[MISSING], _codes_of(attribute.values, entry)])
    codes = np.asarray(attribute.codes)
    if attribute.offsets is None:
        return lambda rows: table[codes[rows]]
    begins, ends = attribute.offsets[:-1], attribute.offsets[1:]

    def bags(rows: np.ndarray) -> np.ndarray:
        begin, length = begins[rows], ends[rows] - begins[rows]
        M = np.arange(max(int(length.max(initial=0)), 1))
        valid = length[..., None] > M
        if len(codes) == 0:
            return np.zeros(valid.shape, dtype=np.int64)
        return np.where(valid, table[codes[np.where(valid, begin[..., None] + M, 0)]], MISSING)

    return bags


def _codes_of(values: pl.Series, entry: _Fitted) -> np.ndarray:
    """int64: the code of each value (text, none null)."""
    if isinstance(entry.feature, Hashed):
        buckets = entry.feature.buckets
        digests = (hashlib.blake2b(v.encode(), digest_size=8).digest() for v in values.to_list())
        hashes = np.frombuffer(b"".join(digests), dtype="<u8")
        return (FIRST + hashes % np.uint64(buckets)).astype(np.int64)
    assert entry.values is not None
    known = pl.DataFrame({"v": pl.Series(entry.values, dtype=pl.String)}).with_row_index("code")
    found = values.to_frame("v").join(known, on="v", how="left", maintain_order="left")
    return (found["code"].cast(pl.Int64) + FIRST).fill_null(UNKNOWN).to_numpy()


def _bags_of(attribute: Attribute, separator: str, entry: _Fitted) -> np.ndarray:
    """int64 [raw values + 1, M]: the codes of the parts of each raw value."""
    assert attribute.values is not None
    parts = attribute.values.to_frame("value").select(_parts(separator)).to_series()
    lengths = parts.list.len().to_numpy().astype(np.int64)
    table = np.zeros((len(parts) + 1, max(int(lengths.max(initial=0)), 1)), dtype=np.int64)
    flat = parts.filter(pl.Series(lengths > 0)).explode()
    row = np.repeat(np.arange(1, len(parts) + 1), lengths)
    column = np.arange(len(row)) - np.repeat(np.cumsum(lengths) - lengths, lengths)
    table[row, column] = _codes_of(flat, entry)
    return table


def _scaled(numbers: np.ndarray, entry: _Fitted) -> np.ndarray:
    """float32 standardised numbers, or int64 codes of buckets."""
    missing = np.isnan(numbers)
    if entry.edges is not None:
        codes = FIRST + np.searchsorted(entry.edges, numbers, side="right")
        return np.where(missing, MISSING, codes)
    assert entry.mean is not None and entry.deviation is not None
    scaled = (numbers - entry.mean) / entry.deviation
    return np.where(missing, 0.0, scaled).astype(np.float32)


def _hour_of_week(times: np.ndarray) -> np.ndarray:
    hours = (times // _MICROS_PER_HOUR - _MONDAY) % HOURS_OF_WEEK
    return np.where(times == NO_TIME, MISSING, FIRST + hours)
