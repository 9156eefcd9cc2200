"""The examples of docs/evaluation.md run, and its list of names is the one that there is."""

import re
from pathlib import Path

import datasets
import pytest

from nestling.hf.tasks import DOWNSTREAM

PAGE = Path(__file__).parents[2] / "docs" / "evaluation.md"
TEXT = PAGE.read_text()
BLOCKS = re.findall(r"```python\n(.*?)```", TEXT, flags=re.DOTALL)


@pytest.fixture(autouse=True)
def offline(monkeypatch, tmp_path):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)


def test_there_are_examples():
    assert len(BLOCKS) == 3


@pytest.mark.parametrize("index", range(len(BLOCKS)))
def test_example_runs(index, capsys):
    scope: dict = {}
    exec(BLOCKS[index], scope)
    lines = capsys.readouterr().out.splitlines()
    if index == 0:
        assert [line.split()[0] for line in lines] == ["on", "off"]
        assert [line.split()[2] for line in lines] == ["2", "2"]
    if index == 1:
        losses = [float(line.removesuffix(" nats")) for line in lines]
        assert len(losses) == 5
        assert losses[-1] < losses[0]
    if index == 2:
        assert lines == ["{'0': 7.0, '1': 3.0} []", "{'0': 7.0, '1': 3.0} [128]"] * 2


def test_every_name_is_told():
    section = TEXT.split("## Names")[1].split("## A task")[0]
    told = re.findall(r"`([a-z_]+)`", section)
    assert [name for name in told if "_" in name or name in DOWNSTREAM] == list(DOWNSTREAM)
    for kind in {row.kind for row in DOWNSTREAM.values()}:
        assert kind in section
