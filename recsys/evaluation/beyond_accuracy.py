"""What lists are like, apart from being right: spread, novel, popular, diverse, balanced.

Every measure reads the first K places of the lists; a place without an item (0, where the
candidates ran out) is left out, and so is a question whose list is empty. Measures with one value a
question give float64 [N] with NaN where a question has no value, so that intervals and cohorts
apply to them as to accuracy.

Dimensions: N questions, K places, V catalogue incl. padding (index 0), F genres, D width, G groups
of users.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from recsys.evaluation.intervals import Interval, bootstrap_gain, jackknife, user_groups
from recsys.evaluation.metrics import RankedAnswers
from recsys.evaluation.ranking import Ranking
from recsys.histories.attributes import Attribute
from recsys.histories.first_events import FirstEvents
from recsys.histories.questions import Questions
from recsys.histories.spans import different, ragged
from recsys.histories.store import HistoryStore

_ELEMENTS = 1 << 22  # of the largest array made for a piece of the questions


def coverage(lists_NK: np.ndarray, catalogue_size: int) -> float:
    """Share of the catalogue's items that stand in any list.

    >>> coverage(np.array([[1, 2], [1, 0]]), 5)
    0.5

    Args:
        lists_NK: items, 0 for an empty place.
        catalogue_size: V, the padding counted.
    """
    return _coverage_of(_shown(lists_NK, catalogue_size))


def _shown(lists_NK: np.ndarray, catalogue_size: int) -> np.ndarray:
    """int64 [V − 1]: how often each item is listed."""
    return np.bincount(lists_NK.ravel(), minlength=catalogue_size)[1:]


def _coverage_of(shown: np.ndarray) -> float:
    return float((shown > 0).sum() / len(shown))


def gini(lists_NK: np.ndarray, catalogue_size: int) -> float:
    """Gini index of how often the catalogue's items are shown: 0 all alike, 1 always one item.

    With n items shown x_1 ≤ … ≤ x_n times: Σ (2i − n − 1) x_i / ((n − 1) Σ x_i). The divisor n − 1
    in place of n lets a single item reach 1 in any catalogue.

    >>> gini(np.array([[1, 2], [3, 4]]), 5), gini(np.array([[1], [1]]), 5)
    (0.0, 1.0)

    Args:
        lists_NK: items, 0 for an empty place.
        catalogue_size: V, the padding counted.

    Returns:
        NaN where nothing is shown, or the catalogue has one item.
    """
    return _gini_of(_shown(lists_NK, catalogue_size))


def _gini_of(shown: np.ndarray) -> float:
    n, total = len(shown), int(shown.sum())
    if total == 0 or n < 2:
        return float("nan")
    # Counts without sorting: items shown alike stand at places a + 1 … b, whose 2i − n − 1 sum up
    # to (b − a)(a + b − n).
    alike = np.bincount(shown)
    counts = np.flatnonzero(alike)
    b = np.cumsum(alike[counts])
    a = b - alike[counts]
    return float((counts * (b - a) * (a + b - n)).sum() / ((n - 1) * total))


def novelty(lists_NK: np.ndarray, users_of_V: np.ndarray, users: int) -> np.ndarray:
    """Mean self-information of the listed items, in bits: −log2 of the share of users with them.

    An item that nobody had counts as if one user had had it. (RecTools: mean inverse user
    frequency.)

    >>> novelty(np.array([[1, 2], [2, 0]]), np.array([0, 4, 1]), 8).tolist()  # 4 and 1 of 8 users
    [2.0, 3.0]

    Args:
        lists_NK: items, 0 for an empty place.
        users_of_V: int64 [V], users who had each item in training.
        users: all of them.

    Returns:
        float64 [N].
    """
    bits_V = -np.log2(np.maximum(users_of_V, 1) / users)
    return _mean_of_places(bits_V, lists_NK)


def popularity_lift(
    lists_NK: np.ndarray, store: HistoryStore, questions: Questions, counts_V: np.ndarray
) -> float:
    """How much more popular the listed items are than those of the histories: 0 is no lift.

    Mean over the questions of the mean training count of a list, divided by the same mean of the
    histories, less one (arXiv 1910.05755, there by group of users). Questions without history take
    no part.

    Args:
        lists_NK: items, 0 for an empty place.
        store: the histories.
        questions: what was asked.
        counts_V: int64 [V], training events of each item.

    Returns:
        NaN where no question has both list and history.
    """
    (of_lists, of_histories), _ = _popularity(lists_NK, store, questions, counts_V)
    if not len(of_lists) or of_histories.sum() == 0:
        return float("nan")
    return float(of_lists.mean() / of_histories.mean() - 1)


def _popularity(
    lists_NK: np.ndarray, store: HistoryStore, questions: Questions, counts_V: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Mean counts of list and history [2, questions that have both], and which these are [N]."""
    of_lists = _mean_of_places(counts_V.astype(np.float64), lists_NK)
    of_events = np.concatenate([[0.0], np.cumsum(counts_V[store.items], dtype=np.float64)])
    begins = store.offsets[questions.users]
    ends = begins + questions.history_ends
    lengths = np.where(questions.history_ends > 0, questions.history_ends, 1)
    of_histories = (of_events[ends] - of_events[begins]) / lengths
    counted = (questions.history_ends > 0) & ~np.isnan(of_lists)
    return np.stack([of_lists, of_histories])[:, counted], counted


