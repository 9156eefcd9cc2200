"""Sampling through the carried state: the prompt is read once, then one token at a time.

    logits, state = model(token, state),     next ~ softmax(top_k(logits) / temperature)

Nothing is ever read again, so time and memory per token do not grow with what has been written
(unless a layer attends to everything).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import torch

from nestling.data import Decoder, Tokenizer
from nestling.models.language_model import LanguageModel
from nestling.models.observe import read_on
from nestling.shapes import Float, Tensor

PIECE = 1024
"""Tokens of a prompt that are fed at once: bounds memory, and changes nothing else."""


def sample(
    model: LanguageModel,
    prompt: Tensor,
    *,
    temperature: float = 0.8,
    top_k: int | None = None,
    seed: int = 0,
) -> Iterator[int]:
    """Tokens that follow ``prompt``, without end.

    Args:
        model: on any device.
        prompt: ids ``(T,)``, at least one.
        temperature: 0 always takes the likeliest token.
        top_k: only the so many likeliest tokens are drawn from; ``None``: all.
        seed: of the draws.

    Raises:
        ValueError: naming the argument; or if the model's output is not finite.

    >>> from itertools import islice
    >>> from nestling.models import build
    >>> model = build("hope", width=16, heads=2, layers=1)
    >>> first = list(islice(sample(model, torch.tensor([1, 2, 3])), 5))
    >>> first == list(islice(sample(model, torch.tensor([1, 2, 3])), 5))
    True
    """
    if prompt.ndim != 1 or prompt.numel() == 0:
        raise ValueError(f"prompt: expected at least one id, one axis, got {tuple(prompt.shape)}")
    return _tokens(model, prompt, chooser(temperature=temperature, top_k=top_k, seed=seed))


@torch.no_grad()
def _tokens(model: LanguageModel, prompt: Tensor, choose: Callable[[Tensor], int]) -> Iterator[int]:
    device = next(model.parameters()).device
    state = None
    for piece in prompt.long().to(device)[None].split(PIECE, dim=1):
        logits, state = read_on(model, piece, state)
    while True:
        token = choose(logits[0])
        yield token
        logits, state = read_on(model, torch.tensor([[token]], device=device), state)


def chooser(
    *, temperature: float = 0.8, top_k: int | None = None, seed: int = 0
) -> Callable[[Tensor], int]:
    """How the next token is taken from its logits ``(V,)``, call after call.

    Args:
        temperature: 0 always takes the likeliest token.
        top_k: only the so many likeliest tokens are drawn from; ``None``: all.
        seed: of the draws.

    Raises:
        ValueError: naming the argument.

    >>> chooser(temperature=0.0)(torch.tensor([0.1, 0.7, 0.2]))
    1
    """
    if not (temperature >= 0 and math.isfinite(temperature)):
        raise ValueError(f"temperature: expected a number >= 0, got {temperature}")
    if top_k is not None and top_k < 1:
        raise ValueError(f"top_k: expected a whole number >= 1, got {top_k}")
    generator = torch.Generator().manual_seed(seed)
    return lambda logits: draw(logits.float().cpu(), temperature, top_k, generator)


def write_text(
    tokens: Iterator[int], tokenizer: Tokenizer, size: int, write: Callable[[str], object]
) -> None:
    """Take tokens until they stand for ``size`` bytes, and write their text as it gets complete.

    >>> from nestling.data import ByteTokenizer
    >>> pieces = []
    >>> write_text(iter("née".encode()), ByteTokenizer(), 4, pieces.append)
    >>> pieces
    ['n', 'é', 'e']
    """
    decoder, written = Decoder(tokenizer), 0
    while written < size:
        token = next(tokens)
        written += max(1, tokenizer.count_bytes(torch.tensor([token])))
        if piece := decoder.push(token):
            write(piece)
    if rest := decoder.flush():
        write(rest)


def draw(
    logits: Float[Tensor, "V"],  # noqa: UP037
    temperature: float,
    top_k: int | None,
    generator: torch.Generator,
) -> int:
    """One token."""
    if not bool(logits.isfinite().all()):
        raise ValueError("model: its output is not finite; the checkpoint may be broken")
    if temperature == 0:
        return int(logits.argmax())
    if top_k is not None and top_k < len(logits):
        least = logits.topk(top_k).values[-1]
        logits = logits.masked_fill(logits < least, -math.inf)
    # The largest first: a tiny temperature must not overflow.
    weights = ((logits - logits.max()) / temperature).softmax(0)
    return int(torch.multinomial(weights, 1, generator=generator))
