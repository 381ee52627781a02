r"""Seconds of a training epoch: SASRec with an exact softmax, ours and RecTools' in turns.

    python -m benchmarks.training --peer VENV/bin/python                    # publishers' data
    python -m benchmarks.training --peer VENV/bin/python --data DIR --only ml1m --rounds 3
    python -m benchmarks.training --show benchmarks/results/*_training.json

The same model (2 layers, 1 head, feed-forward as wide as the model, one table for input and
output), the same loss (softmax over the whole catalogue), the same events (all but each user's
newest two), both in float32 and both in bfloat16 where the machine has it. RecTools takes batches
of 128 histories, its default; ours are filled by tokens as the recipe says, checkpoints included.
VENV is described in `peers/requirements-rectools.txt`.

A round is an epoch of each of the four, one after the other; the first is not counted. Prints the
ratio of the medians, and writes everything to `benchmarks/results/`.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.figures import Figure, of_rounds
from benchmarks.record import circumstances, command_line, show_again, write
from benchmarks.turns import Player, report_end, report_seconds, take_turns, wait_for_turn

TABLES = {
    "ml1m": ("sasrec_ml1m", "ml1m.parquet"),
    "beauty": ("sasrec_beauty", "amazon_beauty_s3rec.parquet"),
}
PRECISIONS = {"bf16": "bf16-mixed", "32": "32-true"}  # ours: Lightning's


def main() -> None:
    """Runs, prints, writes; or is one of those that take turns."""
    parser = command_line(__doc__)
    parser.add_argument("--peer", type=Path, help="Python of RecTools' environment")
    parser.add_argument("--data", type=Path, help="folder with the canonical tables")
    parser.add_argument("--only", nargs="+", choices=sorted(TABLES), default=list(TABLES))
    parser.add_argument("--precisions", nargs="+", choices=PRECISIONS, default=list(PRECISIONS))
    parser.add_argument("--rounds", type=int, default=4, help="epochs of each, 1 to warm up")
    parser.add_argument("--ours", nargs=2, help=argparse.SUPPRESS)
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
    report = {
        **circumstances("training"),
        "rounds": arguments.rounds,
        "results": results,
    }
    print(render(report), flush=True)
    write(report, "training")


def settings_of(name: str, table: Path, precision: str) -> list[str]:
    """The recipe's settings, and what makes both models one."""
    recipe, _ = TABLES[name]
    return [
        f"experiment={recipe}",
        f"data.path={table.resolve()}",
        "model.norm=input",
        "split.validation_users=all",
        f"trainer.precision={precision}",
    ]


