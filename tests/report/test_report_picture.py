"""The picture of a nested system: every box and transfer is there, and nothing lies on another."""

from __future__ import annotations

import dataclasses
import itertools
import re
from xml.etree import ElementTree

import pytest
import torch

from nestling.layers import ContinuumConfig, ContinuumMemory
from nestling.levels import Component, Level, NestedSystem, Transfer
from nestling.models import build
from nestling.models.by_level import by_level
from nestling.models.presets import MIXERS
from nestling.optim import LevelwiseOptimizer, adamw
from nestling.report.fold import fold
from nestling.report.picture import picture
from nestling.report.picture_layout import lay_out, text_width, tick_of
from nestling.report.picture_lines import route
from nestling.train import nested_system

MODELS = {name: {"preset": name, "layers": 3} for name in MIXERS}
MODELS |= {
    f"hope {variant} {source}": {
        "preset": "hope", "layers": 2, "periods": (64, 512, 512), "variant": variant,
        "regime": "in_context", "source": source,
    }
    for variant in ("sequential", "nested", "independent")
    for source in ("local", "backprop")
} | {"one block": {"preset": "hope", "layers": 1, "periods": (1, 10**7, None)}}  # fmt: skip
MODELS |= {
    "levels slower than weights": {
        "preset": "hope", "layers": 2, "periods": (64, 4096, 65_536, None),
        "regime": ("in_context", "in_context", "across_contexts", "in_context"),
    },
    "never in context": {
        "preset": "hope", "layers": 2, "periods": (16, None), "regime": "in_context",
    },
}  # fmt: skip
SVG = "{http://www.w3.org/2000/svg}"


def system_of(name: str) -> NestedSystem:
    values = dict(MODELS[name])
    with torch.device("meta"):
        model = build(values.pop("preset"), width=32, heads=2, hidden=16, **values)
    optimizer = LevelwiseOptimizer(by_level(model), adamw)
    return nested_system(model, optimizer, tokens_per_step=2048)


def part(name, period, kind="in_context", **more):
    values = {"memory": "MLP", "rule": "L2", "context_flow": "tokens", "parameters": 1, **more}
    return Component(name=name, level=Level(period), kind=kind, **values)


@pytest.mark.parametrize("name", MODELS)
def test_folding_keeps_every_component_and_every_transfer(name):
    system = system_of(name)
    folded = fold(system)
    layers = MODELS[name]["layers"]
    count = sum(len(box.members) * max(1, box.blocks) for box in folded.boxes)
    assert count == len(system.components)
    assert {box.blocks for box in folded.boxes if box.first.name.startswith("blocks.")} == {layers}
    assert {a.kind for a in folded.arrows} == {t.kind for t in system.transfers}
    ends = {arrow.source for arrow in folded.arrows} | {arrow.target for arrow in folded.arrows}
    assert ends == {box.name for box in folded.boxes}
    assert any(arrow.onward for arrow in folded.arrows) == (layers > 1)
    assert {name for flow in folded.flows for name in flow} <= ends


def test_generators_are_one_box_and_moments_are_one_box():
    folded = fold(system_of("hope"))
    labels = [box.labels for box in folded.boxes]
    assert labels[0] == ("k", "v", "eta", "alpha")
    assert ("exp_avg", "exp_avg_sq") in labels
    assert [len(flow) for flow in folded.flows] == [1, 1, 6]


def test_blocks_that_differ_are_not_folded():
    one = part("blocks.0.mixer.memory", 1)
    same, other = (dataclasses.replace(one, name=f"blocks.{i}.mixer.memory") for i in (1, 2))
    other = dataclasses.replace(other, rule="DotProduct")
    folded = fold(NestedSystem((one, same, other)))
    assert [(box.name, box.blocks) for box in folded.boxes] == [
        ("blocks.0.mixer.memory", 2), ("blocks.2.mixer.memory", 1),
    ]  # fmt: skip


def test_a_list_of_components_is_no_list_of_blocks():
    memory = ContinuumMemory(8, ContinuumConfig(periods=(1, 1), hidden=8))
    folded = fold(NestedSystem(tuple(memory.components("levels"))))
    assert [box.name for box in folded.boxes] == ["levels.levels.0", "levels.levels.1"]


def test_what_has_other_transfers_is_another_box():
    parts = (part("a.k", 1), part("a.v", 1), part("a.x", 1), part("W", 8, "weights"))
    links = [Transfer("generation", "W", f"a.{name}") for name in "kv"]
    folded = fold(NestedSystem(parts, tuple(links)))
    assert [box.labels for box in folded.boxes] == [("k", "v"), ("x",), ("W",)]


def test_what_goes_one_way_only_is_not_one_box():
    chain = NestedSystem((part("a.k", 1), part("a.v", 1)), (Transfer("generation", "a.k", "a.v"),))
    assert [box.labels for box in fold(chain).boxes] == [("k",), ("v",)]
    back = (*chain.transfers, Transfer("generation", "a.v", "a.k"))
    assert [box.labels for box in fold(NestedSystem(chain.components, back)).boxes] == [("k", "v")]


