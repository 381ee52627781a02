"""Training a next-item model in one call, with the settings of `conf/trainer/next_item.yaml`.

    store = open_store(ingest("log.parquet"))
    model = SASRec(store.catalogue_size)
    train_next_item(model, store, leave_one_out(store))

The commands have more settings, memory checks, baselines and a tracked run; this has none of them.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from torch import nn

from recsys.evaluation.ranking import rank
from recsys.evaluation.report import summarise
from recsys.histories.batches import TrainingBatches
from recsys.histories.questions import Split
from recsys.histories.store import HistoryStore
from recsys.objectives.full_softmax import full_softmax
from recsys.training.fit import Fitted, fit
from recsys.training.next_item_task import NextItemTask, Objective
from recsys.training.optimizer import Optimization
from recsys.training.precision import Precision
from recsys.training.reporting import Silent


def train_next_item(
    model: nn.Module,
    store: HistoryStore,
    split: Split,
    *,
    objective: Objective = full_softmax,
    max_epochs: int = 100,
    patience: int | None = 20,
    k: int = 10,
    filter_seen: bool = True,
    tokens_per_batch: int = 6400,
    minimum_batches: int = 20,
    learning_rate: float = 1e-3,
    warmup_steps: int = 100,
    precision: Precision = "auto",
    seed: int = 1,
    say: Callable[[str], None] | None = None,
) -> Fitted:
    """Trains `model` on the training events of a split; the weights best on validation stay in it.

    Weights and dropout are drawn from torch's generator: `torch.manual_seed` before the model is
    made gives the same digits again.

    Args:
        model: hidden states [T, D] of a batch, `encode`, `item_table` and `max_length`, such as
            `recsys.models.next_item.sasrec.SASRec`.
        store: the histories.
        split: which events are training, and the validation questions.
        objective: loss of (hidden_TD, table_VD, targets_T).
        max_epochs: at most so many passes over the training histories.
        patience: stop after so many epochs without a better validation; None never stops early.
        k: NDCG@k on the validation questions chooses.
        filter_seen: leave items of the question's own history out of the candidates; False where
            they may be the answer again (groceries, music).
        tokens_per_batch: events in a batch.
        minimum_batches: steps an epoch has at least; on small logs batches are smaller then.
        learning_rate: of AdamW, at its peak; it falls linearly to zero over `max_epochs`.
        warmup_steps: until the peak is reached; at most a tenth of all steps.
        precision: "auto" takes bf16 where the machine has it in hardware.
        seed: of the order of batches.
        say: takes one line an epoch, such as `print`.

    Raises:
        ValueError: nothing to learn from, or a number out of range.
        TrainingDiverged: the loss is not finite.
    """
    scored: Any = model
    batches = TrainingBatches(
        store, split.training_ends, scored.max_length, tokens_per_batch, seed, minimum_batches
    )
    total_steps = max_epochs * len(batches)
    how = Optimization(
        learning_rate=learning_rate,
        weight_decay=0.0,
        warmup_steps=min(warmup_steps, total_steps // 10),
        total_steps=total_steps,
        schedule="linear",
        beta2=0.98,
    )

    def validate(trained: nn.Module) -> Mapping[str, float]:
        asked: Any = trained
        ranking = rank(asked, store, split.validation, filter_seen=filter_seen, k=k)
        return summarise(ranking, store, [k])

    with tempfile.TemporaryDirectory() as folder:
        return fit(
            NextItemTask(model, objective, how),
            batches,
            validate=validate,
            monitor=f"ndcg_{k}",
            max_epochs=max_epochs,
            patience=patience,
            validate_every=1,
            precision=precision,
            checkpoint=Path(folder) / "last.ckpt",
            resume=None,
            reporter=Silent(),
            progress=False,
            say=say,
        )
