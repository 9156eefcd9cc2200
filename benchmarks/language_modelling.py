"""``python -m benchmarks.language_modelling``: variants of equal size learn one text from scratch.

    bpb(a, b) = mean over windows, and over positions a <= t < b, of -log2 p(byte t | bytes < t)

Every variant sees the same bytes in the same order (a seed decides weights and order), has the
same number of parameters to 1 % and the settings of ``nestling train``. Each window of held-out
text is read from a fresh state, so what stands behind the training length shows whether a model
goes on where it was never trained. Every finished run is one row of ``DIR/results.jsonl`` and is
not repeated; one that was interrupted goes on from its checkpoint.
"""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import json
import math
import os
import statistics
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

from benchmarks import hardware
from nestling.data import ByteTokenizer, TextStream, encode_documents, read_documents
from nestling.layers import SelfModifyingConfig
from nestling.memory import Momentum
from nestling.models import (
    LanguageModel,
    ModelConfig,
    configure,
    match_parameters,
    parameter_count,
)
from nestling.optim import NonFiniteError
from nestling.storage.lock import lock
from nestling.train import Output, TrainConfig, latest, read_metrics, train
from nestling.train.config import CADENCE
from nestling.train.progress import clock

POSITIONS = ((0, 128), (128, 512), (512, 1024), (1024, 2048))
WINDOW = POSITIONS[-1][1]
RESULTS = "results.jsonl"


@dataclass(frozen=True, kw_only=True)
class Variant:
    """A preset, what is changed in it, and its learning rate."""

    preset: str
    overrides: Mapping[str, Any] = field(default_factory=dict)
    lr: float = 3e-3


# One level in Hope too: with 4,096 bytes a step the slower ones would hardly move in 300 steps.
ONE = {"periods": (1,)}
WITH_MOMENTUM = dataclasses.replace(SelfModifyingConfig().rule, momentum=Momentum())

VARIANTS = {
    "hope": Variant(preset="hope", overrides=ONE),
    "transformer": Variant(preset="transformer"),
    "transformer+conv": Variant(preset="transformer", overrides={"conv_size": 4}),
    "hope+momentum": Variant(preset="hope", overrides={**ONE, "rule": WITH_MOMENTUM}),
    "hope+static": Variant(preset="hope", overrides={**ONE, "adaptive": ("memory",)}),
    "titans": Variant(preset="titans"),
    "deltanet": Variant(preset="deltanet"),
}
"""``hope+static`` is Hope with one adaptive memory, its generators plain projections; ``titans``
is that with momentum, and with decay in place of the delta rule."""

REFERENCE = "transformer"
"""Its preset's size is the one that all others are brought to."""


@dataclass(frozen=True)
class Job:
    """One run: a variant with a seed on a text, and everything that its numbers depend on."""

    name: str
    model: ModelConfig
    train: TrainConfig
    text: Mapping[str, Any]

    @property
    def settings(self) -> str:
        """Digest of what enters the numbers: another one is another run."""
        given = {name: v for name, v in self.train.to_dict().items() if name not in CADENCE}
        told = json.dumps([self.model.to_dict(), given, self.text], sort_keys=True)
        return hashlib.sha256(told.encode()).hexdigest()[:12]

    @property
    def title(self) -> str:
        """For people."""
        return f"{self.name}, seed {self.train.seed}"

    def folder(self, out: Path) -> Path:
        """Where its checkpoints are."""
        return out / "runs" / f"{self.name}-{self.train.seed}-{self.settings}"


