"""The examples of docs/continuum.md run."""

import re
from pathlib import Path

import pytest

PAGE = Path(__file__).parents[2] / "docs" / "continuum.md"
BLOCKS = re.findall(r"```python\n(.*?)```", PAGE.read_text(), flags=re.DOTALL)


def test_there_are_examples():
    assert len(BLOCKS) == 3


@pytest.mark.parametrize("index", range(len(BLOCKS)))
def test_example_runs(index, capsys):
    scope: dict = {}
    exec(BLOCKS[index], scope)
    out = capsys.readouterr().out
    if index == 0:
        losses = [float(value) for value in re.findall(r"([\d.]+) nats", out)]
        assert len(losses) == 4
        assert losses[-1] < losses[0]
        assert "blocks.1.continuum.levels.2: moved" in out
        assert "in 2 writes" in out
    if index == 1:
        assert out.splitlines()[-1] == "(512, 4096)"
    if index == 2:
        start = scope["model"].initial_state(1)
        moved = scope["model"].liveness(start, scope["state"])
        assert all(value > 0 for value in moved.values())
