"""iALS: the solver does what the paper says, and histories that were not fitted count."""

import numpy as np
import pytest
import torch

from recsys.batch import HistoryBatch
from recsys.histories.store import HistoryStore
from recsys.models.baselines.ials import IALS

# Item 7 is never in training. Item 2 is the most popular.
LOG = [[1, 2, 3, 4], [2, 3, 3, 5], [3, 2, 1], [2, 6], [6], []]
V = 8


def fitted(**parameters) -> IALS:
    store = HistoryStore.from_lists(LOG, V - 1)
    log = (store.items, store.offsets, store.lengths, store.catalogue_size)
    return IALS(**{"factors": 3, "regularisation": 0.5, "alpha": 4.0} | parameters).fit(*log)


def scores(model: IALS, *histories: list[int], padding: int = 0) -> np.ndarray:
    lengths = [len(history) for history in histories]
    items = torch.zeros(len(histories), max([1, *lengths]) + padding, dtype=torch.int64)
    for row, history in enumerate(histories):
        items[row, : len(history)] = torch.tensor(history)
    return model.scores(HistoryBatch(items, torch.tensor(lengths))).numpy()


def solved(vectors: np.ndarray, had: set[int], weight: float, alpha: float) -> np.ndarray:
    """x_u = (Yᵀ C Y + λ I)⁻¹ Yᵀ C p (Hu et al., equation 4)."""
    confidence = np.ones(len(vectors))
    confidence[list(had)] = alpha
    wanted = np.isin(np.arange(len(vectors)), list(had))
    left = vectors.T @ (confidence[:, None] * vectors) + weight * np.eye(vectors.shape[1])
    return np.linalg.solve(left, vectors.T @ (confidence * wanted))


@pytest.mark.parametrize("history", [[1, 2, 3, 4], [3, 3, 3], [6, 1]])
def test_scores_solve_the_equations_of_the_paper(history):
    model = fitted()
    vectors = model.vectors_VD.astype(np.float64)
    expected = vectors @ solved(vectors, set(history), 0.5, 4.0)
    np.testing.assert_allclose(scores(model, history)[0, 1:7], expected[1:7], atol=1e-4)


def test_half_steps_have_come_to_rest():
    # At the minimum the items' vectors solve the same equations for the users who had them.
    model = fitted(iterations=300)
    vectors = model.vectors_VD.astype(np.float64)
    users = np.stack([solved(vectors, set(h), 0.5, 4.0) if h else np.zeros(3) for h in LOG])
    again = [
        solved(users, {u for u, h in enumerate(LOG) if item in h}, 0.5, 4.0) for item in range(1, 7)
    ]
    np.testing.assert_allclose(np.stack(again) @ users.T, vectors[1:7] @ users.T, atol=0.02)


def test_untrained_items_stand_last_and_no_history_is_popularity():
    model = fitted()
    found = scores(model, [1, 2], [], [7])
    assert np.isfinite(found).all()
    assert (found[0, 7] < found[0, 1:7]).all()
    counts = np.bincount([item for history in LOG for item in history], minlength=V)
    for nothing in found[1:]:
        assert nothing[1:].argmax() + 1 == counts.argmax() or counts[nothing[1:].argmax() + 1] == 4
        assert (np.diff(counts[1:][np.argsort(nothing[1:])]) >= 0).all()


def test_padding_and_company_change_next_to_nothing():
    model = fitted()
    alone = scores(model, [1, 4])
    beside = scores(model, [2], [1, 4], [6, 5, 3], padding=4)[1:2]
    np.testing.assert_allclose(alone, beside, atol=1e-5)


def test_a_saved_model_answers_alike():
    model = fitted()
    again = IALS.from_state(model.state())
    assert again.parameters == model.parameters
    np.testing.assert_array_equal(scores(again, [1, 4], []), scores(model, [1, 4], []))


@pytest.mark.parametrize(
    "wrong", [{"factors": 0}, {"iterations": 0}, {"regularisation": 0.0}, {"alpha": 0.5}]
)
def test_settings_that_mean_nothing_are_refused(wrong):
    with pytest.raises(ValueError, match="iALS needs"):
        IALS(**wrong)
