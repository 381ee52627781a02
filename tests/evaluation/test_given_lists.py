"""Another system's lists: ranked as a model that scores them so, checked, read in pieces."""

from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from recsys.batch import HistoryBatch
from recsys.evaluation import given_lists
from recsys.evaluation.given_lists import ListError, judge_lists
from recsys.evaluation.metrics import metric_table
from recsys.evaluation.ranking import rank
from recsys.histories.questions import Questions, leave_one_out, user_share
from recsys.histories.store import HistoryStore

ITEMS = 15


def random_store(seed: int, users: int = 20) -> HistoryStore:
    draw = np.random.Generator(np.random.PCG64(seed))
    return HistoryStore.from_lists(
        [draw.integers(1, ITEMS + 1, draw.integers(3, 9)).tolist() for _ in range(users)],
        items=ITEMS,
    )


def last_events(store: HistoryStore) -> Questions:
    users = np.flatnonzero(store.lengths > 2)
    ends = store.lengths[users]
    return Questions(users, ends - 1, ends - 1, ends)


class Table:
    """Scores by user, whose number is the length of the history's first event … looked up."""

    max_length = None

    def __init__(self, store: HistoryStore, questions: Questions, scores_NV: np.ndarray) -> None:
        self.by_history = {
            tuple(store.history(int(u), int(end)).tolist()): scores_NV[n]
            for n, (u, end) in enumerate(zip(questions.users, questions.history_ends, strict=True))
        }

    def scores(self, batch: HistoryBatch) -> torch.Tensor:
        rows = [
            self.by_history[tuple(items[:length].tolist())]
            for items, length in zip(batch.items_BL, batch.lengths_B, strict=True)
        ]
        return torch.from_numpy(np.array(rows, dtype=np.float32))


def written(folder: Path, columns: dict) -> Path:
    path = folder / "lists.parquet"
    pl.DataFrame(columns).write_parquet(path)
    return path


@pytest.fixture
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("lists")


