"""Paired timing: A B A B ..., and the ratio pair by pair, so that a drifting machine cancels."""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Pair:
    """Seconds of each run of ours and of the peer's, in the order in which they were taken."""

    ours: list[float]
    peer: list[float]

    @property
    def ratios(self) -> list[float]:
        """Peer's seconds over ours, pair by pair: above 1 we are faster."""
        return [b / a for a, b in zip(self.ours, self.peer, strict=True)]

    def row(self, tokens: int) -> dict[str, float]:
        """Medians and the ratio's spread."""
        return {
            "ours_tokens_per_s": tokens / statistics.median(self.ours),
            "peer_tokens_per_s": tokens / statistics.median(self.peer),
            "ratio": statistics.median(self.ratios),
            "ratio_min": min(self.ratios),
            "ratio_max": max(self.ratios),
            "pairs": len(self.ours),
        }


def seconds(function: Callable[[], object]) -> float:
    """Wall-clock time of one call, with the collector out of the way."""
    gc.collect()
    gc.disable()
    start = time.perf_counter()
    function()
    taken = time.perf_counter() - start
    gc.enable()
    return taken


def paired(ours: Callable[[], object], peer: Callable[[], object], *, pairs: int = 7) -> Pair:
    """Warm both up, then take them in turn."""
    ours(), peer()
    taken = [(seconds(ours), seconds(peer)) for _ in range(pairs)]
    return Pair([a for a, _ in taken], [b for _, b in taken])
