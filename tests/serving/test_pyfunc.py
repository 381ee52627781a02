"""A saved model answers through MLflow as it does here, where only MLflow and its packages are."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlflow.pyfunc
import numpy as np
import pandas as pd
import polars as pl
import pytest
import torch
from mlflow.exceptions import MlflowException
from mlflow.models import Model
from torch import nn

from recsys.histories.attributes import attribute_of
from recsys.histories.clicks import ViewKind
from recsys.histories.features import (
    Categorical,
    ClickRows,
    Feature,
    FittedFeatures,
    Hashed,
    HourOfWeek,
    Label,
    MultiValued,
    Numeric,
    Quantile,
    Recency,
    UserId,
    fit_features,
)
from recsys.histories.impressions import Impressions
from recsys.histories.store import HistoryStore, open_store
from recsys.histories.vocabulary import Vocabulary
from recsys.models.click.din import DIN
from recsys.models.next_item.sasrec import SASRec
from recsys.serving.pyfunc import _load_pyfunc, requirements, save_pyfunc
from recsys.serving.rankers import RankerScorer
from recsys.serving.recommender import Recommender, event_counts
from recsys.testing import planted_log
from recsys.training.saved_model import ModelError, load_model, save_model
from tests.serving.conftest import Elsewhere

HISTORIES: list[list[Any]] = [
    ["i3", "i7", "i7"],
    [],
    ["no such item", "none either"],
    ["i5", "no such item"],
    [f"i{1 + place % 20}" for place in range(10_000)],
]


def saved(folder: Path, store: HistoryStore, items: Vocabulary, filter_seen: bool) -> Path:
    torch.manual_seed(0)
    arguments = {"catalogue_size": store.catalogue_size, "max_length": 40, "width": 16}
    save_model(
        folder,
        SASRec(**arguments),
        arguments,
        {"name": "SASRec", "item_vocabulary": items.fingerprint},
    )
    save_pyfunc(folder, items, event_counts(store), filter_seen=filter_seen)
    return folder


@pytest.fixture(scope="module")
def store() -> HistoryStore:
    return planted_log(60)


@pytest.fixture(scope="module")
def folder(store: HistoryStore, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An MLflow model, away from where it was made."""
    made = saved(tmp_path_factory.mktemp("made") / "model", store, store.item_vocabulary, True)
    return made.replace(tmp_path_factory.mktemp("moved") / "any name")


FEATURES: list[Feature] = [
    UserId(),
    Categorical("city", "user", "city"),
    MultiValued("genres", "item", "genres"),
    Numeric("price", "item", "price"),
    Hashed("maker", "item", "maker", buckets=4),
    Quantile("dwell", "event", "dwell", buckets=3),
    MultiValued("tags", "event", "tags"),
    Recency("ago"),
    Label(),
    HourOfWeek("hour", "context"),
    Categorical("device", "context", "device"),
    MultiValued("page", "context", "tags"),  # of the name of an event's column
]


def told(shown: bool) -> HistoryStore:
    """A store with columns of every form, and times; with an impression log or without."""
    store = HistoryStore.from_lists(
        [[1, 2, 3], [4, 2], [2, 5, 1]], items=6, times=[[1, 2, 3], [4, 5], [6, 7, 8]]
    )
    columns: dict[str, list[Any]] = {
        "user.city": ["Rome", "Oslo", None],
        "item.genres": [None, ["a"], ["b", "a"], [], ["c"], ["b"], ["a", "c"]],
        "item.price": [None, 0.5, 1.5, None, 2.5, 3.25, 0.75],
        "item.maker": [None, "x", "y", "z", "x", None, "w"],
        "event.dwell": [0.5, 1.5, None, 2.5, 3.5, 0.25, 9.5, 1.5],
        "event.tags": ["a|b", "b", None, "c", "a", "b", "c|a", "a"],
        "event.device": ["pc", "pc", "tv", None, "pc", "tv", "tv", "pc"],
    }
    asked = {"context.device": ["pc", "tv"], "context.tags": [["home"], ["search", "home"]]}
    made = {
        key: attribute_of(pl.Series(key, values), "here")
        for key, values in (columns | asked).items()
    }
    impressions = None
    if shown:
        numbers = np.array([1, 2])
        impressions = Impressions(
            users=numbers,
            items=numbers.astype(np.int32),
            labels=np.array([0, 1], dtype=np.int8),
            times=numbers,
            requests=numbers,
            history_ends=numbers,
            attributes={key: made[key] for key in asked},
        )
    return dataclasses.replace(
        store,
        labels=np.array([1, 0, 1, 1, 1, 0, 1, 1], dtype=np.int8),
        attributes={key: made[key] for key in columns},
        impressions=impressions,
    )


