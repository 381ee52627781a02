"""Our SASRec with other projects' weights gives their hidden states and scores.

The numbers below were printed by `make_sasrec_references.py`, which runs the peers' own code in
float64, without dropout, with weights that `formula` makes from their parameters' names:

* antklen: antklen/sasrec-bert4rec-recsys23, src/models.py, 29c272e155cad52c8958b04e9e98557526a646e5
* pmixer, norm_first on ("pre") and off ("post"): pmixer/SASRec.pytorch, python/model.py,
  fde8a9c08febc2c898dc269b1d98ab762c50d2be
* gsasrec: asash/gSASRec-pytorch, gsasrec.py, 7e350285fb4721377c96e20ace7c74bf19bea57b
* recbole: RUCAIBox/RecBole 1.2.1, recbole/model/sequential_recommender/sasrec.py,
  7b02be5ec80a88310f2d04a27a82adfcbb5dc211

What they do otherwise, all of it set up in `PEERS`:

* The epsilon of the layer norms is 1e-8 (antklen, pmixer) or 1e-12 (recbole); ours, like gsasrec's,
  is torch's 1e-5.
* pmixer pads on the left and lets real events attend to the padding, so the two agree on histories
  without padding only: each is given alone. Padded, its positions count from the newest event,
  and hidden states of these histories move by up to 1.9.
* gsasrec pads on the left and masks: our positions "newest" with its table reversed, at every
  length. Its heads are not projected, its embeddings not scaled, its output has a table of its own.
* recbole normalises the embeddings on entry and nothing after the last layer; ours does the
  reverse. Its embeddings are not scaled.
"""

from __future__ import annotations

import math
import re
import zlib
from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn

from recsys.models.next_item.sasrec import SASRec
from recsys.testing import batch_of

ITEMS, MAX_LENGTH, WIDTH, HEADS, LAYERS = 9, 6, 8, 2, 2
HISTORIES = [[4], [7, 2, 9], [3, 8, 1, 5, 9, 3]]


def formula(name: str, shape: tuple[int, ...]) -> Tensor:
    """Weights that anyone can make again: a chirp whose speed comes from the parameter's name.

    Squared, because sin(k · i) as a matrix has rank 2.
    """
    k = 1 + zlib.crc32(name.encode()) % 1000 / 1000
    i = torch.arange(1, math.prod(shape) + 1, dtype=torch.float64)
    wave = torch.sin(k * i * i).view(shape)
    is_norm = len(shape) == 1 and name.endswith("weight")
    return 1 + 0.3 * wave if is_norm else 0.5 * wave


# Our modules and theirs; {} is the number of the layer. Query, key and value are stacked.
TORCH_ATTENTION = {
    "items": "item_emb",
    "positions.table": "pos_emb",
    "final_norm": "last_layernorm",
    "attention_norm": "attention_layernorms.{}",
    "attention.query": "attention_layers.{}.in_proj",
    "attention.key": "attention_layers.{}.in_proj",
    "attention.value": "attention_layers.{}.in_proj",
    "attention.project": "attention_layers.{}.out_proj",
    "feed_forward_norm": "forward_layernorms.{}",
    "feed_forward.expand": "forward_layers.{}.conv1",
    "feed_forward.contract": "forward_layers.{}.conv2",
}
GSASREC = {
    "items": "item_embedding",
    "output": "output_embedding",
    "positions.table": "position_embedding",
    "final_norm": "seq_norm",
    "attention_norm": "transformer_blocks.{}.first_norm",
    "attention.query": "transformer_blocks.{}.multihead_attention.query_proj",
    "attention.key": "transformer_blocks.{}.multihead_attention.key_proj",
    "attention.value": "transformer_blocks.{}.multihead_attention.val_proj",
    "feed_forward_norm": "transformer_blocks.{}.second_norm",
    "feed_forward.expand": "transformer_blocks.{}.dense1",
    "feed_forward.contract": "transformer_blocks.{}.dense2",
}
RECBOLE = {
    "items": "item_embedding",
    "positions.table": "position_embedding",
    "dropout": "LayerNorm",
    "attention_norm": "trm_encoder.layer.{}.multi_head_attention.LayerNorm",
    "attention.query": "trm_encoder.layer.{}.multi_head_attention.query",
    "attention.key": "trm_encoder.layer.{}.multi_head_attention.key",
    "attention.value": "trm_encoder.layer.{}.multi_head_attention.value",
    "attention.project": "trm_encoder.layer.{}.multi_head_attention.dense",
    "feed_forward_norm": "trm_encoder.layer.{}.feed_forward.LayerNorm",
    "feed_forward.expand": "trm_encoder.layer.{}.feed_forward.dense_1",
    "feed_forward.contract": "trm_encoder.layer.{}.feed_forward.dense_2",
}


