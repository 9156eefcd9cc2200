"""docs/continual.md: its example runs, its table is the one that its rows give."""

import re
from pathlib import Path

from benchmarks.stream_page import insert, table
from benchmarks.stream_rows import read

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "continual.md").read_text()
[BLOCK] = re.findall(r"```python\n(.*?)```", PAGE, flags=re.DOTALL)


def test_example_runs():
    scope: dict = {}
    exec(BLOCK, scope)
    assert 4 < scope["loss"] < 7  # nats: nothing was known of 256 bytes
    assert scope["scores"].shape == (1, 130, 256)


def test_table_is_that_of_the_rows():
    rows = read(ROOT / "benchmarks" / "results" / "domains.jsonl")
    assert insert(PAGE, "domains", table(rows)) == PAGE


def test_pictures_are_there():
    pictures = re.findall(r"!\[[^]]+\]\(([^)]+\.png)\)", PAGE)
    assert pictures
    assert all((ROOT / "docs" / name).is_file() for name in pictures)
