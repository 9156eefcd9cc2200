"""The same definition a third time, in torch with no derivative written by hand.

The inner gradients come from autograd on the objective, the outer ones from autograd through
them. Its forward must equal the NumPy loop, its gradients the loop's complex step
(``test_oracle.py``); then it judges every gradient of the engines.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.nn import functional


def forward(W: list[Tensor], x: Tensor, residual: bool) -> tuple[list[Tensor], Tensor]:
    """The input of every matrix, and M(x), for W (..., in, out) and x (..., in)."""
    inputs, hidden = [], x
    for M in W[:-1]:
        inputs.append(hidden)
        g = functional.gelu(torch.einsum("...i,...io->...o", hidden, M))
        hidden = functional.normalize(g, dim=-1, eps=1e-12)
    inputs.append(hidden)
    p = torch.einsum("...i,...io->...o", hidden, W[-1])
    return inputs, (x + p if residual else p)


def loss(objective, p: Tensor, v: Tensor) -> Tensor:
    """The objective summed over everything."""
    kind = type(objective).__name__
    if kind == "DotProduct":
        return -(p * v).sum()
    if kind == "L2":
        return 0.5 * functional.mse_loss(p, v, reduction="sum")
    if kind == "Lp":
        return (p - v).abs().pow(objective.p).sum() / objective.p
    if kind == "Huber":
        return functional.huber_loss(p, v, delta=objective.delta, reduction="sum")
    raise AssertionError(kind)


def inner_gradients(rule, W, k: Tensor, v: Tensor, residual: bool):
    """Per token of a chunk, with k (H, C, K): every matrix's input and its gradient at W."""
    count = k.shape[1]
    anchor = [M[:, None].expand(-1, count, -1, -1) for M in W]
    target = v if rule.values == "given" else forward(anchor, v, residual)[1]
    if rule.values == "self_unit":
        target = functional.normalize(target, dim=-1)
    copies = [M.clone() for M in anchor]  # so that the target is a constant of the inner problem
    _, p = forward(copies, k, residual)
    found = torch.autograd.grad(loss(rule.objective, p, target), copies, create_graph=True)
    return forward(anchor, k, residual)[0], found


def faded(retention, M: Tensor, alpha: Tensor, initial: Tensor) -> Tensor:
    """Decay alone; alpha (H, 1, 1)."""
    kind = type(retention).__name__
    if kind == "Delta":
        return faded(retention.decay, M, alpha, initial)
    return {
        "Keep": lambda: M,
        "Decay": lambda: alpha * M,
        "DecayToInitial": lambda: initial + alpha * (M - initial),
    }[kind]()


def polar(S: Tensor, steps: int) -> Tensor:
    """Newton-Schulz with Muon's coefficients."""
    flip = S.shape[-2] > S.shape[-1]
    X = S.mT if flip else S
    X = X / X.square().sum((-2, -1), keepdim=True).sqrt().clamp(min=1e-7)
    eye = torch.eye(X.shape[-2], dtype=X.dtype)
    for _ in range(steps):
        A = X @ X.mT
        X = (3.4445 * eye - 4.7750 * A + 2.0315 * A @ A) @ X
    return X.mT if flip else X


def run_row(rule, W, S, initial, tokens: dict[str, Tensor], chunk_size: int, residual: bool):
    """All heads of one row: k (H, T, K), eta (H, T), weights (H, in, out)."""
    count, reads, matrices = tokens["k"].shape[1], [], range(len(W))
    erases = [
        type(rule.retention).__name__ == "Delta" and (i == 0 or rule.retention.matrices == "every")
        for i in matrices
    ]
    for start in range(0, count, chunk_size):
        chunk = slice(start, min(start + chunk_size, count))
        inputs, G = inner_gradients(rule, W, tokens["k"][:, chunk], tokens["v"][:, chunk], residual)
        if rule.momentum is None:
            S = [torch.zeros_like(M) for M in W]
        for t in range(chunk.stop - start):
            eta, alpha, beta = (
                tokens[name][:, start + t, None, None] for name in ("eta", "alpha", "beta")
            )
            carried = beta if rule.momentum is not None else float(rule.output_map is not None)
            own = [eta * (1.0 if i == len(W) - 1 else rule.hidden_step) for i in matrices]
            S = [carried * S[i] - own[i] * G[i][:, t] for i in matrices]
            kept = [faded(rule.retention, W[i], alpha, initial[i]) for i in matrices]
            for i in matrices:
                if erases[i]:
                    x = inputs[i][:, t]
                    projector = x[:, :, None] * x[:, None, :]
                    kept[i] = kept[i] - own[i] * projector @ W[i]
            if rule.output_map is None:
                W = [a + b for a, b in zip(kept, S, strict=True)]
            elif t + 1 == chunk_size:
                steps = rule.output_map.steps
                W = [kept[i] + own[i] * polar(S[i], steps) for i in matrices]
            else:
                W = kept
            reads.append(forward(W, tokens["q"][:, start + t], residual)[1])
    return reads, W, S


def run(rule, weights, tokens, chunk_size, momentum=None, initial=None) -> dict[str, Tensor]:
    """Reads (B, H, T, V), zero where masked, and the state left behind, by name."""
    names = list(weights)
    residual = names != ["w"]
    mask = tokens.get("mask")
    reads: list[Tensor] = []
    left: dict[str, list[Tensor]] = {f"weights.{n}": [] for n in names}
    if rule.momentum is not None:
        left |= {f"momentum.{n}": [] for n in names}
    batch, _, count, _ = tokens["k"].shape
    for b in range(batch):
        there = torch.arange(count) if mask is None else mask[b].nonzero()[:, 0]
        mine = {n: x[b][:, there] for n, x in tokens.items() if n != "mask"}
        W = [weights[n][b] for n in names]
        S = [momentum[n][b] if momentum else torch.zeros_like(weights[n][b]) for n in names]
        start = [initial[n][b] for n in names] if initial else W
        y, W, S = run_row(rule, W, S, start, mine, chunk_size, residual)
        slots = {int(slot): value for slot, value in zip(there, y, strict=True)}
        blank = torch.zeros_like(W[-1][:, 0, :])
        reads.append(torch.stack([slots.get(t, blank) for t in range(count)], 1))
        for n, M, step in zip(names, W, S, strict=True):
            left[f"weights.{n}"].append(M)
            if rule.momentum is not None:
                left[f"momentum.{n}"].append(step)
    return {"reads": torch.stack(reads)} | {n: torch.stack(x) for n, x in left.items()}


def gradients_of(results: Mapping[str, Tensor], cotangents, leaves) -> dict[str, Tensor]:
    """The gradient of sum(result * cotangent) at every leaf, zero where it does not reach."""
    total = sum((results[name] * cotangents[name]).sum() for name in results)
    found = torch.autograd.grad(total, list(leaves.values()), allow_unused=True)
    return {
        name: torch.zeros_like(leaf) if grad is None else grad
        for (name, leaf), grad in zip(leaves.items(), found, strict=True)
    }
