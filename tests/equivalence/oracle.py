"""The definition in NumPy: one row, one head, one token at a time, every derivative by hand.

Written from the paper and the readings, not from the engines. For token t, with every gradient
taken at the anchor (the weights at the chunk's start) and rows as tokens (reading R1):

    p = M_anchor(k_t)                   e = d objective / d p
    G_i = x_i^T g_i                     x_i: input of matrix i, g_i: gradient of its output
    S_t = beta_t S_{t-1} - eta_t G_t    (S_t = -eta_t G_t without momentum)
    M_t = retain(M_{t-1}) + S_t         y_t = M_t(q_t)

A masked token does not exist: each row is run on its unmasked tokens only.

Everything is analytic in its inputs up to first order, so a complex argument ``x + i h d`` with
``h = 1e-40`` gives the derivative along ``d`` as ``Im / h``, exact to rounding: see
:func:`derivative_along`. Of the package it uses the names of the rules only, none of its formulas.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

EPS = 1e-12
STEP = 1e-40
Array = np.ndarray
_erf = np.vectorize(math.erf, otypes=[np.float64])


@dataclass
class Result:
    """Reads (B, H, T, V), zero where masked, and what is left in the state."""

    reads: Array
    weights: dict[str, Array]
    momentum: dict[str, Array]
    position: Array

    def flat(self) -> dict[str, Array]:
        """All of it by name."""
        named = {"reads": self.reads}
        named |= {f"weights.{name}": value for name, value in self.weights.items()}
        return named | {f"momentum.{name}": value for name, value in self.momentum.items()}


# ---------------------------------------------------------------- functions and their slopes


def bell(z: Array) -> Array:
    """The standard normal density."""
    return np.exp(-0.5 * z * z) / math.sqrt(2 * math.pi)


def normal_cdf(z: Array) -> Array:
    """Its integral; complex ``z = x + i h`` to first order in h, NumPy having no complex erf."""
    real = 0.5 * (1 + _erf(z.real / math.sqrt(2)))
    return real + 1j * z.imag * bell(z.real) if np.iscomplexobj(z) else real


def gelu(z: Array) -> Array:
    """The exact GELU."""
    return z * normal_cdf(z)


def gelu_slope(z: Array) -> Array:
    """Its derivative."""
    return normal_cdf(z) + z * bell(z)


def length(x: Array) -> Array:
    """Euclidean norm over all entries, without conjugation, at least EPS."""
    norm = np.sqrt((x * x).sum())
    return norm if norm.real > EPS else EPS


def magnitude(x: Array) -> Array:
    """|x| element by element, analytic: -x where the real part is negative."""
    return np.where(x.real < 0, -x, x)


def objective_gradient(objective, p: Array, v: Array) -> Array:
    """The derivative of the objective with respect to the prediction p."""
    e = p - v
    sign = np.sign(e.real)
    kind = type(objective).__name__
    if kind == "DotProduct":  # -<p, v>
        return -v
    if kind == "L2":  # 1/2 |p - v|^2
        return e
    if kind == "Lp":  # 1/p sum |p - v|^p
        return sign * magnitude(e) ** (objective.p - 1)
    if kind == "Huber":  # 1/2 e^2 inside delta, delta (|e| - delta/2) outside
        return np.where(magnitude(e).real < objective.delta, e, objective.delta * sign)
    raise AssertionError(kind)


def newton_schulz(S: Array, steps: int) -> Array:
    """Muon's quintic iteration on S / |S|, on whichever side is shorter."""
    X = S / (length(S) if length(S).real > 1e-7 else 1e-7)
    if X.shape[0] > X.shape[1]:
        return _quintic(X.T, steps).T
    return _quintic(X, steps)


def _quintic(X: Array, steps: int) -> Array:
    for _ in range(steps):
        A = X @ X.T
        X = 3.4445 * X - 4.7750 * A @ X + 2.0315 * A @ A @ X
    return X


# ---------------------------------------------------------------- one memory: a list of matrices


def read(W: list[Array], x: Array, residual: bool) -> Array:
    """M(x): a linear map, or x + normalise(gelu(...normalise(gelu(x W_1))...)) W_last."""
    hidden = x
    for M in W[:-1]:
        g = gelu(hidden @ M)
        hidden = g / length(g)
    return x + hidden @ W[-1] if residual else hidden @ W[-1]


def gradients(
    W: list[Array], k: Array, target: Array, objective, residual: bool
) -> tuple[list[Array], list[Array]]:
    """For every matrix its input x_i, and the gradient g_i of the objective at its output."""
    inputs, outputs, hidden = [], [], k
    for M in W[:-1]:
        inputs.append(hidden)
        z = hidden @ M
        outputs.append(z)
        hidden = gelu(z) / length(gelu(z))
    inputs.append(hidden)
    p = k + hidden @ W[-1] if residual else hidden @ W[-1]

    g = objective_gradient(objective, p, target)
    surprises = [g]
    for i in reversed(range(len(W) - 1)):
        back = W[i + 1] @ g  # through the next matrix, to the normalised hidden vector h
        h, size = inputs[i + 1], length(gelu(outputs[i]))
        back = (back - h * (h * back).sum()) / size  # through h = a / |a|
        g = back * gelu_slope(outputs[i])  # through a = gelu(z)
        surprises.insert(0, g)
    return inputs, surprises


