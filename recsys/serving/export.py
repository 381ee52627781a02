"""A trained model as one file for other runtimes: ONNX, or a program of `torch.export`.

    program = export_next_item(model)          # or export_ranker(model, example_batch(features))
    write_program(program, Path("sasrec.onnx"), "onnx", described)

A next-item model takes `items` [batch, length], int64 item indices, right-padded with 0, and
`lengths` [batch], and gives `scores` [batch, V]; the padding scores -inf. A ranker takes the
tensors of a `ClickBatch` by name and gives `logits` [batch]. Batch and length are free, the length
up to the model's `max_length`. A JSON file beside the program names inputs and output, says what
the dimensions are, and carries the fingerprint of the item vocabulary that the indices count in.

What is exported is the model's own code, traced; the tests hold it to the same scores.

Dimensions: B histories or questions, L padded length, D width, V catalogue incl. padding, I
distinct items, M codes of a bag.
"""

from __future__ import annotations

import importlib.util
import json
import logging
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from recsys.batch import ClickBatch, HistoryBatch
from recsys.histories.features import FittedFeatures, MultiValued
from recsys.logs.files import name_aside, sync, write_text

Format = Literal["onnx", "torch"]
SUFFIXES: dict[Format, str] = {"onnx": ".onnx", "torch": ".pt2"}
FORMAT, VERSION = "recsys-program", 1
ONNX_BYTES = 2**31  # what one ONNX file can hold
_MANY = 1 << 30
_FIELDS = ("user", "item", "event", "context")


class ExportError(ValueError):
    """A model that cannot be exported as asked."""


@dataclass(frozen=True)
class Program:
    """A traced model.

    Attributes:
        exported: takes one mapping, tensors by name.
        inputs: name → type and dimensions, in order.
        output: its name.
        max_length: the longest history it takes.
    """

    exported: ExportedProgram
    inputs: dict[str, dict[str, Any]]
    output: str
    max_length: int


@dataclass(frozen=True)
class _EveryPlace(HistoryBatch):
    """Histories whose padding is worked on too: how many events there are decides no shape."""

    @property
    def packed_T(self) -> Tensor:
        """All of them."""
        B, L = self.items_BL.shape
        return torch.arange(B * L, device=self.items_BL.device)


class _NextItemScores(nn.Module):
    """Scores of the newest events' hidden states against the item table."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, inputs: dict[str, Tensor]) -> Tensor:
        """From `items` and `lengths` to [B, V]."""
        items_BL, lengths_B = inputs["items"], inputs["lengths"]
        B, L = items_BL.shape
        hidden_BLD = self.model(_EveryPlace(items_BL, lengths_B)).view(B, L, -1)
        newest_B11 = (lengths_B - 1).clamp(min=0)[:, None, None]
        newest_B1D = newest_B11.expand(-1, -1, hidden_BLD.shape[2])
        hidden_BD = hidden_BLD.gather(1, newest_B1D).squeeze(1).float()
        hidden_BD = torch.where((lengths_B > 0)[:, None], hidden_BD, 0.0)
        scores_BV = hidden_BD @ self.model.item_table().float().T  # type: ignore[operator]
        padding_V = torch.arange(scores_BV.shape[1], device=scores_BV.device) == 0
        return scores_BV.masked_fill(padding_V, float("-inf"))


class _Logits(nn.Module):
    """A ranker's logits."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, inputs: dict[str, Tensor]) -> Tensor:
        """From the tensors of a batch to [B]."""
        logits_B: Tensor = self.model(_batch_of(inputs))
        return logits_B


def export_next_item(model: nn.Module) -> Program:
    """A model of the next item, from histories to the scores of all items.

    Args:
        model: with `encode` and `item_table`, in evaluation mode.

    Raises:
        ExportError: its code cannot be traced.
    """
    max_length = cast(int, model.max_length)
    B, L = 4, min(max_length, 3)  # different, so that neither is taken for the other
    example = {
        "items": torch.ones(B, L, dtype=torch.int64),
        "lengths": torch.full((B,), L, dtype=torch.int64),
    }
    batch = Dim("batch", max=_MANY)
    length = Dim("length", max=max_length) if max_length > 1 else None
    dimensions = {"items": (batch, length), "lengths": (batch,)}
    return _program(_NextItemScores(model), example, dimensions, "scores", max_length)


