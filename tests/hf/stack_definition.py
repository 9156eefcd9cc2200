"""The definition of a stacked decoder: plain loops over one row, weights swapped by hand.

Every chunk is read with ``functional_call`` on the keys and values of the chunks before, and
autograd differentiates the matrices themselves.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch.func import functional_call
from torch.nn.attention import SDPBackend, sdpa_kernel
from transformers import DynamicCache


def definition(net, tokens, *, differentiated: bool = False):
    """``-ln p`` of every token but the first, and what is written by slot: ``(in, out)``.

    For models whose matrices are ``nn.Linear``.
    """
    levels, base, slots = net.config.levels, net.base, net.stack.slots
    zero = {slot: torch.zeros(slot.shape, dtype=torch.float64) for slot in slots}
    written, gathered, moments = dict(zero), dict(zero), {slot: {} for slot in slots}
    clocks, writes = [0] * len(levels), [0] * len(levels)
    cache, nats, at = DynamicCache(), [], 0
    while at < len(tokens) - 1:
        sizes = [level.period - clock for level, clock in zip(levels, clocks, strict=True)]
        whole = min(net.config.chunk, *sizes)
        size = min(whole, len(tokens) - 1 - at)
        ids, targets = tokens[None, at : at + size], tokens[at + 1 : at + 1 + size]
        leaves = {slot: torch.zeros_like(zero[slot]).requires_grad_() for slot in slots}
        losses, cache, traces = _read(base, ids, targets, cache, written, leaves)
        nats.append(losses)
        if size < whole:
            break
        at += size
        paths = [*traces]
        found = torch.autograd.grad(
            losses.sum(), [*leaves.values(), *(traces[path][1] for path in paths)],
            create_graph=differentiated, retain_graph=True,
        )  # fmt: skip
        grads = dict(zip(slots, found, strict=False))
        errors = dict(zip(paths, found[len(slots) :], strict=True))
        for slot in slots:
            regime = levels[slot.level].regime
            G = grads[slot]
            if not regime.error_rule.plain:  # token by token: (e + h dW) / (1 + eta |h|^2)
                G = torch.zeros_like(G)
                columns = torch.cat([torch.arange(*span) for span in slot.columns])
                keys = traces[slot.path][0][0][:, slice(*slot.rows)]
                for h, e in zip(keys, errors[slot.path][0][:, columns], strict=True):
                    f = (e + h @ written[slot]) / (1 + regime.step_size * h @ h)
                    G = G + torch.outer(h, f)
            gathered[slot] = gathered[slot] + G
        for index, level in enumerate(levels):
            clocks[index] += size
            if clocks[index] < level.period:
                continue
            regime, age = level.regime, torch.tensor([writes[index]])
            for slot in (slot for slot in slots if slot.level == index):
                mean = gathered[slot][None] / level.period
                old = moments[slot] or {
                    n: torch.zeros_like(mean) for n in regime.error_rule.moments
                }
                step, moments[slot] = regime.error_rule.direction(mean, old, age)
                written[slot] = regime.share_kept * written[slot] - regime.step_size * step[0]
                gathered[slot] = zero[slot]
            clocks[index], writes[index] = 0, writes[index] + 1
    return torch.cat(nats), written


def _read(base, ids, targets, cache, written, leaves):
    weights = dict(base.named_parameters())
    for slot, dW in written.items():
        placed = torch.zeros(weights[f"{slot.path}.weight"].shape, dtype=torch.float64)
        columns = torch.cat([torch.arange(*span) for span in slot.columns])
        rows = torch.arange(*slot.rows)
        placed = placed.index_put((columns[:, None], rows[None]), (dW + leaves[slot]).mT)
        weights[f"{slot.path}.weight"] = weights[f"{slot.path}.weight"] + placed
    traces = {}

    def leave(path):
        def hook(module, args, out):
            traces[path] = (args[0], out)

        return hook

    hooks = [
        base.get_submodule(path).register_forward_hook(leave(path))
        for path in dict.fromkeys(slot.path for slot in leaves)
    ]
    with sdpa_kernel(SDPBackend.MATH):
        out = functional_call(
            base, weights, (), {"input_ids": ids, "past_key_values": cache, "use_cache": True}
        )
    for hook in hooks:
        hook.remove()
    losses = F.cross_entropy(out.logits[0], targets, reduction="none")
    return losses, out.past_key_values, traces
