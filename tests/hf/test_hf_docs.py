"""The examples of docs/hugging-face.md run."""

import re
from pathlib import Path

import pytest
import torch

PAGE = Path(__file__).parents[2] / "docs" / "hugging-face.md"

BLOCKS = re.findall(r"```python\n(.*?)```", PAGE.read_text(), flags=re.DOTALL)


def test_there_are_examples():
    assert len(BLOCKS) == 5


@pytest.mark.parametrize("index", range(len(BLOCKS)))
def test_example_runs(index, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    scope: dict = {}
    exec(BLOCKS[index], scope)
    out = capsys.readouterr().out
    if index == 0:
        assert out.startswith("hope ")
        assert scope["half"].dtype == torch.bfloat16
        assert Path("hope/README.md").exists()
    if index == 2:
        assert scope["drawn"].shape[0] == 4
        assert scope["beams"].shape == scope["greedy"].shape
        assert "what was written first" in out
    if index == 3:
        assert out.strip() == "40 tokens read"  # 16, 17, and all that was drawn but the last
    if index == 4:
        assert float(re.findall(r"([\d.]+) nats", out)[-1]) < 6
