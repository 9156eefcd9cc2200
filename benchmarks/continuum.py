"""``python -m benchmarks.continuum``: what levels in context cost, beside one MLP of equal size.

Forward and backward of four levels against one MLP with the same number of parameters, in turn and
in one run. ``layer``: the levels alone. ``model``: two blocks of attention and levels and the loss,
without which there is no error of the next-token loss.

Expected, in products alone, with width D, one MLP of hidden size H = 8 D / 3 and k levels of size
h = H / k - D / 3 (each pays D^2 parameters for its targets), per token, forward and backward:

    one MLP                      18 D H                                  = 48   D^2
    k levels, held               18 D h k            with h = H / k      = 48   D^2    1.00
    local, last matrix           (24 D h + 6 D^2) k                      = 56   D^2    1.17 (k = 4)
    local, every matrix          (42 D h + 6 D^2) k                      = 80   D^2    1.67 (k = 4)
    next-token loss, 1st order   one more backward pass without weights, and the p^T f of all
                                 matrices: (18 + 6 + 6) D H              = 80   D^2    1.67

``flops`` is counted and not predicted; what is above it in ``time`` is memory traffic and launches.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import hardware
from benchmarks.timing import paired
from nestling.continuum import VARIANTS, Backprop, ContinuumConfig, ContinuumLevel, Local
from nestling.continuum import in_context as levels_in_context
from nestling.layers import AttentionConfig, ContinuumMemory, matched
from nestling.models import LanguageModel, ModelConfig

PERIODS = (64, 256, 512, 1024)
"""All of them end within 2,048 tokens."""

SOURCES = {
    "held": None,
    "local, last matrix": Local(),
    "local, every matrix": Local(matrices="every"),
    "next-token loss, 1st order": Backprop(),
    "next-token loss, 2nd order": Backprop(order=2),
}


def config_of(source: Local | Backprop | None, variant: str, width: int) -> ContinuumConfig:
    """Four levels with the parameters of one MLP."""
    levels = (
        tuple(ContinuumLevel(period) for period in PERIODS)
        if source is None
        else levels_in_context(*PERIODS, source=source, step_size=0.01)
    )
    made = ContinuumConfig(levels=levels, variant=VARIANTS[variant])
    return matched(width, made, hidden=one_hidden(width))


def one_hidden(width: int) -> int:
    return round(8 * width / 3 / 16) * 16


def parameters(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def layer_step(memory: ContinuumMemory, x: torch.Tensor) -> Callable[[], None]:
    def run() -> None:
        memory(x)[0].square().mean().backward()

    return run


def model_step(model: LanguageModel, ids: torch.Tensor) -> Callable[[], None]:
    inputs, targets = ids[:, :-1], ids[:, 1:]

    def run() -> None:
        if model.config.learns_from_loss:
            loss, _ = model.observe(inputs, targets=targets)
        else:
            logits, _ = model(inputs)
            loss = F.cross_entropy(logits.flatten(0, 1), targets.flatten())
        loss.backward()

    return run


def flops(step: Callable[[], None]) -> int:
    with FlopCounterMode(display=False) as counter:
        step()
    return counter.get_total_flops()


def row(
    suite: str, name: str, ours: Callable[[], None], peer: Callable[[], None], shape: str,
    sizes: tuple[int, int], tokens: int, pairs: int,
) -> dict[str, object]:  # fmt: skip
    assert abs(sizes[0] / sizes[1] - 1) < 0.01
    pair = paired(ours, peer, pairs=pairs)
    times = sorted(1 / ratio for ratio in pair.ratios)
    return {
        "suite": suite, "ours": name, "peer": "one MLP of equal parameters", "shape": shape,
        "parameters": sizes[0], "flops": flops(ours) / flops(peer),
        "time": times[len(times) // 2], "time_min": times[0], "time_max": times[-1],
        **pair.row(tokens),
    }  # fmt: skip


def layers(width: int, length: int, batch: int, pairs: int) -> Iterator[dict[str, object]]:
    """Levels alone; those of the loss have none to learn from."""
    one = ContinuumMemory(width, ContinuumConfig(hidden=one_hidden(width)))
    shape = f"width {width}, batch {batch}, length {length}"
    for source, value in SOURCES.items():
        if isinstance(value, Backprop):
            continue
        for variant in VARIANTS:
            if value is None and variant == "nested":
                continue  # held levels learn nothing from each other
            memory = ContinuumMemory(width, config_of(value, variant, width))
            x = torch.randn(batch, length, width, requires_grad=True)
            yield row(
                "continuum layer", f"{variant}, {source}", layer_step(memory, x),
                layer_step(one, x), shape, (parameters(memory), parameters(one)),
                batch * length, pairs,
            )  # fmt: skip


def models(width: int, length: int, batch: int, pairs: int) -> Iterator[dict[str, object]]:
    """The same within a model of two blocks and a loss over bytes."""

    def model(continuum: ContinuumConfig) -> LanguageModel:
        config = ModelConfig(width=width, heads=width // 64, layers=2, mixer=AttentionConfig(),
                             continuum=continuum)  # fmt: skip
        return LanguageModel(config)

    one = model(ContinuumConfig(hidden=one_hidden(width)))
    ids = torch.randint(256, (batch, length + 1))
    shape = f"2 blocks, width {width}, batch {batch}, length {length}"
    for source, value in SOURCES.items():
        if value is None:
            continue
        for variant in VARIANTS:
            ours = model(config_of(value, variant, width))
            yield row(
                "continuum model", f"{variant}, {source}", model_step(ours, ids),
                model_step(one, ids), shape, (parameters(ours), parameters(one)),
                batch * length, pairs,
            )  # fmt: skip


def line(row: dict[str, object]) -> str:
    return (
        f"| {row['suite'].split()[1]} | {row['ours']} | {row['flops']:.2f} | {row['time']:.2f} "
        f"[{row['time_min']:.2f}, {row['time_max']:.2f}] | {row['ours_tokens_per_s']:,.0f} |"
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--suite", choices=["layer", "model", "all"], default="all")
    parser.add_argument("--width", type=int, default=512)
    parser.add_argument("--length", type=int, default=2048)
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--pairs", type=int, default=7)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--save", action="store_true", help="keep the rows in benchmarks/results")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    where = hardware.describe()
    print(json.dumps(where))
    print("| | four levels | flops | time [min, max] | tokens/s |\n|---|---|---|---|---|")
    found = []
    for suite, rows in (("layer", layers), ("model", models)):
        if options.suite not in (suite, "all"):
            continue
        for one in rows(options.width, options.length, options.batch, options.pairs):
            found.append(one)
            print(line(one), flush=True)
    if options.save:
        print(f"kept in {hardware.keep('continuum', where, found)}")


if __name__ == "__main__":
    main()