def compare(name: str, arguments: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """All rounds on one data set."""
    from pipelines.entry import compose
    from pipelines.schemas import TrainConfig

    table = canonical(name, arguments.data, folder)
    model = compose("train", TrainConfig, settings_of(name, table, "auto")).model
    players = []
    for precision in arguments.precisions:
        ours = [sys.executable, "-m", "benchmarks.training", "--ours"]
        shape = ["--width", str(model.width), "--max-length", str(model.max_length)]
        shape += ["--dropout", str(model.dropout), "--precision", PRECISIONS[precision]]
        peer = [str(arguments.peer), str(Path(__file__).parent / "peers" / "rectools_sasrec.py")]
        peer += ["--table", str(table), *shape]
        settings = json.dumps(settings_of(name, table, precision))
        players.append(Player(f"ours {precision}", [*ours, name, settings]))
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


def canonical(name: str, data: Path | None, folder: Path) -> Path:
    """The table that both read: user_id, item_id and position."""
    if data is not None:
        path = data / TABLES[name][1]
        if not path.is_file():
            sys.exit(f"there is no {path}")
        return path
    import numpy as np
    import polars as pl

    from pipelines.entry import compose
    from pipelines.ingest import make_store
    from pipelines.schemas import TrainConfig
    from recsys.histories.store import open_store

    store = open_store(
        make_store(compose("train", TrainConfig, [f"experiment={TABLES[name][0]}"]).data)
    )
    path = folder / f"{name}.parquet"
    users = np.repeat(np.arange(store.users), store.lengths)
    positions = np.arange(len(users)) - np.repeat(store.offsets[:-1], store.lengths)
    pl.DataFrame({"user_id": users, "item_id": store.items, "position": positions}).write_parquet(
        path
    )
    return path


def play(name: str, settings: str) -> None:
    """Our side: everything that `pipelines.train` does in an epoch, but the validation."""
    from pipelines.entry import compose
    from pipelines.fitting import optimization_of
    from pipelines.ingest import make_store
    from pipelines.judging import make_split
    from pipelines.schemas import NextItemTrainerConfig, TrainConfig
    from pipelines.train import make_model
    from recsys.histories.batches import TrainingBatches
    from recsys.histories.store import open_store
    from recsys.objectives.full_softmax import full_softmax
    from recsys.training.fit import fit
    from recsys.training.next_item_task import NextItemTask
    from recsys.training.reporting import Silent

    config = compose("train", TrainConfig, json.loads(settings))
    trainer = config.trainer
    assert isinstance(trainer, NextItemTrainerConfig)
    store = open_store(make_store(config.data))
    split = make_split(config.split, store)
    batches = TrainingBatches(
        store, split.training_ends, config.model.max_length, trainer.tokens_per_batch, config.seed
    )
    task = NextItemTask(
        make_model(config.model, store.catalogue_size, config.seed),
        full_softmax,
        optimization_of(trainer, len(batches)),
    )
    begun = 0.0

    def turn(_model: Any) -> dict[str, float]:
        nonlocal begun
        report_seconds(time.perf_counter() - begun)
        if not wait_for_turn(first=False):
            raise Enough
        begun = time.perf_counter()
        return {"round": begun}

    class Enough(Exception):
        pass

    if not wait_for_turn(first=True):
        return
    begun = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder, contextlib.suppress(Enough):
        fit(
            task,
            batches,
            validate=turn,
            monitor="round",
            max_epochs=1_000_000,
            patience=None,
            validate_every=1,
            precision=trainer.precision,
            checkpoint=Path(folder) / "last.ckpt",
            resume=None,
            reporter=Silent(),
            progress=False,
            checkpoint_seconds=trainer.checkpoint_seconds,
        )
    import torch

    report_end(threads=torch.get_num_threads())


def render(report: dict[str, Any]) -> str:
    """The table as Markdown: ratios first, those of both sides' best precision on top."""
    hardware = report["hardware"]
    lines = [
        f"Training epoch, {hardware['cores']} cores of {hardware['cpu']}, median of "
        f"{report['rounds'] - 1} rounds",
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
                f"| {side_seconds(own):.1f} s | {side_seconds(peer):.1f} s "
                f"| {own['peak_memory_gb']:.1f} GB | {peer['peak_memory_gb']:.1f} GB |"
            )
    return "\n".join(lines) + "\n"


def figures(report: dict[str, Any]) -> list[Figure]:
    """Ratios and seconds of the counted rounds; peak memory."""
    found = []
    for result in report["results"]:
        for precision, own, peer in pairs_of(result):
            name = f"{result['name']}, {precision}"
            found.append(of_rounds(f"{name}: ratio", ratios_of(own, peer), "higher"))
            if precision != "best":
                found.append(of_rounds(f"{name}: ours, s", own["seconds"][1:], "lower"))
                found.append(of_rounds(f"{name}: RecTools, s", peer["seconds"][1:], "lower"))
                memory = [own["peak_memory_gb"]]
                found.append(of_rounds(f"{name}: ours, GB", memory, "lower"))
    return found


Side = dict[str, Any]


def pairs_of(result: dict[str, Any]) -> list[tuple[str, Side, Side]]:
    """Precision, our side and the peer's; the best of both on top, where there are several."""
    sides = {player["name"]: player for player in result["players"]}
    precisions = [name.removeprefix("ours ") for name in sides if name.startswith("ours")]
    pairs = [(p, sides[f"ours {p}"], sides[f"RecTools {p}"]) for p in precisions]
    if len(pairs) > 1:
        own, peer = (min((pair[i] for pair in pairs), key=side_seconds) for i in (1, 2))
        pairs.insert(0, ("best", own, peer))
    return pairs


def ratios_of(own: Side, peer: Side) -> list[float]:
    """The peer's seconds by ours, in each counted round."""
    return [b / a for a, b in zip(own["seconds"], peer["seconds"], strict=True)][1:]


def side_seconds(side: Side) -> float:
    """Median seconds of a side's rounds without the first."""
    return median(side["seconds"][1:])


if __name__ == "__main__":
    main()
