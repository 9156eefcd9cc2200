"""``python -m benchmarks.stream CHECKPOINT --text FILE --tokens 10000000 --out DIR``: without end.

One row reads a stream and learns from it all the way: does its state keep its size, its speed and
its norms, and does it still predict? One line for every ``--every`` tokens: bits per byte, time of
the processor, resident memory, bytes of the state, and of every memory its norm and how far it is
from where it started, |M - M_0| / |M_0|.
NaN or infinity anywhere ends the run with an error. Interrupted, the same command goes on; the
curves are drawn into ``DIR/stream.png``.
"""

from __future__ import annotations

import argparse
import json
import math
import re
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import torch
from matplotlib.figure import Figure
from safetensors.torch import load, save

from benchmarks import hardware
from nestling.data import ByteTokenizer, encode_documents, read_documents
from nestling.memory import detach, flatten
from nestling.models import LanguageModel, ModelState, losses, reset
from nestling.report.figures import COLOURS, SETTINGS
from nestling.session.outline import Outline, owner_of, settled
from nestling.storage.durable import cause, replace
from nestling.storage.load import load_model
from nestling.storage.lock import lock

STATE, ROWS, PICTURE = "stream.safetensors", "stream.jsonl", "stream.png"


def stream(ids: torch.Tensor, start: int, stop: int, piece: int) -> Iterator[torch.Tensor]:
    """Ids ``start`` to ``stop`` of the text read again and again, each piece with one more."""
    for at in range(start, stop, piece):
        place = torch.arange(at, min(at + piece, stop) + 1) % len(ids)
        yield ids[place].long()


def norms(model: LanguageModel, state: ModelState, start: ModelState) -> dict[str, list[float]]:
    """Of every part of the state that is made of numbers: its norm, and its way from the start."""
    components, found = model.components(), {}
    first = flatten(detach(start))
    for path, tensor in flatten(state).items():
        if not tensor.is_floating_point() or not tensor.numel():
            continue
        if not bool(tensor.isfinite().all()):
            raise FloatingPointError(f"{path} is not finite")
        old = first.get(path)
        far = (
            float((tensor.double() - old.double()).square().sum())
            if old is not None and old.shape == tensor.shape
            else 0.0
        )
        size = 0.0 if old is None else float(old.double().square().sum())
        own = found.setdefault(owner_of(path, components), [0.0, 0.0, 0.0])
        own[0] += float(tensor.double().square().sum())
        own[1] += far
        own[2] += size
    return {
        name: [round(total**0.5, 5), round((far / size) ** 0.5, 5) if size else 0.0]
        for name, (total, far, size) in found.items()
    }


def resident_mb() -> float:
    """Memory of this process now."""
    found = re.search(r"VmRSS:\s+(\d+) kB", Path("/proc/self/status").read_text())
    if found is None:
        raise OSError("/proc/self/status has no VmRSS: memory is measured on Linux only")
    return round(int(found.group(1)) / 1024, 1)


@torch.no_grad()
def read(
    model: LanguageModel, ids: torch.Tensor, state: ModelState, start: int, stop: int, piece: int
) -> tuple[ModelState, float, float]:
    """The state behind a stretch, its bits per byte, and seconds of all threads together.

    Those of the processor, not of the clock: a stream takes long, and other work comes and goes.
    """
    total, begin = 0.0, time.process_time()
    for part in stream(ids, start, stop, piece):
        nats, state = losses(model, part[None, :-1], part[None, 1:], state)
        total += float(nats.double().sum())
    if not math.isfinite(total):
        raise FloatingPointError(f"the loss between {start:,} and {stop:,} is not finite")
    return state, total / (stop - start) / math.log(2), time.process_time() - begin


