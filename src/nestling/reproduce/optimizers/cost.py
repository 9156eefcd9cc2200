"""NL Fig. 12: what a step costs, in time and in memory.

    time of M3 = ((f - 1) * time of a step between + time of a step at a period's end) / f

The parameters of a Transformer without the Transformer: weights and gradients are random, only the
optimizers run, one after the other, again and again. Seconds of the processor on one thread, so
that what else the machine does is not counted. All do the same arithmetic in the same dtype;
``torch.optim.Muon`` always takes bfloat16 for Newton-Schulz, which on most CPUs is slower than
float32.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch.nn import Parameter

from nestling.optim import (
    GeneralizedMomentum,
    Orthogonal,
    adamuon,
    adamw,
    m3,
    muon,
)
from nestling.reproduce.job import Size
from nestling.reproduce.measured import Measurement, Place, Row, Say
from nestling.reproduce.tables import markdown

TASK, PERIOD, REPEATS = "cost", 16, {"smoke": 1, "cpu": 3, "validation": 1}
SIZES: Mapping[str, tuple[int, int, int]] = {
    "0.4M": (128, 2, 256), "10M": (320, 8, 256), "140M": (768, 16, 32_768),
}  # fmt: skip
"""Width, blocks and symbols."""
Named = dict[str, Parameter]


def parameters(size: str) -> Named:
    """Attention and MLP matrices, norms and an embedding, of a Transformer of a size.

    >>> sum(p.numel() for p in parameters("0.4M").values())
    426496
    """
    width, blocks, symbols = SIZES[size]
    shapes: dict[str, tuple[int, ...]] = {"embedding": (symbols, width)}
    for index in range(blocks):
        for name in ("q", "k", "v", "out"):
            shapes[f"{index}.{name}"] = (width, width)
        shapes |= {f"{index}.up": (4 * width, width), f"{index}.down": (width, 4 * width)}
        shapes |= {f"{index}.norm1": (width,), f"{index}.norm2": (width,)}
    return {name: Parameter(0.02 * torch.randn(shape)) for name, shape in shapes.items()}


def _ours(named: Named, rule: Any) -> list[torch.optim.Optimizer]:
    return [GeneralizedMomentum(named.items(), rule, weight_decay=0.1)]


def _torch_muon(named: Named) -> list[torch.optim.Optimizer]:
    rest = {n: p for n, p in named.items() if n == "embedding" or p.ndim < 2}
    matrices = [p for n, p in named.items() if n not in rest]
    return [torch.optim.Muon(matrices), adamw(rest)]


def optimizers(dtype: str) -> dict[str, Callable[[Named], list[torch.optim.Optimizer]]]:
    """Who is compared, with Newton-Schulz in one dtype."""
    output = Orthogonal(dtype=dtype)
    signs = Orthogonal(dtype=dtype, signs=True)
    found: dict[str, Callable[[Named], list[torch.optim.Optimizer]]] = {
        "AdamW": lambda named: [adamw(named)],
        "Muon": partial(_ours, rule=muon(output=output)),
        "AdaMuon": partial(_ours, rule=adamuon(output=signs)),
        "M3": partial(_ours, rule=m3(output=output, frequency=PERIOD)),
    }
    if dtype == "bfloat16":
        found["torch.optim.Muon"] = _torch_muon
    return found


def measure(size: str, dtype: str, repeats: int, say: Say) -> dict[str, Any]:
    """Seconds of a step and bytes of state of each optimizer, measured side by side."""
    torch.manual_seed(0)
    first = parameters(size)
    gradients = {name: torch.randn_like(p) for name, p in first.items()}
    held: dict[str, list[torch.optim.Optimizer]] = {}
    for name, make in optimizers(dtype).items():
        named = {n: Parameter(p.detach().clone()) for n, p in first.items()}
        for n, p in named.items():
            p.grad = gradients[n]
        held[name] = make(named)
        _step(held[name])  # makes its state
    seconds: dict[str, list[float]] = {name: [] for name in held}
    ends: list[float] = []
    for repeat in range(repeats):
        for name, own in held.items():
            if name == "M3":
                _set_clock(own, PERIOD - 2)
            seconds[name].append(_timed(own))
            if name == "M3":
                ends.append(_timed(own))
        now = ", ".join(f"{name} {times[-1]:.3f} s" for name, times in seconds.items())
        say(f"{repeat + 1} of {repeats}: {now}")
    typical = {name: statistics.median(times) for name, times in seconds.items()}
    end = statistics.median(ends)
    typical["M3"] = ((PERIOD - 1) * typical["M3"] + end) / PERIOD
    count = sum(p.numel() for p in first.values())
    return {
        "parameters": count, "seconds": typical, "end_of_period": end, "all": seconds,
        "bytes": {name: _bytes(own) / count for name, own in held.items()},
        "peak": {name: _peak(own, count) for name, own in held.items()},
    }  # fmt: skip


def _step(own: Sequence[torch.optim.Optimizer]) -> None:
    for one in own:
        one.step()


def _timed(own: Sequence[torch.optim.Optimizer]) -> float:
    began = time.process_time()
    _step(own)
    return time.process_time() - began


def _set_clock(own: Sequence[torch.optim.Optimizer], t: int) -> None:
    """To a time shortly before a period's end, so that not all of a period must be run."""
    for one in own:
        for state in one.state.values():
            state["step"].fill_(t)


