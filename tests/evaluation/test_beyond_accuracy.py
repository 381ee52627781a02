"""What lists are like: each measure against a loop, and its ends."""

from itertools import combinations

import numpy as np
import polars as pl
import pytest

from recsys.evaluation import beyond_accuracy
from recsys.evaluation.beyond_accuracy import (
    Surroundings,
    coverage,
    describe,
    diversity_of_genres,
    diversity_of_vectors,
    genre_calibration,
    gini,
    intervals_of_lists,
    novelty,
    popularity_lift,
    popularity_ranks,
    serendipity,
    users_of_items,
)
from recsys.evaluation.intervals import jackknife, user_groups
from recsys.evaluation.metrics import RankedAnswers
from recsys.evaluation.ranking import question_answers, rank
from recsys.histories.attributes import attribute_of
from recsys.histories.questions import leave_one_out, user_share
from recsys.histories.store import HistoryStore
from recsys.models.baselines.popularity import Popularity

V = 9
DRAW = np.random.Generator(np.random.PCG64(7))
LISTS = np.array([DRAW.permutation(np.arange(1, V))[:4] for _ in range(30)])
LISTS[3, 2:] = 0
LISTS[4] = 0
LISTS[5, 1:] = 0
GENRES = attribute_of(
    pl.Series("genres", [None, ["a"], ["a", "b"], ["c"], [], ["b", "c"], ["a", "c"], ["d"], None]),
    "here",
)
OF_ITEM = [set(), {"a"}, {"a", "b"}, {"c"}, set(), {"b", "c"}, {"a", "c"}, {"d"}, set()]
STORE = HistoryStore.from_lists(
    [DRAW.integers(1, V, n).tolist() for n in DRAW.integers(3, 12, 30)], items=V - 1
)
SPLIT = leave_one_out(STORE)


@pytest.fixture(autouse=True)
def small_pieces(monkeypatch):
    monkeypatch.setattr(beyond_accuracy, "_ELEMENTS", 100)


def same(found: np.ndarray, expected: list[float]) -> None:
    np.testing.assert_allclose(found, expected, atol=1e-12)


def listed(row: np.ndarray) -> list[int]:
    return [int(item) for item in row if item]


def test_gini_by_pairs():
    """Half the mean difference of all ordered pairs over the mean, n / (n − 1) of it."""
    shown = np.bincount(LISTS.ravel(), minlength=V)[1:]
    n = len(shown)
    pairs = np.abs(shown[:, None] - shown[None, :]).sum() / n**2
    assert gini(LISTS, V) == pytest.approx(pairs / (2 * shown.mean()) * n / (n - 1))
    assert np.isnan(gini(np.zeros((2, 3), int), V))


def test_novelty_counts_each_user_once():
    users = users_of_items(STORE, SPLIT.training_ends)
    learned = [
        set(STORE.history(u, int(end)).tolist()) for u, end in enumerate(SPLIT.training_ends)
    ]
    assert users.tolist() == [sum(item in had for had in learned) for item in range(V)]
    bits = [-np.log2(max(n, 1) / 30) for n in users]
    expected = [np.mean([bits[i] for i in listed(row)]) if listed(row) else np.nan for row in LISTS]
    same(novelty(LISTS, users, 30), expected)


def test_popularity_lift_of_the_history_itself_is_none():
    counts = np.bincount(STORE.items, minlength=V)
    lists = np.zeros((30, 12), dtype=int)
    for row, end in enumerate(SPLIT.test.history_ends):
        lists[row, :end] = STORE.history(row, int(end))
    assert popularity_lift(lists, STORE, SPLIT.test, counts) == pytest.approx(0)
    top = np.full((30, 1), counts.argmax())
    means = [counts[STORE.history(u, int(e))].mean() for u, e in enumerate(SPLIT.test.history_ends)]
    lift = popularity_lift(top, STORE, SPLIT.test, counts)
    assert lift == pytest.approx(counts.max() / np.mean(means) - 1)


def test_diversity_pair_by_pair():
    vectors = DRAW.normal(size=(V, 5))
    vectors[2] = 0
    unit = vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-300)
    expected, by_genre = [], []
    for row in LISTS:
        pairs = list(combinations(listed(row), 2))
        expected.append(np.mean([1 - unit[i] @ unit[j] for i, j in pairs]) if pairs else np.nan)
        jaccard = [
            len(OF_ITEM[i] & OF_ITEM[j]) / len(OF_ITEM[i] | OF_ITEM[j])
            if OF_ITEM[i] | OF_ITEM[j]
            else 1.0
            for i, j in pairs
        ]
        by_genre.append(1 - np.mean(jaccard) if pairs else np.nan)
    same(diversity_of_vectors(LISTS, vectors), expected)
    same(diversity_of_genres(LISTS, GENRES), by_genre)


