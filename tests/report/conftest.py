"""A results file of known numbers: two models, two domains."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Write = Callable[..., Path]

RUN: dict[str, Any] = {
    "kind": "run",
    "format": 1,
    "domains": [
        {"name": "a<b>", "title": "A & B", "train_bytes": 900, "held_out_bytes": 100},
        {"name": "c", "title": "C", "train_bytes": 1900, "held_out_bytes": 200},
    ],
    "models": [
        {"name": "hope", "title": "Hope", "parameters": 1000},
        {"name": "transformer", "title": "Transformer++", "parameters": 1004},
    ],
    "budget": {"steps": 2, "batch": 2, "length": 8, "periods": [1, 64]},
    "seed": 3,
    "processor": "A <fast> one",
}
# Final averages 2.5 and 3.0, forgetting 0.5 and 2.0, just learned 2.25 and 2.0.
MATRICES = {
    "hope": [[8.0, 8.0], [2.5, 6.0], [3.0, 2.0]],
    "transformer": [[8.0, 8.0], [2.0, 7.0], [4.0, 2.0]],
}


def measured(model: str, metric: str, value: float, phase: int, **more: Any) -> dict[str, Any]:
    """One line of kind measurement; 16 tokens are learned per step."""
    step = more.pop("step", 2 * phase)
    return {
        "kind": "measurement", "model": model, "metric": metric, "value": value, "phase": phase,
        "step": step, "tokens": 16 * step, "seconds": 30.0 if model == "hope" else 10.0, **more,
    }  # fmt: skip


def lines(
    matrices: dict[str, list[list[float]]], error: float, run: dict[str, Any]
) -> list[dict[str, Any]]:
    """All lines of a finished run."""
    names = [domain["name"] for domain in run["domains"]]
    part = {
        "kind": "component", "number": 1, "period": 1, "name": "blocks.0.mixer.k", "memory": "MLP",
        "rule": "L2", "context_flow": "tokens", "parameters": 10,
    }  # fmt: skip
    found = [run, *({"model": model, **part} for model in matrices)]
    for phase in range(len(names) + 1):
        for model, table in matrices.items():
            found += _phase(model, phase, names, table[phase], error)
        if phase:
            where = {"part": "blocks.0.mixer.k", "domain": names[phase - 1]}
            found.append(measured("hope", "memory_written", 0.5, phase, **where))
    found += [
        measured(model, "reading_bpb", 3.0 - start / 8, 2, domain=domain, part=str(start))
        for model in matrices
        for domain in names
        for start in (0, 8)
    ]
    return [*found, {"kind": "end", "seconds": 40.0}]


def _phase(
    model: str, phase: int, names: list[str], losses: list[float], error: float
) -> list[dict[str, Any]]:
    found = []
    for domain, value in zip(names, losses, strict=True):
        found.append(measured(model, "held_out_bpb", value, phase, domain=domain, error=error))
        found.append(measured(model, "probe_bpb", value + 0.1, phase, domain=domain))
    if phase:
        found.append(measured(model, "level_updates", 2, phase, part="1"))
        parts = ("embedding", "MLP level, period 64")
        found += [measured(model, "weights_written", 0.25, phase, part=part) for part in parts]
    return found


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Writes a results file; keep limits how many lines, matrices and error replace the numbers."""

    def writer(
        matrices: dict[str, list[list[float]]] | None = None,
        *,
        error: float = 0.01,
        keep: int | None = None,
        run: dict[str, Any] | None = None,
    ) -> Path:
        rows = lines(matrices or MATRICES, error, run or RUN)[:keep]
        path = tmp_path / "results.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        return path

    return writer
