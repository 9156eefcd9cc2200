"""``python -m benchmarks.stacking``: levels on a pre-trained Llama, their price and their worth.

``--suite overhead``: one chunk of 2,048 tokens with writes on, against the plain forward pass of
the same model, in turn and in one run (``times``; ``processor_times`` are those of all cores
together, which other work on the machine changes little); what the adapted state takes. In
products alone, with F for a forward pass: reading 1 F, errors back to the first written block at
most 1 F (no gradient of any weight is computed), the errors' outer products of the last matrices
less than F / 3.

``--suite effect``: a small Llama learns bytes of books, gets 1, 2 and 3 levels, and reads Python
code and German. Per row:

    bits without, with   bits per byte while it reads, step size 0 and as given; equal attention
    last quarter         the same over the last quarter of what was read
    books before, after  held-out books, each window with empty attention, with the levels as they
                         were before and as the new text has left them: what was forgotten

Rows are appended to ``DIR/rows.jsonl`` as they are found; what is there is not computed again, and
neither is the Llama of books.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from transformers import LlamaConfig, LlamaForCausalLM

from benchmarks import hardware
from benchmarks.timing import paired
from nestling.continuum import Backprop
from nestling.hf import StackedModel, stack_levels
from nestling.hf.stack_state import StackedState
from nestling.levels import Level
from nestling.memory import flatten
from nestling.storage.lock import lock

TOKENS = 2048
"""Of the chunk that is timed."""

COSTS: dict[str, dict[str, Any]] = {
    "one level": {"periods": (512,)},
    "two levels": {"periods": (512, 2048)},
    "two levels, split": {"periods": (512, 2048), "plan": "split"},
    "two levels, every matrix": {"periods": (512, 2048), "matrices": "every"},
    "two levels, rank 16": {"periods": (512, 2048), "rank": 16},
    "two levels, Adam": {"periods": (512, 2048), "error_rule": "adam", "step_size": 1e-4},
    "two levels, last quarter of the layers": {"periods": (512, 2048), "last": 4},
    "two levels, chunks of 512": {"periods": (512, 2048), "chunk": 512},
}

LEVELS = {1: (256,), 2: (256, 1024), 3: (256, 1024, 4096)}
"""By their number."""


def llama(options: argparse.Namespace, vocab_size: int, places: int) -> LlamaForCausalLM:
    """Random weights."""
    torch.manual_seed(options.seed)
    config = LlamaConfig(
        vocab_size=vocab_size, hidden_size=options.width, intermediate_size=options.hidden,
        num_hidden_layers=options.layers, num_attention_heads=options.heads,
        num_key_value_heads=options.heads, max_position_embeddings=places,
    )  # fmt: skip
    return LlamaForCausalLM(config).eval().to(options.device)


def stacked(model: Any, periods: tuple[int, ...], **changes: Any) -> StackedModel:
    """Levels of these periods."""
    last, chunk = changes.pop("last", None), changes.pop("chunk", 256)
    count = model.config.num_hidden_layers
    layers = None if last is None else range(count - max(len(periods), count // last), count)
    return stack_levels(
        model, [Level(period) for period in periods], layers=layers and list(layers),
        source=Backprop(chunk=chunk), **changes,
    )  # fmt: skip


@torch.no_grad()
def overhead(options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Seconds for a chunk with writes on over those of the plain forward pass."""
    model = llama(options, options.vocab, 2 * TOKENS)
    ids = torch.randint(options.vocab, (1, TOKENS + 1), device=options.device)
    for name, cost in COSTS.items():
        net = stacked(model, **cost)
        # Every level has been written before, so that all that there is to multiply is multiplied.
        _, state = net.observe(ids)
        state = net.new_text(state)

        def ours(net: StackedModel = net, state: StackedState = state) -> None:
            net.observe(ids, state)

        def plain() -> None:
            model(input_ids=ids[:, :-1], use_cache=True)

        pair = paired(ours, plain, pairs=options.pairs)
        work, least = (
            min(processor_seconds(one) for _ in range(options.pairs)) for one in (ours, plain)
        )
        slots = [slot for block in state.blocks for level in block.levels.values()
                 for slot in level.values()]  # fmt: skip
        size = sum(t.numel() * t.element_size() for slot in slots for t in flatten(slot).values())
        ratios = [1 / ratio for ratio in pair.ratios]
        yield {
            "suite": "overhead", "name": name, "seconds": round(min(pair.ours), 3),
            "plain_seconds": round(min(pair.peer), 3),
            "times": round(statistics.median(ratios), 3), "times_min": round(min(ratios), 3),
            "times_max": round(max(ratios), 3), "processor_times": round(work / least, 3),
            "state_mb": round(size / 1e6, 2), "writes": net.writes(state),
            "parameters": sum(p.numel() for p in model.parameters()),
        }  # fmt: skip


