"""Removing an event is scoring the history without it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from recsys.batch import HistoryBatch
from recsys.explain import removal
from recsys.explain.removal import click_removal, in_view, next_item_removal, picked
from recsys.models.click.din import DIN
from recsys.models.next_item.sasrec import SASRec
from recsys.testing import CLICK_FIELDS, batch_of, click_batch_of
from tests.explain.test_attention_weights import alive

ITEMS = np.array([3, 11, 7])
LENGTHS = [0, 1, 2, 5, 6, 7, 9]


def history_of(length: int) -> list[int]:
    return (1 + np.random.default_rng(length).integers(0, 11, length)).tolist()


class Scoring:
    """The same model, but it scores the catalogue itself."""

    def __init__(self, model: Any) -> None:
        self.model, self.max_length = model, model.max_length

    def scores(self, batch: HistoryBatch) -> torch.Tensor:
        scores: torch.Tensor = self.model.encode(batch) @ self.model.item_table().T
        return scores


@torch.no_grad()
@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize("own", [False, True])
@pytest.mark.parametrize("positions", ["oldest", "newest"])
def test_next_item_scores_and_places_equal_a_plain_loop(
    length: int, own: bool, positions: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    M = 6
    monkeypatch.setattr(removal, "EVENTS_AT_A_TIME", 12)  # two histories at a time
    monkeypatch.setattr(removal, "SCORES_AT_A_TIME", 12)  # one row at a time
    model = alive(SASRec(12, M, width=12, heads=2, positions=positions))
    history, left_out = history_of(length), np.array([7, 9])
    newest = batch_of([history[-(M + 1) :]])
    found = next_item_removal(Scoring(model) if own else model, newest, ITEMS, left_out)

    def asked(events: list[int]) -> tuple[np.ndarray, list[int]]:
        scores_V = (model.encode(batch_of([events[-M:]])) @ model.item_table().T)[0]
        scores_V[[0, *left_out]] = -torch.inf
        higher = [int((scores_V > scores_V[item]).sum()) + 1 for item in ITEMS]
        places = [0 if item in left_out else n for item, n in zip(ITEMS, higher, strict=True)]
        scores_V = (model.encode(batch_of([events[-M:]])) @ model.item_table().T)[0]
        return scores_V[torch.from_numpy(ITEMS)].numpy(), places

    scores, places = asked(history)
    np.testing.assert_allclose(found.scores_K, scores, rtol=1e-4, atol=1e-5)
    assert found.places_K is not None and found.places_KL is not None
    assert found.places_K.tolist() == places
    view = range(max(length - M, 0), length)
    assert found.drops_KL.shape == found.places_KL.shape == (3, len(view))
    for column, removed in enumerate(view):
        without, places = asked(history[:removed] + history[removed + 1 :])
        np.testing.assert_allclose(
            found.drops_KL[:, column], scores - without, rtol=1e-4, atol=1e-4
        )
        assert found.places_KL[:, column].tolist() == places


@torch.no_grad()
@pytest.mark.parametrize("length", LENGTHS)
def test_click_scores_equal_a_plain_loop(length: int) -> None:
    M = 6
    model = alive(DIN(12, **CLICK_FIELDS, max_length=M, width=8, heads=2, activation="relu"))
    history, candidates = history_of(length), ITEMS.tolist()

    def batch(events: list[int]) -> Any:
        """The user stays who it is."""
        made = click_batch_of([events] * 3, candidates, catalogue_size=12)
        return replace(made, user_fields={"user_id": torch.tensor([3, 3, 3])})

    found = click_removal(model, batch(history[-(M + 1) :]), M)
    scores = model(batch(history[-M:])).numpy()
    np.testing.assert_allclose(found.scores_K, scores, rtol=1e-4, atol=1e-5)
    assert found.places_K is None
    view = range(max(length - M, 0), length)
    assert found.drops_KL.shape == (3, len(view))
    for column, removed in enumerate(view):
        without = model(batch((history[:removed] + history[removed + 1 :])[-M:])).numpy()
        np.testing.assert_allclose(
            found.drops_KL[:, column], scores - without, rtol=1e-4, atol=1e-4
        )


def test_what_belongs_to_an_event_goes_with_it() -> None:
    batch = HistoryBatch(
        torch.tensor([[4, 5, 6, 7]]), torch.tensor([4]), torch.tensor([[40, 50, 60, 70]])
    )
    made = picked(batch, 0, [[0, 2, 3], [1]])
    assert made.items_BL.tolist() == [[4, 6, 7], [5, 0, 0]]
    assert made.times_BL.tolist() == [[40, 60, 70], [50, 0, 0]]
    assert made.lengths_B.tolist() == [3, 1]
    newest = in_view(batch, 2)
    assert (newest.items_BL.tolist(), newest.times_BL.tolist()) == ([[6, 7]], [[60, 70]])
    clicks = click_batch_of([[4, 5, 6]], [2], catalogue_size=12)
    clicks = replace(
        clicks,
        event_fields={
            "label": torch.tensor([[1, 2, 3]]),
            "tags": torch.tensor([[[1, 2], [3, 4], [5, 6]]]),
            "dwell": torch.tensor([[0.1, 0.2, 0.3]]),
        },
    )
    some = picked(clicks, 0, [[0, 2], [1]])
    assert some.event_fields["label"].tolist() == [[1, 3], [2, 0]]
    assert some.event_fields["tags"].tolist() == [[[1, 2], [5, 6]], [[3, 4], [0, 0]]]
    assert torch.equal(some.event_fields["dwell"], torch.tensor([[0.1, 0.3], [0.2, 0.0]]))
    assert in_view(clicks, 1).event_fields["tags"].tolist() == [[[5, 6]]]
