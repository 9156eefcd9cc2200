"""The parts of the page, each from the results alone."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from html import escape

from nestling.report.figures import COLOURS, SHADE, Curve, bars, curves, heat_map, marker
from nestling.report.level_table import merged
from nestling.report.results import Measurement, Results
from nestling.report.summary import Comparison, reading_sentence, sentences, title_of
from nestling.report.words import ERRORS, GLOSSARY, ONE_SEED, SMALL

BEFORE = "before"
AVERAGE = "average of all"


def cards(results: Results, comparisons: Sequence[Comparison]) -> str:
    """The headline numbers side by side."""
    return f'<div class="cards">{"".join(_card(results, c) for c in comparisons)}</div>'


def _card(results: Results, comparison: Comparison) -> str:
    numbers = "".join(
        f'<dt class="{kind}">{escape(title_of(results, model))}</dt><dd>{value:.2f}</dd>'
        for kind, (model, value) in zip(("first", "second"), comparison.values.items(), strict=True)
    )
    if comparison.ahead is None:
        verdict = f"Level: the difference is {abs(comparison.difference):.2f}"
    else:
        verdict = (
            f"<b>{escape(title_of(results, comparison.ahead))}</b> is better by "
            f"{abs(comparison.difference):.2f}"
        )
    return (
        f'<div class="card"><h3>{comparison.name}</h3><p class="meaning">{comparison.meaning}</p>'
        f'<dl>{numbers}</dl><p class="verdict">{verdict} '
        f"(standard error {comparison.error:.2f}). Lower is better.</p></div>"
    )


def outcome(results: Results, comparisons: Sequence[Comparison]) -> str:
    """The sentences, and what to keep in mind."""
    points = "".join(f"<li>{escape(text)}</li>" for text in sentences(results, list(comparisons)))
    known = ERRORS[1] if results.run.get("seed_spread") else ERRORS[2]
    caveats = f"{ONE_SEED} {ERRORS[0]}{known} {SMALL}"
    return f'<ul>{points}</ul><p class="note">{escape(caveats)}</p>' if points else ""


def matrices(results: Results) -> str:
    """Both matrices on one scale, and their numbers as tables."""
    tables = {model: results.matrix(model) for model in results.models}
    values = [v for table in tables.values() for row in table for v in row if not math.isnan(v)]
    if not values:
        return '<p class="note">Nothing has been measured yet.</p>'
    scale = (min(values), max(values))
    rows = [BEFORE, *(f"after {name}" for name in results.domains)]
    figures, details = [], []
    for model, table in tables.items():
        title = title_of(results, model)
        ends = [f"{n} {v:.2f}" for n, v in zip(results.domains, table[-1], strict=True)]
        alt = (
            f"Heat map of {title}: bits per byte on each domain (columns) after each phase (rows)."
            + ("" if any(map(math.isnan, table[-1])) else f" Last row: {', '.join(ends)}.")
        )
        svg = heat_map(table, rows=rows, columns=results.domains, scale=scale, name=f"heat-{model}")
        figures.append(_figure(svg, alt, heading=title))
        details.append(f"<h3>{escape(title)}</h3>" + _matrix_table(table, rows, results.domains))
    return (
        f'<div class="figures pair">{"".join(figures)}</div>'
        f"<details><summary>The same numbers as tables</summary>{''.join(details)}</details>"
    )


def _matrix_table(
    table: Sequence[Sequence[float]], rows: Sequence[str], columns: Sequence[str]
) -> str:
    def cell(i: int, j: int, value: float) -> str:
        if math.isnan(value):
            return ""
        return f"<b>{value:.3f}</b>" if i == j + 1 else f"{value:.3f}"

    body = [
        [escape(rows[i]), *(cell(i, j, value) for j, value in enumerate(row))]
        for i, row in enumerate(table)
    ]
    return _table(["bits per byte", *columns], body, numeric=range(1, len(columns) + 1))


def stream(results: Results) -> str:
    """Bits per byte on each domain over the whole stream, one panel per domain."""
    rows = results.select("probe_bpb")
    if not rows:
        return '<p class="note">Nothing has been measured yet.</p>'
    top = max(row.value for row in rows)
    low = min(row.value for row in rows)
    per_phase = _tokens_per_phase(results)
    names = [*results.domains, *([AVERAGE] if len(results.domains) > 1 else [])]
    panels = []
    for index, name in enumerate(names):
        lines = _lines(results, rows, name, lambda row: float(row.tokens))
        svg = curves(
            lines, title=name, x_label="bytes trained on", y_range=(max(0.0, low - 0.4), top + 0.3),
            shade=None if name == AVERAGE else (per_phase * index, per_phase * (index + 1)),
            ends=[per_phase * i for i in range(1, len(results.domains))], name=f"stream-{index}",
        )  # fmt: skip
        said = "; ".join(
            f"{line.label} from {line.y[0]:.2f} to {line.y[-1]:.2f}, lowest {min(line.y):.2f}"
            for line in lines
            if line.y
        )
        panels.append(_figure(svg, f"Bits per byte on {name} over the stream: {said}."))
    shaded = (
        '<li><svg viewBox="0 0 34 12" aria-hidden="true"><rect width="34" height="12" '
        f'fill="{SHADE}"/></svg>this domain is being learned</li>'
    )
    return key(results, shaded) + f'<div class="figures">{"".join(panels)}</div>'


def _lines(
    results: Results, rows: Sequence[Measurement], name: str, where: Callable[[Measurement], float]
) -> list[Curve]:
    """One curve per model on one domain, or on the average where all domains are known."""
    found = []
    for number, model in enumerate(results.models):
        points: dict[float, list[float]] = {}
        for row in rows:
            if row.model == model and name in (row.domain, AVERAGE):
                points.setdefault(where(row), []).append(row.value)
        needed = len(results.domains) if name == AVERAGE else 1
        points = {x: y[-needed:] for x, y in points.items() if len(y) >= needed}
        values = [sum(y) / len(y) for y in points.values()]
        found.append(Curve(title_of(results, model), list(points), values, number))
    return found


def _tokens_per_phase(results: Results) -> float:
    budget = results.run.get("budget", {})
    return float(budget.get("steps", 1) * budget.get("batch", 1) * budget.get("length", 1))


def key(results: Results, *more: str) -> str:
    """Which line is which, once for all panels."""
    dashes = ("", "5 3", "2 2")
    items = [
        f'<li><svg viewBox="0 0 34 12" aria-hidden="true"><line x1="0" y1="6" x2="34" y2="6" '
        f'stroke="{COLOURS[number]}" stroke-width="3" stroke-dasharray="{dashes[number % 3]}"/>'
        f"</svg>{escape(title_of(results, model))}</li>"
        for number, model in enumerate(results.models)
    ]
    return f'<ul class="key">{"".join([*items, *more])}</ul>'


def reading_on(results: Results) -> str:
    """Bits per byte by position in a long passage, state carried, one panel per domain."""
    rows = results.select("reading_bpb")
    if not rows:
        return ""
    length = results.run.get("budget", {}).get("length", 0)
    low, top = min(row.value for row in rows), max(row.value for row in rows)
    names = [*results.domains, *([AVERAGE] if len(results.domains) > 1 else [])]
    panels = []
    for index, name in enumerate(names):
        lines = _lines(results, rows, name, lambda row: float(row.part or 0) + length)
        svg = curves(
            lines, title=name, x_label="bytes read", y_range=(max(0.0, low - 0.2), top + 0.2),
            name=f"reading-{index}", size=(3.6, 2.2),
        )  # fmt: skip
        said = "; ".join(
            f"{line.label} {line.y[0]:.2f} in the first {length} bytes, "
            f"{line.y[-1]:.2f} in the last"
            for line in lines
            if line.y
        )
        panels.append(_figure(svg, f"Bits per byte while reading {name}: {said}."))
    said = f"<p>{escape(reading_sentence(results))}</p>"
    return said + key(results) + f'<div class="figures">{"".join(panels)}</div>'


def writes(results: Results) -> str:
    """How far memories and weights moved, by part."""
    figures = []
    memories = _by_part(results.select("memory_written"), lambda row: row.domain or "")
    if memories:
        figures.append(
            _dots(
                memories, results.domains, "Memories inside Hope, while reading",
                "change relative to its size", "memories",
                "after reading one held-out sequence of the domain just learned",
            )
        )  # fmt: skip
    for model in results.models:
        rows = results.select("weights_written", model=model)
        parts = _by_part(rows, lambda row: results.domains[row.phase - 1])
        if parts:
            figures.append(
                _dots(
                    parts, results.domains, f"Weights of {title_of(results, model)}, by level",
                    "change relative to its size", f"weights-{model}",
                    "over the training on one domain",
                )
            )  # fmt: skip
    if not figures:
        return '<p class="note">No phase is finished yet.</p>'
    marks = "".join(
        f"<li>{marker(index)}{escape(name)}</li>" for index, name in enumerate(results.domains)
    )
    return (
        f'<ul class="key">{marks}</ul><div class="figures">{"".join(figures)}</div>'
        f"{_updates(results)}"
    )


def _by_part(
    rows: Sequence[Measurement], series: Callable[[Measurement], str]
) -> dict[str, dict[str, float]]:
    """part -> series -> value, in the order of the rows."""
    found: dict[str, dict[str, float]] = {}
    for row in rows:
        found.setdefault(row.part or "", {})[series(row)] = row.value
    return found


def _dots(
    parts: dict[str, dict[str, float]],
    domains: Sequence[str],
    title: str,
    x_label: str,
    name: str,
    when: str,
) -> str:
    labels = [part.replace("blocks.", "block ").replace(".mixer", "") for part in parts]
    values = {d: [parts[p].get(d, math.nan) for p in parts] for d in domains}
    svg = bars(values, groups=labels, title="", x_label=x_label, name=name)
    means = {
        label: [v for v in parts[part].values() if not math.isnan(v)]
        for label, part in zip(labels, parts, strict=True)
    }
    said = ", ".join(f"{label} {sum(v) / len(v):.3f}" for label, v in means.items() if v)
    return _figure(svg, f"{title}, {when}; mean over domains: {said}.", heading=title, note=when)


def _updates(results: Results) -> str:
    """How often each level moved."""
    rows = results.select("level_updates")
    if not rows:
        return ""
    totals: dict[tuple[str, str], float] = {}
    for row in rows:
        where = (row.model, row.part or "")
        totals[where] = totals.get(where, 0.0) + row.value
    said = []
    for model in results.models:
        parts = [
            f"{'every step' if period == '1' else f'period {int(period):,}'} ({count:,.0f} times)"
            for (owner, period), count in totals.items()
            if owner == model
        ]
        said.append(f"{escape(title_of(results, model))}: {', '.join(parts)}")
    return f'<p class="note">How often the optimizer moved weights. {". ".join(said)}.</p>'


def level_table(results: Results) -> str:
    """Every component of the first model, fastest first; the others folded away."""
    parts = []
    heads = ["component", "level", "period", "memory", "rule", "learns from", "numbers held"]
    for index, model in enumerate(results.models):
        body = []
        for line in merged(row for row in results.table if row.model == model):
            row, times = line.row, f" &times; {line.count}" if line.count > 1 else ""
            texts = [line.period, row.memory, row.rule, row.context_flow, f"{row.parameters:,}"]
            body.append([escape(row.name) + times, str(row.number), *map(escape, texts)])
        if not body:
            continue
        table = _table(heads, body, numeric=(1, 6), stack=True)
        title = escape(title_of(results, model))
        parts.append(
            f"<h3>{title}</h3>{table}"
            if index == 0
            else f"<details><summary>The same for {title}</summary>{table}</details>"
        )
    return "".join(parts)


def texts(results: Results) -> str:
    """What was learned."""
    body = [
        [
            escape(domain["name"]),
            escape(domain["title"]),
            f"{domain['train_bytes']:,}",
            f"{domain['held_out_bytes']:,}",
        ]
        for domain in results.run["domains"]
    ]
    heads = ["domain", "text", "bytes to train on", "held out"]
    return _table(heads, body, numeric=(2, 3), stack=True)


def setup(results: Results) -> str:
    """Everything that was chosen, and what it ran on."""
    run = results.run
    rows = [
        (f"{model['title']}: parameters", f"{model['parameters']:,}") for model in run["models"]
    ]
    rows += [(name.replace("_", " "), _plain(v)) for name, v in run.get("budget", {}).items()]
    rows += [
        (name, _plain(run[name]))
        for name in ("seed", "started", "seconds", "nestling", "commit", "torch", "python",
                     "system", "processor")
        if run.get(name) is not None
    ]  # fmt: skip
    table = _table(["", "value"], [[escape(k), escape(v)] for k, v in rows], numeric=(1,))
    return f"<details><summary>All settings</summary>{table}</details>"


def _plain(value: object) -> str:
    if isinstance(value, list | tuple):
        return ", ".join(f"{v:,}" if isinstance(v, int) else str(v) for v in value)
    return f"{value:,}" if isinstance(value, int) else str(value)


def glossary() -> str:
    """The words of this page."""
    items = "".join(f"<dt>{escape(word)}</dt><dd>{escape(text)}</dd>" for word, text in GLOSSARY)
    return f'<dl class="glossary">{items}</dl>'


def _figure(svg: str, alt: str, *, heading: str = "", note: str = "") -> str:
    labelled = svg.replace("<svg ", f'<svg role="img" aria-label="{escape(alt, quote=True)}" ', 1)
    head = f"<h3>{escape(heading)}</h3>" if heading else ""
    foot = f"<figcaption>{escape(note)}</figcaption>" if note else ""
    return f"<figure>{head}{labelled}{foot}</figure>"


def _table(
    heads: Sequence[str],
    rows: Sequence[Sequence[str]],
    *,
    numeric: Sequence[int] | range,
    stack: bool = False,
) -> str:
    """A table of HTML cells; the first of each row is its header.

    Args:
        heads: plain text.
        rows: HTML.
        numeric: columns set to the right.
        stack: on a narrow screen, put the cells of a row below each other instead of scrolling.
    """

    def cell(i: int, content: str) -> str:
        kind = ' class="n"' if i in numeric else ""
        if i == 0:
            return f'<th scope="row"{kind}>{content}</th>'
        return f'<td{kind} data-head="{escape(heads[i], quote=True)}">{content}</td>'

    head = "".join(
        f'<th scope="col"{" class=n" if i in numeric else ""}>{escape(text)}</th>'
        for i, text in enumerate(heads)
    )
    body = "".join(
        f"<tr>{''.join(cell(i, content) for i, content in enumerate(row))}</tr>" for row in rows
    )
    return (
        f'<div class="scroll" tabindex="0"><table{" class=stack" if stack else ""}><thead><tr>'
        f"{head}</tr></thead><tbody>{body}</tbody></table></div>"
    )
