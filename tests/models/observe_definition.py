"""What ``observe`` computes, told again: one row, one token at a time, every error by autograd."""

from __future__ import annotations

import dataclasses

import torch
import torch.nn.functional as F

from nestling.continuum import Backprop, ContinuumState
from nestling.continuum.gated import read
from nestling.continuum.recurrent import answer, gathered, periods_end
from nestling.continuum.rule import Surprise
from nestling.layers.block import BlockState


class Reader:
    """A model's state in the middle of a row, and the tokens of the open chunk."""

    def __init__(self, model):
        self.model = model
        self.blocks = list(model.initial_state(1).blocks)
        chain = model.config.continuum.chain
        self.sources = {i: level.regime.source for i, level in enumerate(chain)
                        if level.source_of(Backprop)}  # fmt: skip
        self.limit = min((source.chunk for source in self.sources.values()), default=10**9)
        self.traces, self.losses, self.logits = [], [], None

    def token(self, token):
        """Learn from having predicted it, then read it; its loss."""
        loss = None
        if self.logits is not None:
            loss = F.cross_entropy(self.logits[None], token[None])
            self.losses.append(loss)
            if self._whole():
                self._write()
        x = self.model.embedding(token[None, None])
        found = []
        for index, block in enumerate(self.model.blocks):
            state, chain = self.blocks[index], block.continuum.chain()
            y, mixer = block.mixer(block.norm(x), state.mixer, None)
            levels, own = dict(state.continuum.levels), {}

            def run(i, x, chain=chain, levels=levels, own=own):
                level = chain.levels[i]
                if i in self.sources:
                    own[i] = read(level.norm(x), levels[str(i)].weights)
                    return own[i].m
                m, errors = answer(level, x[0, 0], levels[str(i)].weights, (0, 0))
                levels[str(i)] = gathered(level, None, levels[str(i)], errors)
                return m[None, None]

            x = chain.put_together(x + y, run)
            found.append(own)
            levels = periods_end(chain, levels)
            self.blocks[index] = BlockState(mixer=mixer, continuum=ContinuumState(levels=levels))
        self.traces.append(found)
        self.logits = (self.model.norm(x) @ self.model.embedding.weight.T)[0, 0]
        return loss

    def _whole(self):
        if len(self.losses) == self.limit:
            return True
        levels = self.blocks[0].continuum.levels
        periods = self.model.config.continuum.periods
        return any(
            periods[i] is not None and int(levels[str(i)].clock) + len(self.losses) == periods[i]
            for i in self.sources
        )

    def _write(self):
        places = [(t, b, i) for t, found in enumerate(self.traces)
                  for b, own in enumerate(found) for i in own]  # fmt: skip
        traces = [self.traces[t][b][i] for t, b, i in places]
        errors = torch.autograd.grad(
            torch.stack(self.losses).sum(), [v for trace in traces for v in (trace.z, trace.m)],
            create_graph=True,
        )  # fmt: skip
        for n, ((t, b, i), trace) in enumerate(zip(places, traces, strict=True)):
            made = {"gate_up": Surprise(trace.k, trace.z, errors[2 * n]),
                    "down": Surprise(trace.a, trace.m, errors[2 * n + 1])}  # fmt: skip
            if self.sources[i].order == 1:
                made = {k: Surprise(*(part.detach() for part in s)) for k, s in made.items()}
            chain, state = self.model.blocks[b].continuum.chain(), self.blocks[b]
            levels = dict(state.continuum.levels)
            level = chain.levels[i]
            levels[str(i)] = gathered(level, chain.slower_than(i), levels[str(i)], made)
            last = (t, i) == (len(self.traces) - 1, max(self.sources))
            if last:
                levels = periods_end(chain, levels)
            self.blocks[b] = dataclasses.replace(state, continuum=ContinuumState(levels=levels))
        self.traces, self.losses = [], []
