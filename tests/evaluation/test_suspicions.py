"""Made-up models are found out, and ordinary ones are left alone."""

import re

import numpy as np
import pytest
import torch

from recsys.batch import HistoryBatch
from recsys.evaluation.ranking import Ranking, rank
from recsys.evaluation.suspicions import click_suspicions, suspicions
from recsys.histories.questions import leave_one_out
from recsys.models.baselines.markov import LastItemMarkov
from recsys.models.baselines.popularity import Popularity
from recsys.testing import planted_log

STORE = planted_log(150)
SPLIT = leave_one_out(STORE)
V = STORE.catalogue_size


class MadeUp:
    """Scores by a function of the history's items."""

    max_length = None
    name = "made up"

    def __init__(self, of_history) -> None:
        self.of_history = of_history

    def scores(self, batch: HistoryBatch) -> torch.Tensor:
        rows = [
            self.of_history(items[:length].tolist())
            for items, length in zip(batch.items_BL, batch.lengths_B, strict=True)
        ]
        return torch.from_numpy(np.array(rows, dtype=np.float32))


def answered(model, filter_seen: bool = False) -> Ranking:
    return rank(model, STORE, SPLIT.test, filter_seen=filter_seen, k=5)


def said_of(ranking: Ranking, others: dict[str, Ranking], filter_seen: bool = False) -> list[str]:
    return suspicions(ranking, STORE, SPLIT.test, others, filter_seen=filter_seen)


def fitted(model):
    return model.fit(STORE.items, STORE.offsets, SPLIT.training_ends, V)


NEXT = {
    tuple(STORE.history(u, int(end)).tolist()): int(STORE.history(u)[-1])
    for u, end in enumerate(SPLIT.test.history_ends)
}
POPULAR = answered(fitted(Popularity()))
PEEKS = MadeUp(lambda history: np.eye(V)[NEXT[tuple(history)]] + np.arange(V) * 1e-4)
ALWAYS_ONE = MadeUp(
    lambda history: np.eye(V)[1] + np.random.default_rng(len(history)).random(V) / 2
)
ALL_EQUAL = MadeUp(lambda history: np.zeros(V))


@pytest.mark.parametrize(
    ("model", "words"),
    [
        (PEEKS, "answer in first place in 100% of the questions: look for a way"),
        (ALWAYS_ONE, "puts item '?i?1'? first in 100%"),
        (ALL_EQUAL, "one score in 100% of the questions"),
        (fitted(Popularity()), "the very list of Popularity in 100%"),
    ],
    ids=["peeks", "always item 1", "all equal", "copies"],
)
def test_a_made_up_model_is_found_out(model, words):
    said = said_of(answered(model), {"Popularity": POPULAR})
    assert any(re.search(words, sentence) for sentence in said), said


def test_an_ordinary_model_is_left_alone():
    markov = answered(fitted(LastItemMarkov()))
    assert said_of(markov, {"Popularity": POPULAR}) == []


def test_one_item_for_all_is_found_out_where_some_had_it_already():
    had = [1 in STORE.history(u)[:-1] for u in range(STORE.users)]
    assert 0.5 < np.mean(had) < 0.9
    said = said_of(answered(ALWAYS_ONE, filter_seen=True), {}, filter_seen=True)
    assert any("first in 100%" in sentence for sentence in said)


@pytest.mark.parametrize(
    ("scores", "words"),
    [
        ([0.2, 0.2, 0.2, 0.2], "every question the probability 0.2000"),
        ([0.1, 0.2, 0.8, 0.9], "AUC of 1.0000: look for a way"),
        ([0.3, 0.8, 0.4, 0.9], "very probabilities of other"),
    ],
)
def test_rankers_are_found_out(scores, words):
    other = {"other": np.array([0.3, 0.8, 0.4, 0.9])}
    (said,) = click_suspicions(np.array([0, 0, 1, 1]), np.array(scores), other)
    assert words in said


def test_lists_that_ran_out_are_not_of_one_score():
    """A list of one item is no list of ties."""
    ranking = answered(fitted(LastItemMarkov()))
    short = Ranking(
        ranking.answers,
        np.where(np.arange(5) < 1, ranking.lists_NK, 0),
        np.where(np.arange(5) < 1, ranking.list_scores_NK, -np.inf),
        ranking.counts,
        ranking.answer_items_A,
    )
    assert not any("one score" in sentence for sentence in said_of(short, {}))