def processor_seconds(function: Callable[[], object]) -> float:
    """What a call takes of all cores together: the same next to other work."""
    start = time.process_time()
    function()
    return time.process_time() - start


def pretrained(options: argparse.Namespace, books: torch.Tensor) -> LlamaForCausalLM:
    """The Llama of books: trained once, then read."""
    names = ("width", "hidden", "layers", "heads", "length", "steps", "batch", "seed")
    place = options.out / ("llama-" + "-".join(str(getattr(options, name)) for name in names))
    if (place / "config.json").exists():
        return LlamaForCausalLM.from_pretrained(place).eval().to(options.device)
    model = llama(options, 256, 4 * options.length)
    optimizer = torch.optim.AdamW(model.parameters(), lr=options.lr, weight_decay=0.1)
    warmup = max(1, min(100, options.steps // 10))

    def rate(step: int) -> float:
        done = step / options.steps
        return min(1.0, (step + 1) / warmup) * (0.05 + 0.95 * (1 + math.cos(math.pi * done)) / 2)

    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, rate)
    picks = torch.Generator().manual_seed(options.seed)
    began = time.monotonic()
    for step in range(options.steps):
        starts = torch.randint(len(books) - options.length, (options.batch,), generator=picks)
        rows = torch.stack([books[i : i + options.length + 1] for i in starts.tolist()])
        rows = rows.long().to(options.device)
        logits = model(input_ids=rows[:, :-1], use_cache=False).logits
        loss = F.cross_entropy(logits.mT, rows[:, 1:])
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if step % max(1, options.steps // 10) == 0 or step == options.steps - 1:
            told = float(loss.detach()) / math.log(2)
            seconds = time.monotonic() - began
            print(f"step {step:5d}  {told:.3f} bits per byte  {seconds:.0f} s", flush=True)
    model.save_pretrained(place)
    return model


@torch.no_grad()
def online(net: StackedModel, rows: torch.Tensor) -> tuple[torch.Tensor, StackedState]:
    """Bits of every byte, ``(B, T)``, and the state when all is read."""
    state, found = None, []
    for piece in rows.split(TOKENS, dim=1):
        seen = net.observation(piece, state)
        state = seen.state
        found.append(seen.nats.cpu() / math.log(2))
    assert state is not None
    return torch.cat(found, dim=1), state


@torch.no_grad()
def on_books(net: StackedModel, windows: torch.Tensor, state: StackedState) -> float:
    """Bits per byte of held-out windows, each with empty attention."""
    state, bits = net.new_text(state), []
    batch = state.batch
    for rows in windows[: len(windows) // batch * batch].split(batch):
        logits, _ = net(rows[:, :-1], state, writes="off")
        bits.append(F.cross_entropy(logits.mT, rows[:, 1:]) / math.log(2))
    return float(torch.stack(bits).mean())


def effect(options: argparse.Namespace, known: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """Online prediction of new text with writes and without, and what it does to books."""
    books = read(options.books)
    held = len(books) // 10
    model = pretrained(options, books[:-held])
    length = options.length
    count = min(options.windows, held // (length + 1))
    windows = torch.stack(
        [part[: length + 1] for part in books[-held:].tensor_split(count)]
    ).to(options.device).long()  # fmt: skip
    # What a chunk sees is never longer than what the Llama was trained on.
    chunk = min(options.chunk, length // 2)
    shape = {"window": length - chunk, "chunk": chunk, "matrices": options.matrices}
    texts = {"python": options.python, "german": options.german, "books": options.books}
    plain: dict[str, torch.Tensor] = {}
    for levels in options.levels:
        for rule, step in ((r, s) for r in options.rules for s in options.step_sizes):
            for domain, file in texts.items():
                key = {"suite": "effect", "domain": domain, "levels": list(LEVELS[levels]),
                       "rule": rule, "step_size": step, "chunk": chunk, "plan": options.plan,
                       "matrices": options.matrices, "rank": options.rank, "kept": options.kept,
                       "bytes": options.bytes, "streams": options.streams}  # fmt: skip
                if file is None or any(key.items() <= row.items() for row in known):
                    continue
                whole = read(file)
                whole = whole[-held:] if domain == "books" else whole
                rows = streams(whole, options.streams, options.bytes).to(options.device)
                if domain not in plain:
                    still = stacked(model, (chunk,), step_size=0.0, **shape)
                    plain[domain] = online(still, rows)[0]
                net = stacked(model, LEVELS[levels], step_size=step, error_rule=rule,
                              plan=options.plan, rank=options.rank, kept=options.kept,
                              **shape)  # fmt: skip
                began = time.monotonic()
                bits, state = online(net, rows)
                start = net.initial_state(len(rows))
                moved = net.liveness(start, state)
                yield {
                    **key, "without": mean(plain[domain]), "with": mean(bits),
                    "without_last_quarter": mean(plain[domain], 0.75),
                    "with_last_quarter": mean(bits, 0.75),
                    "books_before": round(on_books(net, windows, start), 4),
                    "books_after": round(on_books(net, windows, state), 4),
                    "moved": {name: round(value, 5) for name, value in moved.items()},
                    "seconds": round(time.monotonic() - began, 1),
                }  # fmt: skip


def mean(bits: torch.Tensor, start: float = 0.0) -> float:
    """Over all streams, without the first byte, from a share of them on."""
    first = max(1, int(start * bits.shape[1]))
    return round(float(bits[:, first:].double().mean()), 4)


def streams(text: torch.Tensor, count: int, size: int) -> torch.Tensor:
    """``(count, size)`` from equally far places of a text.

    >>> streams(torch.arange(10), 2, 3)
    tensor([[0, 1, 2],
            [5, 6, 7]])
    """
    parts = text.tensor_split(count)
    if len(parts[-1]) < size:
        raise ValueError(f"text: {len(text):,} bytes are too few for {count} streams of {size:,}")
    return torch.stack([part[:size] for part in parts]).long()


def read(file: Path) -> torch.Tensor:
    """Bytes of a file."""
    return torch.frombuffer(bytearray(file.read_bytes()), dtype=torch.uint8)


def options_of(arguments: list[str] | None = None) -> argparse.Namespace:
    """From the command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.stacking")
    parser.add_argument("--suite", choices=["overhead", "effect"], required=True)
    parser.add_argument("--out", type=Path, default=Path("runs/stacking"))
    parser.add_argument("--keep", action="store_true", help="put the rows into benchmarks/results")
    for name in ("books", "python", "german"):
        parser.add_argument(f"--{name}", type=Path)
    for name, value in {
        "width": 256, "hidden": 688, "layers": 6, "heads": 4, "vocab": 32_000, "pairs": 5,
        "length": 512, "steps": 2000, "batch": 16, "chunk": 256, "bytes": 32_768, "streams": 4,
        "windows": 32, "seed": 0, "threads": 0,
    }.items():  # fmt: skip
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--levels", type=int, nargs="+", default=[1, 2, 3], choices=list(LEVELS))
    parser.add_argument("--step-sizes", type=float, nargs="+", default=[0.03, 0.1, 0.3])
    parser.add_argument("--rules", nargs="+", default=["gradient_descent"])
    parser.add_argument("--plan", default="layer_mod_levels")
    parser.add_argument("--matrices", default="last")
    parser.add_argument("--rank", type=int, help="of what is written (full)")
    parser.add_argument("--kept", type=float, default=1.0)
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args(arguments)
    if options.suite == "effect" and options.books is None:
        parser.error("--books: the effect suite trains on a text of books")
    if options.threads:
        torch.set_num_threads(options.threads)
    return options


def main(arguments: list[str] | None = None) -> list[dict[str, Any]]:
    """Compute what is missing; return all rows."""
    options = options_of(arguments)
    options.out.mkdir(parents=True, exist_ok=True)
    file = options.out / "rows.jsonl"
    with lock(options.out):
        lines = file.read_text().splitlines() if file.exists() else []
        known = [json.loads(line) for line in lines]
        where = {**hardware.describe(), "device": options.device}
        rows = overhead(options) if options.suite == "overhead" else effect(options, known)
        for row in rows:
            print(json.dumps(row), flush=True)
            known.append({**row, "where": where})
            with file.open("a") as opened:
                opened.write(json.dumps(known[-1]) + "\n")
    if options.keep:
        own = [{k: v for k, v in row.items() if k != "where"} for row in known
               if row["suite"] == options.suite]  # fmt: skip
        print(f"kept in {hardware.keep(f'stacking-{options.suite}', where, own)}")
    return known


if __name__ == "__main__":
    main()
