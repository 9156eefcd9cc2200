"""``nestling generate``: text from a checkpoint, written as it comes."""

from __future__ import annotations

import io
import sys
from dataclasses import dataclass
from pathlib import Path

import torch

from nestling.cli.device import choose_device
from nestling.data import Tokenizer, read_documents
from nestling.models.sampling import sample, write_text
from nestling.storage import load_model


@dataclass(frozen=True, kw_only=True)
class Request:
    """What is asked for; see the options of ``nestling generate``."""

    prompt: str | None
    prompt_file: Path | None
    size: int
    temperature: float
    top_k: int | None
    seed: int
    device: str


def generate_text(checkpoint: Path, request: Request) -> None:
    """Print the prompt and ``size`` bytes that follow it.

    Raises:
        ValueError: if the checkpoint, the prompt or an option cannot be used.
    """
    model, tokenizer = load_model(checkpoint, device=choose_device(request.device))
    prompt = _prompt(request)
    ids = tokenizer.encode(prompt) if prompt else _start(tokenizer)
    tokens = sample(
        model, ids, temperature=request.temperature, top_k=request.top_k, seed=request.seed
    )
    if isinstance(sys.stdout, io.TextIOWrapper):
        # A model may write any character; a terminal that cannot show it should not end this.
        sys.stdout.reconfigure(errors="replace")
    write_now(prompt)
    write_text(tokens, tokenizer, request.size, write_now)
    write_now("\n")


def write_now(text: str) -> None:
    """Text to standard output, visible at once."""
    sys.stdout.write(text)
    sys.stdout.flush()


def _prompt(request: Request) -> str:
    if request.prompt is not None and request.prompt_file is not None:
        raise ValueError("prompt: expected --prompt or --prompt-file, got both")
    if request.prompt_file is None:
        return request.prompt or ""
    if str(request.prompt_file) == "-":
        return sys.stdin.read()
    return "".join(document.text for document in read_documents([request.prompt_file]))


def _start(tokenizer: Tokenizer) -> torch.Tensor:
    """Without a prompt, what comes before a text: the end of another, or of a line."""
    if tokenizer.separator is not None and tokenizer.name != "bytes":
        return torch.tensor([tokenizer.separator])
    return tokenizer.encode("\n")
