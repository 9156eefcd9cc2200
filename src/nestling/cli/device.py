"""Where to compute."""

from __future__ import annotations

import torch


def choose_device(name: str) -> torch.device:
    """``auto`` is an NVIDIA GPU if there is one, else the CPU.

    Raises:
        ValueError: if the name is none, or this machine has no such device.

    >>> choose_device("cpu")
    device(type='cpu')
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ValueError(f"device: {name!r} cannot be used here: {reason}") from error
    return device
