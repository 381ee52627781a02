"""Training in one call."""

import inspect

import pytest
import torch
import yaml

from pipelines.entry import CONF
from recsys.histories.questions import leave_one_out
from recsys.models.next_item.sasrec import SASRec
from recsys.objectives.full_softmax import full_softmax
from recsys.testing import planted_log
from recsys.training.next_item import train_next_item


def test_its_settings_are_those_of_the_command() -> None:
    shipped = yaml.safe_load((CONF / "trainer" / "next_item.yaml").read_text())
    parameters = inspect.signature(train_next_item).parameters
    same = shipped.keys() & parameters.keys()
    assert {"max_epochs", "patience", "tokens_per_batch", "learning_rate", "precision"} <= same
    for name in same:
        assert parameters[name].default == shipped[name], name
    assert shipped["monitor"] == f"ndcg_{parameters['k'].default}"
    rest = {name: shipped[name] for name in ("schedule", "beta2", "weight_decay", "windows")}
    assert rest == {"schedule": "linear", "beta2": 0.98, "weight_decay": 0.0, "windows": "newest"}


def test_it_trains_for_the_objective_and_says_so() -> None:
    store = planted_log(40)
    split = leave_one_out(store)
    losses, said, weights = [], [], []

    def objective(*of: torch.Tensor) -> torch.Tensor:
        losses.append(full_softmax(*of))
        return losses[-1]

    for _ in range(2):
        torch.manual_seed(3)
        model = SASRec(store.catalogue_size, 40, width=8)
        fitted = train_next_item(
            model,
            store,
            split,
            objective=objective,
            max_epochs=3,
            learning_rate=0.02,
            k=5,
            filter_seen=False,
            say=said.append,
        )
        weights.append(model.items.weight.detach().clone())
    assert fitted.epochs == 3 and 1 <= fitted.best_epoch <= 3
    assert len(losses) == 2 * 3 * 20 and losses[59] < losses[0]
    assert said[0].startswith("epoch 1/3") and "ndcg_5" in said[0] and len(said) == 6
    assert torch.equal(*weights)  # torch's seed is the only one


def test_nothing_to_learn_from() -> None:
    store = planted_log(4)
    split = leave_one_out(store)
    model = SASRec(store.catalogue_size, 40, width=8)
    with pytest.raises(ValueError, match=r"tokens_per_batch must be at least 1, not 0"):
        train_next_item(model, store, split, tokens_per_batch=0)
