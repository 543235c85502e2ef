"""Schedules: closed forms, errors, noise that is never lost, and the variational bound's identity for normal data."""

import math

import numpy as np
import pytest
import torch

from pyfastgan.diffusion import DDIM, DDPM, PREDICTIONS, NoiseSchedule, target
from pyfastgan.ops import gaussian_vlb
from pyfastgan.ops.gaussian_vlb import COEFFICIENTS

SCHEDULES = {
    "linear": NoiseSchedule.linear(),
    "cosine": NoiseSchedule.cosine(),
    "scaled linear": NoiseSchedule.scaled_linear(),
    "sigmoid": NoiseSchedule.sigmoid(),
    "zero terminal": NoiseSchedule.linear().zero_terminal_snr(),
    "karras": NoiseSchedule.karras(40),
    "flow": NoiseSchedule.flow(50),
    "flow, shifted": NoiseSchedule.flow(50, shift=3.0),
}


@pytest.mark.parametrize("name", SCHEDULES)
def test_paths(name):
    schedule = SCHEDULES[name]
    alpha, sigma = schedule.alpha, schedule.sigma
    expected = {"vp": alpha**2 + sigma**2, "ve": alpha, "flow": alpha + sigma}[schedule.path]
    torch.testing.assert_close(expected, torch.ones_like(expected), rtol=0, atol=1e-14)
    assert alpha.dtype == torch.float64
    # The first sigma, whose digits 1 - alpha^2 would lose.
    if name == "linear":
        assert float(sigma[0]) == pytest.approx(1e-2, rel=1e-14)
        betas = np.linspace(1e-4, 0.02, 1000, dtype=np.longdouble)
        assert float(alpha[-1] ** 2) == pytest.approx(float(np.prod(1 - betas)), rel=1e-12)
    if name == "zero terminal":
        assert float(alpha[-1]) == 0
        assert float(alpha[0]) == pytest.approx(math.sqrt(1 - 1e-4), rel=1e-14)
        assert schedule.prediction == "v"
    if name == "karras":
        assert schedule.sigma[[0, -1]].tolist() == pytest.approx([0.002, 80.0], rel=1e-12)
        torch.testing.assert_close((schedule.sigma ** (1 / 7)).diff(2), torch.zeros(38).double())
    if name == "cosine":
        t = 500 / 1000
        curve = [math.cos((t + 0.008) / 1.008 * math.pi / 2), math.cos(0.008 / 1.008 * math.pi / 2)]
        assert float(alpha[499]) == pytest.approx(curve[0] / curve[1], rel=1e-12)
    if name == "flow, shifted":
        assert float(schedule.time[24]) == pytest.approx(3 * 0.5 / (1 + 2 * 0.5))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", SCHEDULES)
def test_every_level_adds_noise_in_half_types(name, dtype):
    schedule = SCHEDULES[name]
    level = torch.arange(len(schedule))
    x0 = torch.zeros(len(schedule), 64, dtype=dtype)
    x_t, noise = schedule.add_noise(x0, level, 3)
    expected = schedule.sigma[:, None] * noise.double()
    torch.testing.assert_close(x_t.double(), expected, rtol=1e-2, atol=1e-6)
    assert (x_t != 0).any(1).all()
    # Beside data near 1 the type rounds it away in places, never in all.
    near = torch.rand(len(schedule), 4096, generator=torch.Generator().manual_seed(0)).to(dtype)
    alpha, _ = schedule.coefficients(level)
    noisy, _ = schedule.add_noise(near, level, 3)
    assert (noisy != (alpha[:, None] * near.float()).to(dtype)).any(1).all()


