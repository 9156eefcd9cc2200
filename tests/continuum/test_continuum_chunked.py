"""The chunked form against the token loop: outputs, end state and every gradient, in float64."""

import pytest
import torch
from chains import FOUR, RULES, SOURCES, THREE, WIDTH, both, memory, random_state

from nestling.continuum import Adam, DeltaGradientDescent, HeavyBall
from nestling.continuum.config import VARIANTS


def close(found, rtol=1e-9, atol=1e-10):
    (y, end, grads), (y2, end2, grads2) = found
    torch.testing.assert_close(y2, y, rtol=rtol, atol=atol)
    assert end.keys() == end2.keys()
    for path, tensor in end.items():
        torch.testing.assert_close(end2[path], tensor, rtol=rtol, atol=atol, msg=path)
    for name, grad in grads.items():
        scale = float(grad.abs().max())
        torch.testing.assert_close(
            grads2[name], grad, rtol=1e-7, atol=1e-10 * (1 + scale), msg=lambda m, n=name: n + m
        )


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("periods", [THREE, FOUR], ids=str)
def test_equals_the_token_loop(variant, source, rule, periods):
    made = memory(variant, periods, [RULES[rule]], SOURCES[source])
    x = torch.randn(2, 17, WIDTH, dtype=torch.float64, requires_grad=True)
    close(both(made, x, made.initial_state(2), errors=source == "given"))


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("errors", [False, True], ids=["local", "given"])
def test_mixed_rules_rows_out_of_step_padding_and_a_used_state(variant, errors):
    made = memory(variant, FOUR, [DeltaGradientDescent(), HeavyBall(0.5), Adam(eps=1e-3),
                                  RULES["sgd"]])  # fmt: skip
    state = random_state(made, 4)
    x = torch.randn(4, 15, WIDTH, dtype=torch.float64, requires_grad=True)
    close(both(made, x, state, torch.tensor([15, 3, 0, 11]), errors=errors))
