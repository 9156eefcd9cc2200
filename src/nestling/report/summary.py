"""The numbers and sentences of a comparison: computed both ways, whoever comes out ahead.

Nothing here knows which model it would like to win. A difference smaller than twice its standard
error is called level. That error has two parts, added as squares: how far the number would move
with other held-out text, known from the sequences of the run itself, and how far with another
seed, which a single run cannot know: the run brings it along, measured once (``seed_spread``).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from nestling.continual import final_average, forgetting, forgetting_by_domain, plasticity
from nestling.report.results import Results

GUESSING = 8.0
"""Bits per byte of a model that knows nothing: one of 256."""

UNSURE = 2.0
"""Standard errors below which two numbers are called level."""


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """One number of two models, lower being better.

    Attributes:
        name: of the number.
        meaning: in one line, for someone new to it.
        values: model name to number.
        error: standard error of the difference.
    """

    name: str
    meaning: str
    values: dict[str, float]
    error: float

    @property
    def difference(self) -> float:
        """First minus second model; negative means that the first is better."""
        first, second = self.values.values()
        return first - second

    @property
    def ahead(self) -> str | None:
        """The better model; None if they are level.

        >>> values = {"a": 2.0, "b": 2.5}
        >>> Comparison(name="", meaning="", values=values, error=0.1).ahead
        'a'
        >>> Comparison(name="", meaning="", values=values, error=0.3).ahead is None
        True
        """
        if abs(self.difference) <= UNSURE * self.error:
            return None
        first, second = self.values
        return first if self.difference < 0 else second


def compare(results: Results) -> list[Comparison]:
    """Final average, forgetting and plasticity of both models; empty for an unfinished run.

    Raises:
        ValueError: if the results do not hold exactly two models.
    """
    if len(results.models) != 2:
        raise ValueError(f"results: expected two models to compare, got {results.models}")
    n = len(results.domains)
    if results.phases_done() < n:
        return []
    matrices = {model: results.matrix(model) for model in results.models}
    last = [(n, j) for j in range(n)]
    diagonal = [(j + 1, j) for j in range(n)]
    numbers = [
        (
            "Final average",
            "bits per byte over all domains, after the last one was learned",
            final_average,
            _error(results, last) / n,
        ),
        (
            "Forgetting",
            "bits per byte lost on a domain since its best moment",
            forgetting,
            _error(results, last[:-1] + diagonal[:-1]) / max(n - 1, 1),
        ),
        (
            "Just learned",
            "plasticity: bits per byte on each domain right after its turn",
            plasticity,
            _error(results, diagonal) / n,
        ),
    ]
    spread = results.run.get("seed_spread", {})
    return [
        Comparison(
            name=name,
            meaning=meaning,
            values={model: number(R) for model, R in matrices.items()},
            error=math.hypot(error, math.sqrt(2) * spread.get(name, 0.0)),
        )
        for name, meaning, number, error in numbers
        if n > 1 or number is not forgetting
    ]


def _error(results: Results, cells: list[tuple[int, int]]) -> float:
    """Root of the summed squared errors of some cells of both matrices."""
    wanted = {(phase, results.domains[j]) for phase, j in cells}
    return math.sqrt(
        sum(
            (row.error or 0.0) ** 2
            for row in results.select("held_out_bpb")
            if (row.phase, row.domain) in wanted
        )
    )


def title_of(results: Results, model: str) -> str:
    """The model's name for people."""
    return next(m["title"] for m in results.run["models"] if m["name"] == model)


def headline(results: Results, comparisons: list[Comparison]) -> str:
    """One sentence with the outcome."""
    if not comparisons:
        done, n = results.phases_done(), len(results.domains)
        return (
            f"This run is unfinished: {done} of {n} domains were learned and measured. "
            "What is there is shown below; the closing numbers need the whole run."
        )
    final = comparisons[0]
    first, second = (title_of(results, model) for model in final.values)
    a, b = final.values.values()
    if final.ahead is None:
        return (
            f"{first} and {second} end level: {a:.2f} and {b:.2f} bits per byte on average over "
            f"all {len(results.domains)} domains, no more apart than chance allows. "
            f"{_why(results, comparisons)}"
        ).strip()
    winner = title_of(results, final.ahead)
    loser = second if winner == first else first
    low, high = sorted((a, b))
    text = (
        f"{winner} ends ahead of {loser}: after the last domain it needs {low:.2f} bits per byte "
        f"on average over all {len(results.domains)} domains, {loser} {high:.2f}"
    )
    return f"{text}. {_why(results, comparisons)}".strip()


