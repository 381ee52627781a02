"""Impressions: what was shown to whom and whether it was clicked, beside the histories.

All candidates of a request are asked at one moment, that of its first row, whatever later times its
other rows carry: nothing that happened while the request was under way is known to any of them.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import polars as pl

from recsys.histories.attributes import Attribute
from recsys.logs.schema import Columns


@dataclass(frozen=True)
class ImpressionColumns:
    """The names that the columns have in an impression log.

    Attributes:
        user: who was shown the item.
        item: what was shown.
        time: when.
        label: 0 or 1 (false or true), clicked or not.
        request: which candidates were shown together; None if the log does not say.
    """

    user: str = "user"
    item: str = "item"
    time: str = "time"
    label: str = "label"
    request: str | None = "request"

    def of_log(self) -> Columns:
        """The same as columns of a log."""
        return Columns(self.user, self.item, self.time, label=self.label)


@dataclass(frozen=True)
class ImpressionLog:
    """A log of what was shown, one row a candidate.

    Attributes:
        path: a file or a glob.
        columns: which column means what.
        context: raw columns to keep → the setting that named each, for messages.
    """

    path: str
    columns: ImpressionColumns
    context: dict[str, str] = field(default_factory=dict)

    def settings(self) -> dict[str, Any]:
        """What a store's identity depends on, beside the file's content."""
        return {"columns": asdict(self.columns), "context": sorted(self.context)}


@dataclass(frozen=True)
class Impressions:
    """N shown candidates, sorted by user, time and place in the file.

    Attributes:
        users: int64 [N], user indices.
        items: int32 [N], item indices ≥ 1.
        labels: int8 [N], 0 or 1.
        times: int64 [N], microseconds since 1970, each row's own.
        requests: int64 [N], the number of the request that a candidate was shown in; -1 where the
            log does not say.
        history_ends: int64 [N], the user's events strictly before the row's own time are
            `[0, history_end)`.
        attributes: raw columns of the impression log by "context.<column>", each [N].
    """

    users: np.ndarray
    items: np.ndarray
    labels: np.ndarray
    times: np.ndarray
    requests: np.ndarray
    history_ends: np.ndarray
    attributes: dict[str, Attribute] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.users)

    def by_request(self) -> tuple[np.ndarray, np.ndarray]:
        """The request of each candidate (int64 [N]) and the first row of each request (int64 [R]).

        Requests are a user's own, numbered by user and time. Where the log does not say, a user's
        candidates of one moment are one request.
        """
        named = self.requests >= 0
        key = np.where(named, self.requests, self.times)
        order = np.lexsort((key, named, self.users))
        begins = np.ones(len(order), dtype=bool)
        same = [column[order] for column in (self.users, named, key)]
        begins[1:] = np.any([column[1:] != column[:-1] for column in same], axis=0)
        # Rows stand by user and time, and a stable sort keeps them so: the first is the earliest.
        first_rows = order[begins]
        by_time = np.argsort(first_rows)
        rank = np.empty_like(by_time)
        rank[by_time] = np.arange(len(by_time))
        request = np.empty(len(order), dtype=np.int64)
        request[order] = rank[np.cumsum(begins) - 1]
        return request, first_rows[by_time]

    def asked_rows(self) -> np.ndarray:
        """int64 [N]: the first row of each candidate's request, whose moment and history it has."""
        request, first_rows = self.by_request()
        return first_rows[request]


def history_ends_at(
    offsets: np.ndarray, times: np.ndarray, users: np.ndarray, moments: np.ndarray
) -> np.ndarray:
    """How many of a user's events come strictly before a moment.

    In a log whose order is not that of its times, counting stops at the first event that is not
    before the moment.

    Args:
        offsets: int64 [users + 1].
        times: int64 [events], all known.
        users: int64 [N].
        moments: int64 [N].

    Returns:
        int64 [N].
    """
    owner = np.repeat(np.arange(len(offsets) - 1), np.diff(offsets))
    # The latest time so far in the user's own history: with it, order and time agree.
    by_time = np.lexsort((times, owner))
    if not np.array_equal(by_time, np.arange(len(times))):
        frame = pl.DataFrame({"owner": owner, "time": times})
        times = frame.select(pl.col("time").cum_max().over("owner")).to_series().to_numpy()
    both = np.concatenate([users, owner])
    when = np.concatenate([moments, times])
    is_event = np.repeat([False, True], [len(users), len(owner)])
    order = np.lexsort((is_event, when, both))  # of equal times, the moments first
    seen = np.empty(len(order), dtype=np.int64)
    seen[order] = np.cumsum(is_event[order])
    return seen[: len(users)] - offsets[users]
