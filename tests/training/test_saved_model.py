"""A saved model comes back as it was, and nothing else is built."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from recsys.models.next_item.sasrec import SASRec
from recsys.testing import batch_of
from recsys.training.saved_model import ModelError, load_model, save_model

ARGUMENTS = {"catalogue_size": 20, "max_length": 8, "width": 8, "heads": 2, "tied_output": False}


@pytest.fixture
def saved(tmp_path: Path) -> tuple[Path, SASRec]:
    torch.manual_seed(0)
    model = SASRec(**ARGUMENTS).eval()  # type: ignore[arg-type]
    save_model(tmp_path / "model", model, ARGUMENTS, {"item_vocabulary": "abc"})
    return tmp_path / "model", model


def test_same_scores_after_loading(saved: tuple[Path, SASRec]) -> None:
    folder, model = saved
    again, described = load_model(folder)
    batch = batch_of([[1, 2, 3], [4], []])
    assert torch.equal(again.encode(batch), model.encode(batch))  # type: ignore[operator]
    assert not again.training
    assert described["item_vocabulary"] == "abc"
    assert sorted(path.name for path in folder.iterdir()) == ["model.json", "weights.safetensors"]


def edit(folder: Path, **values: object) -> None:
    file = folder / "model.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **values}))


def test_classes_of_strangers_are_not_built(saved: tuple[Path, SASRec]) -> None:
    folder, _ = saved
    edit(folder, **{"class": "collections.OrderedDict", "arguments": {}})
    with pytest.raises(ModelError, match=r"only built from recsys and trusted_modules \(none\)"):
        load_model(folder)
    with pytest.raises(ModelError, match="collections"):
        load_model(folder, trusted_modules=["numpy"])
    edit(folder, **{"class": "recsystem.Model"})
    with pytest.raises(ModelError, match="only built from recsys"):
        load_model(folder)


def test_classes_of_trusted_modules_are_built(saved: tuple[Path, SASRec]) -> None:
    folder, _ = saved
    edit(folder, **{"class": "torch.nn.modules.linear.Identity", "arguments": {}})
    with pytest.raises(ModelError, match=r"does not fit torch\.nn\.modules\.linear\.Identity"):
        load_model(folder, trusted_modules=["torch"])


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"class": "recsys.models.next_item.sasrec.SASReck"}, "cannot be built here"),
        ({"arguments": {**ARGUMENTS, "widht": 3}}, "cannot be built here.*widht"),
        ({"class": "recsys.models.next_item.sasrek.SASRec"}, "cannot be built here"),
        ({"arguments": {**ARGUMENTS, "width": 16}}, "does not fit"),
        ({"arguments": {**ARGUMENTS, "layers": 1}}, "does not fit"),
        ({"arguments": {**ARGUMENTS, "layers": 3}}, "does not fit"),
        ({"version": 2}, "has format version 2, this release reads 1"),
        ({"format": "zip"}, "is not a recsys-model file, but 'zip'"),
    ],
)
def test_what_does_not_fit_is_named(
    saved: tuple[Path, SASRec], change: dict[str, object], words: str
) -> None:
    folder, _ = saved
    edit(folder, **change)
    with pytest.raises(ModelError, match=words):
        load_model(folder)


def test_missing_and_truncated_files(saved: tuple[Path, SASRec], tmp_path: Path) -> None:
    folder, _ = saved
    with pytest.raises(ModelError, match="there is no saved model in"):
        load_model(tmp_path / "nowhere")
    weights = folder / "weights.safetensors"
    weights.write_bytes(weights.read_bytes()[:-5])
    with pytest.raises(ModelError, match="missing or truncated"):
        load_model(folder)
    weights.unlink()
    with pytest.raises(ModelError, match="missing or truncated"):
        load_model(folder)
    (folder / "model.json").write_text("{")
    with pytest.raises(ModelError, match="truncated or not JSON"):
        load_model(folder)
