"""``nestling reproduce``: rows that are missing, then the page of tables and pictures."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from nestling.cli.tables import new_console
from nestling.reproduce.driver import TARGETS, Request
from nestling.reproduce.driver import reproduce as run


def reproduce(request: Request | None) -> None:
    """Reproduce a target; without one, say which there are."""
    console = new_console()

    def say(text: str) -> None:
        console.print(text, markup=False, highlight=False, soft_wrap=True)

    if request is None:
        for name, target in TARGETS.items():
            say(f"{name}: {target.title}")
        return
    target = TARGETS.get(request.target)
    if request.page is None and target is not None:
        # Only the real size writes the page that is part of the project.
        page = Path(target.page)
        page = page if request.size == "cpu" else request.work / page.name
        request = dataclasses.replace(request, page=page)
    run(request, say)
