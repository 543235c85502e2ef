"""Penalties in closed form on linear critics, their derivatives, points, lazy intervals, bad input."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

import pyfastgan as pf
from pyfastgan.gan import (
    PENALTIES,
    gradient_penalty,
    penalty_gradient,
    penalty_points,
    penalty_value,
)

REAL = torch.linspace(-1, 1, 5 * 12, dtype=torch.float64).reshape(5, 3, 2, 2)
FAKE = REAL.flip(0).square() - 0.3


def linear(a: Tensor) -> nn.Module:
    """D(x) = a . x, so that g = a everywhere."""
    critic = nn.Sequential(nn.Flatten(), nn.Linear(a.numel(), 1, bias=False, dtype=a.dtype))
    critic[1].weight.data.copy_(a)
    return critic


def expected(name: str, norm: float) -> float:
    """The penalty of weight 1 where every gradient has this norm, from the papers' formulas."""
    return {
        "wgan-gp": (norm - 1) ** 2,
        "wgan-gp-one-sided": max(0.0, norm - 1) ** 2,
        "r1": norm**2 / 2,
        "r2": norm**2 / 2,
        "r1r2": norm**2,
        "dragan": (norm - 1) ** 2,
    }[name]


@pytest.mark.parametrize("name", PENALTIES)
@pytest.mark.parametrize("norm", [0.5, 1.0, 3.0])
def test_linear_critic(name: str, norm: float) -> None:
    """Value, and derivative by the critic's weight: dP/d|a| along a, for any samples."""
    a = torch.arange(1.0, 13.0, dtype=torch.float64)
    a = a * norm / a.norm()
    critic = linear(a)
    value = gradient_penalty(critic, REAL, FAKE, penalty=name, weight=7.0, seed=1)
    assert float(value.detach()) == pytest.approx(7 * expected(name, norm), rel=1e-12, abs=1e-24)
    value.backward()
    h = 1e-4
    slope = 7 * (expected(name, norm + h) - expected(name, norm - h)) / (2 * h)
    if name == "wgan-gp-one-sided" and norm == 1.0:
        slope = 0.0  # the difference quotient of a corner of the second derivative
    torch.testing.assert_close(
        critic[1].weight.grad[0], slope * a / norm, rtol=1e-9, atol=1e-9 * abs(slope) + 1e-12
    )


@pytest.mark.parametrize("name", PENALTIES)
def test_gradient_is_the_derivative_of_the_value(name: str) -> None:
    torch.manual_seed(0)
    g = torch.randn(6, 3, 2, 2, dtype=torch.float64) * torch.tensor([0.1, 0.2, 0.3, 1, 2, 30]).view(
        -1, 1, 1, 1
    )
    g.requires_grad_(True)
    squared = g.flatten(1).square().sum(1)
    value = penalty_value(name, squared, 4.0)
    (slope,) = torch.autograd.grad(value, g, retain_graph=True)
    ours = penalty_gradient(name, g.detach(), 4.0)
    torch.testing.assert_close(ours[:2], (value.detach(), slope), rtol=1e-12, atol=0)
    torch.testing.assert_close(ours[2], squared.detach().sqrt(), rtol=1e-12, atol=0)


@pytest.mark.parametrize("name", PENALTIES)
def test_a_gradient_of_zero_has_a_finite_penalty(name: str) -> None:
    g = torch.zeros(2, 4)
    g[1, 0] = 2.0
    value, slope, _ = penalty_gradient(name, g, 1.0)
    assert value.isfinite()
    assert torch.equal(slope[0], torch.zeros(4))
    assert slope[1].abs().sum() > 0
    critic = linear(torch.zeros(12, dtype=torch.float64))
    gradient_penalty(critic, REAL, FAKE, penalty=name, seed=1).backward()
    assert torch.equal(critic[1].weight.grad, torch.zeros(1, 12, dtype=torch.float64))


