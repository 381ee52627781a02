"""Cohorts: which kind of question each one is, so that a mean can be looked at in parts.

A cohort gives every question one value, or several where the column behind it holds lists (the
genres of a film): such a question counts in each of them. What a cohort is made of never depends on
a model, so that two models can be compared in it.

Dimensions: N questions, U users, V catalogue incl. padding.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import polars as pl

from recsys.evaluation.intervals import Interval, bootstrap_parts
from recsys.histories.attributes import Attribute
from recsys.histories.clicks import ClickQuestions, HistoryView
from recsys.histories.first_events import FirstEvents
from recsys.histories.questions import Questions
from recsys.histories.store import NO_TIME, HistoryStore

BUILT_IN = ("history_length", "recency", "popularity", "repeat")
MOST_PARTS = 24  # of a cohort
_TOGETHER = 32  # parts whose means are drawn together
PREFIX = "cohort/"  # of their columns in the files with one row a question

_HOUR = 3_600_000_000
_GAPS = (
    (_HOUR, "within an hour"),
    (24 * _HOUR, "within a day"),
    (7 * 24 * _HOUR, "within a week"),
    (30 * 24 * _HOUR, "within 30 days"),
)


class CohortError(ValueError):
    """A cohort that cannot be made of these data."""


@dataclass(frozen=True)
class Asked:
    """What cohorts look at of N questions, of next items or of clicks.

    Attributes:
        users: int64 [N].
        items: int64 [N], the answer, the first of several; of clicks the candidate.
        history_ends: int64 [N], events of the history.
        last_times: int64 [N], time of the history's newest event, `NO_TIME` where unknown; None in
            logs without times.
        times: int64 [N], time of the answer, or when a click was asked; None likewise.
        repeats: bool [N], the item stands in the history.
    """

    users: np.ndarray
    items: np.ndarray
    history_ends: np.ndarray
    last_times: np.ndarray | None
    times: np.ndarray | None
    repeats: np.ndarray


def asked_next(store: HistoryStore, questions: Questions) -> Asked:
    """Of next-item questions."""
    first = store.offsets[questions.users] + questions.target_begins
    items = store.items[first].astype(np.int64)
    last_times = times = None
    if store.times is not None:
        times = np.asarray(store.times)[first]
        last_times = np.asarray(store.times)[_newest(store.offsets, questions, first)]
    met = FirstEvents(store).places(questions.users, items)
    repeats = met < questions.history_ends
    return Asked(questions.users, items, questions.history_ends, last_times, times, repeats)


def asked_clicks(view: HistoryView, questions: ClickQuestions) -> Asked:
    """Of click questions, whose histories are those of a view."""
    store = view.store
    last_times = None
    if store.times is not None and len(view.items):
        places = np.maximum(view.offsets[questions.users] + questions.history_ends - 1, 0)
        last_times = np.asarray(store.times)[view.rows(places)]
    viewed = replace(store, offsets=view.offsets, items=view.items)
    met = FirstEvents(viewed).places(questions.users, questions.candidates)
    return Asked(
        questions.users,
        questions.candidates,
        questions.history_ends,
        last_times,
        questions.times,
        met < questions.history_ends,
    )


def _newest(offsets: np.ndarray, questions: Questions, instead: np.ndarray) -> np.ndarray:
    """The event before each question, or another one where there is none."""
    before = offsets[questions.users] + questions.history_ends - 1
    return np.where(questions.history_ends == 0, instead, before)


def cohort_columns(
    names: Sequence[str], store: HistoryStore, asked: Asked, counts_V: np.ndarray
) -> pl.DataFrame:
    """The value of each question in each cohort.

    * `history_length`: events before the question, in four parts of about equal size, and
      "no history".
    * `recency`: time between the newest event of the history and the answer.
    * `popularity`: of the answer. The most popular items that together make up a third of the
      training events are "head", those of the next third "mid", the rest "tail"; "untrained" are
      items without any training event.
    * `repeat`: whether the answer is in the history already ("repeat" or "new").
    * `user.COLUMN`, `item.COLUMN`: what a column of the data says of the user or the answer;
      numbers, or whole numbers of more than `MOST_PARTS` values, in four parts of about equal size.
      Of more parts than that the rarer ones are "other" together.

    Of a question with several answers the first is meant; of clicks the candidate.

    Args:
        names: of the cohorts.
        store: the histories, with the attributes that are asked for.
        asked: about the questions.
        counts_V: int64 [V], training events of each item.

    Returns:
        A column `cohort/NAME` for each, of text, or lists of text for columns that hold lists. A
        value that is missing is "unknown".

    Raises:
        CohortError: a cohort of another name, or a column that the store lacks.
    """
    columns = {}
    column: np.ndarray | pl.Series
    for name in names:
        if name == "history_length":
            column = quarters(asked.history_ends, zero="no history")
        elif name == "recency":
            column = _recency(asked)
        elif name == "popularity":
            column = popularity_parts(counts_V)[asked.items]
        elif name == "repeat":
            column = np.where(asked.repeats, "repeat", "new")
        else:
            attribute, rows = _attribute(name, store, asked)
            column = _said(attribute.take(rows))
        columns[f"{PREFIX}{name}"] = _rarer_together(pl.Series(column))
    return pl.DataFrame(columns)


def _rarer_together(parts: pl.Series) -> pl.Series:
    """The same with "other" in place of all but the most frequent `MOST_PARTS` parts."""
    said = parts.explode() if isinstance(parts.dtype, pl.List) else parts
    if said.n_unique() <= MOST_PARTS:
        return parts
    kept = said.value_counts(sort=True, name="n")[: MOST_PARTS - 1].to_series(0).implode()
    if not isinstance(parts.dtype, pl.List):
        return parts.to_frame("part").select(
            pl.when(pl.col("part").is_in(kept)).then("part").otherwise(pl.lit("other"))
        )["part"]
    element = pl.element()
    return parts.list.eval(
        pl.when(element.is_in(kept)).then(element).otherwise(pl.lit("other"))
    ).list.unique(maintain_order=True)


def quarters(values_N: np.ndarray, zero: str | None = None) -> np.ndarray:
    """Numbers in four parts of about equal size, named by what they hold.

    >>> quarters(np.array([1, 2, 3, 4, 5, 6, 7, 8])).tolist()[::2]
    ['1–2', '3–4', '5–6', '7–8']
    >>> quarters(np.array([0, 5, 5, 5]), zero="none").tolist()  # equal numbers stay together
    ['none', '5', '5', '5']

    Args:
        values_N: numbers; NaN becomes "unknown".
        zero: the name of a part of its own for 0; None leaves it among the others.
    """
    values_N = np.asarray(values_N)
    names = np.full(len(values_N), "unknown", dtype=object)
    counted = ~np.isnan(values_N)
    if zero is not None:
        names[values_N == 0] = zero
        counted &= values_N != 0
    known = np.sort(values_N[counted])
    if len(known) == 0:
        return names
    uppers = np.unique(known[[-(-len(known) * part // 4) - 1 for part in (1, 2, 3, 4)]])
    part = np.searchsorted(uppers, values_N[counted])
    lowers = known[np.searchsorted(known, np.append(-np.inf, uppers[:-1]), side="right")]
    titles = [
        f"{low:,.12g}" if low == high else f"{low:,.12g}–{high:,.12g}"
        for low, high in zip(lowers, uppers, strict=True)
    ]
    names[counted] = np.array(titles, dtype=object)[part]
    return names


def popularity_parts(counts_V: np.ndarray) -> np.ndarray:
    """Head, mid, tail or untrained of each item, object [V]; the padding is "untrained".

    >>> popularity_parts(np.array([0, 6, 1, 4, 1, 0])).tolist()
    ['untrained', 'head', 'tail', 'mid', 'tail', 'untrained']
    """
    order = np.argsort(-counts_V, kind="stable")
    before = np.cumsum(counts_V[order]) - counts_V[order]  # events of the more popular items
    third = np.minimum(3 * before // max(int(counts_V.sum()), 1), 2)
    parts = np.empty(len(counts_V), dtype=object)
    parts[order] = np.array(["head", "mid", "tail"], dtype=object)[third]
    parts[counts_V == 0] = "untrained"
    return parts


def training_counts(store: HistoryStore, training_ends: np.ndarray) -> np.ndarray:
    """int64 [V]: how many training events each item has."""
    places = np.arange(store.events) - np.repeat(store.offsets[:-1], store.lengths)
    learned = places < np.repeat(training_ends, store.lengths)
    return np.bincount(store.items[learned], minlength=store.catalogue_size)


def _recency(asked: Asked) -> np.ndarray:
    names = np.full(len(asked.users), "unknown", dtype=object)
    if asked.times is not None and asked.last_times is not None:
        gaps = asked.times - asked.last_times
        known = (asked.times != NO_TIME) & (asked.last_times != NO_TIME)
        names[known] = "later"
        for limit, name in reversed(_GAPS):
            names[known & (gaps <= limit)] = name
    names[asked.history_ends == 0] = "no history"
    return names


def _attribute(name: str, store: HistoryStore, asked: Asked) -> tuple[Attribute, np.ndarray]:
    """A column of the data, and its row for each question."""
    if not _is_column(name, store):
        raise _no_cohort(name, store)
    return store.attributes[name], asked.users if name.startswith("user.") else asked.items


def check_cohorts(names: Sequence[str], store: HistoryStore) -> None:
    """Refuses cohorts that cannot be made of these data, before anything is trained.

    Raises:
        CohortError: naming the nearest.
    """
    for name in names:
        if name not in BUILT_IN and not _is_column(name, store):
            raise _no_cohort(name, store)


def _is_column(name: str, store: HistoryStore) -> bool:
    return name in store.attributes and name.startswith(("user.", "item."))


def _no_cohort(name: str, store: HistoryStore) -> CohortError:
    known = [*BUILT_IN, *(key for key in store.attributes if _is_column(key, store))]
    near = difflib.get_close_matches(name, known, n=1)
    hint = f"did you mean '{near[0]}'?" if near else f"there are {', '.join(known)}"
    return CohortError(f"evaluation.cohorts: there is no '{name}' in these data; {hint}")


def item_column(name: str, store: HistoryStore) -> Attribute:
    """A column about items, such as "item.genres", of values or lists of them.

    Raises:
        CohortError: the store has none of this name, or it holds numbers.
    """
    known = [key for key in store.attributes if key.startswith("item.")]
    if name not in known:
        near = difflib.get_close_matches(name, known, n=1)
        hint = f"did you mean '{near[0]}'?" if near else f"there are {', '.join(known) or 'none'}"
        raise CohortError(f"evaluation.genres: there is no item column '{name}'; {hint}")
    if store.attributes[name].form == "numbers":
        raise CohortError(f"evaluation.genres: {name} holds numbers, which are no genres")
    return store.attributes[name]


def _said(attribute: Attribute) -> np.ndarray | pl.Series:
    """What an attribute says in each row."""
    if attribute.numbers is not None:
        return quarters(attribute.numbers)
    if attribute.offsets is None and attribute.values is not None:
        numbers = attribute.values.cast(pl.Float64, strict=False)
        if len(numbers) > MOST_PARTS and not numbers.null_count():
            known_V = np.append(np.nan, numbers.to_numpy())  # code 0 is no value
            return quarters(known_V[attribute.codes])
    assert attribute.codes is not None and attribute.values is not None
    values = np.array(["unknown", *attribute.values.to_list()], dtype=object)
    if attribute.offsets is None:
        return values[attribute.codes]
    lists = pl.Series(values[attribute.codes], dtype=pl.String)
    lengths = np.diff(attribute.offsets)
    rows = np.repeat(np.arange(len(lengths)), lengths)
    grouped = pl.DataFrame({"row": rows, "value": lists}).group_by("row", maintain_order=True).all()
    every = pl.DataFrame({"row": np.arange(len(lengths))})
    found = every.join(grouped, on="row", how="left", maintain_order="left")["value"]
    unknown = pl.Series([["unknown"]])
    return found.zip_with(found.is_not_null(), unknown.new_from_index(0, len(found)))


@dataclass(frozen=True)
class Cohort:
    """One part of the questions.

    Attributes:
        cohort: the name of the cohort.
        value: which part of it.
        questions: how many.
        interval: of the mean.
    """

    cohort: str
    value: str
    questions: int
    interval: Interval


def cohort_table(
    frame: pl.DataFrame,
    values_N: np.ndarray,
    *,
    resamples: int = 1000,
    seed: int = 0,
    level: float = 0.95,
) -> list[Cohort]:
    """The mean of a value in each part of each cohort, by cohort in the order of the parts.

    Args:
        frame: one row a question, with `user` and columns `cohort/NAME`.
        values_N: one number per question.
        resamples: draws of users.
        seed: of the draws.
        level: of the intervals.
    """
    found = []
    users = frame["user"].rank("dense").to_numpy()
    for cohort, names, parts_NM in cohort_parts(frame):
        intervals = bootstrap_parts(
            values_N, parts_NM, users, resamples=resamples, seed=seed, level=level
        )
        for name, count, interval in zip(names, parts_NM.sum(0), intervals, strict=True):
            found.append(Cohort(cohort, name, int(count), interval))
    return found


def cohort_parts(frame: pl.DataFrame) -> Iterator[tuple[str, list[str], np.ndarray]]:
    """The parts of each cohort, some at a time, in their order.

    Args:
        frame: one row a question, with columns `cohort/NAME`.

    Yields:
        The cohort, names of M parts, and which questions are in them: bool [N, M].
    """
    for column in frame.columns:
        if not column.startswith(PREFIX):
            continue
        names, rows, numbers = _numbered(frame[column])
        for begin in range(0, len(names), _TOGETHER):
            some = names[begin : begin + _TOGETHER]
            inside = (numbers >= begin) & (numbers < begin + len(some))
            parts_NM = np.zeros((len(frame), len(some)), dtype=bool)
            parts_NM[rows[inside], numbers[inside] - begin] = True
            yield column.removeprefix(PREFIX), some, parts_NM


def parts_of(frame: pl.DataFrame, cohort: str) -> dict[str, np.ndarray]:
    """Which questions are in each part of a cohort, bool [N] by the name of the part, in order.

    Args:
        frame: one row a question, with the column `cohort/NAME`.
        cohort: its name.
    """
    names, rows, numbers = _numbered(frame[f"{PREFIX}{cohort}"])
    found = {}
    for number, name in enumerate(names):
        found[name] = np.zeros(len(frame), dtype=bool)
        found[name][rows[numbers == number]] = True
    return found


def _numbered(said: pl.Series) -> tuple[list[str], np.ndarray, np.ndarray]:
    """The names of a cohort's parts in order, and pairs of a question and the part it is in."""
    pairs = said.to_frame("part").with_row_index("row")
    if isinstance(said.dtype, pl.List):
        pairs = pairs.explode("part").unique(maintain_order=True)
    names = sorted(pairs["part"].unique().to_list(), key=_order_of_part)
    numbers = pairs["part"].replace_strict(names, range(len(names))).to_numpy()
    return names, pairs["row"].to_numpy(), numbers


def worst(cohorts: Sequence[Cohort], least: int = 100, *, largest: bool = False) -> Cohort | None:
    """The part with the lowest mean, of those with enough questions; None where there is none.

    Args:
        cohorts: of `cohort_table`.
        least: questions that are enough.
        largest: the part with the highest mean in its place: the worst of a loss.
    """
    enough = [cohort for cohort in cohorts if cohort.questions >= least]
    sign = -1 if largest else 1
    return min(enough, key=lambda cohort: sign * cohort.interval.estimate, default=None)


_NAMED = ["no history", *(name for _, name in _GAPS), "later", "head", "mid", "tail", "untrained"]


def _order_of_part(part: str) -> tuple[int, float, str]:
    """Named parts in their own order, numbers by size, words by the alphabet, unknown last."""
    if part == "unknown":
        return 3, 0.0, part
    if part in _NAMED:
        return 0, _NAMED.index(part), part
    try:
        return 1, float(part.split("–")[0].replace(",", "")), part
    except ValueError:
        return 2, 0.0, part
