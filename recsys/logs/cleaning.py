"""Cleaning events: duplicates, thresholds, time range, repeats, k-core. Every step counts."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Literal

import numpy as np
import polars as pl

from recsys.logs.errors import LogError
from recsys.logs.schema import TimeUnit, parse_moment


@dataclass(frozen=True)
class Cleaning:
    """What is removed from a log, in the order of these fields' steps (see `clean`).

    Attributes:
        deduplicate: "off"; "exact" keeps one of the rows that are equal in every named column;
            "first" and "last" keep a user's earliest or latest event with an item.
        user_core: users with fewer events go, together with `item_core` until none is left to go;
            1 turns it off.
        item_core: the same for items.
        minimum_rating: keep events rated at least so; an event without a rating goes.
        positive_only: keep events labelled 1; an event without a label goes.
        drop_consecutive_repeats: of a run of the same item in a user's history, keep the first.
        time_from: ISO 8601, UTC unless it names a zone: earlier events go.
        time_until: events at this moment or later go.
        max_bad_share: a larger share of unusable rows stops the ingest.
        time_unit: of epoch times; "auto" tells by their magnitude: below 10¹¹ seconds, below
            10¹⁴ milliseconds, below 10¹⁷ microseconds, else nanoseconds.
    """

    deduplicate: Literal["off", "exact", "first", "last"] = "off"
    user_core: int = 1
    item_core: int = 1
    minimum_rating: float | None = None
    positive_only: bool = False
    drop_consecutive_repeats: bool = False
    time_from: str | None = None
    time_until: str | None = None
    max_bad_share: float = 0.01
    time_unit: TimeUnit = "auto"

    def __post_init__(self) -> None:
        """Refuse values that mean nothing."""
        for name, value, choices in (
            ("deduplicate", self.deduplicate, ("off", "exact", "first", "last")),
            ("time_unit", self.time_unit, ("auto", "s", "ms", "us")),
        ):
            if value not in choices:
                raise LogError(f"data.{name}={value!r}: choose one of {', '.join(choices)}.")
        for name, number in (("user_core", self.user_core), ("item_core", self.item_core)):
            if number < 1:
                raise LogError(f"data.{name}={number}: it must be at least 1 (1 turns it off).")
        if not 0 <= self.max_bad_share <= 1:
            raise LogError(f"data.max_bad_share={self.max_bad_share}: it must lie in 0..1.")
        begin, end = self.moments()
        if begin is not None and end is not None and begin >= end:
            raise LogError(
                f"data.time_from={self.time_from!r} must be earlier than "
                f"data.time_until={self.time_until!r}."
            )

    def moments(self) -> tuple[int | None, int | None]:
        """`time_from` and `time_until` in microseconds since 1970."""
        return (
            None if self.time_from is None else parse_moment(self.time_from, "data.time_from"),
            None if self.time_until is None else parse_moment(self.time_until, "data.time_until"),
        )


@dataclass(frozen=True)
class Removal:
    """One step of the cleaning: what it was, and how many rows it removed."""

    step: str
    rows: int


def clean(events: pl.DataFrame, cleaning: Cleaning) -> tuple[pl.DataFrame, list[Removal]]:
    """Sort events into histories and remove what the settings say.

    The steps, in order: exact duplicates; time range; sort by user and `order` (or `time`), equal
    ones in the order they came; duplicates of user and item; rating; label; consecutive repeats;
    k-core. The last two alternate until neither has anything to remove.

    Args:
        events: columns `user` and `item` (whole numbers from 0), and `order` or `time`; `rating`
            and `label` if the settings need them. In file order. A column `row` is carried along;
            no step looks at it.
        cleaning: the settings.

    Returns:
        The events that stay, user by user, oldest first, without the column `order`; and the steps
        that were asked for.

    Raises:
        LogError: a setting needs a column that was not named; nothing is left.
    """
    check_needs(events.columns, cleaning)
    before = len(events)
    steps: list[Removal] = []

    def record(step: str, kept: pl.DataFrame) -> pl.DataFrame:
        steps.append(Removal(step, len(events) - len(kept)))
        return kept

    if cleaning.deduplicate == "exact":
        compared = [name for name in events.columns if name != "row"]
        kept = events.unique(compared, keep="first", maintain_order=True)
        events = record("exact duplicates", kept)
    begin, end = cleaning.moments()
    if begin is not None or end is not None:
        inside = pl.lit(True)
        if begin is not None:
            inside &= pl.col("time") >= begin
        if end is not None:
            inside &= pl.col("time") < end
        events = record("outside the time range", events.filter(inside))
    key = "order" if "order" in events.columns else "time"
    # Two stable sorts by one column each are five times as fast as one sort by two.
    events = events.sort(key, maintain_order=True).sort("user", maintain_order=True)
    events = events.drop("order", strict=False)
    if cleaning.deduplicate in ("first", "last"):
        keep: Literal["first", "last"] = "first" if cleaning.deduplicate == "first" else "last"
        kept = events.unique(["user", "item"], keep=keep, maintain_order=True)
        events = record(f"user–item duplicates (kept the {keep})", kept)
    if cleaning.minimum_rating is not None:
        kept = events.filter(pl.col("rating") >= cleaning.minimum_rating)
        events = record(f"rating below {cleaning.minimum_rating:g} or missing", kept)
    if cleaning.positive_only:
        events = record("label 0 or missing", events.filter(pl.col("label") == 1))
    events = _repeats_and_core(events, cleaning, steps)
    if len(events) == 0:
        removed = "; ".join(f"{step.step}: {step.rows:,}" for step in steps if step.rows)
        raise LogError(
            f"Nothing is left of {before:,} usable rows. Removed by {removed}. "
            "Loosen that setting (data.*)."
        )
    assert before == len(events) + sum(step.rows for step in steps)
    return events, steps


def consecutive_repeats(user: np.ndarray, item: np.ndarray) -> np.ndarray:
    """Flags (bool [events]): True where the event before it is of the same user and item."""
    repeat = np.zeros(len(user), dtype=bool)
    repeat[1:] = (user[1:] == user[:-1]) & (item[1:] == item[:-1])
    return repeat


def k_core(user: np.ndarray, item: np.ndarray, user_core: int, item_core: int) -> np.ndarray:
    """The largest set of events in which every user has `user_core` and every item `item_core`.

    Args:
        user: whole numbers from 0 [events].
        item: whole numbers from 0 [events].
        user_core: least number of events of a user.
        item_core: least number of events of an item.

    Returns:
        int64: positions of the events in it, ascending. The set does not depend on their order.
    """
    kept = np.arange(len(user))
    while len(kept):
        enough = np.ones(len(kept), dtype=bool)
        for ids, core in ((user[kept], user_core), (item[kept], item_core)):
            if core > 1:
                enough &= (np.bincount(ids) >= core)[ids]
        if enough.all():
            break
        kept = kept[enough]
    return kept


def _repeats_and_core(
    events: pl.DataFrame, cleaning: Cleaning, steps: list[Removal]
) -> pl.DataFrame:
    wants_core = cleaning.user_core > 1 or cleaning.item_core > 1
    if not wants_core and not cleaning.drop_consecutive_repeats:
        return events
    user, item = events["user"].to_numpy(), events["item"].to_numpy()
    kept = np.arange(len(events))
    removed = {"repeats": 0, "core": 0}
    while True:
        # What the core removes may bring two events of an item together, and the other way round.
        start = len(kept)
        if cleaning.drop_consecutive_repeats:
            kept = kept[~consecutive_repeats(user[kept], item[kept])]
        removed["repeats"] += start - len(kept)
        middle = len(kept)
        if wants_core:
            kept = kept[k_core(user[kept], item[kept], cleaning.user_core, cleaning.item_core)]
        removed["core"] += middle - len(kept)
        if len(kept) == start or not cleaning.drop_consecutive_repeats:
            break
    if cleaning.drop_consecutive_repeats:
        steps.append(Removal("consecutive repeats", removed["repeats"]))
    if wants_core:
        name = f"users with < {cleaning.user_core} or items with < {cleaning.item_core} events"
        steps.append(Removal(name, removed["core"]))
    return events if len(kept) == len(events) else events[kept]


def check_needs(available: Collection[str], cleaning: Cleaning) -> None:
    """Refuse settings that need a canonical column which the log does not have.

    Args:
        available: canonical names of the columns that there are.
        cleaning: the settings.

    Raises:
        LogError: names the setting and the column.
    """
    for setting, column, wanted in (
        ("minimum_rating", "rating", cleaning.minimum_rating is not None),
        ("positive_only", "label", cleaning.positive_only),
        ("time_from", "time", cleaning.time_from is not None),
        ("time_until", "time", cleaning.time_until is not None),
    ):
        if wanted and column not in available:
            raise LogError(
                f"data.{setting} needs a {column}: name its column in data.columns.{column}."
            )
