"""THE DEFINITION: a memory and its rule as a plain token loop. Slow, and the specification.

For every token t, with all gradients at the anchor (the weights at the chunk's start, NL Eq. 90):

    S_t = beta_t S_{t-1} - eta_t k_t^T e_t                 every matrix with its own key and error
    M_t = retain(M_{t-1}) + S_t                            NL Eq. 88
    y_t = M_t(q_t)                                         read after the write (reading R12)

Every other engine must return the same numbers.
"""

from __future__ import annotations

from functools import partial

import torch

from nestling.engine.carry import Carry, choose, matrix, one_of
from nestling.engine.layout import Segment
from nestling.memory.rule import LearningRule
from nestling.memory.state import GatedTokens
from nestling.shapes import Tensor


def recurrent(
    memory,
    rule: LearningRule,
    carry: Carry,
    segment: Segment,
    tokens: GatedTokens,
    reads: str,
    reader: int | None = None,
) -> tuple[Tensor | None, Carry]:
    """Run the tokens of one segment, one after the other."""
    read = []
    for t in range(tokens.length):
        token = tokens.between(t, t + 1)
        carry = write(memory, rule, carry, token, segment.closing[:, t])
        if token.q is not None:
            weights = one_of(carry.weights if reads == "exact" else carry.anchor, reader)
            read.append(memory.read(token.q, partial(matrix, weights)))
    return torch.cat(read, dim=-2) if read else None, carry


def write(memory, rule: LearningRule, carry: Carry, token: GatedTokens, closing: Tensor) -> Carry:
    """One token's write; rows whose token is padding stay as they are."""
    alpha, beta = token.alpha[..., 0], token.beta[..., 0]
    surprises = memory.surprises(carry.anchor, token.k, token.v, rule)
    weights, momentum = {}, {}
    for index, (name, (key, error, _)) in enumerate(surprises.items()):
        M, k, last = carry.weights[name], key[..., 0, :], index == len(surprises) - 1
        eta = token.eta[..., 0] * (1.0 if last else rule.hidden_step)
        step = -eta[..., None, None] * key.mT @ error
        if rule.has_momentum_state:
            S = beta[..., None, None] * carry.momentum[name] + step
            momentum[name] = choose(token.mask[:, 0], S, carry.momentum[name])
            step = S
        if rule.output_map is not None:
            orthogonal = eta[..., None, None] * rule.output_map(step)
            step = choose(closing, orthogonal, torch.zeros_like(step))
        kept = rule.retention.retain(M, k, eta, alpha, carry.initial[name], index == 0)
        weights[name] = choose(token.mask[:, 0], kept + step, M)
    return carry.moved(weights, momentum)