# ---------------------------------------------------------------- the rule


def decay(retention, M: Array, alpha, initial: Array) -> Array:
    """What fades, whatever the key."""
    kind = type(retention).__name__
    if kind == "Keep":
        return M
    if kind == "Decay":
        return alpha * M
    if kind == "DecayToInitial":
        return alpha * M + (1 - alpha) * initial
    raise AssertionError(kind)


def retain(retention, i: int, M: Array, x: Array, eta, alpha, initial: Array) -> Array:
    """What matrix i keeps of M when a token with input x is written."""
    if type(retention).__name__ != "Delta":
        return decay(retention, M, alpha, initial)
    kept = decay(retention.decay, M, alpha, initial)
    if i > 0 and retention.matrices == "first":
        return kept
    return kept - eta * np.outer(x, x @ M)


def run_one_head(rule, W, S, initial, tokens: dict[str, Array], chunk_size: int, residual: bool):
    """The token loop; k, v, q are (T, size), eta, alpha, beta are (T,). Returns reads, W, S."""
    reads, anchor = [], W
    count = len(tokens["k"])
    for t in range(count):
        k, v, q, eta, alpha, beta = (tokens[n][t] for n in ("k", "v", "q", "eta", "alpha", "beta"))
        starts, ends = t % chunk_size == 0, (t + 1) % chunk_size == 0
        if starts:
            anchor = W
            if rule.momentum is None:
                S = [np.zeros_like(M) for M in W]

        target = v if rule.values == "given" else read(anchor, v, residual)
        if rule.values == "self_unit":
            target = target / length(target)
        inputs, surprises = gradients(anchor, k, target, rule.objective, residual)
        W_new, S_new = [], []
        for i in range(len(W)):
            own = eta if i == len(W) - 1 else rule.hidden_step * eta
            step = -own * np.outer(inputs[i], surprises[i])
            if rule.momentum is not None:
                step = beta * S[i] + step
            elif rule.output_map is not None:  # the chunk's steps add up until they are mapped
                step = S[i] + step
            S_new.append(step)
            kept = retain(rule.retention, i, W[i], inputs[i], own, alpha, initial[i])
            if rule.output_map is None:
                W_new.append(kept + step)
            elif ends:
                W_new.append(kept + own * newton_schulz(step, rule.output_map.steps))
            else:
                W_new.append(kept)
        W, S = W_new, S_new
        reads.append(read(W, q, residual))
    return reads, W, S


def run(rule, weights, tokens, chunk_size, momentum=None, initial=None) -> Result:
    """Every row and head of a problem given as arrays: weights (B, H, in, out), k (B, H, T, K)."""
    names = list(weights)
    residual = names != ["w"]
    B, H, T, _ = tokens["k"].shape
    V = weights[names[-1]].shape[-1]
    every = list(weights.values()) + [t for n, t in tokens.items() if n != "mask"]
    every += list((momentum or {}).values()) + list((initial or {}).values())
    kind = np.result_type(*every)
    reads = np.zeros((B, H, T, V), kind)
    left = {n: np.zeros(weights[n].shape, kind) for n in names}
    speed = {n: np.zeros(weights[n].shape, kind) for n in names}
    mask = tokens.get("mask")
    position = np.zeros(B, int)
    for b in range(B):
        there = np.flatnonzero(mask[b]) if mask is not None else np.arange(T)
        position[b] = len(there) % chunk_size
        for h in range(H):
            W = [weights[n][b, h] for n in names]
            S = [momentum[n][b, h] if momentum else np.zeros_like(weights[n][b, h]) for n in names]
            start = [initial[n][b, h] for n in names] if initial else W
            mine = {n: x[b, h][there] for n, x in tokens.items() if n != "mask"}
            y, W, S = run_one_head(rule, W, S, start, mine, chunk_size, residual)
            for slot, value in zip(there, y, strict=True):
                reads[b, h, slot] = value
            for n, M, s in zip(names, W, S, strict=True):
                left[n][b, h], speed[n][b, h] = M, s
    return Result(reads, left, speed if rule.momentum is not None else {}, position)


def derivative_along(problem: dict, direction: dict) -> dict[str, Array]:
    """How every result moves when the inputs move along ``direction`` (same nesting as
    ``problem``, absent entries do not move): a complex step, exact to rounding.
    """
    moved = {}
    for group, value in problem.items():
        if isinstance(value, dict) and group in direction:
            along = direction[group]
            value = {  # noqa: PLW2901
                n: x + 1j * STEP * along[n] if n in along else x for n, x in value.items()
            }
        moved[group] = value
    return {name: value.imag / STEP for name, value in run(**moved).flat().items()}
