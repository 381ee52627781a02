"""Rankers by class path, their objectives and metrics: refused in time, or as good as ours."""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import polars as pl
import pytest
import torch

from pipelines import compare, evaluate, explain, export, promote, recommend, train, tune
from pipelines.checking import ConfigError
from pipelines.clicks import check_click_evaluation, click_judge, make_ranker
from pipelines.entry import compose
from pipelines.fitting import task_and_batches
from pipelines.ingest import make_store
from pipelines.own_clicks import (
    check_click_names,
    fields_to_come,
    own_click_objective,
    try_click_objective,
    try_ranker,
)
from pipelines.schemas import (
    ClickEvaluationConfig,
    CompareConfig,
    EvaluateConfig,
    ExplainConfig,
    ExportConfig,
    OwnObjectiveConfig,
    RecommendConfig,
    TrainConfig,
    TuneConfig,
)
from pipelines.story import plain
from recsys.evaluation.click_metrics import LABELS, PROBABILITIES, USERS
from recsys.evaluation.click_report import click_intervals, summarise_clicks
from recsys.evaluation.compare import Answers
from recsys.evaluation.intervals import bootstrap_means
from recsys.evaluation.metrics import MetricError
from recsys.evaluation.promotion import decide
from recsys.histories.store import open_store
from recsys.serving.export import ExportError
from recsys.serving.pyfunc import _load_pyfunc
from recsys.tracking.reading import load_run
from tests.pipelines.conftest import Place, files_below
from tests.pipelines.test_clicks import write_log
from tests.pipelines.test_train import artifacts, model_folder

