"""One HTML page that stands alone: no scripts, no fonts, no network; pictures are inline SVG."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape

from recsys.evaluation.intervals import Interval

_STYLE = """
:root { color-scheme: light dark; }
body { font: 15px/1.5 system-ui, sans-serif; max-width: 62rem; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.5rem; margin-bottom: .2rem; } h2 { font-size: 1.1rem; margin-top: 2rem; }
p.legend { opacity: .75; margin-top: 0; }
table { border-collapse: collapse; margin: .5rem 0 1rem; font-variant-numeric: tabular-nums; }
th, td { padding: .2rem .8rem .2rem 0; text-align: right; white-space: nowrap; }
th:first-child, td:first-child { text-align: left; }
thead th { border-bottom: 1px solid currentColor; font-weight: 600; }
tbody tr:hover { background: color-mix(in srgb, currentColor 8%, transparent); }
td.words { text-align: left; }
.better { color: #18794e; } .worse { color: #c62a2f; } .unsure { opacity: .7; }
svg { max-width: 100%; height: auto; }
svg text { font: 12px system-ui, sans-serif; fill: currentColor; }
svg line, svg path { stroke: currentColor; }
"""


@dataclass(frozen=True)
class Cell:
    """What stands in a table.

    Attributes:
        text: as it is shown.
        kind: "better", "worse" or "unsure", which colours it; "words" for text among numbers.
    """

    text: str
    kind: str = ""


def page(title: str, legend: str, sections: Sequence[tuple[str, str]]) -> str:
    """The page.

    Args:
        title: the heading; text.
        legend: the line below it, which says the protocol in words; text.
        sections: headings (text) and what stands below them (HTML).
    """
    body = "".join(f"<h2>{escape(heading)}</h2>\n{html}\n" for heading, html in sections)
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width">'
        f"<title>{escape(title)}</title><style>{_STYLE}</style></head>\n"
        f'<body><h1>{escape(title)}</h1>\n<p class="legend">{escape(legend)}</p>\n{body}'
        "</body></html>\n"
    )


def paragraphs(lines: Sequence[str]) -> str:
    """Text, a paragraph a line."""
    return "\n".join(f"<p>{escape(line)}</p>" for line in lines)


def table(titles: Sequence[str], rows: Sequence[Sequence[Cell | str]]) -> str:
    """A table; the first column to the left, the others to the right.

    >>> table(["model", "HR"], [["EASE", Cell("<.1", "worse")]]).count("&lt;")
    1
    """
    head = "".join(f"<th>{escape(title)}</th>" for title in titles)
    lines = ["".join(_cell(cell) for cell in row) for row in rows]
    body = "".join(f"<tr>{line}</tr>\n" for line in lines)
    return f"<table><thead><tr>{head}</tr></thead>\n<tbody>{body}</tbody></table>"


def _cell(cell: Cell | str) -> str:
    if isinstance(cell, str):
        return f"<td>{escape(cell)}</td>"
    return f'<td class="{escape(cell.kind)}">{escape(cell.text)}</td>'


def intervals(
    rows: Sequence[tuple[str, Interval]], *, zero: bool, kinds: Sequence[str] = ()
) -> str:
    """A forest plot: an interval a line, its estimate a dot.

    Args:
        rows: names and intervals, from the top.
        zero: whether the axis must show 0, as it must for differences; a line stands there.
        kinds: of each row, as in `Cell`; none of them has a colour where this is empty.
    """
    ends = [end for _, interval in rows for end in (interval.low, interval.high)]
    low, high = (min(ends), max(ends)) if ends else (0.0, 1.0)
    if zero:
        low, high = min(low, 0.0), max(high, 0.0)
    margin = (high - low) * 0.05 or 0.5
    low, high = low - margin, high + margin
    names, width, line = 240, 480, 22

    def x(value: float) -> float:
        return names + (value - low) / (high - low) * width

    bottom = line * len(rows) + 8
    parts = []
    if zero:
        parts.append(
            f'<line x1="{x(0):.1f}" x2="{x(0):.1f}" y1="0" y2="{bottom}" stroke-dasharray="3 3"/>'
        )
    for row, (name, interval) in enumerate(rows):
        y = line * row + 14
        kind = kinds[row] if kinds else ""
        parts.append(
            f'<g class="{kind}"><text x="0" y="{y + 4}">{escape(name)}</text>'
            f'<line x1="{x(interval.low):.1f}" x2="{x(interval.high):.1f}" y1="{y}" y2="{y}"/>'
            f'<circle cx="{x(interval.estimate):.1f}" cy="{y}" r="3.5" fill="currentColor"/></g>'
        )
    ends = [low + margin, high - margin]
    # An end whose number would stand on that of the zero goes without.
    marks = [*(end for end in ends if not zero or abs(x(end) - x(0)) > 60), *([0.0] * zero)]
    for value in marks:
        parts.append(
            f'<text x="{x(value):.1f}" y="{bottom + 14}" text-anchor="middle">{value:.4f}</text>'
        )
    return (
        f'<svg viewBox="0 0 {names + width + 40} {bottom + 20}" role="img" '
        f'width="{names + width + 40}">{"".join(parts)}</svg>'
    )


# Okabe and Ito: told apart by colour-blind readers too, on white and on black.
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")


def reliability(curves: Mapping[str, tuple[Sequence[float], Sequence[float]]]) -> str:
    """Shares clicked over the probabilities that were given; the dashed diagonal is perfect.

    Args:
        curves: by name: mean probabilities and shares clicked, both in [0, 1].
    """
    left, top, side = 56, 8, 320

    def place(given: float, clicked: float) -> tuple[float, float]:
        return left + given * side, top + (1 - clicked) * side

    (x, y), (end, high) = place(0, 0), place(1, 1)
    parts = [
        f'<line x1="{x}" y1="{y}" x2="{end}" y2="{high}" stroke-dasharray="3 3"/>',
        f'<line x1="{x}" y1="{y}" x2="{end}" y2="{y}"/>',
        f'<line x1="{x}" y1="{y}" x2="{x}" y2="{high}"/>',
    ]
    for mark in (0, 0.25, 0.5, 0.75, 1):
        right, up = place(mark, mark)
        parts.append(f'<text x="{right}" y="{y + 16}" text-anchor="middle">{mark:g}</text>')
        parts.append(f'<text x="{x - 6}" y="{up + 4}" text-anchor="end">{mark:g}</text>')
    for number, (name, (given, clicked)) in enumerate(curves.items()):
        colour = _COLOURS[number % len(_COLOURS)]
        points = [place(g, c) for g, c in zip(given, clicked, strict=True)]
        path = " ".join(f"{right:.1f},{up:.1f}" for right, up in points)
        parts.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2"/>')
        parts += [f'<circle cx="{r:.1f}" cy="{u:.1f}" r="3" fill="{colour}"/>' for r, u in points]
        line = top + 14 + 20 * number
        parts.append(f'<circle cx="{end + 24}" cy="{line - 4}" r="5" fill="{colour}"/>')
        parts.append(f'<text x="{end + 36}" y="{line}">{escape(name)}</text>')
    parts.append(
        f'<text x="{(x + end) / 2}" y="{y + 34}" text-anchor="middle">probability given</text>'
    )
    parts.append(
        f'<text transform="translate(14 {(y + high) / 2}) rotate(-90)" text-anchor="middle">'
        "share clicked</text>"
    )
    width, height = end + 200, y + 42
    return f'<svg viewBox="0 0 {width} {height}" role="img" width="{width}">{"".join(parts)}</svg>'
