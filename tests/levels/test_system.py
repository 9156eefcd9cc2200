"""Ordering by update frequency (NL Def. 2) on systems worked out by hand."""

import pytest

from nestling.levels import Component, Level, level_numbers, ordered


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
