"""Made-up digits in the files of MNIST: ten patterns with noise on them."""

from __future__ import annotations

import gzip
import struct
from pathlib import Path

import torch


def idx(numbers: torch.Tensor, *, kind: int = 8) -> bytes:
    head = bytes([0, 0, kind, numbers.ndim]) + struct.pack(f">{numbers.ndim}I", *numbers.shape)
    return head + numbers.to(torch.uint8).numpy().tobytes()


def write(folder: Path, part: str, pictures: torch.Tensor, labels: torch.Tensor) -> None:
    for name, numbers in (("images-idx3", pictures), ("labels-idx1", labels)):
        (folder / f"{part}-{name}-ubyte.gz").write_bytes(gzip.compress(idx(numbers)))


def patterns(folder: Path) -> Path:
    """The folder, with ``mnist`` in it."""
    draw = torch.Generator().manual_seed(0)
    (folder / "mnist").mkdir()
    shown = torch.rand(10, 28, 28, generator=draw) * 200
    for part, count in (("train", 500), ("t10k", 260)):
        labels = torch.randint(10, (count,), generator=draw)
        pictures = shown[labels] + torch.rand(count, 28, 28, generator=draw) * 55
        write(folder / "mnist", part, pictures, labels)
    return folder
