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
from typing import Protocol, cast

import numpy as np
import torch
from torch import Tensor, nn

from recsys.batch import HistoryBatch
from recsys.evaluation.metrics import RankedAnswers
from recsys.histories.batches import history_batch
from recsys.histories.questions import Questions
from recsys.histories.store import HistoryStore

# Rows of one matrix product. Small, so that the scores stay in the cache; always the same, so that
# no score's last bit depends on how many questions were asked together.
ROWS = 64


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
    tie_seed: int = 0,
    batch_size: int = 256,
) -> Ranking:
    """Ranks the whole catalogue for every question.

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
        tie_seed: of the order among equal scores.
        batch_size: questions encoded at a time; changes memory and speed only.

    Raises:
        ValueError: no questions, a question without answer, a NaN score, or a model of another
            catalogue.
    """
    N = len(questions)
    if N == 0:
        raise ValueError("there are no questions to rank")
    if k < 1 or batch_size < 1:
        raise ValueError(f"k and batch_size must be at least 1, not {k} and {batch_size}")
    items_A, question_A, repeated = _answers(store, questions)
    answer_begins = np.searchsorted(question_A, np.arange(N + 1))
    answers_N = np.diff(answer_begins)
    filtered_A = np.zeros(len(items_A), dtype=bool)
    scores_A = np.empty(len(items_A), dtype=np.float32)
    at_least_A = np.empty(len(items_A), dtype=np.int64)
    lists_NK = np.zeros((N, k), dtype=np.int32)
    list_scores_NK = np.full((N, k), -np.inf, dtype=np.float32)
    tie_order = store.item_vocabulary.tie_order(tie_seed)
    tie_V = torch.from_numpy(tie_order)
    buffer_RV = torch.empty(ROWS, store.catalogue_size)

    # Histories of similar length together: little padding.
    order = np.argsort(questions.history_ends, kind="stable")
    with evaluation_mode(model):
        blocks = score_blocks(model, store.catalogue_size)
        for begin in range(0, N, batch_size):
            asked = order[begin : begin + batch_size]
            users, ends = questions.users[asked], questions.history_ends[asked]
            for first, scores_RV in blocks(history_batch(store, users, ends, model.max_length)):
                block = slice(first, first + len(scores_RV))
                rows = asked[block]
                scores_RV[:, 0] = 0
                refuse_nan(scores_RV, model)
                scores_RV[:, 0] = -torch.inf

                if tie_V.device != scores_RV.device:
                    tie_V, buffer_RV = tie_V.to(scores_RV.device), buffer_RV.to(scores_RV.device)

                row_A, answer = ragged(answer_begins[rows], answers_N[rows])
                if filter_seen:
                    row, event = ragged(store.offsets[users[block]], ends[block])
                    scores_RV[torch.from_numpy(row), _index(store.items[event])] = -torch.inf
                row_in_block = torch.from_numpy(row_A)
                answer_scores = scores_RV[row_in_block, _index(items_A[answer])]
                scores_A[answer] = answer_scores.cpu().numpy()
                filtered_A[answer] = scores_A[answer] == -np.inf
                at_least_A[answer] = _count_at_least(
                    scores_RV, row_in_block, answer_scores, buffer_RV
                )

                values_RK, items_RK = best_items(scores_RV, k, tie_V)
                width = values_RK.shape[1]
                lists_NK[rows, :width] = items_RK.cpu().numpy()
                list_scores_NK[rows, :width] = values_RK.cpu().numpy()

    ranks_A = _ranks(at_least_A, scores_A, question_A, tie_order[items_A])
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


def _answers(store: HistoryStore, questions: Questions) -> tuple[np.ndarray, np.ndarray, int]:
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


