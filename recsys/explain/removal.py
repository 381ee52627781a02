"""What each event of a history did to a score: the score with it, less the score without it.

Nothing is approximated: the model answers once for every event, as if that event had not happened.
Of a history that is longer than the model reads, the next older event then comes into view.

Dimensions: L events in view, R = L + 1 histories asked about (the whole one first), K items, V
catalogue incl. padding, B rows of a batch, S padded length.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from recsys.batch import ClickBatch, HistoryBatch

EVENTS_AT_A_TIME = 1 << 15  # in the histories of one forward pass
SCORES_AT_A_TIME = 1 << 24  # of the catalogue


@dataclass(frozen=True)
class Removal:
    """What K items score, and would score.

    Attributes:
        scores_K: float64, with the whole history.
        drops_KL: float64, how much lower without each event, oldest first; negative where the score
            rises.
        places_K: int64, where each item stands among the candidates, 1 is the top; 0 where it is no
            candidate. None for rankers, which are asked about one item at a time.
        places_KL: int64, the same without each event.
    """

    scores_K: np.ndarray
    drops_KL: np.ndarray
    places_K: np.ndarray | None = None
    places_KL: np.ndarray | None = None


def without_each(length: int, max_length: int | None) -> list[list[int]]:
    """Which events each of the R histories holds: all in view, then all but one, oldest first.

    Args:
        length: events of the history; one more than the model reads are enough.
        max_length: newest events the model reads; None for all.

    >>> without_each(3, None)
    [[0, 1, 2], [1, 2], [0, 2], [0, 1]]
    >>> without_each(3, 2)
    [[1, 2], [0, 2], [0, 1]]
    """
    read = length if max_length is None else min(length, max_length)
    view = list(range(length - read, length))
    rest = list(range(max(length - read - 1, 0), length))
    return [view, *([place for place in rest if place != removed] for removed in view)]


def next_item_removal(
    model: Any, history: HistoryBatch, items_K: np.ndarray, no_candidates: np.ndarray
) -> Removal:
    """Removal for a model that scores the catalogue, by `encode` and `item_table` or by `scores`.

    Args:
        model: in evaluation mode.
        history: one history, of up to one event more than the model reads.
        items_K: int64, item indices.
        no_candidates: int64, items that are not recommended (such as the history's own): they do
            not count in places.
    """
    rows = without_each(int(history.lengths_B[0]), model.max_length)
    items = torch.from_numpy(items_K)
    scores, places = [], []
    for batch in _batches(history, rows):
        for scores_BV in _of_catalogue(model, batch):
            scores_BV = scores_BV.cpu().float()
            own_BK = scores_BV[:, items].clone()
            scores_BV[:, 0] = -torch.inf
            scores_BV[:, torch.from_numpy(no_candidates)] = -torch.inf
            higher = [(scores_BV > own_B[:, None]).sum(1) for own_B in own_BK.unbind(1)]
            scores.append(own_BK.double())
            places.append(torch.stack(higher, 1) + 1)
    scores_RK, places_RK = torch.cat(scores).numpy(), torch.cat(places).numpy()
    places_RK[:, np.isin(items_K, no_candidates)] = 0
    return Removal(scores_RK[0], (scores_RK[0] - scores_RK[1:]).T, places_RK[0], places_RK[1:].T)


def _of_catalogue(model: Any, batch: HistoryBatch) -> Iterator[Tensor]:
    """Scores [some, V] of the batch's rows, in order."""
    if not hasattr(model, "encode"):
        yield model.scores(batch)
        return
    table_VD = model.item_table().float()
    encoded_BD = model.encode(batch.to(table_VD.device)).float()
    for h_BD in encoded_BD.split(max(1, SCORES_AT_A_TIME // len(table_VD))):
        yield h_BD @ table_VD.T


def click_removal(model: Any, questions: ClickBatch, max_length: int) -> Removal:
    """Removal for a ranker; scores are logits.

    Args:
        model: in evaluation mode.
        questions: one history, of up to one event more than the model reads, and K candidates.
        max_length: newest events the model reads.
    """
    device = next(model.parameters()).device
    rows = without_each(int(questions.lengths_B[0]), max_length)
    scores_RK = np.empty((len(rows), len(questions.lengths_B)))
    for item in range(scores_RK.shape[1]):
        parts = [model(batch.to(device)) for batch in _batches(questions, rows, item)]
        scores_RK[:, item] = torch.cat(parts).double().cpu().numpy()
    return Removal(scores_RK[0], (scores_RK[0] - scores_RK[1:]).T)


def in_view(batch: HistoryBatch | ClickBatch, max_length: int | None) -> Any:
    """The same rows, with the newest `max_length` events of the one history they share."""
    view = without_each(int(batch.lengths_B[0]), max_length)[0]
    newest = slice(view[0], view[-1] + 1) if view else slice(0, 1)
    lengths_B = torch.full_like(batch.lengths_B, len(view))
    if isinstance(batch, HistoryBatch):
        times = None if batch.times_BL is None else batch.times_BL[:, newest]
        return HistoryBatch(batch.items_BL[:, newest], lengths_B, times)
    return replace(
        batch,
        history_BL=batch.history_BL[:, newest],
        lengths_B=lengths_B,
        event_fields={name: field[:, newest] for name, field in batch.event_fields.items()},
    )


def _batches(batch: Any, rows: list[list[int]], row: int = 0) -> Iterator[Any]:
    """The R histories, some at a time."""
    at_once = max(1, EVENTS_AT_A_TIME // max(len(rows[0]), 1))
    for begin in range(0, len(rows), at_once):
        yield picked(batch, row, rows[begin : begin + at_once])


def picked(batch: Any, row: int, places: list[list[int]]) -> Any:
    """One row of a batch, once for each list of places of its events, which it then holds.

    Args:
        batch: a `HistoryBatch` or a `ClickBatch`.
        row: of the batch.
        places: of the events that stay, ascending.
    """
    S = max([len(own) for own in places] + [1])
    places_BS = torch.zeros(len(places), S, dtype=torch.int64)
    lengths_B = torch.tensor([len(own) for own in places])
    for line, own in enumerate(places):
        places_BS[line, : len(own)] = torch.tensor(own, dtype=torch.int64)
    valid_BS = torch.arange(S) < lengths_B[:, None]

    def events(values: Tensor) -> Tensor:
        taken = values[row][places_BS]
        return taken * valid_BS.view(*valid_BS.shape, *[1] * (taken.ndim - 2))

    def again(values: Tensor) -> Tensor:
        return values[row].expand(len(places), *values.shape[1:])

    if isinstance(batch, HistoryBatch):
        times = None if batch.times_BL is None else events(batch.times_BL)
        return HistoryBatch(events(batch.items_BL), lengths_B, times)
    assert isinstance(batch, ClickBatch)
    return replace(
        batch,
        candidates_B=again(batch.candidates_B),
        history_BL=events(batch.history_BL),
        lengths_B=lengths_B,
        user_fields={name: again(field) for name, field in batch.user_fields.items()},
        event_fields={name: events(field) for name, field in batch.event_fields.items()},
        context_fields={name: again(field) for name, field in batch.context_fields.items()},
    )