@pytest.mark.parametrize("name", PENALTIES)
def test_nan_is_not_hidden(name: str) -> None:
    g = torch.ones(2, 4)
    g[1, 0] = math.nan
    value, slope, _ = penalty_gradient(name, g, 1.0)
    assert value.isnan()
    assert slope[0].isfinite().all()
    assert slope[1].isnan().any()


def test_norms_of_half_gradients_are_float32() -> None:
    g = torch.full((2, 3, 64, 64), 20.0, dtype=torch.float16)  # |g|^2 = 4.9e6: not in float16
    value, slope, _ = penalty_gradient("r1", g, 1.0)
    assert value.dtype == torch.float32
    assert slope.dtype == torch.float16
    assert float(value) == pytest.approx(0.5 * 400 * 3 * 64 * 64)
    torch.testing.assert_close(slope, g / 2)


def test_a_sample_may_be_a_number() -> None:
    value, slope, norms = penalty_gradient("wgan-gp", torch.tensor([-3.0, 0.5]), 1.0)
    torch.testing.assert_close(norms, torch.tensor([3.0, 0.5]))
    torch.testing.assert_close(value, torch.tensor((4 + 0.25) / 2))
    torch.testing.assert_close(slope, torch.tensor([-2.0, -0.5]))


def test_the_slope_lies_in_memory_as_the_gradient_does() -> None:
    g = torch.randn(2, 3, 4, 5).contiguous(memory_format=torch.channels_last)
    for name in PENALTIES:
        assert penalty_gradient(name, g)[1].stride() == g.stride()


def test_r1_of_weight_w_on_a_linear_critic_is_half_w_times_a_squared() -> None:
    a = torch.randn(12, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    value = gradient_penalty(linear(a), REAL, penalty="r1", weight=0.3)
    torch.testing.assert_close(value.detach(), 0.3 / 2 * a.square().sum(), rtol=1e-12, atol=0)


def test_a_penalty_on_one_step_in_k_weighs_k_times_as_much() -> None:
    critic = linear(torch.ones(12, dtype=torch.float64))
    once = gradient_penalty(critic, REAL, FAKE, penalty="r1r2", weight=2.0)
    lazy = gradient_penalty(critic, REAL, FAKE, penalty="r1r2", weight=2.0, interval=16)
    torch.testing.assert_close(lazy, 16 * once)


def test_points() -> None:
    points = {name: penalty_points(name, REAL, FAKE, seed=4) for name in PENALTIES}
    assert torch.equal(points["r1"][0], REAL)
    assert torch.equal(points["r2"][0], FAKE)
    assert all(map(torch.equal, points["r1r2"], (REAL, FAKE)))
    (between,) = points["wgan-gp"]
    share = pf.ops.random_uniform((5, 1), 4, dtype=torch.float64).reshape(5, 1, 1, 1)
    torch.testing.assert_close(between, share * REAL + (1 - share) * FAKE, rtol=0, atol=1e-15)
    assert share.min() > 0
    assert share.unique().numel() == 5
    (around,) = points["dragan"]
    normal = pf.ops.random_normal(REAL.shape, 4, dtype=torch.float64)
    spread = REAL.std(correction=0)
    torch.testing.assert_close(around, REAL + 0.5 * spread * normal, rtol=0, atol=1e-14)


def test_points_do_not_depend_on_how_the_batch_is_split() -> None:
    (whole,) = penalty_points("wgan-gp", REAL, FAKE, seed=9, stream=3)
    parts = [
        penalty_points("wgan-gp", REAL[s], FAKE[s], seed=9, stream=3, sample_offset=s.start)[0]
        for s in (slice(0, 2), slice(2, 5))
    ]
    assert torch.equal(whole, torch.cat(parts))
    other = penalty_points("wgan-gp", REAL, FAKE, seed=9, stream=4)[0]
    assert not torch.equal(whole, other)


def test_a_nonlinear_critic_of_points_with_a_condition_and_patches() -> None:
    """D(x) = sum over patches of c sin x: g = c cos x / patches, against the formula by hand."""
    scale = nn.Parameter(torch.tensor(1.5, dtype=torch.float64))

    def critic(x: Tensor, c: Tensor) -> Tensor:
        return scale * c.reshape(-1, 1, 1, 1) * x[:, :1].sin()

    c = torch.arange(1.0, 6.0, dtype=torch.float64)
    value = gradient_penalty(critic, REAL, penalty="r1", weight=2.0, condition=c)
    g = 1.5 * c.reshape(-1, 1, 1) * REAL[:, 0].cos() / 4
    torch.testing.assert_close(value.detach(), g.square().sum((1, 2)).mean())
    value.backward()
    torch.testing.assert_close(scale.grad, 2 * value.detach() / 1.5)


@pytest.mark.parametrize("name", PENALTIES)
def test_against_finite_differences(name: str) -> None:
    """The derivative by the weights of a critic of two layers."""
    torch.manual_seed(5)
    critic = nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 1)).double()
    real, fake = torch.randn(2, 4, 3, dtype=torch.float64)
    state = dict(critic.named_parameters())

    def value(*weights: Tensor) -> Tensor:
        values = dict(zip(state, weights, strict=True))
        return gradient_penalty(
            lambda x: torch.func.functional_call(critic, values, (x,)),
            real,
            fake,
            penalty=name,
            seed=2,
        )

    # The last bias does not change the gradient.
    assert torch.autograd.gradcheck(value, tuple(state.values()))


