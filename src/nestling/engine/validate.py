"""Checks of what comes into a scan: a wrong argument is named before any arithmetic."""

from __future__ import annotations

import torch

from nestling.memory.objective import L2
from nestling.memory.rule import Keep, LearningRule
from nestling.memory.state import GatedTokens, MemoryState, Tokens
from nestling.shapes import Tensor

HALF = (torch.float16, torch.bfloat16)


def check(
    memory, rule: LearningRule, state: MemoryState, tokens: Tokens, chunk_size: int
) -> tuple[MemoryState, GatedTokens]:
    """State in float32 or float64, and tokens in its dtype with every gate present.

    Raises:
        ValueError: naming the argument.
    """
    check_chunk_size(chunk_size)
    _check_axes(tokens)
    B, H, T, K = tokens.k.shape
    expected = memory.shapes(K, tokens.v.shape[-1])
    state = _check_state(state, expected, (B, H), rule)
    _check_clock(state, chunk_size)
    dtype = next(iter(state.weights.values())).dtype
    device = next(iter(state.weights.values())).device
    if tokens.eta is None:
        raise ValueError("eta: a memory that is written needs a step size per token, got None")
    if rule.momentum is not None and tokens.beta is None:
        raise ValueError("beta: rule has Momentum() and needs a factor per token, got None")
    gates = {"eta": tokens.eta, "alpha": tokens.alpha, "beta": tokens.beta}
    if rule.momentum is None:
        gates["beta"] = None
    if not rule.retention.decays:
        gates["alpha"] = None
    ones = torch.ones(B, H, T, dtype=dtype, device=device)
    fed = {
        name: ones if gate is None else _cast(name, gate, (B, H, T), dtype, device)
        for name, gate in gates.items()
    }
    q = None if tokens.q is None else _cast("q", tokens.q, (B, H, T, K), dtype, device)
    mask = tokens.mask
    if mask is None:
        mask = torch.ones(B, T, dtype=torch.bool, device=device)
    return state, GatedTokens(
        k=_cast("k", tokens.k, (B, H, T, K), dtype, device),
        v=_cast("v", tokens.v, (B, H, T, tokens.v.shape[-1]), dtype, device),
        q=q,
        mask=mask,
        **fed,
    )


def check_softmax(rule: LearningRule, state: MemoryState, tokens: Tokens, chunk_size: int) -> None:
    """Softmax attention solves one problem only: the L2 objective, keeping every pair.

    Raises:
        ValueError: naming the argument.
    """
    check_chunk_size(chunk_size)
    _check_axes(tokens)
    plain = LearningRule(objective=L2(), retention=Keep())
    if rule != plain:
        raise ValueError(f"rule: SoftmaxMemory is the solution of {plain.name}, got {rule.name}")
    B, H, T, K = tokens.k.shape
    if tokens.q is not None and tokens.q.shape != (B, H, T, K):
        raise ValueError(f"q: expected shape {(B, H, T, K)}, got {tuple(tokens.q.shape)}")
    for name, sizes in (("k", K), ("v", tokens.v.shape[-1])):
        if state.weights and (
            name not in state.weights
            or state.weights[name].dim() != 4
            or state.weights[name].shape[:2] != (B, H)
            or state.weights[name].shape[-1] != sizes
        ):
            raise ValueError(
                f"state.weights[{name!r}]: expected shape ({B}, {H}, S, {sizes}), "
                f"got {_shape(state.weights.get(name))}"
            )


def check_chunk_size(chunk_size: int) -> None:
    """A positive whole number.

    Raises:
        ValueError: if it is not.
    """
    if not isinstance(chunk_size, int) or isinstance(chunk_size, bool) or chunk_size < 1:
        raise ValueError(f"chunk_size: expected a whole number >= 1, got {chunk_size!r}")


