r"""Seconds of an exact full ranking with all metrics, against RecTools' top-10 alone, in turns.

    python -m benchmarks.ranking --peer VENV/bin/python                    # publishers' data
    python -m benchmarks.ranking --peer VENV/bin/python --data DIR --only ml1m --rounds 3
    python -m benchmarks.ranking --show benchmarks/results/*_ranking.json

Ours is what `pipelines.evaluate` does once the model is loaded: every test user of leave-one-out,
the exact rank of the answer in the whole catalogue, top-20 lists, all metrics, one row a question.
RecTools' is `recommend` of a top-10 to the same users from the same histories, which judges
nothing. Both leave out what a history holds, both models have 2 layers, 1 head and the width and
length of the recipe; their weights are random, on which the time does not depend.

Both in float32, as our pipelines rank, and both with autocast to bfloat16 around the whole call,
for models: our scores stay float32 under it. VENV is described in
`peers/requirements-rectools.txt`. A round is one call of each of the four, one after the other; the
first is not counted. Prints the ratio of the medians, and writes everything to
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

from benchmarks.record import circumstances, command_line, show_again, write
from benchmarks.training import (
    TABLES,
    canonical,
    figures,
    pairs_of,
    ratios_of,
    settings_of,
    side_seconds,
)
from benchmarks.turns import Player, report_end, report_seconds, take_turns, wait_for_turn

__all__ = ["figures"]  # read by `benchmarks.compare`, the same as of training
PRECISIONS = ("32", "bf16")


def main() -> None:
    """Runs, prints, writes; or is one of those that take turns."""
    parser = command_line(__doc__)
    parser.add_argument("--peer", type=Path, help="Python of RecTools' environment")
    parser.add_argument("--data", type=Path, help="folder with the canonical tables")
    parser.add_argument("--only", nargs="+", choices=sorted(TABLES), default=list(TABLES))
    parser.add_argument("--precisions", nargs="+", choices=PRECISIONS, default=list(PRECISIONS))
    parser.add_argument("--rounds", type=int, default=4, help="calls of each, 1 to warm up")
    parser.add_argument("--ours", nargs=3, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.ours:
        play(*arguments.ours)
        return
    if show_again(arguments, render):
        return
    if arguments.peer is None or not arguments.peer.is_file():
        sys.exit("--peer: Python of an environment as in peers/requirements-rectools.txt")
    if arguments.rounds < 2:
        sys.exit("--rounds: the first is not counted, so 2 at least")
    with tempfile.TemporaryDirectory() as folder:
        results = [compare(name, arguments, Path(folder)) for name in arguments.only]
    report = {**circumstances("ranking"), "rounds": arguments.rounds, "results": results}
    print(render(report), flush=True)
    write(report, "ranking")


def compare(name: str, arguments: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """All rounds on one data set."""
    from pipelines.entry import compose
    from pipelines.schemas import TrainConfig

    table = canonical(name, arguments.data, folder)
    settings = settings_of(name, table, "auto")
    model = compose("train", TrainConfig, settings).model
    players = []
    for precision in arguments.precisions:
        ours = [sys.executable, "-m", "benchmarks.ranking", "--ours"]
        peer = [str(arguments.peer), str(Path(__file__).parent / "peers" / "rectools_recommend.py")]
        peer += ["--table", str(table), "--width", str(model.width)]
        peer += ["--max-length", str(model.max_length), "--precision", precision]
        players.append(Player(f"ours {precision}", [*ours, name, json.dumps(settings), precision]))
        players.append(Player(f"RecTools {precision}", peer))
    print(f"{name}: width {model.width}, length {model.max_length}", flush=True)
    take_turns(players, arguments.rounds)
    return {
        "name": name,
        "width": model.width,
        "max_length": model.max_length,
        "players": [
            {"name": player.name, "seconds": player.seconds, **player.end()} for player in players
        ],
    }


def play(name: str, settings: str, precision: str) -> None:
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
    """The table as Markdown: ratios first, those of both sides' best precision on top."""
    hardware = report["hardware"]
    lines = [
        f"Exact ranking with all metrics against a top-10 alone, {hardware['cores']} cores of "
        f"{hardware['cpu']}, median of {report['rounds'] - 1} rounds",
        "",
        "| data | ratio | lowest–highest | ours | RecTools | memory, ours | RecTools |",
        "|---|--:|--:|--:|--:|--:|--:|",
    ]
    for result in report["results"]:
        for precision, own, peer in pairs_of(result):
            ratios = ratios_of(own, peer)
            lines.append(
                f"| {result['name']}, width {result['width']}, length {result['max_length']}, "
                f"{precision} | {side_seconds(peer) / side_seconds(own):.1f}× "
                f"| {min(ratios):.1f}–{max(ratios):.1f} "
                f"| {side_seconds(own):.2f} s | {side_seconds(peer):.1f} s "
                f"| {own['peak_memory_gb']:.1f} GB | {peer['peak_memory_gb']:.1f} GB |"
            )
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
