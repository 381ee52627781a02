r"""A training step on catalogues of 200 thousand to 5 million items.

    python -m benchmarks.large_catalogue                           # 7 GB of memory in all
    python -m benchmarks.large_catalogue --all-rows-up-to 5000000  # and 9 GB more
    python -m benchmarks.large_catalogue --negatives 64 --own-negatives

SASRec of width 64 with 2 layers, sampled softmax, averaged weights; 32 histories of 200 random
items, each item as likely as any other, so that hardly a row is touched twice in a step. Timed is
everything that `pipelines.train` does in a step: forward, backward, optimizer, averaging.

Catalogues go in turns, 5 steps each, touched rows (`trainer.row_updates=touched`) and, where it
fits, all rows; the first 40 rounds are not counted: until then steps meet pages of the large tables
that nobody has touched, and the system has to make each of them. Prints step times as multiples of
the smallest catalogue's with touched rows, and writes everything to `benchmarks/results/`.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.figures import Figure, of_rounds
from benchmarks.record import circumstances, command_line, show_again, write
from benchmarks.turns import Player, report_end, report_seconds, take_turns, wait_for_turn

HISTORIES, LENGTH, WIDTH = 32, 200, 64
STEPS, WARM_UP = 5, 40  # of a round; rounds


def main() -> None:
    """Runs, prints, writes; or is one of those that take turns."""
    parser = command_line(__doc__)
    parser.add_argument("--items", nargs="+", type=int, default=[200_000, 1_000_000, 5_000_000])
    parser.add_argument("--all-rows-up-to", type=int, default=1_000_000, metavar="ITEMS")
    parser.add_argument("--negatives", type=int, default=512)
    parser.add_argument("--own-negatives", action="store_true", help="of each token, not shared")
    parser.add_argument(
        "--rounds", type=int, default=60, help=f"of {STEPS} steps, {WARM_UP} warm up"
    )
    parser.add_argument("--precision", choices=("auto", "32", "bf16"), default="auto")
    parser.add_argument("--play", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.play:
        play(json.loads(arguments.play))
        return
    if show_again(arguments, render):
        return
    if arguments.rounds <= WARM_UP:
        sys.exit(f"--rounds: the first {WARM_UP} are not counted, so {WARM_UP + 1} at least")
    report = {**circumstances("large_catalogue"), **measure(arguments)}
    print(render(report), flush=True)
    write(report, "large_catalogue")


def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    """The median step of each round, of each catalogue and way."""
    settings = {
        "negatives": arguments.negatives,
        "shared_negatives": not arguments.own_negatives,
        "precision": arguments.precision,
    }
    cases = [
        {"items": items, "row_updates": updates}
        for items in sorted(arguments.items)
        for updates in ("touched", "all")
        if updates == "touched" or items <= arguments.all_rows_up_to
    ]
    command = [sys.executable, "-m", "benchmarks.large_catalogue", "--play"]
    players = [
        Player(f"{case['items']:,} items, {case['row_updates']}", [*command, json.dumps(own)])
        for case in cases
        for own in [{**case, **settings}]
    ]
    take_turns(players, arguments.rounds)
    results = [
        {**case, "seconds": player.seconds, **player.end()}
        for case, player in zip(cases, players, strict=True)
    ]
    return {
        **settings,
        "histories": HISTORIES,
        "length": LENGTH,
        "width": WIDTH,
        "results": results,
    }


def play(case: dict[str, Any]) -> None:
    """One catalogue: steps as `pipelines.train` takes them."""
    import torch

    from recsys.batch import HistoryBatch
    from recsys.models.next_item.sasrec import SASRec
    from recsys.objectives.sampled_softmax import SampledSoftmax
    from recsys.training.fit import fit
    from recsys.training.next_item_task import NextItemTask
    from recsys.training.optimizer import Optimization
    from recsys.training.reporting import Silent
    from recsys.training.touched_rows import choose_row_updates

    V = case["items"] + 1
    torch.manual_seed(0)

    class Enough(Exception):
        pass

    class RandomHistories:
        """New histories for each step. A step is over when the next batch is asked for."""

        epoch = 0

        def __len__(self) -> int:
            return 1_000_000_000

        def __iter__(self) -> Iterator[Any]:
            first = True
            lengths_B = torch.full((HISTORIES,), LENGTH)
            while wait_for_turn(first):
                first, seconds = False, []
                for _ in range(STEPS):
                    items_BL = torch.randint(1, V, (HISTORIES, LENGTH + 1))
                    inputs = HistoryBatch(items_BL[:, :-1].contiguous(), lengths_B)
                    begun = time.perf_counter()
                    yield inputs, items_BL[:, 1:].flatten()
                    seconds.append(time.perf_counter() - begun)
                report_seconds(median(seconds))
            raise Enough

        def identity(self) -> dict[str, Any]:
            return {}

        def state_dict(self) -> dict[str, Any]:
            return {}

        def load_state_dict(self, state: dict[str, Any]) -> None:
            pass

    model = SASRec(V, LENGTH, WIDTH, layers=2)
    choose_row_updates(model, case["row_updates"])
    objective = SampledSoftmax(
        torch.randint(1, 100, (V,)),
        negatives=case["negatives"],
        sampling="popularity",
        shared_negatives=case["shared_negatives"],
        temperature=1.0,
        touched_rows=case["row_updates"] == "touched",
    )
    how = Optimization(1e-3, 0.0, 0, 1_000_000, "constant", beta2=0.98)
    with tempfile.TemporaryDirectory() as folder, contextlib.suppress(Enough):
        fit(
            NextItemTask(model, objective, how),
            RandomHistories(),
            validate=lambda _: {},
            monitor="none",
            max_epochs=1,
            patience=None,
            validate_every=1,
            precision=case["precision"],
            checkpoint=Path(folder) / "last.ckpt",
            resume=None,
            reporter=Silent(),
            progress=False,
            checkpoint_seconds=1e9,  # its size grows with the catalogue
            average_weights=0.998,
        )
    report_end(threads=torch.get_num_threads())


def step_seconds(result: dict[str, Any]) -> float:
    """Median of the rounds that count."""
    return median(result["seconds"][WARM_UP:])


def render(report: dict[str, Any]) -> str:
    """The table as Markdown, ratios first."""
    hardware, results = report["hardware"], report["results"]
    by = {(result["items"], result["row_updates"]): result for result in results}
    sizes = sorted({result["items"] for result in results})
    smallest = step_seconds(by[sizes[0], "touched"])
    whose = "shared" if report["shared_negatives"] else "of each token"
    lines = [
        f"A step of {report['histories']} × {report['length']} events, width {report['width']}, "
        f"{report['negatives']} negatives ({whose}), precision {report['precision']}, "
        f"{results[0]['threads']} threads on {hardware['cores']} cores of {hardware['cpu']}",
        "",
        "| items | touched rows | all rows | touched rows | all rows | memory, touched | all |",
        "|--:|--:|--:|--:|--:|--:|--:|",
    ]
    for items in sizes:
        pair = [by.get((items, updates)) for updates in ("touched", "all")]
        cells = [
            *(f"{step_seconds(one) / smallest:.2f}×" if one else "" for one in pair),
            *(f"{1000 * step_seconds(one):.0f} ms" if one else "" for one in pair),
            *(f"{one['peak_memory_gb']:.1f} GB" if one else "" for one in pair),
        ]
        lines.append(" | ".join([f"| {items:,}", *cells]) + " |")
    return "\n".join(lines) + "\n"


def figures(report: dict[str, Any]) -> list[Figure]:
    """Milliseconds of a step, for `benchmarks.compare`."""
    return [
        of_rounds(
            f"{result['items']:,} items, {result['row_updates']} rows, ms a step",
            [1000 * seconds for seconds in result["seconds"][WARM_UP:]],
            "lower",
        )
        for result in report["results"]
    ]


if __name__ == "__main__":
    main()
