"""One history explained: what the model looked at, what moved its scores, whether the two agree.

Dimensions: L events in view, K items, M maps, H heads.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from recsys.batch import ClickBatch, HistoryBatch
from recsys.explain.attention_weights import Attended, attend, map_names
from recsys.explain.faithfulness import Correlation, mean_correlation, rank_correlation
from recsys.explain.removal import Removal, click_removal, in_view, next_item_removal


@dataclass(frozen=True)
class Explanation:
    """K items that one history was asked about.

    Attributes:
        names: of the M maps: each head of each layer, then one of all of them if there are several.
        maps_KML: float64. A next-item model looks at the history once, whatever the item: K is 1.
        removal: what the items score with and without each event.
        layers: of a next-item model, all weights of each layer [H, L, L]; empty for a ranker.
        mismatch: how far the scores of the pass that gave the weights are from those that the model
            gives where it is used, at most; rounding.
    """

    names: list[str]
    maps_KML: np.ndarray
    removal: Removal
    layers: list[np.ndarray]
    mismatch: float

    def maps(self, item: int) -> np.ndarray:
        """The maps [M, L] of one of the K items."""
        maps_ML: np.ndarray = self.maps_KML[item if len(self.maps_KML) > 1 else 0]
        return maps_ML

    def correlations(self, item: int) -> list[Correlation]:
        """Of each map with the drops of an item's score."""
        removal = self.removal
        return [
            rank_correlation(map_L, removal.drops_KL[item], float(removal.scores_K[item]))
            for map_L in self.maps(item)
        ]


@dataclass(frozen=True)
class Item:
    """An item that was asked about.

    Attributes:
        raw: its id.
        title: what a person calls it; the id where nothing else is known.
        role: why it is asked about: "recommended", "what came next", …
    """

    raw: Any
    title: str
    role: str


@dataclass(frozen=True)
class Person:
    """A user whose history is explained.

    Attributes:
        raw: the user's id.
        events: (raw item id, title) of the events in view, oldest first.
        length: events of the whole history.
        asked: the K items.
        explanation: None where there is no event to explain.
    """

    raw: Any
    events: list[tuple[Any, str]]
    length: int
    asked: list[Item]
    explanation: Explanation | None


@torch.no_grad()
def explain_next_item(
    model: Any, history: HistoryBatch, items_K: np.ndarray, no_candidates: np.ndarray
) -> Explanation:
    """Explains what a next-item model scores K items.

    Args:
        model: in evaluation mode, with attention.
        history: one history, of up to one event more than the model reads.
        items_K: int64, item indices.
        no_candidates: int64, items that are not recommended to this history.

    Raises:
        NoAttentionError: weights of so long a history do not fit into memory.
    """
    attended = attend(model, in_view(history, model.max_length))
    removal = next_item_removal(model, history, items_K, no_candidates)
    mismatch = 0.0
    if hasattr(model, "encode"):
        scores_K = attended.output.float()[0] @ model.item_table().float().T[:, items_K]
        mismatch = _apart(scores_K.cpu().numpy(), removal.scores_K)
    length = attended.lengths[0]
    layers = [layer[0, :, :length, :length].float().cpu().numpy() for layer in attended.weights]
    names, maps_ML = _all_maps(attended, 0)
    return Explanation(names, maps_ML[None], removal, layers, mismatch)


@torch.no_grad()
def explain_clicks(model: Any, questions: ClickBatch, max_length: int) -> Explanation:
    """Explains the logits of K candidates.

    Args:
        model: a ranker in evaluation mode, with attention.
        questions: one history, of up to one event more than the model reads, and K candidates.
        max_length: newest events the model reads.
    """
    attended = attend(model, in_view(questions, max_length))
    removal = click_removal(model, questions, max_length)
    maps_KML = [_all_maps(attended, item)[1] for item in range(len(attended.lengths))]
    mismatch = _apart(attended.output.cpu().numpy(), removal.scores_K)
    return Explanation(_all_maps(attended, 0)[0], np.stack(maps_KML), removal, [], mismatch)


def mean_correlations(people: Sequence[Person]) -> list[tuple[str, Correlation, int]]:
    """Of each map: its name, the mean over each person's first item, and of how many people."""
    explained = [person.explanation for person in people if person.explanation is not None]
    if not explained:
        return []
    each = [explanation.correlations(0) for explanation in explained]
    return [
        (name, *mean_correlation([found[number] for found in each]))
        for number, name in enumerate(explained[0].names)
    ]


def _all_maps(attended: Attended, row: int) -> tuple[list[str], np.ndarray]:
    """Each head's map, and one of all of them if there are several."""
    names, maps_ML = map_names(attended.weights), attended.maps(row)
    if len(names) == 1:
        return names, maps_ML
    together = attended.rolled_out(row) if len(attended.weights) > 1 else None
    if together is None:
        return [*names, "mean"], np.vstack([maps_ML, maps_ML.mean(0)])
    return [*names, "rolled out"], np.vstack([maps_ML, together])


def _apart(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.abs(a.astype(np.float64) - b).max(initial=0.0))
