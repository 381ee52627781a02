"""Exact ranking of the whole catalogue for a table of questions.

Scores are float32, of every item, for every question; nothing is sampled or approximated. Ties are
settled against the model: an answer ranks last among candidates of equal score, so that a model
that gives all items one score gains nothing. In the printed lists equal scores stand in the order
of a seeded hash of the raw id, never of the index.

Dimensions: N questions, A answers of all questions together, B questions encoded together, R of
them scored together, D model width, V catalogue incl. padding (index 0), K list length.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from typing import Protocol, cast

import numpy as np
import torch
from torch import Tensor, nn

from recsys.batch import HistoryBatch
from recsys.evaluation.candidates import Candidates
from recsys.evaluation.catalogue_scan import (
    LOWEST,
    CatalogueScan,
    GivenScores,
    Products,
    Scores,
    refuse_nan,
)
from recsys.evaluation.catalogue_scan import ROWS as SCANNED
from recsys.evaluation.metrics import RankedAnswers
from recsys.histories.batches import history_batch
from recsys.histories.questions import Questions
from recsys.histories.spans import ragged
from recsys.histories.store import HistoryStore

# Rows of one matrix product where whole rows of scores are made. Small, so that they stay in the
# cache; always the same, so that no score's last bit depends on how many were asked together.
ROWS = 64
# Places of histories, padding included, that are encoded at a time: what the layers pass on to each
# other then stays in the cache.
PLACES = 4096


class Encoder(Protocol):
    """A model whose score of an item is a dot product: h_BD · item_table_VD."""

    @property
    def max_length(self) -> int | None:
        """Newest events it reads; None for all."""

    def encode(self, batch: HistoryBatch) -> Tensor:
        """[B, D], one vector per history."""

    def item_table(self) -> Tensor:
        """[V, D], one row per item; row 0 (padding) is never recommended."""


class Scorer(Protocol):
    """A model that scores the whole catalogue its own way."""

    @property
    def max_length(self) -> int | None:
        """Newest events it reads; None for all."""

    def scores(self, batch: HistoryBatch) -> Tensor:
        """float32 [B, V]; column 0 (padding) is ignored."""


@dataclass(frozen=True)
class Ranking:
    """What a model answered to N questions.

    Attributes:
        answers: where the right answers were ranked.
        lists_NK: int32, the K best candidates, best first; 0 where the candidates ran out.
        list_scores_NK: float32, their scores; -inf where the candidates ran out.
        counts: `questions`; `questions_cold` (without history); `questions_filtered` (all answers
            filtered); `answers`; `answers_filtered` (already in the history while that is
            filtered: a miss); `answers_repeated` (the same item again in one question's targets:
            counted once).
        answer_items_A: int32, the items behind `answers`.
    """

    answers: RankedAnswers
    lists_NK: np.ndarray
    list_scores_NK: np.ndarray
    counts: dict[str, int]
    answer_items_A: np.ndarray


@torch.no_grad()
def rank(
    model: Encoder | Scorer,
    store: HistoryStore,
    questions: Questions,
    *,
    filter_seen: bool,
    k: int,
    candidates: Candidates | None = None,
    tie_seed: int = 0,
    batch_size: int = 256,
) -> Ranking:
    """Ranks the whole catalogue, or the candidates, for every question.

    The rank of an answer is 1 + the candidates with a higher score + the candidates with an equal
    score that are not answers themselves; answers of equal score follow each other in tie order.

    Args:
        model: what is judged. An `nn.Module` is put into evaluation mode meanwhile.
        store: the histories the questions point into.
        questions: what is asked.
        filter_seen: take the items of the question's own history `[0, history_end)`, all of it and
            not only the part the model reads, out of the candidates. An answer among them is a
            miss, and counted.
        k: length of the lists.
        candidates: what each question lets the model choose from; None: the whole catalogue.
        tie_seed: of the order among equal scores.
        batch_size: most questions encoded at a time, fewer where histories are long; changes memory
            and speed only.

    Raises:
        ValueError: no questions, a question without answer, a NaN score, or a model of another
            catalogue.
    """
    N = len(questions)
    if N == 0:
        raise ValueError("there are no questions to rank")
    if k < 1 or batch_size < 1:
        raise ValueError(f"k and batch_size must be at least 1, not {k} and {batch_size}")
    items_A, question_A, repeated = question_answers(store, questions)
    answer_begins = np.searchsorted(question_A, np.arange(N + 1))
    answers_N = np.diff(answer_begins)
    scores_A = np.empty(len(items_A), dtype=np.float32)
    at_least_A = np.empty(len(items_A), dtype=np.int64)
    lists_NK = np.zeros((N, k), dtype=np.int32)
    list_scores_NK = np.full((N, k), -np.inf, dtype=np.float32)
    tie_order = cache(lambda: store.item_vocabulary.tie_order(tie_seed))

    # Histories of similar length together: little padding.
    order = np.argsort(questions.history_ends, kind="stable")
    with evaluation_mode(model):
        scores_of, device = _block_scores(model, store, batch_size)
        scan = CatalogueScan(store.catalogue_size, k, tie_order, name_of(model), device)
        for begin in range(0, N, SCANNED):
            rows = order[begin : begin + SCANNED]
            users, ends = questions.users[rows], questions.history_ends[rows]
            row, answer = ragged(answer_begins[rows], answers_N[rows])
            seen, event = ragged(store.offsets[users], ends if filter_seen else 0 * ends)
            scores = scores_of(users, ends)
            asked = scores, (row, items_A[answer]), (seen, store.items[event])
            with torch.autocast(device.type, enabled=False):  # scores are float32, always
                found = (
                    scan(*asked)
                    if candidates is None
                    else _among(*asked, candidates.take(rows), k, tie_order(), name_of(model))
                )
            scores_A[answer], at_least_A[answer], list_scores_NK[rows], lists_NK[rows] = found

    filtered_A = scores_A == -np.inf
    ranks_A = at_least_A
    if len(items_A) > N:
        ranks_A = ranks_of_answers(at_least_A, scores_A, question_A, tie_order()[items_A])
    ranks_A[filtered_A] = 0
    answers = RankedAnswers(ranks_A, question_A, N)
    counts = {
        "questions": N,
        "questions_cold": int((questions.history_ends == 0).sum()),
        "questions_filtered": int((answers.best == 0).sum()),
        "answers": len(items_A),
        "answers_filtered": int(filtered_A.sum()),
        "answers_repeated": repeated,
    }
    return Ranking(answers, lists_NK, list_scores_NK, counts, items_A)


def _among(
    source: Scores,
    answers: tuple[np.ndarray, np.ndarray],
    seen: tuple[np.ndarray, np.ndarray],
    candidates: tuple[np.ndarray, np.ndarray],
    k: int,
    tie_V: np.ndarray,
    name: str,
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """What `CatalogueScan` gives, of few candidates: (row, item) pairs, ascending."""
    V = len(tie_V)
    row_C, item_C = (np.asarray(part, dtype=np.int64) for part in candidates)
    values = source.expected(torch.from_numpy(row_C), torch.from_numpy(item_C))
    refuse_nan(values[None], name)
    keys_C = row_C * V + item_C
    scores_C = np.where(
        np.isin(keys_C, seen[0] * V + seen[1]), -np.inf, values.clamp(min=LOWEST).cpu().numpy()
    ).astype(np.float32)
    order = np.lexsort((tie_V[item_C], -scores_C, row_C))
    row, score = row_C[order], scores_C[order]
    begins = np.searchsorted(row, np.arange(source.rows))
    place = np.arange(len(row)) - begins[row]
    ends = np.append((row[1:] != row[:-1]) | (score[1:] != score[:-1]), True)
    at_least_C = np.empty(len(row), dtype=np.int64)
    at_least_C[order] = place[np.flatnonzero(ends)[np.cumsum(ends) - ends]] + 1

    values_RK = np.full((source.rows, k), -np.inf, dtype=np.float32)
    items_RK = np.zeros((source.rows, k), dtype=np.int32)
    kept = (place < k) & (score > -np.inf)
    values_RK[row[kept], place[kept]] = score[kept]
    items_RK[row[kept], place[kept]] = item_C[order][kept]

    keys_A = answers[0] * V + answers[1]
    at_A = np.minimum(np.searchsorted(keys_C, keys_A), len(keys_C) - 1)
    scores_A = np.where(keys_C[at_A] == keys_A, scores_C[at_A], -np.inf).astype(np.float32)
    return scores_A, at_least_C[at_A], values_RK, items_RK


def question_answers(
    store: HistoryStore, questions: Questions
) -> tuple[np.ndarray, np.ndarray, int]:
    """(items_A, question_A, how many repeats were left out), by question, in target order."""
    lengths = questions.target_ends - questions.target_begins
    if np.any(lengths < 1):
        empty = int(np.flatnonzero(lengths < 1)[0])
        raise ValueError(f"question {empty} of {len(questions)} has no answer")
    question, event = ragged(store.offsets[questions.users] + questions.target_begins, lengths)
    items = store.items[event]
    if np.all(lengths == 1):
        return items, question, 0
    _, first = np.unique(question * store.catalogue_size + items, return_index=True)
    first.sort()
    return items[first], question[first], len(items) - len(first)


def _index(items: np.ndarray) -> Tensor:
    return torch.from_numpy(items.astype(np.int64))


@contextmanager
def evaluation_mode(model: object) -> Iterator[None]:
    """Dropout off, and back to what it was."""
    was_training = isinstance(model, nn.Module) and model.training
    if isinstance(model, nn.Module):
        model.eval()
    try:
        yield
    finally:
        if isinstance(model, nn.Module):
            model.train(was_training)


def _block_scores(
    model: Encoder | Scorer, store: HistoryStore, batch_size: int
) -> tuple[Callable[[np.ndarray, np.ndarray], Scores], torch.device]:
    """A function that gives the scores of some users' histories, and the device they are on."""
    V = store.catalogue_size

    def asked(users: np.ndarray, ends: np.ndarray, at_a_time: int) -> Iterator[HistoryBatch]:
        # Cut after padding, so that a history is padded alike however many are read at a time.
        whole = history_batch(store, users, ends, model.max_length)
        for begin in range(0, len(users), at_a_time):
            part = slice(begin, begin + at_a_time)
            times_BL = None if whole.times_BL is None else whole.times_BL[part]
            yield HistoryBatch(whole.items_BL[part], whole.lengths_B[part], times_BL)

    def given(users: np.ndarray, ends: np.ndarray) -> Scores:
        batches = asked(users, ends, batch_size)
        parts = [cast(Scorer, model).scores(batch).cpu() for batch in batches]
        check_catalogue(model, parts[0].shape[1], V)
        return GivenScores(parts[0] if len(parts) == 1 else torch.cat(parts))

    if not hasattr(model, "encode"):
        return given, torch.device("cpu")

    encoder = cast(Encoder, model)
    table_VD = encoder.item_table().float()
    check_catalogue(model, len(table_VD), V)

    def products(users: np.ndarray, ends: np.ndarray) -> Scores:
        longest = max(int(ends.max()), 1)
        if model.max_length is not None:
            longest = min(longest, model.max_length)
        batches = asked(users, ends, min(batch_size, max(1, PLACES // longest)))
        parts = [encoder.encode(batch.to(table_VD.device)).float() for batch in batches]
        return Products(torch.cat(parts), table_VD)

    return products, table_VD.device


def check_catalogue(model: object, known: int, V: int) -> None:
    """Refuses a model of another catalogue.

    Args:
        model: named in the error.
        known: the size of the catalogue it scores, padding included.
        V: the store's.

    Raises:
        ValueError: with both sizes.
    """
    if known != V:
        raise ValueError(
            f"{name_of(model)} knows {known - 1:,} items, the store {V - 1:,}: "
            "evaluate a model on the store (or a store with the same items) it was trained on"
        )


def score_blocks(
    model: Encoder | Scorer, V: int
) -> Callable[[HistoryBatch], Iterator[tuple[int, Tensor]]]:
    """A function that yields (first row, float32 scores [≤ ROWS, V], free to overwrite)."""

    def blocks_of_scores(batch: HistoryBatch) -> Iterator[tuple[int, Tensor]]:
        scores_BV = cast(Scorer, model).scores(batch)
        check_catalogue(model, scores_BV.shape[1], V)
        for first in range(0, len(scores_BV), ROWS):
            yield first, scores_BV[first : first + ROWS].to(torch.float32, copy=True)

    if not hasattr(model, "encode"):
        return blocks_of_scores

    encoder = cast(Encoder, model)
    table_VD = encoder.item_table().float()
    check_catalogue(model, len(table_VD), V)
    buffer_RV = table_VD.new_empty(ROWS, V)

    def blocks_of_products(batch: HistoryBatch) -> Iterator[tuple[int, Tensor]]:
        h_BD = encoder.encode(batch.to(table_VD.device)).float()
        for first in range(0, len(h_BD), ROWS):
            h_RD = h_BD[first : first + ROWS]
            rows = len(h_RD)
            if rows < ROWS:
                h_RD = nn.functional.pad(h_RD, (0, 0, 0, ROWS - rows))
            with torch.autocast(h_RD.device.type, enabled=False):
                torch.mm(h_RD, table_VD.T, out=buffer_RV)
            yield first, buffer_RV[:rows]

    return blocks_of_products


def name_of(model: object) -> str:
    """What a model is called in errors."""
    return str(getattr(model, "name", type(model).__name__))


def ranks_of_answers(
    at_least_A: np.ndarray, scores_A: np.ndarray, question_A: np.ndarray, tie_A: np.ndarray
) -> np.ndarray:
    """int64 [A]: ranks.

    Of the candidates whose score is not below an answer's, all stand before it but itself and the
    answers of equal score that come later in tie order.
    """
    order = np.lexsort((tie_A, scores_A, question_A))
    question, score = question_A[order], scores_A[order]
    ends_group = np.append((np.diff(question) != 0) | (score[1:] != score[:-1]), True)
    group_ends = np.flatnonzero(ends_group) + 1
    group = np.cumsum(ends_group) - ends_group
    later = group_ends[group] - 1 - np.arange(len(order))
    ranks = np.empty(len(order), dtype=np.int64)
    ranks[order] = at_least_A[order] - later
    return ranks
