"""Cleaning events: duplicates, thresholds, time range, repeats, k-core. Every step counts.

Long columns are gone through in blocks that stay in the cache, and replaced one at a time.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Literal

import numpy as np
import polars as pl

from recsys.logs.errors import LogError
from recsys.logs.schema import TimeUnit, parse_moment
from recsys.logs.threads import side_by_side

_BLOCK = 1 << 18  # rows
_ROW_BITS = np.uint64(32)  # Polars counts rows in so many, too
_MICROS_PER_SECOND = 1_000_000


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
    k-core. The last two alternate until neither has anything to remove. The sort waits for the
    first step that looks at the order, which changes nothing but the time it takes.

    Args:
        events: columns `user` and `item` (whole numbers from 0), and `order` or `time` (without
            nulls); `rating` and `label` if the settings need them. In file order. A column `row`
            is carried along; no step looks at it.
        cleaning: the settings.

    Returns:
        The events that stay, user by user, oldest first, without the column `order`; and the steps
        that were asked for.

    Raises:
        LogError: a setting needs a column that was not named; nothing is left.
    """
    check_needs(events.columns, cleaning)
    events = events.clone()  # of the caller's frame nothing is taken away; see `histories`
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
    in_order = cleaning.deduplicate in ("first", "last") or cleaning.drop_consecutive_repeats
    if in_order:
        events = into_histories(events)
    if cleaning.deduplicate in ("first", "last"):
        keep: Literal["first", "last"] = "first" if cleaning.deduplicate == "first" else "last"
        kept = events.unique(["user", "item"], keep=keep, maintain_order=True)
        events = record(f"user–item duplicates (kept the {keep})", kept)
    if cleaning.minimum_rating is not None:
        kept = events.filter(pl.col("rating") >= cleaning.minimum_rating)
        events = record(f"rating below {cleaning.minimum_rating:g} or missing", kept)
    if cleaning.positive_only:
        events = record("label 0 or missing", events.filter(pl.col("label") == 1))
    stays = _repeats_and_core(events, cleaning, steps)
    if not in_order:
        events = into_histories(events, stays)
    elif stays is not None:
        events = events.filter(pl.Series(stays))
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
    return np.flatnonzero(_in_core(user, item, user_core, item_core))


def _in_core(user: np.ndarray, item: np.ndarray, user_core: int, item_core: int) -> np.ndarray:
    """Flags (bool [events]) of what `k_core` keeps."""
    stays = np.ones(len(user), dtype=bool)
    cores = ((user, user_core), (item, item_core))
    counts = [count_ids(ids, int(ids.max(initial=0)) + 1) for ids, _ in cores]

    def leaving(short: list[np.ndarray], block: slice) -> np.ndarray:
        gone: np.ndarray = short[0].take(user[block]) | short[1].take(item[block])
        return gone & stays[block]

    while True:
        # Who has too few goes, and is counted down: a round costs what it removes, and one look.
        short = [(n > 0) & (n < core) for n, (_, core) in zip(counts, cores, strict=True)]
        if not any(flags.any() for flags in short):
            return stays
        parts = list(blocks(len(user)))
        for block, gone in zip(parts, side_by_side(partial(leaving, short), parts), strict=True):
            stays[block] ^= gone
            for count, (ids, _) in zip(counts, cores, strict=True):
                np.subtract.at(count, ids[block][gone], 1)


def into_histories(events: pl.DataFrame, stays: np.ndarray | None = None) -> pl.DataFrame:
    """Events by user, then `order` (or `time`), then as they came.

    Args:
        events: columns `user` (whole numbers from 0), and `order` or `time` without nulls. Each
            column is taken out of it, and gone once read.
        stays: bool [events]: the events that are wanted; None: all.

    Returns:
        The wanted events, without the column `order`.
    """
    key_name = "order" if "order" in events.columns else "time"
    assert events[key_name].null_count() == 0
    positions, users, keys = _sorted(events["user"], events[key_name], stays)
    # What the sort had in its hands is not looked up a second time.
    known = {"user": users, key_name: keys}
    del users, keys
    columns = []
    for name in events.columns:
        column = events.drop_in_place(name)
        if name in known:
            columns.append(pl.Series(name, known.pop(name)).cast(column.dtype))
        else:
            columns.append(_taken(column, positions))
        del column
    return pl.DataFrame(columns).drop("order", strict=False)


