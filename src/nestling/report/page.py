"""One self-contained HTML page from the results: no script, no request, readable on a phone."""

from __future__ import annotations

import os
from html import escape
from importlib import resources
from pathlib import Path

from nestling.report import sections
from nestling.report.results import Results
from nestling.report.summary import Comparison, compare, headline, title_of

NUMBERS = ("no", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")


def write_report(results: Results, path: Path) -> None:
    """Write the report of a run, also of an unfinished one; an older file is replaced at once.

    Args:
        results: from :func:`nestling.report.read_results`.
        path: of the HTML file.
    """
    partial = path.with_name(path.name + ".part")
    partial.write_text(render(results), encoding="utf-8", newline="\n")
    os.replace(partial, path)


def render(results: Results) -> str:
    """The page as text."""
    comparisons = compare(results)
    n = len(results.domains)
    count = NUMBERS[n] if n < len(NUMBERS) else str(n)
    title = f"Learning {count} texts, one after the other" if n != 1 else "Learning one text"
    style = (resources.files("nestling.report") / "page.css").read_text(encoding="utf-8")
    names = [escape(title_of(results, model)) for model in results.models]
    shown = [part for part in _parts(results, comparisons) if part[3]]
    body = "".join(
        f'<section id="{name}"><h2>{head}</h2>{f"<p>{text}</p>" if text else ""}{content}</section>'
        for name, head, text, content in shown
    )
    links = "".join(f'<a href="#{name}">{head}</a>' for name, head, _, _ in shown)
    warning = (
        ""
        if results.finished
        else '<p class="warn">This run was stopped before its end; what it measured until then is '
        "shown.</p>"
    )
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title} &middot; nestling</title>
<style>
{style}</style>
</head>
<body>
<header>
<h1>{title}</h1>
<p class="sub">{" and ".join(names)}, {_sizes(results)}, trained on the same bytes in the same
order. Which of them still knows the first text in the end?</p>
{warning}<p class="lead">{escape(headline(results, comparisons))}</p>
{sections.cards(results, comparisons)}
<nav aria-label="Sections">{links}</nav>
</header>
<main>
{body}
</main>
<footer><p>{_stamp(results)}</p></footer>
</body>
</html>
"""


def _parts(results: Results, comparisons: list[Comparison]) -> list[tuple[str, str, str, str]]:
    """Id, heading, introduction and content of every section, in order."""
    length = results.run.get("budget", {}).get("length", 0)
    return [
        ("outcome", "What came out", "", sections.outcome(results, comparisons)),
        (
            "matrix",
            "What is known after each phase",
            "Bits per byte on the held-out part of every domain. Read a column downwards: the "
            "number falls when the domain is learned (framed) and rises when it is forgotten. Both "
            "maps share one scale; light is good.",
            sections.matrices(results),
        ),
        (
            "stream",
            "Over the stream",
            "The same, measured on a smaller sample while training goes on. One panel per domain.",
            sections.stream(results),
        ),
        (
            "reading",
            "Reading on",
            "After everything was learned, long held-out passages are read in one go, with the "
            "state carried along and the weights held still. A falling line is a model that adapts "
            f"to the text in front of it. Training sequences were {length:,} bytes long: positions "
            "beyond that are new to a Transformer.",
            sections.reading_on(results),
        ),
        (
            "writes",
            "How much each memory and level wrote",
            "0 means that it never changed and might as well not be there.",
            sections.writes(results),
        ),
        (
            "levels",
            "The levels",
            f"Every part that holds something over time, the fastest first. {_step(results)}",
            sections.level_table(results),
        ),
        ("texts", "The texts", "Real text; the end of each is held out.", sections.texts(results)),
        ("glossary", "Words on this page", "", sections.glossary()),
        ("again", "Do it again", "", _again(results) + sections.setup(results)),
    ]


def _step(results: Results) -> str:
    budget = results.run.get("budget", {})
    tokens = budget.get("batch", 1) * budget.get("length", 1)
    return f"One optimizer step reads {tokens:,} tokens, so no weight moves more often than that."


def _sizes(results: Results) -> str:
    sizes = [model["parameters"] for model in results.run["models"]]
    if max(sizes) - min(sizes) <= 0.01 * max(sizes):
        return f"of equal size ({round(sum(sizes) / len(sizes), -3):,.0f} parameters)"
    return " and ".join(f"{size:,} parameters" for size in sizes)


def _again(results: Results) -> str:
    run = results.run
    budget = run.get("budget", {})
    command = escape(run.get("command", "nestling demo"))
    return (
        f"<p>The budget is counted in steps, so the same command, seed and versions give the same "
        f"numbers up to rounding: {budget.get('steps', 0):,} steps per domain for each model.</p>"
        f"<pre><code>{command}\nnestling demo --text a.txt b.txt   # the same on your own files"
        "</code></pre><p>All numbers of this page are in <code>results.jsonl</code> beside it, one "
        "measurement per line.</p>"
    )


def _stamp(results: Results) -> str:
    run = results.run
    facts = [
        f"nestling {run.get('nestling', '?')}"
        + (f" ({run['commit']})" if run.get("commit") else ""),
        f"torch {run.get('torch', '?')}",
        f"{run.get('processor', '?')}, {run.get('threads', '?')} threads",
        str(run.get("started", ""))[:10],
        f"seed {run.get('seed', '?')}",
    ]
    if "seconds" in run:
        facts.append(f"{run['seconds']:.0f} s in all")
    return " &middot; ".join(escape(fact) for fact in facts)
