"""The pictures of one task: forgetting curves, heat maps, and the scatter of all strategies."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from nestling.continual import metrics
from nestling.report.streams import forgetting_curves, heat_map, stability_plasticity
from nestling.reproduce.job import Section

MOST = 12  # parts of a stream whose maps and curves can still be read
Row = dict[str, Any]


def draw(
    groups: Mapping[tuple[str, str], Sequence[Row]], section: Section, folder: Path
) -> list[Path]:
    """Draw what there is, each of the smallest seed.

    Args:
        groups: rows by model and strategy (:func:`nestling.reproduce.page.grouped`).
        section: which strategies are drawn one by one.
        folder: gets ``{task}-curves.png``, ``{task}-{model}-{strategy}.png`` and
            ``{task}-scatter.png``.

    Returns:
        The files.
    """
    made: list[Path] = []

    def save(figure: Any, name: str) -> None:
        file = folder / f"{section.task}-{name}.png"
        figure.savefig(file, dpi=130)
        made.append(file)

    folder.mkdir(parents=True, exist_ok=True)
    pairs = _pairs(groups, section)
    if any(len(row["names"]) > MOST for row in pairs.values()):
        pairs = {}
    if len(pairs) == 2:
        first = next(iter(pairs.values()))
        both = {title: row["R"] for title, row in pairs.items()}
        save(forgetting_curves(both, first["names"], unit=first["unit"]), "curves")
    for title, row in pairs.items():
        name = "".join(c if c.isalnum() else "-" for c in f"{row['model']} {row['strategy']}")
        save(heat_map(row["R"], row["names"], title=title, unit=row["unit"]), name)
    points = {
        f"{model}, {strategy}": [
            (metrics.plasticity(row["R"]), metrics.forgetting(row["R"])) for row in same
        ]
        for (model, strategy), same in groups.items()
        if not same[0]["joint"]
    }
    if points:
        unit = next(iter(groups.values()))[0]["unit"]
        save(stability_plasticity(points, unit=unit), "scatter")
    return made


def _pairs(groups: Mapping[tuple[str, str], Sequence[Row]], section: Section) -> dict[str, Row]:
    """Plain training of the first model that has it, and ours of the last that has it."""
    found: dict[str, Row] = {}
    plain = [key for key in groups if key[1] == section.plain]
    ours = [key for key in groups if key[1] == section.ours]
    for key in (*plain[:1], *ours[-1:]):
        found[f"{key[0]}, {key[1]}"] = groups[key][0]
    return found
