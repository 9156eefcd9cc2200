"""Small models, their texts, and what it means for two moments of a session to be the same."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path

import torch

from nestling.memory import flatten
from nestling.models import LanguageModel, build
from nestling.session import Session
from nestling.session.outline import settled
from nestling.session.reader import Moment

# These models are so small that handing work to a second thread takes longer than doing it.
torch.set_num_threads(1)

PRESETS = ("hope", "hope_attention", "titans", "transformer")


def model(preset: str = "hope", seed: int = 0, **overrides) -> LanguageModel:
    torch.manual_seed(seed)
    values = {"width": 16, "heads": 2, "layers": 1, "hidden": 16, **overrides}
    return build(preset, **values)


def tiny(seed: int = 0) -> LanguageModel:
    """The smallest that still has memories, generators and convolutions: 2 KB of state."""
    return model("hope", seed, width=8, heads=1, hidden=8)


def ids(size: int, vocab_size: int = 256, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(vocab_size, (size,), generator=generator)


@torch.no_grad()
def read(net: LanguageModel, tokens: torch.Tensor, cuts: list[int]) -> Moment:
    """Where an uninterrupted reader stands: nothing but the model, cut at the same places."""
    state, logits = settled(net.initial_state(1)), None
    bounds = [0, *cuts, len(tokens)]
    for start, stop in pairwise(bounds):
        logits, state = net(tokens[None, start:stop], state)
        state = settled(state)
    assert logits is not None
    return Moment(position=len(tokens), state=state, logits=logits[0, -1].clone())


def tensors(moment: Moment | Session) -> dict[str, torch.Tensor]:
    own = {} if moment.logits is None else {"logits": moment.logits}
    return {**flatten(moment.state), **own}


def same(one: Mapping[str, torch.Tensor], other: Mapping[str, torch.Tensor]) -> bool:
    """Equal to the last bit, -0.0 and 0.0 apart, laid out in the same way."""
    return one.keys() == other.keys() and all(
        a.dtype == other[name].dtype
        and a.shape == other[name].shape
        and a.stride() == other[name].stride()
        and bytes_of(a) == bytes_of(other[name])
        for name, a in one.items()
    )


def bytes_of(tensor: torch.Tensor) -> bytes:
    return tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


def files(root: Path) -> dict[str, bytes]:
    """Everything in a directory but the lock."""
    return {
        str(path.relative_to(root)): path.read_bytes()
        for path in sorted(root.rglob("*"))
        if path.is_file() and path.name != ".lock"
    }
