"""The baselines against their definitions, and the laws they share."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from recsys.batch import HistoryBatch
from recsys.evaluation.metrics import hit_rate, ndcg
from recsys.evaluation.ranking import rank
from recsys.histories.batches import history_batch
from recsys.histories.questions import leave_one_out
from recsys.histories.store import HistoryStore
from recsys.models.baselines.ease import EASE
from recsys.models.baselines.item_knn import ItemKNN
from recsys.models.baselines.markov import LastItemMarkov
from recsys.models.baselines.popularity import Popularity
from recsys.models.baselines.tuning import tune_baselines

ALL = [
    Popularity(),
    LastItemMarkov(),
    ItemKNN(2, 1.0, 2),
    ItemKNN(2, 1.0, None, include_self=True),
    EASE(5.0),
    EASE(5.0, max_items=3),
]
MAKERS = [lambda m=m: type(m)(**m.parameters) for m in ALL]
NAMES = ["popularity", "markov", "knn", "knn-self", "ease", "ease-3"]
each = pytest.mark.parametrize("make", MAKERS, ids=NAMES)

# Item 7 is never in training. Items 2 and 3 are the most popular.
LOG = [[1, 2, 3, 4], [2, 3, 3, 5], [3, 2, 1], [2, 3], [6], []]
V = 8


def fit(model, histories=LOG, items=V - 1, ends=None, times=None):
    store = HistoryStore.from_lists(histories, items, times)
    ends = store.lengths if ends is None else np.array(ends)
    return model.fit(store.items, store.offsets, ends, store.catalogue_size, store.times)


def batch_of(*histories: list[int]) -> HistoryBatch:
    lengths = np.array([len(history) for history in histories])
    items = np.zeros((len(histories), max(1, lengths.max())), dtype=np.int64)
    for row, history in enumerate(histories):
        items[row, : len(history)] = history
    return HistoryBatch(torch.from_numpy(items), torch.from_numpy(lengths))


def order(model, history: list[int]) -> list[int]:
    """Items, best first."""
    scores = model.scores(batch_of(history))[0, 1:]
    return ((-scores).argsort(stable=True) + 1).tolist()


@each
def test_scores_are_a_total_order_for_every_history(make):
    model = fit(make())
    histories = [[], [1], [7], [3, 2, 1], [6, 6], list(range(1, 8))]
    scores = model.scores(batch_of(*histories))
    assert scores.shape == (len(histories), V)
    assert scores.dtype == torch.float32
    assert torch.isfinite(scores).all()
    for row in scores:
        # EASE's weights are real numbers and rarely equal, but nothing keeps them apart.
        if not isinstance(model, EASE):
            assert len(row[1:].unique()) == V - 1
        # 7 was never trained on: behind all others, for EASE too.
        assert row[1:].argmin() + 1 == 7


@each
def test_padding_and_company_change_nothing(make):
    model = fit(make())
    histories = [[1], [3, 2, 1, 5], [], [2, 2, 4]]
    together = model.scores(batch_of(*histories))
    wide = batch_of(*histories, list(range(1, 8)))
    assert torch.equal(model.scores(wide)[:4], together)
    for row, history in enumerate(histories):
        assert torch.equal(model.scores(batch_of(history))[0], together[row])


@each
def test_an_empty_history_gets_popularity(make):
    popular = order(fit(Popularity()), [])
    assert popular[:2] == [3, 2]
    assert order(fit(make()), []) == popular


@each
def test_state_rebuilds_the_model(make, tmp_path):
    model = fit(make())
    np.savez(tmp_path / "model.npz", **model.state())
    with np.load(tmp_path / "model.npz", allow_pickle=False) as saved:
        again = type(model).from_state(dict(saved))
    batch = batch_of([1], [3, 2, 1, 5], [])
    assert torch.equal(again.scores(batch), model.scores(batch))
    assert (again.name, again.parameters) == (model.name, model.parameters)
    assert again.max_length == model.max_length


@each
def test_nothing_after_the_training_end_is_learned(make):
    ends = [3, 2, 3, 2, 1, 0]
    other = [[1, 2, 3, 7], [2, 3, 7, 7], [3, 2, 1], [2, 3], [6], []]
    cut = [[1, 2, 3], [2, 3], [3, 2, 1], [2, 3], [6], []]
    batch = batch_of([1], [3, 2, 1, 5], [])
    expected = fit(make(), cut).scores(batch)
    assert torch.equal(fit(make(), LOG, ends=ends).scores(batch), expected)
    assert torch.equal(fit(make(), other, ends=ends).scores(batch), expected)


@each
def test_order_of_users_changes_nothing(make):
    batch = batch_of([1], [3, 2, 1, 5], [])
    expected = fit(make()).scores(batch)
    moved = fit(make(), LOG[::-1]).scores(batch)
    torch.testing.assert_close(moved, expected)


def test_popularity_counts_events():
    # Events: 3 four... counted by hand: item 3 five times, 2 four times, 1 twice.
    assert order(fit(Popularity()), [3])[:3] == [3, 2, 1]
    scores = fit(Popularity()).scores(batch_of([1]))[0]
    assert sorted(scores[1:].tolist()) == [1, 2, 3, 4, 5, 6, 7]


def test_popularity_of_a_window_counts_the_newest_events_by_time():
    times = [[1, 2, 3, 90], [4, 5, 6, 91], [7, 8, 9], [10, 11], [92], []]
    newest = order(fit(Popularity(0.25), times=times), [])  # 4 of 14 events: times 11, 90, 91, 92
    assert set(newest[:4]) == {3, 4, 5, 6}
    with pytest.raises(ValueError, match="needs a log with times"):
        fit(Popularity(0.5))
    with pytest.raises(ValueError, match="share of the training events"):
        Popularity(1.5)


def test_equal_popularity_is_not_settled_by_index():
    model = fit(Popularity(), [[item] for item in range(1, 51)], items=50)
    assert order(model, []) != sorted(order(model, []))
    assert order(model, []) != sorted(order(model, []), reverse=True)


def test_markov_counts_what_followed_directly():
    model = fit(LastItemMarkov())
    scores = model.scores(batch_of([3], [1, 2]))
    # After 3: once 3, 4, 5 and 2 each; the popular ones first among them.
    torch.testing.assert_close(scores[0, [2, 3, 4, 5]], torch.ones(4))
    assert order(model, [3])[:2] == [3, 2]
    # After 2 (only the last item counts): 3 three times, 1 once.
    assert scores[1, 3] == 3
    assert scores[1, 1] == 1
    assert (scores[:, [6, 7]] < 0).all()
    assert order(model, [1, 2]) == order(model, [5, 2])


def test_item_knn_sums_the_similarities_of_the_newest_items():
    model = fit(ItemKNN(neighbours=10, shrinkage=1.5, newest=2))
    users = [set(history) for history in LOG]

    def similarity(i: int, j: int) -> float:
        n_i, n_j = (sum(x in user for user in users) for x in (i, j))
        both = sum(i in user and j in user for user in users)
        return both / ((n_i * n_j) ** 0.5 + 1.5)

    scores = model.scores(batch_of([6, 1, 4, 1], [4, 1]))
    for candidate in (2, 3):
        expected = similarity(candidate, 4) + similarity(candidate, 1)
        assert scores[0, candidate] == pytest.approx(expected, rel=1e-6)
        assert scores[1, candidate] == pytest.approx(expected, rel=1e-6)
    assert torch.equal(model.scores(batch_of([1, 1])), model.scores(batch_of([1])))
    assert scores[1, 6] < 0  # nobody had it with 4 or 1
    assert scores[1, 1] == pytest.approx(similarity(1, 4), rel=1e-6)  # not with itself


def test_item_knn_keeps_each_candidates_nearest():
    log = [[1, 2], [1, 2], [1, 3], [4, 3], [2, 5], [1, 5]]
    every, one = (fit(ItemKNN(n, 0.0, None), log, items=5) for n in (10, 1))
    # 1 is most similar to 2 and 2 to 1; 3's nearest is 4, so 1 → 3 goes.
    assert every.scores(batch_of([1]))[0, 3] > 0
    scores = one.scores(batch_of([1]))[0]
    assert scores[2] > 0
    assert scores[3] < 0
    assert one.scores(batch_of([4]))[0, 3] > 0
    # It is the candidate that chooses: 5's nearest is 2, but 2's is 1.
    assert one.scores(batch_of([2]))[0, 5] > 0
    assert one.scores(batch_of([5]))[0, 2] < 0


def test_item_knn_in_blocks_is_the_same(monkeypatch):
    batch = batch_of([3, 2, 1], [5])
    whole = fit(ItemKNN(2, 1.0, None, include_self=True)).scores(batch)
    monkeypatch.setattr("recsys.models.baselines.item_knn.CELLS", V * 3)
    assert torch.equal(fit(ItemKNN(2, 1.0, None, include_self=True)).scores(batch), whole)


def test_item_knn_can_recommend_the_history_again():
    assert order(fit(ItemKNN(10, 0.0, 1, include_self=True)), [6])[0] == 6
    assert fit(ItemKNN(10, 0.0, 1)).scores(batch_of([6]))[0, 6] < 0


def test_item_knn_with_another_number_of_newest_events_is_as_if_fitted_with_it():
    batch = batch_of([3, 2, 1], [5, 6, 4, 4])
    expected = fit(ItemKNN(2, 1.0, 1)).scores(batch)
    assert torch.equal(fit(ItemKNN(2, 1.0, None)).with_newest(1).scores(batch), expected)


def test_ease_is_the_closed_form():
    model = fit(EASE(2.0))
    X = np.zeros((len(LOG), V))
    for user, history in enumerate(LOG):
        X[user, history] = 1
    P = np.linalg.inv(X.T @ X + 2.0 * np.eye(V))
    B = -P / np.diag(P)
    np.fill_diagonal(B, 0)
    scores = model.scores(batch_of([1, 5, 1], [3])).numpy()
    np.testing.assert_allclose(scores[0, 1:7], (B[1] + B[5])[1:7], rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(scores[1, 1:7], B[3, 1:7], rtol=1e-4, atol=1e-6)
    assert model.name == "EASE"


def test_ease_of_many_items_fills_both_triangles():
    draw = np.random.default_rng(0)
    log = [draw.integers(1, 601, 30).tolist() for _ in range(200)]
    model = fit(EASE(20.0), log, items=600)
    weights = model.weights_MM
    P = weights * -1.0
    np.fill_diagonal(P, 1.0)
    # Column j of P is divided by P_jj: P_ij / P_jj = (P_ji / P_ii) · P_ii / P_jj.
    X = np.zeros((200, 601), dtype=np.float64)
    for user, history in enumerate(log):
        X[user, history] = 1
    X = X[:, model.modelled_M]
    exact = np.linalg.inv(X.T @ X + 20.0 * np.eye(X.shape[1]))
    np.testing.assert_allclose(P, exact / np.diag(exact), atol=1e-5)


def test_ease_above_max_items_models_the_most_popular_and_says_so():
    model = fit(EASE(5.0, max_items=3))
    assert model.name == "EASE@3"
    assert model.modelled_M.tolist() == [1, 2, 3]
    scores = model.scores(batch_of([2], [6]))
    assert scores[0, [1, 2, 3]].min() > scores[0, 4:].max()
    assert order(model, [6]) == order(fit(Popularity()), [])  # nothing modelled in it


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: ItemKNN(neighbours=0), "neighbours ≥ 1"),
        (lambda: ItemKNN(shrinkage=-1.0), "shrinkage ≥ 0"),
        (lambda: ItemKNN(newest=0), "newest ≥ 1 or None"),
        (lambda: EASE(0.0), "regularisation > 0"),
        (lambda: EASE(max_items=0), "max_items ≥ 1"),
    ],
)
def test_refuses_senseless_parameters(make, words):
    with pytest.raises(ValueError, match=words):
        make()


@settings(deadline=None, max_examples=60)
@given(
    st.lists(st.lists(st.integers(1, 6), min_size=1, max_size=6), min_size=2, max_size=6),
    st.lists(st.integers(1, 6), max_size=6),
)
def test_popularity_never_reorders_genuine_scores(log, history):
    for model in (LastItemMarkov(), ItemKNN(3, 0.5, 2)):
        fit(model, log, items=6)
        matrix = model.transitions_VV if isinstance(model, LastItemMarkov) else model.similarity_VV
        newest = set(history[-(model.max_length or 99) :])
        genuine = matrix.toarray()[sorted(newest)].sum(axis=0)[1:]
        scores = model.scores(batch_of(history))[0, 1:].numpy()
        assert len(set(scores.tolist())) == 6
        for i in range(6):
            for j in range(6):
                if genuine[i] > genuine[j] * (1 + 1e-6) + 1e-7:
                    assert scores[i] > scores[j]
        np.testing.assert_allclose(scores[genuine > 0], genuine[genuine > 0], rtol=1e-5)
        assert np.all(scores[genuine == 0] < 0)


def planted_log() -> HistoryStore:
    """Each item is followed by the next one of its ring of five, with some noise."""
    draw = np.random.default_rng(5)
    histories = []
    for _ in range(120):
        ring, at = draw.integers(0, 6), draw.integers(0, 5)
        history = [int(5 * ring + (at + step) % 5 + 1) for step in range(4)]
        history.insert(int(draw.integers(0, 3)), int(draw.integers(1, 31)))
        histories.append(history)
    return HistoryStore.from_lists(
        histories, 30, [[t + 10 * u for t in range(5)] for u in range(120)]
    )


def test_tuning_tries_the_grids_and_keeps_the_best():
    store = planted_log()
    split = leave_one_out(store)
    judged = []

    def judge(model):
        ranking = rank(model, store, split.validation, filter_seen=True, k=10)
        judged.append(ndcg(ranking.answers, 10))
        return judged[-1]

    tuned = tune_baselines(
        store.items, store.offsets, split.training_ends, store.catalogue_size, store.times, judge
    )
    names = [found.model.name for found in tuned]
    assert names == ["Popularity", "Markov", "ItemKNN", "EASE", "iALS"]
    trials = [trial for found in tuned for trial in found.trials]
    assert [trial.score for trial in trials] == [judgement.mean() for judgement in judged]
    assert [trial.parameters["window"] for trial in tuned[0].trials] == [None, 0.5, 0.1, 0.02]
    assert {trial.parameters["newest"] for trial in tuned[2].trials} == {1, 2, 3, 5, 10, 20, None}
    for found in tuned:
        mean = judge(found.model).mean()
        assert mean == pytest.approx(found.score)
        assert found.model.parameters in [t.parameters for t in found.trials if t.score == mean]
    popularity, markov, knn, ease, ials = (found.score for found in tuned)
    assert popularity == max(trial.score for trial in tuned[0].trials)
    assert ease == max(trial.score for trial in tuned[3].trials)
    assert ials == max(trial.score for trial in tuned[4].trials)
    assert min(markov, knn, ease, ials) > 2 * popularity
    ranking = rank(tuned[1].model, store, split.test, filter_seen=True, k=10)
    assert hit_rate(ranking.answers, 1).mean() > 0.6


def test_tuning_without_times_and_with_repeats():
    store = HistoryStore.from_lists([[1, 1, 2, 2], [3, 3, 3], [4, 4, 1, 1]] * 5, 4)
    split = leave_one_out(store)

    def judge(model):
        ranking = rank(model, store, split.validation, filter_seen=False, k=4)
        return ndcg(ranking.answers, 4)

    log = (store.items, store.offsets, split.training_ends, store.catalogue_size, None)
    popularity, _, knn, _, _ = tune_baselines(*log, judge, repeats=True)
    assert [trial.parameters["window"] for trial in popularity.trials] == [None]
    assert knn.model.parameters["include_self"] is True


@pytest.mark.parametrize(("noise", "shrinkage"), [(0.5, 20.0), (0.01, 10.0)])
def test_a_small_gain_among_noise_does_not_move_the_neighbourhood(noise, shrinkage):
    store = planted_log()
    log = (store.items, store.offsets, store.lengths - 2, store.catalogue_size, None)
    wobble = noise * np.array([1.0, -1.0] * 200)

    def judge(model):
        return 0.01 + wobble if model.parameters.get("shrinkage") == 10.0 else np.zeros(400)

    knn = tune_baselines(*log, judge)[2].model
    assert (knn.parameters["neighbours"], knn.parameters["shrinkage"]) == (200, shrinkage)


def test_a_batch_from_the_store_is_read_right():
    store = HistoryStore.from_lists(LOG[:5], V - 1)
    model = fit(ItemKNN(5, 0.0, 2))
    users = np.arange(5)
    batch = history_batch(store, users, store.lengths, model.max_length)
    expected = model.scores(batch_of(*LOG[:5]))
    assert torch.equal(model.scores(batch), expected)
