"""What a session asks of a model: a name, a digest's worth of definition, and to read on."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Protocol, runtime_checkable

from torch.nn import Parameter

from nestling.levels import Component
from nestling.shapes import Tensor


@runtime_checkable
class Readable(Protocol):
    """A model whose inner state is a value: every :class:`nestling.models.LanguageModel` is one.

    >>> from nestling.models import build
    >>> isinstance(build("hope", width=16, heads=2, layers=1), Readable)
    True
    """

    @property
    def name(self) -> str:
        """What a person calls it."""
        ...

    @property
    def vocab_size(self) -> int:
        """Token ids are below it."""
        ...

    @property
    def chunk_size(self) -> int | None:
        """Most tokens whose errors are found together; ``None`` if nothing waits for them."""
        ...

    def definition(self) -> dict[str, Any]:
        """What it computes but for its weights, in plain JSON values."""
        ...

    def initial_state(self, batch: int) -> Any:
        """The state before the first token."""
        ...

    def read_on(self, ids: Tensor, state: Any = None) -> tuple[Tensor, Any]:
        """Logits after the last token, ``(B, V)``, and the state with every memory written."""
        ...

    def components(self, name: str = "") -> list[Component]:
        """Everything that holds something over time."""
        ...

    def liveness(self, before: Any, after: Any) -> dict[str, float]:
        """``|write| / |weight|`` between two states, by the component's name."""
        ...

    def parameters(self, recurse: bool = True) -> Iterator[Parameter]:
        """Its weights."""
        ...
