"""Code by class path: whatever is wrong with it is said before any work starts."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, get_type_hints

import numpy as np
import polars as pl
import pytest
import torch

from pipelines.checking import ConfigError
from pipelines.class_paths import find
from pipelines.entry import compose
from pipelines.fitting import choose_rows, make_objective
from pipelines.headings import AT_A_CUT
from pipelines.ingest import make_store
from pipelines.judging import check_evaluation
from pipelines.own import all_metrics, try_model, try_objective
from pipelines.schemas import (
    Argument,
    DataConfig,
    IngestConfig,
    OwnModelConfig,
    OwnObjectiveConfig,
    OwnRankerConfig,
    TrainConfig,
)
from pipelines.train import make_model, run_title
from recsys.evaluation.metrics import METRICS, MetricError
from recsys.histories.store import open_store
from recsys.logs.errors import LogError

WARES = {
    "models.py": '''
from typing import Literal

import torch
from torch import nn


class Sound(nn.Module):
    """What came last, as a vector."""
    def __init__(self, catalogue_size: int, width: int, kind: Literal["plain", "fine"] = "plain",
                 rate: float = 0.5, sizes: list[int] | None = None, *, free=None) -> None:
        super().__init__()
        self.max_length, self.rate = 5, rate
        self.items = nn.Embedding(catalogue_size, width, padding_idx=0)
    def forward(self, batch):
        return self.items(batch.items_BL).flatten(0, 1)[batch.packed_T]
    def encode(self, batch):
        newest_B = (batch.lengths_B - 1).clamp(min=0)
        return self.items(batch.items_BL.gather(1, newest_B[:, None])[:, 0])
    def item_table(self):
        return self.items.weight

class EASE(Sound): pass

class Scaled(Sound):
    def item_table(self):
        return 2 * self.items.weight

class NoLength(Sound):
    def __init__(self, catalogue_size: int):
        super().__init__(catalogue_size, 4)
        self.max_length = None

class Padded(Sound):
    def forward(self, batch):
        return self.items(batch.items_BL)

class Thin(Sound):
    def encode(self, batch):
        return super().encode(batch)[:, :-1]

class Divides(Sound):
    def encode(self, batch):
        return super().encode(batch) / batch.lengths_B[:, None]

class Raises(Sound):
    def item_table(self):
        raise KeyError("items")

class Picky(Sound):
    def __init__(self, catalogue_size: int, width: int):
        super().__init__(catalogue_size, width)
        if width > 3:
            raise OverflowError("too wide")

class Drawn(Sound):
    """Keeps a random vector that is no part of its state."""
    def __init__(self, catalogue_size: int, width: int):
        super().__init__(catalogue_size, width)
        self.shift = torch.randn(width)
    def encode(self, batch):
        return super().encode(batch) + self.shift

class Shared(Sound):
    """Holds half of a table as another parameter."""
    def __init__(self, catalogue_size: int, width: int):
        super().__init__(catalogue_size, width)
        self.part = nn.Parameter(self.items.weight.data[:2])

class Unsized(nn.Module):
    def forward(self, batch): ...
    def encode(self, batch): ...
    def item_table(self): ...

class Ranker(nn.Module):
    def __init__(self, catalogue_size: int): ...
    def forward(self, batch): ...

class Nothing(nn.Module):
    def __init__(self, catalogue_size: int): ...

class Plain: ...
''',
    "objectives.py": """
import torch
from torch import nn
from torch.nn.functional import cross_entropy

SEEN = {}
number = 3

def sound(hidden_TD, table_VD, targets_T, scale: float = 1.0):
    return scale * cross_entropy(hidden_TD @ table_VD[1:].T, targets_T - 1)
def two(hidden_TD, table_VD): ...
def clicks(logits_B, labels_B, gamma: float = 2.0): ...
def each(hidden_TD, table_VD, targets_T):
    return (hidden_TD * table_VD[targets_T]).sum(1)
