"""What whole flows are made of beside the layers of `pyfastgan.nn`.

Every layer is called `y, logdet = layer(x, condition)` from data towards the base, and `x, logdet = layer.inverse(y,
condition)` back. One that has something to take from a first batch has `y = layer.init(x, condition)`.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pyfastgan._names import check_choice
from pyfastgan.nn import GlowStep, run_glow_steps, split
from pyfastgan.ops import affine_coupling
from pyfastgan.ops.affine_coupling import SCALES
from pyfastgan.ops.rational_quadratic_spline import packed_rational_quadratic_spline

# What nflows adds to its softplus.
_LEAST_SCALE = 1e-3


def no_logdet(x: Tensor) -> Tensor:
    """Zeros (N,), float32 or better."""
    wide = torch.float64 if x.dtype == torch.float64 else torch.float32
    return x.new_zeros(x.size(0), dtype=wide)


def initialize(layer: nn.Module, x: Tensor, condition: Tensor | None = None) -> Tensor:
    """Hands a first batch to a layer that wants one, and returns the layer's output."""
    if isinstance(layer, (Chain, GlowSteps, MultiScale, GlowStep)):
        return layer.init(x, condition)
    if hasattr(layer, "init"):
        return layer.init(x)  # type: ignore[operator]
    y: Tensor = layer(x, condition)[0]
    return y


class Chain(nn.ModuleList):
    """Layers one after the other, the first nearest to the data."""

    def forward(self, x: Tensor, condition: Tensor | None = None) -> tuple[Tensor, Tensor]:
        total: Tensor | None = None
        for layer in self:
            x, logdet = layer(x, condition)
            total = logdet if total is None else total + logdet
        return x, no_logdet(x) if total is None else total

    def inverse(self, y: Tensor, condition: Tensor | None = None) -> tuple[Tensor, Tensor]:
        total: Tensor | None = None
        for layer in reversed(self):
            y, logdet = layer.inverse(y, condition)  # type: ignore[operator]
            total = logdet if total is None else total + logdet
        return y, no_logdet(y) if total is None else total

    @torch.no_grad()
    def init(self, x: Tensor, condition: Tensor | None = None) -> Tensor:
        for layer in self:
            x = initialize(layer, x, condition)
        return x