def run(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Read what is missing, a row at a time, each with the state behind it on the disk."""
    model, _ = load_model(options.checkpoint)
    ids = encode_documents(read_documents(options.text), ByteTokenizer())
    start_state = model.initial_state(1)
    state, rows = resume(model, options.out)
    position = rows[-1]["tokens"] if rows else 0
    print(f"{len(ids):,} bytes of text, stream of {options.tokens:,}, from {position:,} on")
    begin, begun = time.monotonic(), position
    while position < options.tokens:
        after = min(position + options.every, options.tokens)
        if options.reset and position and position % options.reset == 0:
            state = reset(model, state)
        state, bits, seconds = read(model, ids, state, position, after, options.piece)
        state = settled(detach(state))
        parts = flatten(state)
        row = {
            "suite": "stream",
            "preset": model.config.preset,
            "tokens": after,
            "bits_per_byte": round(bits, 4),
            "cpu_us_per_token": round(1e6 * seconds / (after - position), 2),
            "resident_mb": resident_mb(),
            "state_bytes": sum(t.numel() * t.element_size() for t in parts.values()),
            "memories": norms(model, state, start_state),
            "piece": options.piece,
            "reset": options.reset,
            "threads": torch.get_num_threads(),
            "commit": hardware.commit(),
        }
        rows.append(row)
        keep(options.out, parts, rows)
        position = after
        left = (time.monotonic() - begin) / (after - begun) * (options.tokens - after)
        print(
            f"{after:12,}  {bits:.3f} bits/byte  {row['cpu_us_per_token']:,.0f} us/token  "
            f"{row['resident_mb']:,.0f} MB  state {row['state_bytes']:,} bytes  "
            f"{left / 60:.0f} min left",
            flush=True,
        )
    return rows


def keep(out: Path, parts: Mapping[str, torch.Tensor], rows: Sequence[Mapping[str, Any]]) -> None:
    """Rows first: a state without its row would be read twice, a row without its state is cut."""
    text = "".join(json.dumps(row) + "\n" for row in rows)
    replace(out / ROWS, text.encode())
    tokens = {"tokens": str(rows[-1]["tokens"])}
    tensors = {name: t.contiguous() for name, t in parts.items()}
    replace(out / STATE, save(tensors, metadata=tokens))


def resume(model: LanguageModel, out: Path) -> tuple[ModelState, list[dict[str, Any]]]:
    """Where an interrupted run stood."""
    if not (out / STATE).exists():
        return model.initial_state(1), []
    data = (out / STATE).read_bytes()
    size = int.from_bytes(data[:8], "little")
    tokens = int(json.loads(data[8 : 8 + size])["__metadata__"]["tokens"])
    rows = [json.loads(line) for line in (out / ROWS).read_text().splitlines()]
    rows = [row for row in rows if row["tokens"] <= tokens]
    return Outline(model).restore(load(data), position=tokens), rows


def draw(rows: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Four panels over the tokens read: prediction, speed, norms, distance from the start."""
    with matplotlib.rc_context({**SETTINGS, "svg.fonttype": "path", "font.family": "DejaVu Sans"}):
        figure = Figure(figsize=(10, 6.6), layout="constrained", dpi=120)
        panels = figure.subplots(2, 2)
        x = [row["tokens"] / 1e6 for row in rows]
        bits, speed, norm, far = panels.flat
        bits.plot(x, [row["bits_per_byte"] for row in rows], color=COLOURS[0])
        bits.set_title("bits per byte")
        speed.plot(x, [row["cpu_us_per_token"] for row in rows], color=COLOURS[0], label="us/token")
        memory = [row["resident_mb"] for row in rows]
        speed.plot(x, memory, color=COLOURS[1], linestyle="--", label="resident MB")
        speed.set_title("processor time per token, resident memory")
        speed.set_ylim(0, 1.35 * max([*memory, *(row["cpu_us_per_token"] for row in rows)]))
        speed.legend(loc="upper right", ncols=2)
        names = [name for name in rows[0]["memories"] if not name.endswith("tails")]
        for index, name in enumerate(names):
            colour = COLOURS[index % len(COLOURS)]
            style = ("-", "--", ":", "-.")[index // len(COLOURS) % 4]
            for axes, which in ((norm, 0), (far, 1)):
                values = [row["memories"].get(name, [0, 0])[which] for row in rows]
                axes.plot(x, values, color=colour, linestyle=style, label=name, linewidth=1.3)
        norm.set_title("norm of every memory")
        norm.set_ylim(0)
        far.set_title("distance from the initial memory, relative to it")
        for axes in panels.flat:
            axes.set_xlabel("million tokens read")
            axes.grid(visible=True)
        figure.legend(*norm.get_legend_handles_labels(), loc="outside lower center",
                      fontsize=8, ncols=4)  # fmt: skip
        figure.savefig(path)


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The options."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.stream",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("checkpoint", type=Path, help="a run or one of its checkpoints")
    parser.add_argument("--text", type=Path, action="append", required=True, help="file or folder")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--tokens", type=int, default=10_000_000)
    parser.add_argument("--every", type=int, default=102_400, help="tokens of a row")
    parser.add_argument("--piece", type=int, default=2048, help="tokens read at once")
    parser.add_argument(
        "--reset", type=int, default=0,
        help="start all memories anew after so many tokens, a multiple of --every; 0: never",
    )  # fmt: skip
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--save", action="store_true", help="keep the rows in benchmarks/results")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> list[dict[str, Any]]:
    """Read on, draw, return the rows.

    Raises:
        ValueError: for an option that does not fit.
        FloatingPointError: where a number was not finite.
    """
    options = parse(arguments)
    for name in ("tokens", "every", "piece", "threads"):
        if getattr(options, name) < 1:
            raise ValueError(f"{name}: expected at least 1, got {getattr(options, name)}")
    if options.reset < 0 or options.reset % options.every:
        raise ValueError(f"reset: expected a multiple of {options.every}, got {options.reset}")
    torch.set_num_threads(options.threads)
    options.out.mkdir(parents=True, exist_ok=True)
    with lock(options.out):
        rows = run(options)
        draw(rows, options.out / PICTURE)
    print(f"drawn in {options.out / PICTURE}")
    if options.save:
        print(f"kept in {hardware.keep('stream', hardware.describe(), rows)}")
    return rows


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        sys.exit("\ninterrupted; the same command goes on from the last line")
    except OSError as error:
        sys.exit(f"error: {cause(error)}")
    except (ValueError, FloatingPointError) as error:
        sys.exit(f"error: {error}")
