"""Likelihoods against closed forms: the bound of Gaussian data, the density of a mixture, uniform bytes."""

import math

import numpy as np
import pytest
import torch

import pyfastgan as pf
from pyfastgan.diffusion import (
    MLP,
    DiffusionModel,
    Levels,
    NoiseSchedule,
    Path,
    Sigmas,
    bits_per_dim,
    flow_nll,
    variational_bound,
)
from pyfastgan.diffusion.likelihood import standard_normal, with_divergence
from pyfastgan.ops.gaussian_vlb import COEFFICIENTS

from .mixture import DEVIATIONS, HIGH, LOW, MEANS, WEIGHTS, denoise

MEAN, SPREAD = 0.1, 0.2  # of Gaussian data


def best_gaussian(schedule):
    """For data N(MEAN, SPREAD^2), each level's best eps as factors of x_t and 1, and Var(x_0 | x_t)."""
    a, s = schedule.alpha, schedule.sigma
    gain = a * SPREAD**2 / (a**2 * SPREAD**2 + s**2)
    # x_0 = MEAN + gain (x - a MEAN), and eps = (x - a x_0) / s.
    return (1 - a * gain) / s, -a * MEAN * (1 - a * gain) / s, SPREAD**2 - gain * a * SPREAD**2


@pytest.mark.parametrize("steps", [1, 5, 60])
def test_the_bound_is_entropy_and_prior_divergence_for_gaussian_data(steps):
    """-ELBO = H(x_0) + KL(q(x_T) || N(0, 1)) with the best means and variances, to 1e-10.

    Expectations of these quadratic terms are exact in Gauss and Hermite's quadrature. The last term is that of the
    density, as data are continuous here: the mean and the variance of its row are those of the op.
    """
    schedule = NoiseSchedule.linear(1000) if steps == 60 else NoiseSchedule.cosine(steps)
    if steps == 60:
        a2 = schedule.alpha_squared[:: 1000 // 60 + 1]
        schedule = NoiseSchedule("vp", a2, 1 - a2)
    node, weight = (torch.from_numpy(v) for v in np.polynomial.hermite_e.hermegauss(3))
    weight = weight / weight.sum()
    z0, z1 = torch.cartesian_prod(node, node).unbind(1)
    weights = torch.cartesian_prod(weight, weight).prod(1)
    x0 = (MEAN + SPREAD * z0)[:, None]
    state, constant, variance = best_gaussian(schedule)
    total = (schedule.prior_kl(x0) * weights).sum()
    for k in range(len(schedule)):
        level = torch.full((len(x0),), k)
        alpha, sigma = schedule.coefficients(level, torch.float64)
        x_t = alpha[:, None] * x0 + sigma[:, None] * z1[:, None]
        prediction = state[k] * x_t + constant[k]
        rows = schedule.vlb_coefficients(level, dtype=torch.float64)
        column = dict(zip(COEFFICIENTS, rows[0]))
        # Reverse variance: the posterior's, and that of the mean's own spread.
        mean_x0 = column["mean_x0"]
        posterior = 0.0 if k == 0 else column["log_true"].exp()
        best = torch.log(posterior + mean_x0**2 * variance[k])
        if k > 0:
            share = 2 * (best - column["log_min"]) / (column["log_max"] - column["log_min"]) - 1
            term = pf.ops.gaussian_vlb(x0, x_t, prediction, torch.full_like(x0, float(share)), rows)
        else:
            predicted = column["x0_state"] * x_t + column["x0_prediction"] * prediction
            mean = mean_x0 * predicted + column["mean_state"] * x_t
            term = -standard_normal(x0 - mean, float(best.exp() ** 0.5))
        total = total + (term * weights).sum()
    entropy = 0.5 * math.log(2 * math.pi * math.e * SPREAD**2)
    a2 = schedule.alpha_squared[-1]
    end, shift = a2 * SPREAD**2 + 1 - a2, a2 * MEAN**2
    divergence = 0.5 * (end + shift - 1 - torch.log(end))
    assert abs(float(total - entropy - divergence)) < 1e-10


def test_the_bound_of_a_model_is_that_of_its_levels():
    """`variational_bound` with fine levels of the data: the density's bound and ln of a step, on average."""
    schedule, levels, n = NoiseSchedule.cosine(40), 2001, 4000
    state, constant, _ = best_gaussian(schedule)
    x0 = MEAN + SPREAD * pf.ops.random_normal((n, 1), 3, dtype=torch.float64)
    x0 = (x0 * (levels - 1) / 2).round() / ((levels - 1) / 2)

    def network(x, time):
        k = time.long()
        return state[k][:, None] * x + constant[k][:, None]

    options = {"levels": levels, "clip": None}
    bound = variational_bound(network, schedule, x0, 1, **options)
    assert bound.dtype == torch.float64
    nats = float(bound.mean()) + math.log(2 / (levels - 1))
    entropy = 0.5 * math.log(2 * math.pi * math.e * SPREAD**2)
    # Fixed variances (beta) and 40 levels leave a gap.
    assert entropy - 0.05 < nats < entropy + 0.2
    part = variational_bound(network, schedule, x0, 1, terms=10, **options)
    assert float(part.mean()) == pytest.approx(float(bound.mean()), abs=0.05)
    half = variational_bound(network, schedule, x0[2000:], 1, sample_offset=2000, **options)
    torch.testing.assert_close(half, bound[2000:])
    with pytest.raises(ValueError, match=r"terms must lie in \[1, 39\], got 40"):
        variational_bound(network, schedule, x0, terms=40)
    with pytest.raises(ValueError, match="schedule must be of the vp path"):
        variational_bound(network, NoiseSchedule.karras(5), x0)


def test_the_discretised_likelihood_sums_to_one():
    schedule = NoiseSchedule.linear(100)
    values = torch.linspace(-1, 1, 256, dtype=torch.float64)[:, None]
    x_t, level = torch.full_like(values, 0.37), torch.zeros(256, dtype=torch.int64)
    variance = torch.full_like(values, 0.4)
    nll = schedule.vlb(values, x_t, torch.full_like(values, -0.2), variance, level)
    assert abs(float(torch.exp(-nll).sum()) - 1) < 1e-12


def test_uniform_bytes_have_eight_bits():
    """A flow that stands still, from the uniform density over all steps of a byte."""
    values = torch.randint(0, 256, (5, 3, 4, 4)) / 127.5 - 1

    def uniform(x):
        inside = (x.abs() <= 1 + 1 / 255).flatten(1).all(1)
        density = -48 * math.log(256 * 2 / 255)
        return torch.where(inside, density, -math.inf)

    nll = flow_nll(lambda x, t: torch.zeros_like(x) * x, values, 0.0, 1.0, uniform)
    torch.testing.assert_close(bits_per_dim(nll, 48, 256), torch.full((5,), 8.0).double())


def log_mixture(x, ratio):
    """ln p of the mixture blurred by `ratio`."""
    variance = DEVIATIONS**2 + ratio**2
    square = ((x[:, None] - MEANS) ** 2).sum(-1)
    each = WEIGHTS.log() - 0.5 * square / variance - torch.log(2 * math.pi * variance)
    return each.logsumexp(1)


def mixture_field(x, s):
    ratio = s.exp()
    one = torch.ones((), dtype=torch.float64)
    return x - denoise(x, one, ratio)


POINTS = torch.randn(6, 2, generator=torch.Generator().manual_seed(2)).double() * 1.5


@pytest.mark.parametrize(
    "solver",
    [
        {"solver": "adaptive", "method": "DOP853", "tolerance": 1e-9},
        {"solver": "rk4", "steps": 200},
    ],
)
def test_the_density_of_a_mixture(solver):
    """To 1e-6 where the end is the mixture's own marginal; the Gaussian in its place errs by what it differs."""
    bounds = (math.log(LOW), math.log(HIGH))
    nll = flow_nll(mixture_field, POINTS, *bounds, lambda x: log_mixture(x, HIGH), **solver)
    assert float((nll + log_mixture(POINTS, LOW)).abs().max()) < 1e-6
    rough = flow_nll(mixture_field, POINTS, *bounds, lambda x: standard_normal(x, HIGH), **solver)
    error = float((rough - nll).abs().max())
    print(f"with a Gaussian terminal density of deviation {HIGH}: off by up to {error:.4f} nats")
    assert 1e-4 < error < 0.1


def test_divergences():
    x = torch.randn(5, 3, dtype=torch.float64)

    def field(x, t):
        return torch.stack((x[:, 0] ** 2 * x[:, 1], x[:, 1] * t, x[:, 0] + x[:, 2] ** 3), 1)

    t = torch.tensor(0.7, dtype=torch.float64)
    value, exact = with_divergence(field, x, t, None)
    torch.testing.assert_close(value, field(x, t))
    torch.testing.assert_close(exact, 2 * x[:, 0] * x[:, 1] + 0.7 + 3 * x[:, 2] ** 2)
    # The mean over all eight signs is exact.
    signs = torch.cartesian_prod(*[torch.tensor([-1.0, 1.0]).double()] * 3)
    found = [with_divergence(field, x, t, sign.expand(5, 3))[1] for sign in signs]
    torch.testing.assert_close(torch.stack(found).mean(0), exact)


def test_hutchinson_is_right_on_average_and_keyed_by_place():
    bounds, x = (math.log(LOW), math.log(HIGH)), POINTS[:1].expand(400, 2)
    options = {"solver": "rk4", "steps": 60, "divergence": "hutchinson", "seed": 4}
    nll = flow_nll(mixture_field, x, *bounds, lambda x: log_mixture(x, HIGH), **options)
    exact = -log_mixture(POINTS[:1], LOW)
    assert abs(float(nll.mean() - exact)) < 4 * float(nll.std()) / 20
    assert float(nll.std()) > 1e-3
    part = flow_nll(
        *(mixture_field, x[300:], *bounds, lambda x: log_mixture(x, HIGH)),
        sample_offset=300,
        **options,
    )
    torch.testing.assert_close(part, nll[300:])


class Exact(torch.nn.Module):
    """The best prediction for data N(MEAN, SPREAD^2) in each number, of any process."""

    def __init__(self, process):
        super().__init__()
        self.process, self.self_conditioning = process, False

    def forward(self, x, time, labels=None, x0=None):
        process, t = self.process, time[:, None]
        if isinstance(process, Path):
            a, s, state = 1 - t, t, x
        elif isinstance(process, Sigmas):
            a, s = torch.ones_like(t), torch.exp(4 * t)
            state = x * (s**2 + 0.25) ** 0.5
        else:
            # The table, at a number between levels: sigma / alpha is interpolated in its logarithm.
            known = process.schedule.ratio.log()
            k = time.long().clamp(max=len(known) - 2)
            r = torch.exp(known[k] + (time - k) * (known[k + 1] - known[k]))[:, None]
            a = 1 / (1 + r**2) ** 0.5
            s, state = r * a, x
        best = MEAN + a * SPREAD**2 / (a**2 * SPREAD**2 + s**2) * (state - a * MEAN)
        noise = (state - a * best) / s.clamp(min=1e-12)
        if isinstance(process, Path):
            # (x - x_0) / t has its limit at t = 0.
            return torch.where(t > 0, noise - best, -x)
        if isinstance(process, Sigmas):
            skip, out = 0.25 / (s**2 + 0.25), 0.5 * s / (s**2 + 0.25) ** 0.5
            return (best - skip * state) / out
        return {"eps": noise, "x0": best, "v": a * noise - s * best}[process.prediction]


def exact_model(process, **options):
    return DiffusionModel(Exact(process), process, (2,), **options).double()


@pytest.mark.parametrize(
    "process",
    [
        Levels(NoiseSchedule.linear(1000, prediction="eps")),
        Levels(NoiseSchedule.cosine(1000, prediction="v")),
        Sigmas(),
        Path(),
    ],
    ids=["eps", "v", "edm", "flow"],
)
def test_a_models_density_is_that_of_its_data(process):
    """Of points, in their own units."""
    model = exact_model(process, shift=1.5, scale=2.0)
    x = MEAN + SPREAD * POINTS / 1.5
    nll = model.nll(1.5 + 2 * x, method="ode", tolerance=1e-8)
    expected = -standard_normal(x - MEAN, SPREAD) + 2 * math.log(2)
    # The least noise blurs the data (a linear schedule begins at 0.01); the end is not quite normal.
    torch.testing.assert_close(nll, expected, rtol=0, atol=6e-3)


def test_a_models_likelihood_refuses():
    model = DiffusionModel(MLP(2, width=4), Path(), (2,))
    x = torch.zeros(2, 2)
    for call, text in (
        (lambda: model.nll(x, method="elbo"), "method must be one of vlb, ode"),
        (lambda: model.nll(x, method="vlb"), "method must be 'ode'"),
        (lambda: model.nll(torch.zeros(2, 3)), r"data must be of shape \(N, \*\(2,\)\)"),
        (lambda: model.nll(x, solver="euler"), "solver must be one of adaptive, rk4"),
        (lambda: model.nll(x, divergence="hutch"), "divergence must be one of exact, hutchinson"),
        (lambda: model.nll(x, solver="rk4", steps=0), "steps must be at least 1"),
    ):
        with pytest.raises(ValueError, match=text):
            call()


def test_bits_need_numbers():
    with pytest.raises(ValueError, match=r"dims must be at least 1 .* got 0 and 256"):
        bits_per_dim(torch.zeros(3), 0, 256)