def diversity_of_vectors(lists_NK: np.ndarray, vectors_VD: np.ndarray) -> np.ndarray:
    """Mean over the pairs of a list of 1 − cosine of their vectors (intra-list diversity).

    >>> vectors = np.array([[0, 0], [1, 0], [0, 1], [-1, 0]])
    >>> diversity_of_vectors(np.array([[1, 2], [1, 3], [1, 0]]), vectors).round(2).tolist()
    [1.0, 2.0, nan]

    Args:
        lists_NK: items, 0 for an empty place.
        vectors_VD: of the items.

    Returns:
        float64 [N], NaN for lists of fewer than two items.
    """
    vectors_VD = np.asarray(vectors_VD, dtype=np.float32)
    norms_V1 = np.linalg.norm(vectors_VD, axis=1, keepdims=True)
    unit_VD = np.divide(vectors_VD, norms_V1, out=np.zeros_like(vectors_VD), where=norms_V1 > 0)
    unit_VD[0] = 0  # an empty place
    found = np.empty(len(lists_NK))
    K, D = lists_NK.shape[1], unit_VD.shape[1]
    for rows in _pieces(len(lists_NK), K * D):
        # Σ over all pairs of u_i · u_j is |Σ u_i|² less the places' own squares.
        placed_NKD = unit_VD[lists_NK[rows]]
        own_N = (placed_NKD**2).sum((1, 2))
        found[rows] = ((placed_NKD.sum(1) ** 2).sum(1) - own_N) / 2
    return _of_pairs(found, lists_NK)


def diversity_of_genres(lists_NK: np.ndarray, genres: Attribute) -> np.ndarray:
    """Mean over the pairs of a list of 1 − shared genres / genres of either (Jaccard).

    Two items without any genre are alike.

    Args:
        lists_NK: items, 0 for an empty place.
        genres: values of each item, one or a list, [V].

    Returns:
        float64 [N], NaN for lists of fewer than two items.
    """
    has_VF = genre_matrix(genres)
    sizes_V = has_VF.sum(1)
    found = np.empty(len(lists_NK))
    K, F = lists_NK.shape[1], has_VF.shape[1]
    upper = np.triu_indices(K, 1)
    for rows in _pieces(len(lists_NK), K * max(F, K)):
        items_NK = lists_NK[rows]
        placed_NKF = has_VF[items_NK]
        shared_NKK = placed_NKF @ placed_NKF.transpose(0, 2, 1)
        either_NKK = sizes_V[items_NK][:, :, None] + sizes_V[items_NK][:, None, :] - shared_NKK
        alike_NKK = np.where(either_NKK > 0, shared_NKK / np.maximum(either_NKK, 1), 1.0)
        both_NKK = (items_NK > 0)[:, :, None] & (items_NK > 0)[:, None, :]
        found[rows] = np.where(both_NKK, alike_NKK, 0.0)[:, upper[0], upper[1]].sum(1)
    return _of_pairs(found, lists_NK)