@pytest.mark.parametrize("name", PREDICTIONS)
def test_predictions_give_back_data_and_noise(name):
    path = {"edm": "ve", "flow": "flow"}.get(name, "vp")
    schedule = {"ve": SCHEDULES["karras"], "flow": SCHEDULES["flow"], "vp": SCHEDULES["cosine"]}[
        path
    ]
    # Not the last of flow, where there is no data to find.
    alpha, sigma = schedule.alpha[[3, 20, 35]], schedule.sigma[[3, 20, 35]]
    x0, noise = torch.randn(2, 3, 5, dtype=torch.float64)
    x = alpha[:, None] * x0 + sigma[:, None] * noise
    m = target(name, x0, noise, alpha, sigma)
    for pair, expected in (
        (PREDICTIONS[name].x0(alpha, sigma), x0),
        (PREDICTIONS[name].noise(alpha, sigma), noise),
    ):
        found = pair.state[:, None] * x + pair.prediction[:, None] * m
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)


def test_timesteps():
    schedule = SCHEDULES["linear"]
    assert schedule.timesteps(4).tolist() == [750, 500, 250, 0]
    assert schedule.timesteps(4, offset=1).tolist() == [751, 501, 251, 1]
    assert schedule.timesteps(4, "trailing").tolist() == [999, 749, 499, 249]
    assert schedule.timesteps(4, "linspace").tolist() == [999, 666, 333, 0]


def test_bad_input():
    schedule = SCHEDULES["linear"]
    x0 = torch.zeros(2, 3)
    with pytest.raises(
        ValueError, match=r"level must lie in \[0, 1000\), the schedule's, got 1000"
    ):
        schedule.add_noise(x0, torch.tensor([0, 1000]))
    with pytest.raises(ValueError, match="got -1"):
        schedule.vlb_coefficients(torch.tensor([-1]))
    with pytest.raises(TypeError, match="level must be an int64 tensor"):
        schedule.add_noise(x0, torch.tensor([0.5, 0.1]))
    with pytest.raises(ValueError, match=r"must grow from level to level.* after level 1"):
        NoiseSchedule.from_sigmas(torch.tensor([0.1, 1.0, 0.5]))
    with pytest.raises(ValueError, match="sigma_min must lie between 0 and sigma_max"):
        NoiseSchedule.karras(sigma_min=2.0, sigma_max=1.0)
    with pytest.raises(ValueError, match=r"betas must lie in \[0, 1\]"):
        NoiseSchedule.from_betas(torch.tensor([0.1, 1.5]))
    with pytest.raises(ValueError, match="timesteps must lie in"):
        schedule.grid([1000, 0])
    with pytest.raises(ValueError, match="must fall on a sampler's way"):
        schedule.grid([10, 20])
    with pytest.raises(ValueError, match=r"steps must lie in \[1, 1000\]"):
        schedule.timesteps(2000)
    with pytest.raises(ValueError, match=r"prediction must be one of .*did you mean 'eps'"):
        NoiseSchedule.linear(prediction="ep")
    with pytest.raises(ValueError, match="path must be vp"):
        SCHEDULES["karras"].zero_terminal_snr()
    with pytest.raises(ValueError, match="sigma_squared must be positive"):
        NoiseSchedule("vp", torch.ones(2).double(), torch.zeros(2).double())


