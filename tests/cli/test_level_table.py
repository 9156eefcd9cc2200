from __future__ import annotations

import io

import pytest
from rich.console import Console

from nestling.cli.level_table import table, trained
from nestling.models import build
from nestling.train import TrainConfig


def test_system_of_hope_is_ordered_and_complete():
    model = build("hope", width=16, heads=2, layers=1, periods=(1, 64, 4096), hidden=16)
    config = TrainConfig(batch=2, length=128)
    system = trained(model, config)
    components = system.components
    periods = [c.level.period for c in components]
    assert periods == sorted(periods)
    assert set(periods) == {1, 256, 4096}
    size = sum(p.numel() for p in model.parameters())
    moments = [c for c in components if c.name.startswith("optimizer.")]
    assert sum(c.parameters for c in moments) == 2 * size
    weights = [c for c in components if "AdamW" in c.rule]
    assert sum(c.parameters for c in weights) == size
    inner = [c for c in components if c not in moments and c not in weights]
    assert [c.name.split(".")[-1] for c in inner] == ["k", "v", "eta", "alpha", "memory"]
    # what a weight needs comes before it: its moments, of the same frequency, one level up
    numbers = system.numbers
    for part in weights:
        assert all(numbers[name] < numbers[part.name] for name in part.after)
        assert len(part.after) == 2
    assert numbers["blocks.0.mixer.memory"] == numbers["blocks.0.mixer.k"] + 1
    assert numbers[moments[0].name] == numbers[moments[1].name]


@pytest.mark.parametrize("preset", ["hope", "transformer", "titans", "hope_attention"])
def test_table_shows_every_component_and_number(preset):
    model = build(preset, width=16, heads=2, layers=2)
    system = trained(model, TrainConfig())
    components = system.components
    out = io.StringIO()
    Console(file=out, width=220).print(table(system))
    rows = [line.split() for line in out.getvalue().splitlines()[3:] if line.strip()]
    assert len(rows) == len(components)
    for row, component in zip(rows, components, strict=True):
        assert component.name.split()[0] in " ".join(row)
        assert row[-1] == f"{component.parameters:,}"
        assert f"{component.level.period:,}" in row[:2]
