"""Prints the numbers that `test_sasrec.py` expects, computed by the peers' own code.

    git clone https://github.com/antklen/sasrec-bert4rec-recsys23 /tmp/antklen
    git -C /tmp/antklen checkout 29c272e155cad52c8958b04e9e98557526a646e5
    python -m tests.parity.make_sasrec_references antklen /tmp/antklen

and likewise `pmixer_pre`, `pmixer_post`, `gsasrec` and `recbole`; repositories and commits are in
`test_sasrec.py`, sizes, histories and weights too. Needs nothing but this project's environment.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any
from unittest.mock import MagicMock

import torch
from torch import Tensor, nn

from tests.parity.test_sasrec import HEADS, HISTORIES, ITEMS, LAYERS, MAX_LENGTH, WIDTH, formula

Encode = Callable[[list[int]], Tensor]  # a history to the hidden state of its newest event, [D]


def antklen(clone: Path) -> tuple[nn.Module, Encode, str]:
    """Padded on the right, as its PaddingCollateFn does."""
    sys.path.insert(0, str(clone / "src"))
    sys.modules["transformers"] = MagicMock()  # for its other models
    model = import_module("models").SASRec(ITEMS, MAX_LENGTH, WIDTH, LAYERS, HEADS, add_head=False)

    def encode(history: list[int]) -> Tensor:
        padded = history + [0] * (MAX_LENGTH - len(history))
        return model(torch.tensor([padded]), None)[0, len(history) - 1]

    return model, encode, "item_emb"


def pmixer(clone: Path, norm_first: bool) -> tuple[nn.Module, Encode, str]:
    """Not padded: its real events attend to padding."""
    sys.path.insert(0, str(clone / "python"))
    arguments = SimpleNamespace(
        device="cpu",
        norm_first=norm_first,
        hidden_units=WIDTH,
        maxlen=MAX_LENGTH,
        dropout_rate=0.0,
        num_blocks=LAYERS,
        num_heads=HEADS,
    )
    model = import_module("model").SASRec(0, ITEMS, arguments)

    def encode(history: list[int]) -> Tensor:
        return model.log2feats(torch.tensor([history]).numpy())[0, -1]

    return model, encode, "item_emb"


def gsasrec(clone: Path) -> tuple[nn.Module, Encode, str]:
    """Padded on the left with the number behind the last item."""
    sys.path.insert(0, str(clone))
    model = import_module("gsasrec").GSASRec(ITEMS, MAX_LENGTH, WIDTH, HEADS, LAYERS)

    def encode(history: list[int]) -> Tensor:
        padding = [ITEMS + 1] * (MAX_LENGTH - len(history))
        return model(torch.tensor([padding + history]))[0][0, -1]

    return model, encode, "output_embedding"


def recbole(clone: Path) -> tuple[nn.Module, Encode, str]:
    """Padded on the right. Imports of what SASRec does not use are replaced."""
    sys.path.insert(0, str(clone))
    sys.modules["recbole.utils"] = MagicMock()
    models = ModuleType("recbole.model.sequential_recommender")
    models.__path__ = [str(clone / "recbole/model/sequential_recommender")]
    sys.modules[models.__name__] = models
    config: dict[str, Any] = {
        "USER_ID_FIELD": "user",
        "ITEM_ID_FIELD": "item",
        "LIST_SUFFIX": "_list",
        "ITEM_LIST_LENGTH_FIELD": "length",
        "NEG_PREFIX": "neg_",
        "MAX_ITEM_LIST_LENGTH": MAX_LENGTH,
        "device": "cpu",
        "n_layers": LAYERS,
        "n_heads": HEADS,
        "hidden_size": WIDTH,
        "inner_size": 2 * WIDTH,
        "hidden_dropout_prob": 0.5,
        "attn_dropout_prob": 0.5,
        "hidden_act": "gelu",
        "layer_norm_eps": 1e-12,
        "initializer_range": 0.02,
        "loss_type": "CE",
    }
    dataset = SimpleNamespace(num=lambda field: ITEMS + 1)
    model = import_module(f"{models.__name__}.sasrec").SASRec(config, dataset)

    def encode(history: list[int]) -> Tensor:
        padded = history + [0] * (MAX_LENGTH - len(history))
        return model(torch.tensor([padded]), torch.tensor([len(history)]))[0]

    return model, encode, "item_embedding"


PEERS: dict[str, Callable[[Path], tuple[nn.Module, Encode, str]]] = {
    "antklen": antklen,
    "pmixer_pre": lambda clone: pmixer(clone, True),
    "pmixer_post": lambda clone: pmixer(clone, False),
    "gsasrec": gsasrec,
    "recbole": recbole,
}


@torch.no_grad()
def main() -> None:
    """Fills the peer's parameters by the formula, runs it, prints."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("peer", choices=PEERS)
    parser.add_argument("clone", type=Path, help="checkout of the peer's repository")
    arguments = parser.parse_args()
    model, encode, table = PEERS[arguments.peer](arguments.clone.resolve())
    model.double().eval()
    for name, parameter in model.named_parameters():
        parameter.copy_(formula(name, tuple(parameter.shape)))
    for module in model.modules():
        if isinstance(module, nn.Embedding) and module.padding_idx is not None:
            module.weight[module.padding_idx] = 0
    items = model.get_submodule(table).get_parameter("weight")[1 : ITEMS + 1]
    for history in HISTORIES:
        hidden = encode(history)
        for row in (hidden, items @ hidden):
            print(" ".join(f"{number:.6f}" for number in row.tolist()))


if __name__ == "__main__":
    main()
