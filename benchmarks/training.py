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
from typing import Any

from benchmarks import sides
from benchmarks.figures import Figure
from benchmarks.record import circumstances, show_again, write
from benchmarks.sides import PEERS
from benchmarks.turns import Player, report_end, report_seconds, wait_for_turn

# What both sides have: our data and trainer, the canonical table, width and length of the model.
TABLES = {
    "ml1m": ("sasrec_ml1m", "ml1m.parquet", 64, 200),
    "beauty": ("sasrec_beauty", "amazon_beauty_s3rec.parquet", 256, 50),
}
PRECISIONS = {"bf16": "bf16-mixed", "32": "32-true"}  # ours: Lightning's


def main() -> None:
    """Runs, prints, writes; or is one of those that take turns."""
    parser = sides.peer_command_line(__doc__, list(TABLES), list(PRECISIONS))
    parser.add_argument("--ours", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.ours:
        play(arguments.ours)
        return
    if show_again(arguments, render):
        return
    sides.check_peer(arguments, "requirements-rectools.txt")
    with tempfile.TemporaryDirectory() as folder:
        results = [compare(name, arguments, Path(folder)) for name in arguments.only]
    report = {**circumstances("training"), "rounds": arguments.rounds, "results": results}
    print(render(report), flush=True)
    write(report, "training")


def settings_of(name: str, table: Path, precision: str) -> list[str]:
    """The recipe's data and trainer, and what makes both models one."""
    recipe, _, width, max_length = TABLES[name]
    return [
        f"experiment={recipe}",
        f"data.path={table.resolve()}",
        f"model.width={width}",
        f"model.max_length={max_length}",
        "model.heads=1",
        "model.layers=2",
        "model.dropout=0.2",
        "model.norm=input",
        "split.validation_users=all",
        "trainer.windows=newest",
        "trainer.average_weights=0",
        f"trainer.precision={precision}",
    ]


def compare(name: str, arguments: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """All rounds on one data set."""
    table = canonical(name, arguments.data, folder)
    _, _, width, max_length = TABLES[name]
    players = []
    for precision in arguments.precisions:
        ours = [sys.executable, "-m", "benchmarks.training", "--ours"]
        settings = json.dumps(settings_of(name, table, precision))
        players.append(Player(f"ours {precision}", [*ours, settings]))
        peer = rectools_epochs(name, table, arguments.peer, precision)
        players.append(Player(f"RecTools {precision}", peer))
    print(f"{name}: width {width}, length {max_length}", flush=True)
    measured = sides.play_rounds(players, arguments.rounds)
    return {"name": name, "width": width, "max_length": max_length, "players": measured}


def rectools_epochs(name: str, table: Path, python: Path, precision: str) -> list[str]:
    """Starts RecTools' side, an epoch a round."""
    _, _, width, max_length = TABLES[name]
    command = [str(python), str(PEERS / "rectools_sasrec.py"), "train", "--table", str(table)]
    command += ["--width", str(width), "--max-length", str(max_length), "--dropout", "0.2"]
    return [*command, "--precision", PRECISIONS[precision]]


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


def play(settings: str) -> None:
    """Our side: everything that `pipelines.train` does in an epoch, but the validation."""
    from pipelines.entry import compose
    from pipelines.fitting import task_and_batches
    from pipelines.schemas import NextItemTrainerConfig, TrainConfig
    from pipelines.train import next_item_job, untrained
    from recsys.training.fit import fit
    from recsys.training.reporting import Silent

    config = compose("train", TrainConfig, json.loads(settings))
    trainer = config.trainer
    assert isinstance(trainer, NextItemTrainerConfig)
    judge = next_item_job(config)
    task, batches = task_and_batches(config, judge, untrained(config, judge))
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
            average_weights=trainer.average_weights,
        )
    import torch

    report_end(threads=torch.get_num_threads())


def render(report: dict[str, Any]) -> str:
    """The table as Markdown."""
    return sides.render(report, "Training epoch", "RecTools", label)


def label(result: dict[str, Any]) -> str:
    """Data and size of the model."""
    return f"{result['name']}, width {result['width']}, length {result['max_length']}"


def figures(report: dict[str, Any]) -> list[Figure]:
    """Ratios and seconds of the counted rounds; peak memory."""
    return sides.figures(report, "RecTools")


if __name__ == "__main__":
    main()