@settings(max_examples=50)
@given(st.integers(0, 400), st.booleans(), st.booleans(), st.sampled_from([1, 7, 10_000]))
def test_whole_lists_are_ranked_as_the_scores_they_come_from(
    tmp_path_factory, seed, ties, filter_seen, rows
):
    """Every item listed by score, ties among them: as `rank` says of a model with the scores."""
    folder = tmp_path_factory.mktemp("lists")
    store = random_store(seed)
    split = user_share(store, 0.3) if seed % 2 else leave_one_out(store)
    questions = split.test
    draw = np.random.Generator(np.random.PCG64(seed))
    high = 4 if ties else 10_000
    scores = draw.integers(0, high, (len(questions), ITEMS + 1)).astype(np.float32)
    histories = {
        tuple(store.history(int(u), int(e)).tolist())
        for u, e in zip(questions.users, questions.history_ends, strict=True)
    }
    if len(histories) < len(questions):
        return
    model = Table(store, questions, scores)
    expected = rank(model, store, questions, filter_seen=filter_seen, k=5)
    users, items = (
        np.repeat(questions.users, ITEMS),
        np.tile(np.arange(1, ITEMS + 1), len(questions)),
    )
    path = written(
        folder,
        {
            "user": store.user_vocabulary.raw(users),
            "item": store.item_vocabulary.raw(items),
            "score": scores[:, 1:].ravel(),
        },
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(given_lists, "ROWS", rows)
        found = judge_lists(path, store, questions, filter_seen=filter_seen, k=5)
    assert np.array_equal(found.answers.ranks, expected.answers.ranks)
    assert np.array_equal(found.lists_NK, expected.lists_NK)
    assert np.array_equal(found.list_scores_NK, expected.list_scores_NK)
    assert found.counts["longest"] == ITEMS


def test_beyond_the_list_is_a_miss_and_so_is_an_answer_of_the_history(folder):
    store = HistoryStore.from_lists([[1, 2, 3], [1, 2, 4], [5, 1, 5]], items=6)
    questions = last_events(store)
    columns = {
        "user": ["u0", "u0", "u1", "u1", "u2"],
        "item": ["i6", "i3", "i5", "i1", "i5"],
        "rank": [1, 2, 1, 2, 1],
    }
    path = written(folder, columns)
    found = judge_lists(path, store, questions, filter_seen=True, k=3)
    assert found.answers.ranks.tolist() == [2, 0, 0]
    assert found.lists_NK.tolist() == [[6, 3, 0], [5, 0, 0], [0, 0, 0]]
    assert found.counts["listed_seen"] == 2 and found.counts["answers_filtered"] == 1
    assert judge_lists(path, store, questions, filter_seen=False, k=3).answers.ranks[2] == 1
    assert metric_table(found.answers, [2])["hr_2"].tolist() == [1, 0, 0]


def test_users_who_are_not_asked_are_counted(folder):
    store = HistoryStore.from_lists([[1, 2, 3], [1, 2], [3, 2, 1]])
    path = written(
        folder, {"user": ["u1", "u0", "u2"], "item": ["i3", "i3", "i2"], "rank": [1, 1, 1]}
    )
    found = judge_lists(path, store, last_events(store), filter_seen=True, k=1)
    assert found.counts["users_not_asked"] == 1 and found.counts["listed"] == 2


BAD = {
    "no column": ({"user": ["u0"], "itm": ["i1"]}, "no column item and rank or score"),
    "text rank": ({"user": ["u0"], "item": ["i1"], "rank": ["1"]}, "'rank' holds String"),
    "unknown item": (
        {"user": ["u0", "u0"], "item": ["i1", "zz"], "rank": [1, 2]},
        "item 'zz' in row 2 is not in the store",
    ),
    "unknown user": ({"user": ["zz"], "item": ["i1"], "rank": [1]}, "user 'zz' in row 1"),
    "doubled": (
        {"user": ["u0", "u0"], "item": ["i1", "i1"], "rank": [1, 2]},
        "user 'u0' has item 'i1' twice",
    ),
    "one rank": (
        {"user": ["u0", "u0"], "item": ["i1", "i2"], "rank": [1, 1]},
        "user 'u0' has rank 1 twice",
    ),
    "nan": ({"user": ["u0"], "item": ["i1"], "score": [float("nan")]}, "score nan in row 1"),
    "null": ({"user": ["u0", "u0"], "item": ["i1", "i2"], "score": [1.0, None]}, "in row 2 is no"),
    "rank 0": ({"user": ["u0"], "item": ["i1"], "rank": [0]}, "rank 0 in row 1 must be a whole"),
    "missing": ({"user": ["u0"], "item": ["i1"], "rank": [1]}, "no list for 1 of the 2 users"),
    "apart": (
        {"user": ["u0", "u1", "u0"], "item": ["i1", "i1", "i2"], "rank": [1, 1, 2]},
        "rows of user 'u0' stand in two places, again from row 3",
    ),
    "empty": ({"user": [], "item": [], "rank": []}, "holds no rows|holds Null"),
}


@pytest.mark.parametrize("columns,words", BAD.values(), ids=BAD)
def test_lists_that_cannot_be_judged_are_refused(folder, columns, words):
    store = HistoryStore.from_lists([[1, 2, 3], [1, 2, 3]])
    with pytest.raises(ListError, match=words):
        judge_lists(written(folder, columns), store, last_events(store), filter_seen=True, k=2)


def test_a_user_apart_is_seen_across_pieces(folder, monkeypatch):
    monkeypatch.setattr(given_lists, "ROWS", 1)
    columns, words = BAD["apart"]
    test_lists_that_cannot_be_judged_are_refused(folder, columns, words)


def test_no_parquet_and_no_file(tmp_path):
    store = HistoryStore.from_lists([[1, 2, 3], [1, 2, 3]])
    (tmp_path / "lists.parquet").write_text("user,item")
    for path in (tmp_path / "lists.parquet", tmp_path / "none.parquet"):
        with pytest.raises(ListError, match=f"recommendations={path} cannot be read"):
            judge_lists(path, store, last_events(store), filter_seen=True, k=2)


def test_several_questions_a_user_are_refused(folder):
    store = HistoryStore.from_lists([[1, 2, 3], [1, 2, 3]])
    twice = Questions(*(np.array(a) for a in ([0, 0], [1, 2], [1, 2], [2, 3])))
    path = written(folder, {"user": ["u0"], "item": ["i1"], "rank": [1]})
    with pytest.raises(ListError, match="one question a user"):
        judge_lists(path, store, twice, filter_seen=True, k=2)
