r"""FuxiCTR's DIN, and the same network with mean pooling, on the ML-1M click table.

    VENV/bin/python benchmarks/peers/fuxictr_din.py --data DIR --model din --seed 1 --output OUT
    VENV/bin/python benchmarks/peers/fuxictr_din.py --data DIR --model mean --side-fields ...

VENV is described in `requirements-fuxictr.txt` and knows nothing of this project. DIR holds
`ml1m.parquet`, `ml1m_items.parquet` and `ml1m_users.parquet`. The table: label = rating ≥ 4; of a
user's n events the last k = max(1, ⌈n/10⌉) are test, the k before them validation, the rest but the
first 5 training; the history of each is the newest 50 earlier positives.

Everything but the table, the GAUC and the loop's printing is FuxiCTR's: `LongCTRDataLoader`, `DIN`,
`MaskedAveragePooling`, and `fit` with its checkpoint of the best epoch (validation AUC), learning
rate divided by 10 and stop where that no longer rises (`--patience`).

Prints validation and test AUC, GAUC and logloss after each epoch. In OUT appear `test_scores.npy`
(float64, of the best epoch, rows by user, then position), `validation_scores.npy` likewise, and
`settings.json` (settings, versions, counts, what was printed, digests of the rows' order).
"""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import os
import platform
import secrets
import tempfile
import time
from collections import OrderedDict
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

FIRST_SKIPPED = 5
STAGES = ("train", "valid", "test")
EXPECTED_ROWS = {"train": 764_017, "valid": 102_697, "test": 102_697}
USER_FIELDS = ("gender", "age_code", "occupation_code")


def main() -> None:
    """Prepares, trains, writes."""
    options = parse()
    options.output.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        vocabularies = prepare(options.data, folder, options.users, options.side_fields)
        result, scores = train(options, folder, vocabularies)
    for name, values in scores.items():
        buffer = io.BytesIO()
        np.save(buffer, values)
        write(options.output / f"{name}_scores.npy", buffer.getvalue())
    settings = json.dumps(result, indent=1).encode()
    write(options.output / "settings.json", settings)
    print(f"{options.output}: the epoch with the best validation AUC, {result['best_epoch']}")


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--data", type=Path, required=True, help="folder of ml1m.parquet and its side tables")
    add("--output", type=Path, required=True, help="folder for scores and settings")
    add("--model", choices=("din", "mean"), default="din")
    add("--seed", type=int, default=1)
    add("--epochs", type=int, default=10, help="at most")
    add("--patience", type=int, default=2, help="epochs without gain until it stops")
    add("--learning-rate", type=float, default=1e-3)
    add("--keep-learning-rate", action="store_true", help="do not divide it where AUC falls")
    add("--batch-size", type=int, default=4096)
    add("--embedding-dim", type=int, default=32)
    add("--hidden-units", type=int, nargs="+", default=[256, 128])
    add("--activation", choices=("ReLU", "Dice"), default="ReLU", help="of the MLP")
    add("--dropout", type=float, default=0.0, help="of the MLP")
    add("--embedding-regulariser", type=float, default=0.0, help="λ of λ/2 · |all embeddings|²")
    add("--attention-units", type=int, nargs="+", default=[64])
    add("--attention-activation", choices=("ReLU", "Dice"), default="Dice")
    add("--attention-dropout", type=float, default=0.0)
    add("--softmax", action="store_true", help="of the attention weights")
    add("--max-length", type=int, default=50, help="newest positives of the history")
    add("--side-fields", action="store_true", help="gender, age, occupation, genres, year too")
    add("--gpu", type=int, default=-1, help="its number; -1: none")
    add("--threads", type=int, default=1)
    add("--workers", type=int, default=1, help="processes that load; 0: none beside this one")
    add("--users", type=int, help="of the first so many users only, to try the script")
    return parser.parse_args()


