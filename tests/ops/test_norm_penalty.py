"""The derivative against autograd's, and what the contract does not ask of this op."""

import math

import pytest
import torch

from pyfastgan.ops import norm_penalty
from pyfastgan.ops.norm_penalty import KINDS


@pytest.mark.parametrize("kind", KINDS)
def test_the_slope_is_the_derivative_of_the_penalty(kind: str) -> None:
    torch.manual_seed(0)
    g = torch.randn(5, 3, 4, dtype=torch.float64) * torch.tensor([0.01, 0.2, 0.3, 1, 20]).view(
        -1, 1, 1
    )
    g.requires_grad_(True)
    norm = g.flatten(1).norm(dim=1)
    formula = {
        "squared": norm.square() / 2,
        "two-sided": (norm - 1).square(),
        "one-sided": (norm - 1).clamp(min=0).square(),
    }[kind]
    (expected,) = torch.autograd.grad(3 * formula.sum(), g)
    value, length, slope = norm_penalty(g.detach(), kind, 3.0)
    torch.testing.assert_close(value, 3 * formula.detach(), rtol=1e-13, atol=0)
    torch.testing.assert_close(length, norm.detach(), rtol=1e-13, atol=0)
    torch.testing.assert_close(slope, expected, rtol=1e-12, atol=0)


@pytest.mark.parametrize("kind", KINDS)
def test_zero_gradients_have_slope_zero_and_nan_stays(kind: str) -> None:
    g = torch.zeros(3, 40)
    g[1, 7] = math.nan
    g[2] = 1.0
    value, norm, slope = norm_penalty(g, kind)
    assert value[0] == (1 if kind == "two-sided" else 0)
    assert torch.equal(slope[0], g[0])
    assert value[1].isnan()
    assert norm[1].isnan()
    assert slope[1].isnan().any()
    assert slope[2].isfinite().all()


def test_a_sample_does_not_depend_on_its_batch() -> None:
    g = 0.02 * torch.randn(9, 5000)
    whole = norm_penalty(g, "two-sided")
    for i in (0, 8):
        assert all(
            torch.equal(a[i : i + 1], b)
            for a, b in zip(whole, norm_penalty(g[i : i + 1], "two-sided"), strict=True)
        )


def test_half_gradients_have_float32_norms() -> None:
    g = torch.full((2, 3, 64, 64), 20.0, dtype=torch.float16)  # |g|^2 = 4.9e6: not in float16
    value, norm, slope = norm_penalty(g, "squared")
    assert (value.dtype, norm.dtype, slope.dtype) == (torch.float32, torch.float32, torch.float16)
    assert float(value[0]) == 0.5 * 400 * 3 * 64 * 64
    assert torch.equal(slope, g)
