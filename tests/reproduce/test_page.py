"""The page: tables by hand, marks, and rows that do not belong together."""

from __future__ import annotations

import pytest

from nestling.reproduce.job import Section
from nestling.reproduce.page import grouped, insert, rewrite, table
from nestling.reproduce.rows import BITS, ERRORS, append


def row(**more):
    values = {
        "task": "toy", "strategy": "sequential", "model": "transformer", "seed": 0,
        "settings": {"lr": 1.0}, "names": ["a", "b"], "phases": ["a", "b"],
        "R": [[8.0, 8.0], [2.0, 7.0], [4.0, 2.0]],
        "unit": BITS, "online": 3.0, "cost": {"stored_bytes": 0, "forward": 10, "backward": 10},
        "new": 10, "seconds": 1.0, "commit": "abc", "hardware": "a computer", "joint": False,
    }  # fmt: skip
    return {**values, **more}


def test_losses_by_hand():
    rows = [
        row(),
        row(seed=1, R=[[8.0, 8.0], [2.0, 7.0], [6.0, 2.0]]),
        row(strategy="consolidated", R=[[8.0, 8.0], [2.0, 7.0], [2.3, 2.1]],
            cost={"stored_bytes": 2_500_000, "forward": 19, "backward": 14}),
        row(strategy="joint", joint=True, phases=["joint"], R=[[8.0, 8.0], [2.0, 2.0]],
            online=None),
    ]  # fmt: skip
    text = table(grouped(rows))
    # Best at the end first, joint training last; forgetting 3 on average of 2 and 4.
    assert text.splitlines()[2:] == [
        "| Transformer++ | consolidated | 2.200 | +10.0% | 0.300 | 10.0% | 2.050 | 3.000 "
        "| 2.50 MB | 1.90, 1.40 | 0 |",
        "| Transformer++ | sequential | 3.500 ± 0.500 | +75.0% | 3.000 ± 1.000 | 100.0% "
        "| 2.000 ± 0.000 | 3.000 ± 0.000 | 0.00 MB | 1.00, 1.00 | 0, 1 |",
        "| Transformer++ | joint | 2.000 | +0.0% |  |  |  |  | 0.00 MB | 1.00, 1.00 | 0 |",
    ]


def test_accuracies_by_hand():
    rows = [
        row(model="MLP", unit=ERRORS, R=[[1.0, 1.0], [0.0, 1.0], [0.9, 0.1]], seconds=3.4),
        row(
            model="MLP",
            unit=ERRORS,
            strategy="joint",
            joint=True,
            phases=["joint"],
            R=[[1.0, 1.0], [0.05, 0.05]],
        ),
    ]
    assert table(grouped(rows)).splitlines()[2] == (
        # at the end 1 - 0.5; average of 1 and 0.5; lost 0.9 of the first; just learned 1 and 0.9
        "| MLP | sequential | 50.0 | -45.0 | 75.0 | 90.0 | 95.0 | 0.00 MB | 1.00, 1.00 | 3 | 0 |"
    )


def test_rows_that_do_not_belong_together():
    with pytest.raises(ValueError, match="a seed twice"):
        grouped([row(), row()])
    with pytest.raises(ValueError, match="different settings"):
        grouped([row(), row(seed=1, settings={"lr": 2.0})])


def test_a_page_is_begun_and_kept(tmp_path):
    sections = (Section(task="toy", title="Toy"), Section(task="none", title="Nothing"))
    append(row(), tmp_path / "rows" / "toy.jsonl")
    page = tmp_path / "page.md"
    rewrite(page, tmp_path / "rows", sections)
    text = page.read_text()
    assert "| Transformer++ | sequential | 3.000 |" in text
    assert "Nothing" not in text
    page.write_text(text.replace("## Toy", "## Toy, in my words"))
    append(row(task="none"), tmp_path / "rows" / "none.jsonl")
    made = rewrite(page, tmp_path / "rows", sections)
    newest = page.read_text()
    assert newest.index("## Toy, in my words") < newest.index("## Nothing\n\n<!-- rows: none -->")
    assert all(file.exists() for file in made)
    with pytest.raises(ValueError, match="page: expected <!-- rows: other -->"):
        insert(text, "other", "")
