r"""Rows a second in training a ranker on ML-1M's clicks, ours and FuxiCTR's in turns.

    python -m benchmarks.click_training --peer VENV/bin/python --data DIR
    python -m benchmarks.click_training --peer VENV/bin/python --data DIR --only din --steps 20
    python -m benchmarks.click_training --show benchmarks/results/*_click_training.json

The click table of docs/ranking.md (764,017 rows, the newest 50 earlier positives, user, gender,
age, occupation, item, genres, year): DIN against FuxiCTR's DIN, mean pooling against the same
network with mean pooling. Widths are the same: 32 for every field, 64 hidden units of attention,
256 and 128 of the network; batches of 4,096; both in float32, and both in bfloat16 where asked for.
FuxiCTR's defaults are Dice in the attention and ReLU in the network; ours has one activation for
both, so it plays twice, with Dice (more work than theirs) and with ReLU (less). Ours trains as its
recipe says, with embeddings that decay, biases and averaged weights; FuxiCTR's has none of these.
VENV is described in `peers/requirements-fuxictr.txt`, DIR holds `ml1m.parquet` and its side tables.

A round is some steps of each, from loading to update, one after the other; the first is not
counted. Prints the ratio of rows a second (median of the rounds), and writes everything to
`benchmarks/results/`.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks import sides
from benchmarks.figures import Figure
from benchmarks.record import circumstances, show_again, write
from benchmarks.sides import PEERS
from benchmarks.turns import Player, report_end, report_seconds, wait_for_turn

# Ours by name: the settings; the peer's model.
MODELS = {
    "din": (
        {"Dice": ["model.activation=dice"], "ReLU": ["model.activation=relu"]},
        "din",
    ),
    "mean pooling": ({"ReLU": ["model=mean_pooling", "model.activation=relu"]}, "mean"),
}
PRECISIONS = {"bf16": "bf16-mixed", "32": "32-true"}  # ours: the peer's


def main() -> None:
    """Runs, prints, writes; or is one of those that take turns."""
    parser = sides.peer_command_line(__doc__, list(MODELS), list(PRECISIONS))
    parser.add_argument("--steps", type=int, default=100, help="in a round")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--workers", type=int, default=1, help="FuxiCTR's processes that load")
    parser.add_argument("--ours", nargs=3, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.ours:
        settings, steps, threads = arguments.ours
        play(json.loads(settings), int(steps), int(threads))
        return
    if show_again(arguments, render):
        return
    sides.check_peer(arguments, "requirements-fuxictr.txt")
    if arguments.data is None or not (arguments.data / "ml1m.parquet").is_file():
        sys.exit("--data: a folder with ml1m.parquet, ml1m_items.parquet and ml1m_users.parquet")
    results = [compare(name, arguments) for name in arguments.only]
    report = {
        **circumstances("click_training"),
        "rounds": arguments.rounds,
        "settings": {"steps": arguments.steps, "ours": {n: settings_of(n) for n in MODELS}},
        "results": results,
    }
    print(render(report), flush=True)
    write(report, "click_training")


def settings_of(name: str) -> dict[str, list[str]]:
    """By activation, what is said to ours beside data and precision."""
    same = ["model.width=32", "model.field_width=32", "model.hidden=[256,128]"]
    same += ["trainer.rows_per_batch=4096", "model.max_length=50"]
    same += ["model.attention_units=64"] * (name == "din")
    return {
        activation: ["experiment=din_ml1m", *own, *same]
        for activation, own in MODELS[name][0].items()
    }


def compare(name: str, arguments: argparse.Namespace) -> dict[str, Any]:
    """All rounds of one model."""
    table = f"data.path={(arguments.data / 'ml1m.parquet').resolve()}"
    numbers = ["--steps", str(arguments.steps), "--threads", str(arguments.threads)]
    players = []
    for precision in arguments.precisions:
        for activation, own in settings_of(name).items():
            settings = json.dumps([*own, table, f"trainer.precision={precision}"])
            command = [sys.executable, "-m", "benchmarks.click_training", "--ours", settings]
            command += [str(arguments.steps), str(arguments.threads)]
            players.append(Player(f"ours {activation} {precision}", command))
        peer = [str(arguments.peer), str(PEERS / "fuxictr_rows.py")]
        peer += ["--data", str(arguments.data), "--model", MODELS[name][1], *numbers]
        peer += ["--precision", PRECISIONS[precision], "--workers", str(arguments.workers)]
        players.append(Player(f"FuxiCTR {precision}", peer))
    print(name, flush=True)
    return {"name": name, "players": sides.play_rounds(players, arguments.rounds)}


class Rounds:
    """Training batches that stop after some steps until it is their turn again.

    Args:
        batches: of `recsys.histories.click_batches`.
        steps: in a round.
    """

    def __init__(self, batches: Any, steps: int) -> None:
        self.batches = batches
        self.steps = steps
        self.done, self.begun = 0, 0.0
        self.rows: list[int] = []

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[Any]:
        """Yields what the batches yield."""
        for inputs, labels_B in self.batches:
            if self.done % self.steps == 0:
                if self.done:
                    report_seconds(time.perf_counter() - self.begun)
                if not wait_for_turn(first=self.done == 0):
                    raise Enough
                self.begun = time.perf_counter()
                self.rows.append(0)
            self.done += 1
            self.rows[-1] += len(labels_B)
            yield inputs, labels_B

    def identity(self) -> dict[str, Any]:
        """Of the batches."""
        found: dict[str, Any] = self.batches.identity()
        return found

    def state_dict(self) -> dict[str, Any]:
        """Of the batches."""
        found: dict[str, Any] = self.batches.state_dict()
        return found

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Of the batches."""
        self.batches.load_state_dict(state)


class Enough(Exception):
    """Nobody wants another round."""


def play(settings: list[str], steps: int, threads: int) -> None:
    """Our side: everything that `pipelines.train` does between two validations."""
    import torch

    from pipelines.entry import compose
    from pipelines.fitting import task_and_batches
    from pipelines.schemas import ClickTrainerConfig, TrainConfig
    from pipelines.train import click_job, untrained
    from recsys.training.fit import fit
    from recsys.training.reporting import Silent

    torch.set_num_threads(threads)
    config = compose("train", TrainConfig, settings)
    trainer = config.trainer
    assert isinstance(trainer, ClickTrainerConfig)
    judge = click_job(config)
    model = untrained(config, judge)
    task, batches = task_and_batches(config, judge, model)
    rounds = Rounds(batches, steps)
    epochs = 0

    def validate(_model: Any) -> dict[str, float]:
        nonlocal epochs
        epochs += 1
        return {"epoch": epochs}

    with tempfile.TemporaryDirectory() as folder, contextlib.suppress(Enough):
        fit(
            task,
            rounds,
            validate=validate,
            monitor="epoch",
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
    parameters = sum(p.numel() for p in model.parameters())
    report_end(rows=rounds.rows, parameters=parameters, threads=torch.get_num_threads())


def render(report: dict[str, Any]) -> str:
    """The table as Markdown."""
    title = f"Rows a second in training, {report['settings']['steps']} steps a round"
    return sides.render(report, title, "FuxiCTR", lambda result: str(result["name"]))


def figures(report: dict[str, Any]) -> list[Figure]:
    """Ratios and rows a second of the counted rounds; peak memory."""
    return sides.figures(report, "FuxiCTR")


if __name__ == "__main__":
    main()
