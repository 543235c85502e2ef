"""Multi-scale flows over images: RealNVP, Glow, and spline couplings."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from pyfastgan._names import check_choice
from pyfastgan.flow.layers import (
    Centre,
    Chain,
    CheckerboardCoupling,
    GlowSteps,
    Logit,
    MultiScale,
)
from pyfastgan.flow.model import Flow, condition_size
from pyfastgan.flow.networks import ConvNet
from pyfastgan.flow.vectors import start_as_identity
from pyfastgan.nn import (
    ActNorm,
    AffineCoupling,
    GlowStep,
    InvertibleConv1x1,
    SplineCoupling,
    Squeeze,
    UniformDequantize,
    VariationalDequantize,
)
from pyfastgan.training.config import check_number

Shape = tuple[int, int, int]
DEQUANTIZATIONS = ("uniform", "variational")
# Couplings of the flow that draws variational noise.
_NOISE_COUPLINGS = 4


def default_scales(shape: Shape) -> int:
    """Halvings until a side has 4 pixels or fewer, or cannot be halved."""
    size, count = min(shape[1:]), 0
    while size > 4 and shape[1] % 2 ** (count + 1) == 0 and shape[2] % 2 ** (count + 1) == 0:
        size, count = size // 2, count + 1
    return max(count, 1)


class _ImageFlow(Flow):
    """Levels for images, and what makes whole numbers continuous before them."""

    def __init__(
        self,
        shape: Shape,
        scales: int,
        level: Callable[[Shape, bool], tuple[nn.Module, Shape]],
        front: nn.Module,
        *,
        levels: int,
        dequantization: str,
        width: int,
        classes: int | None,
        condition: int | None,
    ) -> None:
        now, made, shapes = shape, [], []
        for k in range(scales):
            last = k == scales - 1
            layer, (channels, height, across) = level(now, last)
            now = (channels if last else channels // 2, height, across)
            made.append(layer)
            shapes.append(now)
        super().__init__(
            Chain([front, MultiScale(made, shapes)]),
            shape,
            dequantize=_dequantize(dequantization, shape, levels, width),
            classes=classes,
            condition=condition,
        )


class ImageRealNVP(_ImageFlow):
    """RealNVP over images (Dinh et al. 2017): at each scale 3 checkerboard couplings, a squeeze, 3 channel couplings
    and a split; at the last 4 checkerboard couplings.

    ActNorm stands where the paper has batch norm, and Glow's network where it has residual ones.

    Args:
        shape: (C, H, W), H and W multiples of 2^(scales - 1).
        scales: By default as many as lead to 4 pixels.
        width: Channels of the networks' hidden layers.
        scale: Of `pyfastgan.ops.affine_coupling`.
        levels: Values of a pixel.
        dequantization: "uniform" or "variational".
        classes, condition: As for `Flow`.
    """

    def __init__(
        self,
        shape: Shape,
        *,
        scales: int | None = None,
        width: int = 64,
        scale: str = "tanh",
        levels: int = 256,
        dequantization: str = "uniform",
        classes: int | None = None,
        condition: int | None = None,
    ) -> None:
        extra = condition_size(classes, condition)
        scales = _check_scales(shape, scales, at_last=False)

        def checkerboards(now: Shape, count: int) -> list[nn.Module]:
            made: list[nn.Module] = []
            for k in range(count):
                network = ConvNet(now[0], 2 * now[0], width=width, condition=extra)
                coupling = CheckerboardCoupling(now, network, even=k % 2 == 1, scale=scale)
                made += [coupling, ActNorm(now[0])]
            return made

        def level(now: Shape, last: bool) -> tuple[nn.Module, Shape]:
            if last:
                return Chain(checkerboards(now, 4)), now
            inner = (4 * now[0], now[1] // 2, now[2] // 2)
            made = [*checkerboards(now, 3), Squeeze()]
            for k in range(3):
                network = ConvNet(inner[0] // 2, inner[0], width=width, condition=extra)
                mask = (torch.arange(inner[0]) < inner[0] // 2) ^ (k % 2 == 0)
                made += [
                    AffineCoupling(inner[0], network, mask=mask, scale=scale),
                    ActNorm(inner[0]),
                ]
            return Chain(made), inner

        super().__init__(
            shape,
            scales,
            level,
            Logit(),
            levels=levels,
            dequantization=dequantization,
            width=width,
            classes=classes,
            condition=condition,
        )


class Glow(_ImageFlow):
    """Glow (Kingma and Dhariwal 2018): at each scale a squeeze, a row of `pyfastgan.nn.GlowStep`, and a split whose
    half that leaves is normal with a mean and a variance that depend on the other half.

    Args:
        shape: (C, H, W), H and W multiples of 2^scales.
        steps: K, steps of each scale.
        scales: L; by default as many as lead to 4 pixels.
        width: Channels of the networks' hidden layers.
        lu: Of the convolutions.
        scale: Of the couplings. "sigmoid" is the paper's, whose inverse has no bound: a barely trained model may
            draw samples that overflow; "softclamp" bounds both directions.
        recompute: Keep one activation a row for the backward pass, however many steps it has.
        levels: Values of a pixel.
        dequantization: "uniform" or "variational".
        classes, condition: As for `Flow`.
    """

    def __init__(
        self,
        shape: Shape,
        *,
        steps: int = 8,
        scales: int | None = None,
        width: int = 64,
        lu: bool = False,
        scale: str = "sigmoid",
        recompute: bool = True,
        levels: int = 256,
        dequantization: str = "uniform",
        classes: int | None = None,
        condition: int | None = None,
    ) -> None:
        check_number("steps", steps, int, at_least=1)
        extra = condition_size(classes, condition)

        def row(channels: int) -> list[nn.Module]:
            several = [
                GlowStep(
                    channels,
                    ConvNet(channels // 2, channels, width=width, condition=extra),
                    lu=lu,
                    scale=scale,
                )
                for _ in range(steps)
            ]
            return [GlowSteps(several, recompute=recompute)]

        super().__init__(
            shape,
            _check_scales(shape, scales),
            _squeezed(row),
            Centre(),
            levels=levels,
            dequantization=dequantization,
            width=width,
            classes=classes,
            condition=condition,
        )


class ImageNSF(_ImageFlow):
    """Spline couplings over images (Durkan et al. 2019): Glow with splines, its convolutions in LU form.

    Args:
        shape, steps, scales, width, levels, dequantization, classes, condition: As for `Glow`.
        bins, tail_bound: Of the splines.
    """

    def __init__(
        self,
        shape: Shape,
        *,
        steps: int = 4,
        scales: int | None = None,
        width: int = 64,
        bins: int = 8,
        tail_bound: float = 3.0,
        levels: int = 256,
        dequantization: str = "uniform",
        classes: int | None = None,
        condition: int | None = None,
    ) -> None:
        check_number("steps", steps, int, at_least=1)
        check_number("bins", bins, int, at_least=1)
        extra = condition_size(classes, condition)

        def row(channels: int) -> list[nn.Module]:
            made: list[nn.Module] = []
            for _ in range(steps):
                outputs = SplineCoupling.numbers(bins) * (channels // 2)
                network = ConvNet(channels // 2, outputs, width=width, condition=extra)
                start_as_identity(network.final_layer, bins)
                coupling = SplineCoupling(channels, network, bins=bins, tail_bound=tail_bound)
                made += [ActNorm(channels), InvertibleConv1x1(channels, lu=True), coupling]
            return made

        super().__init__(
            shape,
            _check_scales(shape, scales),
            _squeezed(row),
            Centre(),
            levels=levels,
            dequantization=dequantization,
            width=width,
            classes=classes,
            condition=condition,
        )


def _squeezed(
    row: Callable[[int], list[nn.Module]],
) -> Callable[[Shape, bool], tuple[nn.Module, Shape]]:
    """A level of a squeeze, a row of layers, and the prior of the half that leaves."""

    def level(now: Shape, last: bool) -> tuple[nn.Module, Shape]:
        inner = (4 * now[0], now[1] // 2, now[2] // 2)
        made: list[nn.Module] = [Squeeze(), *row(inner[0])]
        if not last:
            made.append(AffineCoupling(inner[0], _SplitPrior(inner[0] // 2)))
        return Chain(made), inner

    return level


class _SplitPrior(nn.Conv2d):
    """Log-scale and shift of the half that leaves, from the one that stays; zero at first."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels, 2 * channels, 3, 1, 1)
        for parameter in self.parameters():
            nn.init.zeros_(parameter)

    def forward(self, x: Tensor, condition: Tensor | None = None) -> Tensor:
        return super().forward(x)


