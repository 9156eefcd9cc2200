"""A small vision transformer for digits (Dosovitskiy et al. 2021), for NL Fig. 11."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from nestling.shapes import Float, Tensor

SIDE, CLASSES = 28, 10


class VisionTransformer(nn.Module):
    """Patches as tokens, learned positions, pre-norm blocks, the mean of all tokens as answer.

    Args:
        patch: side of a patch; divides 28.
        width: of a token.
        layers: blocks.
        heads: of the attention.

    Raises:
        ValueError: if ``patch`` does not divide 28.

    >>> VisionTransformer(width=16, layers=1, heads=2)(torch.zeros(3, 784)).shape
    torch.Size([3, 10])
    """

    def __init__(self, *, patch: int = 7, width: int = 64, layers: int = 4, heads: int = 4) -> None:
        super().__init__()
        if SIDE % patch:
            raise ValueError(f"patch: expected a divisor of {SIDE}, got {patch}")
        self.patch = patch
        self.patches = nn.Linear(patch * patch, width)
        self.position_embedding = nn.Parameter(0.02 * torch.randn((SIDE // patch) ** 2, width))
        self.blocks = nn.ModuleList(
            nn.TransformerEncoderLayer(
                width, heads, 4 * width, dropout=0.0, activation="gelu", batch_first=True,
                norm_first=True,
            )
            for _ in range(layers)
        )  # fmt: skip
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, CLASSES)

    def forward(self, images: Float[Tensor, "B P"]) -> Float[Tensor, "B K"]:
        """Scores of the ten digits; images are rows of 784 numbers."""
        side = self.patch
        grid = images.view(-1, 1, SIDE, SIDE)
        tokens = F.unfold(grid, side, stride=side).mT
        x = self.patches(tokens) + self.position_embedding
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x).mean(1))
