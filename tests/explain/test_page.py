"""The page stands alone, says everything, and its pictures are the weights."""

from __future__ import annotations

import base64
import re
import struct
import zlib

import numpy as np
import pytest

from recsys.explain.explanation import Explanation, Item, Person, mean_correlations
from recsys.explain.page import _picture, page
from recsys.explain.removal import Removal
from recsys.explain.summary import Summary, summarise

NAMES = ["layer 1 head 1", "layer 1 head 2"]


def person(raw: str, length: int, *, items: int = 2, own_maps: bool = False) -> Person:
    draw = np.random.default_rng(length)
    removal = Removal(
        draw.random(items),
        draw.normal(size=(items, length)),
        np.arange(1, items + 1),
        draw.integers(1, 9, (items, length)),
    )
    maps = draw.dirichlet(np.ones(max(length, 1)), (items if own_maps else 1, 2))[..., :length]
    layers = [] if own_maps else [np.tril(draw.random((2, length, length)))]
    return Person(
        raw,
        [(f"i{place}", f"Film <{place}> & co") for place in range(length)],
        length + 2,
        [Item(f"a{item}", f"Answer {item}", "recommended") for item in range(items)],
        Explanation(NAMES, maps, removal, layers, 0.0),
    )


def summary() -> Summary:
    draw = np.random.default_rng(0)
    return summarise(NAMES, [draw.dirichlet(np.ones(n), 2) for n in (3, 8, 30)])


def drawn(*people: Person, **more: list[str]) -> str:
    return page("A <title>", "legend", more.get("lines", ["short"]), people, summary(), ["note"])


def test_it_stands_alone_and_escapes() -> None:
    text = drawn(person("u<1>", 5), person("two", 1, own_maps=True))
    assert "http" not in text and "<script" not in text and "@import" not in text
    assert "url(" not in text and "<link" not in text
    assert set(re.findall(r'(?:src|href)="([^"#:]*)', text)) <= {"", "data"}
    assert "<title>A &lt;title&gt;</title>" in text and "User u&lt;1&gt;" in text
    assert "Film &lt;3&gt; &amp; co" in text and "Film <" not in text
    assert "prefers-color-scheme: dark" in text and "color-scheme: light dark" in text


@pytest.mark.parametrize("own_maps", [False, True])
def test_every_event_map_and_drop_is_there(own_maps: bool) -> None:
    one = person("u", 12, own_maps=own_maps)
    text = drawn(one)
    (table,) = re.findall(r'<div class="scroll".*?</div>', text)
    rows = re.findall(r"<tr>(.*?)</tr>", table)[1:]
    assert [re.findall(r"Film &lt;(\d+)", row)[0] for row in rows] == [
        str(place) for place in range(11, -1, -1)
    ]
    maps = 2 * (2 if own_maps else 1)
    assert all(row.count('class="heat') == maps for row in rows)
    assert all(row.count("<i ") == 2 for row in rows)
    explanation = one.explanation
    assert explanation is not None
    for place, row in zip(range(11, -1, -1), rows, strict=True):
        for drop in explanation.removal.drops_KL[:, place]:
            assert re.sub(r"\b0\.|(?<=[+-])0\.", ".", f"{drop:+.2f}") in row
    assert (
        text.count("12 events") == 0 and "14 events, of which the model reads the newest 12" in text
    )
    # A verdict beside every strip, of each item; each item can be chosen.
    assert text.count("track") >= 4 and text.count('type="radio"') == 2
    assert "article:has(.pick1:checked) .of:not(.of1)" in text
    assert ("Who looks at whom" in text) != own_maps


def test_people_with_one_event_and_with_none_are_said() -> None:
    nobody = Person("empty", [], 0, [], None)
    text = drawn(nobody, person("one", 1))
    assert "there is nothing to explain" in text
    assert "cannot be judged: fewer than 3 events have no order to compare" in text
    assert "no history with events to judge by" in drawn(nobody)
    found = mean_correlations([nobody, person("one", 1)])
    assert [(name, one.value, users) for name, one, users in found] == [
        (name, None, 0) for name in NAMES
    ]


def alphas(address: str) -> np.ndarray:
    """The opacities of a PNG in a data address: uint8 [height, width]."""
    content = base64.b64decode(address.removeprefix("data:image/png;base64,"))
    assert content.startswith(b"\x89PNG\r\n\x1a\n")
    at, parts = 8, {}
    while at < len(content):
        (size,) = struct.unpack(">I", content[at : at + 4])
        kind, body = content[at + 4 : at + 8], content[at + 8 : at + 8 + size]
        (check,) = struct.unpack(">I", content[at + 8 + size : at + 12 + size])
        assert check == zlib.crc32(kind + body)
        parts[kind] = body
        at += 12 + size
    width, height = struct.unpack(">II", parts[b"IHDR"][:8])
    lines = np.frombuffer(zlib.decompress(parts[b"IDAT"]), np.uint8).reshape(height, -1)
    assert (lines[:, 0] == 0).all()
    pixels: np.ndarray = lines[:, 1:].reshape(height, width, 4)
    return pixels[..., 3]


def test_the_pictures_are_the_weights() -> None:
    weights = np.array([[0.0, 1.0, 0.25], [0.5, -0.5, 0.125], [0.0, 0.0, 0.0]])
    expected = [[0, 255, 128], [255, 255, 128], [0, 0, 0]]
    np.testing.assert_allclose(alphas(_picture(weights)), expected, atol=1)
    one = person("u", 6)
    text = drawn(one)
    explanation = one.explanation
    assert explanation is not None
    found = dict(re.findall(r'alt="([^"]*)" src="([^"]*)"', text))
    strip = alphas(found["layer 1 head 2"])[0] / 255
    map_L = explanation.maps(0)[1]
    np.testing.assert_allclose(strip**2, map_L / map_L.max(), atol=0.01)
    whole = alphas(found["all weights of layer 1 head 2"]) / 255
    rows = explanation.layers[0][1]
    np.testing.assert_allclose(whole**2, rows / rows.max(1, keepdims=True), atol=0.01)
