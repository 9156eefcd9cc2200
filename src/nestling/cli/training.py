"""``nestling train``: options to a run, fresh or resumed."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import typer
from rich.console import Console

from nestling.cli.device import choose_device
from nestling.cli.overrides import configured, parse_overrides
from nestling.data import (
    TextStream,
    Tokenizer,
    encode_documents,
    hold_out,
    load_tokenizer,
    read_documents,
    tokenizer_from_json,
)
from nestling.models import LanguageModel, ModelConfig
from nestling.optim import roles
from nestling.optim.roles import told
from nestling.storage.checkpoint import read_model
from nestling.train import Checkpoint, CheckpointError, Output, TrainConfig, latest, train

MOST_HELD_OUT = 1 << 17
"""Tokens: a measurement on more would take longer than it is worth."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What is trained on what."""

    train: TrainConfig
    model: ModelConfig
    tokenizer: Tokenizer
    texts: list[Path]
    field: str = "text"
    held_out: float = 0.05

    def source(self) -> dict[str, Any]:
        """Where the text comes from, as it is stored with a checkpoint."""
        texts = [str(path.resolve()) for path in self.texts]
        return {"texts": texts, "field": self.field, "held_out": self.held_out}


def run_training(given: Mapping[str, Any]) -> None:
    """Train with the options that were given; the others follow from the defaults or the run."""
    if "threads" in given:
        if given["threads"] < 1:
            raise ValueError(f"threads: expected a whole number >= 1, got {given['threads']}")
        torch.set_num_threads(given["threads"])
    console, device = Console(), choose_device(given["device"])
    preset, size = given.get("preset", "hope"), given.get("size", "tiny")
    out = given.get("out") or Path("runs") / f"{preset}-{size}"
    if given["resume"] and not out.exists():
        raise ValueError(f"{out}: nothing to resume: no such directory")
    newest = latest(out) if given["resume"] else None
    plan = fresh(given) if newest is None else continued(given, read_model(newest))
    config = plan.train
    stream, held_out = read_text(plan, console)
    torch.manual_seed(config.seed)
    model = LanguageModel(plan.model).to(device)
    count = sum(parameter.numel() for parameter in model.parameters())
    say(console, f"model: {plan.model.preset}, {count:,} parameters, on {device}")
    if config.optimizer != TrainConfig.optimizer:
        what = told(roles(model), dict(model.named_parameters()))
        say(console, f"optimizer: {config.optimizer}; what it is given: {what}")
    result = train(
        config,
        model,
        stream,
        tokenizer=plan.tokenizer,
        held_out=held_out,
        output=Output(directory=out, resume=given["resume"], source=plan.source(), console=console),
    )
    say(console, f"checkpoint: {result.checkpoint}")
    if result.stopped:
        say(console, f"to go on: nestling train --out {out} --resume")
    else:
        say(console, f"to read what it writes: nestling generate {out}")
    if result.stopped == "SIGINT":
        raise typer.Exit(130)


def fresh(given: Mapping[str, Any]) -> Plan:
    """A new run.

    Raises:
        ValueError: naming an option that does not fit.
    """
    if not given.get("texts"):
        raise ValueError("TEXTS: expected at least one text file, folder or .jsonl file, got none")
    tokenizer = load_tokenizer(given.get("tokenizer", "bytes"))
    overrides = parse_overrides(given.get("override", []))
    overrides = {"vocab_size": tokenizer.vocab_size, **overrides}
    if isinstance(overrides["vocab_size"], int) and overrides["vocab_size"] < tokenizer.vocab_size:
        raise ValueError(
            f"vocab_size: expected at least {tokenizer.vocab_size} for this tokenizer, "
            f"got {overrides['vocab_size']}"
        )
    return Plan(
        train=TrainConfig(**training_options(given)),
        model=configured(given.get("preset", "hope"), given.get("size", "tiny"), overrides),
        tokenizer=tokenizer,
        texts=given["texts"],
        **{name: given[name] for name in ("field", "held_out") if name in given},
    )


def continued(given: Mapping[str, Any], saved: Checkpoint) -> Plan:
    """A run that goes on: everything as it was, unless it is given and may change.

    Raises:
        CheckpointError: naming an option that is not what the run was started with.
    """
    model = ModelConfig.from_dict(saved.config["model"])
    before = TrainConfig.from_dict(saved.config["train"])
    now = dataclasses.replace(before, **training_options(given))
    differs = now.differences(before)
    source = saved.config.get("source", {})
    tokenizer = tokenizer_from_json(saved.attachments.get("tokenizer.json"))
    if {"preset", "size", "override"} & given.keys():
        wanted = configured(
            given.get("preset", model.preset),
            given.get("size", "tiny"),
            {"vocab_size": tokenizer.vocab_size, **parse_overrides(given.get("override", []))},
        )
        if wanted != model:
            differs.append(f"the model: {wanted.preset} {given.get('size', '')}, not as it was")
    for name in ("field", "held_out"):
        if name in given and given[name] != source.get(name):
            differs.append(f"{name}: {given[name]}, not {source.get(name)}")
    if "tokenizer" in given and load_tokenizer(given["tokenizer"]).to_json() != tokenizer.to_json():
        differs.append(f"tokenizer: {given['tokenizer']}, not {saved.config.get('tokenizer')}")
    if differs:
        raise CheckpointError(
            f"resume: the run was started with other values ({'; '.join(differs)}); "
            "leave these options out, or start a new run with another --out"
        )
    texts = given.get("texts") or [Path(path) for path in source.get("texts", [])]
    return Plan(
        train=now,
        model=model,
        tokenizer=tokenizer,
        texts=texts,
        **{name: source[name] for name in ("field", "held_out") if name in source},
    )


def training_options(given: Mapping[str, Any]) -> dict[str, Any]:
    """Those of the options that are fields of ``TrainConfig``."""
    names = {field.name for field in dataclasses.fields(TrainConfig)}
    options = {name: value for name, value in given.items() if name in names}
    if options.get("clip") == 0:
        options["clip"] = None
    return options


def read_text(plan: Plan, console: Console) -> tuple[TextStream, torch.Tensor]:
    """The text as a stream to train on, and the ids held out.

    Raises:
        ValueError: naming a file that cannot be used, or if there is too little text.
    """
    config = plan.train
    documents = read_documents(plan.texts, field=plan.field)
    ids = encode_documents(documents, plan.tokenizer)
    kept, held = hold_out(ids, fraction=plan.held_out, length=config.length, most=MOST_HELD_OUT)
    if len(kept) <= config.length < len(ids):
        raise ValueError(
            f"text: {len(ids)} tokens, of which {len(held)} are held out: the rest is shorter than "
            f"one sequence of length {config.length}; use --held-out 0 or a smaller --length"
        )
    stream = TextStream(
        kept,
        batch=config.batch,
        length=config.length,
        seed=config.seed,
        order="contiguous" if config.carry_state else "random",
    )
    per_pass = len(kept) / config.tokens_per_step
    say(
        console,
        f"text: {len(documents)} document{'s' * (len(documents) > 1)}, {len(ids):,} tokens "
        f"({plan.tokenizer.name}), {len(held):,} held out; {per_pass:,.1f} steps read it once",
    )
    return stream, held


def say(console: Console, text: str) -> None:
    """One line, as it is."""
    console.print(text, markup=False, highlight=False, soft_wrap=True)
