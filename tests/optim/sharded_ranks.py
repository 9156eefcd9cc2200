"""One of two ranks that train a sharded model; run as a script.

python sharded_ranks.py RANK FOLDER

Writes for every optimizer what its parameters and its level table are in the end.
"""

from __future__ import annotations

import copy
import json
import sys
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist
from optimizer_cases import CASES, Small, batch
from torch import nn
from torch.distributed.fsdp import fully_shard

from nestling.optim import memories

RANKS, STEPS, ROWS = 2, 6, 16
SHARDED = ("m3", "m3_updates", "adamuon", "delta", "dmgd", "second_moment", "orthogonal", "dgd")
FINE = ("dgd", "m3")
"""Those that are tried with every layer sharded by itself too."""


class Uneven(Small):
    """Rows that ranks cannot share evenly, fewer of them than ranks, an output changed in place."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__(seed)
        self.odd = nn.Linear(8, 7)
        self.single = nn.Linear(7, 1)
        self.square = nn.Parameter(0.5 * torch.randn(6, 6))  # of the shape of a deep memory

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = self.third(self.second(self.first(x).tanh()).relu())
        parts = h.unflatten(-1, (2, 1, 4)) @ self.heads
        more = self.single(self.odd(h).relu_()) + (h[..., :6] @ self.square).mean(-1, keepdim=True)
        return self.out(self.norm(h + parts.flatten(-3))) + more


def train(model: nn.Module, name: str, rows: slice) -> torch.optim.Optimizer:
    """Some steps, past one period of M3, on a part of every batch."""
    optimizer = CASES[name].make(model, lr=0.02, weight_decay=0.1)
    for step in range(STEPS):
        x, y = batch(step, torch.float64, ROWS)
        optimizer.zero_grad()
        (model(x[rows]) - y[rows]).square().mean().backward()
        optimizer.step()
    return optimizer


def table(optimizer: torch.optim.Optimizer) -> list:
    return [[m.component.name, m.component.rule, m.component.level.period, m.component.parameters]
            for m in memories(optimizer)]  # fmt: skip


def sharded(*, fine: bool) -> Uneven:
    model = Uneven().double()
    if fine:
        for layer in (model.first, model.second, model.third, model.odd, model.single):
            fully_shard(layer)
    fully_shard(model)
    return model


def main(rank: int, folder: Path) -> None:
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=RANKS,
        timeout=timedelta(seconds=60),
    )  # fmt: skip
    found, tables = {}, {}
    size = ROWS // RANKS
    for name in SHARDED:
        for fine in (False, True) if name in FINE else (False,):
            model = sharded(fine=fine)
            optimizer = train(model, name, slice(rank * size, (rank + 1) * size))
            key = f"{name}, each layer" if fine else name
            found[key] = {n: p.full_tensor().detach() for n, p in model.named_parameters()}
            tables[key] = table(optimizer)
            if not fine:
                found[f"{name}, resumed"] = resumed(name, model, optimizer, rank, size)
    broken = Uneven().double()
    fully_shard(broken)
    optimizer = CASES["m3"].make(broken)
    x, y = batch(0, torch.float64, ROWS)
    (broken(x) - y).square().mean().backward()
    if rank == 1:
        broken.first.weight.grad.to_local()[0, 0] = float("nan")
    try:
        optimizer.step()
    except ValueError as error:
        tables["nan"] = str(error)
    (folder / f"{rank}.json").write_text(json.dumps(tables))
    torch.save(found, folder / f"{rank}.pt")
    dist.barrier()
    dist.destroy_process_group()


def resumed(name: str, model: Uneven, optimizer, rank: int, size: int) -> dict:
    """Two more steps of a second model and optimizer, from the first ones' states."""
    again = sharded(fine=False)
    again.load_state_dict(model.state_dict())
    twin = CASES[name].make(again, lr=0.02, weight_decay=0.1)
    twin.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    x, y = batch(STEPS, torch.float64, ROWS)
    rows = slice(rank * size, (rank + 1) * size)
    for _ in range(2):
        twin.zero_grad()
        (again(x[rows]) - y[rows]).square().mean().backward()
        twin.step()
    return {n: p.full_tensor().detach() for n, p in again.named_parameters()}


if __name__ == "__main__":
    main(int(sys.argv[1]), Path(sys.argv[2]))