@pytest.mark.parametrize("name", MODELS)
def test_nothing_lies_on_another(name):
    layout = lay_out(fold(system_of(name)))
    cards = list(layout.cards.values())
    for one, other in itertools.combinations(cards, 2):
        apart = (
            one.x + one.width + 10 < other.x
            or other.x + other.width + 10 < one.x
            or one.y + one.height + 10 < other.y
            or other.y + other.height + 10 < one.y
        )
        assert apart, (one.box.name, other.box.name)
    for card in cards:
        assert card.x > 200
        assert card.x + card.width < layout.width
        assert card.y + card.height < layout.height
        assert all(text_width(line, 11.0) <= card.width - 28 for line in card.lines)
    for one, other in itertools.combinations([f for f in layout.frames if f.label], 2):
        assert one.y + one.height < other.y or other.y + other.height < one.y


@pytest.mark.parametrize("name", MODELS)
def test_rows_go_down_with_the_period_and_cards_stand_in_them(name):
    layout = lay_out(fold(system_of(name)))
    ranks = [row.period or float("inf") for row in layout.rows]
    assert ranks == sorted(ranks)
    middles = [row.middle for row in layout.rows]
    assert middles == sorted(middles)
    for row in layout.rows:
        if row.period is not None:
            assert row.tick == tick_of(row.period)
            assert row.middle >= row.tick
        cards = [c for c in layout.cards.values() if c.box.first.level.period == row.period]
        assert cards
        assert all(abs(card.middle - row.middle) < 1e-6 for card in cards)
    assert tick_of(100) - tick_of(10) == pytest.approx(tick_of(10) - tick_of(1))


@pytest.mark.parametrize("name", MODELS)
def test_frames_hold_their_flow_and_nothing_else_of_its_kind(name):
    folded = fold(system_of(name))
    layout = lay_out(folded)
    assert len(layout.frames) == len(folded.flows)
    for flow, frame in zip(folded.flows, layout.frames, strict=True):
        for box_name, card in layout.cards.items():
            inside = (
                frame.x < card.x < frame.x + frame.width
                and frame.y < card.y < frame.y + frame.height
            )
            assert inside == (box_name in flow), box_name


@pytest.mark.parametrize("name", MODELS)
def test_every_transfer_is_a_line_between_the_edges_of_its_cards(name):
    folded = fold(system_of(name))
    layout = lay_out(folded)
    lines = route(folded, layout)
    moments = {box.name for box in folded.boxes if box.first.kind == "moments"}
    own = [a for a in folded.arrows if not {a.source, a.target} & moments]
    assert len(lines) == len(own) + 2 * len(moments)
    edges = [
        value
        for card in layout.cards.values()
        for value in (card.x, card.x + card.width, card.y, card.y + card.height)
    ] + [frame.x + frame.width for frame in layout.frames]
    starts = set()
    for line in lines:
        numbers = [float(text) for text in re.findall(r"-?\d+\.\d", line.path)]
        for point in (numbers[:2], numbers[-2:]):
            assert min(abs(value - edge) for value in point for edge in edges) < 0.06
        starts |= {tuple(numbers[:2]), tuple(numbers[-2:])}
    assert len(starts) == 2 * len(lines), "no two lines touch a card at the same point"


@pytest.mark.parametrize("name", MODELS)
def test_svg_is_well_formed_complete_and_always_the_same(name):
    system = system_of(name)
    svg = picture(system, title="a < b & c")
    assert svg == picture(NestedSystem.from_dict(system.to_dict()), title="a < b & c")
    root = ElementTree.fromstring(svg)
    texts = [element.text for element in root.iter(f"{SVG}text")]
    assert texts[0] == "a < b & c"
    assert texts[1] == (
        f"{len(system.components)} components on {len(system.levels)} levels; "
        "every shaded box is one gradient flow"
    )
    folded = fold(system)
    for box in folded.boxes:
        assert set(box.labels) <= set(texts) or box.name in texts or box.first.name in texts
    kinds = {arrow.kind for arrow in folded.arrows}
    markers = {element.get("id") for element in root.iter(f"{SVG}marker")}
    assert markers == {f"to-{kind}" for kind in kinds}
    used = re.findall(r'marker-end="url\(#to-(\w+)\)"', svg)
    assert len(used) == len(route(folded, lay_out(folded))) + len(kinds), "lines and legend"
    width, height = float(root.get("width", 0)), float(root.get("height", 0))
    for element in root.iter(f"{SVG}text"):
        size, x = float(element.get("font-size", 0)), float(element.get("x", 0))
        wide = text_width(element.text or "", size, bold=element.get("font-weight") == "bold")
        shift = {"start": 0.0, "middle": 0.5, "end": 1.0}[element.get("text-anchor", "start")]
        assert x - shift * wide >= 0
        assert x + (1 - shift) * wide <= width + 1, element.text
        assert 0 < float(element.get("y", 0)) < height


def test_a_system_without_an_optimizer_stands_at_never():
    model = build("titans", width=16, heads=2, layers=1)
    layout = lay_out(fold(nested_system(model)))
    assert [row.period for row in layout.rows] == [1, None]
    assert layout.rows[-1].tick == layout.never
    assert [frame.weights for frame in layout.frames] == [False]
    assert "weights, held" in picture(nested_system(model), title="held")


def test_one_component_is_a_picture():
    svg = picture(NestedSystem((part("a", 64),)), title="one")
    assert "every 64" in svg