def _check_axes(tokens: Tokens) -> None:
    for name in ("k", "v"):
        tensor = getattr(tokens, name)
        if tensor.dim() != 4:
            raise ValueError(f"{name}: expected (B, H, T, size), got shape {tuple(tensor.shape)}")
    B, H, T, _ = tokens.k.shape
    if T < 1 or B < 1:
        raise ValueError(f"k: expected at least one row and one token, got {_shape(tokens.k)}")
    if tokens.v.shape[:3] != (B, H, T):
        raise ValueError(f"v: expected shape ({B}, {H}, {T}, V), got {_shape(tokens.v)}")
    mask = tokens.mask
    if mask is not None and (mask.dtype != torch.bool or mask.shape != (B, T)):
        raise ValueError(
            f"mask: expected bool of shape ({B}, {T}), got {mask.dtype} {_shape(mask)}"
        )


def _check_state(state: MemoryState, expected, rows, rule: LearningRule) -> MemoryState:
    if set(state.weights) != set(expected):
        raise ValueError(f"state.weights: expected {sorted(expected)}, got {sorted(state.weights)}")
    groups = {"weights": state.weights, "anchor": state.anchor, "initial": state.initial}
    if rule.has_momentum_state:
        groups["momentum"] = state.momentum or None
    first = next(iter(state.weights.values()))
    cast = {}
    for group, tensors in groups.items():
        if tensors is None:
            continue
        for name, sizes in expected.items():
            label = f"state.{group}[{name!r}]"
            if name not in tensors:
                raise ValueError(f"{label}: missing")
            if tensors[name].shape != (*rows, *sizes):
                raise ValueError(
                    f"{label}: expected shape {(*rows, *sizes)}, got {_shape(tensors[name])}"
                )
            if not tensors[name].is_floating_point() or tensors[name].dtype != first.dtype:
                raise ValueError(
                    f"{label}: expected floating point {first.dtype}, got {tensors[name].dtype}"
                )
            if tensors[name].device != first.device:
                raise ValueError(
                    f"{label}: expected device {first.device}, got {tensors[name].device}"
                )
        # Inner states are sums of many small steps: half precision would lose them.
        cast[group] = {n: t.float() if t.dtype in HALF else t for n, t in tensors.items()}
    position = state.position
    if position is not None and (position.dtype != torch.long or position.shape != rows[:1]):
        raise ValueError(
            f"state.position: expected int64 of shape {tuple(rows[:1])}, "
            f"got {position.dtype} {_shape(position)}"
        )
    return MemoryState(
        weights=cast["weights"],
        momentum=cast.get("momentum", {}),
        anchor=cast.get("anchor"),
        initial=cast.get("initial"),
        position=position,
    )


def _check_clock(state: MemoryState, chunk_size: int) -> None:
    if state.position is None:
        return
    low, high = int(state.position.min()), int(state.position.max())
    if low < 0 or high >= chunk_size:
        raise ValueError(
            f"state.position: expected 0 to {chunk_size - 1} (chunk_size {chunk_size}), got "
            f"{low if low < 0 else high}; an open chunk must be finished at the size it began with"
        )
    if high > 0 and state.anchor is None:
        raise ValueError(f"state.anchor: needed in an open chunk (position {high}), got None")


def _cast(name: str, tensor: Tensor, shape, dtype: torch.dtype, device: torch.device) -> Tensor:
    if tuple(tensor.shape) != tuple(shape):
        raise ValueError(f"{name}: expected shape {tuple(shape)}, got {_shape(tensor)}")
    if tensor.device != device:
        raise ValueError(f"{name}: expected device {device} (the state's), got {tensor.device}")
    if tensor.dtype in HALF or tensor.dtype == dtype:
        return tensor.to(dtype)
    raise ValueError(
        f"{name}: expected {dtype} (the state's) or half precision, got {tensor.dtype}"
    )


def _shape(tensor: Tensor | None) -> str:
    return "nothing" if tensor is None else str(tuple(tensor.shape))
