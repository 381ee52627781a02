"""What is odd about a model's answers, said plainly: too good, all alike, or somebody else's.

None of these is proof. Each is a sentence that a reader of a table wants to have been told.

Dimensions: N questions, K list length.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from recsys.evaluation.click_metrics import auc
from recsys.evaluation.ranking import Ranking
from recsys.histories.first_events import FirstEvents
from recsys.histories.questions import Questions
from recsys.histories.store import HistoryStore

MOSTLY = 0.9  # share of the questions that makes a sentence
SOME = 0.1  # share that must have been able to get an item
TOO_GOOD = 0.9  # share of answers in first place
TOO_GOOD_AUC = 0.995


def suspicions(
    ranking: Ranking,
    store: HistoryStore,
    questions: Questions,
    others: Mapping[str, Ranking],
    *,
    filter_seen: bool,
) -> list[str]:
    """Sentences about a model's answers; none where nothing is odd.

    * one score: the first and the last item of a list score alike, so that chance (the order of
      ties) made the list;
    * one item: the same item is in first place for nearly everybody who could be told of it;
    * a copy: lists equal another model's;
    * too good: nearly every answer is in first place, as if it had been seen.

    Args:
        ranking: what the model answered.
        store: the histories.
        questions: what was asked.
        others: what other models answered to the same questions.
        filter_seen: whether items of the history were no candidates.
    """
    found = []
    lists_NK, scores_NK = ranking.lists_NK, ranking.list_scores_NK
    last_N = (lists_NK > 0).sum(1) - 1
    several_N = last_N > 0
    lowest_N = np.take_along_axis(scores_NK, np.maximum(last_N, 0)[:, None], axis=1)[:, 0]
    equal_N = several_N & (scores_NK[:, 0] == lowest_N)
    if several_N.any() and (share := equal_N.sum() / several_N.sum()) >= MOSTLY:
        found.append(
            f"gives all items of its list one score in {share:.0%} of the questions: what it lists "
            "is the order of ties, not an opinion"
        )
    counts = np.bincount(lists_NK[:, 0])
    counts[0] = 0
    if not found and counts.any():
        item = int(counts.argmax())
        possible_N = np.ones(len(lists_NK), dtype=bool)
        if filter_seen:
            places_N = FirstEvents(store).places(questions.users, np.full(len(questions), item))
            possible_N = places_N >= questions.history_ends
        share = counts[item] / max(int(possible_N.sum()), 1)
        if share >= MOSTLY and possible_N.mean() >= SOME:
            raw = store.item_vocabulary.raw(np.array([item]))[0]
            found.append(f"puts item {raw!r} first in {share:.0%} of the questions")
    for name, other in others.items():
        if other.lists_NK.shape != lists_NK.shape:
            continue
        if (share := (other.lists_NK == lists_NK).all(1).mean()) >= MOSTLY:
            found.append(f"gives the very list of {name} in {share:.0%} of the questions")
    if (share := (ranking.answers.best == 1).mean()) >= TOO_GOOD:
        found.append(
            f"has an answer in first place in {share:.0%} of the questions: look for a way in "
            "which it has seen the answers"
        )
    return found


def click_suspicions(
    labels_N: np.ndarray, scores_N: np.ndarray, others: Mapping[str, np.ndarray]
) -> list[str]:
    """The same of a ranker: one score for all, another model's scores, or an AUC near 1.

    >>> click_suspicions(np.array([0, 1]), np.array([0.3, 0.3]), {"B": np.array([0.1, 0.2])})
    ['gives every question the probability 0.3000']

    Args:
        labels_N: 0 or 1.
        scores_N: probabilities.
        others: those of other models.
    """
    if (scores_N == scores_N[0]).all():
        return [f"gives every question the probability {scores_N[0]:.4f}"]
    found = [
        f"gives the very probabilities of {name}"
        for name, other_N in others.items()
        if np.array_equal(other_N, scores_N)
    ]
    if 0 < labels_N.mean() < 1 and (area := auc(labels_N, scores_N)) >= TOO_GOOD_AUC:
        found.append(f"has an AUC of {area:.4f}: look for a way in which it has seen the answers")
    return found