def export_ranker(model: nn.Module, example: ClickBatch) -> Program:
    """A ranker, from the tensors of a batch to the logits of its questions.

    Args:
        model: in evaluation mode.
        example: a batch with its fields, no dimension of which is 1; see `example_batch`.

    Raises:
        ExportError: its code cannot be traced.
    """
    max_length = cast(int, model.max_length)
    tensors = _tensors_of(example)
    batch, items = Dim("batch", max=_MANY), Dim("items", min=2, max=_MANY)
    length = Dim("length", max=max_length) if max_length > 1 else None
    dimensions: dict[str, tuple[Any, ...]] = {
        "item_ids": (items,),
        "candidates": (batch,),
        "history": (batch, length),
        "lengths": (batch,),
    }
    leading = {"user": (batch,), "item": (items,), "event": (batch, length), "context": (batch,)}
    for name, tensor in tensors.items():
        of, _, field = name.partition(".")
        if field:
            known = leading[of]
            bags = [Dim(f"{of}_{field}", max=_MANY)] * (tensor.ndim - len(known))
            dimensions[name] = (*known, *bags)
    return _program(_Logits(model), tensors, dimensions, "logits", max_length)


def example_batch(features: FittedFeatures, max_length: int) -> ClickBatch:
    """A small batch with the fields of fitted features, to trace a ranker with."""
    # Of different sizes, so that none is taken for another.
    B, L, I, M = 6, min(max_length, 3), 4, 5  # noqa: E741
    shapes = {"user": (B,), "item": (I,), "event": (B, L), "context": (B,)}
    fields: dict[str, dict[str, Tensor]] = {of: {} for of in _FIELDS}
    for feature in features.features:
        shape = shapes[feature.of]
        size = features.sizes[feature.of][feature.name]
        if isinstance(feature, MultiValued):
            shape = (*shape, M)
        fields[feature.of][feature.name] = torch.zeros(
            shape, dtype=torch.float32 if size == 0 else torch.int64
        )
    return ClickBatch(
        item_ids_I=torch.zeros(I, dtype=torch.int64),
        candidates_B=torch.ones(B, dtype=torch.int64),
        history_BL=torch.ones(B, L, dtype=torch.int64),
        lengths_B=torch.full((B,), L, dtype=torch.int64),
        **{f"{of}_fields": fields[of] for of in _FIELDS},
    )


def check_output(output: Path, format: Format) -> None:
    """Refuses what cannot be written, before any work starts.

    Raises:
        ExportError: a folder, another suffix than the format's, or packages that are not there.
    """
    suffix = SUFFIXES[format]
    if output.is_dir():
        raise ExportError(f"output={output} is a folder: add the name of a file in it")
    if output.suffix != suffix:
        raise ExportError(
            f"output={output}: a file of format={format} ends in {suffix}; name it "
            f"{output.stem}{suffix}"
        )
    absent = [name for name in ("onnx", "onnxscript") if importlib.util.find_spec(name) is None]
    if format == "onnx" and absent:
        raise ExportError(
            f"format=onnx needs {' and '.join(absent)}: pip install 'recsys[onnx]', or take "
            "format=torch"
        )


