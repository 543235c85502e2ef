"""What GPUs have kernels for beside the registered ops, against the CPU: penalties, Glow, samples of a mixture."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from pyfastgan import gan, ops
from pyfastgan.gan.penalties import squared_norms
from pyfastgan.ops._glow_step import GlowParameters

FLOATS = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


def _drawn(shape: tuple[int, ...], seed: int, dtype: torch.dtype, device: str) -> Tensor:
    """The same numbers on every device."""
    x = torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return x.to(device=device, dtype=dtype)


def penalties(dtype: torch.dtype, device: str) -> list[Tensor]:
    """Penalties with their gradients, the points of one, and what a critic's loss takes of the squared norms."""
    real, fake = (_drawn((24, 3, 16, 16), seed, dtype, device) for seed in (1, 2))
    found = []
    for name in gan.PENALTIES:
        found += gan.penalties.penalty_gradient(name, 0.05 * real, 10.0)
    found += gan.penalty_points("wgan-gp", real, fake, seed=3, stream=4, sample_offset=5)
    seeds = torch.arange(24, device=device)
    found += gan.penalty_points(
        "wgan-gp", real.contiguous(memory_format=torch.channels_last), fake, seed=seeds
    )
    weight = _drawn((3, 1, 1), 6, dtype, device).requires_grad_()
    x = real.clone().requires_grad_()
    (g,) = torch.autograd.grad((weight * x).pow(2).sum() / 100, x, create_graph=True)
    loss = gan.penalties.penalty_value("wgan-gp", squared_norms(g), 10.0)
    return [*found, loss.detach(), *torch.autograd.grad(loss, (weight, x))]


def glow(channels: int, dtype: torch.dtype, device: str) -> list[Tensor]:
    """Two steps with recomputation, and all gradients."""
    half = channels // 2
    x = _drawn((8, channels, 16, 16), 1, dtype, device).requires_grad_()
    steps, given = [], [x]
    for k in (10, 20):
        network = torch.nn.Conv2d(half, channels, 1, device=device, dtype=dtype)
        network.weight.data.copy_(0.1 * _drawn((channels, half, 1, 1), k, dtype, device))
        network.bias.data.copy_(0.1 * _drawn((channels,), k + 1, dtype, device))
        bias, log_scale = (0.2 * _drawn((channels,), k + j, dtype, device) for j in (2, 3))
        turned = torch.eye(channels, dtype=dtype, device=device)
        weight = turned + 0.02 * _drawn((channels, channels), k + 4, dtype, device)
        own = [t.requires_grad_() for t in (bias, log_scale, weight)]
        given += [*own, *network.parameters()]
        log_abs_det = torch.zeros((), dtype=dtype, device=device)
        steps.append(GlowParameters(own[0], own[1], own[2], log_abs_det, network))
    y, logdet = ops.glow_steps(x, steps)
    loss = (y * _drawn(tuple(y.shape), 3, dtype, device)).sum() + logdet.sum()
    return [y.detach(), logdet.detach(), *torch.autograd.grad(loss, given)]


def samples(channels: int, dtype: torch.dtype, device: str) -> list[Tensor]:
    planes = 10 if channels == 3 else 3
    params = _drawn((16, 5 * planes, 8, 8), 1, dtype, device)
    kinds = params[:, 5:].unflatten(1, (channels, -1, 5))
    kinds[:, :, 1] = kinds[:, :, 1] - 3
    seeds = torch.arange(16, device=device)
    draw = ops.sample_discretized_mix_logistic
    return [draw(params, channels, 7, stream=1, sample_offset=9), draw(params, channels, seeds)]


def check(device: str) -> dict[str, float]:
    """The largest error of each, relative to a tensor's largest number; of samples the share that differs."""
    torch.backends.cudnn.allow_tf32 = False
    calls: dict[str, tuple[Callable[..., list[Tensor]], tuple[Any, ...], torch.dtype]] = {}
    for dtype in FLOATS:
        calls[f"penalties, {dtype}"] = penalties, (), dtype
        for channels in (1, 3):
            calls[f"samples of {channels} channels, {dtype}"] = samples, (channels,), dtype
    for channels in (12, 24, 48):
        for dtype in FLOATS[:2]:
            calls[f"Glow of {channels} channels, {dtype}"] = glow, (channels,), dtype
    errors = {}
    for name, (function, arguments, dtype) in calls.items():
        expected, worst = function(*arguments, dtype, "cpu"), 0.0
        for a, b in zip(function(*arguments, dtype, device), expected, strict=True):
            assert a.shape == b.shape, f"{name}: {tuple(a.shape)}, not {tuple(b.shape)}"
            assert a.dtype == b.dtype, f"{name}: {a.dtype}, not {b.dtype}"
            apart = a.cpu().double() - b.double()
            if function is samples:
                worst = max(worst, (apart != 0).double().mean().item())
            else:
                worst = max(worst, (apart.abs().max() / b.double().abs().max()).item())
        limit = 2e-3 if function is samples else 64 * max(torch.finfo(dtype).eps, 1e-14)
        assert worst <= limit, f"{name}: off by {worst:.3g}, allowed {limit:.3g}"
        errors[name] = worst
    return errors
