"""One exact pass over the catalogue for a block of questions, in pieces that stay in the cache.

A piece of the scores is made, looked at and overwritten by the next one: how many items score no
less than each answer is counted, and what can still enter a question's list is set aside. Scores of
a whole row are never in memory. `best_items` and a count over whole rows are the definition that
tests hold the pass to.

Dimensions: R questions of a block, D model width, V catalogue incl. padding (index 0), C columns of
a piece, K list length, A answers of the block together, P strands set aside.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from typing import Protocol

import numpy as np
import torch
from torch import Tensor, nn

# Rows of one matrix product. Always the same, so that no score's last bit depends on how many
# questions were asked together.
ROWS = 256
# Items of one piece. A CPU's is 1 MB of scores, which stays in the second-level cache.
COLUMNS_CPU = 1024
COLUMNS_GPU = 1 << 16
# Scores of a piece whose maximum is looked at before they are. The members of a strand stand
# C / STRAND columns apart, so that maxima are taken over whole vectors of neighbours.
STRAND = 16
LOWEST = torch.finfo(torch.float32).min


class Scores(Protocol):
    """Where the scores of a block of questions come from: the same numbers at each asking."""

    rows: int
    device: torch.device

    def write(self, begin: int, out_RC: Tensor) -> None:
        """Scores of the items from `begin`, into the first of `ROWS` rows and C columns."""

    def expected(self, row_A: Tensor, item_A: Tensor) -> Tensor:
        """float32 [A], the scores of some items, probably to the last bit."""


class Products:
    """Scores h_RD · table_VD.

    Args:
        h_RD: float32, at most `ROWS` questions.
        table_VD: float32.
    """

    def __init__(self, h_RD: Tensor, table_VD: Tensor) -> None:
        self.rows = len(h_RD)
        self.device = table_VD.device
        self.h_RD = nn.functional.pad(h_RD, (0, 0, 0, ROWS - self.rows))
        self.table_VD = table_VD

    def write(self, begin: int, out_RC: Tensor) -> None:
        """The product with a slice of the table."""
        items_CD = self.table_VD[begin : begin + out_RC.shape[1]]
        torch.mm(self.h_RD, items_CD.T, out=out_RC)

    def expected(self, row_A: Tensor, item_A: Tensor) -> Tensor:
        """Products with the answers' vectors alone: another shape, so a last bit may differ."""
        found = [
            torch.mm(self.h_RD, self.table_VD[items].T)[
                rows, torch.arange(len(rows), device=self.device)
            ]
            for rows, items in zip(row_A.split(ROWS), item_A.split(ROWS), strict=True)
        ]
        return torch.cat(found) if found else self.h_RD.new_empty(0)


class GivenScores:
    """Scores that a model made its own way; they are left as they are.

    Args:
        scores_RV: at most `ROWS` questions.
    """

    def __init__(self, scores_RV: Tensor) -> None:
        self.rows = len(scores_RV)
        self.device = scores_RV.device
        self.scores_RV = scores_RV

    def write(self, begin: int, out_RC: Tensor) -> None:
        """A copy of some columns."""
        out_RC[: self.rows] = self.scores_RV[:, begin : begin + out_RC.shape[1]]

    def expected(self, row_A: Tensor, item_A: Tensor) -> Tensor:
        """The scores themselves."""
        return self.scores_RV[row_A, item_A].float()


@dataclass(frozen=True)
class _Places:
    """(question, item) pairs of a block, ordered by the piece of the catalogue the item is in.

    Attributes:
        flat: int64, where each stands in its piece's scores, row · C + column.
        order: int64, where each stood before.
        bounds: the pairs of piece p stand in `[bounds[p], bounds[p + 1])`.
    """

    flat: Tensor
    order: Tensor
    bounds: list[int]

    def part(self, piece: int) -> slice:
        """Where the pairs of a piece stand."""
        return slice(self.bounds[piece], self.bounds[piece + 1])

    def count(self, piece: int) -> int:
        """How many they are."""
        return self.bounds[piece + 1] - self.bounds[piece]