def saved_ranker(folder: Path, store: HistoryStore, history: ViewKind) -> Path:
    torch.manual_seed(0)
    numbers = np.array([0, 1])
    events = np.arange(store.events)
    features = fit_features(store, FEATURES, ClickRows(numbers, np.arange(1, 7), numbers, events))
    sizes = {f"{of}_fields": given for of, given in features.sizes.items()}
    arguments = {"catalogue_size": 7, **sizes, "max_length": 3, "hidden": [5]}
    model = DIN(**arguments)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.3 * torch.randn_like(parameter)
        for module in model.modules():
            if isinstance(module, nn.Embedding) and module.padding_idx is not None:
                module.weight[module.padding_idx] = 0
    items = store.item_vocabulary
    save_model(folder, model, arguments, {"name": "DIN", "item_vocabulary": items.fingerprint})
    features.save(folder / "features.json")
    save_pyfunc(folder, items, event_counts(store), filter_seen=True, ranker=(history, store))
    return folder


def of_the_ranker(folder: Path, store: HistoryStore, history: ViewKind) -> pl.DataFrame:
    """What it answers to new people where it was trained, with its whole store."""
    features = FittedFeatures.load(folder / "features.json")
    scorer = RankerScorer(load_model(folder)[0], features, history, store)
    recommender = Recommender(
        scorer,  # type: ignore[arg-type]
        store.item_vocabulary,
        name="DIN",
        popularity_V=None if history == "none" else event_counts(store),
        make_batch=scorer.make_batch,
    )
    return recommender.recommend(RANKER_HISTORIES, k=3).frame


RANKER_HISTORIES = [["i3", "i1", "other"], [], ["i6"]]


def flat(answers: list[dict[str, Any]]) -> pl.DataFrame:
    rows = pl.DataFrame(answers).with_columns(user=pl.int_range(pl.len()))
    return rows.explode("items", "scores").select("user", "items", "scores", "model")


@pytest.mark.parametrize("history", ["positives", "events", "none"])
@pytest.mark.parametrize("shown", [False, True])
def test_a_ranker_answers_as_with_its_whole_store(
    history: ViewKind, shown: bool, tmp_path: Path
) -> None:
    store = told(shown)
    folder = saved_ranker(tmp_path / "model", store, history)
    table = pd.DataFrame({"history": RANKER_HISTORIES})
    answers = _load_pyfunc(str(folder)).predict(table, {"k": 3}).to_dict("records")
    assert [row["unknown"] for row in answers] == [1, 0, 0]
    empty = "DIN" if history == "none" else "Popularity"
    assert [row["model"] for row in answers] == ["DIN", empty, "DIN"]
    assert not {"i3", "i1"} & set(answers[0]["items"])
    expected = of_the_ranker(folder, store, history)
    found = flat(answers)
    assert found["items"].to_list() == expected["item"].to_list()
    assert found["scores"].to_list() == pytest.approx(expected["score"].to_list(), rel=1e-5)
    assert found["model"].to_list() == expected["model"].to_list()
    known = open_store(folder / "items")
    assert known.events == 1 and known.user_vocabulary.raw_ids.to_list() == [""]  # nobody's history


def expected(store: HistoryStore, folder: Path, k: int, filter_seen: bool) -> list[dict[str, Any]]:
    """What the recommender of the store answers."""
    recommender = Recommender.load(folder, store.item_vocabulary, popularity_V=event_counts(store))
    frame = recommender.recommend(HISTORIES, k=k, filter_seen=filter_seen).frame
    return [
        {
            "items": rows["item"].to_list(),
            # Another process may sum in another order.
            "scores": pytest.approx(rows["score"].to_list(), rel=1e-5),
            "model": rows["model"][0],
            "unknown": sum("no" in str(item) for item in history),
        }
        for history, (_, rows) in zip(
            HISTORIES, frame.group_by("user", maintain_order=True), strict=True
        )
    ]


