"""Every model leaves as a program, and the program scores as the model does."""

from __future__ import annotations

import importlib
import inspect
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from recsys.batch import ClickBatch
from recsys.histories.features import (
    Categorical,
    FittedFeatures,
    MultiValued,
    Numeric,
    Recency,
    UserId,
    _Fitted,
)
from recsys.models.click.din import DIN
from recsys.models.next_item.sasrec import SASRec
from recsys.serving import export
from recsys.serving.export import (
    ExportError,
    Program,
    _tensors_of,
    example_batch,
    export_next_item,
    export_ranker,
    write_program,
)
from recsys.testing import ClickLaws, NextItemLaws, batch_of
from tests.properties.test_every_model import next_item_models, rankers

Run = Callable[[dict[str, Tensor]], Tensor]
FACTS = {"name": "A model", "class": "recsys.models.A", "item_vocabulary": "0123abcd"}


def kit() -> list[type]:
    """The classes of tests/models that build models for the laws: each option a model has."""
    found = []
    for file in sorted((Path(__file__).parents[1] / "models").glob("test_*.py")):
        module = importlib.import_module(f"tests.models.{file.stem}")
        for value in vars(module).values():
            laws = inspect.isclass(value) and issubclass(value, NextItemLaws | ClickLaws)
            if laws and value not in (NextItemLaws, ClickLaws):
                found.append(value)
    return found


def tensors(batch: Any) -> dict[str, Tensor]:
    if isinstance(batch, ClickBatch):
        return _tensors_of(batch)
    items = batch.items_BL
    if items.shape[1] == 0:  # of empty histories only
        items = torch.zeros(len(items), 1, dtype=torch.int64)
    return {"items": items, "lengths": batch.lengths_B}


def of_onnx(file: Path) -> Run:
    runtime = pytest.importorskip("onnxruntime", reason="needs onnxruntime")
    session = runtime.InferenceSession(file)

    def run(inputs: dict[str, Tensor]) -> Tensor:
        given = {name: tensor.numpy() for name, tensor in inputs.items()}
        return torch.from_numpy(session.run(None, given)[0])

    return run


def of_torch(file: Path) -> Run:
    return torch.export.load(file).module()


def written(program: Program, folder: Path, format: export.Format) -> Run:
    if format == "onnx":
        pytest.importorskip("onnxscript", reason="needs the extra onnx")
    file = folder / f"model{export.SUFFIXES[format]}"
    write_program(program, file, format, FACTS)
    assert {path.name for path in folder.iterdir()} >= {file.name, f"{file.name}.json"}
    return of_onnx(file) if format == "onnx" else of_torch(file)


@dataclass
class Case:
    """A model of the kit, traced."""

    laws: Any
    model: Any
    program: Program

    def eager(self, batch: Any) -> Tensor:
        with torch.no_grad():
            if isinstance(self.laws, ClickLaws):
                return self.model(batch)
            scores_BV = self.model.encode(batch).float() @ self.model.item_table().float().T
            scores_BV[:, 0] = -torch.inf
            return scores_BV

    def batches(self) -> list[Any]:
        """Of many sizes and lengths: one question, empty histories, the longest."""
        draw = np.random.Generator(np.random.PCG64(5))
        top, V = self.laws.max_length, self.laws.catalogue_size
        made = []
        for lengths in ([4, 1], [1], [0], [0, 2, 0], [top] * 3, [top, 5, 0, 1, 7, 2, 9, 3, top]):
            histories = [draw.integers(1, V, n).tolist() for n in lengths]
            if isinstance(self.laws, ClickLaws):
                candidates = draw.integers(1, V, len(lengths)).tolist()
                made.append(self.laws.batch(histories, candidates))
            else:
                made.append(batch_of(histories))
        return made


@pytest.fixture(scope="module", params=kit(), ids=lambda laws: laws.__name__)
def case(request: pytest.FixtureRequest) -> Case:
    laws = request.param()
    model = laws.model()
    if isinstance(laws, ClickLaws):
        return Case(laws, model, export_ranker(model, laws.batch(*laws.questions())))
    return Case(laws, model, export_next_item(model))


@pytest.mark.parametrize("format", ["torch", "onnx"])
def test_the_program_scores_as_the_model(case: Case, format: export.Format, tmp_path: Path) -> None:
    run = written(case.program, tmp_path, format)
    for batch in case.batches():
        expected, found = case.eager(batch), run(tensors(batch))
        assert found.dtype == torch.float32 and torch.isfinite(expected).any()
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
        if isinstance(case.laws, NextItemLaws):
            known = batch.lengths_B > 0  # all items are equal to an empty history
            assert torch.equal(found.topk(10).indices[known], expected.topk(10).indices[known])
        else:
            assert torch.equal(found.argsort(), expected.argsort())


def test_every_model_is_exported() -> None:
    built = {type(laws().model()).__name__ for laws in kit()}
    assert built >= next_item_models() | rankers()


