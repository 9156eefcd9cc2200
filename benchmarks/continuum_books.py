"""``python -m benchmarks.continuum_books``: do levels that learn in context help on whole books?

    bpb(a, b) = mean over windows, and over positions a <= t < b, of -log2 p(byte t | bytes < t)

A plain MLP against one to four levels in context, every variant, errors from projections of their
own (``local``) and from the next-token loss (``loss``): equal parameters to 1 %, the same bytes in
the same order, the same settings; held-out windows of 16,384 bytes are read from a fresh state to
the end. In front of the levels stands one linear memory (``--preset deltanet``): attention learns
in a jump whose moment is a matter of the seed, and within so few steps that is all one would see.
With ``--preset transformer`` it sees ``--window`` bytes, and what stands behind only levels can.
Runs, rows and interruptions are those of ``benchmarks.language_modelling``.
"""

from __future__ import annotations

import argparse
import math
import statistics
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks import hardware
from benchmarks.language_modelling import RESULTS, Job, StoppedError, measured, spread
from nestling.data import ByteTokenizer, TextStream, encode_documents, read_documents
from nestling.layers import AttentionConfig
from nestling.models import LanguageModel, configure, losses, match_parameters, parameter_count
from nestling.models.presets import MIXERS
from nestling.optim import NonFiniteError
from nestling.storage.lock import lock
from nestling.train import Output, TrainConfig, latest, read_metrics, train

BUCKETS = ((0, 256), (256, 1024), (1024, 2048), (2048, 4096), (4096, 8192), (8192, 16_384))
WINDOW = BUCKETS[-1][1]
PIECE = 1024
"""Bytes read at once when measuring: another number changes rounding only."""

PERIODS = {1: (256,), 2: (64, 512), 3: (64, 256, 1024), 4: (64, 256, 512, 1024)}
"""All of them end within a sequence of 2,048 bytes."""

SOURCES = {"local": "local", "loss": "backprop"}
PLAIN = "mlp"
MODELS: dict[str, dict[str, Any]] = {PLAIN: {}} | {
    f"{variant}-{count}-{word}": {
        "periods": periods, "regime": "in_context", "variant": variant, "source": source,
    }
    for count, periods in PERIODS.items()
    for variant in ("sequential", "nested", "independent")
    for word, source in SOURCES.items()
    if count > 1 or variant == "sequential"
}  # fmt: skip
"""Name to overrides; with one level the variants are the same."""

DEFAULT = [
    name
    for name in MODELS
    if name == PLAIN or name.startswith("sequential") or name.split("-")[1] == "4"
]