def _bytes(own: Sequence[torch.optim.Optimizer]) -> int:
    return sum(
        value.nbytes
        for one in own
        for state in one.state.values()
        for value in state.values()
        if isinstance(value, torch.Tensor)
    )


def _peak(own: Sequence[torch.optim.Optimizer], count: int) -> float | None:
    """Bytes a parameter that a step needs for a while, as Linux counts the process's pages."""
    counts, status = Path("/proc/self/clear_refs"), Path("/proc/self/status")
    if not counts.exists():
        return None
    counts.write_text("5")  # forget the highest so far
    before = _pages(status, "VmRSS")
    _step(own)
    return max(0, _pages(status, "VmHWM") - before) / count


def _pages(status: Path, name: str) -> int:
    [line] = [one for one in status.read_text().splitlines() if one.startswith(name)]
    return 1024 * int(line.split()[1])


def measurements(data: Path, size: Size, rows: Sequence[Row]) -> list[Measurement]:
    """Time and memory at two sizes."""
    wanted = [("10M", "float32"), ("10M", "bfloat16"), ("140M", "float32")]
    if size != "cpu":
        wanted = [("0.4M", "float32"), ("0.4M", "bfloat16")]
    return [
        Measurement(
            task=TASK,
            key={"parameters": name, "dtype": dtype},
            make=partial(_make, name, dtype, REPEATS[size]),
        )
        for name, dtype in wanted
    ]


def _make(name: str, dtype: str, repeats: int, say: Say) -> dict[str, Any]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return measure(name, dtype, repeats, say)
    finally:
        torch.set_num_threads(threads)


def shown(rows: Sequence[Row]) -> str:
    """Time in that of AdaMuon and of Muon, and memory."""
    lines = []
    for row in rows:
        result, key = row["result"], row["key"]
        times = result["seconds"]
        for name, seconds in times.items():
            peak = result["peak"][name]
            lines.append([
                key["parameters"], key["dtype"], name, f"{1000 * seconds:,.0f}",
                *(f"{seconds / times[other]:.2f}" for other in ("AdaMuon", "Muon")),
                f"{result['bytes'][name]:.1f}", "" if peak is None else f"{peak:.1f}",
            ])  # fmt: skip
    head = ["parameters", "Newton-Schulz in", "optimizer", "ms a step", "x AdaMuon", "x Muon",
            "state, bytes a parameter", "for a while, bytes a parameter"]  # fmt: skip
    return markdown(head, lines)


PLACES = (Place(task=TASK, title="What a step costs (NL Fig. 12)", table=shown),)
