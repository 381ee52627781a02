"""The scan in pieces against whole rows of scores, and what it may keep in memory."""

from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.overrides import TorchFunctionMode

from recsys.batch import HistoryBatch
from recsys.evaluation.catalogue_scan import (
    COLUMNS_CPU,
    LOWEST,
    ROWS,
    CatalogueScan,
    GivenScores,
    Products,
    best_items,
)
from recsys.evaluation.ranking import rank
from recsys.histories.questions import Questions
from recsys.histories.store import HistoryStore

CPU = torch.device("cpu")


class Misled(GivenScores):
    """Expects scores a little beside those that it then gives."""

    def __init__(self, scores_RV: Tensor, beside_A: Tensor) -> None:
        super().__init__(scores_RV)
        self.beside_A = beside_A

    def expected(self, row_A: Tensor, item_A: Tensor) -> Tensor:
        return super().expected(row_A, item_A) + self.beside_A[: len(row_A)]


def whole_rows(scores_RV, answers, seen, k, tie_order):
    """What a scan returns, from its definition."""
    scores_RV = scores_RV.clamp(min=LOWEST)
    scores_RV[:, 0] = -torch.inf
    scores_RV[seen[0], seen[1]] = -torch.inf
    scores_A = scores_RV[answers[0], answers[1]]
    at_least_A = (scores_RV[answers[0]] >= scores_A[:, None]).sum(1)
    return scores_A, at_least_A, *best_items(scores_RV, k, torch.from_numpy(tie_order))


@st.composite
def blocks(draw):
    """(scores [R, V], answers, seen): few levels and many ties, or hardly any."""
    R, V = draw(st.integers(1, 5)), draw(st.integers(2, 90))
    random = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    levels = draw(st.sampled_from([[0.0], [0.0, 1.0], [-np.inf, -1.5, -0.0, 0.0, np.inf], None]))
    scores = random.normal(size=(R, V)) if levels is None else random.choice(levels, (R, V))
    if draw(st.booleans()):
        scores.sort(axis=1)  # every piece brings something better
    each = random.integers(1, draw(st.integers(2, 6)), R)
    answer_row = np.repeat(np.arange(R), each)
    answers = answer_row, random.integers(1, V, len(answer_row))
    many = draw(st.integers(0, 3 * V))
    seen = random.integers(0, R, many), random.integers(1, V, many)
    return torch.from_numpy(scores.astype(np.float32)), answers, seen


def checked(scan, source, scores_RV, answers, seen, k, tie_order):
    scores_A, at_least_A, values_RK, items_RK = scan(source, answers, seen)
    expected = whole_rows(scores_RV.clone(), answers, seen, k, tie_order)
    np.testing.assert_array_equal(scores_A, expected[0])
    is_candidate = scores_A > -np.inf
    np.testing.assert_array_equal(at_least_A[is_candidate], expected[1][is_candidate])
    width = expected[2].shape[1]
    np.testing.assert_array_equal(values_RK[:, :width], expected[2])
    np.testing.assert_array_equal(items_RK[:, :width], expected[3])
    assert np.all(values_RK[:, width:] == -np.inf) and np.all(items_RK[:, width:] == 0)


@settings(deadline=None, max_examples=120)
@given(blocks(), st.integers(1, 100), st.integers(1, 20), st.integers(0, 3))
def test_pieces_of_any_size_give_what_whole_rows_give(block, columns, k, misled):
    scores_RV, answers, seen = block
    V = scores_RV.shape[1]
    tie_order = np.random.default_rng(misled).permutation(V)
    scan = CatalogueScan(V, k, lambda: tie_order, "a model", CPU, columns)
    source = GivenScores(scores_RV)
    if misled:
        beside = torch.tensor([0.0, 1e-7, -0.5, 2.0])[torch.arange(100) * misled % 4]
        source = Misled(scores_RV, beside)
    before = scores_RV.clone()
    checked(scan, source, scores_RV, answers, seen, k, tie_order)
    assert torch.equal(scores_RV, before)
    checked(scan, source, scores_RV, answers, seen, k, tie_order)  # buffers hold nothing over


