"""``python -m benchmarks.stream_page``: tables and pictures of learning on, from the rows alone.

Writes between the marks of ``docs/continual.md`` and leaves the rest of the page as it is.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.stream_rows import read
from nestling.continual import metrics
from nestling.report.streams import forgetting_curves, heat_map, stability_plasticity

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "continual.md"
BEGIN, END = "<!-- rows: {task} -->", "<!-- end of rows: {task} -->"
TITLES = {"transformer": "Transformer++", "hope": "Hope"}
PLAIN, OURS = "sequential", "consolidated"

Row = dict[str, Any]


def grouped(rows: Sequence[Row]) -> dict[tuple[str, str], list[Row]]:
    """Rows by model and strategy, one for each seed.

    Raises:
        ValueError: if a strategy has rows of different settings, or a seed twice.
    """
    found: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        found.setdefault((row["model"], row["strategy"]), []).append(row)
    for (model, strategy), same in found.items():
        settings = [row["settings"] for row in same]
        seeds = [row["seed"] for row in same]
        if any(one != settings[0] for one in settings) or len(set(seeds)) < len(seeds):
            raise ValueError(f"rows: {model}, {strategy}: different settings, or a seed twice")
    return found


def table(rows: Sequence[Row]) -> str:
    """One line for each model and strategy: means over the seeds, and the spread between them.

    Shares are of joint training of the same model, and of its sequential training.
    """
    groups, lines = grouped(rows), [
        "| model | strategy | final average | beside joint | forgetting | of sequential's "
        "| just learned | online | stored | forward, backward a new token | seeds |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]  # fmt: skip
    for (model, strategy), same in groups.items():
        joint = groups.get((model, "joint"))
        plain = groups.get((model, PLAIN))
        final = [_final(row) for row in same]
        beside = "" if joint is None else f"{_mean(final) / _mean(map(_final, joint)) - 1:+.1%}"
        lost = [metrics.forgetting(row["R"]) for row in same if not row["joint"]]
        share = ""
        if lost and plain is not None:
            whole = _mean(metrics.forgetting(row["R"]) for row in plain)
            share = f"{_mean(lost) / whole:.1%}"
        new = [metrics.plasticity(row["R"]) for row in same if not row["joint"]]
        online = [row["online"] for row in same if row["online"] is not None]
        tokens = [_tokens(row) for row in same]
        cost = [row["cost"] for row in same]
        lines.append(
            f"| {TITLES.get(model, model)} | {strategy} | {_spread(final)} | {beside} "
            f"| {_spread(lost)} | {share} | {_spread(new)} | {_spread(online)} "
            f"| {_mean(c['stored_bytes'] for c in cost) / 1e6:.2f} MB "
            f"| {_mean(c['forward'] / t for c, t in zip(cost, tokens, strict=True)):.2f}, "
            f"{_mean(c['backward'] / t for c, t in zip(cost, tokens, strict=True)):.2f} "
            f"| {', '.join(str(row['seed']) for row in same)} |"
        )
    return "\n".join(lines)


def pictures(rows: Sequence[Row], task: str, folder: Path) -> list[Path]:
    """Draw what there is of forgetting curves, heat maps and the scatter."""
    groups, made = grouped(rows), []

    def save(figure: Any, name: str) -> None:
        file = folder / f"{task}-{name}.png"
        figure.savefig(file, dpi=130)
        made.append(file)

    seen = {key: min(same, key=lambda row: row["seed"]) for key, same in groups.items()}
    first = ("transformer", PLAIN)
    ours = next((key for key in (("hope", OURS), ("transformer", OURS)) if key in seen), None)
    if first in seen and ours is not None:
        both = {
            "Transformer++, plain training": seen[first]["R"],
            f"{TITLES[ours[0]]} with a slow level that dreams": seen[ours]["R"],
        }
        save(forgetting_curves(both, seen[first]["names"], unit=seen[first]["unit"]), "curves")
    for model, strategy in groups:
        row = seen[model, strategy]
        if strategy in (PLAIN, OURS):
            title = f"{TITLES.get(model, model)}, {strategy}"
            save(heat_map(row["R"], row["names"], title=title, unit=row["unit"]),
                 f"{model}-{strategy}")  # fmt: skip
    points = {
        f"{TITLES.get(model, model)}, {strategy}": [
            (metrics.plasticity(row["R"]), metrics.forgetting(row["R"])) for row in same
        ]
        for (model, strategy), same in groups.items()
        if not same[0]["joint"]
    }
    if points:
        save(stability_plasticity(points, unit=rows[0]["unit"]), "scatter")
    return made


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


def _final(row: Row) -> float:
    return _mean(row["R"][-1])


def _tokens(row: Row) -> int:
    """New tokens of a run: five domains of ``steps`` batches."""
    from benchmarks.domains import BATCH, LENGTH

    return row["settings"]["steps"] * BATCH * LENGTH * len(row["names"])


def _mean(values: Any) -> float:
    return statistics.fmean(values)


def _spread(values: Sequence[float]) -> str:
    """Mean, and half of the distance between the smallest and the largest."""
    if not values:
        return ""
    half = (max(values) - min(values)) / 2
    return f"{_mean(values):.3f}" + (f" ± {half:.3f}" if len(values) > 1 else "")


def main(arguments: Sequence[str] | None = None) -> None:
    """See the module."""
    parser = argparse.ArgumentParser(description=__doc__, prog="python -m benchmarks.stream_page")
    parser.add_argument("--rows", type=Path, default=ROOT / "benchmarks/results/domains.jsonl")
    parser.add_argument("--page", type=Path, default=PAGE)
    options = parser.parse_args(arguments)
    rows = read(options.rows)
    if not rows:
        raise SystemExit(f"{options.rows}: no rows; python -m benchmarks.domains makes them")
    task = rows[0]["task"]
    for file in pictures(rows, task, options.page.parent):
        print(file)
    page = options.page.read_text(encoding="utf8")
    options.page.write_text(insert(page, task, table(rows)), encoding="utf8")


if __name__ == "__main__":
    main()
