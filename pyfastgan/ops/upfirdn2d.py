"""upfirdn2d: enlarge by zeros, pad, filter, and keep every so many-th pixel, of images.

    u = x with up - 1 zeros after each pixel, then `before` zeros ahead and `after` zeros behind, along rows and columns
    y[i, j] = sum over a, b of taps[a] taps[b] u[i down + K - 1 - a, j down + K - 1 - b],  K = len(taps)

x is (N, C, H, W) of any layout, y (N, C, H', W') with H' = (H up + before + after - K) // down + 1, channels-last where
x is. It is `scipy.signal.upfirdn` along rows and columns, but for where it begins and ends. Karras et al. 2020,
"Analyzing and improving the image quality of StyleGAN", use it to resample maps without aliasing.

Differentiable any number of times: the derivative is an upfirdn2d with up and down swapped and the taps reversed.
Half types are computed in float32 and rounded once. Deterministic, the same bits on any number of threads.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from . import _backends
from ._common import (
    TYPE_NUMBER,
    accumulation,
    address,
    apply,
    check_float,
    forward_mode,
    fresh,
    is_channels_last,
    needs_grad,
)
from ._registry import FLOATS, BadCall, Kernel, Op, Row, Sample, T, register

# Zeros left, right, above and below; negative ones crop.
Pads = Sequence[int]


def _size(x: Tensor, taps: Sequence[float], up: int, down: int, pads: Pads) -> tuple[int, int]:
    left, right, above, below = pads
    height = (x.size(2) * up + above + below - len(taps)) // down + 1
    return height, (x.size(3) * up + left + right - len(taps)) // down + 1


def _torch(x: Tensor, taps: Sequence[float], up: int, down: int, pads: Pads) -> Tensor:
    """By torch's operations; all taps as a correlation takes them, the last first."""
    dtype, (count, channels, height, width) = x.dtype, x.shape
    y = x.to(accumulation(dtype)).reshape(count * channels, 1, height, 1, width, 1)
    y = F.pad(y, (0, up - 1, 0, 0, 0, up - 1)).reshape(-1, 1, height * up, width * up)
    y = F.pad(y, list(pads))
    weight = y.new_tensor(list(taps))
    y = F.conv2d(F.conv2d(y, weight.reshape(1, 1, -1, 1)), weight.reshape(1, 1, 1, -1))
    y = y[..., ::down, ::down].reshape(count, channels, *_size(x, taps, up, down, pads)).to(dtype)
    return y.contiguous(memory_format=_format(x))


def upfirdn2d_reference(
    x: Tensor,
    taps: Sequence[float],
    *,
    up: int = 1,
    down: int = 1,
    padding: tuple[int, int] = (0, 0),
) -> Tensor:
    """The definition in plain PyTorch, differentiable by autograd any number of times."""
    return _torch(x, tuple(taps)[::-1], up, down, (*padding, *padding))


def _format(x: Tensor) -> torch.memory_format:
    last = is_channels_last(x) and not x.is_contiguous()
    return torch.channels_last if last else torch.contiguous_format


def _fake(x: Tensor, taps: Sequence[float], up: int, down: int, pads: Pads) -> Tensor:
    shape = (x.size(0), x.size(1), *_size(x, taps, up, down, pads))
    return fresh(x, shape, channels_last=_format(x) == torch.channels_last)


def _cpu(x: Tensor, taps: Sequence[float], up: int, down: int, pads: Pads) -> Tensor:
    x = x.contiguous(memory_format=_format(x))
    y = _fake(x, taps, up, down, pads)
    count, channels, height, width = x.shape
    last = _format(x) == torch.channels_last
    weights = torch.tensor(taps, dtype=torch.float64)
    _backends.native("_cpu").upfirdn2d(
        x.data_ptr(),
        address(y),
        weights.data_ptr(),
        *(len(taps), up, down),
        count if last else count * channels,
        *(height, width, channels if last else 1),
        *(y.size(2), y.size(3), pads[0], pads[2]),
        *(TYPE_NUMBER[x.dtype], torch.get_num_threads()),
    )
    return y


_forward = Kernel(
    "upfirdn2d(Tensor x, float[] taps, int up, int down, SymInt[] pads) -> Tensor",
    reference=_torch,
    fake=_fake,
    cpu=_cpu,
    triton="upfirdn2d:upfirdn2d",
)


