"""Hand-written derivatives of the small layers, and what they compute."""

from typing import cast

import pytest
import torch

from nestling.layers import (
    RMSNorm,
    SelfModifyingConfig,
    SelfModifyingTitans,
    ShortConvolution,
)
from nestling.layers.attention import rotate
from nestling.layers.inner import Gate


def test_rms_norm_equals_torch_and_its_gradients():
    x = torch.randn(2, 5, 6, dtype=torch.float64, requires_grad=True)
    norm = RMSNorm(6).double()
    with torch.no_grad():
        norm.weight.normal_()
    expected = torch.nn.functional.rms_norm(x, (6,), norm.weight, eps=norm.eps)
    torch.testing.assert_close(norm(x), expected, rtol=1e-12, atol=1e-12)
    assert torch.autograd.gradcheck(norm, (x,))
    ours = torch.autograd.grad(norm(x).sin().sum(), norm.weight)[0]
    theirs = torch.autograd.grad(expected.sin().sum(), norm.weight)[0]
    torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-12)


def test_convolution_equals_torch_and_goes_on():
    conv = ShortConvolution(3, 4).double()
    x = torch.randn(2, 9, 3, dtype=torch.float64, requires_grad=True)
    y, tail = conv(x, conv.initial_state(2))
    padded = torch.nn.functional.pad(x.mT, (3, 0))
    expected = torch.nn.functional.conv1d(padded, conv.weight.T[:, None], groups=3).mT
    torch.testing.assert_close(y, torch.nn.functional.silu(expected), rtol=1e-12, atol=1e-12)
    assert torch.equal(tail, x[:, -3:])
    first, middle = conv(x[:, :2], conv.initial_state(2))
    second, _ = conv(x[:, 2:], middle)
    torch.testing.assert_close(torch.cat([first, second], 1), y, rtol=1e-12, atol=1e-12)
    assert torch.autograd.gradcheck(lambda z: conv(z, conv.initial_state(2))[0], (x,))
    ours = torch.autograd.grad(y.sin().sum(), conv.weight)[0]
    theirs = torch.autograd.grad(
        torch.nn.functional.silu(expected).sin().sum(), conv.weight
    )[0]  # fmt: skip
    torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-12)


def test_rotation_keeps_norms_and_depends_on_distance_only():
    q, k = torch.randn(1, 1, 1, 8, dtype=torch.float64), torch.randn(1, 1, 1, 8).double()

    def score(i, j):
        return (rotate(q, torch.tensor([[i]]), 1e4) * rotate(k, torch.tensor([[j]]), 1e4)).sum()

    assert rotate(q, torch.tensor([[7]]), 1e4).norm() == pytest.approx(float(q.norm()), rel=1e-12)
    assert float(score(5, 3)) == pytest.approx(float(score(102, 100)), rel=1e-9)
    assert abs(float(score(5, 3) - score(5, 4))) > 1e-3


def test_gates_start_where_they_were_told():
    gate = Gate(2, 4, 0.993)
    assert gate(torch.zeros(1, 2, 3, 4)).detach() == pytest.approx(
        torch.full((1, 2, 3), 0.993), abs=1e-6
    )


@pytest.mark.parametrize("adaptive", [("k", "v", "eta", "alpha", "memory"), ("q", "memory")])
def test_writes_off_reads_the_state_and_returns_it(adaptive):
    torch.manual_seed(0)
    layer = SelfModifyingTitans(8, 2, SelfModifyingConfig(adaptive=adaptive, conv_size=0))
    x = torch.randn(2, 7, 8)
    _, state = layer(x)
    y, after = layer(x, state, writes="off")
    assert after is state
    # token by token the same: nothing that is read moved on the way
    alone = torch.cat([layer(x[:, t : t + 1], state, writes="off")[0] for t in range(7)], dim=1)
    torch.testing.assert_close(y, alone)
    # and different from what fresh memories answer
    assert not torch.allclose(y, layer(x, None, writes="off")[0], atol=1e-3)
    # a write of step size 0 and decay 1 is no write
    with torch.no_grad():
        for name, bias in (("eta", -1e4), ("alpha", 1e4)):
            gate = cast(Gate, layer.gates[name])
            gate.bias.fill_(bias)
            gate.read_out.zero_()
    torch.testing.assert_close(layer(x, state)[0], layer(x, state, writes="off")[0])
