"""docs/continual.md: its example runs, its table is the one that its rows give."""

import re
from pathlib import Path

from nestling.reproduce.driver import TARGETS, Target
from nestling.reproduce.page import grouped, insert, table
from nestling.reproduce.rows import read

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "continual.md").read_text()
[BLOCK] = re.findall(r"```python\n(.*?)```", PAGE, flags=re.DOTALL)


def test_example_runs():
    scope: dict = {}
    exec(BLOCK, scope)
    assert 4 < scope["loss"] < 7  # nats: nothing was known of 256 bytes
    assert scope["scores"].shape == (1, 130, 256)


def test_tables_are_those_of_the_rows():
    streams = [target for target in TARGETS.values() if isinstance(target, Target)]
    page, sections = PAGE, [section for target in streams for section in target.sections]
    for section in sections:
        rows = read(ROOT / "benchmarks" / "results" / f"{section.task}.jsonl")
        if rows:
            found = grouped(rows)
            page = insert(page, section.task, (section.table or table)(found))
    assert page == PAGE


def test_pictures_are_there():
    pictures = re.findall(r"!\[[^]]+\]\(([^)]+\.png)\)", PAGE)
    assert pictures
    assert all((ROOT / "docs" / name).is_file() for name in pictures)
