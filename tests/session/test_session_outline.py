"""What a state may look like is found out and not known: every kind of layer and rule fits."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import pytest
import torch
from small_sessions import ids, model, same, tensors

from nestling.levels import Component, Level
from nestling.memory import (
    Decay,
    DecayToInitial,
    Delta,
    LearningRule,
    Momentum,
    flatten,
    unflatten,
)
from nestling.session.outline import owner_of, periods, split_block, template
from nestling.session.reader import Reader

CHUNKS = {"chunk_size": 4, "memory_chunk_size": 4}
CASES = {
    "momentum": ("hope", {"rule": LearningRule(retention=Delta(), momentum=Momentum()), **CHUNKS}),
    "to_initial": ("hope", {"rule": LearningRule(retention=Delta(DecayToInitial())), **CHUNKS}),
    "decay": ("hope", {"rule": LearningRule(retention=Decay(), values="self"), **CHUNKS}),
    "two_clocks": ("hope", {"chunk_size": 5, "memory_chunk_size": 3}),
    "no_chunks": ("hope", {"chunk_size": 1, "memory_chunk_size": 1}),
    "adaptive_q": ("hope", {"adaptive": ("k", "v", "q", "eta", "alpha", "memory"), **CHUNKS}),
    "no_convolution": ("titans", {"conv_size": 0}),
    "linear": ("deltanet", CHUNKS),
    "attention": ("hope_attention", {"conv_size": 3}),
    "window": ("transformer", {"window": 3}),
    "levels": ("hope", {"periods": (1, 4, 6), **CHUNKS}),
}


@pytest.mark.parametrize("case", CASES)
def test_state_after_any_number_of_tokens_comes_back(case):
    preset, overrides = CASES[case]
    reader = Reader(model(preset, layers=2, **overrides))
    text, moment = ids(14), reader.start()
    for position in range(15):
        header, data = reader.pack(moment, "")
        assert header.position == position
        back = reader.unpack(header, data)
        assert same(tensors(back), tensors(moment)), position
        if position < 14:
            token = text[position : position + 1]
            assert same(tensors(reader.read(back, token)), tensors(reader.read(moment, token)))
            moment = reader.read(moment, token)


def test_probing_leaves_no_trace_and_needs_no_gradient():
    net = model("hope")
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    Reader(net)
    assert all(torch.equal(tensor, before[name]) for name, tensor in net.state_dict().items())
    assert all(parameter.grad is None for parameter in net.parameters())


@dataclass(frozen=True, kw_only=True)
class Inner:
    w: torch.Tensor
    count: torch.Tensor | None = None


@dataclass(frozen=True, kw_only=True)
class Outer:
    inner: Inner | None = None
    parts: tuple[torch.Tensor | Inner, ...] = ()
    named: Mapping[str, torch.Tensor] = field(default_factory=dict)


def test_optional_parts_of_any_kind_find_their_place_again():
    """What is there only sometimes: a dataclass in a dataclass, a tuple that grows, new names."""
    one, two = torch.ones(2), torch.zeros(3)
    values = [
        Outer(),
        Outer(inner=Inner(w=one)),
        Outer(inner=Inner(w=one, count=two), named={"x": two}),
        Outer(parts=(one, Inner(w=two)), named={"x": one, "y": two}),
    ]
    for value in values:
        saved = flatten(value)
        back = unflatten(template(values, saved), saved)
        assert flatten(back).keys() == saved.keys()
        assert (back.inner is None) == (value.inner is None)
        if value.inner is not None:
            assert isinstance(back.inner, Inner)
            assert (back.inner.count is None) == (value.inner.count is None)
    # half of an optional part is missing the other half
    with pytest.raises(ValueError, match=r"no entry 'inner\.w'"):
        unflatten(template(values, {"inner.count": two}), {"inner.count": two})


def component(name: str, period: int | None) -> Component:
    return Component(
        name=name, level=Level(period), memory="", rule="", context_flow="", parameters=1
    )


def test_tensors_are_counted_to_their_level_by_their_path():
    system = [
        component("blocks.0.mixer.memory", 1),
        component("blocks.0.mixer.k", 1),
        component("blocks.0.continuum.levels.0", 1),
        component("blocks.0.continuum.levels.1", 512),
        component("embedding", None),
    ]
    found = {
        path: (owner := owner_of(path, system), *periods(owner, system))
        for path in (
            "blocks.0.mixer.memory.weights.w",
            "blocks.0.mixer.generators.weights.w",
            "blocks.0.continuum.levels.1.weights.w",
            "blocks.0.continuum.levels.10.weights.w",
            "blocks.0.continuum.clock",
        )
    }
    assert list(found.values()) == [
        ("blocks.0.mixer.memory", 1, 1),
        ("blocks.0.mixer.generators", 1, 1),
        ("blocks.0.continuum.levels.1", 512, 512),
        ("blocks.0.continuum.levels", 1, 512),
        ("blocks.0.continuum.clock", 1, 512),
    ]
    assert split_block("blocks.0.continuum.levels.1") == ("blocks.0", "continuum.levels.1")
    assert split_block("embedding") == ("", "embedding")