def split(ids: torch.Tensor, *, windows: int, length: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The ids to train on, and ``windows`` rows of ``WINDOW + 1``, the ends of equal stretches.

    Raises:
        ValueError: if there is too little text, saying how much is needed.

    >>> train, held = split(torch.arange(10_000), windows=2, length=64)
    >>> len(train), held[:, -1].tolist()
    (5902, [4999, 9999])
    """
    if windows < 1:
        raise ValueError(f"windows: expected at least 1, got {windows}")
    # As much to train on as is held out, at least: less would be a measurement without a model.
    least = windows * max(2 * (WINDOW + 1), length + 1)
    if len(ids) < least:
        raise ValueError(
            f"text: {len(ids):,} bytes are too few for {windows} held-out windows of "
            f"{WINDOW + 1:,} bytes and something to train on: at least {least:,} are needed; give "
            "more text or fewer windows"
        )
    stretches = ids.tensor_split(windows)
    held = torch.stack([stretch[-WINDOW - 1 :] for stretch in stretches])
    return torch.cat([stretch[: -WINDOW - 1] for stretch in stretches]), held


@torch.no_grad()
def by_position(model: LanguageModel, windows: torch.Tensor) -> dict[str, float]:
    """Bits per byte by position in the window."""
    total = torch.zeros(WINDOW, dtype=torch.float64)
    for rows in windows.long().split(8):
        logits, _ = model(rows[:, :-1])
        nats = F.cross_entropy(logits.float().transpose(1, 2), rows[:, 1:], reduction="none")
        total += nats.double().sum(0)
    bits = total / len(windows) / math.log(2)
    return {f"{start}-{stop}": float(bits[start:stop].mean()) for start, stop in POSITIONS}


def jobs(options: argparse.Namespace, text: Mapping[str, Any]) -> list[Job]:
    """What is to be run, seed by seed, so that early results compare all variants."""
    shape = {name: getattr(options, name) for name in ("width", "heads", "layers")}
    target = parameter_count(configure(VARIANTS[REFERENCE].preset, **shape))
    models = {
        name: match_parameters(VARIANTS[name].preset, target, **shape, **VARIANTS[name].overrides)
        for name in dict.fromkeys(options.models)
    }
    return [
        Job(
            name,
            model,
            TrainConfig(
                steps=options.steps,
                batch=options.batch,
                length=options.length,
                lr=VARIANTS[name].lr,
                seed=seed,
                log_every=max(1, options.steps // 12),
                eval_every=0,
                save_every=50,
                keep=1,
            ),
            text,
        )
        for seed in dict.fromkeys(options.seeds)
        for name, model in models.items()
    ]


class StoppedError(Exception):
    """A signal asked to stop; the run has been saved."""


def run(job: Job, ids: torch.Tensor, windows: torch.Tensor, out: Path) -> dict[str, Any]:
    """Train, from the checkpoint if there is one, and measure: one row.

    Raises:
        StoppedError: after a signal, with the run saved.
        NonFiniteError: if the training diverges.
    """
    config, folder = job.train, job.folder(out)
    # Before the run: the tree may have moved on when it ends.
    where = {"commit": hardware.commit(), "processor": hardware.processor()}
    torch.manual_seed(config.seed)
    model = LanguageModel(job.model)
    stream = TextStream(ids, batch=config.batch, length=config.length, seed=config.seed)
    output = Output(directory=folder, resume=latest(folder) is not None)
    result = train(config, model, stream, output=output)
    if result.stopped:
        raise StoppedError(f"{result.stopped}: {job.title} is saved at step {result.run.steps}")
    steps = [row for row in read_metrics(folder / "metrics.jsonl") if row["kind"] == "train"]
    seconds = [row["seconds"] for row in steps]
    return {
        "suite": "language_modelling",
        "model": job.name,
        "seed": config.seed,
        "parameters": parameter_count(job.model),
        "bits_per_byte": {n: round(v, 4) for n, v in by_position(model, windows).items()},
        "train_bits_per_byte": round(statistics.mean(r["bits_per_byte"] for r in steps[-50:]), 4),
        "largest_grad_norm_after_warmup": round(
            max(row["grad_norm"] for row in steps[config.warmup_steps :]), 3
        ),
        # The median step: whoever else used the machine for a while does not count.
        "tokens_per_s": round(config.tokens_per_step / statistics.median(seconds), 1),
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


def read_rows(path: Path) -> list[dict[str, Any]]:
    """The rows of a ``results.jsonl``; none if it is not there.

    Raises:
        ValueError: naming the line, if one is broken.
    """
    rows = []
    for number, line in enumerate(path.read_text().splitlines() if path.exists() else [], 1):
        try:
            row = json.loads(line)
            rows.append({**row, "model": row["model"], "settings": row["settings"]})
        except (ValueError, TypeError, KeyError) as error:
            raise ValueError(f"{path}, line {number}: not a row of results") from error
    return rows


def append_row(path: Path, row: Mapping[str, Any]) -> None:
    """Add a row: the file is there with it or as it was, whenever the process ends."""
    before = path.read_text() if path.exists() else ""
    new = path.with_name(f".saving-{path.name}")
    with new.open("w") as handle:
        handle.write(before + json.dumps(row) + "\n")
        handle.flush()
        os.fsync(handle.fileno())
    os.replace(new, path)


def measured(
    todo: Sequence[Job], path: Path, start: Callable[[Job], dict[str, Any]]
) -> Iterator[dict[str, Any]]:
    """The row of each job, from the file or from a run, which is then in the file."""
    rows = {row["settings"]: row for row in read_rows(path)}
    for index, job in enumerate(todo):
        if job.settings not in rows:
            left = _left(todo[index:], rows)
            print(f"\nrun {index + 1} of {len(todo)}: {job.title}{left}", flush=True)
            rows[job.settings] = row = start(job)
            append_row(path, row)
            print(", ".join(f"{n}: {v:.3f}" for n, v in row["bits_per_byte"].items()), flush=True)
        yield rows[job.settings]


def _left(rest: Sequence[Job], rows: Mapping[str, Mapping[str, Any]]) -> str:
    """Time for all runs to come, from what runs of the same variant and number of steps took."""
    waiting = [job for job in rest if job.settings not in rows]
    taken: dict[str, list[float]] = {}
    for row in rows.values():
        taken.setdefault(row["model"], []).append(row["seconds"] / row["steps"])
    if not taken:
        return f", {len(waiting)} to go"
    means = {name: statistics.mean(values) for name, values in taken.items()}
    other = statistics.mean(means.values())
    seconds = sum(means.get(job.name, other) * job.train.steps for job in waiting)
    return f", {len(waiting)} to go, about {clock(seconds)} left"


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Mean [min, max] over seeds, one line per variant, in Markdown."""
    places = [f"{start}-{stop}" for start, stop in POSITIONS]
    head = ["model", "parameters", "seeds", *places, "tokens/s"]
    lines = [head, ["---"] * len(head)]
    for name in dict.fromkeys(row["model"] for row in rows):
        own = [row for row in rows if row["model"] == name]
        bits = [spread([row["bits_per_byte"][place] for row in own], ".3f") for place in places]
        speed = spread([row["tokens_per_s"] for row in own], ",.0f")
        seeds = " ".join(str(row["seed"]) for row in own)
        lines.append([name, f"{own[0]['parameters']:,}", seeds, *bits, speed])
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def spread(values: Sequence[float], form: str) -> str:
    """Mean and range.

    >>> spread([2.0, 3.0, 2.5], ".2f"), spread([2.0], ".2f")
    ('2.50 [2.00, 3.00]', '2.00')
    """
    mean = f"{statistics.mean(values):{form}}"
    if len(values) == 1:
        return mean
    return f"{mean} [{min(values):{form}}, {max(values):{form}}]"


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The options."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.language_modelling",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--text", type=Path, action="append", required=True, help="file or folder")
    parser.add_argument("--out", type=Path, required=True, help="results and checkpoints")
    parser.add_argument("--models", nargs="+", choices=list(VARIANTS), default=list(VARIANTS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--length", type=int, default=512, help="bytes of a row in training")
    parser.add_argument("--windows", type=int, default=48, help=f"held out, {WINDOW} bytes each")
    parser.add_argument("--width", type=int, default=128)
    parser.add_argument("--heads", type=int, default=4)
    parser.add_argument("--layers", type=int, default=2)
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
    kept, windows = split(ids, windows=options.windows, length=options.length)
    text = {
        "bytes": len(ids),
        "windows": len(windows),
        "fingerprint": TextStream(ids, batch=1, length=1).fingerprint(),
    }
    todo = jobs(options, text)
    print(
        f"{len(kept):,} bytes to train on, {len(windows)} x {WINDOW:,} held out; "
        f"{len(todo)} runs of {options.steps} x {options.batch} x {options.length} bytes"
    )
    options.out.mkdir(parents=True, exist_ok=True)
    with lock(options.out):
        path = options.out / RESULTS
        rows = list(measured(todo, path, lambda job: run(job, kept, windows, options.out)))
    print(f"\nheld-out bits per byte by position, mean [min, max] over seeds\n\n{table(rows)}")
    commits = sorted({row["commit"] for row in rows})
    if len(commits) > 1:
        print(f"\nfrom several commits: {', '.join(commits)}")
    if options.save:
        print(f"kept in {hardware.keep('language-modelling', hardware.describe(), rows)}")
    return rows


if __name__ == "__main__":
    try:
        main()
    except StoppedError as stop:
        print(f"{stop}; the same command goes on from there", file=sys.stderr)
        sys.exit(130)
    except (NonFiniteError, ValueError) as error:
        sys.exit(f"error: {error}")
