"""The page: well formed, nothing from elsewhere, no text taken for markup."""

from html.parser import HTMLParser

import pytest

from recsys.evaluation.html_report import Cell, intervals, page, paragraphs, reliability, table
from recsys.evaluation.intervals import Interval

ALONE = {"meta", "line", "path", "polyline", "circle", "rect", "br"}


class Reader(HTMLParser):
    """Notes tags, attributes and text; every tag that opens must close."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.attributes: list[tuple[str, str, str]] = []
        self.words: list[str] = []
        self.feed(html)
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.attributes += [(tag, name, value or "") for name, value in attrs]
        if tag not in ALONE:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.attributes += [(tag, name, value or "") for name, value in attrs]

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.words.append(data)

    def numbers(self, tag: str, name: str) -> list[float]:
        return [float(value) for t, n, value in self.attributes if (t, n) == (tag, name)]


ROWS = [("A <b>", Interval(0.2, 0.1, 0.3)), ("B", Interval(-0.1, -0.2, 0.0))]


def test_a_page_stands_alone_and_is_well_formed():
    html = page(
        "A & B",
        "a <legend>",
        [
            ("Table", table(["model", "x"], [["A", Cell("1", "better")], ["<B>", "2"]])),
            ("Words", paragraphs(["one & two", "<script>alert(1)</script>"])),
            ("Plot", intervals(ROWS, zero=True)),
        ],
    )
    read = Reader(html)
    assert not any(name in ("src", "href") for _, name, _ in read.attributes)
    assert "http" not in html and "<script" not in html and "@import" not in html
    for words in ("A & B", "a <legend>", "<B>", "<script>alert(1)</script>", "A <b>"):
        assert any(words in text for text in read.words), words
    assert ("td", "class", "better") in read.attributes


@pytest.mark.parametrize("zero", [True, False])
def test_every_interval_lies_inside_the_plot_and_in_order(zero):
    read = Reader(intervals(ROWS, zero=zero))
    dots = read.numbers("circle", "cx")
    assert len(dots) == 2 and dots[0] > dots[1]
    (box,) = (value for tag, name, value in read.attributes if (tag, name) == ("svg", "viewbox"))
    _, _, width, height = map(float, box.split())
    assert all(0 <= x <= width for x in dots)
    assert all(0 <= y <= height for y in read.numbers("circle", "cy"))


def test_one_interval_without_width_and_none_at_all_are_drawn():
    Reader(intervals([("A", Interval(0.5, 0.5, 0.5))], zero=False))
    Reader(intervals([], zero=True))


def test_reliability_stands_where_its_numbers_say():
    curves = {"as it is": ([0.0, 0.5], [0.25, 1.0]), "<isotonic>": ([0.2], [0.2])}
    read = Reader(reliability(curves))
    assert {"as it is", "<isotonic>", "probability given", "share clicked"} <= set(read.words)
    # The first line is the diagonal, from nothing to certainty.
    left, right, bottom, top = (read.numbers("line", name)[0] for name in ("x1", "x2", "y1", "y2"))
    assert left < right and top < bottom and right - left == bottom - top
    drawn = [value for tag, name, value in read.attributes if (tag, name) == ("polyline", "points")]
    found = [
        [
            ((float(x) - left) / (right - left), (bottom - float(y)) / (bottom - top))
            for x, y in (point.split(",") for point in points.split())
        ]
        for points in drawn
    ]
    assert found == [[(0.0, 0.25), (0.5, 1.0)], [(pytest.approx(0.2), pytest.approx(0.2))]]
