"""A trained model on disk: JSON that says how to build it, safetensors that fill it. No pickle."""

from __future__ import annotations

import importlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import nn

from recsys.logs.files import write_bytes, write_text

FORMAT, VERSION = "recsys-model", 1


class ModelError(ValueError):
    """A saved model that cannot be used."""


def save_model(
    folder: Path, model: nn.Module, arguments: Mapping[str, Any], facts: Mapping[str, Any]
) -> None:
    """Writes `weights.safetensors`, then `model.json`, which makes the folder a model.

    Args:
        folder: made if absent.
        model: its class must be importable.
        arguments: the constructor's, as numbers, strings, booleans and lists of them.
        facts: what the model was made from (vocabulary fingerprint, …), kept beside.
    """
    folder.mkdir(parents=True, exist_ok=True)
    # A tied table is one parameter, so no tensor is written twice.
    weights = {name: value.contiguous() for name, value in model.state_dict().items()}
    write_bytes(folder / "weights.safetensors", save(weights))
    described = {
        "format": FORMAT,
        "version": VERSION,
        "class": f"{type(model).__module__}.{type(model).__qualname__}",
        "arguments": dict(arguments),
        **facts,
    }
    write_text(folder / "model.json", json.dumps(described, indent=2) + "\n")


def load_model(
    folder: Path, trusted_modules: Sequence[str] = ()
) -> tuple[nn.Module, dict[str, Any]]:
    """Builds the model again.

    Args:
        folder: that `save_model` wrote.
        trusted_modules: packages besides `recsys` whose classes may be built.

    Returns:
        The model in evaluation mode, and what `model.json` says.

    Raises:
        ModelError: no model, a truncated one, another format, or a class that is not trusted.
    """
    described = read_description(folder)
    path = str(described["class"])
    module, _, name = path.rpartition(".")
    package = module.partition(".")[0]
    if package not in ("recsys", *trusted_modules):
        raise ModelError(
            f"{folder} holds a {path}: classes are only built from recsys and trusted_modules "
            f"({', '.join(trusted_modules) or 'none'}); add '{package}' to them if you trust it"
        )
    try:
        model: nn.Module = getattr(importlib.import_module(module), name)(**described["arguments"])
    except (ImportError, AttributeError, TypeError) as error:
        raise ModelError(f"{folder} holds a {path}, which cannot be built here: {error}") from error
    weights_file = folder / "weights.safetensors"
    try:
        weights = load_file(weights_file)
    except (OSError, SafetensorError) as error:
        raise ModelError(
            f"{weights_file} is missing or truncated ({error}): copy the model again"
        ) from error
    own = model.state_dict()
    for key in own.keys() | weights.keys():
        if key not in own or key not in weights or own[key].shape != weights[key].shape:
            raise ModelError(f"{weights_file} does not fit {path}: {key} differs")
    model.load_state_dict(weights)
    return model.eval(), described


def read_description(folder: Path) -> dict[str, Any]:
    """What `model.json` says.

    Raises:
        ModelError: there is none, or it is of another format or version.
    """
    file = folder / "model.json"
    try:
        described: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ModelError(f"there is no saved model in {folder}") from error
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ModelError(f"{file} is truncated or not JSON: copy the model again") from error
    if described.get("format") != FORMAT:
        raise ModelError(f"{file} is not a {FORMAT} file, but {described.get('format')!r}")
    if described.get("version") != VERSION:
        raise ModelError(
            f"{file} has format version {described.get('version')}, this release reads {VERSION}"
        )
    return described
