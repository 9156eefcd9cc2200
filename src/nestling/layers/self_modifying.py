"""Self-modifying Titans: memories that make their own keys, values and step sizes (NL 8.1).

Up to six memories M_k, M_v, M_q, M_eta, M_alpha, M_memory, each a residual MLP whose initial state
is learned by the outer loop through the inner one. For token t (NL Eq. 86-88)

    x_t, u_t, q_t = the token's projections, each behind a short convolution
    k_t = M_k(x_t),  v_t = M_v(u_t),  eta_t, alpha_t read from M_eta(x_t), M_alpha(x_t)
    v^_box = M_box(v_t)                                 every memory generates its own target
    M_box <- M_box (alpha_t I - eta_t k_t k_t^T) - eta_t grad L(M_box; k_t, v^_box)
    y_t = M_memory(q_t),  q_t = x_t W_q

The generators k, v, q, eta, alpha are always read at their chunk's anchor (NL Eq. 90), the memory
after the token's own write. Memories that are not adaptive are ordinary projections: with only
``memory`` adaptive the layer is Titans, with a linear memory DeltaNet or linear attention.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from functools import partial
from typing import cast

import torch
import torch.nn.functional as F
from torch import nn

from nestling.engine import Layout, plan, run, scan
from nestling.engine.carry import Carry, matrix, one_of
from nestling.layers.conv import ShortConvolution
from nestling.layers.generate import generate
from nestling.layers.inner import (
    Gate,
    initial_memory,
    initial_weights,
    moved,
    stacked,
    unstacked,
)
from nestling.layers.norm import RMSNorm
from nestling.layers.self_modifying_config import (
    GENERATORS,
    PATHS,
    Generated,
    SelfModifyingConfig,
    SelfModifyingState,
    Writes,
)
from nestling.levels import Component, Level, Transfer, path, weights_of
from nestling.memory import LinearMemory, MemoryState, MLPMemory, Tokens
from nestling.memory.unit import unit
from nestling.shapes import Float, Tensor


class SelfModifyingTitans(nn.Module):
    """A sequence layer whose memories modify themselves, ``(B, T, D) -> (B, T, D)``.

    Args:
        width: D.
        heads: H, a divisor of the width.
        config: memories, rule, chunk sizes; :class:`SelfModifyingConfig`.

    Raises:
        ValueError: if ``heads`` does not divide ``width``.

    >>> layer = SelfModifyingTitans(8, 2)
    >>> y, state = layer(torch.randn(1, 5, 8))
    >>> y.shape, int(state.memory.position)
    (torch.Size([1, 5, 8]), 5)
    """

    def __init__(self, width: int, heads: int, config: SelfModifyingConfig | None = None):
        super().__init__()
        if heads < 1 or width % heads:
            raise ValueError(f"heads: expected a divisor of width {width}, got {heads}")
        self.width, self.heads, self.head_size = width, heads, width // heads
        self.config = config = config or SelfModifyingConfig()
        hidden = self.head_size if config.hidden is None else config.hidden
        self.memory = MLPMemory(hidden) if hidden else LinearMemory()
        self.generators = tuple(name for name in GENERATORS if name in config.adaptive)

        self.project = nn.ModuleDict({name: _linear(width) for name in PATHS})
        self.conv = nn.ModuleDict(
            {name: ShortConvolution(width, config.conv_size) for name in PATHS}
            if config.conv_size
            else {}
        )
        self.gates = nn.ModuleDict({name: Gate(heads, self.head_size, start) for name, start in
                                    self._gate_starts().items()})  # fmt: skip
        shapes = self.memory.shapes(self.head_size, self.head_size)
        stack = len(self.generators)
        self.initial_memory = initial_weights(shapes, (heads,))
        self.initial_generators = initial_weights(shapes, (stack, heads)) if stack else None
        scale = math.log(config.generator_scale / (1 - config.generator_scale))
        self.scale = nn.Parameter(torch.full((stack, heads), scale)) if stack else None
        self.norm = RMSNorm(self.head_size)
        self.gate, self.out = _linear(width), _linear(width)

    def _gate_starts(self) -> dict[str, float]:
        config = self.config
        starts = {"eta": config.eta_init / config.eta_max}
        if config.rule.retention.decays:
            starts["alpha"] = config.alpha_init
        if config.rule.momentum is not None:
            starts["beta"] = config.beta_init
        return starts

    def initial_state(self, batch: int) -> SelfModifyingState:
        """The learned initial memories, one copy per row; gradients reach them (NL 3.3)."""
        tail = self.out.weight.new_zeros(batch, max(0, self.config.conv_size - 1), self.width)
        return SelfModifyingState(
            tails=(tail,) * len(PATHS),
            generators=None if self.initial_generators is None
            else initial_memory(self.initial_generators, batch, self.config.rule),
            memory=initial_memory(self.initial_memory, batch, self.config.rule),
        )  # fmt: skip

    def forward(
        self,
        x: Float[Tensor, "B T D"],
        state: SelfModifyingState | None = None,
        lengths: Tensor | None = None,
        *,
        writes: Writes = "on",
    ) -> tuple[Float[Tensor, "B T D"], SelfModifyingState]:
        """Write and read T tokens.

        Args:
            x: normalised residual stream.
            state: from the last call, None to start from the learned initial memories.
            lengths: real tokens in each row, the rest is padding on the right; None for all.
            writes: ``"off"``: every token reads the memories as the state holds them, and the
                state comes back as it was.
        """
        state = state or self.initial_state(x.shape[0])
        paths, tails = {}, []
        for name, before in zip(PATHS, state.tails, strict=True):
            path, tail = self.project[name](x), before
            if self.conv:
                path, tail = self.conv[name](path, before, lengths)
            paths[name] = self._heads(path)
            tails.append(tail)
        if writes == "off":
            return self._leave(x, self._read_only(paths["q"], state)), state
        mask = None
        if lengths is not None:
            mask = torch.arange(x.shape[1])[None, :] < lengths.cpu()[:, None]
        y, generators, memory = self._write(paths, state, mask)
        return self._leave(x, y), SelfModifyingState(
            tails=tuple(tails), generators=generators, memory=memory
        )

    def _leave(self, x: Tensor, y: Tensor) -> Tensor:
        """Normalise, gate and mix the heads' reads, ``(B, H, T, K)`` to ``(B, T, D)``."""
        y = self.norm(y.to(x.dtype)).transpose(1, 2).flatten(2)
        return self.out(y * F.silu(self.gate(x)))

    def _read_only(self, q: Tensor, state: SelfModifyingState) -> Tensor:
        if "q" in self.generators:
            assert state.generators is not None
            anchor = state.generators.anchor or state.generators.weights
            own = one_of(anchor, self.generators.index("q"))
            q = self.memory.read(q, partial(matrix, own))
        return self.memory.read(unit(q), partial(matrix, state.memory.weights))

    def _heads(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.heads, self.head_size)).transpose(1, 2).to(self._dtype)

    @property
    def _dtype(self) -> torch.dtype:
        """Of the inner states: float32 also where the outer weights are in half precision."""
        dtype = self.out.weight.dtype
        return torch.float32 if dtype in (torch.float16, torch.bfloat16) else dtype

    def _write(
        self, paths: dict[str, Tensor], state: SelfModifyingState, mask: Tensor | None
    ) -> tuple[Tensor, MemoryState | None, MemoryState]:
        """Write all memories and read ``memory``: one pass where they share their chunks.

        With chunk sizes of their own, the generators run first and hand their tokens on.
        """
        config = self.config
        if state.generators is None:
            tokens = self._sources(paths, plan_for(paths["k"], mask, None, 0))[0](None, 0)
            y, memory = self._remember(tokens, state.memory, mask)
            return y, None, memory
        own = state.generators
        layout = plan_for(paths["k"], mask, own.position, config.chunk_size)
        generators_only, everything = self._sources(paths, layout)
        if config.chunk_size == config.memory_chunk_size:
            _, y, joint = run(
                self.memory, config.rule, stacked(own, state.memory), layout, everything,
                recompute=config.recompute, reader=len(self.generators),
            )  # fmt: skip
            assert y is not None
            return layout.collect(y, axis=-2), *unstacked(joint)
        made, _, generators = run(
            self.memory, config.rule, own, layout, generators_only, recompute=config.recompute
        )
        tokens = _collect(layout, cast(Generated, Generated.join(made)))
        y, memory = self._remember(tokens, state.memory, mask)
        return y, generators, memory

    def _sources(
        self, paths: dict[str, Tensor], layout: Layout
    ) -> tuple[Callable[[Carry | None, int], Generated], Callable[[Carry | None, int], Generated]]:
        """Tokens of a segment: for the generators alone, and with ``memory`` behind them."""
        x, u, q = (layout.spread(paths[name], axis=-2) for name in PATHS)
        valid = layout.valid
        idle = None if valid is None else ~valid.to(x.device)[:, None, :]
        if valid is None:
            valid = torch.ones(x.shape[0], x.shape[-2], dtype=torch.bool)
        whole = {"x": (x, -2), "u": (u, -2), "q": (q, -2), "valid": (valid.to(x.device), -1)}
        whole |= self._static(whole, idle)
        parts = {name: torch.split(value, layout.sizes, dim=axis)
                 for name, (value, axis) in whole.items()}  # fmt: skip
        readings = self._readings(x.dtype)
        scale = None if self.scale is None else self.scale.to(x.dtype).sigmoid()[None, :, :, None]
        full = None if scale is None else F.pad(scale, (0, 0, 0, 0, 0, 1), value=1.0)

        def tokens(carry: Carry | None, index: int, scale: Tensor | None) -> Generated:
            part = {name: pieces[index] for name, pieces in parts.items()}
            if carry is not None:
                part |= self._generate(carry, part, readings, idle is not None)
            eta, (k, v, alpha, beta) = part["eta"], (part[n] for n in ("k", "v", "alpha", "beta"))
            own = eta
            if scale is not None:
                own = eta[:, None] * scale
                k, v, alpha, beta = (value[:, None] for value in (k, v, alpha, beta))
            return Generated(k=k, v=v, eta=own, alpha=alpha, beta=beta, mask=part["valid"],
                             memory_eta=eta, query=part["q"])  # fmt: skip

        def everything(carry: Carry | None, index: int) -> Generated:
            made = tokens(carry, index, full)
            return dataclasses.replace(made, q=made.query)

        return (lambda carry, index: tokens(carry, index, scale)), everything

    def _static(
        self, whole: dict[str, tuple[Tensor, int]], idle: Tensor | None
    ) -> dict[str, tuple[Tensor, int]]:
        """What no memory makes, with its time axis: for all tokens at once."""
        sources = {"k": whole["x"][0], "v": whole["u"][0], "q": whole["q"][0]}
        found = {
            name: (unit(source), -2)
            for name, source in sources.items()
            if name not in self.generators
        }
        x = sources["k"]
        for name in ("eta", "alpha", "beta"):
            if name not in self.gates:
                found[name] = (x.new_ones(x.shape[:-1]), -1)
            elif name not in self.generators:
                found[name] = (self._gated(name, self.gates[name](x), idle), -1)
        return found

    def _gated(self, name: str, gate: Tensor, idle: Tensor | None) -> Tensor:
        """``eta`` in its range; padded tokens neither step nor fade."""
        if name == "eta" and self.config.eta_max != 1.0:
            gate = self.config.eta_max * gate
        return gate if idle is None else gate.masked_fill(idle, 0.0 if name == "eta" else 1.0)

    def _readings(self, dtype: torch.dtype) -> tuple[Tensor, Tensor] | None:
        """Read-out vectors and biases of the generated gates; None if they are read one by one."""
        if not isinstance(self.memory, MLPMemory) or "q" in self.generators:
            return None
        gates = [cast(Gate, self.gates[name]) for name in self.generators if name in self.gates]
        if not gates:
            return self.out.weight.new_zeros(
                0, self.heads, self.head_size, dtype=dtype
            ), self.out.weight.new_zeros(0, self.heads, dtype=dtype)
        return (torch.stack([gate.read_out for gate in gates]).to(dtype),
                torch.stack([gate.bias for gate in gates]).to(dtype))  # fmt: skip

    def _generate(
        self, carry: Carry, part: dict[str, Tensor], readings: tuple[Tensor, Tensor] | None,
        padded: bool,
    ) -> dict[str, Tensor]:  # fmt: skip
        """Read the generators at their anchor."""
        x, names = part["x"], self.generators
        vectors = [name for name in names if name not in self.gates]
        idle = ~part["valid"][:, None, :] if padded else None
        if readings is not None:
            weights = carry.anchor["w_in"], carry.anchor["w_out"]
            made = generate(x, part["u"], weights, readings, vectors=vectors)
        else:
            stack = {name: W.narrow(1, 0, len(names)) for name, W in carry.anchor.items()}
            paths = {"v": part["u"], "q": part["q"]}
            inputs = torch.stack([paths.get(name, x) for name in names], dim=1)
            values = self.memory.read(inputs, partial(matrix, stack)).unbind(1)
            made = [self.gates[name](value) if name in self.gates else unit(value)
                    for name, value in zip(names, values, strict=True)]  # fmt: skip
        return {
            name: self._gated(name, value, idle) if name in self.gates else value
            for name, value in zip(names, made, strict=True)
        }

    def _remember(
        self, tokens: Generated, state: MemoryState, mask: Tensor | None
    ) -> tuple[Tensor, MemoryState]:
        """Write ``memory`` alone with the generated tokens and read it token by token."""
        k, v, alpha, beta = (
            value if self.scale is None else value.squeeze(1)
            for value in (tokens.k, tokens.v, tokens.alpha, tokens.beta)
        )
        y, state = scan(
            self.memory, self.config.rule, state,
            Tokens(k=k, v=v, q=tokens.query, eta=tokens.memory_eta, alpha=alpha, beta=beta,
                   mask=mask),
            chunk_size=self.config.memory_chunk_size, recompute=self.config.recompute,
        )  # fmt: skip
        assert y is not None
        return y, state

    def components(self, name: str = "") -> list[Component]:
        """The memories of this layer and the weights that serve them, for the level table."""
        H, rule = self.heads, self.config.rule
        size = sum(i * o for i, o in self.memory.shapes(self.head_size, self.head_size).values())
        copies, objective = 2 if rule.has_momentum_state else 1, type(rule.objective).__name__
        value = "v_t" if rule.values == "given" else "M(v_t)"
        memory = Component(
            name=path(name, "memory"),
            level=Level(1),
            memory=f"{self.memory.name} x {H} heads",
            rule=rule.name,
            context_flow="tokens, keys and values of its generators",
            parameters=copies * size * H,
            after=tuple(path(name, box) for box in self.generators),
            objective=f"{objective}(M(k_t), {value})",
        )
        made = [
            dataclasses.replace(memory, name=box, context_flow="tokens, own values", after=())
            for box in memory.after
        ]
        start, weights = (
            weights_of(self, name, own=own, memory=what,
                       keep=lambda n, of=own == "initial": n.startswith("initial_") == of)
            for own, what in (("initial", "initial states of its memories"),
                              ("weights", "projections, convolutions, gates"))
        )  # fmt: skip
        inner = [
            one.linked(
                Transfer("initialisation", start.name, one.name),
                *(Transfer("generation", by, one.name) for by in (weights.name, *memory.after)),
                *(Transfer("backpropagation", one.name, w.name) for w in (start, weights)),
            )
            for one in (*made, memory)
        ]
        return [*inner, weights.linked(Transfer("conditioning", memory.name, weights.name)), start]

    def liveness(self, before: SelfModifyingState, after: SelfModifyingState) -> dict[str, float]:
        """``|M_after - M_before| / |M_before|`` of every memory; 0 is dead."""
        found = {"memory": moved(before.memory, after.memory)}
        for index, name in enumerate(self.generators):
            assert before.generators is not None
            assert after.generators is not None
            found[name] = moved(before.generators, after.generators, index)
        return found


def _linear(width: int) -> nn.Linear:
    return nn.Linear(width, width, bias=False)


def plan_for(x: Tensor, mask: Tensor | None, position: Tensor | None, chunk_size: int) -> Layout:
    """The layout of ``(B, H, T, K)`` tokens; chunk size 0 is one segment for all of them."""
    T = x.shape[-2]
    return plan(position, mask, batch=x.shape[0], length=T, chunk_size=chunk_size or T)


def _collect(layout: Layout, tokens: Generated) -> Generated:
    """From the generators' columns back to token order."""
    values = {
        f.name: layout.collect(value, axis=tokens.time_axis(f.name))
        for f in dataclasses.fields(tokens)
        if (value := getattr(tokens, f.name)) is not None
    }
    return Generated(**values)
