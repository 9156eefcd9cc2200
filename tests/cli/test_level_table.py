from __future__ import annotations

import io
import json
import re
import sys

import pytest
import torch
from rich.console import Console

from nestling.cli import main
from nestling.cli.level_table import knowledge, print_levels, table, trained
from nestling.levels import NestedSystem
from nestling.models import build
from nestling.models.presets import MIXERS
from nestling.report.picture import picture
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


def test_knowledge_names_every_kind_once():
    system = trained(build("hope", width=16, heads=2, layers=2), TrainConfig())
    out = io.StringIO()
    Console(file=out, width=220).print(knowledge(system))
    lines = [line.rstrip() for line in out.getvalue().splitlines()[3:] if line.strip()]
    kinds = [line.split()[0] for line in lines if not line.startswith("  ")]
    assert kinds == ["conditioning", "backpropagation", "initialisation", "generation"]
    assert any("mixer.initial" in line and "mixer.k, v, eta, alpha; mixer.memory" in line
               for line in lines)  # fmt: skip
    assert any("continuum.levels.2" in line and "mixer.weights (next block)" in line
               for line in lines)  # fmt: skip


def test_json_and_picture_are_files_of_the_same_system(tmp_path, capsys):
    files = tmp_path / "system.json", tmp_path / "system.svg"
    asked = {"size": "tiny", "overrides": ["width=32", "heads=2"]}
    print_levels("titans", **asked, json_file=str(files[0]), svg_file=str(files[1]))
    assert "mixer.memory" in capsys.readouterr().out
    values = json.loads(files[0].read_text())
    system = NestedSystem.from_dict(values)
    assert system == trained(configure_and_build("titans", width=32, heads=2), TrainConfig())
    title = "titans (tiny): what learns how often, and from what"
    assert files[1].read_text() == picture(system, title=title)
    print_levels("titans", **asked, json_file="-")
    out = capsys.readouterr().out
    assert json.loads(out) == values
    assert str(tmp_path) not in out + files[1].read_text()


def configure_and_build(preset, **values):
    with torch.device("meta"):
        return build(preset, **values)


@pytest.mark.parametrize("preset", sorted(MIXERS))
def test_every_preset_at_every_size_has_a_table_and_a_picture(preset, tmp_path, capsys):
    for size in ("tiny", "1.3b"):
        file = tmp_path / f"{size}.svg"
        print_levels(preset, size=size, overrides=[], svg_file=str(file))
        out = capsys.readouterr().out
        assert "knowledge moves by" in out
        blocks = {"tiny": 2, "1.3b": 24}[size]
        assert f"x {blocks} blocks" in file.read_text()
        assert len(re.findall(r"blocks\.\d+\.mixer\.memory ", out)) == blocks


def test_a_checkpoint_is_drawn_without_its_place(tmp_path, monkeypatch, capsys):
    folder = tmp_path / "somewhere"
    folder.mkdir()
    monkeypatch.chdir(folder)
    monkeypatch.setenv("COLUMNS", "200")
    (folder / "book.txt").write_text("the cat sat on the mat. " * 60)
    small = ["--set", "width=16", "--set", "heads=2", "--set", "layers=1", "--set", "hidden=16"]
    command = ["train", "book.txt", "--out", "run", "--steps", "1", *small, "--batch", "2",
               "--length", "16", "--device", "cpu"]  # fmt: skip
    assert run(monkeypatch, *command) == 0
    assert run(monkeypatch, "inspect", "run", "--json", "a.json", "--svg", "a.svg") == 0
    capsys.readouterr()
    assert run(monkeypatch, "inspect", str(folder / "run"), "--svg", "b.svg") == 0
    assert (folder / "a.svg").read_text() == (folder / "b.svg").read_text()
    assert "hope after 1 steps, 32 tokens" in (folder / "a.svg").read_text()
    periods = {c["period"] for c in json.loads((folder / "a.json").read_text())["components"]}
    assert periods == {1, 32, 8192, 65536}
    assert run(monkeypatch, "inspect", "run", "--svg", "no/where.svg") == 2
    assert "no/where.svg" in capsys.readouterr().err


def run(monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", ["nestling", *arguments])
    with pytest.raises(SystemExit) as ended:
        main()
    return ended.value.code or 0