def split(ids: torch.Tensor, *, windows: int, window: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The ids to train on, and ``windows`` rows of ``window + 1``, the ends of equal stretches.

    Raises:
        ValueError: if there is too little text, saying how much is needed.

    >>> train, held = split(torch.arange(1000), windows=2, window=99)
    >>> len(train), held[:, -1].tolist()
    (800, [499, 999])
    """
    if windows < 1:
        raise ValueError(f"windows: expected at least 1, got {windows}")
    least = 2 * windows * (window + 1)
    if len(ids) < least:
        raise ValueError(f"text: {len(ids):,} bytes are too few, at least {least:,} are needed")
    stretches = ids.tensor_split(windows)
    held = torch.stack([stretch[-window - 1 :] for stretch in stretches])
    return torch.cat([stretch[: -window - 1] for stretch in stretches]), held


@torch.no_grad()
def by_position(model: LanguageModel, windows: torch.Tensor) -> dict[str, float]:
    """Bits per byte by position in the window."""
    window = windows.shape[1] - 1
    total = torch.zeros(window, dtype=torch.float64)
    for rows in windows.long().split(8):
        state = None
        for start in range(0, window, PIECE):
            piece = rows[:, start : start + PIECE + 1]
            nats, state = losses(model, piece[:, :-1], piece[:, 1:], state)
            total[start : start + nats.shape[1]] += nats.double().sum(0)
    bits = total / len(windows) / math.log(2)
    return {f"{a}-{b}": float(bits[a:b].mean()) for a, b in BUCKETS if a < window}


@torch.no_grad()
def activity(model: LanguageModel, row: torch.Tensor) -> dict[str, dict[str, float]]:
    """What every level did while one window was read."""
    before = state = model.initial_state(1)
    for piece in row.long()[None].split(PIECE, dim=1):
        _, state = model.observe(piece, state)
    return {
        name: {"moved": round(one.moved, 6), "writes": one.writes,
               "contributed": round(one.contributed, 4)}
        for name, one in model.activity(before, state).items()
    }  # fmt: skip


def jobs(options: argparse.Namespace, text: Mapping[str, Any]) -> list[Job]:
    """What is to be run, seed by seed, so that early results compare all models."""
    shape = {name: getattr(options, name) for name in ("width", "heads", "layers")}
    if isinstance(MIXERS[options.preset], AttentionConfig):
        shape["window"] = options.window
    target = parameter_count(configure(options.preset, **shape))
    configs = {
        name: match_parameters(options.preset, target, **shape, **MODELS[name])
        for name in dict.fromkeys(options.models)
    }
    settings = {
        "steps": options.steps, "batch": options.batch, "length": options.length,
        "lr": options.lr, "log_every": max(1, options.steps // 12), "eval_every": 0,
        "save_every": 50, "keep": 1,
    }  # fmt: skip
    return [
        Job(name, config, TrainConfig(seed=seed, **settings), text)
        for seed in dict.fromkeys(options.seeds)
        for name, config in configs.items()
    ]


def run(job: Job, ids: torch.Tensor, windows: torch.Tensor, out: Path) -> dict[str, Any]:
    """Train, from the checkpoint if there is one, and measure: one row.

    A run that diverges is a result, too: its row says so and has no bits.

    Raises:
        StoppedError: after a signal, with the run saved.
    """
    config, folder = job.train, job.folder(out)
    where = {"commit": hardware.commit(), "processor": hardware.processor()}
    torch.manual_seed(config.seed)
    model = LanguageModel(job.model)
    stream = TextStream(ids, batch=config.batch, length=config.length, seed=config.seed)
    output = Output(directory=folder, resume=latest(folder) is not None)
    diverged, bits, levels = "", {}, {}
    try:
        result = train(config, model, stream, output=output)
        if result.stopped:
            raise StoppedError(f"{result.stopped}: {job.title} is saved at step {result.run.steps}")
        bits = by_position(model, windows)
        levels = activity(model, windows[0])
    except NonFiniteError as error:
        diverged = str(error)
        print(f"diverged: {diverged}", flush=True)
    steps = [row for row in read_metrics(folder / "metrics.jsonl") if row["kind"] == "train"]
    seconds = [row["seconds"] for row in steps] or [0.0]
    return {
        "suite": "continuum_books",
        "model": job.name,
        "preset": job.model.preset,
        "seed": config.seed,
        "parameters": parameter_count(job.model),
        "bits_per_byte": {n: round(v, 4) for n, v in bits.items()},
        "diverged": diverged,
        "levels": levels,
        "largest_grad_norm_after_warmup": max(
            (round(row["grad_norm"], 3) for row in steps[config.warmup_steps :]), default=0.0
        ),
        "tokens_per_s": round(config.tokens_per_step / max(1e-9, statistics.median(seconds)), 1),
        "seconds": round(sum(seconds), 1),
        "steps": config.steps,
        "batch": config.batch,
        "length": config.length,
        "lr": config.lr,
        "text": dict(job.text),
        "settings": job.settings,
        "threads": torch.get_num_threads(),
        **where,
    }


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Mean [min, max] over seeds, one line per model, in Markdown; and which levels are dead."""
    places = list(dict.fromkeys(place for row in rows for place in row["bits_per_byte"]))
    head = ["model", "parameters", "seeds", *places, "tokens/s", "dead levels"]
    lines = [head, ["---"] * len(head)]
    for name in dict.fromkeys(row["model"] for row in rows):
        own = [row for row in rows if row["model"] == name]
        good = [row for row in own if not row["diverged"]]
        bits = [
            spread([row["bits_per_byte"][place] for row in good], ".3f") if good else "diverged"
            for place in places
        ]
        seeds = " ".join(f"{row['seed']}{' (diverged)' * bool(row['diverged'])}" for row in own)
        speed = spread([row["tokens_per_s"] for row in own], ",.0f")
        dead = sorted(
            {level for row in good for level, did in row["levels"].items() if not did["moved"]}
        )
        lines.append([name, f"{own[0]['parameters']:,}", seeds, *bits, speed, ", ".join(dead)])
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The options."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.continuum_books",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--text", type=Path, action="append", required=True, help="file or folder")
    parser.add_argument("--out", type=Path, required=True, help="results and checkpoints")
    parser.add_argument("--models", nargs="+", choices=list(MODELS), default=DEFAULT)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--length", type=int, default=2048, help="bytes of a row in training")
    parser.add_argument("--lr", type=float, default=3e-3)
    parser.add_argument("--windows", type=int, default=8, help="held out")
    parser.add_argument("--held", type=int, default=WINDOW, help="bytes of each of them")
    parser.add_argument("--width", type=int, default=128)
    parser.add_argument("--heads", type=int, default=4)
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--preset", choices=list(MIXERS), default="deltanet", help="its mixer")
    parser.add_argument("--window", type=int, default=128, help="bytes that attention sees")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--save", action="store_true", help="keep the rows in benchmarks/results")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> list[dict[str, Any]]:
    """Run what is missing, print the table, return its rows.

    Raises:
        ValueError: for a text that is missing or too short, or an option that does not fit.
    """
    options = parse(arguments)
    if options.threads < 1:
        raise ValueError(f"threads: expected at least 1, got {options.threads}")
    torch.set_num_threads(options.threads)
    ids = encode_documents(read_documents(options.text), ByteTokenizer())
    kept, windows = split(ids, windows=options.windows, window=options.held)
    text = {
        "bytes": len(ids),
        "windows": len(windows),
        "held": options.held,
        "fingerprint": TextStream(ids, batch=1, length=1).fingerprint(),
    }
    todo = jobs(options, text)
    print(
        f"{len(kept):,} bytes to train on, {len(windows)} x {options.held:,} held out; "
        f"{len(todo)} runs of {options.steps} x {options.batch} x {options.length} bytes"
    )
    options.out.mkdir(parents=True, exist_ok=True)
    with lock(options.out):
        path = options.out / RESULTS
        rows = list(measured(todo, path, lambda job: run(job, kept, windows, options.out)))
    print(f"\nheld-out bits per byte by position, mean [min, max] over seeds\n\n{table(rows)}")
    if options.save:
        print(f"kept in {hardware.keep('continuum-books', hardware.describe(), rows)}")
    return rows


if __name__ == "__main__":
    try:
        main()
    except StoppedError as stop:
        print(f"{stop}; the same command goes on from there", file=sys.stderr)
        sys.exit(130)
    except ValueError as error:
        sys.exit(f"error: {error}")
