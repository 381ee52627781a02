"""What a model had learned of a test: by hand, and the laws of it."""

from __future__ import annotations

import polars as pl
import pytest

from recsys.histories.clicks import click_split
from recsys.histories.leaks import Leak, find_leak, learned_rows
from recsys.histories.negatives import NegativeSampler
from recsys.histories.questions import global_time, leave_one_out, user_share
from recsys.histories.store import HistoryStore
from recsys.histories.vocabulary import Vocabulary

TIMES = [[0, 1, 2, 3, 4, 5, 6, 7, 8, 9], [0, 1, 2, 3, 4, 5], [6, 7, 8, 9]]
HISTORIES = [[1, 2, 3, 4, 5, 6, 7, 8, 9, 10], [2, 3, 4, 5, 6, 7], [1, 2, 3, 4]]
STORE = HistoryStore.from_lists(HISTORIES, items=30, times=TIMES)
BY_TIME = global_time(
    STORE, validation_cut=0.5, test_cut=0.75, target="all", new_users="asked"
)  # events from 5 on validate, those from 7 on test


def test_no_split_leaks_into_itself() -> None:
    for split in (leave_one_out(STORE), user_share(STORE, 0.2), BY_TIME):
        leak = find_leak(split, STORE, split, STORE)
        assert leak.answers == 0 and leak.questions == len(split.test)
    assert find_leak(BY_TIME, STORE, BY_TIME, STORE) == Leak(questions=2, answers=0, later=0)


def test_a_test_of_the_future_asked_of_a_model_of_leave_one_out() -> None:
    trained = leave_one_out(STORE)
    # Of user 0 it was trained on the events at 7, of user 2 on those at 6 and 7.
    assert find_leak(BY_TIME, STORE, trained, STORE) == Leak(questions=2, answers=2, later=2)
    # The other way round nothing is known.
    assert find_leak(trained, STORE, BY_TIME, STORE).answers == 0


def test_clicks_leak_by_the_rows_they_ask_about() -> None:
    sampler = NegativeSampler(STORE, leave_one_out(STORE).training_ends, "uniform", 2, 0)
    trained = click_split(STORE, leave_one_out(STORE), history="events", negatives=sampler)
    asked = click_split(STORE, BY_TIME, history="events", negatives=sampler)
    assert learned_rows(trained, STORE).sum() == 8 + 4 + 2
    # Answers at 7, 8, 9 of users 0 and 2, each with two negatives; those at 7 were trained on.
    assert find_leak(asked, STORE, trained, STORE) == Leak(questions=18, answers=6, later=2)


@pytest.mark.parametrize("names", [["u2", "u0"], ["x", "y"]])
def test_another_log_is_compared_by_raw_user_item_and_time(names: list[str]) -> None:
    newer = HistoryStore.from_lists(
        [HISTORIES[2], HISTORIES[0]], items=30, times=[TIMES[2], TIMES[0]]
    )
    own = HistoryStore(
        offsets=newer.offsets,
        items=newer.items,
        times=newer.times,
        user_vocabulary=Vocabulary(pl.Series("user", names), 0),
        item_vocabulary=newer.item_vocabulary,
    )
    asked = global_time(own, validation_cut=0.5, test_cut=0.7, target="all", new_users="asked")
    leak = find_leak(asked, own, leave_one_out(STORE), STORE)
    assert leak.answers == (2 if names[0] == "u2" else 0)