class _Beside(nn.Module):
    """A network that sees the images that are its condition."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        return self.network(torch.cat((x, condition.to(x.dtype)), 1))


def _dequantize(kind: str, shape: Shape, levels: int, width: int) -> nn.Module:
    check_choice("dequantization", kind, DEQUANTIZATIONS)
    if kind == "uniform":
        return UniformDequantize(levels)
    couplings = [
        CheckerboardCoupling(
            shape, _Beside(ConvNet(2 * shape[0], 2 * shape[0], width=width)), even=k % 2 == 1
        )
        for k in range(_NOISE_COUPLINGS)
    ]
    return VariationalDequantize(Chain(couplings), levels)


def _check_scales(shape: Shape, scales: int | None, at_last: bool = True) -> int:
    """The number of scales, after checking that images can be squeezed that often."""
    if len(shape) != 3:
        raise ValueError(f"shape must be (C, H, W), got {tuple(shape)}")
    scales = default_scales(shape) if scales is None else scales
    check_number("scales", scales, int, at_least=1)
    step = 2 ** (scales if at_last else scales - 1)
    if shape[1] % step or shape[2] % step:
        raise ValueError(
            f"the sides of the images must be multiples of {step} for {scales} scales, got {shape[1]} x {shape[2]}"
        )
    return scales