class CatalogueScan:
    """Scans one catalogue, block of questions after block of questions.

    Args:
        catalogue_size: V.
        k: length of the lists.
        tie_order: gives the place of each item among equals, int64 [V], no two alike; called when
            there are equals.
        name: of the model, for errors.
        device: where the scores are.
        columns: items of a piece; None: what suits the device.
    """

    def __init__(
        self,
        catalogue_size: int,
        k: int,
        tie_order: Callable[[], np.ndarray],
        name: str,
        device: torch.device,
        columns: int | None = None,
    ) -> None:
        most = columns or (COLUMNS_CPU if device.type == "cpu" else COLUMNS_GPU)
        # Pieces of nearly one size, in whole strands.
        self.V = catalogue_size
        self.C = -(-catalogue_size // (-(-catalogue_size // most) * STRAND)) * STRAND
        self.pieces = -(-catalogue_size // self.C)
        self.k = k
        self.name = name
        self.tie_V = cache(lambda: torch.from_numpy(tie_order()).to(device))
        self.scores_RC = torch.full((ROWS, self.C), -torch.inf, device=device)
        self.flat = self.scores_RC.view(-1)
        self.above_RC = torch.empty_like(self.scores_RC)

    def __call__(
        self,
        source: Scores,
        answers: tuple[np.ndarray, np.ndarray],
        seen: tuple[np.ndarray, np.ndarray],
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """Ranks for a block of questions.

        Args:
            source: their scores.
            answers: (row, item), both [A]: the question's place in the block and a right answer.
            seen: (row, item) of what is no candidate; may hold a pair twice.

        Returns:
            Scores [A] float32 of the answers, -inf where they are no candidates; how many
            candidates, itself included, score no less, [A] int64 (of no meaning where the answer is
            no candidate); and the lists, best first, equals in tie order: scores float32 and
            items int64 [R, K], -inf and 0 where candidates ran out.

        Raises:
            ValueError: a NaN score.
        """
        out, asked = self._by_piece(*seen), self._by_piece(*answers)
        row_A, item_A = (torch.from_numpy(part).to(source.device, torch.int64) for part in answers)
        expected_A = source.expected(row_A, item_A).clamp_(min=LOWEST)
        one_each = len(row_A) == source.rows and bool((row_A.diff() > 0).all())
        whose_A = None if one_each else row_A
        counts_A = torch.zeros(len(row_A), dtype=torch.float64, device=source.device)
        found_A = torch.empty_like(expected_A)
        best = _Best(source.rows, self.k + 1, self.C, source.device)
        for piece, scores_RC in self._pieces(source, out):
            if asked.count(piece):
                here = asked.part(piece)
                found_A[here] = self.flat[asked.flat[here]]
            self._count(scores_RC, whose_A, expected_A, counts_A)
            best.look_at(piece * self.C, scores_RC)
        scores_A = torch.empty_like(found_A)
        scores_A[asked.order] = found_A

        # What was counted against came from a product of another shape. Where its last bit is not
        # the scan's, only another scan can tell who stands between the two.
        doubtful = ((scores_A != expected_A) & (scores_A > -torch.inf)).nonzero().squeeze(1)
        if len(doubtful):
            again = torch.zeros_like(counts_A[doubtful])
            for _, scores_RC in self._pieces(source, out):
                self._count(scores_RC, row_A[doubtful], scores_A[doubtful], again)
            counts_A[doubtful] = again

        values_RK, items_RK = self._in_tie_order(*best.merged(), source, out)
        return (
            scores_A.cpu().numpy(),
            counts_A.long().cpu().numpy(),
            values_RK.cpu().numpy(),
            items_RK.cpu().numpy(),
        )

    def _by_piece(self, row: np.ndarray, item: np.ndarray) -> _Places:
        piece = (item // self.C).astype(np.min_scalar_type(self.pieces))  # short: sorted fast
        order = np.argsort(piece, kind="stable")
        bounds = np.concatenate([[0], np.bincount(piece, minlength=self.pieces).cumsum()])
        flat = (row * self.C + item % self.C)[order]
        device = self.scores_RC.device
        return _Places(
            torch.from_numpy(flat).to(device), torch.from_numpy(order).to(device), bounds.tolist()
        )

    def _pieces(self, source: Scores, out: _Places) -> Iterator[tuple[int, Tensor]]:
        """(piece, its scores [R, C]); -inf on what is no candidate and beyond the catalogue."""
        for piece in range(self.pieces):
            begin = piece * self.C
            width = min(self.C, self.V - begin)
            scores_RC = self.scores_RC[: source.rows]
            source.write(begin, self.scores_RC[:, :width])
            if begin == 0:
                scores_RC[:, 0] = 0  # whatever it is, padding is nobody's score
            refuse_nan(scores_RC[:, :width], self.name)
            if begin == 0:
                scores_RC[:, 0] = -torch.inf
            if width < self.C:
                scores_RC[:, width:] = -torch.inf
            if out.count(piece):
                self.flat.index_fill_(0, out.flat[out.part(piece)], -torch.inf)
            yield piece, scores_RC

    def _count(
        self, scores_RC: Tensor, row_A: Tensor | None, scores_A: Tensor, counts_A: Tensor
    ) -> None:
        """Adds to each answer's count the scores of its row (None: one answer a row) not below."""
        # Written as 0 and 1 in float32: four times as fast to sum as booleans, exact below 2^24.
        if row_A is None:
            above_RC = torch.ge(scores_RC, scores_A[:, None], out=self.above_RC[: len(scores_A)])
            counts_A += above_RC.sum(1)
            return
        for at in range(0, len(scores_A), ROWS):
            part = slice(at, at + ROWS)
            above_RC = self.above_RC[: len(row_A[part])]
            torch.index_select(scores_RC, 0, row_A[part], out=above_RC)
            counts_A[part] += above_RC.ge_(scores_A[part, None]).sum(1)

    def _in_tie_order(
        self, values: Tensor, items: Tensor, source: Scores, out: _Places
    ) -> tuple[Tensor, Tensor]:
        """(scores, items) [R, K] from the K + 1 best, among which equals stand as they may."""
        k = self.k
        items = torch.where(values > -torch.inf, items, 0)
        equal = (values[:, 1:] == values[:, :-1]) & (values[:, 1:] > -torch.inf)
        if not equal.any():
            return values[:, :k], items[:, :k]
        tie_V = self.tie_V()
        inside = (equal.any(dim=1) & ~equal[:, -1]).nonzero().squeeze(1)
        if len(inside):
            listed = in_order(values[inside, :k], items[inside, :k], tie_V, k)
            values[inside, :k], items[inside, :k] = listed
        # Equals across the end of the list: all of them are looked at.
        border = equal[:, -1].nonzero().squeeze(1)
        if len(border):
            last = values[border, -1:]
            above = torch.where(values[border] > last, values[border], -torch.inf)
            first = self._first_equals(source, out, border, last, tie_V)
            level = torch.where(first > 0, last, -torch.inf)
            listed = in_order(
                torch.cat([above, level], 1), torch.cat([items[border], first], 1), tie_V, k
            )
            values[border, :k], items[border, :k] = listed
        return values[:, :k], torch.where(values > -torch.inf, items, 0)[:, :k]

    def _first_equals(
        self, source: Scores, out: _Places, row_B: Tensor, level_B1: Tensor, tie_V: Tensor
    ) -> Tensor:
        """int64 [B, K]: of some rows, the items of a given score that come first in tie order."""
        ties = torch.full((len(row_B), self.k), len(tie_V), device=tie_V.device)
        items = torch.zeros_like(ties)
        for piece, scores_RC in self._pieces(source, out):
            begin = piece * self.C
            tie_C = nn.functional.pad(tie_V[begin : begin + self.C], (0, self.C), value=len(tie_V))
            tie_BC = torch.where(scores_RC[row_B] == level_B1, tie_C[: self.C], len(tie_V))
            columns = torch.arange(begin, begin + self.C, device=tie_V.device).expand_as(tie_BC)
            ties, chosen = torch.cat([ties, tie_BC], 1).topk(self.k, 1, largest=False)
            items = torch.cat([items, columns], 1).gather(1, chosen)
        return torch.where(ties < len(tie_V), items, 0)


class _Best:
    """The best candidates of each row, of what was looked at so far.

    A strand is looked into where its maximum is above the row's worst of the best. What it holds is
    set aside and merged now and then; until then that worst is too low, which costs time only.

    Args:
        rows: R.
        kept: K.
        columns: C.
        device: of the scores.
    """

    def __init__(self, rows: int, kept: int, columns: int, device: torch.device) -> None:
        self.strands = columns // STRAND
        self.values_RK = torch.full((rows, kept), -torch.inf, device=device)
        self.items_RK = torch.zeros(rows, kept, dtype=torch.int64, device=device)
        self.worst_R1 = self.values_RK[:, -1:]
        self.aside: list[tuple[Tensor, Tensor, Tensor]] = []
        self.aside_P = 0

    def look_at(self, begin: int, scores_RC: Tensor) -> None:
        """Takes the scores of the items from `begin` into account."""
        rows, kept = self.values_RK.shape
        strands_RPS = scores_RC.view(rows, STRAND, self.strands)
        maxima_RS = strands_RPS.amax(1)
        if begin == 0 and kept <= self.strands:
            # So many scores are no less than the maximum in that place: a first bound, from below.
            bound_R1 = maxima_RS.topk(kept, 1).values[:, -1:]
            self.worst_R1 = bound_R1.nextafter(torch.full_like(bound_R1, -torch.inf))
        found_P2 = (maxima_RS > self.worst_R1).nonzero()
        if found_P2.shape[0] == 0:
            return
        row_P, strand_P = found_P2.unbind(1)
        self.aside.append((row_P, strand_P + begin, strands_RPS[row_P, :, strand_P]))
        self.aside_P += found_P2.shape[0]
        if self.aside_P > 4 * rows:
            self.merged()

    def merged(self) -> tuple[Tensor, Tensor]:
        """(scores, items) [R, K], best first; equals of the last score may be any of them."""
        if not self.aside:
            return self.values_RK, self.items_RK
        rows, kept = self.values_RK.shape
        row_P, first_P, values_PS = (torch.cat(parts) for parts in zip(*self.aside, strict=True))
        self.aside, self.aside_P = [], 0
        row_P, order = row_P.sort(stable=True)
        counts_R = torch.bincount(row_P, minlength=rows)
        begins_R = counts_R.cumsum(0) - counts_R
        place_P = torch.arange(len(row_P), device=row_P.device) - begins_R[row_P]
        most = int(counts_R.max())
        values = values_PS.new_full((rows, most, STRAND), -torch.inf)
        values[row_P, place_P] = values_PS[order]
        firsts = first_P.new_zeros(rows, most)
        firsts[row_P, place_P] = first_P[order]
        together = torch.cat([self.values_RK, values.flatten(1)], 1)
        values_RK, chosen_RK = together.topk(kept, 1)
        new_RK = (chosen_RK - kept).clamp_(min=0)
        items_RK = firsts.gather(1, new_RK // STRAND) + new_RK % STRAND * self.strands
        old_RK = self.items_RK.gather(1, chosen_RK.clamp(max=kept - 1))
        self.items_RK = torch.where(chosen_RK < kept, old_RK, items_RK)
        self.values_RK, self.worst_R1 = values_RK, values_RK[:, -1:]
        return self.values_RK, self.items_RK


def refuse_nan(scores_RC: Tensor, name: str) -> None:
    """Refuses NaN, and lifts -inf to the lowest number: -inf stands for 'not a candidate' here.

    Args:
        scores_RC: changed in place.
        name: of the model, for the error.

    Raises:
        ValueError: saying how many rows hold NaN.
    """
    if math.isfinite(scores_RC.sum().item()):
        return
    bad = int(scores_RC.isnan().any(dim=1).sum())
    if bad:
        raise ValueError(
            f"{name} gave NaN scores (to {bad} of the {len(scores_RC)} questions in hand): "
            "nothing can be ranked by them; did training diverge?"
        )
    scores_RC.clamp_(min=LOWEST)


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
        values[inside], items[inside] = in_order(values[inside], items[inside], tie_V, k)
    border = straddles.nonzero().squeeze(1)
    if len(border):
        above, above_items = values[border], items[border]
        last = above[:, -1:]
        tie_BV = torch.where(scores_RV[border] == last, tie_V, len(tie_V))
        chosen_tie, chosen = tie_BV.topk(k, dim=1, largest=False)
        level = torch.where(chosen_tie < len(tie_V), last, -torch.inf)
        above = torch.where(above > last, above, -torch.inf)
        values[border], items[border] = in_order(
            torch.cat([above, level], dim=1), torch.cat([above_items, chosen], dim=1), tie_V, k
        )
    return values, torch.where(values > -torch.inf, items, 0)


def in_order(values: Tensor, items: Tensor, tie_V: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """(scores, items): the k first of each row by (score descending, tie order)."""
    by_tie = tie_V[items].argsort(dim=1)
    values, items = values.gather(1, by_tie), items.gather(1, by_tie)
    values, by_score = values.sort(dim=1, descending=True, stable=True)
    return values[:, :k], items.gather(1, by_score)[:, :k]