@settings(deadline=None, max_examples=25)
@given(st.integers(1, 40), st.integers(2, 300), st.integers(1, 130), st.integers(1, 12))
def test_products_in_pieces_are_the_product(rows, V, columns, k):
    draw = torch.Generator().manual_seed(V)
    # Small whole numbers: their products are exact, whatever the order of the sum.
    h_RD, table_VD = (
        torch.randint(-3, 4, (n, 8), generator=draw, dtype=torch.float32) for n in (rows, V)
    )
    scores_RV = h_RD @ table_VD.T
    answers = np.arange(rows), torch.randint(1, V, (rows,), generator=draw).numpy()
    seen = answers[0], torch.randint(1, V, (rows,), generator=draw).numpy()
    tie_order = np.random.default_rng(V).permutation(V)
    scan = CatalogueScan(V, k, lambda: tie_order, "a model", CPU, columns)
    checked(scan, Products(h_RD, table_VD), scores_RV, answers, seen, k, tie_order)


def test_the_default_pieces_give_what_whole_rows_give():
    V, rows, k = 3 * COLUMNS_CPU + 77, 40, 10
    draw = np.random.default_rng(0)
    scores_RV = torch.from_numpy(draw.normal(size=(rows, V)).astype(np.float32)).round(decimals=2)
    answers = np.repeat(np.arange(rows), 3), draw.integers(1, V, 3 * rows)
    seen = draw.integers(0, rows, 900), draw.integers(1, V, 900)
    tie_order = draw.permutation(V)
    scan = CatalogueScan(V, k, lambda: tie_order, "a model", CPU)
    checked(scan, GivenScores(scores_RV), scores_RV, answers, seen, k, tie_order)


@pytest.mark.parametrize("column", [1, 40, 89])
def test_nan_in_any_piece_is_refused(column):
    scores_RV = torch.zeros(2, 90)
    scores_RV[1, column] = torch.nan
    scan = CatalogueScan(90, 3, lambda: np.arange(90), "Broken", CPU, 32)
    nobody = np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.int64)
    with pytest.raises(ValueError, match="Broken gave NaN scores"):
        scan(GivenScores(scores_RV), (np.arange(2), np.ones(2, dtype=np.int64)), nobody)


class Largest(TorchFunctionMode):
    """The most numbers of any tensor that an operation made or looked at."""

    numbers = 0

    def __torch_function__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for made in result if isinstance(result, tuple) else (result,):
            if isinstance(made, Tensor):
                self.numbers = max(self.numbers, made.numel())
        return result


class Rows:
    """An encoder of no cost: the vector of the newest item."""

    max_length = 1

    def __init__(self, table_VD: Tensor) -> None:
        self.table_VD = table_VD

    def encode(self, batch: HistoryBatch) -> Tensor:
        return self.table_VD[batch.items_BL[:, 0]]

    def item_table(self) -> Tensor:
        return self.table_VD


@pytest.mark.parametrize("answers", [1, 3])
def test_no_row_of_scores_is_ever_whole(answers):
    items, users, together = 40_000, 200, ROWS * COLUMNS_CPU
    draw = np.random.default_rng(0)
    store = HistoryStore.from_lists(
        [draw.integers(1, items + 1, 2 + answers).tolist() for _ in range(users)], items
    )
    ends = np.full(users, 2)
    questions = Questions(np.arange(users), ends, ends, ends + answers)
    table_VD = torch.randn(items + 1, 4, generator=torch.Generator().manual_seed(0))
    table_VD[: items // 2] = 0  # half of the questions score everything alike
    judged = partial(rank, Rows(table_VD), store, questions, filter_seen=True, k=10)
    with Largest() as largest:
        judged()
    assert largest.numbers <= 2 * together < users * items / 10