def prepare(data: Path, folder: Path, users: int | None, side: bool) -> dict[str, Any]:
    """Writes the tables that FuxiCTR's LongCTR loader reads.

    Args:
        data: where ml1m.parquet and its side tables lie.
        folder: where `train`, `valid`, `test`, `user_info` and `item_info` go, as Parquet.
        users: only so many; None for all.
        side: whether the side fields are among the columns.

    Returns:
        `sizes`: number of codes of each field, 0 (padding) included; `rows` of each stage.
    """
    events = pl.read_parquet(data / "ml1m.parquet").sort("user_id", "position")
    if users is not None:
        events = events.filter(pl.col("user_id").rank("dense") <= users)
    items = pl.read_parquet(data / "ml1m_items.parquet").sort("item_id")
    people = pl.read_parquet(data / "ml1m_users.parquet").sort("user_id")
    items = items.with_columns(item_index=pl.int_range(1, pl.len() + 1))  # 0 is padding
    position, n = pl.int_range(pl.len()).over("user_id"), pl.len().over("user_id")
    last = (n + 9) // 10
    stage = (
        pl.when(position >= n - last)
        .then(pl.lit("test"))
        .when(position >= n - 2 * last)
        .then(pl.lit("valid"))
        .when(position >= FIRST_SKIPPED)
        .then(pl.lit("train"))
    )
    label = pl.col("label").cast(pl.Int64)
    events = (
        events.join(items.select("item_id", "item_index"), on="item_id", maintain_order="left")
        .with_columns(
            stage=stage,
            label=label,
            user_index=pl.col("user_id").rank("dense").cast(pl.Int64) - 1,
            # The history is full_item_seq[:seq_len] of user_info: the positives before this event.
            seq_len=(label.cum_sum() - label).over("user_id"),
        )
        .join(people.select("user_id", *USER_FIELDS), on="user_id", maintain_order="left")
        .with_columns(user_id=pl.col("user_index") + 1)
    )
    sizes = {
        "user_id": events["user_index"].n_unique() + 1,
        "item_id": len(items) + 1,
    }
    columns = ["user_index", "item_index", "seq_len", "user_id", "label"]
    if side:
        events = events.with_columns(codes(pl.col(name)).alias(name) for name in USER_FIELDS)
        sizes |= {name: int(events[name].to_numpy().max()) + 1 for name in USER_FIELDS}
        columns += USER_FIELDS
    for name in STAGES:
        events.filter(stage=name).select(columns).write_parquet(folder / f"{name}.parquet")
    positives = pl.col("item_index").filter(pl.col("label") == 1)
    events.group_by("user_index").agg(positives.alias("full_item_seq")).sort(
        "user_index"
    ).write_parquet(folder / "user_info.parquet")
    write_items(items, folder / "item_info.parquet", sizes, side)
    rows = {name: int((events["stage"] == name).sum()) for name in STAGES}
    if users is None and rows != EXPECTED_ROWS:
        raise ValueError(f"{data} gives {rows} rows; the ML-1M click table has {EXPECTED_ROWS}")
    return {"sizes": sizes, "rows": rows}


def write_items(items: pl.DataFrame, path: Path, sizes: dict[str, int], side: bool) -> None:
    """One row per item_index; row 0 is padding, with 0 in every field."""
    table = items.select("item_index", item_id="item_index")
    padding: dict[str, Any] = {"item_index": 0, "item_id": 0}
    if side:
        genres = {
            name: 1 + i
            for i, name in enumerate(items["genres"].explode().drop_nulls().unique().sort())
        }
        longest = int(items["genres"].list.len().max())
        coded = [[genres[name] for name in row] for row in items["genres"].to_list()]
        table = table.with_columns(
            genres=pl.Series([row + [0] * (longest - len(row)) for row in coded]),
            year=codes(items["year"]),
        )
        padding |= {"genres": [0] * longest, "year": 0}
        sizes |= {"genres": len(genres) + 1, "year": int(table["year"].to_numpy().max()) + 1}
    first = pl.DataFrame([padding], schema=table.schema)
    pl.concat([first, table]).write_parquet(path)


