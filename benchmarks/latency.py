r"""Milliseconds until one user's top-10 is there, from a recommender that is loaded and warm.

    python -m benchmarks.latency                              # one thread; lengths 200 and 50
    python -m benchmarks.latency --items 100000 --requests 500
    python -m benchmarks.latency --show benchmarks/results/*_latency.json

SASRec, width 64, 2 layers, 12,000 items, random weights, saved and loaded as any trained model. A
request is one history of raw ids (text), as long as the model reads, of random items: `recommend`
looks the ids up, encodes them, scores the catalogue, leaves out what the history holds, and gives
raw ids and scores. Requests come one after the other; before those that count, 100 warm up. Prints
p50, p90 and p99 and writes them, round by round (ten to a run), to `benchmarks/results/`.
"""

from __future__ import annotations

import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch

from benchmarks.figures import Figure, of_rounds
from benchmarks.record import circumstances, command_line, show_again, write
from recsys.histories.vocabulary import Vocabulary
from recsys.models.next_item.sasrec import SASRec
from recsys.serving.recommender import Recommender
from recsys.training.saved_model import save_model

ROUNDS = 10
WARM_UP = 100
PERCENTILES = (50, 90, 99)


def main() -> None:
    """Runs, prints, writes."""
    parser = command_line(__doc__)
    parser.add_argument("--items", type=int, default=12_000)
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--lengths", nargs="+", type=int, default=[200, 50])
    parser.add_argument("--requests", type=int, default=2000)
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    if show_again(arguments, render):
        return
    if arguments.requests < ROUNDS:
        sys.exit(f"--requests: {ROUNDS} at least")
    torch.set_num_threads(arguments.threads)
    report = {
        **circumstances("latency"),
        "items": arguments.items,
        "width": arguments.width,
        "threads": arguments.threads,
        "settings": {"requests": arguments.requests, "layers": 2, "k": 10},
        "results": [
            {
                "name": f"length {length}",
                "milliseconds": measure(
                    loaded(arguments.items, arguments.width, length), length, arguments.requests
                ),
            }
            for length in arguments.lengths
        ],
    }
    print(render(report), flush=True)
    write(report, "latency")


def loaded(items: int, width: int, length: int) -> Recommender:
    """A recommender with random weights, by way of a folder as training leaves it."""
    vocabulary = Vocabulary(pl.Series("item", [f"sku-{i:07d}" for i in range(items)]), 1)
    arguments = {"catalogue_size": vocabulary.size, "max_length": length, "width": width}
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as folder:
        facts = {"name": "SASRec", "item_vocabulary": vocabulary.fingerprint}
        save_model(Path(folder), SASRec(**arguments, layers=2), {**arguments, "layers": 2}, facts)
        return Recommender.load(Path(folder), vocabulary)


def measure(recommender: Recommender, length: int, requests: int) -> list[list[float]]:
    """Milliseconds of each request, by rounds."""
    ids = recommender.items.raw_ids.to_list()
    draw = np.random.Generator(np.random.PCG64(0))
    histories = [
        [ids[i] for i in draw.integers(0, len(ids), length)] for _ in range(WARM_UP + requests)
    ]
    taken = []
    for history in histories:
        begun = time.perf_counter()
        found = recommender.recommend([history], k=10).frame
        taken.append(1000 * (time.perf_counter() - begun))
        assert len(found) == 10
    return [[round(ms, 4) for ms in part] for part in np.array_split(taken[WARM_UP:], ROUNDS)]


def render(report: dict[str, Any]) -> str:
    """The table as Markdown."""
    hardware = report["hardware"]
    lines = [
        f"One user's top-10 of {report['items']:,} items, SASRec width {report['width']}, "
        f"{report['threads']} threads on {hardware['cores']} cores of {hardware['cpu']}, "
        f"{report['settings']['requests']:,} requests",
        "",
        "| history | p50 | p90 | p99 | p50 of the best–worst round |",
        "|---|--:|--:|--:|--:|",
    ]
    for result in report["results"]:
        rounds = result["milliseconds"]
        cells = [f"{np.percentile(np.concatenate(rounds), p):.2f} ms" for p in PERCENTILES]
        middle = [float(np.median(part)) for part in rounds]
        cells.append(f"{min(middle):.2f}–{max(middle):.2f} ms")
        lines.append(f"| {result['name']} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def figures(report: dict[str, Any]) -> list[Figure]:
    """The percentiles of each round."""
    return [
        of_rounds(
            f"{result['name']}: p{p}, ms",
            [float(np.percentile(part, p)) for part in result["milliseconds"]],
            "lower",
        )
        for result in report["results"]
        for p in PERCENTILES
    ]


if __name__ == "__main__":
    main()
