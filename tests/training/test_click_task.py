"""Training a ranker resumes to the last digit, with everything random switched on."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from recsys.batch import ClickBatch
from recsys.evaluation.click_metrics import auc
from recsys.evaluation.click_scores import score_clicks
from recsys.histories.click_batches import ClickBatches
from recsys.histories.clicks import click_split
from recsys.histories.negatives import NegativeSampler
from recsys.histories.questions import user_share
from recsys.histories.store import HistoryStore
from recsys.models.click.din import DIN
from recsys.objectives.clicks import OccurrenceDecay, binary_cross_entropy
from recsys.training.click_task import ClickTask
from recsys.training.fit import Fitted, fit
from recsys.training.optimizer import Optimization
from recsys.training.reporting import Silent


class Killed(Exception):
    """Stands for a process that is gone."""


def train(
    checkpoint: Path, resume: Path | None = None, kill_at: int | None = None
) -> tuple[Fitted, dict[str, Tensor]]:
    draw = np.random.default_rng(0)
    store = HistoryStore.from_lists([draw.integers(1, 60, 20).tolist() for _ in range(30)], 60)
    base = user_share(store, 0.1)
    negatives = NegativeSampler(store, base.training_ends, "uniform", 2, seed=0)
    split = click_split(store, base, history="events", negatives=negatives)
    torch.manual_seed(0)
    model = DIN(
        61, {}, {}, {}, {}, 10, width=8, hidden=[8], attention_units=8, activation="dice",
        dropout=0.2, embedding_dropout=0.1,
    )  # fmt: skip
    decay, steps = OccurrenceDecay(0.01), 0

    def penalty(trained: nn.Module, batch: ClickBatch) -> Tensor:
        nonlocal steps
        steps += 1
        if steps == kill_at:
            raise Killed
        loss: Tensor = decay(trained, batch)
        return loss

    task = ClickTask(
        model, binary_cross_entropy, penalty, Optimization(0.01, 0.0, 2, 100, "linear", beta2=0.98),
    )  # fmt: skip
    asked = split.validation
    fitted = fit(
        task,
        ClickBatches(split, None, 10, 200, seed=0),
        validate=lambda m: {"auc": auc(asked.labels, score_clicks(m, split.view, asked, None, 10))},
        monitor="auc",
        max_epochs=3,
        patience=None,
        validate_every=1,
        precision="32",
        checkpoint=checkpoint,
        resume=resume,
        reporter=Silent(),
        progress=False,
        checkpoint_seconds=0.0,
        average_weights=0.9,
    )
    return fitted, model.state_dict()


def test_a_ranker_keeps_its_kernels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Batches of one number of rows: their shapes come again."""

    def forbidden() -> None:
        raise AssertionError("few kernels are for next-item models")

    monkeypatch.setattr("recsys.training.fit.keep_few_kernels", forbidden)
    train(tmp_path / "last.ckpt")


def test_interrupted_and_resumed_equals_uninterrupted(tmp_path: Path) -> None:
    whole, weights = train(tmp_path / "whole.ckpt")
    for kill_at in (4, 8, 11):
        cut = tmp_path / f"cut{kill_at}.ckpt"
        with pytest.raises(Killed):
            train(cut, kill_at=kill_at)
        fitted, resumed = train(cut, resume=cut)
        assert (fitted.best_epoch, fitted.best_score) == (whole.best_epoch, whole.best_score)
        for name, value in weights.items():
            assert torch.equal(resumed[name], value), (kill_at, name)
