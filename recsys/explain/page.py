"""The page of explanations: HTML that stands alone, without scripts, fonts or network.

Items of a user's list are chosen by radio buttons and CSS; a browser that knows no `:has()` shows
all of them. Maps are PNG pictures inside the page, in one colour whose opacity is the weight, so
that they serve on light and on dark.

Dimensions: L events in view, K items, M maps, S steps back.
"""

from __future__ import annotations

import base64
import math
import struct
import zlib
from collections.abc import Sequence
from html import escape

import numpy as np

from recsys.explain.explanation import Explanation, Person, mean_correlations
from recsys.explain.faithfulness import Correlation
from recsys.explain.summary import Summary

STEPS = 50  # back, that the drawing of recency shows
_HEAT, _NEGATIVE = (37, 99, 235), (217, 83, 30)
_STYLE = """
:root { color-scheme: light dark; --line: color-mix(in srgb, currentColor 18%, transparent);
  --heat: 37 99 235; --soft: color-mix(in srgb, currentColor 5%, transparent);
  --up: #2f8f5b; --down: #d9531e; }
* { box-sizing: border-box; }
body { font: 15px/1.5 system-ui, sans-serif; max-width: 66rem; margin: 2rem auto;
  padding: 0 1rem; }
h1 { font-size: 1.5rem; margin-bottom: .2rem; } h2 { font-size: 1.15rem; margin-top: 2.2rem; }
h3 { font-size: 1.05rem; margin: 0; } h3 small { font-weight: 400; opacity: .7; }
p.legend, .note { opacity: .75; } p.legend { margin-top: 0; } .note { font-size: .87rem; }
.short { border-left: 4px solid rgb(var(--heat)); padding: .5rem 1rem; background: var(--soft); }
.short p { margin: .2rem 0; }
nav { display: flex; flex-wrap: wrap; gap: .4rem; margin: .8rem 0; }
nav a { border: 1px solid var(--line); border-radius: 1rem; padding: 0 .7rem; color: inherit;
  text-decoration: none; font-size: .9rem; }
nav a:hover { background: var(--soft); }
article { border: 1px solid var(--line); border-radius: .7rem; padding: 1rem 1.2rem; margin: 1rem 0;
  scroll-margin-top: .5rem; }
.list { display: grid; gap: .15rem; margin: .6rem 0; }
.list label { display: grid; grid-template-columns: 1.4rem 1fr auto auto; gap: .6rem;
  align-items: baseline; padding: .15rem .5rem; border-radius: .4rem; cursor: pointer; }
.list label:has(:checked) { background: color-mix(in srgb, rgb(var(--heat)) 14%, transparent); }
.list input { accent-color: rgb(var(--heat)); margin: 0; }
.role { font-size: .85rem; opacity: .75; } .number { font-variant-numeric: tabular-nums; }
.strips { display: grid; grid-template-columns: max-content minmax(6rem, 1fr) max-content;
  gap: .3rem .8rem; align-items: center; margin: .8rem 0 .4rem; font-size: .9rem; }
.strips img, .strips svg { width: 100%; height: 18px; display: block; background: var(--soft);
  border-radius: 2px; }
.strips svg { height: 44px; } .strips .ends { display: flex; justify-content: space-between; }
img { image-rendering: pixelated; }
.yes { color: var(--up); } .no { color: var(--down); } .unsure { opacity: .75; }
.scroll { max-height: 27rem; overflow: auto; margin: .7rem 0; border: 1px solid var(--line);
  border-radius: .4rem; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: .9rem; }
.scroll table { width: 100%; }
th, td { padding: .16rem .45rem; text-align: right; white-space: nowrap; font-weight: 400; }
thead th { font-weight: 600; border-bottom: 1px solid var(--line); }
.scroll thead th { position: sticky; top: 0; background: Canvas; }
th.words, td.words { text-align: left; white-space: normal; }
.scroll th { white-space: normal; } .scroll td.words { min-width: 13rem; width: 99%; }
td.heat { background: rgb(var(--heat) / calc(var(--w) * .75)); min-width: 3.1rem; }
td.heat.minus { background: rgb(217 83 30 / calc(var(--w) * .75)); }
td.bar { min-width: 8rem; padding: 0 .3rem; }
td.bar i { display: block; height: .75rem; border-radius: 2px; width: calc(50% * var(--w));
  margin-left: 50%; background: var(--up); }
td.bar i.minus { background: var(--down); margin-left: calc(50% - 50% * var(--w)); }
tbody tr:hover td:not(.heat) { background: var(--soft); }
details { margin: .6rem 0; } summary { cursor: pointer; }
.maps { display: flex; flex-wrap: wrap; gap: 1rem; margin-top: .6rem; }
figure { margin: 0; } figcaption { font-size: .85rem; opacity: .75; }
.maps img { width: 13.6rem; height: 13.6rem; border: 1px solid var(--line); }
.panels { display: flex; flex-wrap: wrap; gap: 1.2rem; } .panels svg { max-width: 100%; }
svg text { font: 12px system-ui, sans-serif; fill: currentColor; }
.c0 { stroke: #2563eb; } .c1 { stroke: #d9531e; } .c2 { stroke: #2f8f5b; } .c3 { stroke: #9b51c8; }
.c4 { stroke: #b7791f; } .c5 { stroke: #0e8a9b; } .c6 { stroke: #c23b7a; } .c7 { stroke: #6b7280; }
@media (prefers-color-scheme: dark) { :root { --heat: 96 150 255; --up: #4cc38a; --down: #ff8b5e; }
  .c0 { stroke: #6096ff; } .c1 { stroke: #ff8b5e; } .c2 { stroke: #4cc38a; }
  .c3 { stroke: #c58af0; } .c4 { stroke: #e0a84a; } .c5 { stroke: #4cc7d6; }
  .c6 { stroke: #f07ab2; } .c7 { stroke: #a0a6b0; } }
@media print { .scroll { max-height: none; } }
"""