def none(hidden_TD, table_VD, targets_T): ...
def endless(hidden_TD, table_VD, targets_T):
    return hidden_TD.sum() / 0
def apart(hidden_TD, table_VD, targets_T):
    return table_VD.sum()
def raises(hidden_TD, table_VD, targets_T):
    raise IndexError("no such target")

class Counting(nn.Module):
    def __init__(self, item_counts_V, scale: float, touched_rows: bool = False):
        super().__init__()
        self.scale = scale
        SEEN.update(counts=item_counts_V.tolist(), touched=touched_rows)
    def forward(self, hidden_TD, table_VD, targets_T):
        return sound(hidden_TD, table_VD, targets_T, self.scale)
class Learning(Counting):
    def __init__(self):
        nn.Module.__init__(self)
        self.weight = nn.Parameter(torch.ones(1))
class Still: ...
""",
    "metrics.py": """
import numpy as np

def sound(answers, k): return answers.best <= k
def short(answers, k): return np.ones(answers.questions - 1)
def square(answers, k): return np.ones((answers.questions, k))
def nans(answers, k): return np.where(answers.best > 0, 1.0, np.nan)
def words(answers, k): return ["good"] * answers.questions
def raises(answers, k): raise KeyError(k)
def ndcg(answers, k): return answers.best
def novelty(answers, k): return answers.best
def NDCG(answers, k): return answers.best
def größe(answers, k): return answers.best
class Kind: ...
number = 3
""",
    "others.py": "def sound(answers, k): return answers.best\nSound = sound\n",
    "logs.py": """
from pathlib import Path
import polars as pl

LOG = pl.DataFrame({"user": [1, 1, 1, 2, 2, 2], "item": [1, 2, 3, 2, 3, 1], "time": range(6)})

def sound(first: int = 0) -> pl.DataFrame: return LOG[first:]
def lazy(): return LOG.lazy()
def file(path: str): return Path(path)
def text(path: str): return path
def nothing(): ...
def rows(): return LOG.to_dicts()
def nobody(): return LOG[:0]
def objects(): return LOG.with_columns(x=pl.Series([object()] * 6))
def otherwise(): return LOG.rename({"item": "itm"})
def raises(): raise ValueError("the shop is closed")
class Kind: ...
number = 3
""",
    "broken.py": "x = 1 / 0",
    "needs.py": "import not_there_at_all",
}


@pytest.fixture(scope="module", autouse=True)
def wares(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A user's package that can be imported."""
    folder = tmp_path_factory.mktemp("own")
    (folder / "wares").mkdir()
    for name, text in WARES.items():
        (folder / "wares" / name).write_text(text, encoding="utf-8")
    sys.path.insert(0, str(folder))
    yield folder
    sys.path.remove(str(folder))
    for name in [name for name in sys.modules if name.partition(".")[0] == "wares"]:
        del sys.modules[name]


# --- finding ---