def _call(x: Tensor, *options: Any) -> Tensor:
    return apply(_Upfirdn2d, x, *options) if needs_grad(x) else _forward(x, *options)


class _Upfirdn2d(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, taps: Sequence[float], up: int, down: int, pads: Pads) -> Tensor:
        return _forward(x, taps, up, down, pads)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        x, *ctx.options = inputs
        ctx.sizes = (x.shape[-1], output.shape[-1]), (x.shape[-2], output.shape[-2])

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        taps, up, down, pads = ctx.options
        back: list[int] = []
        for (size, out), before in zip(ctx.sizes, (pads[0], pads[2]), strict=True):
            back += [len(taps) - 1 - before, size * up - out * down + before - up + 1]
        return _call(dy, taps[::-1], down, up, back), None, None, None, None


def _check(x: Tensor, taps: Sequence[float], up: int, down: int, padding: Any) -> None:
    check_float("x", x)
    if x.dim() != 4:
        raise ValueError(f"x must have shape (N, C, H, W), got {tuple(x.shape)}")
    if isinstance(taps, (str, Tensor)) or not isinstance(taps, Sequence):
        raise TypeError(f"taps must be a list of numbers, got {type(taps).__name__}")
    for tap in taps:
        if isinstance(tap, bool) or not isinstance(tap, (int, float)):
            raise TypeError(f"taps must be numbers, got {tap!r}")
    if not taps or not all(map(math.isfinite, taps)):
        raise ValueError(f"taps must be one or more finite numbers, got {list(taps)}")
    for name, value in (("up", up), ("down", down)):
        if isinstance(value, bool) or not isinstance(value, int):
            raise TypeError(f"{name} must be an int, got {value!r}")
        if value < 1:
            raise ValueError(f"{name} must be at least 1, got {value}")
    pair = isinstance(padding, (tuple, list)) and len(padding) == 2
    if not pair or not all(isinstance(p, int) and not isinstance(p, bool) for p in padding):
        raise TypeError(f"padding must be two ints, zeros before and after, got {padding!r}")
    for size in x.shape[2:]:
        if size < 1 or size * up + sum(padding) < len(taps) or min(padding) <= -size * up:
            raise ValueError(
                f"x must be large enough: {size} pixels, times up={up}, with padding={tuple(padding)}"
                f" leave nothing for {len(taps)} taps"
            )


def upfirdn2d(
    x: Tensor,
    taps: Sequence[float],
    *,
    up: int = 1,
    down: int = 1,
    padding: tuple[int, int] = (0, 0),
) -> Tensor:
    """Images enlarged `up` times by zeros, filtered, and thinned out `down` times, in one pass.

    Args:
        x: (N, C, H, W) float32, float64, bfloat16 or float16, of any layout.
        taps: Of the filter along rows and along columns; both sums are usually `up`.
        up: Each pixel is followed by up - 1 zeros.
        down: Every down-th pixel is kept.
        padding: Zeros before and after, in both directions; negative numbers crop.

    Returns:
        (N, C, H', W') of x's dtype, H' = (H up + sum of padding - len(taps)) // down + 1.

    Raises:
        TypeError, ValueError: an argument has a wrong type, shape or range, or nothing would be
            left; the message names it.
    """
    _check(x, taps, up, down, padding)
    if forward_mode():
        return upfirdn2d_reference(x, taps, up=up, down=down, padding=padding)
    pads = [*padding, *padding]
    return _call(x, [float(tap) for tap in reversed(taps)], up, down, pads)


_BINOMIAL = (0.125, 0.375, 0.375, 0.125)
_SKEW = (0.1, -0.7, 0.4)