def page(
    title: str,
    legend: str,
    lines: Sequence[str],
    people: Sequence[Person],
    summary: Summary,
    notes: Sequence[str],
) -> str:
    """The page.

    Args:
        title: the heading.
        legend: the line below it: which run, asked what.
        lines: the section "In short", a paragraph a line.
        people: whose histories are explained.
        summary: of more histories.
        notes: what one must know to read it, a paragraph a line.
    """
    links = "".join(
        f'<a href="#u{number}">{escape(str(person.raw))}</a>'
        for number, person in enumerate(people)
    )
    body = [
        f'<h1>{escape(title)}</h1><p class="legend">{escape(legend)}</p>',
        f'<div class="short">{_paragraphs(lines)}</div>',
        "<h2>Does the attention track the model?</h2>",
        _verdicts(people),
        f"<h2>Users</h2><nav>{links}</nav>",
        *(_article(number, person) for number, person in enumerate(people)),
        _over_all(summary),
        "<h2>How to read this page</h2>",
        _paragraphs(notes, "note"),
    ]
    items = max((len(person.asked) for person in people), default=0)
    choice = "".join(
        f"article:has(.pick{item}:checked) .of:not(.of{item}) {{ display: none; }}\n"
        for item in range(items)
    )
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width">'
        f"<title>{escape(title)}</title><style>{_STYLE}{choice}</style></head>\n<body>"
        + "\n".join(body)
        + "</body></html>\n"
    )


def short_number(value: float, signed: bool = False) -> str:
    """Two digits, or more of what would be nothing, without the leading zero.

    >>> short_number(0.5), short_number(-1.234), short_number(0.004), short_number(0.25, True)
    ('.50', '-1.23', '.004', '+.25')
    >>> short_number(0.0), short_number(-0.00001)
    ('0', '0')
    """
    digits = 2 if abs(value) >= 0.01 else 3
    text = f"{value:{'+' if signed else ''}.{digits}f}"
    if not float(text):
        return "0"
    return text.replace("0.", ".", 1) if abs(float(text)) < 1 else text


def _paragraphs(lines: Sequence[str], kind: str = "") -> str:
    return "\n".join(f'<p class="{kind}">{escape(line)}</p>' for line in lines)


def _verdict(found: Correlation) -> str:
    """The correlation and what it means, as HTML."""
    if found.value is None:
        return f'<span class="unsure">{escape(found.verdict)}</span>'
    kind = "yes" if found.verdict.startswith("tracks") else "no"
    return (
        f'<b class="number">{short_number(found.value)}</b> '
        f'<span class="{kind}">{escape(found.verdict)}</span>'
    )


def _verdicts(people: Sequence[Person]) -> str:
    rows = [
        f'<tr><td class="words">{escape(name)}</td><td class="words">{_verdict(found)}</td>'
        f"<td>{short_number(found.chance)}</td><td>{count:,}</td></tr>"
        for name, found, count in mean_correlations(people)
    ]
    if not rows:
        return '<p class="note">There is no history with events to judge by.</p>'
    return (
        '<table><thead><tr><th class="words">map</th>'
        '<th class="words">mean rank correlation with the score drops</th>'
        f"<th>chance reaches</th><th>users</th></tr></thead><tbody>{''.join(rows)}</tbody></table>"
    )


