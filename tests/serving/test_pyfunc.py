"""A saved model answers through MLflow as it does here, where only MLflow and its packages are."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import polars as pl
import pytest
import torch
from mlflow.exceptions import MlflowException
from mlflow.models import Model

from recsys.histories.store import HistoryStore
from recsys.histories.vocabulary import Vocabulary
from recsys.models.next_item.sasrec import SASRec
from recsys.serving.pyfunc import _load_pyfunc, requirements, save_pyfunc
from recsys.serving.recommender import Recommender, event_counts
from recsys.testing import planted_log
from recsys.training.saved_model import ModelError, save_model
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
def answers(folder: Path, elsewhere: Elsewhere) -> dict[str, Any]:
    """What a process that cannot import the checkout gets."""
    (elsewhere.folder / "histories.json").write_text(json.dumps(HISTORIES))
    found: dict[str, Any] = json.loads(elsewhere.python("-c", LOAD_AND_ASK, str(folder)))
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


def test_nothing_is_pickled(folder: Path) -> None:
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


def test_saved_again_in_place(folder: Path, store: HistoryStore, tmp_path: Path) -> None:
    made = saved(tmp_path / "model", store, store.item_vocabulary, True)
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
