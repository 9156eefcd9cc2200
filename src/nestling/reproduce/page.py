"""Tables and pictures of learning on, from the rows alone.

Writes between the marks of a page and leaves the rest of it as it is:

    <!-- rows: domains -->  ...  <!-- end of rows: domains -->
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from nestling.continual import metrics
from nestling.reproduce.job import Section
from nestling.reproduce.pictures import draw
from nestling.reproduce.rows import ERRORS, read
from nestling.reproduce.tables import spread

BEGIN, END = "<!-- rows: {task} -->", "<!-- end of rows: {task} -->"
TITLE = "# Learning on without forgetting\n"
TITLES = {"transformer": "Transformer++", "hope": "Hope"}

Row = dict[str, Any]
Groups = dict[tuple[str, str], list[Row]]


def rewrite(page: Path, rows: Path, sections: Sequence[Section], *, suffix: str = "") -> list[Path]:
    """Put the newest tables into a page, and pictures beside it.

    Args:
        page: a file with marks; one that is not there is begun.
        rows: folder of the rows.
        sections: those of them without rows are left as they are; one with rows that the page has
            no marks for is put at its end.
        suffix: behind the name of a task in the rows' files.

    Returns:
        The files that were written.

    Raises:
        ValueError: if the page has the marks of a section twice, or a row is damaged.
    """
    text = page.read_text(encoding="utf8") if page.exists() else TITLE
    made = []
    for section in sections:
        there = read(rows / f"{section.task}{suffix}.jsonl")
        if there:
            groups = grouped(there)
            if BEGIN.format(task=section.task) not in text:
                text = f"{text.rstrip()}\n\n{place(section)}\n"
            if section.table is not None:
                text = insert(text, section.task, section.table(groups))
                continue
            text = insert(text, section.task, table(groups))
            made += draw(groups, section, page.parent)
    page.parent.mkdir(parents=True, exist_ok=True)
    page.write_text(text, encoding="utf8")
    return [*made, page]


def place(section: Section) -> str:
    """The title of a section and its marks, with nothing between them."""
    begin, end = BEGIN.format(task=section.task), END.format(task=section.task)
    return f"## {section.title}\n\n{begin}\n{end}"


def grouped(rows: Sequence[Row]) -> Groups:
    """Rows by model and strategy, one for each seed, the models' best known names first.

    Raises:
        ValueError: if a strategy has rows of different settings, or a seed twice.
    """
    found: Groups = {}
    for row in rows:
        model: str = row["model"]
        found.setdefault((TITLES.get(model, model), row["strategy"]), []).append(row)
    for (model, strategy), same in found.items():
        settings = [row["settings"] for row in same]
        seeds = [row["seed"] for row in same]
        if any(one != settings[0] for one in settings) or len(set(seeds)) < len(seeds):
            raise ValueError(f"rows: {model}, {strategy}: different settings, or a seed twice")
        same.sort(key=lambda row: row["seed"])
    # Best at the end first; joint training, the upper bound, behind all.
    models = list(dict.fromkeys(model for model, _ in found))

    def place(key: tuple[str, str]) -> tuple[int, bool, float]:
        same = found[key]
        return models.index(key[0]), same[0]["joint"], _mean(map(_final, same))

    return {key: found[key] for key in sorted(found, key=place)}


def table(groups: Groups) -> str:
    """One line for each model and strategy: means over the seeds, and the spread between them.

    Shares and distances are of joint training of the same model, and of its sequential training.
    """
    unit = next(iter(groups.values()))[0]["unit"]
    columns = _ACCURACIES if unit == ERRORS else _LOSSES
    lines = [
        "| model | strategy | " + " | ".join(columns) + " |",
        "|---|---|" + "---|" * len(columns),
    ]
    for (model, strategy), same in groups.items():
        cells = [cell(same, model, groups) for cell in columns.values()]
        lines.append(f"| {model} | {strategy} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def insert(page: str, task: str, text: str) -> str:
    """The page with other text between the marks of a task.

    Raises:
        ValueError: if the page has no such marks.

    >>> insert("a\\n<!-- rows: t -->\\nold\\n<!-- end of rows: t -->\\nb", "t", "new")
    'a\\n<!-- rows: t -->\\nnew\\n<!-- end of rows: t -->\\nb'
    """
    begin, end = BEGIN.format(task=task), END.format(task=task)
    if page.count(begin) != 1 or page.count(end) != 1:
        raise ValueError(f"page: expected {begin} and {end} once each")
    before, rest = page.split(begin)
    return f"{before}{begin}\n{text}\n{end}{rest.split(end)[1]}"


Cell = Callable[[list[Row], str, Groups], str]


def _numbers(of: Callable[[Row], float | None], digits: int, factor: float = 1.0) -> Cell:
    def cell(same: list[Row], model: str, groups: Groups) -> str:
        found = [value * factor for row in same if (value := of(row)) is not None]
        return spread(found, digits)

    return cell


def _beside_joint(same: list[Row], model: str, groups: Groups) -> str:
    joint = groups.get((model, "joint"))
    if joint is None:
        return ""
    mine, theirs = _mean(map(_final, same)), _mean(map(_final, joint))
    if same[0]["unit"] == ERRORS:
        return f"{100 * (theirs - mine):+.1f}"
    return f"{mine / theirs - 1:+.1%}"


def _of_plain(same: list[Row], model: str, groups: Groups) -> str:
    plain = groups.get((model, "sequential"))
    if plain is None or same[0]["joint"]:
        return ""
    whole = _mean(metrics.forgetting(row["R"]) for row in plain)
    return f"{_mean(metrics.forgetting(row['R']) for row in same) / whole:.1%}"


def _stored(same: list[Row], model: str, groups: Groups) -> str:
    return f"{_mean(row['cost']['stored_bytes'] for row in same) / 1e6:.2f} MB"


def _work(same: list[Row], model: str, groups: Groups) -> str:
    spent = [_mean(row["cost"][kind] / row["new"] for row in same) for kind in _PASSES]
    return ", ".join(f"{value:.2f}" for value in spent)


def _seeds(same: list[Row], model: str, groups: Groups) -> str:
    return ", ".join(str(row["seed"]) for row in same)


def _of_matrix(name: str) -> Callable[[Row], float | None]:
    """A metric that needs a row and a column for each phase, so joint training has none."""
    return lambda row: None if row["joint"] else getattr(metrics, name)(row["R"])


def _accuracy(name: str) -> Callable[[Row], float | None]:
    error = _of_matrix(name)

    def found(row: Row) -> float | None:
        value = error(row)
        return None if value is None else 1 - value

    return found


def _final(row: Row) -> float:
    return _mean(row["R"][-1])


def _mean(values: Any) -> float:
    return statistics.fmean(values)


_PASSES = ("forward", "backward")
_LOSSES: dict[str, Cell] = {
    "final average": _numbers(_final, 3),
    "beside joint": _beside_joint,
    "forgetting": _numbers(_of_matrix("forgetting"), 3),
    "of sequential's": _of_plain,
    "just learned": _numbers(_of_matrix("plasticity"), 3),
    "online": _numbers(lambda row: row["online"], 3),
    "stored": _stored,
    "forward, backward a new token": _work,
    "seeds": _seeds,
}
_ACCURACIES: dict[str, Cell] = {
    "accuracy at the end, %": _numbers(lambda row: 1 - _final(row), 1, 100.0),
    "beside joint": _beside_joint,
    "average incremental": _numbers(_accuracy("average_incremental"), 1, 100.0),
    "forgetting": _numbers(_of_matrix("forgetting"), 1, 100.0),
    "just learned": _numbers(_accuracy("plasticity"), 1, 100.0),
    "stored": _stored,
    "forward, backward a new example": _work,
    "seconds": _numbers(lambda row: row["seconds"], 0),
    "seeds": _seeds,
}