GOODS = {
    "rankers.py": '''
import torch
from torch import nn
from recsys.models.click.inputs import ClickInputs


class Sound(nn.Module):
    """A number of the candidate, and of each event."""
    def __init__(self, catalogue_size, user_fields, item_fields, event_fields, context_fields,
                 max_length: int = 7, width: int = 3) -> None:
        super().__init__()
        self.max_length, self.sizes = max_length, (item_fields, context_fields)
        self.inputs = ClickInputs(catalogue_size, user_fields, item_fields, event_fields,
                                  context_fields, width, 2, 0.0, 0.3)
        self.last = nn.Linear(self.inputs.item_width, 1)
    def forward(self, batch):
        vectors = self.inputs(batch)
        return self.last(vectors.candidates_BD + vectors.histories_BLD.sum(1)).squeeze(1)

class Looking(Sound):
    def forward(self, batch, weights=None):
        if weights is not None:
            weights.append(batch.valid_BL[:, None].float())
        return super().forward(batch)

class Named(Sound):
    """Reads a field of the data by its name."""
    def __init__(self, catalogue_size, user_fields, item_fields, event_fields, context_fields):
        super().__init__(catalogue_size, user_fields, item_fields, event_fields, context_fields)
        self.device = nn.Embedding(context_fields["device"], 1)
    def forward(self, batch):
        return super().forward(batch) + self.device(batch.context_fields["device"]).squeeze(1)

class Branching(Sound):
    """Python looks at the numbers of a batch."""
    def forward(self, batch):
        logits_B = super().forward(batch)
        return logits_B if int(batch.lengths_B.max()) > 0 else 2 * logits_B

class Column(Sound):
    def forward(self, batch):
        return super().forward(batch)[:, None]

class Divides(Sound):
    def forward(self, batch):
        return super().forward(batch) / batch.lengths_B

class Unknown(Sound):
    """Knows no code but those that training saw."""
    def forward(self, batch):
        return super().forward(batch) + torch.log(batch.context_fields["device"] - 1.5)

class Raises(Sound):
    def forward(self, batch):
        raise KeyError("age")

class Text(Sound):
    def forward(self, batch):
        return "1.0"

class Rooted(Sound):
    """The root of an empty history's zero has no slope."""
    def forward(self, batch):
        histories_BLD = self.inputs(batch).histories_BLD * batch.valid_BL[:, :, None]
        return (histories_BLD.sum(1) @ self.last.weight[0]).square().sqrt()

class Fixed(Sound):
    def forward(self, batch):
        return super().forward(batch).detach()

class Shifted(Sound):
    """Keeps a random number that is no part of its state."""
    def __init__(self, catalogue_size, user_fields, item_fields, event_fields, context_fields):
        super().__init__(catalogue_size, user_fields, item_fields, event_fields, context_fields)
        self.shift = torch.randn(1)
    def forward(self, batch):
        return super().forward(batch) + self.shift

class Timeless(Sound):
    def __init__(self, catalogue_size, user_fields, item_fields, event_fields, context_fields):
        super().__init__(catalogue_size, user_fields, item_fields, event_fields, context_fields)
        self.max_length = 0

class Bare(nn.Module):
    """Has embeddings of its own."""
    def __init__(self, catalogue_size, user_fields, item_fields, event_fields, context_fields):
        super().__init__()
        self.max_length = 3
        self.items = nn.Embedding(catalogue_size, 1, padding_idx=0)
    def forward(self, batch):
        return self.items(batch.item_ids_I[batch.candidates_B]).squeeze(1)

class Mute(nn.Module):
    def __init__(self, catalogue_size, user_fields, item_fields, event_fields, context_fields): ...

class Fieldless(nn.Module):
    def __init__(self, catalogue_size, user_fields, context_fields): ...
    def forward(self, batch): ...

class NextItem(nn.Module):
    def __init__(self, catalogue_size): ...
    def forward(self, batch): ...
    def encode(self, batch): ...
    def item_table(self): ...

class Plain: ...
''',
    "objectives.py": """
from torch import nn
from torch.nn.functional import binary_cross_entropy_with_logits as entropy

def sound(logits_B, labels_B, factor: float = 1.0): return factor * entropy(logits_B, labels_B)
def open(logits_B, labels_B, **more): return more["factor"] * entropy(logits_B, labels_B)
def needy(logits_B, labels_B, factor: float): return factor * entropy(logits_B, labels_B)
def next_item(hidden_TD, table_VD, targets_T, share: float = 0.1): ...
def one(logits_B): ...
def each(logits_B, labels_B): return (logits_B - labels_B) ** 2
def still(logits_B, labels_B): return ((logits_B > 0) == labels_B).float().mean()
def endless(logits_B, labels_B): return logits_B.sum() / 0
def raises(logits_B, labels_B): raise IndexError("no label")
class Kept(nn.Module):
    def __init__(self, factor: float):
        super().__init__()
        self.factor = factor
    def forward(self, logits_B, labels_B): return sound(logits_B, labels_B, self.factor)
class Low(Kept):
    def __init__(self, factor: float):
        if factor > 1:
            raise ValueError("too much")
        super().__init__(factor)
""",
    "metrics.py": """
import numpy as np

def profit(labels, probabilities): return np.where(probabilities > 0.5, 3.0 * labels - 1.0, 0.0)
def short(labels, probabilities): return labels[1:]
def one(labels, probabilities): return float(labels.mean())
def nans(labels, probabilities): return np.where(labels > 0, probabilities, np.nan)
def raises(labels, probabilities): raise KeyError("price")
def ranks(answers): ...
def gauc(labels, probabilities): return labels
def score(labels, probabilities): return labels
def request_ndcg_7(labels, probabilities): return labels
def AUC(labels, probabilities): return labels
def ne(labels, probabilities): return labels
def Model(labels, probabilities): return labels
def gain_5(labels, probabilities): return 2.0 * labels
class Kind: ...
""",
    "others.py": """
def profit(labels, probabilities): return labels
def Profit(labels, probabilities): return labels
""",
}
DEVICE = [
    "data.features.device.kind=categorical",
    "data.features.device.of=context",
    "data.features.device.column=device",
]
LOG = [
    "data=log",
    "data.path=log.parquet",
    "data.columns.time=ts",
    "data.columns.label=clicked",
    "trainer.max_epochs=2",
    "trainer.rows_per_batch=200",
    "trainer.minimum_batches=1",
    "evaluation.resamples=50",
]


