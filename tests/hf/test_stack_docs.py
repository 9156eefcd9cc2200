"""The examples of docs/stacking.md run, one after the other in one process."""

import re
from pathlib import Path

import torch

PAGE = Path(__file__).parents[2] / "docs" / "stacking.md"
BLOCKS = re.findall(r"```python\n(.*?)```", PAGE.read_text(), flags=re.DOTALL)


def test_examples_run(capsys):
    torch.set_num_threads(1)
    assert len(BLOCKS) == 5
    scope: dict = {}
    found = []
    for block in BLOCKS:
        exec(block, scope)
        found.append(capsys.readouterr().out)
    learn, save, generate, encoder, train = found
    losses = [float(value) for value in re.findall(r"([\d.]+) nats", learn)]
    assert len(losses) == 10
    assert losses[-1] < losses[0]
    assert re.findall(r"(blocks\.\d\.levels\.\d): moved by", learn) == [
        "blocks.0.levels.0", "blocks.1.levels.1", "blocks.2.levels.0", "blocks.3.levels.1",
    ]  # fmt: skip
    assert not torch.equal(scope["before"], scope["after"])
    assert save.startswith("384 {'0': 5.0, '1': 1.0}")
    assert generate.splitlines()[-1] == "torch.Size([2, 29])"
    first, second = map(float, encoder.split())
    assert second < first
    assert train.splitlines()[-1] == "[1, 1000, 100000]"
    assert all(p.grad is not None for p in scope["llama"].parameters())
