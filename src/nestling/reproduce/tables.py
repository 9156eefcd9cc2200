"""Tables and numbers of the page."""

from __future__ import annotations

import statistics
from collections.abc import Sequence


def markdown(head: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """A table in Markdown.

    >>> print(markdown(["a", "b"], [["1", "2"]]))
    | a | b |
    |---|---|
    | 1 | 2 |
    """
    rows = [head, ["---"] * len(head), *lines]
    text = ["| " + " | ".join(row) + " |" for row in rows]
    text[1] = text[1].replace(" ", "")
    return "\n".join(text)


def spread(values: Sequence[float], digits: int = 3) -> str:
    """Mean, and half of the distance between the smallest and the largest.

    >>> spread([1.0, 2.0], 1), spread([1.0], 2), spread([])
    ('1.5 ± 0.5', '1.00', '')
    """
    if not values:
        return ""
    half = (max(values) - min(values)) / 2
    more = f" ± {half:.{digits}f}" if len(values) > 1 else ""
    return f"{statistics.fmean(values):.{digits}f}{more}"