def serendipity(answers: RankedAnswers, popular_ranks_A: np.ndarray, k: int) -> np.ndarray:
    """Recall of what popularity would not have found: hits outside Popularity's own list / R.

    (The idea of Ge et al., RecSys 2010: useful, and not what a primitive recommender says.)

    >>> answers = RankedAnswers(np.array([1, 2]), np.array([0, 1]), 2)
    >>> serendipity(answers, np.array([9, 3]), 5).tolist()
    [1.0, 0.0]

    Args:
        answers: where a model ranked the answers.
        popular_ranks_A: where Popularity ranks them, of `popularity_ranks`.
        k: places that count, of both.

    Returns:
        float64 [N].
    """
    hit_A = (answers.ranks >= 1) & (answers.ranks <= k)
    obvious_A = (popular_ranks_A >= 1) & (popular_ranks_A <= k)
    found = np.bincount(answers.question[hit_A & ~obvious_A], minlength=answers.questions)
    return found / answers.relevant


def popularity_ranks(
    store: HistoryStore,
    questions: Questions,
    answers: tuple[np.ndarray, np.ndarray],
    places_V: np.ndarray,
    *,
    filter_seen: bool,
) -> np.ndarray:
    """int64 [A]: where Popularity ranks each answer; 0 where it is filtered.

    Its rank in the catalogue, less the items of the history that are more popular: no list has to
    be made.

    Args:
        store: the histories.
        questions: what is asked.
        answers: items and questions of the answers, both [A].
        places_V: of `popularity_places`.
        filter_seen: whether items of the history are taken out of the candidates.
    """
    items_A, question_A = answers
    ranks_A = store.catalogue_size - places_V[items_A]
    if not filter_seen:
        return ranks_A
    owners = np.repeat(np.arange(store.users), store.lengths)
    met = FirstEvents(store).places
    first_time = met(owners, store.items) == np.arange(store.events) - store.offsets[owners]
    begins_A = store.offsets[questions.users[question_A]]
    lengths_A = questions.history_ends[question_A]
    before_A = np.concatenate([[0], np.cumsum(lengths_A)])
    begin = 0
    while begin < len(items_A):
        # Some answers at a time, with all events of their histories.
        end = int(np.searchsorted(before_A, before_A[begin] + _ELEMENTS, side="right")) - 1
        end = min(max(end, begin + 1), len(items_A))
        answer, event = ragged(begins_A[begin:end], lengths_A[begin:end])
        above = first_time[event] & (
            places_V[store.items[event]] > places_V[items_A[begin:end][answer]]
        )
        ranks_A[begin:end] -= np.bincount(answer[above], minlength=end - begin)
        begin = end
    filtered_A = met(questions.users[question_A], items_A) < lengths_A
    ranks_A[filtered_A] = 0
    return ranks_A