LOAD_AND_ASK = """
import importlib.util, json, sys
assert importlib.util.find_spec("recsys") is None and importlib.util.find_spec("pipelines") is None
import mlflow, pandas
without = set(sys.modules)
model = mlflow.pyfunc.load_model(sys.argv[1])
histories = json.load(open("histories.json"))
table = pandas.DataFrame({"history": histories}, index=[f"row {n}" for n in range(len(histories))])
answers = {
    "plain": model.predict(table, params={"k": 4}),
    "all": model.predict(table, params={"k": 4, "filter_seen": False}),
}
example = model.predict(model.input_example)
ranker = mlflow.pyfunc.load_model(sys.argv[2])
answers["ranker"] = ranker.predict(
    pandas.DataFrame({"history": json.load(open("ranker.json"))}), params={"k": 3}
)
import recsys
print(json.dumps({
    **{name: answer.to_dict("records") for name, answer in answers.items()},
    "index": list(answers["plain"].index),
    "example": example.to_dict("records"),
    "file": recsys.__file__,
    "modules": sorted({name.partition(".")[0] for name in set(sys.modules) - without}),
}))
"""


@pytest.fixture(scope="module")
def ranker(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return saved_ranker(tmp_path_factory.mktemp("ranker") / "model", told(False), "events")


@pytest.fixture(scope="module")
def answers(folder: Path, ranker: Path, elsewhere: Elsewhere) -> dict[str, Any]:
    """What a process that cannot import the checkout gets."""
    (elsewhere.folder / "histories.json").write_text(json.dumps(HISTORIES))
    (elsewhere.folder / "ranker.json").write_text(json.dumps(RANKER_HISTORIES))
    printed = elsewhere.python("-c", LOAD_AND_ASK, str(folder), str(ranker))
    found: dict[str, Any] = json.loads(printed)
    return found


def test_the_answers_are_those_of_the_recommender(
    store: HistoryStore, folder: Path, answers: dict[str, Any]
) -> None:
    assert answers["plain"] == expected(store, folder, 4, True)
    assert answers["all"] == expected(store, folder, 4, False)
    assert answers["index"] == [f"row {n}" for n in range(len(HISTORIES))]
    plain, empty, unknown, _, long = answers["plain"]
    assert [row["model"] for row in answers["plain"]] == [
        "SASRec",
        "Popularity",
        "Popularity",
        "SASRec",
        "SASRec",
    ]
    assert [row["unknown"] for row in answers["plain"]] == [0, 0, 2, 1, 0]
    assert empty["items"] == unknown["items"] != plain["items"]
    assert all(len(row["items"]) == len(row["scores"]) == 4 for row in answers["plain"])
    # All of a long history is left out, and not only the newest events, which the model reads.
    assert not set(long["items"]) & set(HISTORIES[4])


def test_a_ranker_answers_there_too(ranker: Path, answers: dict[str, Any]) -> None:
    found, expected = flat(answers["ranker"]), of_the_ranker(ranker, told(False), "events")
    assert found["items"].to_list() == expected["item"].to_list()
    assert found["scores"].to_list() == pytest.approx(expected["score"].to_list(), rel=1e-5)


def test_the_code_is_the_models_own(folder: Path, answers: dict[str, Any]) -> None:
    assert Path(answers["file"]) == folder / "code/recsys/__init__.py"
    heavy = {"hydra", "implicit", "lightning", "matplotlib", "omegaconf", "pytorch_lightning"}
    assert not heavy & set(answers["modules"])
    assert "pipelines" not in answers["modules"]
    needed = [line.partition("==")[0] for line in requirements()]
    assert not heavy & set(needed) and {"torch", "polars", "safetensors", "mlflow"} <= set(needed)
    assert (folder / "requirements.txt").read_text().splitlines() == requirements()


def test_the_input_example_is_answered(answers: dict[str, Any]) -> None:
    first, empty = answers["example"]
    assert len(first["items"]) == 10 and first["unknown"] == 0  # without params: the default k
    assert empty["model"] == "Popularity"


def test_nothing_is_pickled(folder: Path, ranker: Path) -> None:
    assert {file.suffix for file in (ranker / "items").rglob("*") if file.is_file()} == {
        ".json",
        ".npy",  # read with allow_pickle=False
        ".parquet",
    }
    files = [file for file in folder.rglob("*") if file.is_file()]
    assert {file.suffix for file in files if "code" not in file.parts} == {
        "",
        ".json",
        ".parquet",
        ".safetensors",
        ".txt",
        ".yaml",
    }
    code = [file for file in files if "code" in file.parts]
    assert code and {file.suffix for file in code} == {".py"}
    described = Model.load(folder)
    assert list(described.flavors) == ["python_function"]
    assert described.flavors["python_function"]["loader_module"] == "recsys.serving.pyfunc"
    size = sum(file.stat().st_size for file in files if file.name != "MLmodel")
    assert described.model_size_bytes == size
    assert (folder / "weights.safetensors").stat().st_nlink == 1
    assert len(list(folder.parent.iterdir())) == 1


def test_the_signature_says_columns_and_parameters(folder: Path) -> None:
    signature = Model.load(folder).signature
    assert signature.inputs.input_names() == ["history"]
    assert "string" in str(signature.inputs)
    assert signature.outputs.input_names() == ["items", "scores", "model", "unknown"]
    defaults = {parameter.name: parameter.default for parameter in signature.params.params}
    assert defaults == {"k": 10, "filter_seen": True}


def test_whole_numbers_as_ids_and_the_default_of_the_judge(
    tmp_path: Path, store: HistoryStore
) -> None:
    numbers = Vocabulary(pl.Series("item", range(100, 100 + len(store.item_vocabulary))), 1)
    made = saved(tmp_path / "model", store, numbers, False)
    signature = Model.load(made).signature
    assert "long" in str(signature.inputs)
    assert signature.params.params[1].default is False
    model = _load_pyfunc(str(made))
    table = pd.DataFrame({"history": [[101, 104], np.array([101, 104]), [7, 101]]})
    first, second, third = model.predict(table, {"k": 60}).to_dict("records")
    assert first == second and third["unknown"] == 1
    assert {101, 104} <= set(first["items"])  # not left out
    assert all(type(item) is int for item in first["items"])


def test_saved_again_in_place(
    folder: Path, store: HistoryStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*arguments: object, **options: object) -> None:
        raise OSError("No space left on device")

    made = saved(tmp_path / "model", store, store.item_vocabulary, True)
    with monkeypatch.context() as patch, pytest.raises(OSError, match="No space"):
        patch.setattr(mlflow.pyfunc, "save_model", full)
        save_pyfunc(made, store.item_vocabulary, event_counts(store), filter_seen=True)
    assert not (made / "MLmodel").exists() and list(tmp_path.iterdir()) == [made]
    (made / "code/recsys/left_over.py").write_text("")
    save_pyfunc(made, store.item_vocabulary, event_counts(store), filter_seen=True)
    names, before = (
        {str(file.relative_to(place)) for file in place.rglob("*")} for place in (made, folder)
    )
    assert {name for name in names if "__pycache__" not in name} == {
        name for name in before if "__pycache__" not in name
    }


@pytest.mark.parametrize(
    ("table", "params", "words"),
    [
        ({"history": [["i1"]]}, {"k": 0}, "k must be at least 1, not 0"),
        (
            {"hist": [["i1"]], "user": [1]},
            {},
            r"no column 'history' \(raw item ids, oldest first\); it has hist, user",
        ),
    ],
)
def test_bad_requests_are_refused(
    folder: Path, table: dict[str, Any], params: dict[str, Any], words: str
) -> None:
    with pytest.raises(MlflowException, match=words) as refused:
        _load_pyfunc(str(folder)).predict(pd.DataFrame(table), params)
    assert refused.value.get_http_status_code() == 400


def vocabulary_of_another_model(copy: Path) -> None:
    known = pl.read_parquet(copy / "items.parquet")
    known.reverse().write_parquet(copy / "items.parquet")


def cut_off(name: str) -> Callable[[Path], None]:
    def cut(copy: Path) -> None:
        (copy / name).write_bytes((copy / name).read_bytes()[:-30])

    return cut


def test_a_ranker_of_another_vocabulary(ranker: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(ranker, copy, ignore=shutil.ignore_patterns("code"))
    vocabulary_of_another_model(copy)
    with pytest.raises(ModelError, match=r"DIN was trained on other items than these \(6 there"):
        _load_pyfunc(str(copy))


def of_another_version(copy: Path) -> None:
    (copy / "serving.json").write_text('{"format": "recsys-serving", "version": 9}')


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (vocabulary_of_another_model, r"was trained on other items than these \(59 there, 59 here"),
        (cut_off("items.parquet"), "items.parquet is missing or damaged: copy the model again"),
        (cut_off("serving.json"), "serving.json is missing or damaged: copy the model again"),
        (cut_off("weights.safetensors"), "weights.safetensors is missing or truncated"),
        (of_another_version, "recsys-serving 9, this release reads recsys-serving 1"),
    ],
)
def test_a_damaged_model_is_said(
    folder: Path, tmp_path: Path, damage: Callable[[Path], None], words: str
) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy, ignore=shutil.ignore_patterns("code"))
    damage(copy)
    with pytest.raises(ModelError, match=words):
        _load_pyfunc(str(copy))
