"""The maximum mean discrepancy against pairs one by one, closed forms, and what memory it takes."""

import math
import resource

import pytest
import torch
from scipy.spatial.distance import cdist

import pyfastgan as pf
from pyfastgan.ops._registry import ops
from pyfastgan.testing import backends

BACKENDS = backends(ops()["mmd"])
pytestmark = pytest.mark.parametrize("backend", BACKENDS)


def normal(*shape, seed=0, dtype=torch.float32):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def explicit(x, y, bandwidths, unbiased):
    """From all pairs' differences, in float64."""

    def values(a, b):
        distance = cdist(a.double(), b.double(), "sqeuclidean")
        return sum(torch.from_numpy(distance / (-2 * s * s)).exp() for s in bandwidths)

    own_x, own_y, cross = values(x, x), values(y, y), values(x, y)
    if not unbiased:
        return own_x.mean() + own_y.mean() - 2 * cross.mean()
    n, m = len(x), len(y)
    own = (own_x.sum() - own_x.trace()) / (n * (n - 1)) + (own_y.sum() - own_y.trace()) / (
        m * (m - 1)
    )
    return own - 2 * cross.mean()


# More rows than two pieces, more columns than a group, an odd width; one vector a set.
@pytest.mark.parametrize(("n", "m", "width"), [(231, 300, 9), (1, 2, 4)])
@pytest.mark.parametrize("unbiased", [True, False])
def test_the_matrix_form_in_float64(backend, n, m, width, unbiased):
    if n == 1 and unbiased:
        n = 2
    x, y = normal(n, width), 0.5 + 1.5 * normal(m, width, seed=1)
    bandwidths = [0.7, 1.5, 4.0]
    exact = explicit(x, y, bandwidths, unbiased)
    with pf.use_backend(backend):
        ours = pf.ops.mmd(x, y, bandwidths, unbiased=unbiased)
        precise = pf.ops.mmd(x.double(), y.double(), bandwidths, unbiased=unbiased)
    assert abs(ours.item() - exact) < 2e-6
    assert abs(precise.item() - exact) < 1e-13


def test_gradients_of_float32_are_those_of_float64_far_from_zero(backend):
    x, y = 1000 + normal(130, 5), 1000 + normal(150, 5, seed=1)
    slopes = []
    for dtype in (torch.float32, torch.float64):
        a, b = (t.to(dtype).requires_grad_() for t in (x, y))
        with pf.use_backend(backend):
            slopes.append(torch.autograd.grad(pf.ops.mmd(a, b, [0.5, 2.0]), (a, b)))
    for single, double in zip(*slopes, strict=True):
        assert (single - double).abs().max() < 1e-5 * double.abs().max()


def test_one_side_alone_gets_the_gradient_it_gets_with_both(backend):
    x, y = normal(50, 3), normal(60, 3, seed=1)
    a, b = x.clone().requires_grad_(), y.clone().requires_grad_()
    with pf.use_backend(backend):
        both = torch.autograd.grad(pf.ops.mmd(a, b, [1.0]), (a, b))
        (of_x,) = torch.autograd.grad(pf.ops.mmd(a, y, [1.0]), a)
        (of_y,) = torch.autograd.grad(pf.ops.mmd(x, b, [1.0]), b)
        values = [pf.ops.mmd(*pair, [1.0]).item() for pair in ((a, b), (a, y), (x, y))]
    assert torch.equal(of_x, both[0])
    assert torch.equal(of_y, both[1])
    assert values == pytest.approx([values[0]] * 3, abs=1e-6)


def test_the_unbiased_estimate_of_equal_distributions_has_mean_zero(backend):
    """The biased one's mean is E k(a, a) - E k(a, b), over N twice: 2 (1 - 1 / (1 + 2 / s^2)) / N."""
    count, draws, s = 6, 2000, 1.0
    points = normal(draws, 2 * count, 2, dtype=torch.float64)
    with pf.use_backend(backend):
        for unbiased, expected in ((True, 0.0), (False, 2 * (1 - 1 / (1 + 2 / s**2)) / count)):
            values = torch.stack(
                [pf.ops.mmd(p[:count], p[count:], [s], unbiased=unbiased) for p in points]
            )
            error = values.std() / math.sqrt(draws)
            assert error < 0.01
            assert abs(values.mean() - expected) < 4 * error
            assert (values < 0).any() == unbiased


def test_the_discrepancy_of_shifted_gaussians(backend):
    """Of N(0, 1) and N(m, 1): 2 (s^2 / (s^2 + 2))^(D/2) (1 - exp(-|m|^2 / (2 (s^2 + 2))))."""
    width, count, shift, bandwidths = 3, 3000, 0.8, [0.5, 1.0, 3.0]
    x, y = normal(count, width), normal(count, width, seed=1) + shift
    variances = [s * s + 2 for s in bandwidths]
    exact = sum(
        2 * ((v - 2) / v) ** (width / 2) * (1 - math.exp(-width * shift**2 / (2 * v)))
        for v in variances
    )
    with pf.use_backend(backend):
        assert pf.ops.mmd(x, y, bandwidths).item() == pytest.approx(exact, rel=0.05)


def test_infinity_and_nan_give_nan(backend):
    for bad in (math.nan, math.inf):
        for place in (0, 1):
            sets = [normal(20, 3), normal(30, 3, seed=1)]
            sets[place][5, 1] = bad
            with pf.use_backend(backend):
                assert pf.ops.mmd(*sets, [1.0]).isnan()


def test_no_matrix_in_memory(backend):
    if backend == "reference":
        return  # the definition holds the matrix
    x, y = (normal(12_000, 2, seed=k).requires_grad_(k == 0) for k in range(2))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pf.use_backend(backend):
        pf.ops.mmd(x, y, [1.0]).backward()
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert grown < 100_000  # kilobytes; the matrix alone has 576,000


def test_what_the_fuzzer_found(backend):
    x = torch.randn(5, 3, requires_grad=True)
    with pf.use_backend(backend):
        assert torch.equal(pf.ops.mmd(x, x, (1.0,), unbiased="yes"), pf.ops.mmd(x, x, (1.0,)))
        with pytest.raises(ValueError, match="y must be on meta like x, got cpu"):
            pf.ops.mmd(x.to("meta"), x, (1.0,))