def without_projection(model: Any) -> None:
    for layer in model.layers.groups:
        layer.attention.project = nn.Identity()


def norm_on_entry_none_at_the_end(model: Any) -> None:
    model.dropout = nn.LayerNorm(WIDTH)  # stands between the embeddings and the first layer
    model.final_norm = nn.Identity()


class Peer(NamedTuple):
    modules: dict[str, str]
    arguments: dict[str, Any]
    epsilon: float
    positions: Callable[[Tensor], Tensor] = lambda table: table[:MAX_LENGTH]
    adapt: Callable[[Any], None] = lambda model: None


PEERS = {
    "antklen": Peer(TORCH_ATTENTION, {}, 1e-8),
    # Its positions begin at 1.
    "pmixer_pre": Peer(TORCH_ATTENTION, {"norm": "pre"}, 1e-8, lambda table: table[1:]),
    "pmixer_post": Peer(TORCH_ATTENTION, {"norm": "post"}, 1e-8, lambda table: table[1:]),
    "gsasrec": Peer(
        GSASREC,
        {"embedding_scale": 1.0, "positions": "newest", "tied_output": False},
        1e-5,
        lambda table: table[:MAX_LENGTH].flip(0),
        without_projection,
    ),
    "recbole": Peer(
        RECBOLE,
        {"embedding_scale": 1.0, "norm": "post", "activation": "gelu", "feedforward": 2},
        1e-12,
        adapt=norm_on_entry_none_at_the_end,
    ),
}