@pytest.mark.parametrize("deviation", [0.5, 1.0, 2.0])
@pytest.mark.parametrize("name", ["linear", "cosine"])
def test_the_variational_bound_s_identity(name, deviation):
    """Normal data with the optimal mean and reverse variance: -ELBO = H(x_0) + KL(q(x_T) || N(0, 1))."""
    schedule, v = SCHEDULES[name], deviation**2
    level = torch.arange(len(schedule))
    rows = schedule.vlb_coefficients(level, "x0", torch.float64)
    column = {key: rows[:, k] for k, key in enumerate(COEFFICIENTS)}
    # The means are those of the ancestral sampler; the first term's is the predicted x_0 alone.
    table = DDPM(schedule, prediction="x0").table.flip(0)
    torch.testing.assert_close(column["mean_state"], table[:, 2], rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(column["mean_x0"], table[:, 3], rtol=1e-9, atol=1e-12)
    assert column["decode"].tolist() == [1.0] + [0.0] * 999
    a, s = schedule.alpha, schedule.sigma
    to_x0 = a * v / (a**2 * v + s**2)  # the best guess of x_0 is to_x0 x_t
    left = v * s**2 / (a**2 * v + s**2)  # its variance
    best = torch.exp(column["log_true"]) + column["mean_x0"] ** 2 * left
    rows[:, COEFFICIENTS.index("log_max")] = best.log()
    # Expectations of polynomials of second degree: two nodes for each of x_0 and the noise.
    x0, z = (
        t.flatten()
        for t in torch.meshgrid(*[torch.tensor([-1.0, 1.0]).double()] * 2, indexing="ij")
    )
    x0 = (deviation * x0).expand(len(schedule), 4).contiguous()
    x_t = a[:, None] * x0 + s[:, None] * z
    terms = gaussian_vlb(x0, x_t, to_x0[:, None] * x_t, None, rows) / 4
    # Level 0 here with the density itself, of variance `left`.
    first = 0.5 * torch.log(2 * math.pi * math.e * left[0])
    found = terms[1:].sum() + first + schedule.prior_kl(x0[:1]) / 4
    last = a[-1] ** 2 * v + s[-1] ** 2
    entropy = 0.5 * math.log(2 * math.pi * math.e * v)
    expected = entropy + 0.5 * (last - 1 - last.log())
    assert float(found) == pytest.approx(float(expected), abs=1e-10)


@pytest.mark.parametrize(
    ("variance", "deviation"), [("large", 1.0), ("small", 0.0)], ids=["unit data", "a point"]
)
def test_ancestral_fixed_points(variance, deviation):
    """The best denoiser of N(0, 1), and of a point, with the reverse variance that is exact for each: the variance of
    the state is that of the schedule at every level, over any levels."""
    schedule = SCHEDULES["cosine"]
    for timesteps in (None, schedule.timesteps(7, "trailing")):
        sampler = DDPM(schedule, timesteps, variance=variance, prediction="x0")
        a, s = sampler.grid.alpha_squared, sampler.grid.sigma_squared
        marginal = a * deviation**2 + s
        state, x0, noise = (sampler.table[:, k] for k in (2, 3, 5))
        guess = a**0.5 * deviation**2 / marginal
        found = (state + x0 * guess[:-1]) ** 2 * marginal[:-1] + noise**2
        keep = slice(None, -1)  # the last step adds no noise
        torch.testing.assert_close(found[keep], marginal[1:][keep], rtol=1e-11, atol=1e-13)
        # DDIM too keeps a point's cloud as the schedule has it.
        if deviation == 0:
            table = DDIM(schedule, timesteps, prediction="x0").table
            torch.testing.assert_close(table[:, 2] ** 2 * s[:-1], s[1:], rtol=1e-11, atol=1e-13)


@pytest.mark.parametrize("make", ["linear", "scaled_linear", "sigmoid", "cosine", "karras", "flow"])
@pytest.mark.parametrize("steps", [0, -1, 2.5, "9"])
def test_a_schedule_has_levels(make, steps):
    with pytest.raises((TypeError, ValueError), match="steps must be"):
        getattr(NoiseSchedule, make)(steps)


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda: NoiseSchedule.from_betas([]), "with at least one level, got .0,."),
        (lambda: NoiseSchedule.karras(5, rho=0), "rho must be positive, got 0"),
        (lambda: NoiseSchedule.scaled_linear(5, -0.1), "start and end must not be negative"),
        (lambda: NoiseSchedule.linear(9).timesteps(3, offset=5), r"offset must keep .* \[0, 9\)"),
        (lambda: NoiseSchedule.linear(9).timesteps(2.5), "steps must be int, got 2.5"),
        (lambda: NoiseSchedule("vp", [0.9], [0.1]), "alpha_squared must be a tensor, got list"),
        (
            lambda: NoiseSchedule("ve", torch.ones(2), torch.tensor([1.0, 2]), torch.arange(3)),
            r"time must have shape \(2,\), got \(3,\)",
        ),
    ],
)
def test_mistakes_in_a_schedule_are_named(call, says):
    with pytest.raises((TypeError, ValueError), match=says):
        call()


def test_one_level_of_karras_is_the_largest():
    assert NoiseSchedule.karras(1, sigma_max=7.0).sigma.tolist() == pytest.approx([7.0])