def _article(number: int, person: Person) -> str:
    explanation = person.explanation
    read = len(person.events)
    events = f"{person.length:,} event{'s' if person.length != 1 else ''}"
    if read < person.length:
        events += f", of which the model reads the newest {read:,}"
    heading = f"<h3>User {escape(str(person.raw))} <small>{events}</small></h3>"
    if explanation is None:
        nothing = "No event that the model reads: there is nothing to explain."
        return f'<article id="u{number}">{heading}<p class="note">{nothing}</p></article>'
    parts = [heading, _list(number, person, explanation), _strips(person, explanation)]
    parts += [_most(person, explanation, item) for item in range(len(person.asked))]
    parts += [_events(person, explanation), _layers(explanation)]
    return f'<article id="u{number}">{"".join(parts)}</article>'


def _list(number: int, person: Person, explanation: Explanation) -> str:
    """The items that were asked about, one of which is looked at."""
    removal = explanation.removal
    lines = []
    for item, asked in enumerate(person.asked):
        score = float(removal.scores_K[item])
        place = f"probability {short_number(1 / (1 + math.exp(-score)))}"
        if removal.places_K is not None:
            found = int(removal.places_K[item])
            place = f"place {found:,}" if found else "no candidate"
        lines.append(
            f'<label><input type="radio" name="u{number}" class="pick{item}"'
            f"{' checked' if item == 0 else ''}><span>{escape(asked.title)} "
            f'<span class="role">{escape(asked.role)}</span></span>'
            f'<span class="role">{place}</span>'
            f'<span class="number">score {short_number(score)}</span>'
            "</label>"
        )
    return f'<div class="list">{"".join(lines)}</div>'


def _strips(person: Person, explanation: Explanation) -> str:
    """Every map as a strip, oldest event to the left, its correlation beside it; then the drops."""
    parts = []
    for item in range(len(person.asked)):
        found = explanation.correlations(item)
        for number, name in enumerate(explanation.names):
            map_L = explanation.maps(item)[number]
            parts.append(
                f'<span class="of of{item}">{escape(name)}</span>'
                f'<img class="of of{item}" alt="{escape(name)}" src="{_picture(map_L[None])}">'
                f'<span class="of of{item}">{_verdict(found[number])}</span>'
            )
        parts.append(
            f'<span class="of of{item}">score drop</span>'
            f"{_bars(explanation.removal.drops_KL[item], item)}"
            f'<span class="of of{item} role">by removing each event</span>'
        )
    parts.append('<span></span><span class="ends role"><span>oldest</span><span>newest</span>')
    return f'<div class="strips">{"".join(parts)}</span><span></span></div>'


def _bars(drops_L: np.ndarray, item: int) -> str:
    """Score drops as bars: up where the event spoke for the item, down where against."""
    high = max(float(drops_L.max(initial=0)), 0.0)
    low = min(float(drops_L.min(initial=0)), 0.0)
    span = high - low or 1.0
    bars = "".join(
        f'<rect x="{place + 0.08:.2f}" width=".84" y="{(high - max(drop, 0)) / span * 40 + 2:.2f}" '
        f'height="{abs(drop) / span * 40:.2f}" fill="var(--{"up" if drop > 0 else "down"})"/>'
        for place, drop in enumerate(drops_L.tolist())
        if drop
    )
    return (
        f'<svg class="of of{item}" viewBox="0 0 {len(drops_L)} 44" preserveAspectRatio="none" '
        f'role="img" aria-label="score drops">{bars}</svg>'
    )


def _most(person: Person, explanation: Explanation, item: int) -> str:
    """Which events moved the score most, in words."""
    removal = explanation.removal
    drops_L = removal.drops_KL[item]
    said = []
    for place in np.argsort(-np.abs(drops_L), kind="stable")[:3]:
        if short_number(float(drops_L[place])) == "0":
            break
        words = (
            f"<b>{escape(person.events[place][1])}</b> "
            f"({_back(len(drops_L) - 1 - int(place))}): without it "
            f"{short_number(-float(drops_L[place]), signed=True)}"
        )
        if removal.places_K is not None and removal.places_KL is not None:
            before, behind = int(removal.places_K[item]), int(removal.places_KL[item, place])
            if before and before != behind:
                words += f", from place {before:,} to {behind:,}"
        said.append(words)
    text = "Moved the score most: " + "; ".join(said) if said else "No event moves this score."
    return f'<p class="of of{item}">{text}.</p>'.replace("..</p>", ".</p>")


