"""What an ingest did: rows in, rows out and why, and what the histories look like."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from recsys.histories.store import NO_TIME, HistoryStore, StoreError
from recsys.logs.cleaning import Removal, consecutive_repeats

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
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def build_report(
    store: HistoryStore,
    *,
    name: str,
    fingerprint: str,
    rows_in: int,
    rejected: dict[str, int],
    steps: list[Removal],
) -> dict[str, Any]:
    """The ingest report as JSON values.

    Args:
        store: the result.
        name: of the data set.
        fingerprint: of the store.
        rows_in: rows read.
        rejected: unusable rows by reason.
        steps: of the cleaning, in order.

    Returns:
        `rows_in` = `rows_out` + all of `removed` + all of `quarantined`. `density` is the share of
        user–item pairs that occur at least once. `ties` is the share of events next to an event
        of the same user with the same time, `repeats` the share of events whose user had the item
        before, `consecutive_repeats` those that had it just before.
    """
    user = np.repeat(np.arange(store.users), store.lengths)
    pairs = pl.Series(user * np.int64(store.catalogue_size) + store.items).n_unique()
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
        "consecutive_repeats": float(consecutive_repeats(user, store.items).mean()),
        **_times(store, user),
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
    return "\n".join(lines)


def _times(store: HistoryStore, user: np.ndarray) -> dict[str, Any]:
    if store.times is None:
        return {
            "time_first": None,
            "time_last": None,
            "time_span_days": None,
            "ties": None,
            "times_unknown": store.events,
        }
    known = store.times != NO_TIME
    first, last = int(store.times[known].min()), int(store.times[known].max())
    equal = (user[1:] == user[:-1]) & (store.times[1:] == store.times[:-1]) & known[1:]
    tied = np.zeros(store.events, dtype=bool)
    tied[1:] |= equal
    tied[:-1] |= equal
    return {
        "time_first": _moment(first),
        "time_last": _moment(last),
        "time_span_days": (last - first) / 86_400e6,
        "ties": float(tied.mean()),
        "times_unknown": int((~known).sum()),
    }


def _moment(micros: int) -> str:
    return (_EPOCH + timedelta(microseconds=micros)).strftime("%Y-%m-%d %H:%M:%S")