def codes(values: Any) -> Any:
    """1, 2, … in the order of the values; 0 stays for padding."""
    return values.rank("dense").cast(pl.Int64)


def feature_map(folder: Path, sizes: dict[str, int], options: argparse.Namespace) -> Any:
    """FuxiCTR's description of the fields, through the JSON file that it reads itself."""
    from fuxictr.features import FeatureMap

    fields: list[tuple[str, dict[str, Any]]] = [
        (name, {"type": "meta"}) for name in ("user_index", "item_index", "seq_len")
    ]
    for name, size in sizes.items():
        source = "user" if name == "user_id" or name in USER_FIELDS else "item"
        spec = {"source": source, "type": "categorical", "vocab_size": size, "padding_idx": 0}
        if name == "genres":
            spec |= {"type": "sequence", "max_len": 0, "feature_encoder": AVERAGED}
        fields.append((name, spec))
    described = {
        "dataset_id": "ml1m",
        "labels": ["label"],
        "features": [{name: spec} for name, spec in fields],
    }
    (folder / "feature_map.json").write_text(json.dumps(described))
    made = FeatureMap("ml1m", str(folder))
    made.load(str(folder / "feature_map.json"), {"embedding_dim": options.embedding_dim})
    assert isinstance(made.features, OrderedDict)
    return made


AVERAGED = "layers.MaskedAveragePooling()"


def train(
    options: argparse.Namespace, folder: Path, prepared: dict[str, Any]
) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Trains with FuxiCTR's own loop.

    Returns:
        What goes into settings.json, and the best epoch's scores of "validation" and "test".
    """
    import torch
    from fuxictr.pytorch.torch_utils import seed_everything
    from model_zoo.LongCTR.DIN.DIN import DIN

    class Printing(DIN):
        """DIN whose evaluation after each epoch also looks at the test rows, and prints both."""

        def eval_step(self) -> None:
            values = {
                stage: measure(tables[stage], self.predict(loaders[stage]))
                for stage in ("valid", "test")
            }
            seconds = round(time.monotonic() - begun, 1)
            epochs.append({"epoch": len(epochs) + 1, "seconds": seconds, **values})
            for stage, name in (("valid", "validation"), ("test", "test")):
                shown = "  ".join(f"{k} {v:.4f}" for k, v in values[stage].items())
                print(f"epoch {len(epochs)}  {seconds:8.1f} s  {name:10}  {shown}", flush=True)
            self.checkpoint_and_earlystop(values["valid"])
            self.train()

    torch.set_num_threads(options.threads)
    seed_everything(options.seed)
    described = feature_map(folder, prepared["sizes"], options)
    tables = {stage: pl.read_parquet(folder / f"{stage}.parquet") for stage in STAGES}
    loaders = {stage: loader(described, folder, stage, options) for stage in STAGES}
    model = Printing(
        described,
        gpu=options.gpu,
        model_root=str(folder),
        metrics=["AUC", "logloss"],
        monitor="AUC",
        verbose=0,
        optimizer="adam",
        loss="binary_crossentropy",
        learning_rate=options.learning_rate,
        early_stop_patience=options.patience,
        reduce_lr_on_plateau=not options.keep_learning_rate,
        embedding_dim=options.embedding_dim,
        dnn_hidden_units=options.hidden_units,
        dnn_activations=options.activation,
        net_dropout=options.dropout,
        embedding_regularizer=options.embedding_regulariser or None,
        attention_hidden_units=options.attention_units,
        attention_hidden_activations=options.attention_activation,
        attention_dropout=options.attention_dropout,
        din_use_softmax=options.softmax,
    )
    if options.model == "mean":
        model.attention_layers = mean_pooling()
    Path(model.model_dir).mkdir(exist_ok=True)
    parameters = sum(p.numel() for p in model.parameters())
    print(f"{options.model}: {prepared['rows']}, {parameters:,} parameters", flush=True)
    epochs: list[dict[str, Any]] = []
    begun = time.monotonic()
    model.fit(loaders["train"], epochs=options.epochs, validation_data=loaders["valid"])
    seconds = time.monotonic() - begun
    scores = {"validation": model.predict(loaders["valid"]), "test": model.predict(loaders["test"])}
    best = max(epochs, key=lambda epoch: epoch["valid"]["AUC"])
    result = {
        "options": {k: v for k, v in vars(options).items() if k not in ("data", "output")},
        "rows": prepared["rows"],
        "sizes": prepared["sizes"],
        "parameters": parameters,
        "epochs": epochs,
        "best_epoch": best["epoch"],
        "validation": measure(tables["valid"], scores["validation"]),
        "test": measure(tables["test"], scores["test"]),
        "seconds": round(seconds, 1),
        "test_rows_sha256": digest(tables["test"]),
        "versions": {name: version(name) for name in ("fuxictr", "torch", "numpy", "scikit-learn")},
        "machine": {"processor": platform.processor(), "cpus": os.cpu_count()},
    }
    return result, scores


def loader(described: Any, folder: Path, stage: str, options: argparse.Namespace) -> Any:
    """FuxiCTR's own, of the rows of a stage."""
    from model_zoo.LongCTR.longctr_dataloader import LongCTRDataLoader

    return LongCTRDataLoader(
        described,
        str(folder / f"{stage}.parquet"),
        user_info=str(folder / "user_info.parquet"),
        item_info=str(folder / "item_info.parquet"),
        batch_size=options.batch_size,
        shuffle=stage == "train",
        num_workers=options.workers,
        max_len=options.max_length,
    )


