"""One HTML page that stands alone: no scripts, no fonts, no network; pictures are inline SVG."""

from __future__ import annotations

from collections.abc import Sequence
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
