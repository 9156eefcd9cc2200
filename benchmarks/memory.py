"""Peak memory of training against the length, and time and state of generation against context."""

from __future__ import annotations

import multiprocessing
import re
import statistics
import time
from collections.abc import Iterator
from pathlib import Path

import torch

from nestling.memory import detach, flatten
from nestling.models import build


def _peak(queue, length: int, recompute: int) -> None:
    torch.set_num_threads(2)
    block = build(
        "hope", width=512, heads=8, layers=1, memory_hidden=64, recompute=recompute
    ).blocks[0]
    block(torch.randn(1, 64, 512))[0].sum().backward()
    before = _high_water()
    block(torch.randn(1, length, 512, requires_grad=True))[0].square().mean().backward()
    queue.put((_high_water() - before) / 1024)


def _high_water() -> int:
    """Peak resident kilobytes of this process (``ru_maxrss`` is inherited from its parent)."""
    found = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
    if found is None:
        raise OSError("/proc/self/status has no VmHWM: peak memory is measured on Linux only")
    return int(found.group(1))


def peak_megabytes(length: int, recompute: int) -> float:
    """Growth of the peak over a short warm-up, measured in a process of its own."""
    context = multiprocessing.get_context("spawn")
    queue = context.Queue()
    process = context.Process(target=_peak, args=(queue, length, recompute))
    process.start()
    found = queue.get()
    process.join()
    return found


def training(lengths: list[int]) -> Iterator[dict[str, object]]:
    """Peak memory of one Hope block, forward and backward, with and without recomputation."""
    for recompute in (0, 4):
        for length in lengths:
            yield {
                "suite": "memory",
                "ours": "Hope block",
                "shape": f"width 512, 8 heads, batch 1, length {length}, recompute {recompute}",
                "peak_mb": round(peak_megabytes(length, recompute), 1),
            }


def generation(contexts: list[int]) -> Iterator[dict[str, object]]:
    """Time per generated token and size of the state after ever longer contexts."""
    model = build("hope", size="tiny")
    state, seen = None, 0
    for context in contexts:
        with torch.no_grad():
            while seen < context:
                ids = torch.randint(256, (1, min(1024, context - seen)))
                _, state = model(ids, state)
                state, seen = detach(state), seen + ids.shape[1]
            taken, after = [], state
            for _ in range(96):
                start = time.perf_counter()
                _, after = model(torch.randint(256, (1, 1)), after)
                taken.append(time.perf_counter() - start)
        size = sum(t.numel() * t.element_size() for t in flatten(state).values())
        yield {
            "suite": "decode",
            "ours": "hope tiny",
            "shape": f"batch 1, after {context} tokens",
            "ms_per_token": round(1e3 * statistics.median(taken), 3),
            "state_bytes": size,
        }
