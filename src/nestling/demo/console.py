"""The demo in the terminal: what it will do, how far it is, and what came out."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

from nestling.demo.budget import DEFAULT, SHORT
from nestling.demo.progress import Progress
from nestling.demo.runner import REPORT, RESULTS, run_demo
from nestling.demo.texts import read_texts, shipped
from nestling.report import Results, compare
from nestling.report.summary import headline, title_of

MINUTES = {DEFAULT: "3 to 5 minutes on 2 cores", SHORT: "under a minute"}
"""Measured on AMD EPYC with torch 2.13, one thread."""


def main(
    texts: Sequence[Path] = (),
    *,
    out: Path = Path("nestling-demo"),
    seed: int = 0,
    short: bool = False,
    console: Console | None = None,
) -> Results:
    """What ``nestling demo`` does.

    Args:
        texts: the user's files, one domain each, in this order; none for those shipped.
        out: where ``results.jsonl`` and ``report.html`` go.
        seed: of weights and batches.
        short: the small form, for a quick look.
        console: where to print.

    Raises:
        ValueError: as :func:`nestling.demo.run_demo`, or for a text that cannot be read.
    """
    console = console or Console()
    budget = SHORT if short else DEFAULT
    named = read_texts(texts) if texts else shipped()
    total = budget.tokens_per_domain * len(named)
    console.print(
        "[bold]Hope[/], with a slow level, and a plain [bold]Transformer++[/] of equal size learn "
        f"{len(named)} text{'s' * (len(named) != 1)}, one after the other: "
        f"{', '.join(name for name, _ in named)}.\n"
        f"{total:,} bytes each, in {budget.steps * len(named):,} steps; {MINUTES[budget]} for the "
        "five texts that come with it."
    )
    try:
        results = run_demo(named, out=out, budget=budget, seed=seed, progress=Progress(console))
    except KeyboardInterrupt:
        if (out / REPORT).exists():
            console.print(f"Stopped. What was measured until now: {out / REPORT}")
        raise
    show(results, console)
    console.print(f"\nReport: [bold]{out / REPORT}[/]   all numbers: {out / RESULTS}")
    return results


def show(results: Results, console: Console) -> None:
    """Print both matrices, the closing numbers and the headline."""
    for model in results.models:
        console.print()
        console.print(_matrix(results, model))
    comparisons = compare(results)
    if comparisons:
        table = Table(title="In the end (bits per byte, lower is better)", title_justify="left")
        table.add_column("")
        for model in results.models:
            table.add_column(title_of(results, model), justify="right")
        table.add_column("standard error of the difference", justify="right")
        for comparison in comparisons:
            cells = [
                f"[bold]{value:.3f}[/]" if model == comparison.ahead else f"{value:.3f}"
                for model, value in comparison.values.items()
            ]
            name = comparison.name.lower()
            if name == "just learned":
                name += " (plasticity)"
            table.add_row(name, *cells, f"{comparison.error:.3f}")
        console.print()
        console.print(table)
    console.print()
    console.print(headline(results, comparisons))


def _matrix(results: Results, model: str) -> Table:
    table = Table(
        title=f"{title_of(results, model)}: bits per byte on held-out text", title_justify="left"
    )
    table.add_column("after learning")
    for name in results.domains:
        table.add_column(name, justify="right")
    for i, row in enumerate(results.matrix(model)):
        cells = [
            "" if math.isnan(value) else f"[bold]{value:.2f}[/]" if i == j + 1 else f"{value:.2f}"
            for j, value in enumerate(row)
        ]
        table.add_row("nothing" if i == 0 else results.domains[i - 1], *cells)
    return table