def _samples() -> tuple[Sample, ...]:
    twice = tuple(2 * tap for tap in _BINOMIAL)
    return (
        # StyleGAN2's three uses: enlarge, halve, blur; many channels last, few, none last.
        Sample("enlarge", (T((2, 20, 5, 4), channels_last=True), twice), {"up": 2, "padding": (2, 1)}),
        Sample("halve", (T((2, 3, 6, 8), channels_last=True), _BINOMIAL), {"down": 2, "padding": (1, 1)}),
        Sample("blur", (T((2, 3, 5, 9)), _BINOMIAL), {"padding": (2, 1)}),
        # What is not symmetric: taps, padding that crops, up and down together, sizes with a rest.
        Sample("skew", (T((1, 2, 6, 5)), _SKEW), {"up": 3, "down": 2, "padding": (-1, 3)}),
        Sample("several pieces", (T((3, 33, 40, 20), channels_last=True), _SKEW), {"padding": (1, 1)}),
        Sample("no images", (T((0, 2, 4, 4)), _BINOMIAL), {"padding": (2, 1)}),
    )  # fmt: skip


def _bad_calls() -> tuple[BadCall, ...]:
    x, taps = torch.zeros(1, 2, 4, 4), (0.5, 0.5)
    return (
        BadCall("no image", (x[0], taps), {}, ValueError, r"x must have shape \(N, C, H, W\)"),
        BadCall("integers", (x.long(), taps), {}, TypeError, "x must be float32"),
        BadCall("no taps", (x, ()), {}, ValueError, "taps must be one or more"),
        BadCall("NaN taps", (x, (math.nan,)), {}, ValueError, "taps must be one or more finite"),
        BadCall("a tensor", (x, torch.ones(2)), {}, TypeError, "taps must be a list of numbers, got Tensor"),
        BadCall("a tap", (x, ("1",)), {}, TypeError, "taps must be numbers"),
        BadCall("up 0", (x, taps), {"up": 0}, ValueError, "up must be at least 1, got 0"),
        BadCall("down 1.5", (x, taps), {"down": 1.5}, TypeError, "down must be an int"),
        BadCall("padding", (x, taps), {"padding": 1}, TypeError, "padding must be two ints"),
        BadCall("nothing left", (x, taps), {"padding": (-4, 0)}, ValueError, "x must be large enough"),
        BadCall("too small", (x, (1.0,) * 5), {}, ValueError, "x must be large enough"),
    )  # fmt: skip


def _row(name: str, shape: tuple[int, ...], last: bool, **options: Any) -> Row:
    up, down, padding = options.get("up", 1), options.get("down", 1), options["padding"]
    taps = tuple(up * tap for tap in _BINOMIAL)

    def make() -> dict[str, Callable[[], Any]]:
        x = torch.randn(shape)
        if last:
            x = x.contiguous(memory_format=torch.channels_last)
        x.requires_grad_()
        channels = shape[1]
        square = torch.outer(torch.tensor(taps), torch.tensor(taps)).expand(channels, 1, 4, 4)
        square = square.contiguous()

        def eager() -> Tensor:
            if up > 1:  # a depthwise transposed convolution, the shortest way to say it
                return F.conv_transpose2d(x, square, stride=up, padding=1, groups=channels)
            return F.conv2d(F.pad(x, padding * 2), square, stride=down, groups=channels)

        dy = torch.randn_like(upfirdn2d(x.detach(), taps, **options))

        def run(f: Callable[[], Tensor]) -> Callable[[], Any]:
            return lambda: torch.autograd.grad(f(), x, dy)

        return {"ours": run(lambda: upfirdn2d(x, taps, **options)), "eager": run(eager)}

    size = math.prod(shape)
    layout = "channels-last" if last else "contiguous"
    return Row(
        f"upfirdn2d fwd+bwd, {name}",
        f"{','.join(map(str, shape))} {layout}",
        make,
        bytes=2 * 4 * size * (1 + (up / down) ** 2),
    )


def _rows() -> Sequence[Row]:
    rows = []
    for last in (True, False):
        rows += [
            _row("enlarge", (16, 64, 32, 32), last, up=2, padding=(2, 1)),
            _row("halve", (16, 64, 64, 64), last, down=2, padding=(1, 1)),
            _row("blur", (16, 64, 65, 65), last, padding=(1, 1)),
        ]
    return rows


register(
    Op(
        name="upfirdn2d",
        function=upfirdn2d,
        reference=upfirdn2d_reference,
        kernels=(_forward,),
        samples=_samples(),
        bad_calls=_bad_calls(),
        orders=2,
        epsilon={dtype: 4 * torch.finfo(dtype).eps for dtype in FLOATS},
        rows=_rows,
    )
)
