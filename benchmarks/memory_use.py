"""``python -m benchmarks.memory_use CHECKPOINT --text FILE``: are a model's memories of any use?

Held-out bits per byte by position as trained; with all inner memories held where they start, never
written; and with all of them at zero from the first token on. The first difference is what writing
is worth, the second what the memories' learned initial state is worth besides: equal numbers mean
that they do nothing. And the memories' norms along a passage: one that fades to zero is dead.
"""

from __future__ import annotations

import argparse
import dataclasses
import math
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

from nestling.memory import MemoryState, map_tensors
from nestling.storage.load import load_model

WINDOW = 2048
BANDS = ((0, 32), (32, 128), (128, 512), (512, 1024), (1024, 2048))


def without_memories(state: Any) -> Any:
    """The same state with every inner memory at zero."""
    if isinstance(state, MemoryState):
        return map_tensors(lambda x: torch.zeros_like(x) if x.is_floating_point() else x, state)
    if dataclasses.is_dataclass(state) and not isinstance(state, type):
        fields = {
            f.name: without_memories(getattr(state, f.name)) for f in dataclasses.fields(state)
        }
        return dataclasses.replace(state, **fields)
    return tuple(without_memories(x) for x in state) if isinstance(state, tuple) else state


def by_position(model, ids: torch.Tensor, state: Any, writes: str = "on") -> list[float]:
    """Mean bits per byte in each band."""
    logits, _ = model(ids[:, :-1], state, writes=writes)
    nats = F.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten(), reduction="none")
    bits = nats.view(ids.shape[0], -1) / math.log(2)
    return [float(bits[:, start:stop].mean()) for start, stop in BANDS]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--text", type=Path, required=True)
    parser.add_argument("--windows", type=int, default=16)
    options = parser.parse_args()
    raw = options.text.read_bytes()
    if len(raw) < WINDOW + 1:
        raise SystemExit(f"--text: expected more than {WINDOW} bytes, got {len(raw)}")
    made = load_model(str(options.checkpoint))
    model = made[0] if isinstance(made, tuple) else made
    starts = torch.linspace(0, len(raw) - WINDOW - 1, options.windows).long().tolist()
    ids = torch.tensor([list(raw[start : start + WINDOW + 1]) for start in starts])
    with torch.no_grad():
        fresh = model.initial_state(options.windows)
        for name, state, writes in (
            ("as trained", fresh, "on"),
            ("never written", fresh, "off"),
            ("memories zero", without_memories(fresh), "on"),
        ):
            cells = zip(BANDS, by_position(model, ids, state, writes), strict=True)
            print(name, "  ".join(f"{a}-{b}: {value:.3f}" for (a, b), value in cells))
        state, place = model.initial_state(1), 0
        for stop in (1, 16, 64, 256, 1024, 2048):
            _, state = model(ids[:1, place:stop], state)
            place = stop
            norms = [
                math.hypot(*(float(W.norm()) for W in block.mixer.memory.weights.values()))
                for block in state.blocks
            ]
            print(
                f"after {stop:5,} tokens, norm of `memory` by block:", *(f"{n:.4g}" for n in norms)
            )


if __name__ == "__main__":
    main()
