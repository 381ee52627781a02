"""Lists equal those an evaluation judges, whoever asks and however."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import nn

from recsys.batch import HistoryBatch
from recsys.evaluation.ranking import ROWS, rank
from recsys.histories.questions import Questions
from recsys.histories.store import HistoryStore
from recsys.histories.vocabulary import Vocabulary
from recsys.models.next_item.sasrec import SASRec
from recsys.serving.recommender import FEW, Recommender, event_counts
from recsys.training.saved_model import ModelError, save_model

ITEMS = 9
STORE = HistoryStore.from_lists([[1, 2, 3], [], [4], [2, 2, 9, 5], [7, 8]], ITEMS)


class Table:
    """A scorer that looks its scores up: by the number of events it is shown."""

    max_length = None

    def __init__(self, scores_NV: np.ndarray) -> None:
        self.scores_NV = torch.from_numpy(scores_NV.astype(np.float32))

    def scores(self, batch: HistoryBatch) -> torch.Tensor:
        return self.scores_NV[batch.lengths_B % len(self.scores_NV)]


def recommender(model=None, **options) -> Recommender:
    scores = np.arange(ITEMS + 1)[None, :]
    return Recommender(
        model or Table(scores), STORE.item_vocabulary, **{"name": "Table", **options}
    )


def everybody(store: HistoryStore = STORE) -> tuple[HistoryStore, np.ndarray, np.ndarray]:
    return store, np.arange(store.users), store.lengths


@st.composite
def situations(draw):
    """(store, scores with many ties)."""
    history = st.lists(st.integers(1, ITEMS), max_size=6)
    histories = draw(st.lists(history, min_size=1, max_size=80))
    levels = draw(st.sampled_from([[0.0], [0.0, 1.0], [-1.5, 0.0, 2.0, -np.inf, np.inf]]))
    row = st.lists(st.sampled_from(levels), min_size=ITEMS + 1, max_size=ITEMS + 1)
    scores = np.array(draw(st.lists(row, min_size=7, max_size=7)), dtype=np.float32)
    return HistoryStore.from_lists(histories, ITEMS), scores


@settings(max_examples=25)
@given(situations(), st.integers(1, 12), st.booleans(), st.integers(0, 2))
def test_lists_are_those_an_evaluation_judges(situation, k, filter_seen, tie_seed):
    store, scores = situation
    top = Recommender(Table(scores), store.item_vocabulary, name="Table", tie_seed=tie_seed).top_k(
        *everybody(store), k=k, filter_seen=filter_seen
    )
    # The same histories as questions, with one event more as the answer.
    asked = HistoryStore.from_lists(
        [[*store.history(user).tolist(), 1] for user in range(store.users)], ITEMS
    )
    ends = store.lengths
    judged = rank(
        Table(scores),
        asked,
        Questions(np.arange(store.users), ends, ends, ends + 1),
        filter_seen=filter_seen,
        k=min(k, ITEMS),
        tie_seed=tie_seed,
    )
    assert np.array_equal(top.items_NK, judged.lists_NK)
    assert np.array_equal(top.scores_NK, judged.list_scores_NK)


@settings(max_examples=25)
@given(situations(), st.sets(st.integers(1, ITEMS), min_size=1), st.booleans())
def test_candidates_take_nothing_but_the_others_out(situation, candidates, filter_seen):
    store, scores = situation
    chosen = np.array(sorted(candidates))

    def lists(**options):
        made = Recommender(Table(scores), store.item_vocabulary, name="Table", **options)
        top = made.top_k(*everybody(store), k=ITEMS, filter_seen=filter_seen)
        return [row[row > 0].tolist() for row in top.items_NK]

    restricted = lists(candidates_C=chosen)
    assert restricted == [[i for i in row if i in candidates] for row in lists()]


def test_an_encoder_alone_and_in_company() -> None:
    torch.manual_seed(0)
    model = SASRec(ITEMS + 1, max_length=3, width=4).train()
    one = recommender(model, name="SASRec")
    together = one.top_k(*everybody(), k=3, filter_seen=True)
    assert model.training  # as it was
    for user in range(STORE.users):
        alone = one.top_k(STORE, np.array([user]), STORE.lengths[[user]], k=3, filter_seen=True)
        assert np.array_equal(alone.items_NK[0], together.items_NK[user])
        np.testing.assert_allclose(alone.scores_NK[0], together.scores_NK[user], rtol=1e-5)


@pytest.mark.parametrize("width", [8, 64, 100])
def test_a_few_histories_are_scored_to_the_same_bits(width: int, monkeypatch) -> None:
    vocabulary = Vocabulary(pl.Series("item", [f"i{i}" for i in range(300)]), 1)
    torch.manual_seed(width)
    model = SASRec(301, max_length=6, width=width, layers=1, initial_scale=1.0)
    made = Recommender(model, vocabulary, name="SASRec")
    draw = np.random.default_rng(width)
    histories = [[f"i{i}" for i in draw.integers(0, 300, 6)] for _ in range(FEW)]
    for asked in (histories, histories[:1], histories[2:5], [*histories, []]):
        found = {}
        for exact in (True, False):  # False: the product of an evaluation
            monkeypatch.setitem(made.__dict__, "_few_are_exact", exact)
            shapes = []
            monkeypatch.setattr(
                torch, "mm", lambda a, b, s=shapes, **o: s.append(len(a)) or MM(a, b, **o)
            )
            found[exact] = made.recommend(asked, k=300, filter_seen=False).frame
            assert shapes == [FEW if exact and len(asked) <= FEW else ROWS]
        assert found[True].equals(found[False])


MM = torch.mm


@pytest.mark.parametrize("last_bit", [0, 1])
def test_a_few_are_scored_apart_only_where_that_has_the_same_bits(last_bit, monkeypatch) -> None:
    made = Recommender(SASRec(10, width=8), STORE.item_vocabulary, name="SASRec")
    monkeypatch.setattr(
        torch, "mm", lambda a, b: MM(a, b) * (1 + last_bit * 2**-22 * (len(a) == FEW))
    )
    assert made._few_are_exact == (last_bit == 0)


def test_dropout_is_off_in_a_model_that_trains() -> None:
    model = SASRec(ITEMS + 1, max_length=4, width=8, layers=1, dropout=0.5)
    made = Recommender(model, STORE.item_vocabulary, name="SASRec")
    model.eval()
    wanted = made.top_k(*everybody(), k=3, filter_seen=True).scores_NK
    for module in (model, model.dropout):
        module.train()
        assert np.array_equal(made.top_k(*everybody(), k=3, filter_seen=True).scores_NK, wanted)
        model.eval()


def test_without_history_the_popular_items_and_it_says_so() -> None:
    popularity = event_counts(STORE)
    top = recommender(popularity_V=popularity).top_k(*everybody(), k=4, filter_seen=True)
    assert top.by_popularity_N.tolist() == [False, True, False, False, False]
    assert top.items_NK[1, 0] == 2 and top.scores_NK[1].tolist() == [3, 1, 1, 1]
    assert top.items_NK[0].tolist() == [9, 8, 7, 6]  # the model's own
    frame = recommender(popularity_V=popularity).frame(STORE.user_vocabulary.raw_ids, top)
    by_model = frame.group_by("user").agg(pl.col("model").unique())
    assert dict(by_model.rows()) == {
        "u0": ["Table"],
        "u1": ["Popularity"],
        "u2": ["Table"],
        "u3": ["Table"],
        "u4": ["Table"],
    }


def test_who_took_nothing_has_no_history_to_a_model_of_what_was_taken() -> None:
    options = {"k": 2, "filter_seen": False, "read_N": np.array([0, 0, 1, 2, 0])}
    top = recommender(popularity_V=event_counts(STORE)).top_k(*everybody(), **options)
    assert top.by_popularity_N.tolist() == [True, True, False, False, True]
    assert top.items_NK[0, 0] == 2 and top.items_NK[2].tolist() == [9, 8]


@given(situations(), st.data())
def test_what_is_left_out_and_what_counts_as_popular(situation, data) -> None:
    store, scores = situation
    label = st.lists(st.integers(-1, 1), min_size=store.events, max_size=store.events)
    labels = np.array(data.draw(label), dtype=np.int8)
    asked = replace(store, labels=labels)
    model = Recommender(Table(scores), store.item_vocabulary, name="Table")

    def lists(store: HistoryStore, **seen) -> list[set[int]]:
        top = model.top_k(*everybody(store), k=ITEMS, filter_seen=True, **seen)
        return [set(row[row > 0].tolist()) for row in top.items_NK]

    everything = set(range(1, ITEMS + 1))
    taken = np.split(np.where(labels == 1, store.items, 0), store.offsets[1:-1])
    assert lists(asked, seen="taken") == [everything - set(row.tolist()) for row in taken]
    shown = [everything - set(store.history(user).tolist()) for user in range(store.users)]
    assert lists(asked, seen="events") == lists(asked) == shown
    assert lists(store, seen="taken") == shown  # without labels all of it was taken
    counts = np.bincount(store.items[labels == 1], minlength=ITEMS + 1)
    assert event_counts(asked, taken_only=True).tolist() == counts.tolist()
    assert event_counts(store, taken_only=True).tolist() == event_counts(asked).tolist()


def test_without_popularity_the_model_answers_as_it_may() -> None:
    top = recommender().top_k(*everybody(), k=2, filter_seen=True)
    assert top.items_NK[1].tolist() == [9, 8] and not top.by_popularity_N.any()


def test_the_frame_holds_raw_ids_ranks_and_no_more_than_the_candidates() -> None:
    few = recommender(candidates_C=np.array([2, 5]))
    frame = few.frame(STORE.user_vocabulary.raw_ids, few.top_k(*everybody(), k=5, filter_seen=True))
    assert frame.schema == {
        "user": pl.String,
        "rank": pl.Int32,
        "item": pl.String,
        "score": pl.Float32,
        "model": pl.String,
    }
    assert frame.select("user", "rank", "item", "score").rows() == [
        ("u0", 1, "i5", 5.0),
        ("u1", 1, "i5", 5.0),
        ("u1", 2, "i2", 2.0),
        ("u2", 1, "i5", 5.0),
        ("u2", 2, "i2", 2.0),
        # u3 has seen both
        ("u4", 1, "i5", 5.0),
        ("u4", 2, "i2", 2.0),
    ]


def test_raw_histories_give_the_lists_of_the_store() -> None:
    raw = [STORE.item_vocabulary.raw(STORE.history(u)).to_list() for u in range(STORE.users)]
    made = recommender(popularity_V=event_counts(STORE))
    answer = made.recommend(raw, k=3, users=STORE.user_vocabulary.raw_ids)
    assert answer.frame.equals(
        made.frame(STORE.user_vocabulary.raw_ids, made.top_k(*everybody(), k=3, filter_seen=True))
    )
    assert answer.counts == {"users": 5, "users_empty": 1, "events_unknown": 0}
    as_series = made.recommend(pl.Series(raw), k=3, users=STORE.user_vocabulary.raw_ids)
    assert as_series.frame.equals(answer.frame)
    assert made.recommend_all(STORE, k=3).equals(answer.frame)
    shown = made.recommend(raw, k=3, users=STORE.user_vocabulary.raw_ids, filter_seen=False)
    assert made.recommend_all(STORE, k=3, filter_seen=False).equals(shown.frame)
    other = HistoryStore.from_lists([[1]], 4)
    with pytest.raises(ValueError, match="holds 4 items that are not the 9 of Table"):
        made.recommend_all(other, k=3)


@settings(max_examples=30)
@given(
    st.booleans(),
    st.lists(
        st.one_of(
            st.lists(st.sampled_from(["1", "3", "07", "x", None])),
            st.lists(st.sampled_from([1, 3, 7, 99, None])),
        ),
        min_size=1,
        max_size=4,
    ),
)
def test_lists_of_ids_and_a_series_of_them_are_read_alike(numbers: bool, histories) -> None:
    kinds = {type(raw) for history in histories for raw in history if raw is not None}
    assume(len(kinds) < 2)
    ids = pl.Series("item", [1, 3, 7]) if numbers else pl.Series("item", ["1", "3", "07"])
    made = Recommender(Table(np.arange(4)[None]), Vocabulary(ids, 1), name="Table")
    dtype = pl.List(pl.Int64 if kinds == {int} else pl.String)
    wanted = made.recommend(pl.Series(histories, dtype=dtype), k=3)
    found = made.recommend(histories, k=3)
    assert found.frame.equals(wanted.frame) and found.counts == wanted.counts


def test_unknown_items_are_skipped_and_counted() -> None:
    made = recommender(popularity_V=event_counts(STORE))
    answer = made.recommend([["i9", "new", None, "i8"], ["new"], []], k=2)
    assert answer.counts == {"users": 3, "users_empty": 2, "events_unknown": 3}
    assert answer.frame["user"].to_list() == [0, 0, 1, 1, 2, 2]
    assert answer.frame["model"].to_list() == ["Table"] * 2 + ["Popularity"] * 4
    assert answer.frame["item"].to_list()[:2] == ["i7", "i6"]


@pytest.mark.parametrize("histories", [[], [[], []]])
def test_nobody_and_nobody_with_a_history(histories) -> None:
    answer = recommender().recommend(histories, k=2)
    assert len(answer.frame) == 2 * len(histories)


def test_whole_number_ids_and_their_text() -> None:
    numbers = Vocabulary(pl.Series("item", [10, 20, 30]), 1)
    model = Table(np.arange(4)[None, :])
    made = Recommender(model, numbers, name="Table")
    for history in ([30, 99], ["30", "99"]):
        answer = made.recommend([history], k=1)
        assert answer.frame["item"].to_list() == [20] and answer.counts["events_unknown"] == 1


def test_ten_thousand_events_are_a_history_too() -> None:
    model = SASRec(ITEMS + 1, max_length=5, width=4)
    answer = recommender(model).recommend([["i1", "i2"] * 5000], k=3)
    assert not set(answer.frame["item"]) & {"i1", "i2"} and len(answer.frame) == 3


def test_a_model_may_take_batches_of_its_own() -> None:
    class ByUser:
        max_length = None

        def scores(self, batch) -> torch.Tensor:
            users, ends = batch
            return torch.from_numpy((users[:, None] == np.arange(ITEMS + 1)) + 0.0 + ends[:, None])

    made = recommender(ByUser(), make_batch=lambda store, users, ends: (users, ends))
    top = made.top_k(*everybody(), k=1, filter_seen=False)
    assert top.items_NK[1:, 0].tolist() == [1, 2, 3, 4]
    assert top.scores_NK[1:, 0].tolist() == [1, 2, 5, 3]


@given(st.lists(st.lists(st.integers(1, ITEMS), max_size=5), min_size=1, max_size=9), st.data())
def test_event_counts_count_what_stands_before_the_ends(histories, data) -> None:
    store = HistoryStore.from_lists(histories, ITEMS)
    ends = np.array([data.draw(st.integers(0, len(history))) for history in histories])
    flat = [i for history, end in zip(histories, ends, strict=True) for i in history[:end]]
    assert event_counts(store, ends).tolist() == np.bincount(flat, minlength=ITEMS + 1).tolist()
    assert event_counts(store).tolist() == event_counts(store, store.lengths).tolist()


@pytest.mark.parametrize("k", [0, -3])
def test_k_below_one(k: int) -> None:
    with pytest.raises(ValueError, match=f"k must be at least 1, not {k}"):
        recommender().top_k(*everybody(), k=k, filter_seen=True)


def test_what_cannot_be_is_refused() -> None:
    with pytest.raises(ValueError, match="no candidates"):
        recommender(candidates_C=np.zeros(0, dtype=np.int64))
    with pytest.raises(ValueError, match="holds 3 items, the vocabulary 9"):
        recommender(popularity_V=np.ones(4))
    with pytest.raises(ValueError, match="2 user ids stand beside 1 histories"):
        recommender().recommend([["i1"]], k=1, users=pl.Series(["a", "b"]))
    with pytest.raises(ValueError, match="NaN scores"):
        recommender(Table(np.full((1, ITEMS + 1), np.nan))).recommend([["i1"]], k=1)


class NoRanker(nn.Module):
    """Neither encodes nor scores."""


def saved(folder: Path, model: nn.Module, arguments: dict[str, int]) -> Path:
    fingerprint = STORE.item_vocabulary.fingerprint
    save_model(folder, model, arguments, {"name": "SASRec", "item_vocabulary": fingerprint})
    return folder


def test_a_saved_model(tmp_path: Path) -> None:
    arguments = {"catalogue_size": ITEMS + 1, "max_length": 3, "width": 4}
    model = SASRec(**arguments)
    folder = saved(tmp_path / "model", model, arguments)
    loaded = Recommender.load(folder, STORE.item_vocabulary)
    assert loaded.name == "SASRec"
    mine = recommender(model).top_k(*everybody(), k=4, filter_seen=True)
    theirs = loaded.top_k(*everybody(), k=4, filter_seen=True)
    assert np.array_equal(mine.items_NK, theirs.items_NK)
    assert np.array_equal(mine.scores_NK, theirs.scores_NK)
    other = HistoryStore.from_lists([[1]], 4).item_vocabulary
    with pytest.raises(ModelError, match=r"other items than these \(9 there, 4 here\)"):
        Recommender.load(folder, other)


def test_a_saved_model_that_ranks_nothing(tmp_path: Path) -> None:
    folder = saved(tmp_path / "model", NoRanker(), {})
    with pytest.raises(ModelError, match="neither encodes histories nor scores"):
        Recommender.load(folder, STORE.item_vocabulary, trusted_modules=[__name__.split(".")[0]])