def write_program(
    program: Program, output: Path, format: Format, described: Mapping[str, Any]
) -> Path:
    """Writes the program, then the JSON beside it, which makes it whole.

    Args:
        program: what `export_next_item` or `export_ranker` gave.
        output: the file.
        format: "onnx" or "torch".
        described: what the model's `model.json` says.

    Returns:
        The JSON file.

    Raises:
        ExportError: see `check_output`; or a model that is too large for an ONNX file.
    """
    check_output(output, format)
    weights = program.exported.state_dict.values()
    size = sum(weight.numel() * weight.element_size() for weight in weights)
    if format == "onnx" and size >= ONNX_BYTES:
        raise ExportError(
            f"the weights take {size / 2**30:.1f} GB, and one ONNX file holds 2: take format=torch"
        )
    output.parent.mkdir(parents=True, exist_ok=True)
    beside = output.with_name(f"{output.name}.json")
    aside = name_aside(output)
    aside = aside.with_name(aside.name + output.suffix)  # torch asks for it
    try:
        if format == "torch":
            torch.export.save(program.exported, aside)
        else:
            _write_onnx(program, aside)
        sync(aside)
        beside.unlink(missing_ok=True)
        aside.replace(output)
    except BaseException:
        aside.unlink(missing_ok=True)
        raise
    content = {
        "format": FORMAT,
        "version": VERSION,
        "program": output.name,
        "kind": format,
        "model": described.get("name"),
        "class": described.get("class"),
        "item_vocabulary": described.get("item_vocabulary"),
        "inputs": program.inputs,
        "output": program.output,
        "max_length": program.max_length,
    }
    write_text(beside, json.dumps(content, indent=2) + "\n")
    return beside


def _program(
    module: _NextItemScores | _Logits,
    example: dict[str, Tensor],
    dimensions: Mapping[str, tuple[Any, ...]],
    output: str,
    max_length: int,
) -> Program:
    shapes = {
        name: {axis: dim for axis, dim in enumerate(dimensions[name]) if dim is not None}
        for name in example
    }
    with torch.no_grad():
        try:
            exported = torch.export.export(
                module.eval(), (example,), dynamic_shapes={"inputs": shapes}, strict=False
            )
        except Exception as error:  # of many classes, some of which are torch's own affair
            raise ExportError(
                f"{type(module.model).__name__} cannot be traced for any batch and length: its "
                "forward may not branch on the numbers of a batch, nor turn them into Python's. "
                f"{_said(error)}"
            ) from error
    inputs = {
        name: {
            "type": str(tensor.dtype).removeprefix("torch."),
            "dimensions": [
                shapes[name][axis].__name__ if axis in shapes[name] else size
                for axis, size in enumerate(tensor.shape)
            ],
        }
        for name, tensor in example.items()
    }
    return Program(exported, inputs, output, max_length)


def _said(error: Exception) -> str:
    """The first line of what torch raised; the whole story takes pages."""
    first = str(error).strip().partition("\n")[0]
    return f"{type(error).__name__}: {first}"


def _write_onnx(program: Program, path: Path) -> None:
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)  # what else it could translate
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            torch.onnx.export(
                program.exported,
                (),
                path,
                input_names=list(program.inputs),
                output_names=[program.output],
                dynamo=True,
                external_data=False,
                verbose=False,
            )
        except torch.onnx.OnnxExporterError as error:
            raise ExportError(
                f"ONNX has no words for what the model does: take format=torch. {_said(error)}"
            ) from error


def _tensors_of(batch: ClickBatch) -> dict[str, Tensor]:
    """By name: fields as "user.NAME", "item.NAME", "event.NAME", "context.NAME"."""
    fields = {
        f"{of}.{name}": field
        for of in _FIELDS
        for name, field in getattr(batch, f"{of}_fields").items()
    }
    return {
        "item_ids": batch.item_ids_I,
        "candidates": batch.candidates_B,
        "history": batch.history_BL,
        "lengths": batch.lengths_B,
        **fields,
    }


def _batch_of(tensors: Mapping[str, Tensor]) -> ClickBatch:
    """What `_tensors_of` took apart."""
    fields: dict[str, dict[str, Tensor]] = {of: {} for of in _FIELDS}
    for key, tensor in tensors.items():
        of, _, name = key.partition(".")
        if name:
            fields[of][name] = tensor
    return ClickBatch(
        tensors["item_ids"],
        tensors["candidates"],
        tensors["history"],
        tensors["lengths"],
        **{f"{of}_fields": fields[of] for of in _FIELDS},
    )
