"""From whole numbers to continuous ones and back, and reshaping: the ends of an image flow."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pyfastgan.ops import random_normal, random_uniform


def _check_image(x: Tensor, factor: int) -> None:
    if x.dim() != 4 or x.size(2) % factor or x.size(3) % factor:
        raise ValueError(
            f"x must be images (N, C, H, W) with sides that are multiples of {factor}, got shape {tuple(x.shape)}"
        )


def _no_logdet(x: Tensor) -> Tensor:
    return x.new_zeros(
        x.size(0), dtype=torch.float64 if x.dtype == torch.float64 else torch.float32
    )


class Squeeze(nn.Module):
    """Images (N, C, H, W) to (N, C f^2, H / f, W / f), each channel's f x f squares next to each other, and back."""

    def __init__(self, factor: int = 2) -> None:
        super().__init__()
        if factor < 1:
            raise ValueError(f"factor must be at least 1, got {factor}")
        self.factor = factor

    def forward(self, x: Tensor, condition: Tensor | None = None) -> tuple[Tensor, Tensor]:
        _check_image(x, self.factor)
        return F.pixel_unshuffle(x, self.factor), _no_logdet(x)

    def inverse(self, y: Tensor, condition: Tensor | None = None) -> tuple[Tensor, Tensor]:
        if y.dim() != 4 or y.size(1) % self.factor**2:
            raise ValueError(
                f"y must be images with a multiple of {self.factor**2} channels, got shape {tuple(y.shape)}"
            )
        return F.pixel_shuffle(y, self.factor), _no_logdet(y)

    def extra_repr(self) -> str:
        return f"{self.factor}"


def split(x: Tensor) -> tuple[Tensor, Tensor]:
    """The two halves of the channels of (N, C, ...): what goes on and what is done with, in a multi-scale flow.
    `torch.cat(halves, 1)` is the inverse.

    Raises:
        ValueError: the number of channels is odd.
    """
    if x.dim() < 2 or x.size(1) % 2:
        raise ValueError(
            f"x must have an even number of channels in dimension 1, got shape {tuple(x.shape)}"
        )
    first, second = x.chunk(2, 1)
    return first, second


class _Dequantize(nn.Module):
    def __init__(self, levels: int) -> None:
        super().__init__()
        if levels < 2:
            raise ValueError(f"levels must be at least 2, got {levels}")
        self.levels = levels

    def inverse(self, y: Tensor, condition: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """The whole numbers 0 to levels - 1 that y came from, as floats; what lies outside [0, 1) goes to the nearest.
        The log-determinant is that of the scaling, since no density belongs to a whole number."""
        x = (y * self.levels).floor().clamp(0, self.levels - 1)
        return x, _no_logdet(y) + math.prod(y.shape[1:]) * math.log(self.levels)

    def _place(self, x: Tensor, u: Tensor) -> Tensor:
        # Rounding, here and on the way back, must not reach a neighbouring level.
        room = 4 * torch.finfo(u.dtype).eps
        return (
            torch.minimum(torch.maximum(x + u, x * (1 + room)), (x + 1) * (1 - room)) / self.levels
        )

    def _log_scale(self, x: Tensor) -> float:
        return -math.prod(x.shape[1:]) * math.log(self.levels)

    def extra_repr(self) -> str:
        return f"levels={self.levels}"


def _as_float(x: Tensor) -> Tensor:
    """float32 or better: half types hold no fractions of 255."""
    return x if x.dtype == torch.float64 else x.float()


class UniformDequantize(_Dequantize):
    """y = (x + u) / levels with u uniform in [0, 1), for x of whole numbers 0 to levels - 1, of any dtype; y is
    float32, or float64 for float64.

    log p(y) + logdet is then a lower bound of log P(x), in nats (Theis et al. 2016). The noise comes from the op
    `random_uniform`: a seed gives the same everywhere, and without one it follows `torch.manual_seed`.
    """

    def __init__(self, levels: int = 256) -> None:
        super().__init__(levels)

    def forward(
        self,
        x: Tensor,
        condition: Tensor | None = None,
        *,
        seed: int | Tensor | None = None,
        sample_offset: int = 0,
    ) -> tuple[Tensor, Tensor]:
        x = _as_float(x)
        u = random_uniform(
            x.shape, seed, sample_offset=sample_offset, dtype=x.dtype, device=x.device
        )
        return self._place(x, u), _no_logdet(x) + self._log_scale(x)


class VariationalDequantize(_Dequantize):
    """y = (x + u) / levels with u drawn by a flow that sees x (Ho et al. 2019).

    `flow` is called as every layer, `flow(noise, condition)`, on normal noise of x's shape and the condition
    x / levels; a logistic function then takes its output into (0, 1). logdet holds the scaling and -log q(u | x), so
    that log p(y) + logdet is a lower bound of log P(x), in nats.
    """

    def __init__(self, flow: nn.Module, levels: int = 256) -> None:
        super().__init__(levels)
        self.flow = flow

    def forward(
        self,
        x: Tensor,
        condition: Tensor | None = None,
        *,
        seed: int | Tensor | None = None,
        sample_offset: int = 0,
    ) -> tuple[Tensor, Tensor]:
        x = _as_float(x)
        noise = random_normal(
            x.shape, seed, sample_offset=sample_offset, dtype=x.dtype, device=x.device
        )
        v, logdet = self.flow(noise, x / self.levels)
        normal = -0.5 * noise.square() - 0.5 * math.log(2 * math.pi)
        squash = F.logsigmoid(v) + F.logsigmoid(-v)
        more = (squash - normal).to(logdet.dtype).flatten(1).sum(1)
        return self._place(x, torch.sigmoid(v)), self._log_scale(x) + logdet + more
