"""Two ranks that hold a part of every parameter move as one process that holds all (FSDP2)."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from sharded_ranks import FINE, RANKS, ROWS, SHARDED, STEPS, Uneven, batch, table, train

pytestmark = pytest.mark.slow
HERE = Path(__file__).parent


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    """What both ranks found: parameters and level tables by optimizer."""
    folder = tmp_path_factory.mktemp("ranks")
    running = [
        subprocess.Popen(
            [sys.executable, HERE / "sharded_ranks.py", str(rank), folder],
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=HERE,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )
        for rank in range(RANKS)
    ]  # fmt: skip
    try:
        said = [process.communicate(timeout=180)[0] for process in running]
    finally:
        for process in running:
            process.kill()
    for process, text in zip(running, said, strict=True):
        assert process.returncode == 0, text[-3000:]
    return [
        (torch.load(folder / f"{rank}.pt"), json.loads((folder / f"{rank}.json").read_text()))
        for rank in range(RANKS)
    ]


@pytest.mark.parametrize("name", [*SHARDED, *(f"{name}, each layer" for name in FINE)])
def test_two_ranks_are_one_process(ranks, name):
    model, kind = Uneven().double(), name.split(",")[0]
    optimizer = train(model, kind, slice(None))
    for found, tables in ranks:
        assert tables[name] == table(optimizer)
        for n, p in model.named_parameters():
            torch.testing.assert_close(found[name][n], p.detach(), rtol=1e-8, atol=1e-10, msg=n)
    if name not in SHARDED:
        return
    x, y = batch(STEPS, torch.float64, ROWS)
    for _ in range(2):
        optimizer.zero_grad()
        (model(x) - y).square().mean().backward()
        optimizer.step()
    for found, _ in ranks:
        for n, p in model.named_parameters():
            ours = found[f"{name}, resumed"][n]
            torch.testing.assert_close(ours, p.detach(), rtol=1e-8, atol=1e-10, msg=n)


def test_a_gradient_that_is_no_number_on_one_rank_stops_all(ranks):
    for _, tables in ranks:
        assert tables["nan"] == "the gradient of first.weight (1 in all) is not finite"
