"""Impressions: what was shown to whom and whether it was clicked, beside the histories."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from recsys.histories.attributes import Attribute


@dataclass(frozen=True)
class Impressions:
    """N shown candidates, sorted by user, time and place in the file.

    Attributes:
        users: int64 [N], user indices.
        items: int32 [N], item indices ≥ 1.
        labels: int8 [N], 0 or 1.
        times: int64 [N], microseconds since 1970.
        requests: int64 [N], the number of the request that a candidate was shown in; -1 where the
            log does not say.
        history_ends: int64 [N], the user's events strictly before the impression's time are
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