# For each of the histories a row of hidden state, newest event, and a row of scores, items 1 to 9.
REFERENCES = {
    "antklen": """
        2.586944 -0.262011 -0.595814 0.544231 -0.366871 -0.084033 -1.185581 -2.023784
        1.079607 -0.710229 0.310536 1.337165 -1.597330 1.529125 -1.095430 -1.682733 1.670016
        2.909193 -0.492706 -0.424685 0.580555 -0.796211 -0.376223 -1.121387 -1.690638
        1.454112 -1.240024 0.162089 1.145316 -1.681737 1.584310 -1.302320 -1.741093 1.655251
        1.912336 0.929718 -0.428296 -0.408390 -0.302100 0.523220 -1.195255 -2.167130
        0.595021 -0.253963 -0.125307 0.533022 -1.451877 1.052448 0.414785 -0.692232 0.276868
    """,
    "pmixer_pre": """
        0.851129 -0.295334 -1.092799 1.318497 0.059598 -0.251223 -0.813306 -1.634356
        0.051946 0.547040 0.872740 1.699994 -0.499872 0.861042 -1.275726 -1.387405 1.940601
        2.528074 -2.037824 -1.011146 0.660820 0.422362 -0.109706 -0.661244 -1.420190
        1.429012 -1.081736 1.171423 2.289433 -1.746346 1.918120 -2.399767 -2.512709 2.867052
        2.387705 -1.685902 -0.731989 -0.008280 0.351453 0.638139 -0.546896 -2.058995
        1.250560 -0.855489 1.279543 2.232403 -2.420467 2.098850 -1.119005 -2.135383 1.998567
    """,
    "pmixer_post": """
        1.807652 -0.574486 -1.727091 0.518955 -0.176701 0.646245 -0.872828 -1.137409
        0.669436 -0.615521 1.250055 1.778953 -1.412010 1.392406 -1.398016 -1.678343 1.814304
        3.417381 -0.999908 -0.633947 0.153409 -0.380094 -0.165394 -1.136130 -1.437962
        1.875377 -1.798318 0.256739 1.293284 -1.956407 1.854321 -1.800449 -2.094637 1.997100
        2.555733 -0.879754 -1.048723 -0.917729 0.045754 0.962747 -0.631149 -1.221637
        1.427619 -1.505755 0.805048 1.308826 -2.275081 1.763825 -0.704563 -1.559183 1.100677
    """,
    "gsasrec": """
        3.454521 -0.043636 -0.598156 -0.267606 -1.647573 0.458753 0.076531 -0.285496
        1.001256 -0.762570 -0.371913 0.176261 -1.761583 1.639493 1.660587 1.727090 -1.256348
        3.468874 -0.185330 -0.726153 -0.381274 -1.255382 0.478073 0.262950 -0.322652
        1.029956 -0.840016 -0.294356 0.031932 -1.692745 1.279827 1.258451 1.609779 -1.140441
        3.203045 0.290240 -0.293475 -0.163899 -2.189187 0.842583 -0.559799 -0.339235
        0.862066 -0.494503 -0.435942 0.489893 -1.896237 2.135822 2.280719 1.594798 -1.135557
    """,
    "recbole": """
        2.829549 -2.732830 -0.451042 0.797101 0.524285 -0.182906 -1.197706 -0.462952
        -1.443347 1.906184 -0.676760 0.643935 -0.621827 0.314984 -2.303287 -0.776857 -0.879591
        2.885073 -2.614566 -0.536944 0.864357 0.571562 -0.482170 -1.187814 -0.357846
        -1.690932 1.897826 -0.825291 0.472514 -0.647625 0.292026 -2.426849 -0.893457 -0.925173
        2.699676 -2.878312 -0.377680 0.798712 0.546110 0.065048 -0.999800 -0.811152
        -1.026085 1.872462 -0.477533 0.590498 -0.746728 0.216016 -2.282203 -0.550733 -0.733585
    """,
}


def weights_of(peer: Peer, name: str, shape: tuple[int, ...]) -> Tensor:
    """What stands in their model for our parameter `name`."""
    found = re.fullmatch(r"(?:layers\.groups\.(\d)\.)?(.+)\.(weight|bias)", name)
    assert found is not None
    layer, module, kind = found.groups()
    theirs = peer.modules[module].format(layer)
    if theirs.endswith("in_proj"):
        part = ("attention.query", "attention.key", "attention.value").index(module)
        return formula(f"{theirs}_{kind}", (3 * WIDTH, *shape[1:])).chunk(3)[part]
    if module == "positions.table":
        return peer.positions(formula(f"{theirs}.{kind}", (MAX_LENGTH + 1, WIDTH)))
    return formula(f"{theirs}.{kind}", shape)


@torch.no_grad()
@pytest.mark.parametrize("name", list(PEERS))
def test_hidden_states_and_scores(name: str) -> None:
    peer = PEERS[name]
    model = SASRec(ITEMS + 1, MAX_LENGTH, WIDTH, HEADS, LAYERS, **peer.arguments).eval()
    peer.adapt(model)
    for module in model.modules():
        if isinstance(module, nn.LayerNorm):
            module.eps = peer.epsilon
    for ours, parameter in model.named_parameters():
        parameter.copy_(weights_of(peer, ours, tuple(parameter.shape)))
    model.items.weight[0] = 0
    hidden_BD = model.encode(batch_of(HISTORIES))
    scores_BV = hidden_BD @ model.item_table().T
    got = torch.cat([hidden_BD, scores_BV[:, 1:]], 1)
    expected = torch.tensor([float(number) for number in REFERENCES[name].split()])
    # float32 is off by 1e-6, another epsilon or another gelu by more than this.
    torch.testing.assert_close(got, expected.view(len(HISTORIES), -1), rtol=0, atol=5e-6)