def _back(steps: int) -> str:
    """How far back an event lies.

    >>> _back(0), _back(1), _back(7)
    ('the newest', '1 back', '7 back')
    """
    return "the newest" if steps == 0 else f"{steps:,} back"


def _events(person: Person, explanation: Explanation) -> str:
    """The history, newest event first, with all maps and drops."""
    removal, names = explanation.removal, explanation.names
    length = len(person.events)
    alike = len(explanation.maps_KML) == 1
    chosen = [0] if alike else list(range(len(person.asked)))
    kind = {item: "" if alike else f" of of{item}" for item in chosen}
    head = '<th>back</th><th class="words">item</th>'
    for item in chosen:
        head += "".join(f'<th class="{kind[item]}">{_in_two(name)}</th>' for name in names)
    for item in range(len(person.asked)):
        head += f'<th class="of of{item}" colspan="2">score drop without it</th>'
        if removal.places_KL is not None:
            head += f'<th class="of of{item}">place</th>'
    tops = {item: np.abs(explanation.maps(item)).max(1, initial=0) for item in chosen}
    largest_K = np.abs(removal.drops_KL).max(1, initial=0)
    rows = []
    for place in range(length - 1, -1, -1):
        raw, title = person.events[place]
        cells = [
            f"<td>{length - 1 - place:,}</td>"
            f'<td class="words" title="{escape(str(raw))}">{escape(title)}</td>'
        ]
        for item in chosen:
            for number, weight in enumerate(explanation.maps(item)[:, place].tolist()):
                share = (abs(weight) / (tops[item][number] or 1)) ** 0.5
                minus = " minus" if weight < 0 else ""
                cells.append(
                    f'<td class="heat{minus}{kind[item]}" style="--w:{share:.2f}">'
                    f"{short_number(weight)}</td>"
                )
        for item, drop in enumerate(removal.drops_KL[:, place].tolist()):
            width = abs(drop) / (largest_K[item] or 1)
            minus = ' class="minus"' if drop < 0 else ""
            cells.append(
                f'<td class="bar of of{item}"><i{minus} style="--w:{width:.2f}"></i></td>'
                f'<td class="of of{item}">{short_number(drop, signed=True)}</td>'
            )
            if removal.places_KL is not None:
                behind = int(removal.places_KL[item, place])
                cells.append(f'<td class="of of{item}">{f"{behind:,}" if behind else "–"}</td>')
        rows.append(f"<tr>{''.join(cells)}</tr>")
    return (
        f'<div class="scroll" tabindex="0"><table><thead><tr>{head}</tr></thead>'
        f"<tbody>{''.join(rows)}</tbody></table></div>"
    )


def _in_two(name: str) -> str:
    """The name of a map over two lines."""
    return escape(name).replace("layer ", "layer&nbsp;").replace("head ", "head&nbsp;")


def _layers(explanation: Explanation) -> str:
    """All weights of every head: who looked at whom."""
    if not explanation.layers:
        return ""
    names = iter(explanation.names)
    figures = [
        f'<figure><img alt="all weights of {escape(name)}" src="{_picture(head_LL)}">'
        f"<figcaption>{escape(name)}</figcaption></figure>"
        for layer_HLL in explanation.layers
        for head_LL, name in zip(layer_HLL, names, strict=False)
    ]
    return (
        "<details><summary>Who looks at whom, in every layer and head</summary>"
        '<p class="note">A row is the event that asks, from the oldest down to the newest, a '
        "column the event it looks at; each row is as strong as its own largest weight.</p>"
        f'<div class="maps">{"".join(figures)}</div></details>'
    )


def _picture(weights: np.ndarray) -> str:
    """Weights [rows, columns] as a PNG in a data address: opacity is √(weight / the row's top)."""
    tops = np.abs(weights).max(1, keepdims=True, initial=0)
    shares = np.sqrt(np.abs(weights) / np.where(tops > 0, tops, 1))
    pixels = np.empty((*weights.shape, 4), dtype=np.uint8)
    pixels[..., :3] = np.where(weights[..., None] < 0, _NEGATIVE, _HEAT)
    pixels[..., 3] = np.round(shares * 255)
    height, width = weights.shape
    lines = np.insert(pixels.reshape(height, width * 4), 0, 0, axis=1)  # each begins: no filter

    def chunk(kind: bytes, content: bytes) -> bytes:
        checked = kind + content
        return struct.pack(">I", len(content)) + checked + struct.pack(">I", zlib.crc32(checked))

    png = (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 6, 0, 0, 0))
        + chunk(b"IDAT", zlib.compress(lines.tobytes()))
        + chunk(b"IEND", b"")
    )
    return f"data:image/png;base64,{base64.b64encode(png).decode()}"


