"""The blocked inverse against float64 substitution, and the hand-written derivatives."""

import pytest
import torch

from nestling.engine.erase import erase_and_write
from nestling.engine.triangular import inverse_unit_lower, solve_unit_lower


@pytest.mark.parametrize("size", [1, 3, 4, 5, 16, 31, 64])
def test_inverse_of_any_size(size):
    generator = torch.Generator().manual_seed(size)
    L = torch.randn(2, 3, size, size, generator=generator, dtype=torch.float64).tril(-1) * 0.5
    eye = torch.eye(size, dtype=torch.float64)
    torch.testing.assert_close(
        inverse_unit_lower(L) @ (eye + L), eye.expand_as(L), rtol=0, atol=1e-9
    )


def test_repeated_keys_at_the_largest_step_stay_accurate_in_float32():
    generator = torch.Generator().manual_seed(0)
    k = torch.randn(8, 1, 16, generator=generator)
    k = k + 0.01 * torch.randn(8, 64, 16, generator=generator)
    k = torch.nn.functional.normalize(k, dim=-1)
    L, R = (2 * k @ k.mT).tril(-1), torch.randn(8, 64, 32, generator=generator)
    exact = torch.linalg.solve_triangular(
        L.double() + torch.eye(64), R.double(), upper=False, unitriangular=True
    )
    error = (solve_unit_lower(L, R).double() - exact).abs().max() / exact.abs().max()
    assert error < 1e-4


def test_gradients_of_the_solve():
    L = torch.randn(2, 5, 5, dtype=torch.float64, requires_grad=True)
    R = torch.randn(2, 5, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda L, R: solve_unit_lower(L.tril(-1), R), (L, R))


def test_gradients_of_the_write_with_shared_keys():
    def draw(*shape):
        return torch.randn(*shape, dtype=torch.float64, requires_grad=True)

    B, N, C, K, V = 2, 3, 5, 4, 2
    inputs = (draw(B, 1, C, K), draw(B, N, C, V), draw(B, N, C, V), draw(B, N, K, V),
              draw(B, N, C, 1), draw(B, 1, C, 1), draw(B, N, C, C), draw(B, 1, C, 1),
              draw(B, 1, 1, 1))  # fmt: skip

    def write(key, error, held, M, step, recall, erase, share, kept):
        return erase_and_write(key, error, held, M, step=step, recall=recall,
                               erase=erase.tril(-1), share=share, kept=kept)  # fmt: skip

    assert torch.autograd.gradcheck(write, inputs)
