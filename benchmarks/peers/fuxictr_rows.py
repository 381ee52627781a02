"""FuxiCTR's DIN, some steps at a time, for `python -m benchmarks.click_training`.

VENV (`requirements-fuxictr.txt`) runs this file; it knows nothing of this project, so the words it
says (`ready:`, `seconds:`, `measured:`) are those of `benchmarks/turns.py`. The table is that of
`fuxictr_din.py`; loader, model and loop are FuxiCTR's own.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import resource
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from fuxictr.pytorch.torch_utils import seed_everything
from fuxictr_din import feature_map, loader, mean_pooling, prepare
from model_zoo.LongCTR.DIN.DIN import DIN


def main() -> None:
    """Prepares, then trains for a round whenever it is told to."""
    parser = argparse.ArgumentParser()
    add = parser.add_argument
    add("--data", type=Path, required=True, help="folder of ml1m.parquet and its side tables")
    add("--model", choices=("din", "mean"), required=True)
    add("--precision", choices=("32-true", "bf16-mixed"), required=True)
    add("--steps", type=int, required=True, help="in a round")
    add("--users", type=int, help="of the first so many users only")
    add("--batch-size", type=int, default=4096)
    add("--embedding-dim", type=int, default=32)
    add("--hidden-units", type=int, nargs="+", default=[256, 128])
    add("--attention-units", type=int, default=64)
    add("--activation", choices=("ReLU", "Dice"), default="ReLU", help="of the MLP")
    add("--max-length", type=int, default=50)
    add("--threads", type=int, required=True)
    add("--workers", type=int, default=1, help="processes that load; 0: none beside this one")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    seed_everything(1)
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        sizes = prepare(options.data, folder, options.users, side=True)["sizes"]
        described = feature_map(folder, sizes, options)
        batches = loader(described, folder, "train", options)
        model = TakingTurns(
            described,
            gpu=-1,
            model_root=str(folder),
            metrics=["AUC", "logloss"],
            monitor="AUC",
            verbose=0,
            optimizer="adam",
            loss="binary_crossentropy",
            learning_rate=1e-3,
            embedding_dim=options.embedding_dim,
            dnn_hidden_units=options.hidden_units,
            dnn_activations=options.activation,
            attention_hidden_units=[options.attention_units],
        )
        if options.model == "mean":
            model.attention_layers = mean_pooling()
        model.take_turns(options.steps, options.precision == "bf16-mixed")
        with contextlib.suppress(Enough):
            model.fit(batches, epochs=1_000_000)
    measured = {
        "rows": model.rows,
        "parameters": sum(p.numel() for p in model.parameters()),
        "peak_memory_gb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20,
        "threads": torch.get_num_threads(),
        "workers": options.workers,
        "versions": {name: version(name) for name in ("fuxictr", "torch")},
    }
    print(f"measured: {json.dumps(measured)}", flush=True)


class Enough(Exception):
    """Nobody wants another round."""


class TakingTurns(DIN):  # type: ignore[misc]
    """DIN whose training stops after some steps until it is told to go on."""

    def take_turns(self, steps: int, bf16: bool) -> None:
        """How many steps a round has, and in what precision the products are."""
        self.steps, self.bf16 = steps, bf16
        self.done, self.begun = 0, 0.0
        self.rows: list[int] = []

    def train_step(self, batch_data: Any) -> Any:
        """A step; before the first of a round, its turn is waited for."""
        if self.done % self.steps == 0:
            if self.done:
                print(f"seconds: {time.perf_counter() - self.begun}", flush=True)
            else:
                print("ready:", flush=True)
            if sys.stdin.readline().strip() != "go":
                raise Enough
            self.begun = time.perf_counter()
            self.rows.append(0)
        self.done += 1
        self.rows[-1] += len(self.get_labels(batch_data))
        return super().train_step(batch_data)

    def forward(self, inputs: Any) -> Any:
        """In bfloat16 where asked for; the loss is float32."""
        with torch.autocast("cpu", torch.bfloat16, enabled=self.bf16):
            out = super().forward(inputs)
        return {"y_pred": out["y_pred"].float()}

    def eval_step(self) -> None:
        """Nothing is evaluated here."""


if __name__ == "__main__":
    main()
