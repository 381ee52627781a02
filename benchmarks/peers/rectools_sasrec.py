"""RecTools' SASRec, for `python -m benchmarks.training` and `python -m benchmarks.ranking`.

    VENV/bin/python rectools_sasrec.py train …        # an epoch a round
    VENV/bin/python rectools_sasrec.py recommend …    # everybody's top-10 a round

VENV (`requirements-rectools.txt`) runs this file; it knows nothing of this project, so the words it
says (`ready:`, `seconds:`, `measured:`) are those of `benchmarks/turns.py`. Everything else is
RecTools' public API: `Dataset.construct`, `SASRecModel`, `fit`, `recommend`. Left out are, as
leave-one-out does, the newest two events of each user in training and the newest one before
recommending; the model that recommends has seen one batch, for its weights do not change the time.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import resource
import sys
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from pytorch_lightning import Callback, Trainer
from rectools import Columns
from rectools.dataset import Dataset
from rectools.models import SASRecModel


def main() -> None:
    """Builds, then plays a round whenever it is told to."""
    parser = argparse.ArgumentParser()
    add = parser.add_argument
    add("job", choices=("train", "recommend"))
    add("--table", type=Path, required=True, help="user_id, item_id and position, as Parquet")
    add("--width", type=int, required=True)
    add("--max-length", type=int, required=True)
    add("--dropout", type=float, default=0.2)
    add("--batch-size", type=int, default=128)
    add("--precision", choices=("32-true", "bf16-mixed"), required=True)
    options = parser.parse_args()
    trains = options.job == "train"

    def trainer() -> Trainer:
        return Trainer(
            max_steps=-1 if trains else 1,
            max_epochs=1_000_000 if trains else 1,
            precision=options.precision if trains else "32-true",
            callbacks=[TakingTurns()] if trains else [],
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            accelerator="cpu",
            devices=1,
        )

    events = pd.read_parquet(options.table, columns=["user_id", "item_id", "position"])
    from_the_end = events.groupby("user_id")["position"].rank(ascending=False)
    events = events[from_the_end > (2 if trains else 1)]
    seconds = pd.to_timedelta(events.pop("position"), unit="s")
    events[Columns.Datetime] = pd.Timestamp("2000-01-01") + seconds
    events[Columns.Weight] = 1.0
    dataset = Dataset.construct(events)
    model = SASRecModel(
        n_blocks=2,
        n_heads=1,
        n_factors=options.width,
        dropout_rate=options.dropout,
        session_max_len=options.max_length,
        loss="softmax",
        lr=0.001,
        batch_size=options.batch_size,
        get_trainer_func=trainer,
        recommend_torch_device="cpu",
    )
    with contextlib.suppress(Enough):
        model.fit(dataset)
    if not trains:
        recommend(model, dataset, events[Columns.User].unique(), options.precision == "bf16-mixed")
    measured = {
        "peak_memory_gb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20,
        "threads": torch.get_num_threads(),
        "versions": {name: version(name) for name in ("rectools", "torch", "pytorch-lightning")},
    }
    print(f"measured: {json.dumps(measured)}", flush=True)


def recommend(model: Any, dataset: Any, users: Any, bf16: bool) -> None:
    """Recommends to everybody in each round; in bfloat16 the whole call is under autocast."""
    print("ready:", flush=True)
    while sys.stdin.readline().strip() == "go":
        begun = time.perf_counter()
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=bf16):
            model.recommend(users, dataset, k=10, filter_viewed=True)
        print(f"seconds: {time.perf_counter() - begun}", flush=True)


class Enough(Exception):
    """Nobody wants another epoch."""


class TakingTurns(Callback):
    """An epoch is a round."""

    def __init__(self) -> None:
        self.begun = 0.0
        self.first = True

    def on_train_epoch_start(self, trainer: Any, module: Any) -> None:
        """Waits for its turn."""
        if self.first:
            print("ready:", flush=True)
        self.first = False
        if sys.stdin.readline().strip() != "go":
            raise Enough
        self.begun = time.perf_counter()

    def on_train_epoch_end(self, trainer: Any, module: Any) -> None:
        """Says how long it took."""
        print(f"seconds: {time.perf_counter() - self.begun}", flush=True)


if __name__ == "__main__":
    main()