class GlowSteps(nn.ModuleList):
    """A row of `pyfastgan.nn.GlowStep`; with recompute it keeps one activation, however long it is."""

    def __init__(self, steps: Iterable[GlowStep], *, recompute: bool = True) -> None:
        super().__init__(steps)
        self.recompute = recompute

    def forward(self, x: Tensor, condition: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return run_glow_steps(self, x, condition, self.recompute)  # type: ignore[arg-type]

    def inverse(self, y: Tensor, condition: Tensor | None = None) -> tuple[Tensor, Tensor]:
        total = no_logdet(y)
        for step in reversed(self):
            y, logdet = step.inverse(y, condition)  # type: ignore[operator]
            total = total + logdet
        return y, total

    def init(self, x: Tensor, condition: Tensor | None = None) -> Tensor:
        for step in self:
            x = step.init(x, condition)  # type: ignore[operator]
        return x


class MultiScale(nn.Module):
    """Levels for images (Dinh et al. 2017): after each but the last, half of the channels goes on and the other half
    is done with. Gives vectors (N, C H W), what left first in front.

    Args:
        levels: Layers, each for what the one before lets go on.
        shapes: (C, H, W) of what leaves each level.
    """

    def __init__(self, levels: Sequence[nn.Module], shapes: Sequence[tuple[int, int, int]]) -> None:
        super().__init__()
        self.levels, self.shapes = nn.ModuleList(levels), list(shapes)

    def forward(self, x: Tensor, condition: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return self._run(x, condition, False)

    def init(self, x: Tensor, condition: Tensor | None = None) -> Tensor:
        return self._run(x, condition, True)[0]

    def _run(self, x: Tensor, condition: Tensor | None, first: bool) -> tuple[Tensor, Tensor]:
        done, total = [], no_logdet(x)
        for k, level in enumerate(self.levels):
            if first:
                x = initialize(level, x, condition)
            else:
                x, logdet = level(x, condition)
                total = total + logdet
            if k < len(self.levels) - 1:
                x, z = split(x)
                done.append(z.flatten(1))
        return torch.cat([*done, x.flatten(1)], 1), total

    def inverse(self, y: Tensor, condition: Tensor | None = None) -> tuple[Tensor, Tensor]:
        total = no_logdet(y)
        parts = y.split([math.prod(shape) for shape in self.shapes], 1)
        x: Tensor | None = None
        for level, part, shape in zip(
            reversed(self.levels), reversed(parts), reversed(self.shapes), strict=True
        ):
            z = part.unflatten(1, shape)
            x, logdet = level.inverse(z if x is None else torch.cat((x, z), 1), condition)  # type: ignore[operator]
            total = total + logdet
        assert x is not None
        return x, total


class Flatten(nn.Module):
    """Images of a shape to vectors."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.shape = shape

    def forward(self, x: Tensor, condition: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return x.flatten(1), no_logdet(x)

    def inverse(self, y: Tensor, condition: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return y.unflatten(1, self.shape), no_logdet(y)


class Centre(nn.Module):
    """x - 1/2, for dequantised images."""

    def forward(self, x: Tensor, condition: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return x - 0.5, no_logdet(x)

    def inverse(self, y: Tensor, condition: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return y + 0.5, no_logdet(y)


class Logit(nn.Module):
    """logit(a + (1 - 2 a) x) for dequantised images x in [0, 1] (Dinh et al. 2017)."""

    def __init__(self, alpha: float = 0.05) -> None:
        super().__init__()
        if not 0 < alpha < 0.5:
            raise ValueError(f"alpha must lie between 0 and 0.5, got {alpha}")
        self.alpha = alpha

    def forward(self, x: Tensor, condition: Tensor | None = None) -> tuple[Tensor, Tensor]:
        y = torch.logit(self.alpha + (1 - 2 * self.alpha) * x)
        return y, self._logdet(y)

    def inverse(self, y: Tensor, condition: Tensor | None = None) -> tuple[Tensor, Tensor]:
        x = (torch.sigmoid(y) - self.alpha) / (1 - 2 * self.alpha)
        return x, -self._logdet(y)

    def _logdet(self, y: Tensor) -> Tensor:
        wide = y if y.dtype == torch.float64 else y.float()
        each = math.log(1 - 2 * self.alpha) - F.logsigmoid(wide) - F.logsigmoid(-wide)
        return each.flatten(1).sum(1)


class Permutation(nn.Module):
    """The features of (N, D, ...) in another order, which is stored with the model.

    Args:
        order: A permutation of 0 to D - 1.
    """

    order: Tensor

    def __init__(self, order: Tensor | Sequence[int]) -> None:
        super().__init__()
        order = torch.as_tensor(order)
        if order.dim() != 1 or not torch.equal(order.sort()[0], torch.arange(order.numel())):
            raise ValueError("order must hold each number from 0 to D - 1 once")
        self.register_buffer("order", order)

    def forward(self, x: Tensor, condition: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return x.index_select(1, self.order), no_logdet(x)

    def inverse(self, y: Tensor, condition: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return y.index_select(1, self.order.argsort()), no_logdet(y)


class CheckerboardCoupling(nn.Module):
    """An affine coupling of the pixels of one colour of a checkerboard, by those of the other (Dinh et al. 2017).

    Args:
        shape: (C, H, W).
        network: Takes the images with zeros for the transformed pixels, and the condition if there is one, and gives
            (N, 2 C, H, W): raw scales, then shifts.
        even: Whether the pixels with even i + j are the transformed ones.
        scale, clamp: Of `pyfastgan.ops.affine_coupling`; a scale that is 1 at 0, so not "sigmoid".
    """

    mask: Tensor

    def __init__(
        self,
        shape: tuple[int, int, int],
        network: nn.Module,
        *,
        even: bool = False,
        scale: str = "tanh",
        clamp: float = 2.0,
    ) -> None:
        super().__init__()
        check_choice("scale", scale, [name for name in SCALES if name != "sigmoid"])
        self.shape, self.network = tuple(shape), network
        self.settings: dict[str, Any] = {"scale": scale, "clamp": clamp}
        _, height, width = shape
        parity = (torch.arange(height)[:, None] + torch.arange(width)) % 2
        self.register_buffer("mask", (parity == (0 if even else 1)).float())

    def _run(self, x: Tensor, condition: Tensor | None, inverse: bool) -> tuple[Tensor, Tensor]:
        if tuple(x.shape[1:]) != self.shape:
            raise ValueError(f"x must be of shape (N, {self.shape}), got {tuple(x.shape)}")
        mask = self.mask.to(x.dtype)
        kept = x * (1 - mask)
        out = self.network(kept) if condition is None else self.network(kept, condition)
        raw, shift = (out.to(x.dtype) * mask).chunk(2, 1)
        return affine_coupling(x, raw, shift, inverse=inverse, **self.settings)

    def forward(self, x: Tensor, condition: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return self._run(x, condition, False)

    def inverse(self, y: Tensor, condition: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return self._run(y, condition, True)


class _Autoregressive(nn.Module):
    """Each feature is transformed by what a network says from those before it: density in one pass of the network, the
    inverse in as many as there are features."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def _transform(self, x: Tensor, out: Tensor, inverse: bool) -> tuple[Tensor, Tensor]:
        raise NotImplementedError

    def _numbers(self, x: Tensor, condition: Tensor | None) -> Tensor:
        out = self.network(x) if condition is None else self.network(x, condition)
        return out.unflatten(1, (x.size(1), -1)).to(x.dtype)

    def forward(self, x: Tensor, condition: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return self._transform(x, self._numbers(x, condition), False)

    def inverse(self, y: Tensor, condition: Tensor | None = None) -> tuple[Tensor, Tensor]:
        x, logdet = torch.zeros_like(y), no_logdet(y)
        for _ in range(y.size(1)):
            # Each pass has one feature more right; what the others hold must not become NaN.
            x, logdet = self._transform(y, self._numbers(x, condition), True)
        return x, logdet


class AffineAutoregressive(_Autoregressive):
    """y_i = x_i S_i + t_i (Papamakarios et al. 2017).

    Args:
        network: (N, D) to (N, 2 D), raw scale and shift of each feature next to each other, as `MADE` gives them.
        scale: "softplus", S = softplus(s) + 0.001 as in nflows, or one of `pyfastgan.ops.affine_coupling`.
    """

    def __init__(self, network: nn.Module, *, scale: str = "softplus") -> None:
        super().__init__(network)
        check_choice("scale", scale, ("softplus", *SCALES))
        self.scale = scale

    def _transform(self, x: Tensor, out: Tensor, inverse: bool) -> tuple[Tensor, Tensor]:
        raw, shift = out.unbind(2)
        scale = self.scale
        if scale == "softplus":
            raw, scale = (F.softplus(raw) + _LEAST_SCALE).log(), "exp"
        return affine_coupling(x, raw, shift, scale=scale, inverse=inverse)


class SplineAutoregressive(_Autoregressive):
    """A rational-quadratic spline of each feature (Durkan et al. 2019).

    Args:
        network: (N, D) to (N, D (3 K - 1)), the numbers of each feature next to each other, as `MADE` gives them.
        settings: Those of `pyfastgan.ops.rational_quadratic_spline`.
    """

    def __init__(self, network: nn.Module, **settings: Any) -> None:
        super().__init__(network)
        self.settings = settings

    def _transform(self, x: Tensor, out: Tensor, inverse: bool) -> tuple[Tensor, Tensor]:
        return packed_rational_quadratic_spline(x, out, inverse=inverse, **self.settings)


class Inverse(nn.Module):
    """A layer in the other direction."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor, condition: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return self.layer.inverse(x, condition)  # type: ignore[operator]

    def inverse(self, y: Tensor, condition: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return self.layer(y, condition)
