"""What an ingest did: rows in, rows out and why, and what the histories look like."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np

from recsys.histories.attributes import Attribute
from recsys.histories.store import NO_TIME, HistoryStore, StoreError
from recsys.logs.cleaning import Removal, consecutive_repeats, count_ids
from recsys.logs.threads import side_by_side

_QUANTILES = {
    "min": 0.0,
    "10%": 0.1,
    "25%": 0.25,
    "50%": 0.5,
    "75%": 0.75,
    "90%": 0.9,
    "99%": 0.99,
    "max": 1.0,
}
_BLOCK = 1 << 18  # events
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def build_report(
    store: HistoryStore,
    *,
    name: str,
    fingerprint: str,
    rows_in: int,
    rejected: dict[str, int],
    steps: list[Removal],
    tables: dict[str, dict[str, int]] | None = None,
    impressions: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """The ingest report as JSON values.

    Args:
        store: the result.
        name: of the data set.
        fingerprint: of the store.
        rows_in: rows read.
        rejected: unusable rows by reason.
        steps: of the cleaning, in order.
        tables: "users" and "items" → the counts of `recsys.histories.attributes.side_attributes`.
        impressions: what reading the impression log found.

    Returns:
        `rows_in` = `rows_out` + all of `removed` + all of `quarantined`. `density` is the share of
        user–item pairs that occur at least once. `ties` is the share of events next to an event
        of the same user with the same time, `repeats` the share of events whose user had the item
        before, `consecutive_repeats` those that had it just before.
    """

    def look(block: tuple[np.ndarray, slice]) -> tuple[int, int]:
        user, events = block
        items = store.items[events]
        pairs = _distinct(user * np.int64(store.catalogue_size) + items)
        return pairs, int(np.count_nonzero(consecutive_repeats(user, items)))

    found = side_by_side(look, _users_by_blocks(store))
    pairs, consecutive = (sum(part) for part in zip(*found, strict=True))
    return {
        "name": name,
        "fingerprint": fingerprint,
        "rows_in": rows_in,
        "rows_out": store.events,
        "quarantined": rejected,
        "removed": [{"step": step.step, "rows": step.rows} for step in steps],
        "users": store.users,
        "items": len(store.item_vocabulary),
        "density": pairs / (store.users * len(store.item_vocabulary)),
        "length_quantiles": {
            word: int(np.quantile(store.lengths, q, method="lower"))
            for word, q in _QUANTILES.items()
        },
        "mean_length": store.events / store.users,
        "repeats": 1 - pairs / store.events,
        "consecutive_repeats": consecutive / store.events,
        **_times(store),
        "tables": tables or {},
        "attributes": {
            key: {
                "rows": len(attribute) - key.startswith("item."),
                "missing": attribute.missing - key.startswith("item."),
                "values": attribute.distinct,
            }
            for key, attribute in _attributes(store)
        },
        "impressions": impressions,
    }


def report_of_impressions(store: HistoryStore) -> dict[str, Any]:
    """What the impressions of a store are like, beside its histories, as JSON values.

    Returns:
        `before_first_event` impressions are of requests that began with an empty history;
        `users_without_history` have no event at all, `items_without_events` stand in no history.
    """
    shown = store.impressions
    assert shown is not None
    return {
        "rows_out": len(shown),
        "clicked": int((shown.labels == 1).sum()),
        "users": len(np.unique(shown.users)),
        "users_without_history": int((store.lengths == 0).sum()),
        "before_first_event": int((shown.history_ends[shown.asked_rows()] == 0).sum()),
        "items_without_events": int((count_ids(store.items, store.catalogue_size)[1:] == 0).sum()),
    }


def read_report(store: Path) -> dict[str, Any]:
    """The report that stands in a store's folder.

    Raises:
        StoreError: it is missing or damaged.
    """
    file = store / "report.json"
    try:
        report: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError) as error:
        raise StoreError(
            f"{file} cannot be read ({error}). Ingest again with data.verify=true."
        ) from error
    return report


def render_report(report: dict[str, Any]) -> str:
    """The report as lines of plain text for a terminal."""
    rows = [("rows in", f"{report['rows_in']:,}")]
    rows += [(f"  unusable: {why}", f"-{n:,}") for why, n in report["quarantined"].items()]
    rows += [(f"  {step['step']}", f"-{step['rows']:,}") for step in report["removed"]]
    rows += [
        ("rows out", f"{report['rows_out']:,}"),
        ("users", f"{report['users']:,}"),
        ("items", f"{report['items']:,}"),
        ("density", f"{report['density']:.4%}"),
    ]
    width = max(len(label) for label, _ in rows)
    number = max(len(value) for _, value in rows)
    lines = [f"Ingested {report['name']} ({report['fingerprint'][:12]})"]
    lines += [f"  {label:<{width}}  {value:>{number}}" for label, value in rows]
    lengths = report["length_quantiles"]
    lines.append(
        f"  events per user: mean {report['mean_length']:.1f}; "
        + ", ".join(f"{word} {value:,}" for word, value in lengths.items())
    )
    if report["time_first"] is not None:
        unknown = (
            f"; unknown in {report['times_unknown']:,} events" if report["times_unknown"] else ""
        )
        lines.append(
            f"  times: {report['time_first']} to {report['time_last']} "
            f"({report['time_span_days']:,.1f} days){unknown}"
        )
        lines.append(f"  ties: {report['ties']:.2%} of events share their time with a neighbour")
    else:
        lines.append("  times: none in this log; the order is given by a column")
    lines.append(
        f"  repeats: {report['repeats']:.2%} of events are of an item the user had before "
        f"({report['consecutive_repeats']:.2%} just before)"
    )
    for role, counts in report.get("tables", {}).items():
        lines.append(
            f"  table of {role}: {counts['rows']:,} rows, {counts['rows_left_out']:,} of them "
            f"about {role} that the log does not have; {counts['absent']:,} {role} of the log are "
            "not in it, and have no value"
        )
    for key, counts in report.get("attributes", {}).items():
        kinds = "numbers" if counts["values"] is None else f"{counts['values']:,} values"
        lines.append(f"  {key}: {kinds}; missing in {counts['missing']:,} of {counts['rows']:,}")
    if report.get("impressions"):
        lines += _impression_lines(report["impressions"])
    return "\n".join(lines)


def _impression_lines(report: dict[str, Any]) -> list[str]:
    lines = [f"  impressions: {report['rows_in']:,} rows in"]
    lines += [f"    unusable: {why}: -{n:,}" for why, n in report["quarantined"].items()]
    if report["outside_time_range"]:
        lines.append(f"    outside the time range: -{report['outside_time_range']:,}")
    lines.append(
        f"    {report['rows_out']:,} rows out, {report['clicked']:,} clicked, by "
        f"{report['users']:,} users"
    )
    if "requests" in report:
        lines.append(
            f"    {report['requests']:,} requests; {report['requests_without_candidates']:,} more "
            "are left without a usable candidate"
        )
    lines.append(
        f"    before the user's first event (empty history): {report['before_first_event']:,}; "
        f"users without any event: {report['users_without_history']:,}; items in no history: "
        f"{report['items_without_events']:,}"
    )
    return lines


def _attributes(store: HistoryStore) -> list[tuple[str, Attribute]]:
    shown = {} if store.impressions is None else store.impressions.attributes
    return [*store.attributes.items(), *shown.items()]


def _users_by_blocks(store: HistoryStore) -> Iterator[tuple[np.ndarray, slice]]:
    """Some users' events at a time: a number of the user for each (from 0, ascending), and where.

    All events of a user stand in one block. What is made of it stays in the cache.
    """
    begin = 0
    while begin < store.users:
        enough = int(store.offsets[begin]) + _BLOCK
        end = max(begin + 1, int(np.searchsorted(store.offsets, enough, side="right")) - 1)
        lengths = np.diff(store.offsets[begin : end + 1])
        events = slice(int(store.offsets[begin]), int(store.offsets[end]))
        yield np.repeat(np.arange(len(lengths)), lengths), events
        begin = end


def _distinct(numbers: np.ndarray) -> int:
    """How many different ones there are."""
    ascending = np.sort(numbers)
    return int(np.count_nonzero(ascending[1:] != ascending[:-1])) + (len(numbers) > 0)


def _times(store: HistoryStore) -> dict[str, Any]:
    if store.times is None:
        return {
            "time_first": None,
            "time_last": None,
            "time_span_days": None,
            "ties": None,
            "times_unknown": store.events,
        }
    moments: list[int] = []
    tied = unknown = 0
    for user, events in _users_by_blocks(store):
        times = store.times[events]
        known = times != NO_TIME
        unknown += len(known) - int(np.count_nonzero(known))
        if known.any():
            moments += [int(times[known].min()), int(times[known].max())]
        equal = (user[1:] == user[:-1]) & (times[1:] == times[:-1]) & known[1:]
        beside_its_like = np.zeros(len(times), dtype=bool)
        beside_its_like[1:] |= equal
        beside_its_like[:-1] |= equal
        tied += int(np.count_nonzero(beside_its_like))
    first, last = min(moments), max(moments)
    return {
        "time_first": _moment(first),
        "time_last": _moment(last),
        "time_span_days": (last - first) / 86_400e6,
        "ties": tied / store.events,
        "times_unknown": unknown,
    }


def _moment(micros: int) -> str:
    return (_EPOCH + timedelta(microseconds=micros)).strftime("%Y-%m-%d %H:%M:%S")