@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("Sound", "=Sound is no class path: write a module and a name in it, such as "),
        ("wares..Sound", "is no class path"),
        ("wares/models.py", "is no class path"),
        ("wares.modles.Sound", "no module 'wares.modles'. Did you mean 'wares.models'?"),
        ("warse.models.Sound", "no module 'warse'. Did you mean 'wares'?"),
        ("calendarr.X", "no module 'calendarr'. Modules are looked for in"),
        ("wares.models.Sound.more.X", "no module 'wares.models.Sound'."),
        ("wares.models.Sounds", "wares.models has no 'Sounds'. Did you mean 'wares.models.Sound'?"),
        ("wares.models.zzz", "has no 'zzz'. It has: "),
        ("wares.broken.X", "importing wares.broken failed. ZeroDivisionError: division by zero"),
        ("wares.needs.X", "importing wares.needs failed. ModuleNotFoundError: No module named "),
    ],
)
def test_a_class_path_that_leads_nowhere(path: str, words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        find(path, "model.class_path")
    assert str(caught.value).startswith(f"model.class_path={path}") and words in str(caught.value)


# --- models ---


def model(name: str, **arguments: Any) -> OwnModelConfig:
    return OwnModelConfig("own", f"wares.models.{name}", {"width": 3, **arguments})


def test_a_sound_model_is_taken() -> None:
    more = {"kind": "fine", "rate": 1, "sizes": [1, 2], "free": "text"}
    config = model("Sound", **more)
    try_model(config)
    made: Any = make_model(config, catalogue_size=9, seed=1)
    assert made.items.weight.shape == (9, 3) and type(made.rate) is float
    again: Any = make_model(config, catalogue_size=9, seed=1)
    assert torch.equal(made.items.weight, again.items.weight)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"widht": 3}, "unknown key 'model.arguments.widht' in wares.models.Sound. Did you mean"),
        ({"width": "wide"}, "model.arguments.width must be a whole number, not 'wide'"),
        ({"width": 2.5}, "model.arguments.width must be a whole number, not 2.5"),
        ({"kind": "palin"}, "must be plain or fine, not 'palin' in wares.models.Sound. Did you"),
        (
            {"sizes": ["a"]},
            "sizes must be null or a list in brackets, each a whole number",
        ),
        ({"catalogue_size": 3}, "unknown key 'model.arguments.catalogue_size'"),
        ({"width": -1}, "model.arguments: wares.models.Sound cannot be made of them. Runtime"),
    ],
)
def test_arguments_that_a_model_does_not_take(arguments: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        try_model(model("Sound", **arguments))
    assert words in str(caught.value)


def test_an_argument_that_a_model_needs() -> None:
    config = OwnModelConfig("own", "wares.models.Sound", {})
    with pytest.raises(ConfigError, match=r"model\.arguments\.width is missing: add model\.arg"):
        try_model(config)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("Plain", "is the class Plain: a model is a class that inherits from torch.nn.Module"),
        ("torch", "is the module torch: a model is a class that inherits"),
        ("Ranker", "has no encode and no item_table"),
        ("Ranker", "A ranker, which is asked about clicks, is model=own_ranker"),
        ("Nothing", "has no forward and no encode and no item_table"),
        ("Unsized", "its constructor must take catalogue_size"),
        ("EASE", "EASE is a baseline's name in every table"),
        ("Padded", "forward gave [3, 2, 3] and must give [3, 3], one row for each event"),
        ("Thin", "encode gave [3, 2] and must give [3, 3], one row for each history"),
        ("Divides", "encode gave numbers that are not finite, for histories of [2, 1, 0] events"),
        ("Raises", "item_table failed on a batch of three small histories, one of them empty. Key"),
        ("Drawn", "saved and loaded again it encodes histories otherwise"),
        ("Shared", "cannot be saved and loaded again. RuntimeError"),
    ],
)
def test_a_class_that_is_no_model(name: str, words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        try_model(model(name))
    assert f"wares.models.{name}" in str(caught.value) and words in str(caught.value)


def test_a_model_that_raises_or_has_no_length() -> None:
    with pytest.raises(ConfigError, match=r"Picky cannot be made of them. OverflowError: too wide"):
        try_model(model("Picky", width=4))
    with pytest.raises(ConfigError, match=r"max_length must be the number .* not None"):
        try_model(OwnModelConfig("own", "wares.models.NoLength", {}))


# --- objectives ---


def objective(name: str, **arguments: Any) -> OwnObjectiveConfig:
    return OwnObjectiveConfig("own", f"wares.objectives.{name}", arguments)


def loss(config: OwnObjectiveConfig) -> float:
    torch.manual_seed(0)
    made = make_objective(config, np.array([0, 4, 5]))
    return float(made(torch.randn(2, 3), torch.randn(3, 3), torch.tensor([1, 2])))


def test_sound_objectives_are_taken() -> None:
    try_objective(objective("sound"))
    plain = loss(objective("sound"))
    assert loss(objective("sound", scale=2)) == pytest.approx(2 * plain)
    config = objective("Counting", scale=3)
    try_objective(config)
    assert loss(config) == pytest.approx(3 * plain)
    made = make_objective(config, np.array([0, 4, 5]), touched_rows=True)
    assert isinstance(made, torch.nn.Module)
    seen = sys.modules["wares.objectives"].SEEN
    assert seen == {"counts": [0, 4, 5], "touched": True}


@pytest.mark.parametrize(
    ("name", "arguments", "words"),
    [
        ("number", {}, "is a value of type int, not a function of (hidden_TD, table_VD, targets"),
        ("two", {}, "takes 2 arguments: an objective is a function of (hidden_TD, table_VD,"),
        ("clicks", {}, "takes 2 arguments: an objective is a function of (hidden_TD, table_VD, ta"),
        ("clicks", {}, "targets_T), or where clicks are asked of (logits_B, labels_B)"),
        ("each", {}, "gave shape [4]: an objective gives the mean loss"),
        ("none", {}, "gave nothing (None): an objective gives the mean loss"),
        ("endless", {}, "inf: an objective gives the mean loss"),
        ("apart", {}, "gave a loss that does not depend on the hidden states"),
        ("raises", {}, "failed on four hidden states. IndexError: no such target"),
        ("Still", {}, "is a class whose objects cannot be called with (hidden_TD, table_VD,"),
        ("Learning", {}, "has parameters: only the model's are trained"),
        ("Counting", {}, "objective.arguments.scale is missing"),
        ("Counting", {"scale": 1, "item_counts_V": 3}, "'objective.arguments.item_counts_V'"),
        ("sound", {"scael": 1}, "Did you mean 'objective.arguments.scale'?"),
        ("sound", {"targets_T": 1}, "unknown key 'objective.arguments.targets_T'"),
    ],
)
def test_what_is_no_objective(name: str, arguments: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        try_objective(objective(name, **arguments))
    assert words in str(caught.value)


def test_touched_rows_need_an_objective_that_knows_them() -> None:
    base = ["data=own", "data.class_path=wares.logs.sound", "objective=own"]

    def chosen(name: str, updates: str) -> bool:
        settings = [*base, f"objective.class_path=wares.objectives.{name}"]
        config = compose("train", TrainConfig, [*settings, f"trainer.row_updates={updates}"])
        made: Any = make_model(config.model, 9, seed=1)
        choose_rows(config, made)
        return bool(made.items.sparse)

    assert chosen("Counting", "touched") and not chosen("sound", "auto")
    with pytest.raises(ConfigError, match=r"objectives.sound, which takes no touched_rows"):
        chosen("sound", "touched")


def test_a_computed_table_is_no_table_of_touched_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("recsys.training.touched_rows.LARGE_TABLE", 5)
    for name, sparse in (("Sound", True), ("Scaled", False)):
        own = ["model=own", f"model.class_path=wares.models.{name}", "model.arguments.width=3"]
        settings = ["data=log", "data.path=x.csv", "objective=bce", *own]
        config = compose("train", TrainConfig, settings)
        made: Any = make_model(config.model, 9, seed=1)
        choose_rows(config, made)
        assert made.items.sparse == sparse


# --- metrics ---


def evaluation(*names: str) -> Any:
    metrics = ",".join(f"'wares.{name}'" for name in names)
    settings = ["data=log", "data.path=x.csv", f"evaluation.metrics=[{metrics}]"]
    return compose("train", TrainConfig, settings).evaluation


def test_a_sound_metric_is_taken() -> None:
    asked = evaluation("metrics.sound")
    check_evaluation(asked, "sound_10")
    assert list(all_metrics(asked.metrics)) == [*METRICS, "sound"]
    with pytest.raises(ValueError, match=r"no metric 'sonud_10'. Did you mean 'sound_10'?"):
        check_evaluation(asked, "sonud_10")


@pytest.mark.parametrize(
    ("names", "words"),
    [
        (["metrics.short"], "metric short gave 2 values for 3 questions"),
        (["metrics.square"], "metric square gave shape (3, 1) for 3 questions"),
        (["metrics.nans"], "metric nans gave nan for question 2 (1 of 3)"),
        (["metrics.words"], "metric words gave list, not an array of one number a question"),
        (["metrics.raises"], "=wares.metrics.raises failed on three questions. KeyError: 1"),
        (["metrics.number"], "is a value of type int, not a function of (answers, k)"),
        (["metrics.Kind"], "is a class, not a function of (answers, k)"),
        (["metrics.ndcg"], "'ndcg' is a name that tables have already"),
        (["metrics.novelty"], "'novelty' is a name that tables have already"),
        (["metrics.NDCG"], "'NDCG' is a name that tables have already"),
        (["metrics.sound", "others.Sound"], "two metrics are called 'sound'"),
        (["metrics.sound", "others.sound"], "two metrics are called 'sound'"),
        (["metrics.größe"], "MLflow takes no such name as 'größe'"),
        (["metrics.sonud"], "Did you mean 'wares.metrics.sound'?"),
    ],
)
def test_what_is_no_metric(names: list[str], words: str) -> None:
    with pytest.raises((ConfigError, MetricError)) as caught:
        check_evaluation(evaluation(*names))
    assert words in str(caught.value)


# --- logs ---


def log(name: str, *more: str) -> DataConfig:
    settings = ["data=own", f"data.class_path=wares.logs.{name}", *more]
    return compose("ingest", IngestConfig, settings).data


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("RECSYS_HOME", str(tmp_path))
    return tmp_path


def test_a_frame_and_a_path_are_logs(home: Path) -> None:
    first = make_store(log("sound"))
    assert open_store(first).events == 6
    assert make_store(log("lazy")) == first  # the same rows are the same store
    fewer = make_store(log("sound", "data.arguments.first=1"))
    assert fewer != first and open_store(fewer).events == 5
    file = home / "log.parquet"
    pl.DataFrame({"user": [1], "item": [2], "time": [3]}).write_parquet(file)
    for name in ("file", "text"):
        store = open_store(make_store(log(name, f"data.arguments.path={file}")))
        assert store.events == 1


@pytest.mark.parametrize(
    ("name", "more", "words"),
    [
        ("nothing", [], "gave nothing (None): it must be a function that gives a Polars DataFrame"),
        ("rows", [], "gave a value of type list: it must be a function that gives a Polars"),
        ("nobody", [], "data.class_path=wares.logs.nobody gave no rows"),
        ("otherwise", [], "wares.logs.otherwise"),
        ("otherwise", [], "Did you mean 'itm'?"),
        ("objects", [], "a log that Parquet cannot hold"),
        ("number", [], "is a value of type int, not a function that gives"),
        ("Kind", [], "is a class, not a function that gives"),
        ("sonud", [], "Did you mean 'wares.logs.sound'?"),
        ("sound", ["data.arguments.frist=1"], "Did you mean 'data.arguments.first'?"),
        ("sound", ["data.arguments.first=a"], "data.arguments.first must be a whole number"),
        ("sound", ["data.path=x.csv"], "data.path and data.class_path both say where the log"),
        ("file", ["data.arguments.path=none.csv"], "There is no file 'none.csv'"),
        ("file", [], "data.arguments.path is missing"),
    ],
)
def test_what_is_no_log(home: Path, name: str, more: list[str], words: str) -> None:
    with pytest.raises((ConfigError, LogError)) as caught:
        make_store(log(name, *more))
    assert words in str(caught.value)
    assert not [file for file in home.rglob("*") if file.is_file()]


def test_arguments_of_no_function(home: Path) -> None:
    settings = ["data=log", "data.path=x.csv", "data.arguments={a: 1}"]
    with pytest.raises(LogError, match=r"those of data\.class_path=, which is not given"):
        make_store(compose("ingest", IngestConfig, settings).data)


def test_what_a_function_raises_is_its_own(home: Path) -> None:
    """Shown with its trace: the mistake is to be found in the user's own code."""
    with pytest.raises(ValueError, match="the shop is closed"):
        make_store(log("raises"))


# --- settings ---


def test_the_choices_of_one_s_own_are_class_path_and_arguments() -> None:
    """The signature is in the user's code, and is checked there."""
    for schema in (OwnModelConfig, OwnRankerConfig, OwnObjectiveConfig):
        assert [field.name for field in fields(schema)] == ["name", "class_path", "arguments"]
        assert get_type_hints(schema)["arguments"] == dict[str, Argument]
    assert get_type_hints(DataConfig)["arguments"] == dict[str, Argument]


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (["model=own"], "model.class_path is required: add model.class_path=VALUE"),
        (["objective=own"], "objective.class_path is required"),
        (["data=own"], "data.class_path is required"),
        (["model=own", "model.class_path=a.B", "model.width=3"], "unknown key 'model.width'"),
        (["model=own", "model.class_path=a.B", "model.arguments=3"], "must be a mapping"),
    ],
)
def test_settings_of_one_s_own_are_strict(settings: list[str], words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        compose("train", TrainConfig, settings)
    assert words in str(caught.value)


def test_arguments_are_said_in_two_ways() -> None:
    own = ["data=log", "data.path=x.csv", "model=own", "model.class_path=wares.models.Sound"]
    one = compose("train", TrainConfig, [*own, "model.arguments={width: 3, kind: fine}"])
    other = ["model.arguments.width=3", "model.arguments.kind=fine"]
    assert one == compose("train", TrainConfig, [*own, *other])
    assert one.model.arguments == {"width": 3, "kind": "fine"}  # type: ignore[union-attr]
    assert run_title(one) == "Sound log width 3 seed 1"


def test_a_next_item_model_is_not_asked_about_clicks() -> None:
    from pipelines.clicks import check_kinds

    own = ["model=own", "model.class_path=wares.models.Sound", "questions=clicks"]
    with pytest.raises(ConfigError, match=r"questions=next_item, or model=own_ranker$"):
        check_kinds(compose("train", TrainConfig, own))
    own = ["model=own_ranker", "model.class_path=wares.models.Sound", "questions=next_item"]
    with pytest.raises(ConfigError, match=r"take questions=clicks, or model=own$"):
        check_kinds(compose("train", TrainConfig, own))
    own = ["model=own_ranker", "model.class_path=wares.models.Sound", "trainer=next_item"]
    with pytest.raises(ConfigError, match=r"take trainer=clicks$"):
        check_kinds(compose("train", TrainConfig, own))


def test_names_that_tables_have_are_all_known() -> None:
    """A new number of the lists must not meet a user's metric of that name."""
    from recsys.evaluation.beyond_accuracy import describe
    from recsys.evaluation.click_report import summarise_clicks

    said = (describe.__doc__ or "").partition("Returns:")[2]
    lists = {*re.findall(r"`(\w+)_K`", said), "coverage"}
    of_requests = set(re.findall(r"`(\w+)_K`", summarise_clicks.__doc__ or ""))
    assert lists | of_requests | set(METRICS) == set(AT_A_CUT) and len(of_requests) == 2


def test_a_back_test_takes_them_from_its_own_command_line() -> None:
    from pipelines.backtest import check
    from pipelines.schemas import BacktestConfig

    config = compose("backtest", BacktestConfig, ["model=own", "model.class_path=a.B"])
    check(config)
    with pytest.raises(ConfigError, match="is trusted already"):
        check(replace(config, trusted_modules=["wares"]))
