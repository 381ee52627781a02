r"""Seconds of an exact full ranking with all metrics, against RecTools' top-10 alone, in turns.

    python -m benchmarks.ranking --peer VENV/bin/python                    # publishers' data
    python -m benchmarks.ranking --peer VENV/bin/python --data DIR --only ml1m --rounds 3
    python -m benchmarks.ranking --show benchmarks/results/*_ranking.json

Ours is what `pipelines.evaluate` does once the model is loaded: every test user of leave-one-out,
the exact rank of the answer in the whole catalogue, top-20 lists, all metrics, one row a question.
RecTools' is `recommend` of a top-10 to the same users from the same histories, which judges
nothing. Both leave out what a history holds, both models have 2 layers, 1 head and the sizes
of `benchmarks.training`; their weights are random, on which the time does not depend.

Both in float32, as our pipelines rank; under autocast to bfloat16 RecTools' `recommend` fails. VENV
is described in `peers/requirements-rectools.txt`. A round is one call of each, one after the other;
the first is not counted. Prints the ratio of the medians, and writes everything to
`benchmarks/results/`.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks import sides
from benchmarks.figures import Figure
from benchmarks.record import circumstances, show_again, write
from benchmarks.sides import PEERS
from benchmarks.training import PRECISIONS, TABLES, canonical, label, settings_of
from benchmarks.turns import Player, report_end, report_seconds, wait_for_turn


def main() -> None:
    """Runs, prints, writes; or is one of those that take turns."""
    parser = sides.peer_command_line(__doc__, list(TABLES), ["32"])
    parser.add_argument("--ours", nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.ours:
        play(*arguments.ours)
        return
    if show_again(arguments, render):
        return
    sides.check_peer(arguments, "requirements-rectools.txt")
    with tempfile.TemporaryDirectory() as folder:
        results = [compare(name, arguments, Path(folder)) for name in arguments.only]
    report = {**circumstances("ranking"), "rounds": arguments.rounds, "results": results}
    print(render(report), flush=True)
    write(report, "ranking")


def compare(name: str, arguments: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """All rounds on one data set."""
    table = canonical(name, arguments.data, folder)
    _, _, width, max_length = TABLES[name]
    settings = json.dumps(settings_of(name, table, "auto"))
    players = []
    for precision in arguments.precisions:
        ours = [sys.executable, "-m", "benchmarks.ranking", "--ours", settings, precision]
        peer = [str(arguments.peer), str(PEERS / "rectools_sasrec.py"), "recommend"]
        peer += ["--table", str(table), "--width", str(width), "--max-length", str(max_length)]
        players.append(Player(f"ours {precision}", ours))
        players.append(
            Player(f"RecTools {precision}", [*peer, "--precision", PRECISIONS[precision]])
        )
    print(f"{name}: width {width}, length {max_length}", flush=True)
    measured = sides.play_rounds(players, arguments.rounds)
    return {"name": name, "width": width, "max_length": max_length, "players": measured}


def play(settings: str, precision: str) -> None:
    """Our side: a model judged on all test questions, the store and the model in memory."""
    import torch

    from pipelines.entry import compose
    from pipelines.ingest import make_store
    from pipelines.judging import Judge, make_split
    from pipelines.schemas import TrainConfig
    from pipelines.train import make_model
    from recsys.histories.store import open_store

    config = compose("train", TrainConfig, json.loads(settings))
    store = open_store(make_store(config.data))
    judge = Judge(store, make_split(config.split, store), config.evaluation, filter_seen=True)
    model: Any = make_model(config.model, store.catalogue_size, config.seed)
    questions = 0
    first = True
    while wait_for_turn(first):
        first = False
        begun = time.perf_counter()
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=precision == "bf16"):
            questions = judge.ask(model, "test")[2]["questions"]
        report_seconds(time.perf_counter() - begun)
    report_end(threads=torch.get_num_threads(), questions=questions)


def render(report: dict[str, Any]) -> str:
    """The table as Markdown."""
    title = "Exact ranking with all metrics against a top-10 alone"
    return sides.render(report, title, "RecTools", label)


def figures(report: dict[str, Any]) -> list[Figure]:
    """Ratios and seconds of the counted rounds; peak memory."""
    return sides.figures(report, "RecTools")


if __name__ == "__main__":
    main()