def mean_pooling() -> Any:
    """What stands in the place of DIN_Attention; pools as FuxiCTR's DCNv2 for such tables does."""
    import torch
    from fuxictr.pytorch.layers import MaskedAveragePooling

    class MeanPooling(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.pooling = MaskedAveragePooling()

        def forward(self, target: Any, sequence: Any, mask: Any) -> Any:
            return self.pooling(sequence, mask)

    return MeanPooling()


def measure(rows: pl.DataFrame, scores: np.ndarray) -> dict[str, float]:
    """AUC, GAUC (weighted by rows, over users with both classes) and logloss."""
    from sklearn.metrics import log_loss, roc_auc_score

    labels = rows["label"].to_numpy()
    rank = pl.col("score").rank("average").over("user_index")
    of_users = (
        rows.select("user_index", "label", score=pl.Series(scores))
        .with_columns(rank=rank)
        .group_by("user_index")
        .agg(
            n=pl.len().cast(pl.Float64),
            p=pl.col("label").sum().cast(pl.Float64),
            ranks=pl.col("rank").filter(pl.col("label") == 1).sum(),
        )
        .filter((pl.col("p") > 0) & (pl.col("p") < pl.col("n")))
        .with_columns(
            auc=(pl.col("ranks") - pl.col("p") * (pl.col("p") + 1) / 2)
            / (pl.col("p") * (pl.col("n") - pl.col("p")))
        )
    )
    return {
        "AUC": float(roc_auc_score(labels, scores)),
        "GAUC": float(np.average(of_users["auc"], weights=of_users["n"])),
        "logloss": float(log_loss(labels, scores)),
    }


def digest(rows: pl.DataFrame) -> str:
    """SHA-256 of user, item and label of the rows in their order, to compare tables by."""
    columns = np.column_stack([rows[name] for name in ("user_id", "item_index", "label")])
    return hashlib.sha256(np.ascontiguousarray(columns, dtype="<i8").tobytes()).hexdigest()


def write(path: Path, content: bytes) -> None:
    """Writes a file whole or not at all."""
    aside = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    aside.write_bytes(content)
    aside.replace(path)


if __name__ == "__main__":
    main()