def genre_calibration(
    lists_NK: np.ndarray, store: HistoryStore, questions: Questions, genres: Attribute
) -> np.ndarray:
    """How far a list's genres are from those of the history: Steck's KL divergence, 0 is alike.

    With p the genres' shares in the history and q those in the list (an item of several genres
    gives each its part): Σ p log(p / ((1 − a) q + a p)), a = .01 (Steck, RecSys 2018, equations 1
    to 4, every event weighing alike; natural logarithm).

    Args:
        lists_NK: items, 0 for an empty place.
        store: the histories.
        questions: what was asked.
        genres: values of each item, one or a list, [V].

    Returns:
        float64 [N], NaN where history or list has no genre.
    """
    has_VF = genre_matrix(genres)
    share_VF = has_VF / np.maximum(has_VF.sum(1, keepdims=True), 1)
    found = np.full(len(lists_NK), np.nan)
    F = has_VF.shape[1]
    if F == 0:
        return found
    longest = max(int(questions.history_ends.max(initial=0)), lists_NK.shape[1])
    for rows in _pieces(len(lists_NK), longest * F):
        begins = store.offsets[questions.users[rows]]
        owner, event = ragged(begins, questions.history_ends[rows])
        p_NF = np.zeros((len(begins), F))
        np.add.at(p_NF, owner, share_VF[store.items[event]])
        q_NF = share_VF[lists_NK[rows]].sum(1)
        totals_N2 = np.column_stack([p_NF.sum(1), q_NF.sum(1)])
        counted = (totals_N2 > 0).all(1)
        p_NF, q_NF = (
            shares[counted] / shares[counted].sum(1, keepdims=True) for shares in (p_NF, q_NF)
        )
        mixed_NF = 0.99 * q_NF + 0.01 * p_NF
        terms_NF = p_NF * np.log(np.where(p_NF > 0, p_NF, 1) / np.where(p_NF > 0, mixed_NF, 1))
        found[np.flatnonzero(counted) + rows.start] = terms_NF.sum(1)
    return found


def genre_matrix(genres: Attribute) -> np.ndarray:
    """float64 [V, F]: 1 where an item has a genre."""
    assert genres.codes is not None and genres.values is not None, "numbers are no genres"
    lengths = np.ones(len(genres), dtype=np.int64)
    if genres.offsets is not None:
        lengths = np.diff(genres.offsets)
    has_VF = np.zeros((len(genres), len(genres.values) + 1))
    has_VF[np.repeat(np.arange(len(genres)), lengths), genres.codes] = 1
    return has_VF[:, 1:]  # code 0 is no value


def users_of_items(store: HistoryStore, training_ends: np.ndarray) -> np.ndarray:
    """int64 [V]: how many users had each item in training."""
    places = np.arange(store.events) - np.repeat(store.offsets[:-1], store.lengths)
    learned = places < np.repeat(training_ends, store.lengths)
    owners = np.repeat(np.arange(store.users), store.lengths)
    pairs = different(owners[learned] * store.catalogue_size + store.items[learned])
    return np.bincount(pairs % store.catalogue_size, minlength=store.catalogue_size)


def _mean_of_places(values_V: np.ndarray, lists_NK: np.ndarray) -> np.ndarray:
    """float64 [N]: the mean of the listed items' values, NaN of an empty list."""
    there_NK = lists_NK > 0
    sums = np.where(there_NK, values_V[lists_NK], 0.0).sum(1)
    places = there_NK.sum(1)
    return np.where(places > 0, sums / np.maximum(places, 1), np.nan)


def _of_pairs(likeness_N: np.ndarray, lists_NK: np.ndarray) -> np.ndarray:
    """1 − the mean over pairs, of sums over pairs."""
    places = (lists_NK > 0).sum(1)
    pairs = places * (places - 1) / 2
    return np.where(pairs > 0, 1 - likeness_N / np.maximum(pairs, 1), np.nan)


