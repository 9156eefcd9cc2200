"""``python -m benchmarks.run``: measure, print one table, keep the rows with hardware and commit.

Needs the extra ``bench`` (transformers, titans-pytorch) for the suite ``layer``.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator

import torch

from benchmarks import hardware, layer, memory


def rows(suite: str, quick: bool, pairs: int) -> Iterator[dict[str, object]]:
    """All measurements of a suite."""
    if suite in ("layer", "all"):
        lengths = {2048: 2} if quick else {2048: 2, 4096: 1, 16384: 1}
        yield from layer.against_llama(lengths, pairs)
        yield from layer.against_neural_memory(pairs)
    if suite in ("memory", "all"):
        yield from memory.training([1024, 2048] if quick else [1024, 2048, 4096, 8192])
    if suite in ("decode", "all"):
        yield from memory.generation([1024, 4096] if quick else [1024, 10_000, 100_000])


def line(row: dict[str, object]) -> str:
    """One row of the printed table."""
    if "ratio" in row:
        value = (
            f"{row['ratio']:.2f}x [{row['ratio_min']:.2f}, {row['ratio_max']:.2f}]  "
            f"{row['ours_tokens_per_s']:,.0f} vs {row['peer_tokens_per_s']:,.0f} tokens/s"
        )
        return f"{row['ours']} vs {row['peer']} | {row['shape']} | {value}"
    rest = {k: v for k, v in row.items() if k not in ("suite", "ours", "shape")}
    return f"{row['ours']} | {row['shape']} | " + ", ".join(f"{k} {v}" for k, v in rest.items())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--suite", choices=["layer", "memory", "decode", "all"], default="all")
    parser.add_argument("--quick", action="store_true", help="fewer and smaller shapes")
    parser.add_argument("--pairs", type=int, default=7, help="paired runs of each comparison")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--save", action="store_true", help="keep the rows in benchmarks/results")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    where = hardware.describe()
    print(json.dumps(where))
    found = []
    for row in rows(options.suite, options.quick, options.pairs):
        found.append(row)
        print(line(row), flush=True)
    if options.save:
        print(f"kept in {hardware.keep(options.suite, where, found)}")


if __name__ == "__main__":
    main()
