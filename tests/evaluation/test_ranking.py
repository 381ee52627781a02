"""The ranking against a slow one written from its definition, and what it must refuse."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from recsys.batch import HistoryBatch
from recsys.evaluation.candidates import Candidates
from recsys.evaluation.metrics import hit_rate
from recsys.evaluation.ranking import ROWS, rank
from recsys.histories.questions import Questions
from recsys.histories.store import HistoryStore
from recsys.models.next_item.sasrec import SASRec

ITEMS = 9


class Table:
    """A scorer that looks its scores up: by the number of events it is shown."""

    max_length = None
    name = "Table"

    def __init__(self, scores_NV: np.ndarray) -> None:
        self.scores_NV = torch.from_numpy(scores_NV.astype(np.float32))

    def scores(self, batch: HistoryBatch) -> torch.Tensor:
        return self.scores_NV[batch.lengths_B % len(self.scores_NV)]


class Dots(nn.Module):
    """An encoder: the sum of the vectors of the events."""

    max_length: int | None = 3

    def __init__(self, items: int = ITEMS, width: int = 6) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.table = nn.Embedding(items + 1, width, padding_idx=0)
        self.dropout = nn.Dropout(0.5)

    def encode(self, batch: HistoryBatch) -> torch.Tensor:
        return self.dropout(self.table(batch.items_BL).sum(dim=1))

    def item_table(self) -> torch.Tensor:
        return self.table.weight


def slow_rank(scores_NV, store, questions, filter_seen, k, tie_seed, allowed=None):
    """Ranks and lists from the definition, one question and one candidate at a time."""
    tie = store.item_vocabulary.tie_order(tie_seed)
    all_ranks, lists = [], []
    for n in range(len(questions)):
        user, end = int(questions.users[n]), int(questions.history_ends[n])
        history = store.history(user).tolist()
        targets = history[int(questions.target_begins[n]) : int(questions.target_ends[n])]
        answers = list(dict.fromkeys(targets))
        seen = set(history[:end]) if filter_seen else set()
        among = range(1, store.catalogue_size) if allowed is None else allowed[n]
        candidates = [i for i in among if i not in seen]
        score = scores_NV[n]
        for answer in answers:
            if answer not in candidates:
                all_ranks.append(0)
                continue
            better = [
                i
                for i in candidates
                if score[i] > score[answer]
                or (
                    i != answer
                    and score[i] == score[answer]
                    and (i not in answers or tie[i] < tie[answer])
                )
            ]
            all_ranks.append(1 + len(better))
        best = sorted(candidates, key=lambda i: (-score[i], tie[i]))[:k]
        lists.append(best + [0] * (k - len(best)))
    return all_ranks, lists


@st.composite
def situations(draw):
    """Small logs with many ties: (store, questions, scores_NV)."""
    histories = draw(
        st.lists(st.lists(st.integers(1, ITEMS), min_size=1, max_size=8), min_size=1, max_size=5)
    )
    store = HistoryStore.from_lists(histories, ITEMS)
    rows = []
    for user, history in enumerate(histories):
        for _ in range(draw(st.integers(0, 2)) if rows else 1):
            end = draw(st.integers(0, len(history) - 1))
            begin = draw(st.integers(end, len(history) - 1))
            rows.append((user, end, begin, draw(st.integers(begin + 1, len(history)))))
    questions = Questions(*np.array(rows, dtype=np.int64).T)
    levels = draw(st.sampled_from([[0.0], [0.0, 1.0], [-1.5, -0.0, 0.0, 2.0, -np.inf, np.inf]]))
    row = st.lists(st.sampled_from(levels), min_size=ITEMS + 1, max_size=ITEMS + 1)
    # One row of scores for each possible history length; `Table` looks them up by it.
    scores = np.array(draw(st.lists(row, min_size=9, max_size=9)), dtype=np.float32)
    return store, questions, scores


@settings(deadline=None, max_examples=200)
@given(situations(), st.booleans(), st.integers(1, ITEMS + 3), st.integers(0, 2))
def test_equal_to_the_slow_ranking(situation, filter_seen, k, tie_seed):
    store, questions, scores = situation
    ranking = rank(Table(scores), store, questions, filter_seen=filter_seen, k=k, tie_seed=tie_seed)
    of_questions = scores[questions.history_ends % len(scores)]
    ranks, lists = slow_rank(of_questions, store, questions, filter_seen, k, tie_seed)
    assert ranking.answers.ranks.tolist() == ranks
    assert ranking.lists_NK.tolist() == lists
    finite = np.maximum(of_questions, np.finfo(np.float32).min)
    listed = np.take_along_axis(finite, ranking.lists_NK.astype(np.int64), axis=1)
    expected = np.where(ranking.lists_NK > 0, listed, -np.inf)
    np.testing.assert_array_equal(ranking.list_scores_NK, expected)


@settings(deadline=None, max_examples=200)
@given(situations(), st.booleans(), st.integers(1, ITEMS + 3), st.integers(0, 99))
def test_candidates_are_ranked_as_if_there_were_no_others(situation, filter_seen, k, seed):
    store, questions, scores = situation
    draw = np.random.default_rng(seed)
    allowed = [
        sorted(draw.permutation(np.arange(1, ITEMS + 1))[: draw.integers(1, ITEMS + 1)].tolist())
        for _ in range(len(questions))
    ]
    offsets = np.concatenate([[0], np.cumsum([len(items) for items in allowed])])
    candidates = Candidates(offsets, np.concatenate(allowed).astype(np.int32), "given", "lists")
    ranking = rank(
        Table(scores), store, questions, filter_seen=filter_seen, k=k, candidates=candidates
    )
    of_questions = scores[questions.history_ends % len(scores)]
    ranks, lists = slow_rank(of_questions, store, questions, filter_seen, k, 0, allowed)
    assert ranking.answers.ranks.tolist() == ranks
    assert ranking.lists_NK.tolist() == lists


def test_candidates_of_an_encoder_are_scored_as_its_catalogue():
    store, questions = long_log()
    every = np.arange(1, store.catalogue_size, dtype=np.int32)
    candidates = Candidates(
        np.arange(len(questions) + 1) * len(every), np.tile(every, len(questions)), "given", "all"
    )
    model = Dots(40)
    whole = rank(model, store, questions, filter_seen=True, k=10)
    among = rank(model, store, questions, filter_seen=True, k=10, candidates=candidates)
    assert np.array_equal(among.answers.ranks, whole.answers.ranks)
    assert np.array_equal(among.lists_NK, whole.lists_NK)
    np.testing.assert_allclose(among.list_scores_NK, whole.list_scores_NK, rtol=1e-5)


@settings(deadline=None, max_examples=50)
@given(situations(), st.integers(1, 4), st.randoms(use_true_random=False))
def test_batch_size_and_order_of_questions_change_nothing(situation, batch_size, random):
    store, questions, scores = situation
    whole = rank(Table(scores), store, questions, filter_seen=True, k=4)
    parts = rank(Table(scores), store, questions, filter_seen=True, k=4, batch_size=batch_size)
    assert parts.answers.ranks.tolist() == whole.answers.ranks.tolist()
    assert parts.lists_NK.tolist() == whole.lists_NK.tolist()
    order = np.array(random.sample(range(len(questions)), len(questions)))
    moved = rank(Table(scores), store, questions.take(order), filter_seen=True, k=4)
    assert moved.lists_NK.tolist() == whole.lists_NK[order].tolist()
    assert moved.answers.best.tolist() == whole.answers.best[order].tolist()


def long_log(users: int = 150, items: int = 40) -> tuple[HistoryStore, Questions]:
    draw = np.random.default_rng(3)
    lengths = draw.integers(1, 30, users)
    store = HistoryStore.from_lists(
        [draw.integers(1, items + 1, n).tolist() for n in lengths], items
    )
    return store, Questions(np.arange(users), lengths - 1, lengths - 1, lengths)


def test_an_encoder_gives_the_same_digits_in_any_batch():
    store, questions = long_log()
    model = Dots(items=40, width=32)
    whole = rank(model, store, questions, filter_seen=True, k=10)
    for batch_size in (1, 7, ROWS, 1000):
        parts = rank(model, store, questions, filter_seen=True, k=10, batch_size=batch_size)
        assert parts.answers.ranks.tolist() == whole.answers.ranks.tolist()
        np.testing.assert_array_equal(parts.list_scores_NK, whole.list_scores_NK)


@pytest.fixture
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def test_asking_one_by_one_gives_the_same_digits_of_an_attentive_model(one_thread):
    """As far as a product of few rows has the digits of one of many, which is the machine's.

    On one thread: several share a product by its size, and sum it in another order.
    """
    draw = torch.Generator().manual_seed(3)
    x, table = (torch.randn(rows, 64, generator=draw) for rows in (600, 64))
    parts = [x[begin : begin + 8] @ table for begin in range(0, 600, 8)]
    if not torch.equal(torch.cat(parts), x @ table):
        pytest.skip("8 rows are summed in another order than 600 on this machine")
    events = np.random.default_rng(1).integers(1, 41, (36, 12))
    lengths = np.arange(36) % 12 + 1
    histories = [row[:length].tolist() for row, length in zip(events, lengths, strict=True)]
    store = HistoryStore.from_lists(histories, items=40)
    questions = Questions(np.arange(36), lengths - 1, lengths - 1, lengths)
    torch.manual_seed(2)
    model = SASRec(41, max_length=12, width=64, initial_scale=1.0)
    whole = rank(model, store, questions, filter_seen=True, k=10)
    for batch_size in (1, 2, 3, 7, 20):
        parts = rank(model, store, questions, filter_seen=True, k=10, batch_size=batch_size)
        np.testing.assert_array_equal(parts.list_scores_NK, whole.list_scores_NK)


def test_encoder_scores_are_products_of_the_newest_events_without_dropout():
    store, questions = long_log()
    model = Dots(items=40, width=32).train()
    ranking = rank(model, store, questions, filter_seen=False, k=5)
    assert model.training  # and given back as it came
    table = model.table.weight.detach().double()
    for n in (0, 17, 149):
        history = store.history(int(questions.users[n]), int(questions.history_ends[n]))[-3:]
        scores = table[torch.from_numpy(history.astype(np.int64))].sum(dim=0) @ table.T
        expected = (-scores[1:]).argsort()[:5] + 1
        assert ranking.lists_NK[n].tolist() == expected.tolist()


def test_the_whole_history_is_filtered_not_only_what_the_model_reads():
    store = HistoryStore.from_lists([[1, 2, 3, 4, 5, 6]], 6)
    question = Questions(*np.array([[0], [5], [5], [6]]))
    ranking = rank(Dots(items=6), store, question, filter_seen=True, k=6)
    assert ranking.lists_NK.tolist() == [[6, 0, 0, 0, 0, 0]]
    assert ranking.answers.ranks.tolist() == [1]


def test_a_filtered_answer_is_a_miss_and_counted():
    store = HistoryStore.from_lists([[1, 2, 1], [3, 1, 2, 2]], 4)
    questions = Questions(*np.array([[0, 1], [2, 2], [2, 2], [3, 4]]))
    scores = np.array([[0, 9, 1, 1, 1]])
    ranking = rank(Table(scores), store, questions, filter_seen=True, k=3)
    assert ranking.answers.ranks.tolist() == [0, 2]
    assert hit_rate(ranking.answers, 3).tolist() == [0.0, 1.0]
    assert ranking.counts == {
        "questions": 2,
        "questions_cold": 0,
        "questions_filtered": 1,
        "answers": 2,
        "answers_filtered": 1,
        "answers_repeated": 1,
    }
    repeats = rank(Table(scores), store, questions, filter_seen=False, k=3)
    assert repeats.answers.ranks.tolist() == [1, 4]
    assert repeats.counts["answers_filtered"] == 0


def test_an_empty_history_is_asked_and_counted():
    store = HistoryStore.from_lists([[2, 1], [3]], 3)
    questions = Questions(*np.array([[0, 1], [0, 0], [0, 0], [1, 1]]))
    ranking = rank(Dots(items=3), store, questions, filter_seen=True, k=2)
    assert ranking.counts["questions_cold"] == 2
    # All scores are 0: the answer stands behind the two others.
    assert ranking.answers.ranks.tolist() == [3, 3]


@pytest.mark.parametrize("value", [0.0, 1.0, -np.inf, np.inf])
def test_a_constant_model_gains_nothing(value):
    store, questions = long_log()
    ranking = rank(Table(np.full((1, 41), value)), store, questions, filter_seen=True, k=5)
    for n in range(len(questions)):
        seen = set(store.history(int(questions.users[n]), int(questions.history_ends[n])).tolist())
        answer = int(store.history(int(questions.users[n]))[-1])
        expected = 0 if answer in seen else 40 - len(seen)
        assert ranking.answers.ranks[n] == expected


def test_equal_scores_are_listed_by_the_hash_and_not_by_the_index():
    store = HistoryStore.from_lists([[1, 2]], 200)
    question = Questions(*np.array([[0], [1], [1], [2]]))
    lists = [
        rank(Table(np.zeros((1, 201))), store, question, filter_seen=False, k=20, tie_seed=seed)
        .lists_NK[0]
        .tolist()
        for seed in (0, 1)
    ]
    assert lists[0] != sorted(lists[0])
    assert lists[0] != lists[1]
    expected = np.argsort(store.item_vocabulary.tie_order(0)[1:])[:20] + 1
    assert lists[0] == expected.tolist()


def test_the_model_keeps_its_scores():
    class Same(Table):
        def scores(self, batch: HistoryBatch) -> torch.Tensor:
            return self.scores_NV[: len(batch.lengths_B)]  # its own memory, not a copy

    store, questions = long_log()
    model = Same(np.random.default_rng(0).normal(size=(256, 41)))
    before = model.scores_NV.clone()
    rank(model, store, questions, filter_seen=True, k=5)
    assert torch.equal(model.scores_NV, before)


def test_nan_scores_are_refused_by_name():
    store, questions = long_log()
    scores = np.zeros((1, 41))
    scores[0, 7] = np.nan
    with pytest.raises(ValueError, match="Table gave NaN scores"):
        rank(Table(scores), store, questions, filter_seen=True, k=5)
    scores[0, 7], scores[0, 0] = 0, np.nan  # padding is nobody's score
    rank(Table(scores), store, questions, filter_seen=True, k=5)


@pytest.mark.parametrize("model", [Table(np.zeros((1, 30))), Dots(items=29)])
def test_a_model_of_another_catalogue_is_refused(model):
    store, questions = long_log()
    with pytest.raises(ValueError, match="knows 29 items, the store 40"):
        rank(model, store, questions, filter_seen=True, k=5)


def test_refuses_nothing_to_rank():
    store, questions = long_log()
    model = Table(np.zeros((1, 41)))
    with pytest.raises(ValueError, match="no questions"):
        rank(model, store, questions.take(np.arange(0)), filter_seen=True, k=5)
    with pytest.raises(ValueError, match="at least 1, not 0"):
        rank(model, store, questions, filter_seen=True, k=0)
    empty = Questions(
        questions.users, questions.history_ends, questions.history_ends, questions.history_ends
    )
    with pytest.raises(ValueError, match="question 0 of 150 has no answer"):
        rank(model, store, empty, filter_seen=True, k=5)
