"""Which parameters are matrices of hidden layers, and which are something else.

    matrix       two axes, neither of length 1: takes vectors of one layer to vectors of the next
    stacked      more axes: a batch of such matrices, one for each head or level
    embedding    a table: only the rows of the symbols that were read have a gradient
    head         the matrix that makes the scores of classes or symbols
    convolution  filters
    norm         scales of a norm, one of its name or of its module
    vector       biases, scales, and everything with fewer than two axes longer than 1

An orthogonal step moves all directions of a matrix alike: right for the first two, wrong for tables
whose rows have nothing to do with each other, without meaning for scales.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Literal

from torch import nn
from torch.nn import Parameter
from torch.nn.modules.conv import _ConvNd

from nestling.shapes import Tensor

Role = Literal["matrix", "stacked", "embedding", "head", "convolution", "norm", "vector"]
MATRICES: tuple[Role, ...] = ("matrix", "stacked")
"""Those that go by a rule for matrices."""

_INSIDE: tuple[tuple[Role, str], ...] = (
    ("norm", "norm"), ("embedding", "embed"), ("convolution", "conv"), ("vector", "read_out"),
)  # fmt: skip
_WORDS: tuple[tuple[Role, tuple[str, ...]], ...] = (
    ("norm", ("bn", "ln", "scale")),
    ("embedding", ("wte", "wpe")),
)
_HEADS = ("head", "classifier", "score", "unembed")


def role_of(name: str, parameter: Tensor, module: nn.Module | None = None) -> Role:
    """What a parameter is, by its module if that is known, else by its name and shape.

    Args:
        name: its path in the model; empty if it has none.
        parameter: the tensor.
        module: that it belongs to.

    >>> import torch
    >>> [role_of(name, torch.zeros(9, 4)) for name in ("mlp.weight", "lm_head.weight")]
    ['matrix', 'head']
    """
    if sum(length > 1 for length in parameter.shape) < 2:
        return "vector"
    if isinstance(module, nn.Embedding | nn.EmbeddingBag):
        return "embedding"
    if isinstance(module, _ConvNd) or (module is None and parameter.ndim > 3):
        return "convolution"
    # Not the names of modules: some call a matrix Conv1D.
    kind = type(module).__name__.lower() if module is not None else ""
    if "norm" in kind:
        return "norm"
    parts = name.lower().split(".")
    if any(_is_head(part) for part in parts):
        return "head"
    for role, mark in _INSIDE:
        if any(mark in part for part in parts):
            return role
    words = {word.strip("0123456789") for part in parts for word in part.split("_")}
    for role, marks in _WORDS:
        if words.intersection(marks):
            return role
    return "stacked" if parameter.ndim > 2 else "matrix"


def _is_head(part: str) -> bool:
    """``head``, ``lm_head``, ``head1``, but neither ``multi_head`` nor ``head_mixer``."""
    *before, last = part.rstrip("_0123456789").split("_")
    return last in _HEADS and before[-1:] not in (["multi"], ["per"])


def roles(model: nn.Module) -> dict[str, Role]:
    """The role of every parameter of a model that is trained, by name.

    A matrix that is a table too (tied weights) is a table.

    >>> model = nn.Sequential(nn.Embedding(9, 4), nn.Linear(4, 4), nn.LayerNorm(4))
    >>> roles(model)
    {'0.weight': 'embedding', '1.weight': 'matrix', '1.bias': 'vector', '2.weight': 'vector',
     '2.bias': 'vector'}
    """
    owners = {
        id(parameter): module
        for module in model.modules()
        for parameter in module.parameters(recurse=False)
    }
    tables = {
        id(module.weight)
        for module in model.modules()
        if isinstance(module, nn.Embedding | nn.EmbeddingBag)
    }
    return {
        name: "embedding" if id(p) in tables else role_of(name, p, owners[id(p)])
        for name, p in model.named_parameters()
        if p.requires_grad
    }


def told(found: Mapping[str, Role], named: Mapping[str, Parameter]) -> str:
    """How many parameters have which role, as text.

    >>> import torch
    >>> told({"w": "matrix", "b": "vector"}, {"w": Parameter(torch.ones(2, 2)),
    ...                                       "b": Parameter(torch.ones(2))})
    '1 matrix (4 numbers), 1 vector (2)'
    """
    counts, sizes = Counter(found.values()), Counter[str]()
    for name, role in found.items():
        sizes[role] += named[name].numel()
    words = [f"{counts[r]} {r if counts[r] == 1 else _PLURAL[r]} ({sizes[r]:,}" for r in counts]
    return ", ".join(word + (" numbers)" if i == 0 else ")") for i, word in enumerate(words))


_PLURAL: Mapping[str, str] = {
    "matrix": "matrices", "stacked": "stacks of matrices", "embedding": "embeddings",
    "head": "heads", "convolution": "convolutions", "norm": "norms", "vector": "vectors",
}  # fmt: skip