def test_genre_calibration_is_stecks():
    def shares(items: list[int]) -> dict[str, float]:
        parts: dict[str, float] = {}
        for item in items:
            for genre in OF_ITEM[item]:
                parts[genre] = parts.get(genre, 0) + 1 / len(OF_ITEM[item])
        total = sum(parts.values())
        return {genre: part / total for genre, part in parts.items()}

    expected = []
    for user, end in enumerate(SPLIT.test.history_ends):
        p = shares(STORE.history(user, int(end)).tolist())
        q = shares(listed(LISTS[user]))
        if not p or not q:
            expected.append(np.nan)
            continue
        mixed = {g: 0.99 * q.get(g, 0) + 0.01 * p[g] for g in p}
        expected.append(sum(p[g] * np.log(p[g] / mixed[g]) for g in p))
    same(genre_calibration(LISTS, STORE, SPLIT.test, GENRES), expected)


def test_a_list_like_the_history_is_calibrated():
    store = HistoryStore.from_lists([[1, 2, 3, 1], [5, 6, 7, 1]], items=V - 1)
    split = leave_one_out(store)
    same(genre_calibration(np.array([[1, 2, 3], [5, 6, 7]]), store, split.test, GENRES), [0.0, 0.0])


def test_serendipity_is_what_popularity_did_not_list():
    answers = RankedAnswers(np.array([1, 3, 2, 0, 4]), np.array([0, 0, 1, 2, 3]), 4)
    popular = np.array([4, 2, 3, 1, 1])
    same(serendipity(answers, popular, 3), [0.5, 0.0, 0.0, 0.0])
    same(serendipity(answers, popular, 2), [0.5, 1.0, 0.0, 0.0])


@pytest.mark.parametrize("filter_seen", [True, False])
@pytest.mark.parametrize("split", [SPLIT, user_share(STORE, 0.3)], ids=["loo", "share"])
def test_popularity_ranks_are_those_of_its_lists(split, filter_seen):
    model = Popularity().fit(STORE.items, STORE.offsets, split.training_ends, V)
    ranking = rank(model, STORE, split.test, filter_seen=filter_seen, k=3)
    items_A, question_A, _ = question_answers(STORE, split.test)
    found = popularity_ranks(
        STORE, split.test, (items_A, question_A), model.places_V, filter_seen=filter_seen
    )
    assert np.array_equal(found, ranking.answers.ranks)


def test_one_genre_a_row_is_a_set_of_one():
    one = attribute_of(pl.Series("genre", [None, "a", "a", "b"]), "here")
    same(diversity_of_genres(np.array([[1, 2], [1, 3]]), one), [0.0, 1.0])


def test_a_description_holds_every_measure_and_the_mean_of_each():
    counts = np.bincount(STORE.items, minlength=V)
    model = Popularity().fit(STORE.items, STORE.offsets, SPLIT.training_ends, V)
    ranking = rank(model, STORE, SPLIT.test, filter_seen=True, k=3)
    popular = popularity_ranks(
        STORE,
        SPLIT.test,
        question_answers(STORE, SPLIT.test)[:2],
        model.places_V,
        filter_seen=True,
    )
    users = users_of_items(STORE, SPLIT.training_ends)
    vectors = DRAW.normal(size=(V, 3))
    around = Surroundings(counts, users, STORE.users, popular, GENRES, vectors)
    values, columns = describe(ranking, STORE, SPLIT.test, around, [1, 3])
    own = ["novelty", "serendipity", "vector_diversity", "diversity", "genre_calibration"]
    assert set(columns) == {f"{name}_{k}" for name in own for k in (1, 3)}
    assert set(values) == set(columns) | {
        f"{n}_{k}" for n in ("gini", "popularity_lift") for k in (1, 3)
    }
    for name, column in columns.items():
        assert values[name] == pytest.approx(np.nanmean(column), nan_ok=True), name
    assert np.isnan(values["diversity_1"])  # one item is no pair
    # Popularity finds nothing that Popularity would not have found.
    assert values["serendipity_1"] == values["serendipity_3"] == 0
    bare, _ = describe(
        ranking, STORE, SPLIT.test, Surroundings(counts, users, 30, popular, None), [3]
    )
    assert set(bare) == {"gini_3", "popularity_lift_3", "novelty_3", "serendipity_3"}


def test_numbers_of_all_lists_have_intervals_of_their_own():
    counts = np.bincount(STORE.items, minlength=V)
    model = Popularity().fit(STORE.items, STORE.offsets, SPLIT.training_ends, V)
    ranking = rank(model, STORE, SPLIT.test, filter_seen=True, k=3)
    users = users_of_items(STORE, SPLIT.training_ends)
    around = Surroundings(counts, users, STORE.users, None, None)
    values, _ = describe(ranking, STORE, SPLIT.test, around, [1, 3])
    found = intervals_of_lists(ranking, STORE, SPLIT.test, around, [1, 3], 200)
    names = [f"{name}_{k}" for k in (1, 3) for name in ("coverage", "gini", "popularity_lift")]
    assert sorted(found) == sorted(names)
    groups = user_groups(SPLIT.test.users)
    for k in (1, 3):
        lists = ranking.lists_NK[:, :k]
        for name, measure in (("coverage", coverage), ("gini", gini)):
            without = [measure(lists[groups != group], V) for group in range(groups.max() + 1)]
            expected = jackknife(measure(lists, V), np.array(without))
            assert found[f"{name}_{k}"] == expected
        lift = found[f"popularity_lift_{k}"]
        assert lift.estimate == pytest.approx(values[f"popularity_lift_{k}"])
        assert lift.low < lift.estimate < lift.high