def _over_all(summary: Summary) -> str:
    """How far back the heads look, and how alike they are."""
    if summary.histories == 0:
        return ""
    parts = [
        f"<h2>How far back each head looks</h2><p>The mean weight of the event so many steps back, "
        f"over {summary.histories:,} histories. Dashed: what weighing all events alike would "
        f'give.</p><div class="panels">{_recency(summary)}</div>'
    ]
    if len(summary.names) > 1:
        parts.append(
            "<h2>How alike the heads are</h2><p>The mean rank correlation of their maps. Near 1, "
            f"one of the two says nothing that the other does not.</p>{_similarity(summary)}"
        )
    return "".join(parts)


def _recency(summary: Summary) -> str:
    """A drawing a layer, a line a head."""
    shown = int((summary.counts_S >= max(2, summary.histories // 20)).sum())
    S = min(max(shown, 2), STEPS, len(summary.counts_S))
    layers: dict[str, list[int]] = {}
    for number, name in enumerate(summary.names):
        layers.setdefault(name.partition(" head")[0] if "layer" in name else "", []).append(number)
    lines_MS, equal_S = summary.recency_MS[:, :S], summary.equal_S[:S]
    high = max(float(lines_MS.max(initial=0)), float(equal_S.max(initial=0))) or 1.0
    low = min(float(lines_MS.min(initial=0)), 0.0)
    left, top, width, height = 34, 18, 400, 150

    def line(values_S: np.ndarray, more: str) -> str:
        steps = max(len(values_S) - 1, 1)
        points = " ".join(
            f"{left + step / steps * width:.1f},"
            f"{top + (high - float(value)) / (high - low) * height:.1f}"
            for step, value in enumerate(values_S)
        )
        return f'<polyline points="{points}" fill="none" stroke-width="2" {more}/>'

    panels = []
    for layer, members in layers.items():
        drawn = [line(equal_S, 'stroke="currentColor" stroke-dasharray="4 4" opacity=".5"')]
        legend = []
        for colour, number in enumerate(members):
            drawn.append(line(lines_MS[number], f'class="c{colour % 8}"'))
            name = summary.names[number].removeprefix(f"{layer} ")
            at = left + colour * 62
            if len(members) > 1:
                legend.append(
                    f'<line x1="{at}" x2="{at + 14}" y1="{top + height + 38}" '
                    f'y2="{top + height + 38}" stroke-width="3" class="c{colour % 8}"/>'
                    f'<text x="{at + 18}" y="{top + height + 42}">{escape(name)}</text>'
                )
        bottom = top + height
        marks = (
            f'<text x="{left}" y="12" font-weight="600">{escape(layer)}</text>'
            f'<text x="{left - 6}" y="{top + 8}" text-anchor="end">{short_number(high)}</text>'
            f'<line x1="{left}" x2="{left + width}" y1="{bottom}" y2="{bottom}" '
            'stroke="currentColor" opacity=".4"/>'
            f'<text x="{left}" y="{bottom + 16}">the newest</text>'
            f'<text x="{left + width}" y="{bottom + 16}" text-anchor="end">{S - 1} back</text>'
        )
        panels.append(
            f'<svg viewBox="0 0 {left + width + 10} {bottom + 48}" width="{left + width + 10}" '
            f'role="img">{marks}{"".join(drawn)}{"".join(legend)}</svg>'
        )
    return "".join(panels)


def _similarity(summary: Summary) -> str:
    head = "".join(f"<th>{escape(name)}</th>" for name in summary.names)
    rows = []
    for name, row in zip(summary.names, summary.similarity_MM.tolist(), strict=True):
        cells = "".join(
            "<td>–</td>"
            if value != value
            else f'<td class="heat{" minus" if value < 0 else ""}" '
            f'style="--w:{abs(value):.2f}">{short_number(value)}</td>'
            for value in row
        )
        rows.append(f'<tr><td class="words">{escape(name)}</td>{cells}</tr>')
    return f"<table><thead><tr><th></th>{head}</tr></thead><tbody>{''.join(rows)}</tbody></table>"
