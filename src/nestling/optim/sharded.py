"""Parameters that lie on several ranks (DTensor, FSDP2): whole matrices where a rule needs them.

What works number by number works on every rank's own part. A product of matrices does not: each
rank gathers the matrix, computes with it, and keeps its own part of the result.

``torch.distributed.tensor`` takes half a second to import: only where there is such a tensor.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

from nestling.shapes import Tensor


def is_sharded(tensor: Tensor) -> bool:
    """Whether it is a DTensor."""
    return hasattr(tensor, "full_tensor")


def whole(tensor: Tensor) -> Tensor:
    """The whole of a tensor, on every rank; a plain tensor is whole already."""
    return cast(Any, tensor).full_tensor() if is_sharded(tensor) else tensor


def replicated(tensor: Tensor) -> Tensor:
    """A small result that every rank needs, as a tensor of the same kind."""
    if not is_sharded(tensor):
        return tensor
    from torch.distributed.tensor import DTensor, Replicate

    tensor = cast(DTensor, tensor)
    return tensor.redistribute(tensor.device_mesh, [Replicate()] * tensor.device_mesh.ndim)


def parts(tensors: Sequence[Tensor], like: Sequence[Tensor]) -> list[Tensor]:
    """Of whole tensors, those parts that this rank holds of the others."""
    return [_part(tensor, other) for tensor, other in zip(tensors, like, strict=True)]


def summed(value: Tensor, like: Tensor) -> Tensor:
    """The sum over all ranks that hold a part of ``like``; ``value`` where it is whole."""
    if not is_sharded(like):
        return value
    import torch.distributed as dist
    from torch.distributed.tensor import DTensor

    mesh = cast(DTensor, like).device_mesh
    for axis in range(mesh.ndim):
        dist.all_reduce(value, group=mesh.get_group(axis))
    return value


def _part(tensor: Tensor, like: Tensor) -> Tensor:
    if not is_sharded(like):
        return tensor
    from torch.distributed.tensor import DTensor, Replicate

    mesh = cast(DTensor, like).device_mesh
    spread = DTensor.from_local(tensor, mesh, [Replicate()] * mesh.ndim, run_check=False)
    return spread.redistribute(mesh, cast(DTensor, like).placements)
