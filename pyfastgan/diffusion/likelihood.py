"""Likelihoods: the variational bound of a DDPM, and the density of the probability-flow equation.

The bound (Ho, Jain & Abbeel 2020, equation 5), in nats, over the levels 1 to T:

    -ln p(x_0) <= KL(q(x_T | x_0) || N(0, 1)) + sum_t KL(q(x_t-1 | x_t, x_0) || p(x_t-1 | x_t)) - ln p(x_0 | x_1)

The density (Chen et al. 2018; Song et al. 2021): along dx/dt = f(x, t) from data to noise,

    ln p(x(start)) = ln p_end(x(end)) + integral of div f(x(t), t) dt
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from pyfastgan._names import check_choice
from pyfastgan.diffusion.prediction import PREDICTIONS
from pyfastgan.diffusion.process import Levels, Path, Process
from pyfastgan.diffusion.schedule import NoiseSchedule
from pyfastgan.ops import gaussian_vlb, random_uniform

Field = Callable[[Tensor, Tensor], Tensor]
SOLVERS = ("adaptive", "rk4")
DIVERGENCES = ("exact", "hutchinson")
# The stream of a divergence's probes.
_PROBES = 2**29


def standard_normal(x: Tensor, deviation: float = 1.0) -> Tensor:
    """ln of the normal density of mean 0 and that standard deviation at x (N, ...), summed over a sample: (N,)."""
    each = -0.5 * (x / deviation).square() - math.log(deviation) - 0.5 * math.log(2 * math.pi)
    return each.flatten(1).sum(1)


def bits_per_dim(nll: Tensor, dims: int, levels: int | None = None) -> Tensor:
    """Nats a sample as bits for each of its numbers.

    Args:
        nll: (N,) -ln of a probability; or with `levels` of a density.
        dims: Numbers in a sample.
        levels: Of values evenly spaced in [-1, 1], spread over their steps of 2 / (levels - 1) by uniform noise: the
            density's NLL then bounds that of the values.
    """
    if dims < 1 or (levels is not None and levels < 2):
        raise ValueError(f"dims must be at least 1 and levels at least 2, got {dims} and {levels}")
    step = 0.0 if levels is None else math.log(2 / (levels - 1))
    return (nll / dims - step) / math.log(2)


def variational_bound(
    network: Callable[[Tensor, Tensor], Tensor],
    schedule: NoiseSchedule,
    x0: Tensor,
    seed: int = 0,
    *,
    learned_variance: bool = False,
    levels: int = 256,
    clip: float | None = 1.0,
    terms: int | None = None,
    sample_offset: int = 0,
) -> Tensor:
    """The bound for data of `levels` values in [-1, 1], with noise from the seed.

    Args:
        network: `network(x_t, time)` with the number of the level as time (N,), whose prediction is the schedule's.
        schedule: Of the vp path; all of its levels are steps of the model.
        x0: (N, ...).
        seed: Of the noise; level t has stream t.
        learned_variance: Whether the second half of the network's channels is a variance.
        levels: Values that a number of the data may have.
        clip: The bound on the predicted x_0.
        terms: Instead of all T levels, take level 0 and so many of the others, one drawn from each of as many equal
            ranges: the same on average.
        sample_offset: The number of the first sample.

    Returns:
        (N,) nats, float64: T network calls, or `terms` + 1.

    Raises:
        ValueError: a schedule of another path, terms out of range.
    """
    if schedule.path != "vp":
        raise ValueError(f"schedule must be of the vp path for the bound, got {schedule.path!r}")
    last, n = len(schedule) - 1, len(x0)
    if terms is not None and not 1 <= terms <= last:
        raise ValueError(f"terms must lie in [1, {last}], got {terms}")
    total = schedule.prior_kl(x0)
    width = last / (terms or last)
    for k in range((terms or last) + 1):
        if k == 0 or terms is None:
            level = torch.full((n,), k, device=x0.device)
        else:
            place: dict[str, Any] = {"stream": 2**28 + k, "sample_offset": sample_offset}
            u = random_uniform((n, 1), seed, device=x0.device, dtype=torch.float64, **place)
            level = (1 + (k - 1 + u[:, 0]) * width).long().clamp(max=last)
        noise = {"stream": k, "sample_offset": sample_offset, "return_noise": False}
        x_t, _ = schedule.add_noise(x0, level, seed, **noise)
        found, variance = network(x_t, level.to(x0.dtype)), None
        if learned_variance:
            found, variance = found.chunk(2, 1)
        rows = schedule.vlb_coefficients(level, dtype=x_t.dtype)
        term = gaussian_vlb(x0, x_t, found, variance, rows, levels=levels, clip=clip)
        total = total + term.double() * (1 if k == 0 else width)
    return total


def flow_nll(
    field: Field,
    x: Tensor,
    start: float,
    end: float,
    log_end: Callable[[Tensor], Tensor],
    *,
    solver: str = "adaptive",
    steps: int = 100,
    tolerance: float = 1e-5,
    method: str = "RK45",
    divergence: str = "exact",
    seed: int = 0,
    sample_offset: int = 0,
) -> Tensor:
    """-ln p of samples at `start`, by the equation dx/dt = field(x, t).

    Args:
        field: Of x (N, ...) float64 and t (), gives (N, ...); a sample's must depend on that sample alone.
        x: (N, ...).
        start, end: Times; `end` is where the density is known.
        log_end: ln of that density (N,) at (N, ...).
        solver: "adaptive" (SciPy's `solve_ivp`) or "rk4", with `steps` steps of equal length.
        tolerance: Relative and absolute error of an adaptive step, over all samples together.
        method: Of `solve_ivp`.
        divergence: "exact", a backward pass for every number of a sample, or "hutchinson": one pass, with signs
            drawn from the seed, right on average (Hutchinson 1990; Grathwohl et al. 2019).
        seed, sample_offset: Of the signs.

    Returns:
        (N,) nats, float64.

    Raises:
        ValueError: an unknown solver or divergence, steps below 1; a solver that does not get to the end.
    """
    check_choice("solver", solver, SOLVERS)
    check_choice("divergence", divergence, DIVERGENCES)
    if steps < 1:
        raise ValueError(f"steps must be at least 1, got {steps}")
    signs = None
    if divergence == "hutchinson":
        place = {"stream": _PROBES, "sample_offset": sample_offset, "device": x.device}
        signs = torch.where(random_uniform(x.shape, seed, **place) < 0.5, -1.0, 1.0).double()  # type: ignore[arg-type]

    def slope(x: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        return with_divergence(field, x, t, signs)

    integrate = _adaptive if solver == "adaptive" else _runge_kutta
    options: dict[str, Any] = {"steps": steps, "tolerance": tolerance, "method": method}
    final, gained = integrate(slope, x.detach().double(), start, end, **options)
    return -(log_end(final).double() + gained)


def process_nll(
    network: Callable[[Tensor, Tensor], Tensor],
    process: Process,
    x: Tensor,
    dtype: torch.dtype,
    **options: Any,
) -> Tensor:
    """-ln p of x (N, ...) at a process's least noise level, by `flow_nll` with its options; the network is called with
    that dtype.

    Off the straight path x / alpha moves over s = ln(sigma / alpha), where d(x / alpha) / ds = x / alpha - x_0."""

    def velocity(x: Tensor, t: Tensor) -> Tensor:
        time = t.to(dtype).expand(len(x))
        return network(x.to(dtype), time).double()

    if isinstance(process, Path):
        return flow_nll(velocity, x, 0.0, 1.0, standard_normal, **options)
    low, high = process.bounds()

    def field(y: Tensor, s: Tensor) -> Tensor:
        ratio = s.exp()
        alpha, sigma, time, scale = process.at(ratio)
        state = y * alpha
        told = time.to(dtype).expand(len(y))
        found = network((state * scale).to(dtype), told)
        factors = PREDICTIONS[process.prediction].noise(alpha, sigma)
        noise = factors.state * state + factors.prediction * found[:, : y.shape[1]].double()
        return ratio * noise

    alpha = float(process.at(torch.tensor(low, dtype=torch.float64))[0])
    end = process.at(torch.tensor(high, dtype=torch.float64))
    deviation = float(1 / end[0]) if isinstance(process, Levels) else high

    def log_end(y: Tensor) -> Tensor:
        return standard_normal(y, deviation)

    nll = flow_nll(field, x / alpha, math.log(low), math.log(high), log_end, **options)
    return nll + math.prod(x.shape[1:]) * math.log(alpha)


def with_divergence(
    field: Field, x: Tensor, t: Tensor, signs: Tensor | None
) -> tuple[Tensor, Tensor]:
    """The field at x (N, ...), and its divergence (N,): exact, or of the given probes."""
    with torch.enable_grad():
        x = x.detach().requires_grad_()
        value = field(x, t)
        if signs is not None:
            (found,) = torch.autograd.grad((value * signs).sum(), x)
            return value.detach(), (found * signs).flatten(1).sum(1)
        parts = value.flatten(1).sum(0)
        total = torch.zeros(len(x), dtype=x.dtype, device=x.device)
        for i, part in enumerate(parts):
            (found,) = torch.autograd.grad(part, x, retain_graph=i + 1 < len(parts))
            total += found.flatten(1)[:, i]
    return value.detach(), total


Slope = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]


def _runge_kutta(
    slope: Slope, x: Tensor, start: float, end: float, *, steps: int, **_: Any
) -> tuple[Tensor, Tensor]:
    """The classical method of order 4."""
    gained = torch.zeros(len(x), dtype=x.dtype, device=x.device)
    times = torch.linspace(start, end, steps + 1, dtype=x.dtype, device=x.device)
    for t, following in itertools.pairwise(times):
        h = following - t
        k1, d1 = slope(x, t)
        k2, d2 = slope(x + h / 2 * k1, t + h / 2)
        k3, d3 = slope(x + h / 2 * k2, t + h / 2)
        k4, d4 = slope(x + h * k3, following)
        x = x + h / 6 * (k1 + 2 * k2 + 2 * k3 + k4)
        gained = gained + h / 6 * (d1 + 2 * d2 + 2 * d3 + d4)
    return x, gained


def _adaptive(
    slope: Slope, x: Tensor, start: float, end: float, *, tolerance: float, method: str, **_: Any
) -> tuple[Tensor, Tensor]:
    import numpy as np
    from scipy.integrate import solve_ivp

    size = x.numel()

    def flat(t: float, state: Any) -> Any:
        at = torch.from_numpy(np.ascontiguousarray(state[:size])).to(x.device).view_as(x)
        value, gain = slope(at, torch.tensor(t, dtype=x.dtype, device=x.device))
        return torch.cat((value.flatten(), gain)).cpu().numpy()

    first = torch.cat((x.flatten(), x.new_zeros(len(x)))).cpu().numpy()
    found = solve_ivp(flat, (start, end), first, method=method, rtol=tolerance, atol=tolerance)
    if not found.success:
        raise ValueError(f"the solver stopped before the end: {found.message}")
    last = torch.from_numpy(found.y[:, -1].copy()).to(x.device)
    return last[:size].view_as(x), last[size:]
