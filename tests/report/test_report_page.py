"""The page: self-contained, valid, in words as well as in pictures, and true to the numbers."""

from __future__ import annotations

import re
from collections import Counter
from html.parser import HTMLParser

import pytest

from nestling.report import read_results, write_report
from nestling.report.figures import COLOURS, Curve, bars, curves, heat_map
from nestling.report.page import render

VOID = {"meta", "br", "hr", "img", "input", "link", "use", "path"}


class Page(HTMLParser):
    """Tags with attributes, text by section, and whether every tag is closed."""

    def __init__(self, text: str):
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self._open: list[str] = []
        self.feed(text)
        self.close()
        assert self._open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        if tag not in VOID:
            assert self._open.pop() == tag, tag

    def handle_data(self, data):
        self.words.append(data)

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]


@pytest.fixture
def text(write) -> str:
    return render(read_results(write()))


def test_nothing_is_fetched(text):
    page = Page(text)
    assert not {"script", "link", "iframe", "img", "object", "base"} & {tag for tag, _ in page.tags}
    for _, attributes in page.tags:
        for name in ("src", "href", "xlink:href", "data", "action"):
            assert (attributes.get(name) or "#").startswith("#")
    addresses = set(re.findall(r"https?://[^\s\"'<>)]+", text))
    assert addresses == {"http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink"}
    assert "@import" not in text
    assert set(re.findall(r"url\((.)", text)) == {"#"}


def test_ids_are_unique_and_every_reference_is_met(text):
    page = Page(text)
    ids = Counter(a["id"] for _, a in page.tags if a.get("id"))
    assert [name for name, times in ids.items() if times > 1] == []
    wanted = set(re.findall(r"url\(#([^)]+)\)|href=\"#([^\"]+)\"", text))
    assert len(wanted) > 20
    assert {a or b for a, b in wanted} <= ids.keys()


def test_every_picture_is_said_in_words(text):
    page = Page(text)
    pictures = [a for a in page.all("svg") if not a.get("aria-hidden")]
    # Heat maps, panels over the stream, panels of reading, memories, weights.
    assert len(pictures) == 2 + 3 + 3 + 1 + 2
    said = [a["aria-label"] for a in pictures]
    assert all(a["role"] == "img" for a in pictures)
    assert "Last row: a<b> 3.00, c 2.00." in said[0]
    assert said[2] == (
        "Bits per byte on a<b> over the stream: Hope from 8.10 to 3.10, lowest 2.60; "
        "Transformer++ from 8.10 to 4.10, lowest 2.10."
    )
    assert said[4].endswith(
        "average of all over the stream: Hope from 8.10 to 2.60, lowest 2.60; "
        "Transformer++ from 8.10 to 3.10, lowest 3.10."
    )
    assert said[5].endswith(
        "Hope 3.00 in the first 8 bytes, 2.00 in the last; "
        "Transformer++ 3.00 in the first 8 bytes, 2.00 in the last."
    )
    assert "block 0.k 0.500" in said[8]


def test_names_from_outside_are_escaped(text):
    words = "".join(Page(text).words)
    assert "a<b>" in words
    assert "A & B" in words
    assert "A <fast> one" in words
    assert "<fast>" not in text
    assert "<b></b>" not in text


def test_the_numbers_stand_on_the_page(text):
    words = " ".join(" ".join(Page(text).words).split())
    for number in ("2.50", "3.00", "0.50", "2.00", "2.25"):
        assert number in words
    assert "Hope ends ahead of Transformer++" in words
    assert "Hope is better by 0.50" in words.replace("  ", " ")
    assert "of equal size (1,000 parameters)" in words
    assert "another seed moves it too, by an unknown amount" in words
    # The whole matrix as a table, the domain's own phase marked.
    rows = re.findall(r'<th scope="row">after ([^<]+)</th>(.*?)</tr>', text)
    own = re.findall(r"<b>([\d.]+)<", "".join(cells for _, cells in rows))
    assert own == ["2.500", "2.000", "2.000", "2.000"]


@pytest.mark.parametrize("keep", [1, 3, 5, 11, 18, 26])
def test_an_unfinished_run_gives_a_page_that_says_so(write, keep):
    text = render(read_results(write(keep=keep)))
    words = " ".join(" ".join(Page(text).words).split())
    assert "This run was stopped before its end" in words
    assert "unfinished" in words
    assert "ends ahead" not in words


def test_the_file_is_replaced_as_a_whole(write, tmp_path):
    results = read_results(write())
    path = tmp_path / "report.html"
    path.write_text("old", encoding="utf-8")
    write_report(results, path)
    assert path.read_text(encoding="utf-8") == render(results)
    assert {p.name for p in tmp_path.iterdir()} == {"report.html", "results.jsonl"}


def test_the_same_results_give_the_same_page(write):
    results = read_results(write())
    assert render(results) == render(results)


def test_a_heat_map_writes_each_number_on_its_colour():
    nan = float("nan")
    svg = heat_map(
        [[8.0, nan], [2.0, 5.0]], rows=["r", "s"], columns=["x", "y"], scale=(2.0, 8.0), name="h"
    )
    assert re.findall(r">(\d\.\d\d)<", svg) == ["8.00", "2.00", "5.00"]
    fills = [f for f in re.findall(r"fill: (#\w{6})", svg) if f != "#1f2933"]
    assert len(fills) == 3
    light = [luminance(f) for f in fills]
    assert light[1] > light[2] > light[0]  # low is light
    ink = luminance("#1f2933")
    assert all((value + 0.05) / (ink + 0.05) >= 4.5 for value in light)  # WCAG AA


def luminance(colour: str) -> float:
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def test_curves_end_where_the_numbers_end():
    lines = [Curve("a", [0.0, 10.0], [4.0, 2.0], 0), Curve("b", [0.0, 10.0], [4.0, 3.0], 1)]
    svg = curves(lines, title="t", x_label="x", y_range=(0.0, 4.0), name="c")
    box = [float(v) for v in re.search(r'viewBox="0 0 ([\d.]+) ([\d.]+)"', svg).groups()]
    ends = {}
    for path, colour in re.findall(r'd="([^"]+)"[^>]*stroke: (#\w{6})', svg):
        points = re.findall(r"([\d.]+) ([\d.]+)", path)
        if colour in ("#0072b2", "#d55e00") and len(points) == 2:
            ends[colour] = [tuple(map(float, point)) for point in points]
    (x0, top), (x1, low) = ends["#0072b2"]
    assert 0 < x0 < x1 < box[0]
    assert ends["#d55e00"][1] == pytest.approx((x1, (top + low) / 2), abs=0.01)


def test_bars_and_colours():
    svg = bars({"s": [0.5, float("nan")]}, groups=["g", "h"], title="", x_label="x", name="b")
    assert svg.count("<use") >= 1
    assert len(set(COLOURS)) == 6
