"""Names for tensor shapes in signatures, checked at run time only where jaxtyping is installed.

``Float[Tensor, "B H T K"]`` reads: a floating point tensor with the axes batch, head, token, key.
The tests install jaxtyping's import hook, so that every call in them is checked; for users the
annotations cost nothing and need no further package.

Axes: B batch, H heads, T tokens, C tokens of one chunk, N memories, K key size, V value size,
D width of the residual stream.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor

if TYPE_CHECKING:
    from jaxtyping import Bool, Float, Int
else:
    try:
        from jaxtyping import Bool, Float, Int
    except ModuleNotFoundError:

        class _Unchecked:
            """Stands in for a jaxtyping dtype: ``Float[Tensor, "..."]`` is just ``Tensor``."""

            def __class_getitem__(cls, item):
                return item[0]

        Bool = Float = Int = _Unchecked

__all__ = ["Bool", "Float", "Int", "Tensor"]