def ragged(begins: np.ndarray, lengths: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(row, position) of the elements `begins[row] : begins[row] + lengths[row]`, row by row."""
    row = np.repeat(np.arange(len(lengths)), lengths)
    before = np.cumsum(lengths) - lengths
    return row, np.arange(len(row)) + np.repeat(begins - before, lengths)


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


def score_blocks(
    model: Encoder | Scorer, V: int
) -> Callable[[HistoryBatch], Iterator[tuple[int, Tensor]]]:
    """A function that yields (first row, float32 scores [≤ ROWS, V], free to overwrite)."""

    def check(known: int) -> None:
        if known != V:
            raise ValueError(
                f"{_name(model)} knows {known - 1:,} items, the store {V - 1:,}: "
                "evaluate a model on the store (or a store with the same items) it was trained on"
            )

    def blocks_of_scores(batch: HistoryBatch) -> Iterator[tuple[int, Tensor]]:
        scores_BV = cast(Scorer, model).scores(batch)
        check(scores_BV.shape[1])
        for first in range(0, len(scores_BV), ROWS):
            yield first, scores_BV[first : first + ROWS].to(torch.float32, copy=True)

    if not hasattr(model, "encode"):
        return blocks_of_scores

    encoder = cast(Encoder, model)
    table_VD = encoder.item_table().float()
    check(len(table_VD))
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


def _name(model: object) -> str:
    return str(getattr(model, "name", type(model).__name__))


def refuse_nan(scores_RV: Tensor, model: object) -> None:
    """Refuses NaN, and lifts -inf to the lowest number: -inf stands for 'not a candidate' here."""
    if torch.isfinite(scores_RV.sum()):
        return
    bad = int(scores_RV.isnan().any(dim=1).sum())
    if bad:
        raise ValueError(
            f"{_name(model)} gave NaN scores (to {bad} of the {len(scores_RV)} questions in hand): "
            "nothing can be ranked by them; did training diverge?"
        )
    scores_RV.clamp_(min=torch.finfo(torch.float32).min)


def _count_at_least(
    scores_RV: Tensor, row: Tensor, answer_scores: Tensor, buffer_RV: Tensor
) -> np.ndarray:
    """int64 [answers]: candidates, the answer included, whose score is not below the answer's."""
    counts = torch.empty(len(row), dtype=torch.int64)
    for at in range(0, len(row), ROWS):
        rows = row[at : at + ROWS]
        alone = len(row) == len(scores_RV)  # one answer a question: the rows as they are
        looked_at = scores_RV if alone else scores_RV[rows]
        # Written as 0 and 1 in float32: four times as fast to sum as booleans, exact below 2^24.
        above = torch.ge(looked_at, answer_scores[at : at + ROWS, None], out=buffer_RV[: len(rows)])
        counts[at : at + ROWS] = above.sum(dim=1)
    return counts.numpy()


def _ranks(
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


def best_items(scores_RV: Tensor, k: int, tie_V: Tensor) -> tuple[Tensor, Tensor]:
    """(scores, items) of the min(k, V) best candidates per row, equal scores in tie order.

    `topk` chooses freely among equals, so rows with equal scores are put right afterwards, and
    where equals straddle the list's end all of them are looked at. Items are 0 where the
    candidates (scores above -inf) ran out.
    """
    V = scores_RV.shape[1]
    values, items = scores_RV.topk(min(k + 1, V), dim=1)
    equal = (values[:, 1:] == values[:, :-1]) & (values[:, 1:] > -torch.inf)
    straddles = equal[:, k - 1] if k < V else torch.zeros_like(equal[:, 0])
    values, items = values[:, :k], items[:, :k]

    inside = (equal.any(dim=1) & ~straddles).nonzero().squeeze(1)
    if len(inside):
        values[inside], items[inside] = _in_order(values[inside], items[inside], tie_V, k)
    border = straddles.nonzero().squeeze(1)
    if len(border):
        above, above_items = values[border], items[border]
        last = above[:, -1:]
        tie_BV = torch.where(scores_RV[border] == last, tie_V, len(tie_V))
        chosen_tie, chosen = tie_BV.topk(k, dim=1, largest=False)
        level = torch.where(chosen_tie < len(tie_V), last, -torch.inf)
        above = torch.where(above > last, above, -torch.inf)
        values[border], items[border] = _in_order(
            torch.cat([above, level], dim=1), torch.cat([above_items, chosen], dim=1), tie_V, k
        )
    return values, torch.where(values > -torch.inf, items, 0)


def _in_order(values: Tensor, items: Tensor, tie_V: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k first of each row by (score descending, tie order)."""
    by_tie = tie_V[items].argsort(dim=1)
    values, items = values.gather(1, by_tie), items.gather(1, by_tie)
    values, by_score = values.sort(dim=1, descending=True, stable=True)
    return values[:, :k], items.gather(1, by_score)[:, :k]
