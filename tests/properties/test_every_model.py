"""No model without the laws, and a log that only attention by content can read."""

from __future__ import annotations

import ast
import importlib
import inspect
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

import recsys.models.click as click_room
import recsys.models.next_item as room
from recsys.batch import HistoryBatch
from recsys.evaluation.metrics import hit_rate
from recsys.evaluation.ranking import Encoder, Scorer, rank
from recsys.histories.batches import TrainingBatches
from recsys.histories.questions import Split, leave_one_out
from recsys.histories.store import HistoryStore
from recsys.models.baselines.ease import EASE
from recsys.models.baselines.item_knn import ItemKNN
from recsys.models.baselines.markov import LastItemMarkov
from recsys.models.baselines.popularity import Popularity
from recsys.models.next_item.sasrec import SASRec
from recsys.objectives.full_softmax import full_softmax
from recsys.testing import ClickLaws, NextItemLaws, planted_log
from recsys.training.optimizer import learning_rate_factor


def next_item_models() -> set[str]:
    found = set()
    for file in Path(room.__file__).parent.glob("*.py"):
        module = importlib.import_module(f"{room.__name__}.{file.stem}".removesuffix(".__init__"))
        for name, value in vars(module).items():
            own = inspect.isclass(value) and value.__module__ == module.__name__
            if own and hasattr(value, "encode") and hasattr(value, "item_table"):
                found.add(name)
    return found


def rankers() -> set[str]:
    found = set()
    for file in Path(click_room.__file__).parent.glob("*.py"):
        module = importlib.import_module(
            f"{click_room.__name__}.{file.stem}".removesuffix(".__init__")
        )
        for name, value in vars(module).items():
            own = inspect.isclass(value) and value.__module__ == module.__name__
            if own and issubclass(value, nn.Module):
                forward = inspect.signature(value.forward)
                # A ranker says how much of a history it sees; its parts do not.
                if (
                    list(forward.parameters)[1:2] == ["batch"]
                    and forward.return_annotation == "Tensor"
                    and "max_length" in inspect.signature(value).parameters
                ):
                    found.add(name)
    return found


def models_in_the_kit(folder: Path) -> set[str]:
    """Names called in `build` of the classes that inherit the laws."""
    found = set()
    for file in folder.glob("test_*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.ClassDef) and any(
                isinstance(base, ast.Name)
                and base.id in (NextItemLaws.__name__, ClickLaws.__name__)
                for base in node.bases
            ):
                found |= {
                    call.func.id
                    for call in ast.walk(node)
                    if isinstance(call, ast.Call) and isinstance(call.func, ast.Name)
                }
    return found


def test_every_model_is_in_the_kit() -> None:
    models = next_item_models()
    assert "SASRec" in models
    missing = models - models_in_the_kit(Path(__file__).parents[1] / "models")
    assert not missing, f"{missing} inherit no NextItemLaws in tests/models"


def test_every_ranker_is_in_the_kit() -> None:
    assert rankers() == {"DIN", "MeanPooling", "LogisticRegression"}
    missing = rankers() - models_in_the_kit(Path(__file__).parents[1] / "models")
    assert not missing, f"{missing} inherit no ClickLaws in tests/models"


class MeanPooling(nn.Module):
    """The mean of all items so far: what is left of SASRec without attention."""

    def __init__(self, catalogue_size: int, width: int) -> None:
        super().__init__()
        self.max_length = 40
        self.items = nn.Embedding(catalogue_size, width, padding_idx=0)
        self.mix = nn.Sequential(
            nn.Linear(width, 4 * width), nn.ReLU(), nn.Linear(4 * width, width)
        )
        self.output = nn.Embedding(catalogue_size, width)

    def forward(self, batch: HistoryBatch) -> Tensor:
        sums_BLD = self.items(batch.items_BL).cumsum(1)
        counts_L1 = torch.arange(1, sums_BLD.shape[1] + 1)[:, None]
        mixed: Tensor = self.mix((sums_BLD / counts_L1).flatten(0, 1)[batch.packed_T])
        return mixed

    def encode(self, batch: HistoryBatch) -> Tensor:
        return self(batch)[batch.lengths_B.cumsum(0) - 1]

    def item_table(self) -> Tensor:
        return self.output.weight


def train(model: nn.Module, store: HistoryStore, split: Split, epochs: int) -> float:
    """Trains until the log is read or the epochs are over; the best HR@1 on the way."""
    batches = TrainingBatches(store, split.training_ends, 40, 1500, seed=0)
    optimizer = torch.optim.Adam(model.parameters(), lr=4e-3)
    total = epochs * len(batches)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: learning_rate_factor(step, 20, total, "linear")
    )
    best = 0.0
    for epoch in range(epochs):
        model.train()
        for inputs, targets_T in batches:
            full_softmax(model(inputs), model.item_table(), targets_T).backward()  # type: ignore[operator,no-untyped-call]
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
        if epoch % 2:
            best = max(best, hit_rate_at_1(model, store, split))  # type: ignore[arg-type]
        if best >= 0.95:
            break
    return best


def hit_rate_at_1(model: Encoder | Scorer, store: HistoryStore, split: Split) -> float:
    ranking = rank(model, store, split.test, filter_seen=False, k=1)
    return float(hit_rate(ranking.answers, 1).mean())


def test_sasrec_reads_the_planted_log() -> None:
    torch.manual_seed(0)
    store = planted_log()
    split = leave_one_out(store)
    model = SASRec(store.catalogue_size, 40, width=64, heads=1, layers=1, dropout=0.0)
    assert train(model, store, split, epochs=24) >= 0.95


def test_nobody_else_reads_it() -> None:
    torch.manual_seed(0)
    store = planted_log()
    split = leave_one_out(store)
    pooling = MeanPooling(store.catalogue_size, 32)
    assert train(pooling, store, split, epochs=12) <= 0.3
    log = (
        np.asarray(store.items),
        store.offsets,
        split.training_ends,
        store.catalogue_size,
    )
    others = [
        Popularity().fit(*log),
        LastItemMarkov().fit(*log),
        ItemKNN(50, 0.0, 3).fit(*log),
        EASE(100.0).fit(*log),
    ]
    for model in others:
        assert hit_rate_at_1(model, store, split) <= 0.3, model