def _why(results: Results, comparisons: list[Comparison]) -> str:
    """Whether keeping or learning made the difference."""
    parts = []
    for comparison in comparisons[1:]:
        verb = "forgets" if comparison.name == "Forgetting" else "learns new text"
        winner = comparison.ahead
        if winner is None:
            parts.append(f"both {verb.replace('gets', 'get').replace('learns', 'learn')} alike")
        else:
            how = "less" if comparison.name == "Forgetting" else "better"
            parts.append(f"{title_of(results, winner)} {verb} {how}")
    text = "; ".join(parts)
    return text[:1].upper() + text[1:] + "." if text else ""


def sentences(results: Results, comparisons: list[Comparison]) -> list[str]:
    """What came out, point by point, flattering or not."""
    found = [_sentence(results, comparison) for comparison in comparisons]
    if comparisons and len(results.domains) > 1:
        found.append(_worst(results))
        found += _guessing(results)
    found += _cost(results)
    return found


def _sentence(results: Results, comparison: Comparison) -> str:
    (first, a), (second, b) = (
        (title_of(results, model), value) for model, value in comparison.values.items()
    )
    unit = {
        "Final average": "bits per byte in the end",
        "Forgetting": "bits per byte forgotten per domain",
        "Just learned": "bits per byte on a domain it has just learned",
    }[comparison.name]
    numbers = f"{first} {a:.2f}, {second} {b:.2f} {unit}"
    margin = f"difference {abs(a - b):.2f}, standard error {comparison.error:.2f}"
    if comparison.ahead is None:
        return f"{comparison.name}: level. {numbers} ({margin})."
    winner = title_of(results, comparison.ahead)
    loser = second if winner == first else first
    verdict = {
        "Final average": f"{winner} is better, {loser} is worse",
        "Forgetting": f"{winner} forgets less than {loser}",
        "Just learned": f"{winner} learns better than {loser}",
    }[comparison.name]
    return f"{comparison.name}: {verdict}. {numbers} ({margin})."


def _worst(results: Results) -> str:
    parts = []
    for model in results.models:
        lost = forgetting_by_domain(results.matrix(model))
        worst = max(range(len(lost)), key=lost.__getitem__)
        parts.append(
            f"{title_of(results, model)} lost most on {results.domains[worst]} "
            f"({lost[worst]:+.2f} bits per byte)"
        )
    return "; ".join(parts) + "."


def reading_sentence(results: Results) -> str:
    """What reading on brought, on average over the domains, for each model."""
    parts = []
    for model in results.models:
        rows = results.select("reading_bpb", model=model)
        starts = sorted({int(row.part or 0) for row in rows})
        if not starts:
            continue
        first, last = (
            _average([row.value for row in rows if row.part == str(start)])
            for start in (starts[0], starts[-1])
        )
        change = last - first
        verb = "no change" if abs(change) < 0.05 else "better" if change < 0 else "worse"
        parts.append(
            f"{title_of(results, model)} goes from {first:.2f} to {last:.2f} bits per byte "
            f"({verb if verb == 'no change' else f'{abs(change):.2f} {verb}'})"
        )
    return "From the first piece to the last, on average, " + " and ".join(parts) + "."


def _average(values: list[float]) -> float:
    return sum(values) / len(values)


def _guessing(results: Results) -> list[str]:
    """Where a model ends worse than one that knows nothing."""
    parts = []
    for model in results.models:
        last = results.matrix(model)[-1]
        lost = [n for n, value in zip(results.domains, last, strict=True) if value > GUESSING]
        if lost:
            parts.append(f"{title_of(results, model)} on {', '.join(lost)}")
    if not parts:
        return []
    return [
        f"Blind guessing costs {GUESSING:.0f} bits per byte. Confidently wrong in the end, and "
        f"worse than that: {'; '.join(parts)}."
    ]


def _cost(results: Results) -> list[str]:
    seconds = {
        model: max((r.seconds for r in results.rows if r.model == model), default=0.0)
        for model in results.models
    }
    if len(seconds) != 2 or not all(seconds.values()):
        return []
    slow, fast = sorted(seconds, key=lambda model: -seconds[model])
    return [
        f"Cost: {title_of(results, slow)} trained for {_time(seconds[slow])} on the tokens that "
        f"{title_of(results, fast)} took {_time(seconds[fast])} for: "
        f"{seconds[slow] / seconds[fast]:.1f} times as long."
    ]


def _time(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds >= 10 else f"{seconds:.1f} s"