def own(ranker: str) -> list[str]:
    return ["model=own_ranker", f"model.class_path=goods.rankers.{ranker}", *LOG]


def profit(labels: np.ndarray, probabilities: np.ndarray) -> np.ndarray:
    return np.where(probabilities > 0.5, 3.0 * labels - 1.0, 0.0)


@pytest.fixture(scope="module", autouse=True)
def place(empty_store: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    """A user's folder, with a package and a log; commands run in it, in this process."""
    place = Place(tmp_path_factory.mktemp("own_clicks")).stocked(empty_store)
    (place.folder / "goods").mkdir()
    for name, text in GOODS.items():
        (place.folder / "goods" / name).write_text(text, encoding="utf-8")
    write_log(place.folder / "log.parquet")
    with pytest.MonkeyPatch.context() as patched:
        patched.chdir(place.folder)
        patched.setenv("RECSYS_HOME", str(place.home))
        patched.syspath_prepend(place.folder)
        yield place
    for name in [name for name in sys.modules if name.partition(".")[0] == "goods"]:
        del sys.modules[name]


# --- rankers ---


def settings(ranker: str, *more: str) -> TrainConfig:
    return compose("train", TrainConfig, [*own(ranker), *DEVICE, *more])


@pytest.mark.parametrize("ranker", ["Sound", "Looking", "Named", "Branching"])
def test_sound_rankers_are_taken(ranker: str) -> None:
    config = settings(ranker)
    try_ranker(config)
    sizes = {"user": {"user_id": 4}, "context": {"device": 4}}
    made: Any = make_ranker(config.model, 9, sizes, seed=1)  # type: ignore[arg-type]
    assert made.inputs.items.weight.shape == (9, 3) and made.sizes == ({}, {"device": 4})
    again: Any = make_ranker(config.model, 9, sizes, seed=1)  # type: ignore[arg-type]
    assert torch.equal(made.last.weight, again.last.weight)


@pytest.mark.parametrize(
    ("ranker", "words"),
    [
        ("Plain", "is the class Plain: a model is a class that inherits from torch.nn.Module"),
        ("Mute", "has no forward: a ranker gives the logits of its questions"),
        ("Fieldless", "and item_fields, event_fields it does not"),
        ("NextItem", "It has encode and item_table, as models of the next item have: model=own"),
        ("Raises", "failed on three small questions, one of them of an empty history. KeyError"),
        ("Text", "forward gave a value of type str, not a tensor of logits"),
        ("Column", "forward gave [3, 1] and must give [3], one logit for each question"),
        ("Divides", "of which not all are finite, for histories of [2, 1, 0] events"),
        ("Unknown", "with fields missing, unknown and known"),
        ("Rooted", "its gradients are not finite, though its logits are, for histories of [2, 1"),
        ("Fixed", "gave logits that do not depend on its parameters"),
        ("Shifted", "saved and loaded again it scores otherwise"),
        ("Timeless", "its attribute max_length must be the number of newest events it sees"),
        ("Bare", "objective.l2=0.01 holds the embeddings of a ranker's `inputs` small"),
        ("Bare", "goods.rankers.Bare has none: set objective.l2=0"),
        ("Soudn", "Did you mean 'goods.rankers.Sound'?"),
    ],
)
def test_a_class_that_is_no_ranker(ranker: str, words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        try_ranker(settings(ranker))
    assert f"goods.rankers.{ranker}" in str(caught.value) and words in str(caught.value)


def test_a_ranker_without_our_inputs_is_not_regularised() -> None:
    try_ranker(settings("Bare", "objective.l2=0"))


@pytest.mark.parametrize(
    ("argument", "words"),
    [
        ("widht=3", "'model.arguments.widht'"),
        ("widht=3", "Did you mean 'model.arguments.width'?"),
        ("width=wide", "model.arguments.width must be a whole number, not 'wide'"),
        ("user_fields=3", "unknown key 'model.arguments.user_fields' in goods.rankers.Sound"),
        ("width=-1", "goods.rankers.Sound cannot be made of them. ValueError: width must be"),
    ],
)
def test_arguments_that_a_ranker_does_not_take(argument: str, words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        try_ranker(settings("Sound", f"model.arguments.{argument}"))
    assert words in str(caught.value)


def test_a_ranker_is_tried_with_the_fields_that_the_data_will_have() -> None:
    with pytest.raises(ConfigError, match=r"Named cannot be made of them\. KeyError: 'device'"):
        try_ranker(compose("train", TrainConfig, own("Named")))
    kinds = {"bag": "multi", "price": "numeric", "part": "quantile"}
    more = [
        f"data.features.{name}.{key}={value}"
        for name, kind in kinds.items()
        for key, value in (("kind", kind), ("of", "item"), ("column", name))
    ]
    ages = ["data.features.age.kind=recency", "questions.history=events"]
    try_ranker(settings("Sound", *more, *ages))
    config = settings("Sound", *ages)
    store = open_store(make_store(config.data))
    # Those of the store itself: the trial guesses none that are not there, and forgets none.
    there = click_judge(config, store).features.sizes
    told = fields_to_come(config)[0]
    assert {of: set(names) for of, names in there.items()} == {
        of: set(names) for of, names in told.items()
    }


# --- objectives ---


def objective(name: str, **arguments: Any) -> OwnObjectiveConfig:
    return OwnObjectiveConfig("own", f"goods.objectives.{name}", arguments)


def test_sound_objectives_are_taken() -> None:
    logits, labels = torch.tensor([0.5, -2.0]), torch.tensor([1.0, 0.0])
    plain = float(own_click_objective(objective("sound"))(logits, labels))
    for config in (
        objective("sound", factor=3),
        objective("needy", factor=3),
        objective("open", factor=3),
        objective("Kept", factor=3),
    ):
        try_click_objective(config)
        assert float(own_click_objective(config)(logits, labels)) == pytest.approx(3 * plain)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("one", "takes 1 arguments: an objective is a function of (logits_B, labels_B), or where "),
        ("next_item", "takes hidden_TD, table_VD, targets_T: where clicks are asked an objective"),
        ("next_item", "where next items are (model=own) of (hidden_TD, table_VD, targets_T)"),
        ("needy", "objective.arguments.factor is missing"),
        ("each", "gave shape [4]: an objective gives the mean loss"),
        ("still", "gave a loss that does not depend on the logits: there is nothing to learn"),
        ("endless", "inf: an objective gives the mean loss"),
        ("raises", "failed on four logits. IndexError: no label"),
        ("Kept", "objective.arguments.factor is missing"),
        ("soudn", "Did you mean 'goods.objectives.sound'?"),
    ],
)
def test_what_is_no_objective(name: str, words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        try_click_objective(objective(name))
    assert words in str(caught.value)


def test_an_objective_of_one_s_own_trains_our_rankers_too() -> None:
    chosen = ["objective=own", "objective.class_path=goods.objectives.sound"]
    config = compose("train", TrainConfig, ["model=logistic_regression", *LOG, *chosen])
    judge = click_judge(config, open_store(make_store(config.data)))
    task, _ = task_and_batches(config, judge, train.untrained(config, judge))
    assert task.objective.__name__ == "sound"  # type: ignore[union-attr]


# --- metrics ---


def evaluation(*names: str) -> ClickEvaluationConfig:
    metrics = ",".join(f"goods.{name}" for name in names)
    found = compose("train", TrainConfig, ["model=din", *LOG, f"evaluation.metrics=[{metrics}]"])
    assert isinstance(found.evaluation, ClickEvaluationConfig)
    return found.evaluation


@pytest.mark.parametrize(
    ("names", "words"),
    [
        (["metrics.short"], "metric short gave 6 values for 7 questions"),
        (["metrics.one"], "metric one gave shape () for 7 questions"),
        (["metrics.nans"], "metric nans gave nan for question 1 (3 of 7)"),
        (["metrics.raises"], "=goods.metrics.raises failed on 7 questions. KeyError: 'price'"),
        (["metrics.ranks"], "=goods.metrics.ranks failed on 7 questions. TypeError"),
        (["metrics.Kind"], "is a class, not a function of (labels, probabilities)"),
        (["metrics.gauc"], "'gauc' is a name that tables have already"),
        (["metrics.score"], "'score' is a name that tables have already"),
        (["metrics.request_ndcg_7"], "'request_ndcg_7' is a name that tables have already"),
        (["metrics.AUC"], "'AUC' is a name that tables have already"),
        (["metrics.ne"], "'ne' is a name that tables have already"),
        (["metrics.Model"], "'Model' is a name that tables have already"),
        (["metrics.profit", "others.profit"], "two metrics are called 'profit'"),
        (["metrics.profit", "others.Profit"], "two metrics are called 'profit'"),
        (["metrics.porfit"], "Did you mean 'goods.metrics.profit'?"),
    ],
)
def test_what_is_no_metric(names: list[str], words: str) -> None:
    with pytest.raises((ConfigError, MetricError)) as caught:
        check_click_evaluation(evaluation(*names))
    assert words in str(caught.value)


def test_a_sound_metric_may_choose_the_weights() -> None:
    check_click_evaluation(evaluation("metrics.profit"), "profit")
    with pytest.raises(ConfigError, match=r"no metric 'porfit'\. Did you mean 'profit'\?"):
        check_click_evaluation(evaluation("metrics.profit"), "porfit")


def test_its_mean_and_its_interval_are_over_the_questions() -> None:
    mine = {"profit": profit}
    values = summarise_clicks(LABELS, PROBABILITIES, USERS, own=mine)
    each = profit(LABELS, PROBABILITIES)
    assert values["profit"] == each.mean() != 0
    found = click_intervals(LABELS, PROBABILITIES, USERS, resamples=50, own=mine)["profit"]
    assert found == bootstrap_means(each, USERS, resamples=50) and found.low < found.high


def test_promotion_reads_its_column() -> None:
    """Of 1,200 questions the challenger wins the metric in each, by answers that lose AUC."""
    labels = np.arange(1200) % 2
    frame = pl.DataFrame(
        {"user": np.arange(1200) // 8, "item": 1, "label": labels, "history_length": 1}
    )
    theirs = frame.with_columns(score=pl.lit(0.5) + labels / 4, profit=pl.lit(0.0))
    ours = frame.with_columns(score=pl.lit(0.5) - labels / 4, profit=pl.lit(1.0))
    answers = [
        Answers(name, "clicks", one, own_metrics=("profit",))
        for name, one in (("ours", ours), ("theirs", theirs))
    ]
    decision = decide(answers[0], answers[1], "profit", resamples=200)
    (whole,) = decision.parts
    assert (whole.ahead, whole.verdict) == (1.0, "holds")
    assert "ahead in profit " in promote.in_text(decision, "theirs", "promoted", "")
    assert "ahead in profit " in promote.in_markdown(decision, "theirs", "promoted")
    (whole,) = decide(answers[0], answers[1], "auc", resamples=200).parts
    assert whole.verdict == "not shown"
    # Where no question's value differs there is nothing to lose, whatever the scores.
    same = dataclasses.replace(answers[0], frame=ours.with_columns(profit=pl.lit(0.0)))
    (whole,) = decide(same, answers[1], "profit", resamples=200).parts
    assert (whole.ahead, whole.verdict) == (0.0, "holds")


# --- in the commands ---


@pytest.fixture(scope="module")
def trained(place: Place) -> dict[str, Any]:
    """A run with everything of one's own."""
    mine = ["objective=own", "objective.class_path=goods.objectives.sound"]
    metrics = "[goods.metrics.profit,goods.metrics.gain_5]"
    mine += [f"evaluation.metrics={metrics}", "trainer.monitor=profit"]
    train.run(compose("train", TrainConfig, [*own("Looking"), *mine, "result=trained.json"]))
    found: dict[str, Any] = json.loads((place.folder / "trained.json").read_text())
    return found


def test_everything_of_one_s_own_stands_beside_the_baselines(
    place: Place, trained: dict[str, Any]
) -> None:
    rows = trained["rows"]
    names = ["Looking", "Item + user mean", "Logistic regression", "Mean pooling"]
    assert [row["model"] for row in rows] == names
    folder = artifacts(place, trained["run_id"])
    for row in rows:
        frame = pl.read_parquet(
            folder / f"per_question/test/{row['model'].replace('+', 'and')}.parquet"
        )
        each = profit(frame["label"].to_numpy(), frame["score"].to_numpy())
        assert frame["profit"].to_list() == each.tolist()
        assert row["metrics"]["test/clicks/profit"] == pytest.approx(each.mean())
        low, high = row["intervals"]["test/clicks/profit"]
        assert low <= each.mean() <= high
        check_that_none_could_be_called([*row["metrics"], *frame.columns])
    headings = headings_of((folder / "table.txt").read_text())
    assert headings == ["model", "AUC", "GAUC", "logloss", "NE", "ECE", "profit", "gain_5"]
    check_that_none_could_be_called(headings)
    # What a metric of one's own chose is not kept: its code may change.
    assert not list(place.home.rglob("baselines/*/model.json"))
    assert (folder / "explain.html").exists()


def headings_of(text: str) -> list[str]:
    """Those of the first table."""
    first = next(line for line in text.splitlines() if line.startswith("model "))
    return first.split()


def check_that_none_could_be_called(names: list[str]) -> None:
    """No number, column of a file or heading could meet a user's metric."""
    for name in (name.rpartition("/")[2] for name in names if "cohort/" not in name):
        if name.isidentifier() and name not in ("profit", "gain_5"):
            with pytest.raises(ConfigError, match=f"'{name}' is a name that tables have already"):
                check_click_names([f"goods.metrics.{name}"])


def test_a_run_of_one_s_own_is_used_with_consent(place: Place, trained: dict[str, Any]) -> None:
    run, consent = f"run={trained['run_id']}", "trusted_modules=[goods]"
    commands: list[tuple[Any, str, Any, list[str]]] = [
        (evaluate, "evaluate", EvaluateConfig, ["result=again.json"]),
        (recommend, "recommend", RecommendConfig, ["output=top.parquet"]),
        (export, "export", ExportConfig, ["output=x.pt2", "format=torch"]),
        (explain, "explain", ExplainConfig, ["output=x.html", "k=2", "count=2"]),
    ]
    before = place.files
    for module, name, schema, more in commands:
        with pytest.raises(ConfigError, match=r"goods.rankers.Looking .*add trusted_modules=\[goo"):
            module.run(compose(name, schema, [run, *more]))
    assert {file for file in place.files - before if "cache" not in file} == set()
    for module, name, schema, more in commands:
        implied = evaluate.implied([run]) if name == "evaluate" else []
        module.run(compose(name, schema, [*implied, run, *more, consent]))
    again = json.loads((place.folder / "again.json").read_text())
    assert again["rows"] == trained["rows"]
    top = pl.read_parquet(place.folder / "top.parquet")
    assert set(top["model"]) == {"Looking"} and top["user"].n_unique() == 40
    assert json.loads((place.folder / "x.pt2.json").read_text())["max_length"] == 7
    assert "Looking" in (place.folder / "x.html").read_text()
    model = _load_pyfunc(str(model_folder(place, trained["run_id"])))
    answers = model.predict(pd.DataFrame({"history": [["i1", "i2"], []]}))
    assert answers["model"].to_list() == ["Looking", "Popularity"]
    with pytest.raises(ConfigError, match=r"chosen by profit.*keep it among evaluation\.metrics"):
        given = [*evaluate.implied([run]), run, "evaluation.metrics=[]", consent]
        evaluate.run(compose("evaluate", EvaluateConfig, given))


def test_it_is_resumed_to_the_same_digits(
    place: Place, trained: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    given = [f"resume={trained['run_id']}", "result=resumed.json"]
    monkeypatch.setattr(sys, "argv", ["train", *given])
    with pytest.raises(ConfigError, match=r"objective\.class_path.*add trusted_modules=\[goods\]"):
        train.run(compose("train", TrainConfig, given))
    train.run(compose("train", TrainConfig, [*given, "trusted_modules=[goods]"]))
    assert json.loads((place.folder / "resumed.json").read_text())["rows"] == trained["rows"]


def test_it_is_compared_by_one_s_own_metric(place: Place, trained: dict[str, Any]) -> None:
    settings = [f"runs=[{trained['run_id']}]", "metric=profit", "result=compared.json"]
    compare.run(compose("compare", CompareConfig, settings))
    found = json.loads((place.folder / "compared.json").read_text())["comparison"]
    ours, *others = (row["metrics"]["test/clicks/profit"] for row in trained["rows"])
    assert found["reference"]["estimate"] == pytest.approx(ours)
    for other, theirs in zip(found["others"], others, strict=True):
        assert other["difference"]["estimate"] == pytest.approx(ours - theirs)
        assert other["wins"] + other["ties"] + other["losses"] == 80
        assert other["cohorts"]


@pytest.mark.parametrize("metric", ["profit", "gain_5"])
def test_it_keeps_its_name_where_people_read(
    place: Place, trained: dict[str, Any], metric: str, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = [f"runs=[{trained['run_id']}]", f"metric={metric}", "result=named.json"]
    compare.run(compose("compare", CompareConfig, [*settings, "resamples=120"]))
    headings = headings_of(capsys.readouterr().out)
    assert headings[:2] == ["model", metric] and headings[-1] == "verdict"
    check_that_none_could_be_called([headings[0], headings[-1]])
    run_id = json.loads((place.folder / "named.json").read_text())["run_id"]
    tags = load_run(f"sqlite:///{place.home / 'mlflow.db'}", run_id).tags
    assert tags["headline"].startswith(f"{metric} ")
    assert f"Looking: {plain(metric)} " in tags["mlflow.note.content"]


def test_what_cannot_be_traced_or_looked_into_is_said(place: Place) -> None:
    more = ["evaluation.baselines=false", "evaluation.resamples=0", "result=branching.json"]
    train.run(compose("train", TrainConfig, [*own("Branching"), *more]))
    run = f"run={json.loads((place.folder / 'branching.json').read_text())['run_id']}"
    before, consent = files_below(place.folder), "trusted_modules=[goods]"
    with pytest.raises(ExportError, match="Branching cannot be traced for any batch and length"):
        given = [run, consent, "output=y.pt2", "format=torch"]
        export.run(compose("export", ExportConfig, given))
    with pytest.raises(ConfigError, match="Branching has no attention to explain"):
        explain.run(compose("explain", ExplainConfig, [run, consent]))
    assert files_below(place.folder) == before


# --- studies ---

STUDY = [
    *own("Looking"),
    "space=own",
    "objective=own",
    "objective.class_path=goods.objectives.needy",
    "space.model.arguments.width.low=2",
    "space.model.arguments.width.high=5",
    "space.objective.arguments.factor.choices=[0.5,2]",
    "study=mine",
    "trials=1",
    "test=false",
    "trainer.max_epochs=1",
]


def search(*more: str) -> dict[str, Any]:
    tune.run(compose("tune", TuneConfig, [*STUDY, *more, "result=study.json"]))
    found: dict[str, Any] = json.loads(Path("study.json").read_text())
    return found


def test_arguments_of_one_s_own_are_searched(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    fit, widths = tune.fit_model, []

    def watched(config: TrainConfig, judge: Any, model: Any, *rest: Any, **more: Any) -> Any:
        widths.append(model.inputs.items.weight.shape[1])
        return fit(config, judge, model, *rest, **more)

    monkeypatch.setattr(tune, "fit_model", watched)
    assert len(search()["trials"]) == 1
    found = search("trials=2")  # it goes on
    assert [trial["state"] for trial in found["trials"]] == ["complete", "complete"]
    assert [trial["model.arguments.width"] for trial in found["trials"]] == widths
    for trial in found["trials"]:
        assert trial["model.arguments.width"] in (2, 3, 4, 5)
        assert trial["objective.arguments.factor"] in (0.5, 2)
        text = (artifacts(place, trial["run"]) / "config.yaml").read_text()
        assert f"width: {trial['model.arguments.width']}" in text
    told = json.loads((artifacts(place, found["run_id"]) / "study.json").read_text())
    assert told["search space"]["model.arguments.width.high"] == 5.0
    with pytest.raises(ConfigError, match=r"model\.arguments\.width\.high \(5\.0 there, 4\.0 here"):
        search("space.model.arguments.width.high=4")
    with pytest.raises(ConfigError, match=r"model\.arguments\.max_length \(None there, 4 here"):
        search("model.arguments.max_length=4")


def test_an_objective_that_cannot_be_made_of_what_was_drawn_has_no_run(place: Place) -> None:
    found = search("study=low", "objective.class_path=goods.objectives.Low", "trials=4")
    for trial in found["trials"]:
        refused = trial["objective.arguments.factor"] > 1
        assert trial["state"] == ("fail" if refused else "complete")
        assert (trial["run"] is None) == refused
        assert ("Low cannot be made of them" in (trial["error"] or "")) == refused
    assert {trial["state"] for trial in found["trials"]} == {"fail", "complete"}


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (
            "space.model.arguments.widht.choices=[2]",
            "space.model.arguments.widht: model=own_ranker",
        ),
        ("space.model.arguments.widht.choices=[2]", "Did you mean 'space.model.arguments.width'?"),
        ("space.model.width.choices=[2]", "Did you mean 'space.model.arguments.width'?"),
        ("space.model.zzz.choices=[2]", "Known: arguments.max_length, arguments.width."),
        ("space.model.arguments.user_fields.choices=[2]", "has nothing of that name to search"),
        ("space.model.class_path.choices=[a.B]", "has nothing of that name to search"),
        ("space.model.arguments.max_length.choices=[2,a]", "must be a whole number, not 'a'"),
        ("space.model.arguments.width.high=4.5", "is a whole number, and so are low, high and"),
        ("space.objective.arguments.gamma.low=1", "Known: arguments.factor."),
        ("space.objective.arguments.factor.low=1", "factor takes choices=[…], or low= and high="),
        ("space.model.arguments.width.hihg=4", "'space.model.arguments.width.hihg'"),
        (
            "space.model.arguments.width=4",
            "It holds choices, low, high, log, step, such as "
            "space.model.arguments.width.choices=VALUE.",
        ),
        (
            "space.objective.arguments.factor.choices=[[4],[8]]",
            "space.objective.arguments.factor.choices=[[4], [8]]: a list cannot be searched, only",
        ),
        (
            "space.model.arguments.width.choices=3",
            "space.model.arguments.width.choices must be null or a list in brackets, not 3",
        ),
        ("space=din", "The space that is shipped for it is space=own."),
    ],
)
def test_a_space_that_does_not_fit(place: Place, more: str, words: str) -> None:
    before = place.files
    with pytest.raises(ConfigError) as caught:
        search(more, "study=other")
    assert words in str(caught.value)
    assert ("is shipped for it" in str(caught.value)) == (more == "space=din")
    assert place.files == before
