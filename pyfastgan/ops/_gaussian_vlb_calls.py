"""gaussian_vlb: the calls that the contract tests make, those that it refuses, and the rows of the benchmarks."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from ._registry import BadCall, Row, Sample, T
from .diffuse import column


def _rows_of_a_schedule(rows: Tensor) -> Tensor:
    """Coefficients as schedules have them from any numbers: the first row decodes, the others do not."""
    x0_state, x0_prediction, mean_x0, mean_state, log_min, log_max, *_ = rows.unbind(-1)
    log_max = log_max.abs() - 4
    log_true = log_max - 1 - log_min.abs()
    decode = torch.zeros_like(log_max)
    decode.reshape(-1)[0] = 1
    columns = (
        x0_state,
        x0_prediction,
        mean_x0,
        mean_state,
        log_true + 0.2,
        log_max,
        log_true,
        decode,
    )
    return torch.stack(columns, -1)


def samples() -> tuple[Sample, ...]:
    def tensors(shape: tuple[int, ...], scale: float = 0.3) -> tuple[T, T, T, T]:
        x = T(shape, scale=scale)
        return T(shape, scale=scale, map=lambda t: t.clamp(-1, 1)), x, x, x

    def rows(*shape: int) -> T:
        return T((*shape, 8), map=_rows_of_a_schedule)

    x0, x_t, prediction, _ = tensors((2, 3))
    return (
        # Odd ends; the outer levels, levels far in the tails, and both terms.
        Sample("images", (*tensors((3, 2, 9, 11), 0.5), rows(3))),
        # Wide and narrow levels beside the standard deviation.
        Sample("few levels", (*tensors((2, 40)), rows(2)), {"levels": 5}),
        Sample("many levels", (*tensors((2, 40)), rows(2)), {"levels": 4000}),
        # Several pieces of work, cut inside of a sample; a bound that binds.
        Sample("several pieces", (*tensors((3, 5000)), rows(3)), {"clip": 0.5}),
        # Many samples in a piece, one row for all of them.
        Sample("points", (*tensors((40, 3)), rows())),
        Sample("fixed variance", (x0, x_t, prediction, None, rows(2)), {"clip": 1.0}),
        Sample("empty", (*tensors((0, 4)), rows())),
    )


def bad_calls() -> tuple[BadCall, ...]:
    x, row = torch.zeros(2, 3), torch.zeros(8)
    return (
        BadCall("integers", (x.long(), x, x, x, row), {}, TypeError, "x0 must be float32"),
        BadCall("one dimension", (row, row, row, row, row), {}, ValueError, r"x0 must have shape \(N, \.\.\.\)"),
        BadCall("x_t of another shape", (x, x.T, x, x, row), {}, ValueError, r"x_t must have shape \(2, 3\)"),
        BadCall("prediction of float64", (x, x, x.double(), x, row), {}, TypeError, "prediction must have the dtype"),
        BadCall("prediction is None", (x, x, None, x, row), {}, TypeError, "prediction must be a tensor"),
        BadCall("variance off", (x, x, x, x.to("meta"), row), {}, ValueError, "variance must have shape .* on cpu"),
        BadCall("too few coefficients", (x, x, x, x, row[:7]), {}, ValueError, r"coefficients must have shape \(8,\)"),
        BadCall("rows for others", (x, x, x, x, row.expand(3, 8)), {}, ValueError, "coefficients must have shape"),
        BadCall("a list", (x, x, x, x, [0.0] * 8), {}, TypeError, "coefficients must be a tensor, got list"),
        BadCall("one level", (x, x, x, x, row), {"levels": 1}, ValueError, "levels must be an int of at least 2"),
        BadCall("negative clip", (x, x, x, x, row), {"clip": -1.0}, ValueError, "clip must be finite and positive"),
    )  # fmt: skip


def _row() -> Row:
    """The hybrid objective's bound of a learned variance: 1000 steps of the linear schedule, the prediction detached.
    The eager side has the field's mathematics: the distribution function by tanh, logarithms kept above 1e-12."""
    shape = (64, 3, 32, 32)

    def make() -> dict[str, Any]:
        from .gaussian_vlb import gaussian_vlb

        x0 = torch.randint(256, shape) / 127.5 - 1
        x_t, eps, v = torch.randn(3, *shape)
        v.requires_grad_()
        t = torch.randint(1000, (64,))
        beta = torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64)
        now = (1 - beta).cumprod(0)
        before = torch.cat((now.new_ones(1), now[:-1]))
        posterior = beta * (1 - before) / (1 - now)
        log_posterior = torch.cat((posterior[1:2], posterior[1:])).log()
        tables = [
            1 / now.sqrt(),
            (1 / now - 1).sqrt(),
            beta * before.sqrt() / (1 - now),
            (1 - before) * (1 - beta).sqrt() / (1 - now),
            log_posterior,
            beta.log(),
        ]
        by_state, by_eps, *rest = tables
        first = (torch.arange(1000) == 0).double()
        all_rows = torch.stack((by_state, -by_eps, *rest, log_posterior, first), -1).float()
        tables = [table.float() for table in tables]

        def cdf(x: Tensor) -> Tensor:
            return 0.5 * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))

        def eager() -> Any:
            a, b, to_x0, to_state, low, high = (
                column(table[t], x0).expand(shape) for table in tables
            )
            share = (v + 1) / 2
            log_variance = share * high + (1 - share) * low
            predicted = a * x_t - b * eps
            mean, true = to_x0 * predicted + to_state * x_t, to_x0 * x0 + to_state * x_t
            kl = -1 + log_variance - low + torch.exp(low - log_variance)
            kl = 0.5 * (kl + (true - mean) ** 2 * torch.exp(-log_variance))
            centred, inverse = x0 - mean, torch.exp(-0.5 * log_variance)
            upper, lower = cdf(inverse * (centred + 1 / 255)), cdf(inverse * (centred - 1 / 255))
            inner = torch.log((upper - lower).clamp(min=1e-12))
            outer = torch.log((1 - lower).clamp(min=1e-12))
            inner = torch.where(x0 > 0.999, outer, inner)
            inner = torch.where(x0 < -0.999, torch.log(upper.clamp(min=1e-12)), inner)
            kl, nll = (e.mean((1, 2, 3)) / math.log(2) for e in (kl, -inner))
            return torch.autograd.grad(torch.where(t == 0, nll, kl).sum(), v)

        def ours() -> Any:
            nll = gaussian_vlb(x0, x_t, eps, v, all_rows[t])
            return torch.autograd.grad(nll.sum(), v)

        return {"ours": ours, "eager": eager}

    return Row("gaussian_vlb fwd+bwd", "64,3,32,32", make, bytes=(4 + 5) * 4 * math.prod(shape))


def rows() -> list[Row]:
    return [_row()]
