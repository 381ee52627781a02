r"""Exact ranking of a large catalogue, against the matrix product that it cannot do without.

    python -m benchmarks.large_ranking                   # 200,000 users × 500,000 items
    python -m benchmarks.large_ranking --users 5000 --items 100000

Random vectors, one answer per user, a top-10 list and the answer's exact rank for everybody, items
of the history left out. The bound is a chunked `torch.mm` of the same two matrices, which ranks
nothing. Both go in turns over portions of the users, so that whatever slows the machine slows both.
Prints users per second and the share of the bound, and writes everything to `benchmarks/results/`.
"""

from __future__ import annotations

import argparse
import resource
import time
from statistics import median
from typing import Any

import numpy as np
import polars as pl
import torch
from torch import Tensor, nn

from benchmarks.figures import Figure, of_rounds
from benchmarks.record import circumstances, command_line, show_again, write
from recsys.batch import HistoryBatch
from recsys.evaluation.ranking import rank
from recsys.histories.questions import Questions
from recsys.histories.store import HistoryStore
from recsys.histories.vocabulary import Vocabulary

HISTORY = 5


class RandomVectors(nn.Module):
    """A vector for each user, by the first item of the history, and one for each item."""

    def __init__(self, items: int, width: int) -> None:
        super().__init__()
        draw = torch.Generator().manual_seed(0)
        self.max_length = HISTORY
        self.table_VD = torch.randn(items + 1, width, generator=draw)

    def encode(self, batch: HistoryBatch) -> Tensor:
        """[B, D]."""
        return self.table_VD[batch.items_BL[:, 0]].roll(1, 1)

    def item_table(self) -> Tensor:
        """[V, D]."""
        return self.table_VD


def main() -> None:
    """Runs, prints, writes."""
    parser = command_line(__doc__)
    parser.add_argument("--users", type=int, default=200_000)
    parser.add_argument("--items", type=int, default=500_000)
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--portions", type=int, default=20, help="of the users, in turns")
    arguments = parser.parse_args()
    if show_again(arguments, render):
        return
    report = {**circumstances("large_ranking"), **measure(arguments)}
    print(render(report), flush=True)
    write(report, "large_ranking")


def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    """Seconds of each portion, ours and the bound's."""
    store = random_store(arguments.users, arguments.items)
    model = RandomVectors(arguments.items, arguments.width)
    ours, bound = [], []
    for users in np.array_split(np.arange(arguments.users), arguments.portions):
        ends = np.full(len(users), HISTORY)
        begun = time.perf_counter()
        rank(model, store, Questions(users, ends, ends, ends + 1), filter_seen=True, k=10)
        ours.append(time.perf_counter() - begun)
        begun = time.perf_counter()
        multiply(model, torch.from_numpy(store.items[store.offsets[users]].astype(np.int64)))
        bound.append(time.perf_counter() - begun)
        print(f"{users[-1] + 1:,} users  {ours[-1]:.1f} s  product alone {bound[-1]:.1f} s")
    return {
        "users": arguments.users,
        "items": arguments.items,
        "width": arguments.width,
        "threads": torch.get_num_threads(),
        "seconds": ours,
        "seconds_bound": bound,
        "peak_memory_gb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20,
    }


def multiply(model: RandomVectors, first_items: Tensor) -> None:
    """The product that ranking cannot do without, in the pieces that were fastest here."""
    rows, columns = 256, 1024
    queries_ND = model.table_VD[first_items].roll(1, 1)
    out = torch.empty(rows, columns)
    for queries_RD in queries_ND.split(rows):
        for items_CD in model.table_VD.split(columns):
            torch.mm(queries_RD, items_CD.T, out=out[: len(queries_RD), : len(items_CD)])


def random_store(users: int, items: int) -> HistoryStore:
    """Histories of random items."""
    draw = np.random.Generator(np.random.PCG64(0))
    length = HISTORY + 1
    names = {"user": users, "item": items}
    vocabularies = {
        name: Vocabulary(pl.Series(name, np.arange(n)), first)
        for (name, n), first in zip(names.items(), (0, 1), strict=True)
    }
    return HistoryStore(
        offsets=np.arange(users + 1) * length,
        items=draw.integers(1, items + 1, users * length).astype(np.int32),
        user_vocabulary=vocabularies["user"],
        item_vocabulary=vocabularies["item"],
    )


def render(report: dict[str, Any]) -> str:
    """One row, ratio first."""
    ours, bound = report["seconds"], report["seconds_bound"]
    share = median(shares(report))
    hardware = report["hardware"]
    return (
        f"{report['users']:,} users × {report['items']:,} items, width {report['width']}, "
        f"{report['threads']} threads on {hardware['cores']} cores of {hardware['cpu']}\n\n"
        "| share of the bound | users/s | product alone | peak memory |\n|--:|--:|--:|--:|\n"
        f"| {100 * share:.0f} % | {report['users'] / sum(ours):,.0f} "
        f"| {report['users'] / sum(bound):,.0f} | {report['peak_memory_gb']:.2f} GB |\n"
    )


def shares(report: dict[str, Any]) -> list[float]:
    """The bound's seconds by ours, portion by portion."""
    return [b / a for a, b in zip(report["seconds"], report["seconds_bound"], strict=True)]


def figures(report: dict[str, Any]) -> list[Figure]:
    """Share of the bound, users per second, peak memory."""
    each = report["users"] / len(report["seconds"])
    return [
        of_rounds("share of the bound", shares(report), "higher"),
        of_rounds("users/s", [each / s for s in report["seconds"]], "higher"),
        of_rounds("GB", [report["peak_memory_gb"]], "lower"),
    ]


if __name__ == "__main__":
    main()
