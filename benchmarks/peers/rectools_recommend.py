"""RecTools' `recommend` of everybody's top-10, for `python -m benchmarks.ranking`.

VENV (`requirements-rectools.txt`) runs this file; it knows nothing of this project, so the words it
says (`ready:`, `seconds:`, `measured:`) are those of `benchmarks/turns.py`. Everything else is
RecTools' public API: `Dataset.construct`, `SASRecModel`, `fit` (one batch: the time does not depend
on what the weights are), `recommend`. The newest event of each user is left out, as in the test of
leave-one-out.
"""

from __future__ import annotations

import argparse
import json
import resource
import sys
import time
from importlib.metadata import version
from pathlib import Path

import pandas as pd
import torch
from pytorch_lightning import Trainer
from rectools import Columns
from rectools.dataset import Dataset
from rectools.models import SASRecModel


def main() -> None:
    """Builds, then recommends to everybody whenever it is told to."""
    parser = argparse.ArgumentParser()
    add = parser.add_argument
    add("--table", type=Path, required=True, help="user_id, item_id and position, as Parquet")
    add("--width", type=int, required=True)
    add("--max-length", type=int, required=True)
    add("--precision", choices=("32", "bf16"), required=True)
    options = parser.parse_args()

    def trainer() -> Trainer:
        return Trainer(
            max_steps=1,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            accelerator="cpu",
            devices=1,
        )

    events = pd.read_parquet(options.table, columns=["user_id", "item_id", "position"])
    from_the_end = events.groupby("user_id")["position"].rank(ascending=False)
    events = events[from_the_end > 1]
    seconds = pd.to_timedelta(events.pop("position"), unit="s")
    events[Columns.Datetime] = pd.Timestamp("2000-01-01") + seconds
    events[Columns.Weight] = 1.0
    dataset = Dataset.construct(events)
    model = SASRecModel(
        n_blocks=2,
        n_heads=1,
        n_factors=options.width,
        session_max_len=options.max_length,
        loss="softmax",
        get_trainer_func=trainer,
        recommend_torch_device="cpu",
    )
    model.fit(dataset)
    users = events[Columns.User].unique()
    rows = 0
    print("ready:", flush=True)
    while sys.stdin.readline().strip() == "go":
        begun = time.perf_counter()
        low = options.precision == "bf16"
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=low):
            rows = len(model.recommend(users, dataset, k=10, filter_viewed=True))
        print(f"seconds: {time.perf_counter() - begun}", flush=True)
    measured = {
        "rows": rows,
        "peak_memory_gb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20,
        "threads": torch.get_num_threads(),
        "versions": {name: version(name) for name in ("rectools", "torch", "pytorch-lightning")},
    }
    print(f"measured: {json.dumps(measured)}", flush=True)


if __name__ == "__main__":
    main()
