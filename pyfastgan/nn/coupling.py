"""Coupling layers: a network reads some of the variables and says how the others are transformed.

Every layer of a flow is called `y, logdet = layer(x, condition)` from data towards the base, and
`x, logdet = layer.inverse(y, condition)` back; logdet is (N,), in float32 or better, of the direction that was called.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from pyfastgan._names import check_choice
from pyfastgan.ops import affine_coupling
from pyfastgan.ops.affine_coupling import SCALES
from pyfastgan.ops.rational_quadratic_spline import (
    PARAMETERISATIONS,
    packed_rational_quadratic_spline,
)


class _Coupling(nn.Module):
    """Splits the channels by a mask that is stored with the model, and puts them together again."""

    kept: Tensor
    changed: Tensor

    def __init__(
        self, channels: int, network: nn.Module, mask: Tensor | Sequence[bool] | None
    ) -> None:
        super().__init__()
        if channels < 2:
            raise ValueError(f"channels must be at least 2, got {channels}")
        if mask is None:
            if channels % 2:
                raise ValueError(
                    f"channels must be even for an even split, got {channels}; give a mask"
                )
            mask = torch.arange(channels) >= channels // 2
        mask = torch.as_tensor(mask)
        if mask.dtype != torch.bool or mask.shape != (channels,):
            raise ValueError(
                f"mask must be {channels} booleans, true where a channel is transformed, got {mask.dtype} of shape "
                f"{tuple(mask.shape)}"
            )
        if mask.all() or not mask.any():
            raise ValueError("mask must transform some channels and keep some")
        self.channels, self.network = channels, network
        self.register_buffer("kept", torch.nonzero(~mask).flatten())
        self.register_buffer("changed", torch.nonzero(mask).flatten())

    def _transform(self, x: Tensor, out: Tensor, inverse: bool) -> tuple[Tensor, Tensor]:
        """The transformed channels, from those and the network's output."""
        raise NotImplementedError

    def _run(self, x: Tensor, condition: Tensor | None, inverse: bool) -> tuple[Tensor, Tensor]:
        if x.dim() < 2 or x.size(1) != self.channels:
            raise ValueError(
                f"x must have {self.channels} channels in dimension 1, got shape {tuple(x.shape)}"
            )
        first = x.index_select(1, self.kept)
        out = self.network(first) if condition is None else self.network(first, condition)
        y, logdet = self._transform(x.index_select(1, self.changed), out, inverse)
        return x.index_copy(1, self.changed, y), logdet

    def forward(self, x: Tensor, condition: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return self._run(x, condition, False)

    def inverse(self, y: Tensor, condition: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return self._run(y, condition, True)


def _check_output(out: Tensor, x: Tensor, each: int) -> None:
    expected = (x.size(0), each * x.size(1), *x.shape[2:])
    if out.shape != expected:
        raise ValueError(
            f"network must give shape {expected}, {each} numbers for each transformed element, got {tuple(out.shape)}"
        )


class AffineCoupling(_Coupling):
    """An affine coupling (Dinh et al. 2017) over the channels of (N, C, ...), by `pyfastgan.ops.affine_coupling`.

    Args:
        channels: C; even unless there is a mask.
        network: takes the kept channels (N, kept, ...), and the condition if there is one, and gives
            (N, 2 * transformed, ...): the raw scales of all channels, then their shifts.
        mask: C booleans, true where a channel is transformed; by default the second half.
        scale, clamp, shift_first: those of the op.
    """

    def __init__(
        self,
        channels: int,
        network: nn.Module,
        *,
        mask: Tensor | Sequence[bool] | None = None,
        scale: str = "exp",
        clamp: float = 2.0,
        shift_first: bool = False,
    ) -> None:
        super().__init__(channels, network, mask)
        check_choice("scale", scale, SCALES)
        self.scale, self.clamp, self.shift_first = scale, clamp, shift_first

    def _transform(self, x: Tensor, out: Tensor, inverse: bool) -> tuple[Tensor, Tensor]:
        _check_output(out, x, 2)
        raw, shift = out.to(x.dtype).chunk(2, 1)
        return affine_coupling(
            x,
            raw,
            shift,
            scale=self.scale,
            clamp=self.clamp,
            shift_first=self.shift_first,
            inverse=inverse,
        )

    def extra_repr(self) -> str:
        return f"{self.channels}, scale={self.scale!r}, clamp={self.clamp}, shift_first={self.shift_first}"


class SplineCoupling(_Coupling):
    """A rational-quadratic spline coupling (Durkan et al. 2019) over the channels of (N, C, ...), by
    `pyfastgan.ops.rational_quadratic_spline`.

    Args:
        channels: C; even unless there is a mask.
        network: takes the kept channels (N, kept, ...), and the condition if there is one, and gives
            (N, `logits` * transformed, ...): all numbers of the first channel (widths, heights, derivatives), then of
            the next one, as in nflows.
        bins: K.
        mask: C booleans, true where a channel is transformed; by default the second half.
        tails, tail_bound, min_bin_width, min_bin_height, min_derivative, parameterisation: those of the op.

    Attributes:
        logits: numbers for each transformed element: 3 K - 1 with tails, 3 K + 1 without, 3 K + 1 for freia.
    """

    def __init__(
        self,
        channels: int,
        network: nn.Module,
        *,
        bins: int = 8,
        mask: Tensor | Sequence[bool] | None = None,
        tails: str | None = "linear",
        tail_bound: float = 3.0,
        min_bin_width: float = 1e-3,
        min_bin_height: float = 1e-3,
        min_derivative: float = 1e-3,
        parameterisation: str = "nflows",
    ) -> None:
        super().__init__(channels, network, mask)
        check_choice("parameterisation", parameterisation, PARAMETERISATIONS)
        if bins < 1:
            raise ValueError(f"bins must be at least 1, got {bins}")
        most = 2 * tail_bound if parameterisation == "freia" else 1 / bins
        for name, least in (("min_bin_width", min_bin_width), ("min_bin_height", min_bin_height)):
            if not 0 < least <= most:
                raise ValueError(
                    f"{name} must be positive and at most {most:.6g} for {bins} bins, got {least}"
                )
        self.bins = bins
        self.logits = self.numbers(bins, tails, parameterisation)
        self.settings: dict[str, Any] = {
            "tails": tails,
            "tail_bound": tail_bound,
            "min_bin_width": min_bin_width,
            "min_bin_height": min_bin_height,
            "min_derivative": min_derivative,
            "parameterisation": parameterisation,
        }

    @staticmethod
    def numbers(bins: int, tails: str | None = "linear", parameterisation: str = "nflows") -> int:
        """How many numbers the network has to give for each transformed element."""
        return 3 * bins + (1 if tails is None or parameterisation == "freia" else -1)

    def _transform(self, x: Tensor, out: Tensor, inverse: bool) -> tuple[Tensor, Tensor]:
        _check_output(out, x, self.logits)
        out = out.unflatten(1, (x.size(1), self.logits)).movedim(2, -1)
        return packed_rational_quadratic_spline(
            x, out.to(x.dtype), inverse=inverse, **self.settings
        )

    def extra_repr(self) -> str:
        return ", ".join(
            [
                f"{self.channels}, bins={self.bins}",
                *(f"{k}={v!r}" for k, v in self.settings.items()),
            ]
        )