def test_the_samples_get_no_gradient() -> None:
    real, fake = REAL.clone().requires_grad_(True), FAKE.clone().requires_grad_(True)
    critic = linear(torch.ones(12).double())
    value = gradient_penalty(critic, real, fake, penalty="wgan-gp", seed=0)
    value.backward()
    with torch.no_grad():
        assert value == gradient_penalty(critic, real, fake, penalty="wgan-gp", seed=0)
    assert real.grad is None
    assert fake.grad is None


def test_bad_input() -> None:
    critic = linear(torch.ones(12, dtype=torch.float64))

    def call(real=REAL, fake=FAKE, critic=critic, penalty="r1r2", **changes) -> None:
        gradient_penalty(critic, real, fake, penalty=penalty, **changes)

    with pytest.raises(ValueError, match=r"penalty must be one of .* did you mean 'wgan-gp'"):
        call(penalty="wgan-pg")
    with pytest.raises(ValueError, match="weight must be finite and at least 0, got -1"):
        call(weight=-1.0)
    with pytest.raises(ValueError, match="weight must be finite"):
        call(weight=math.nan)
    with pytest.raises(TypeError, match="weight must be a number, got str"):
        call(weight="10")
    with pytest.raises(ValueError, match="interval must be at least 1, got 0"):
        call(interval=0)
    with pytest.raises(TypeError, match=r"interval must be an int, got 2\.0"):
        call(interval=2.0)
    with pytest.raises(ValueError, match=r"one shape, got \(5, 3, 2, 2\) and \(4, 3, 2, 2\)"):
        call(fake=FAKE[:4])
    with pytest.raises(TypeError, match="one dtype"):
        call(fake=FAKE.float())
    with pytest.raises(TypeError, match="fake must be a floating-point tensor, got NoneType"):
        call(fake=None)
    with pytest.raises(TypeError, match=r"real must be a floating-point tensor, got torch\.int64"):
        call(real=REAL.long())
    with pytest.raises(ValueError, match=r"real must hold at least one sample, got shape \(0, 3"):
        call(real=REAL[:0], fake=FAKE[:0])
    with pytest.raises(ValueError, match=r"critic's output must be of shape .* got \(5, 3, 2, 2\)"):
        call(critic=lambda x: x)
    with pytest.raises(ValueError, match="must depend on its input"):
        call(critic=lambda x: torch.zeros(len(x)))
    with pytest.raises(ValueError, match="needs a gradient, got a frozen one"):
        call(critic=linear(torch.ones(12, dtype=torch.float64)).requires_grad_(False))