def count_ids(ids: np.ndarray, size: int) -> np.ndarray:
    """How often each of the numbers `0 .. size - 1` occurs: int64 [size]."""
    counts = np.zeros(size, dtype=np.int64)
    for block in blocks(len(ids), max(_BLOCK, size)):
        counts += np.bincount(ids[block], minlength=size)
    return counts


def blocks(rows: int, size: int | None = None) -> Iterator[slice]:
    """Slices of so many rows at most, one after the other; few enough to stay in the cache."""
    size = size or _BLOCK
    for begin in range(0, rows, size):
        yield slice(begin, min(begin + size, rows))


def _sorted(
    user: pl.Series, key: pl.Series, stays: np.ndarray | None
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Positions (uint32), users (uint32) and keys (int64 or float64) of what stays, in order."""
    keys = key.cast(pl.Float64 if key.dtype.is_float() else pl.Int64).rechunk().to_numpy()
    by_user = _by_user(user, stays)
    positions = np.empty(len(by_user), dtype=np.uint32)
    users = np.empty(len(by_user), dtype=np.uint32)
    sorted_keys = by_user.view(keys.dtype)  # in place of the numbers, once a block has used them

    def fill(block: slice) -> None:
        of_user, rows = by_user[block] >> _ROW_BITS, by_user[block].astype(np.uint32)
        found = keys.take(rows)
        order = _stable_order(of_user - of_user[0], found)
        positions[block], users[block], sorted_keys[block] = rows[order], of_user, found[order]

    side_by_side(fill, list(_blocks_of_users(by_user)))
    return positions, users, sorted_keys


def _by_user(user: pl.Series, stays: np.ndarray | None) -> np.ndarray:
    """Rows that stay, by user and as they came: uint64, the user above `_ROW_BITS`, the row below.

    A sort of numbers that hold the row is stable, however it goes about it.
    """
    numbers = user.cast(pl.UInt32).rechunk().to_numpy()
    parts = list(blocks(len(numbers)))
    kept = [p.stop - p.start if stays is None else np.count_nonzero(stays[p]) for p in parts]
    ends = np.concatenate([[0], np.cumsum(kept, dtype=np.int64)])
    packed = np.empty(ends[-1], dtype=np.uint64)

    def fill(place: int) -> None:
        block = parts[place]
        part = numbers[block].astype(np.uint64) << _ROW_BITS
        part |= np.arange(block.start, block.stop, dtype=np.uint64)
        packed[ends[place] : ends[place + 1]] = part if stays is None else part[stays[block]]

    side_by_side(fill, range(len(parts)))
    packed.sort()
    return packed


def _blocks_of_users(by_user: np.ndarray) -> Iterator[slice]:
    """Slices with all rows of their users, of `_BLOCK` rows or one user."""
    begin = 0
    while begin < len(by_user):
        end = min(begin + _BLOCK, len(by_user))
        if end < len(by_user):
            user = by_user[end] >> _ROW_BITS
            start_of_user = int(np.searchsorted(by_user, user << _ROW_BITS))
            end = start_of_user
            if end <= begin:  # one user has more
                end = int(np.searchsorted(by_user, (user + np.uint64(1)) << _ROW_BITS))
        yield slice(begin, end)
        begin = end


def _stable_order(users: np.ndarray, keys: np.ndarray) -> np.ndarray:
    """The order by user and key of rows that stand in order of their user: int64 [rows].

    User, key and place go into one number of 64 bits; a key that is too wide for that is replaced
    by its rank.

    Args:
        users: uint64, ascending from 0.
        keys: int64 or float64, no nulls or NaN.
    """
    room = 64 - int(users[-1]).bit_length() - (len(users) - 1).bit_length()
    narrow = None if keys.dtype == np.float64 else _narrowed(keys, room)
    if narrow is None:
        by_key = np.argsort(keys)
        ascending = keys[by_key]
        narrow = np.zeros(len(keys), dtype=np.uint64)
        narrow[by_key[1:]] = np.cumsum(ascending[1:] != ascending[:-1])
    key_bits = int(narrow.max()).bit_length()
    place_bits = (len(users) - 1).bit_length()
    packed = users
    for bits, part in ((key_bits, narrow), (place_bits, np.arange(len(users), dtype=np.uint64))):
        packed = (packed << np.uint64(bits)) | part
    packed.sort()
    return (packed & np.uint64((1 << place_bits) - 1)).view(np.int64)


def _narrowed(keys: np.ndarray, bits: int) -> np.ndarray | None:
    """Keys from 0 in as many bits (uint64) in the same order; None if they do not fit."""
    lowest, highest = int(keys.min()), int(keys.max())
    per_second = 1
    if (highest - lowest).bit_length() > bits:
        # Times are often whole seconds.
        per_second = _MICROS_PER_SECOND
        if ((highest - lowest) // per_second).bit_length() > bits or (keys % per_second).any():
            return None
    # In unsigned numbers the difference is right even where it is beyond 63 bits.
    distance = keys.view(np.uint64) - np.uint64(lowest % 2**64)
    return distance if per_second == 1 else distance // np.uint64(per_second)


def _taken(column: pl.Series, positions: np.ndarray) -> pl.Series:
    """The values at these positions."""
    if column.null_count() or not column.dtype.is_numeric():
        return column.gather(pl.Series(positions))
    values = column.to_numpy()
    found = np.empty(len(positions), dtype=values.dtype)

    def fill(block: slice) -> None:
        found[block] = values.take(positions[block])

    side_by_side(fill, blocks(len(positions)))
    return pl.Series(column.name, found)


def _repeats_and_core(
    events: pl.DataFrame, cleaning: Cleaning, steps: list[Removal]
) -> np.ndarray | None:
    """Flags (bool [events]) of what consecutive repeats and the core leave; None: everything."""
    wants_core = cleaning.user_core > 1 or cleaning.item_core > 1
    if not wants_core and not cleaning.drop_consecutive_repeats:
        return None
    user, item = (events[name].rechunk().to_numpy() for name in ("user", "item"))
    if not cleaning.drop_consecutive_repeats:
        stays = _in_core(user, item, cleaning.user_core, cleaning.item_core)
        steps.append(Removal(_core_step(cleaning), len(stays) - int(np.count_nonzero(stays))))
        return stays
    kept = np.arange(len(events))
    removed = {"repeats": 0, "core": 0}
    while True:
        # What the core removes may bring two events of an item together, and the other way round.
        start = len(kept)
        kept = kept[~consecutive_repeats(user[kept], item[kept])]
        removed["repeats"] += start - len(kept)
        middle = len(kept)
        if wants_core:
            kept = kept[k_core(user[kept], item[kept], cleaning.user_core, cleaning.item_core)]
        removed["core"] += middle - len(kept)
        if len(kept) == start:
            break
    steps.append(Removal("consecutive repeats", removed["repeats"]))
    if wants_core:
        steps.append(Removal(_core_step(cleaning), removed["core"]))
    stays = np.zeros(len(events), dtype=bool)
    stays[kept] = True
    return stays


def _core_step(cleaning: Cleaning) -> str:
    return f"users with < {cleaning.user_core} or items with < {cleaning.item_core} events"


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
