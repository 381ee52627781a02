"""The judge asks the right questions, baselines are found again only where they fit, and every
setting reaches training.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pipelines.entry import compose
from pipelines.fitting import fit_model
from pipelines.judging import Judge, baselines
from pipelines.schemas import EvaluationConfig, TrainConfig
from pipelines.train import make_model
from recsys.histories.questions import leave_one_out
from recsys.models.baselines.popularity import Popularity
from recsys.testing import planted_log
from recsys.training.optimizer import Optimization
from recsys.training.touched_rows import touched_tables

EVALUATION = EvaluationConfig("next_item", [5, 10], filter_seen=False, tie_seed=0, baselines=True)


@pytest.fixture
def judge() -> Judge:
    store = replace(planted_log(30), manifest={"fingerprint": "planted"})
    return Judge(store, leave_one_out(store), EVALUATION, filter_seen=False)


def popularity(judge: Judge) -> Popularity:
    store = judge.store
    return Popularity().fit(
        np.asarray(store.items), store.offsets, judge.split.training_ends, store.catalogue_size
    )


@pytest.mark.parametrize(("stage", "back"), [("val", 2), ("test", 1)])
def test_every_stage_asks_its_own_questions(judge: Judge, stage: str, back: int) -> None:
    store = judge.store
    metrics, frame, _ = judge.ask(popularity(judge), stage)
    asked = store.offsets[1:] - back
    assert frame["answer"].to_list() == store.item_vocabulary.raw(store.items[asked]).to_list()
    assert metrics[f"{stage}/loo-full-all/ndcg_10"] == pytest.approx(frame["ndcg_10"].mean())


def test_baselines_are_fitted_on_training_and_tuned_on_validation(
    judge: Judge, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RECSYS_HOME", str(tmp_path))
    model = popularity(judge)
    tuned_by: list[np.ndarray] = []

    def tune(_: Any, __: Any, ends: np.ndarray, *others: Any, repeats: bool) -> list[Any]:
        assert np.array_equal(ends, judge.split.training_ends) and repeats
        tuned_by.append(others[-1](model))
        return []

    monkeypatch.setattr("recsys.models.baselines.tuning.tune_baselines", tune)
    baselines(judge, "ndcg_10", repeats=True)
    assert np.array_equal(tuned_by[0], judge.ask(model, "val")[1]["ndcg_10"])
    assert not np.array_equal(tuned_by[0], judge.ask(model, "test")[1]["ndcg_10"])


class FittedAgain(Exception):
    """The baselines were not found."""


def test_baselines_are_found_again_only_where_they_fit(
    judge: Judge, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RECSYS_HOME", str(tmp_path))

    def fit_again(*_: Any, **__: Any) -> None:
        raise FittedAgain

    other_cut_offs = replace(judge, evaluation=replace(EVALUATION, ks=[1]))
    fitted = baselines(other_cut_offs, "ndcg_10", repeats=True)
    monkeypatch.setattr("recsys.models.baselines.tuning.tune_baselines", fit_again)
    for same in (judge, other_cut_offs):
        found = baselines(same, "ndcg_10", repeats=True)
        names = [model.name for model in found]
        assert names == ["Popularity", "Markov", "ItemKNN", "EASE", "iALS"]
        for a, b in zip(found, fitted, strict=True):
            assert judge.ask(a, "test")[0] == judge.ask(b, "test")[0]

    others = [
        replace(judge, store=replace(judge.store, manifest={"fingerprint": "other"})),
        replace(judge, store=replace(judge.store, manifest={})),
        replace(judge, split=replace(judge.split, training_ends=judge.split.training_ends - 1)),
        replace(judge, split=replace(judge.split, validation=judge.split.test)),
        replace(judge, filter_seen=True),
        replace(judge, evaluation=replace(EVALUATION, tie_seed=1)),
    ]
    for other, monitor, repeats in (
        *((other, "ndcg_10", True) for other in others),
        (judge, "ndcg_5", True),
        (judge, "ndcg_10", False),
    ):
        with pytest.raises(FittedAgain):
            baselines(other, monitor, repeats=repeats)

    (damaged,) = tmp_path.rglob("EASE.npz")
    damaged.write_bytes(damaged.read_bytes()[:-100])
    with pytest.raises(FittedAgain):
        baselines(judge, "ndcg_10", repeats=True)


def config_of(*overrides: str) -> TrainConfig:
    return compose("train", TrainConfig, ["data=log", "data.path=x.csv", *overrides])


def test_every_setting_reaches_training(
    judge: Judge, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RECSYS_HOME", str(tmp_path))
    seen: dict[str, Any] = {}

    def fit(task: Any, batches: Any, **options: Any) -> None:
        seen.update(options, task=task, batches=batches)

    monkeypatch.setattr("recsys.training.fit.fit", fit)
    config = config_of(
        "model.max_length=7",
        "trainer.max_epochs=5",
        "trainer.patience=4",
        "trainer.validate_every=3",
        "trainer.monitor=hr_5",
        "trainer.tokens_per_batch=100",
        "trainer.minimum_batches=6",
        "trainer.learning_rate=0.5",
        "trainer.weight_decay=0.25",
        "trainer.warmup_steps=1000",
        "trainer.schedule=cosine",
        "trainer.beta2=0.9",
        "trainer.precision=bf16",
        "trainer.checkpoint_seconds=7",
        "trainer.average_weights=0.9",
        "seed=11",
    )
    model = make_model(config.model, judge.store.catalogue_size, config.seed)
    fit_model(config, judge, model, book := object(), tmp_path / "a-run", tmp_path / "cut.ckpt")  # type: ignore[arg-type]
    task, batches = seen["task"], seen["batches"]
    assert task.model is model
    # Warm-up takes a tenth of all steps.
    assert task.optimization == Optimization(0.5, 0.25, 3, 5 * 6, "cosine", beta2=0.9)
    identity = batches.identity()
    assert (identity["seed"], identity["max_length"]) == (11, 7)
    assert len(batches) == 6
    assert (seen["max_epochs"], seen["patience"], seen["validate_every"]) == (5, 4, 3)
    assert seen["monitor"] == "val/loo-full-all/hr_5"
    assert seen["validate"](model).keys() >= {seen["monitor"]}
    assert (seen["precision"], seen["checkpoint_seconds"]) == ("bf16", 7)
    assert seen["average_weights"] == 0.9
    assert seen["checkpoint"] == tmp_path / "a-run" / "last.ckpt"
    assert seen["resume"] == tmp_path / "cut.ckpt"
    assert seen["reporter"] is book
    config = replace(config, trainer=replace(config.trainer, tokens_per_batch=30, warmup_steps=2))
    fit_model(config, judge, model, book, tmp_path / "a-run", None)  # type: ignore[arg-type]
    assert len(seen["batches"]) == 7
    assert seen["task"].optimization.warmup_steps == 2
    assert seen["batches"].windows == "newest"
    config = config_of("model.max_length=7", "trainer.windows=all")
    fit_model(config, judge, model, book, tmp_path / "a-run", None)  # type: ignore[arg-type]
    assert seen["batches"].windows == "all"
    for updates, tables in (("touched", {"items.weight"}), ("auto", set()), ("all", set())):
        more = ["model.max_length=7", "objective=sampled_softmax"]
        config = config_of(*more, f"trainer.row_updates={updates}")
        fit_model(config, judge, model, book, tmp_path / "a-run", None)  # type: ignore[arg-type]
        assert set(touched_tables(seen["task"].model)) == tables
        assert seen["task"].objective.touched_rows == (updates == "touched")


def test_weights_are_drawn_by_seed() -> None:
    config = config_of()
    first, same, other = (make_model(config.model, 30, seed).state_dict() for seed in (1, 1, 2))
    assert all(torch.equal(first[name], same[name]) for name in first)
    assert not torch.equal(first["items.weight"], other["items.weight"])
