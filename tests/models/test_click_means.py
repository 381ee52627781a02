"""Item mean + user mean: what it says where the answer is known."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from recsys.models.baselines.click_means import ItemUserMeans


@st.composite
def tables(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    n = draw(st.integers(2, 40))
    users = draw(st.lists(st.integers(0, 3), min_size=n, max_size=n))
    items = draw(st.lists(st.integers(1, 4), min_size=n, max_size=n))
    labels = draw(st.lists(st.integers(0, 1), min_size=n - 2, max_size=n - 2))
    return np.array(users), np.array(items), np.array([0, 1, *labels], dtype=np.float32)


@given(table=tables(), item_rows=st.floats(0.1, 50), user_rows=st.floats(0.1, 50))
def test_is_its_definition_row_by_row(
    table: tuple[np.ndarray, np.ndarray, np.ndarray], item_rows: float, user_rows: float
) -> None:
    users, items, labels = table
    model = ItemUserMeans(item_rows, user_rows).fit(users, items, labels, 5, 6)
    rows = list(zip(users.tolist(), items.tolist(), labels.tolist(), strict=True))
    mean = sum(y for _, _, y in rows) / len(rows)

    def item(i: int) -> float:
        own = [y for _, j, y in rows if j == i]
        return (sum(own) + item_rows * mean) / (len(own) + item_rows)

    for u in range(5):  # user 4 and item 5 have no row
        above = sum(y - item(j) for v, j, y in rows if v == u)
        spread = sum(item(j) * (1 - item(j)) for v, j, _ in rows if v == u)
        shift = above / (spread + user_rows * mean * (1 - mean))
        for i in range(1, 6):
            odds = item(i) / (1 - item(i)) * np.exp(shift)
            found = model.scores(np.array([u]), np.array([i]))[0]
            assert found == pytest.approx(odds / (1 + odds), rel=1e-9)
    assert model.scores(np.array([4]), np.array([5]))[0] == pytest.approx(mean)


def test_a_user_who_picks_good_items_is_not_generous() -> None:
    # Item 1 is taken by all, item 2 by half; user 0 sees item 1 only, user 1 item 2 only.
    users = np.concatenate([np.zeros(20, int), np.ones(20, int), np.arange(2, 42)])
    items = np.concatenate([np.ones(20, int), np.full(20, 2), np.tile([1, 2], 20)])
    labels = np.where(items == 1, 1, np.arange(80) // 2 % 2).astype(np.float32)
    model = ItemUserMeans(0.01).fit(users, items, labels, 42, 3)
    assert abs(model.user_shifts_U[0]) < 0.1 and abs(model.user_shifts_U[1]) < 0.1


def test_state_gives_the_model_back() -> None:
    users, items, labels = np.array([0, 1, 1]), np.array([1, 1, 2]), np.array([1.0, 0.0, 1.0])
    model = ItemUserMeans(2, 3).fit(users, items, labels, 2, 3)
    other = ItemUserMeans.from_state(model.state())
    assert other.parameters == model.parameters == {"item_rows": 2, "user_rows": 3}
    assert other.scores(users, items).tolist() == model.scores(users, items).tolist()


def test_bad_input_is_said() -> None:
    with pytest.raises(ValueError, match="user_rows must be more than 0, not 0"):
        ItemUserMeans(user_rows=0)
    for labels in (np.zeros(0), np.ones(2), np.zeros(2)):
        rows = np.ones(len(labels), dtype=np.int64)
        with pytest.raises(ValueError, match="training labels are alike"):
            ItemUserMeans().fit(rows, rows, labels, 2, 2)