def test_what_stands_beside(tmp_path: Path) -> None:
    program = export_next_item(SASRec(9, max_length=5, width=4).eval())
    beside = write_program(program, tmp_path / "new folder/model.pt2", "torch", FACTS)
    assert json.loads(beside.read_text()) == {
        "format": "recsys-program",
        "version": 1,
        "program": "model.pt2",
        "kind": "torch",
        "model": "A model",
        "class": "recsys.models.A",
        "item_vocabulary": "0123abcd",
        "inputs": {
            "items": {"type": "int64", "dimensions": ["batch", "length"]},
            "lengths": {"type": "int64", "dimensions": ["batch"]},
        },
        "output": "scores",
        "max_length": 5,
    }


@pytest.mark.parametrize("max_length", [1, 2, 600])
def test_lengths_from_one_to_beyond_what_fits_the_cache(max_length: int, tmp_path: Path) -> None:
    model = SASRec(9, max_length=max_length, width=4).eval()
    run = written(export_next_item(model), tmp_path, "torch")
    for L in (1, max_length):
        batch = batch_of([[1 + place % 8 for place in range(L)]])
        expected = model.encode(batch) @ model.item_table().T
        found = run(tensors(batch))
        torch.testing.assert_close(found[:, 1:], expected[:, 1:], rtol=1e-4, atol=1e-5)


def test_a_ranker_of_fitted_features(tmp_path: Path) -> None:
    """The command knows the features alone: the example is made of them."""
    features = FittedFeatures(
        (
            _Fitted(UserId(), values=["a", "b"]),
            _Fitted(MultiValued("genres", "item", "genres"), values=["x", "y", "z"]),
            _Fitted(Numeric("price", "item", "price"), mean=1.0, deviation=2.0),
            _Fitted(Recency("recency", 6)),
            _Fitted(MultiValued("tags", "event", "tags"), values=["t"]),
            _Fitted(Categorical("device", "context", "device"), values=["phone"]),
        )
    )
    sizes = {f"{of}_fields": given for of, given in features.sizes.items()}
    model = DIN(12, **sizes, max_length=3, width=4, hidden=[5]).eval()
    program = export_ranker(model, example_batch(features, max_length=3))
    assert program.inputs["item.genres"] == {
        "type": "int64",
        "dimensions": ["items", "item_genres"],
    }
    assert program.inputs["item.price"] == {"type": "float32", "dimensions": ["items"]}
    assert program.inputs["event.tags"]["dimensions"] == ["batch", "length", "event_tags"]
    run = written(program, tmp_path, "torch")
    draw = torch.Generator().manual_seed(0)

    def codes(size: int, *shape: int) -> Tensor:
        return torch.randint(size, shape, generator=draw)

    for B, L, M in ((1, 1, 1), (7, 3, 4)):
        batch = ClickBatch(
            item_ids_I=torch.arange(12),
            candidates_B=codes(12, B),
            history_BL=codes(12, B, L),
            lengths_B=codes(L + 1, B),
            user_fields={"user_id": codes(4, B)},
            item_fields={"genres": codes(5, 12, M), "price": torch.randn(12, generator=draw)},
            event_fields={"recency": codes(8, B, L), "tags": codes(3, B, L, M)},
            context_fields={"device": codes(3, B)},
        )
        torch.testing.assert_close(run(_tensors_of(batch)), model(batch), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    ("name", "format", "words"),
    [
        ("", "onnx", "is a folder: add the name of a file in it"),
        ("model.pt", "onnx", r"a file of format=onnx ends in \.onnx; name it model\.onnx"),
        ("model.onnx", "torch", r"a file of format=torch ends in \.pt2; name it model\.pt2"),
    ],
)
def test_outputs_that_cannot_be(
    tmp_path: Path, name: str, format: export.Format, words: str
) -> None:
    with pytest.raises(ExportError, match=words):
        export.check_output(tmp_path / name, format)


def test_without_the_packages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(
        ExportError, match=r"needs onnx and onnxscript: pip install 'recsys\[onnx\]"
    ):
        export.check_output(tmp_path / "model.onnx", "onnx")
    export.check_output(tmp_path / "model.pt2", "torch")


def test_nothing_is_half_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = export_next_item(SASRec(9, max_length=5, width=4).eval())
    with monkeypatch.context() as patch:
        patch.setattr(export, "ONNX_BYTES", 100)
        with pytest.raises(ExportError, match="one ONNX file holds 2: take format=torch"):
            write_program(program, tmp_path / "a/model.onnx", "onnx", FACTS)
    assert not list(tmp_path.iterdir())

    def full(program: object, path: Path) -> None:
        path.write_bytes(b"half")
        raise OSError("No space left on device")

    file = tmp_path / "model.pt2"
    write_program(program, file, "torch", FACTS)
    before = file.read_bytes()
    with monkeypatch.context() as patch:
        patch.setattr(torch.export, "save", full)
        with pytest.raises(OSError, match="No space"):
            write_program(program, file, "torch", FACTS)
    assert file.read_bytes() == before
    assert {path.name for path in tmp_path.iterdir()} == {"model.pt2", "model.pt2.json"}
