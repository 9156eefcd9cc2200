"""Small models of every preset, in double precision, behind the door of transformers."""

import torch

from nestling.hf import HopeConfig, HopeForCausalLM
from nestling.models.presets import MIXERS

LEVELS = {"periods": (3, 8), "regime": "in_context"}
CASES: dict[str, tuple[str, dict]] = {
    **{name: (name, {}) for name in MIXERS},
    "levels_in_context": ("hope", LEVELS),
    "levels_nested": ("transformer", {**LEVELS, "variant": "nested", "error_rule": "adam"}),
    "levels_of_the_loss": ("hope_attention", {**LEVELS, "source": "backprop"}),
    "windowed": ("transformer", {"window": 6}),
}
COMMON = {"width": 16, "heads": 2, "vocab_size": 50, "hidden": 24}


def config_for(case: str, **words) -> HopeConfig:
    preset, own = CASES[case]
    if isinstance(MIXERS[preset], type(MIXERS["hope"])):
        own = {"chunk_size": 4, "memory_chunk_size": 4, **own}
    layers = 2 if case in ("hope", "levels_of_the_loss") else 1
    return HopeConfig(preset, **{**COMMON, "layers": layers, **own, **words})


def model_for(case: str, seed: int = 0, **words) -> HopeForCausalLM:
    torch.manual_seed(seed)
    return HopeForCausalLM(config_for(case, **words)).double()


def ids_for(batch: int = 2, length: int = 13, seed: int = 1) -> torch.Tensor:
    return torch.randint(1, 50, (batch, length), generator=torch.Generator().manual_seed(seed))


def close(ours: torch.Tensor, other: torch.Tensor) -> None:
    torch.testing.assert_close(ours, other, rtol=1e-9, atol=1e-11)