def _pieces(rows: int, elements_a_row: int) -> Iterator[slice]:
    size = max(1, _ELEMENTS // max(elements_a_row, 1))
    for begin in range(0, rows, size):
        yield slice(begin, min(begin + size, rows))


@dataclass(frozen=True)
class Surroundings:
    """What lists are looked at beside, the same for all models of a test.

    Attributes:
        counts_V: int64 [V], training events of each item.
        users_V: int64 [V], users who had each item in training.
        users: how many there are.
        popular_ranks_A: where Popularity ranks the answers, of `popularity_ranks`; None leaves
            serendipity out.
        genres: values of each item, [V]; None leaves diversity and calibration out.
        vectors_VD: of the items, one space for all models; None leaves diversity by them out.
    """

    counts_V: np.ndarray
    users_V: np.ndarray
    users: int
    popular_ranks_A: np.ndarray | None
    genres: Attribute | None
    vectors_VD: np.ndarray | None = None


def describe(
    ranking: Ranking,
    store: HistoryStore,
    questions: Questions,
    around: Surroundings,
    ks: Sequence[int],
) -> tuple[dict[str, float], dict[str, np.ndarray]]:
    """All of the above at every cut-off.

    Args:
        ranking: what a model answered.
        store: the histories.
        questions: what was asked.
        around: what the lists are looked at beside.
        ks: cut-offs.

    Returns:
        Numbers of all lists together (`gini_K`, `popularity_lift_K`, and the mean of each of the
        others over the questions that have a value), and the values of each question
        (`novelty_K`, `serendipity_K`, `vector_diversity_K`, `diversity_K`,
        `genre_calibration_K`; NaN for none).
    """
    values: dict[str, float] = {}
    columns: dict[str, np.ndarray] = {}
    for k in ks:
        lists = ranking.lists_NK[:, :k]
        values[f"gini_{k}"] = gini(lists, store.catalogue_size)
        values[f"popularity_lift_{k}"] = popularity_lift(lists, store, questions, around.counts_V)
        columns[f"novelty_{k}"] = novelty(lists, around.users_V, around.users)
        if around.popular_ranks_A is not None:
            columns[f"serendipity_{k}"] = serendipity(ranking.answers, around.popular_ranks_A, k)
        if around.vectors_VD is not None:
            columns[f"vector_diversity_{k}"] = diversity_of_vectors(lists, around.vectors_VD)
        if around.genres is not None:
            columns[f"diversity_{k}"] = diversity_of_genres(lists, around.genres)
            columns[f"genre_calibration_{k}"] = genre_calibration(
                lists, store, questions, around.genres
            )
    for name, column in columns.items():
        known = column[~np.isnan(column)]
        values[name] = float(known.mean()) if len(known) else float("nan")
    return values, columns


def intervals_of_lists(
    ranking: Ranking,
    store: HistoryStore,
    questions: Questions,
    around: Surroundings,
    ks: Sequence[int],
    resamples: int,
) -> dict[str, Interval]:
    """Intervals of what is no mean over questions: coverage, Gini, popularity lift.

    Coverage and Gini by leaving out groups of users, since users who are drawn twice show nothing
    new; the lift, a ratio of two means, by drawing users.

    Args:
        ranking: what a model answered.
        store: the histories.
        questions: what was asked.
        around: what the lists are looked at beside.
        ks: cut-offs.
        resamples: draws of users.

    Returns:
        By name (`coverage_K`, `gini_K`, `popularity_lift_K`), those that are defined.
    """
    found: dict[str, Interval | None] = {}
    group_N = user_groups(questions.users)
    # Group by group, so that each is a slice.
    grouped_NK = ranking.lists_NK[np.argsort(group_N, kind="stable"), : max(ks)]
    bounds = np.concatenate([[0], np.cumsum(np.bincount(group_N))])
    spans = [slice(*ends) for ends in pairwise(bounds)]
    for k in ks:
        lists_NK = ranking.lists_NK[:, :k]
        shown = _shown(lists_NK, store.catalogue_size)
        measures = {"coverage": _coverage_of, "gini": _gini_of}
        without: dict[str, list[float]] = {name: [] for name in measures}
        for span in spans:
            others = shown - _shown(grouped_NK[span, :k], store.catalogue_size)
            for name, measure in measures.items():
                without[name].append(measure(others))
        for name, measure in measures.items():
            found[f"{name}_{k}"] = jackknife(measure(shown), np.array(without[name]))
        (of_lists, of_histories), counted = _popularity(lists_NK, store, questions, around.counts_V)
        if len(of_lists):
            found[f"popularity_lift_{k}"] = bootstrap_gain(
                of_lists, of_histories, questions.users[counted], resamples=resamples
            )
    return {name: interval for name, interval in found.items() if interval is not None}
