"""What the numbers were measured on."""

from __future__ import annotations

import datetime
import json
import os
import platform
import re
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

from nestling.report.machine import commit, processor

RESULTS = Path(__file__).parent / "results"


def describe() -> dict[str, object]:
    """Hardware, software, date and commit of a result."""
    return {
        "processor": processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "date": datetime.date.today().isoformat(),
        "commit": commit() or "unknown",
        "matmul_gflops": round(matmul_gflops(), 1),
    }


def matmul_gflops(size: int = 1536) -> float:
    """What one large float32 matrix product reaches here: the roof for everything else."""
    a, b = torch.randn(size, size), torch.randn(size, size)
    best = 0.0
    for _ in range(8):
        start = time.perf_counter()
        a @ b
        best = max(best, 2 * size**3 / (time.perf_counter() - start) / 1e9)
    return best


def keep(suite: str, where: Mapping[str, object], rows: Sequence[Mapping[str, object]]) -> Path:
    """Write the rows into ``benchmarks/results``, named by hardware, suite and commit."""
    name = re.sub(r"\W+", "-", f"{where['processor']}-{where['cores']}c").strip("-").lower()
    path = RESULTS / f"{name}-{suite}-{where['commit']}.json"
    path.write_text(json.dumps({"where": where, "rows": rows}, indent=1) + "\n")
    return path
