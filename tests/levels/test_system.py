"""Ordering by update frequency (NL Def. 2) on systems worked out by hand."""

import dataclasses
import json

import pytest

from nestling.levels import Component, Level, NestedSystem, Transfer, level_numbers, ordered


def part(name, period, *after):
    return Component(name=name, level=Level(period), memory="", rule="", context_flow="",
                     parameters=1, after=after)  # fmt: skip


def test_faster_first_and_dependence_breaks_ties():
    system = [part("W", None), part("memory", 1, "k"), part("slow", 512), part("k", 1)]
    assert [c.name for c in ordered(system)] == ["k", "memory", "slow", "W"]
    assert level_numbers(system) == {"k": 1, "memory": 2, "slow": 3, "W": 4}


def test_equal_and_independent_is_one_level():
    moments = [part("exp_avg", 8), part("exp_avg_sq", 8), part("weights", 8, "exp_avg")]
    assert level_numbers(moments) == {"exp_avg": 1, "exp_avg_sq": 1, "weights": 2}


def test_a_cycle_is_named():
    with pytest.raises(ValueError, match="'a' depends on itself"):
        ordered([part("a", 1, "b"), part("b", 1, "a")])


@pytest.mark.parametrize("period", [0, -1])
def test_bad_periods_are_named(period):
    with pytest.raises(ValueError, match="period"):
        Level(period)


def link(kind, source, target):
    return Transfer(kind, source, target)


def weights(name, period=8):
    return dataclasses.replace(part(name, period), kind="weights", weights=(f"{name}.weight",))


def a_system():
    memory = part("memory", 1, "k").linked(link("generation", "k", "memory"))
    return NestedSystem(
        (weights("W"), weights("V", 64), weights("held", None), memory, part("k", 1)),
        (link("initialisation", "W", "memory"), link("backpropagation", "memory", "W")),
    )


def test_a_system_is_ordered_and_gathers_what_its_parts_declare():
    system = a_system()
    assert [[c.name for c in level] for level in system.levels] == [
        ["k"], ["memory"], ["W"], ["V"], ["held"],
    ]  # fmt: skip
    assert system.numbers == {"k": 1, "memory": 2, "W": 3, "V": 4, "held": 5}
    assert [t.kind for t in system.transfers] == [
        "initialisation", "backpropagation", "generation",
    ]  # fmt: skip
    assert all(component.transfers == () for component in system.components)
    # declared at both ends, or again, it is one transfer still
    again = NestedSystem(system.components, (*system.transfers, system.transfers[0]))
    assert again == system


def test_one_gradient_moves_the_trained_weights_and_every_memory_moves_by_its_own():
    assert a_system().gradient_flows == (("k",), ("memory",), ("W", "V"))
    chain = [part(name, period) for name, period in (("a", 4), ("b", 8), ("c", 16))]
    back = (link("backpropagation", "b", "a"), link("backpropagation", "W", "b"))
    joined = NestedSystem((*chain, weights("W")), back)
    assert joined.gradient_flows == (("a", "b"), ("W",), ("c",))
    cache = dataclasses.replace(part("cache", 1), kind="non_parametric")
    moment = dataclasses.replace(part("m", 8), kind="moments")
    assert NestedSystem((cache, moment)).gradient_flows == ()


@pytest.mark.parametrize(
    ("parts", "transfers", "message"),
    [
        ((part("a", 1), part("a", 2)), (), "'a' comes twice"),
        ((part("a", 1, "b"),), (), "'a' comes after 'b', which is none of the 1"),
        ((part("a", 1),), (link("generation", "a", "b"),), "target 'b' of .* none of the 1"),
        ((part("a", 1),), (link("generation", "b", "a"),), "source 'b' of .* none of the 1"),
        ((part("a", 1, "b"), part("b", 1, "a")), (), "depends on itself"),
    ],
)
def test_what_does_not_fit_together_is_named(parts, transfers, message):
    with pytest.raises(ValueError, match=message):
        NestedSystem(parts, transfers)


def test_unknown_kinds_are_named():
    with pytest.raises(ValueError, match=r"kind: expected one of .*initialisation.* got 'copy'"):
        link("copy", "a", "b")
    with pytest.raises(ValueError, match=r"kind: expected one of .*moments.* got 'state'"):
        dataclasses.replace(part("a", 1), kind="state")


def test_json_and_back():
    system = a_system()
    text = json.dumps(system.to_dict())
    assert NestedSystem.from_dict(json.loads(text)) == system
    entry = json.loads(text)["components"][1]
    assert (entry["name"], entry["level"], entry["period"]) == ("memory", 2, 1)
    assert entry["after"] == ["k"]


def test_json_does_not_depend_on_the_order_of_declaration_among_levels():
    system = a_system()
    backwards = NestedSystem(tuple(reversed(system.components)), system.transfers)
    assert backwards.to_dict() == system.to_dict()


def broken(change):
    values = json.loads(json.dumps(a_system().to_dict()))
    change(values)
    return values


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda v: v.update(schema=2), "expected schema 1, got 2"),
        (lambda v: v.pop("transfers"), "system: missing field 'transfers'"),
        (lambda v: v.update(more=1), "system: unknown field 'more'"),
        (lambda v: v["components"].append(3), r"components\[5\]: expected an object, got 3"),
        (lambda v: v["components"][0].pop("rule"), r"components\[0\]: missing field 'rule'"),
        (lambda v: v["components"][0].update(parameters="1"), "parameters: expected .*int.*'1'"),
        (lambda v: v["components"][0].update(parameters=True), "parameters: expected .*True"),
        (lambda v: v["components"][0].update(after=[1]), "after: expected names"),
        (lambda v: v["components"][0].update(kind="state"), "kind: expected one of"),
        (lambda v: v["components"][0].update(period=0), "period: expected a whole number"),
        (lambda v: v["components"][0].update(level=7), "'k' is at level 1, got 7"),
        (lambda v: v["transfers"][0].update(kind="copy"), "kind: expected one of"),
        (lambda v: v["transfers"][0].pop("source"), r"transfers\[0\]: missing field 'source'"),
        (lambda v: v["transfers"][0].update(target="x"), "target 'x'"),
    ],
)
def test_bad_json_is_named(change, message):
    with pytest.raises(ValueError, match=message):
        NestedSystem.from_dict(broken(change))
