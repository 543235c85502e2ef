"""gaussian_vlb: divergences against torch.distributions, likelihoods that sum to 1, far tails against mpmath."""

import math

import mpmath
import pytest
import torch
from torch.distributions import Normal, kl_divergence

import pyfastgan as pf
from pyfastgan.ops._registry import ops
from pyfastgan.ops.gaussian_vlb import COEFFICIENTS
from pyfastgan.testing import backends

BACKENDS = backends(ops()["gaussian_vlb"])


def row(**named):
    assert set(named) <= set(COEFFICIENTS)
    return torch.tensor([named.get(name, 0.0) for name in COEFFICIENTS], dtype=torch.float64)


def decoder(deviation):
    """The mean is the prediction."""
    return row(x0_prediction=1, mean_x0=1, log_max=2 * math.log(deviation), decode=1)


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_divergence_is_torch_s(backend):
    generator = torch.Generator().manual_seed(0)
    x0, x_t, eps, v = torch.randn(4, 3, 50, generator=generator, dtype=torch.float64)
    c = {"x0_state": 1.2, "x0_prediction": -0.7, "mean_x0": 0.3, "mean_state": 0.6}
    variance = {"log_min": -4.0, "log_max": -2.5, "log_true": -4.0}
    posterior = Normal(c["mean_x0"] * x0 + c["mean_state"] * x_t, math.exp(-2.0))
    mean = c["mean_x0"] * (1.2 * x_t - 0.7 * eps).clamp(-1, 1) + c["mean_state"] * x_t
    model = Normal(mean, torch.exp(0.5 * (-4.0 + (v + 1) / 2 * 1.5)))
    with pf.use_backend(backend):
        found = pf.ops.gaussian_vlb(x0, x_t, eps, v, row(**c, **variance), clip=1.0)
    expected = kl_divergence(posterior, model).sum(1)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_divergence_of_nearly_equal_variances_keeps_its_digits(backend):
    """r^2 / 4 for a difference r of log-variances, in float32, where 1 - r - exp(-r) would cancel."""
    x = torch.zeros(2, 10)
    with pf.use_backend(backend):
        found = pf.ops.gaussian_vlb(x, x, x, None, row(log_max=1e-3).float())
    assert found.tolist() == pytest.approx([10 * (1e-3**2 / 4 - 1e-3**3 / 12)] * 2, rel=1e-3)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_probabilities_sum_to_one(backend, dtype):
    """Levels narrower and wider than the deviation, means inside and outside of [-1, 1]."""
    for levels in (2, 17, 256):
        x = torch.linspace(-1, 1, levels, dtype=dtype)[:, None]
        for deviation in (1e-3, 0.02, 0.3, 5.0):
            for mean in (-1.0, 0.123, 1.4):
                at = torch.full_like(x, mean)
                with pf.use_backend(backend):
                    nll = pf.ops.gaussian_vlb(x, x, at, None, decoder(deviation), levels=levels)
                total = torch.exp(-nll.double()).sum().item()
                # An nll of 100 nats has an absolute error of 1e-5 in float32, but a probability of 1e-44.
                assert total == pytest.approx(1, abs=2e-6 if dtype == torch.float32 else 1e-12)


# Plain PyTorch in float32 has no digits left in the far tails.
PRECISIONS = [(b, torch.float64, 1e-11) for b in BACKENDS]
PRECISIONS += [(b, torch.float32, 4e-6) for b in BACKENDS if b != "reference"]


@pytest.mark.parametrize(("backend", "dtype", "digits"), PRECISIONS)
def test_far_tails_and_both_sides_of_every_choice(backend, dtype, digits):
    """Against 50 digits: the value, and the derivatives by the mean and the log-variance."""
    mpmath.mp.dps = 50
    half = mpmath.mpf(1) / 255
    cases = [
        # x, mean, deviation: the middle, a narrow and a wide level, tails, the series' border, outer levels.
        (0.0, 0.0, 0.1),
        (0.0, 0.01, 1e-3),
        (-0.5, 0.25, 0.02),
        (0.5, -0.5, 0.01),
        (0.2, 0.1999, 0.0160),
        (0.2, 0.1999, 0.0155),
        (0.2, 0.2038, 0.0190),
        (0.2, 0.195, 0.0170),
        (0.2, 0.21, 0.0150),
        (-1.0, -0.9, 0.05),
        (-1.0, 0.9, 0.05),
        (1.0, -0.3, 0.05),
        (1.0, 1.3, 0.05),
    ]
    for x, mean, deviation in cases:
        x, mean = (torch.tensor(t, dtype=dtype).item() for t in (x, mean))
        log_variance = torch.tensor(2 * math.log(deviation), dtype=dtype).item()

        def exact(mean, log_variance, x=x):
            sigma = mpmath.exp(log_variance / 2)
            z, d = (mpmath.mpf(x) - mean) / sigma, half / sigma
            if x == 1 or (x > -1 and z > 0):
                z = -z
            below = 0 if abs(x) == 1 else mpmath.ncdf(z - d)
            return -mpmath.log(mpmath.ncdf(z + d) - below)

        expected = exact(mean, log_variance)
        by_mean = mpmath.diff(lambda m, s=log_variance: exact(m, s), mean)
        by_log_variance = mpmath.diff(lambda s, m=mean: exact(m, s), log_variance)
        coefficients = row(x0_prediction=1, mean_x0=1, log_min=0, log_max=2, decode=1)
        at = torch.tensor([[x]], dtype=dtype)
        m = torch.tensor([[mean]], dtype=dtype, requires_grad=True)
        v = torch.tensor([[log_variance - 1]], dtype=dtype, requires_grad=True)
        with pf.use_backend(backend):
            nll = pf.ops.gaussian_vlb(at, at, m, v, coefficients)
            found = [nll, *torch.autograd.grad(nll, (m, v))]
        for a, b, of in zip(found, (expected, by_mean, by_log_variance), (0.25, 1, 1)):
            within = pytest.approx(float(b), rel=of * digits, abs=of * digits)
            assert a.item() == within, (x, mean)


def test_the_hybrid_objective_moves_the_variance_alone():
    x0, x_t, eps, v = torch.randn(4, 3, 5).unbind(0)
    v.requires_grad_()
    eps.requires_grad_()
    coefficients = row(x0_state=1, x0_prediction=-0.5, mean_x0=0.2, log_min=-3, log_max=-2)
    pf.ops.gaussian_vlb(x0, x_t, eps.detach(), v, coefficients).sum().backward()
    assert eps.grad is None
    assert v.grad.abs().sum() > 0


def test_a_second_derivative_raises():
    x = torch.randn(2, 3, requires_grad=True)
    nll = pf.ops.gaussian_vlb(x, x, x, x, row(x0_state=1, mean_x0=1, log_max=-1))
    (g,) = torch.autograd.grad(nll.sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="gaussian_vlb can be differentiated once"):
        torch.autograd.grad(g.sum(), x)
