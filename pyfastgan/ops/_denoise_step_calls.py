"""denoise_step: the calls that the contract tests make, those that it refuses, and the rows of the benchmarks."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from ._registry import BadCall, Row, Sample, T


def samples() -> tuple[Sample, ...]:
    row, rows = T((11,)), T((3, 11))
    images, points = (3, 2, 9, 11), (40, 3)
    return (
        # Blocks of a sample, odd ends, a row for each sample, everything at once.
        Sample(
            "everything",
            (T(images), T(images), rows, 7),
            {
                "stream": 3,
                "sample_offset": 5,
                "add_noise": True,
                "unconditional": T(images),
                "guidance": T((3,)),
                "variance": T(images),
                "history1": T(images),
                "history2": T(images),
                "history3": T(images),
                "clip": 0.7,
                "quantile": 0.6,
                "quantile_limit": 1.1,
                "return_x0": True,
            },
        ),
        # Several pieces of work, one row, one number for the guidance.
        Sample(
            "guided, several pieces",
            (T((3, 20001)), T((3, 20001)), row),
            {"unconditional": T((3, 20001)), "guidance": 2.5, "clip": 1.0},
        ),
        # Samples that are shorter than a vector; two of three earlier tensors.
        Sample(
            "points",
            (T(points), T(points), row),
            {"noise": T(points), "add_noise": True, "history1": T(points), "history3": T(points), "return_x0": True},
        ),
        # The quantile between the two largest, of samples with one element, and the largest.
        Sample("dynamic", (T((3, 500)), T((3, 500)), rows), {"clip": 0.1, "quantile": 0.999}),
        Sample("dynamic of one", (T((3, 1)), T((3, 1)), rows), {"clip": 0.1, "quantile": 0.5}),
        Sample("dynamic maximum", (T((3, 7)), T((3, 7)), rows), {"clip": 0.1, "quantile": 1.0}),
        Sample("channels last", (T((2, 3, 4, 5), channels_last=True), T((2, 3, 4, 5)), row)),
        Sample("empty", (T((0, 4)), T((0, 4)), row, 1), {"add_noise": True, "clip": 1.0, "quantile": 0.9}),
    )  # fmt: skip


def bad_calls() -> tuple[BadCall, ...]:
    x, row = torch.zeros(2, 3), torch.zeros(11)
    calls: tuple[tuple[str, tuple[Any, ...], dict[str, Any], type[Exception], str], ...] = (
        ("integers", (x.long(), x, row), {}, TypeError, "x must be float32"),
        ("one dimension", (row, row, row), {}, ValueError, r"x must have shape \(N, \.\.\.\)"),
        ("prediction of another shape", (x, x.T, row), {}, ValueError, r"prediction must have shape \(2, 3\)"),
        ("prediction elsewhere", (x, x.to("meta"), row), {}, ValueError, "prediction must have shape .* on cpu"),
        ("too few coefficients", (x, x, row[:9]), {}, ValueError, r"coefficients must have shape \(11,\) or"),
        ("rows for others", (x, x, row.expand(3, 11)), {}, ValueError, "coefficients must have shape"),
        ("integer coefficients", (x, x, row.int()), {}, TypeError, "coefficients must be float32"),
        ("a list", (x, x, [0.0] * 11), {}, TypeError, "coefficients must be a tensor, got list"),
        ("guidance alone", (x, x, row), {"guidance": 2.0}, ValueError, "unconditional must be given with guidance"),
        ("no guidance", (x, x, row), {"unconditional": x}, ValueError, "guidance must be given with unconditional"),
        ("guidance text", (x, x, row), {"unconditional": x, "guidance": "2"}, TypeError, "guidance must be a tensor"),
        ("guidances", (x, x, row), {"unconditional": x, "guidance": row}, ValueError, "guidance must be a number"),
        ("variance of another shape", (x, x, row), {"variance": x.T}, ValueError, "variance must have shape"),
        ("history of another shape", (x, x, row), {"history2": x.T}, ValueError, "history2 must have shape"),
        ("history is a tuple", (x, x, row), {"history1": (x,)}, TypeError, "history1 must be a tensor"),
        ("negative clip", (x, x, row), {"clip": -1.0}, ValueError, "clip must be finite and positive"),
        ("quantile without clip", (x, x, row), {"quantile": 0.9}, ValueError, "clip must be given with a quantile"),
        ("quantile", (x, x, row), {"clip": 1.0, "quantile": 1.5}, ValueError, r"quantile must lie in \(0, 1\]"),
        ("limit alone", (x, x, row), {"quantile_limit": 2.0}, ValueError, "quantile_limit must be None"),
        ("limit", (x, x, row), {"clip": 1.0, "quantile": 0.9, "quantile_limit": 0.5}, ValueError, "quantile_limit"),
        ("seed in vain", (x, x, row, 3), {}, ValueError, "add_noise must be True where seed"),
        ("noise of another shape", (x, x, row), {"noise": x.T, "add_noise": True}, ValueError, "noise must have"),
    )  # fmt: skip
    return tuple(BadCall(*call) for call in calls)


_ROW_SHAPE = (16, 3, 64, 64)


def _ddpm_row() -> Row:
    """The ancestral step of a DDPM with 1000 steps of the linear schedule, x0 clipped, at t = 500."""

    def make() -> dict[str, Any]:
        from .denoise_step import denoise_step

        x, eps = torch.randn(2, *_ROW_SHAPE)
        beta = torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64)
        alpha_bar = (1 - beta).cumprod(0)
        now, before, b = alpha_bar[500].item(), alpha_bar[499].item(), beta[500].item()
        to_x0, to_state = (
            math.sqrt(before) * b / (1 - now),
            math.sqrt(1 - b) * (1 - before) / (1 - now),
        )
        deviation = math.sqrt(b * (1 - before) / (1 - now))
        alpha, sigma = math.sqrt(now), math.sqrt(1 - now)
        row = torch.tensor([1 / alpha, -sigma / alpha, to_state, to_x0, 0, deviation, *[0.0] * 5])

        def eager() -> Tensor:
            x0 = ((x - sigma * eps) / alpha).clamp(-1, 1)
            return to_x0 * x0 + to_state * x + deviation * torch.randn_like(x)

        def ours() -> Any:
            return denoise_step(x, eps, row, add_noise=True, clip=1.0)

        calls = {"ours": ours, "eager": eager}
        try:
            from diffusers import DDPMScheduler
        except ImportError:
            return calls
        scheduler: Any = DDPMScheduler(1000)
        scheduler.set_timesteps(1000)
        return calls | {"diffusers": lambda: scheduler.step(eps, 500, x)}

    size = ",".join(map(str, _ROW_SHAPE))
    return Row("denoise_step DDPM with noise", size, make, bytes=3 * 4 * math.prod(_ROW_SHAPE))


def _ddim_row(with_guidance: bool, shape: tuple[int, ...] = _ROW_SHAPE) -> Row:
    """A DDIM step from t = 500 to 480 of the same schedule, x0 clipped."""

    def make() -> dict[str, Any]:
        from .denoise_step import denoise_step

        x, conditional, unconditional = torch.randn(3, *shape)
        both = torch.cat((unconditional, conditional))
        alpha_bar = (1 - torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64)).cumprod(0)
        now, then = alpha_bar[500].item(), alpha_bar[480].item()
        alpha, sigma = math.sqrt(now), math.sqrt(1 - now)
        next_alpha, next_sigma = math.sqrt(then), math.sqrt(1 - then)
        row = torch.tensor([1 / alpha, -sigma / alpha, 0, next_alpha, next_sigma, *[0.0] * 6])
        scale = torch.tensor(3.0)

        def eager() -> Tensor:
            eps = conditional
            if with_guidance:
                without, eps = both.chunk(2)
                eps = without + 3.0 * (eps - without)
            x0 = ((x - sigma * eps) / alpha).clamp(-1, 1)
            return next_alpha * x0 + next_sigma * eps

        def ours() -> Any:
            if not with_guidance:
                return denoise_step(x, conditional, row, clip=1.0)
            without, eps = both.chunk(2)
            return denoise_step(x, eps, row, clip=1.0, unconditional=without, guidance=scale)

        calls = {"ours": ours, "eager": eager}
        try:
            from diffusers import DDIMScheduler
        except ImportError:
            return calls
        scheduler: Any = DDIMScheduler(1000)
        scheduler.set_timesteps(50)

        def diffusers() -> Any:
            eps = conditional
            if with_guidance:
                without, eps = both.chunk(2)
                eps = without + 3.0 * (eps - without)
            return scheduler.step(eps, 500, x)

        return calls | {"diffusers": diffusers}

    name = f"denoise_step {'guidance + ' if with_guidance else ''}DDIM"
    size = ",".join(map(str, shape))
    return Row(name, size, make, bytes=(3 + with_guidance) * 4 * math.prod(shape))


def rows() -> list[Row]:
    large = (64, 3, 64, 64)  # where the call no longer counts
    small = [_ddpm_row(), _ddim_row(False), _ddim_row(True)]
    return [*small, _ddim_row(False, large), _ddim_row(True, large)]
