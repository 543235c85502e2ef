"""The parts of a Glow step beside its network: kernels of a GPU where they fit, torch's operations elsewhere.

    mix        z = M x + c, actnorm and 1x1 convolution in one
    couple     y = (z1, coupling of z2), from the network's output for z1: raw scales, then shifts
    uncouple   z2 back from y, and the gradients of z2 and of the network's output
    unmix      x back from z, and the gradients of x, M and c

None of them records a graph; `mix_channels` and `affine_coupling` do.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from ._common import accumulation, fresh, needs_grad
from ._registry import Kernel
from .affine_coupling import _backward as coupling_backward
from .affine_coupling import affine_coupling

# Of a pixel, which a kernel has in registers as the columns of a product; and what a block of pixels is not wasted on.
MOST_CHANNELS = {"glow_mix": 64, "glow_unmix": 32}
_LEAST_PIXELS = 16


def mix_channels(x: Tensor, matrix: Tensor, offset: Tensor | None = None) -> Tensor:
    """matrix x + offset at every position of (N, C, ...), in x's precision under autocast too."""
    if torch.is_autocast_enabled(x.device.type):
        with torch.autocast(x.device.type, enabled=False):
            return mix_channels(x, matrix, offset)
    matrix = matrix.to(x.dtype)
    offset = None if offset is None else offset.to(x.dtype)
    if x.dim() == 2:
        return F.linear(x, matrix, offset)
    if x.dim() == 4 and not x.is_contiguous():
        return F.conv2d(x, matrix[:, :, None, None], offset)
    # A product for each sample: a convolution takes up to twice as long.
    flat, each = x.flatten(2), matrix.expand(x.size(0), -1, -1)
    mixed = torch.bmm(each, flat) if offset is None else torch.baddbmm(offset[:, None], each, flat)
    return mixed.view(x.shape)


def _couple_reference(
    z: Tensor, out: Tensor, scale: str, clamp: float, shift_first: bool
) -> tuple[Tensor, Tensor]:
    z1, z2 = z.chunk(2, 1)
    y2, logdet = affine_coupling(
        z2, *out.chunk(2, 1), scale=scale, clamp=clamp, shift_first=shift_first
    )
    return torch.cat((z1, y2), 1), logdet


def _uncouple_reference(
    y: Tensor,
    out: Tensor,
    dy: Tensor,
    dlogdet: Tensor,
    scale: str,
    clamp: float,
    shift_first: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    y2, dy2 = y.chunk(2, 1)[1], dy.chunk(2, 1)[1]
    raw, shift = out.chunk(2, 1)
    z2, _ = affine_coupling(
        y2, raw, shift, scale=scale, clamp=clamp, shift_first=shift_first, inverse=True
    )
    kept = y2 if shift_first else z2
    dz2, draw = coupling_backward(
        dy2, dlogdet, kept, raw, scale, float(clamp), bool(shift_first), False
    )
    return z2, dz2, torch.cat((draw, dz2 if shift_first else dy2), 1)


def _unmix_reference(
    y: Tensor,
    z2: Tensor,
    dy: Tensor,
    dz1: Tensor | None,
    dz2: Tensor,
    matrix: Tensor,
    inverse: Tensor,
    offset: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    y1, dy1 = y.chunk(2, 1)[0], dy.chunk(2, 1)[0]
    dz = torch.cat((dy1 if dz1 is None else dy1 + dz1, dz2), 1)
    x = mix_channels(torch.cat((y1, z2), 1), inverse, offset)
    dx = mix_channels(dz, matrix.T)
    acc = accumulation(dz.dtype)
    rows, columns = dz.to(acc), x.to(acc)
    if dz.dim() == 2:
        dmatrix = rows.T @ columns
    else:  # a product for each sample, as in `mix_channels`
        dmatrix = torch.bmm(rows.flatten(2), columns.flatten(2).transpose(1, 2)).sum(0)
    return x, dx, dmatrix, rows.sum((0, *range(2, dz.dim())))


def _mix_fake(x: Tensor, matrix: Tensor, offset: Tensor) -> Tensor:
    return fresh(x, x.shape)


def _couple_fake(
    z: Tensor, out: Tensor, scale: str, clamp: float, shift_first: bool
) -> tuple[Tensor, Tensor]:
    return fresh(z, z.shape), z.new_empty(z.size(0), dtype=accumulation(z.dtype))


def _uncouple_fake(
    y: Tensor,
    out: Tensor,
    dy: Tensor,
    dlogdet: Tensor,
    scale: str,
    clamp: float,
    shift_first: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    half = (y.size(0), y.size(1) // 2, *y.shape[2:])
    return fresh(y, half), fresh(y, half), fresh(y, y.shape)


def _unmix_fake(
    y: Tensor,
    z2: Tensor,
    dy: Tensor,
    dz1: Tensor | None,
    dz2: Tensor,
    matrix: Tensor,
    inverse: Tensor,
    offset: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    acc = accumulation(y.dtype)
    return (
        fresh(y, y.shape),
        fresh(y, y.shape),
        y.new_empty(matrix.shape, dtype=acc),
        y.new_empty(offset.shape, dtype=acc),
    )


_mix = Kernel(
    "glow_mix(Tensor x, Tensor matrix, Tensor offset) -> Tensor",
    reference=mix_channels,
    fake=_mix_fake,
    triton="glow_step:glow_mix",
)
_couple = Kernel(
    "glow_couple(Tensor z, Tensor out, str scale, float clamp, bool shift_first) -> (Tensor, Tensor)",
    reference=_couple_reference,
    fake=_couple_fake,
    triton="glow_step:glow_couple",
)
_uncouple = Kernel(
    "glow_uncouple(Tensor y, Tensor out, Tensor dy, Tensor dlogdet, str scale, float clamp, bool shift_first) "
    "-> (Tensor, Tensor, Tensor)",
    reference=_uncouple_reference,
    fake=_uncouple_fake,
    triton="glow_step:glow_uncouple",
)
_unmix = Kernel(
    "glow_unmix(Tensor y, Tensor z2, Tensor dy, Tensor? dz1, Tensor dz2, Tensor matrix, Tensor inverse, "
    "Tensor offset) -> (Tensor, Tensor, Tensor, Tensor)",
    reference=_unmix_reference,
    fake=_unmix_fake,
    triton="glow_step:glow_unmix",
)
KERNELS = (_mix, _couple, _uncouple, _unmix)


def _fits(kernel: Kernel, x: Tensor, *others: Tensor) -> bool:
    """Whether a GPU's kernel serves, which records no graph."""
    if not kernel.on_gpu(x.device) or needs_grad(x, *others) or not x.is_contiguous():
        return False
    pixels = math.prod(x.shape[2:])
    few = x.size(1) <= MOST_CHANNELS.get(kernel.name, x.size(1))
    return few and x.size(0) > 0 and pixels >= _LEAST_PIXELS


def mix(x: Tensor, matrix: Tensor, offset: Tensor) -> Tensor:
    """Differentiable where a graph is recorded."""
    return (_mix if _fits(_mix, x, matrix, offset) else mix_channels)(x, matrix, offset)


def couple(
    z: Tensor, out: Tensor, *, scale: str, clamp: float, shift_first: bool
) -> tuple[Tensor, Tensor]:
    """Differentiable where a graph is recorded. `out` lies as z does."""
    run = _couple if _fits(_couple, z, out) else _couple_reference
    return run(z, out, scale, float(clamp), bool(shift_first))


def uncouple(
    y: Tensor,
    out: Tensor,
    dy: Tensor,
    dlogdet: Tensor,
    *,
    scale: str,
    clamp: float,
    shift_first: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """z2, and the gradients of z2 and of the network's output."""
    run = _uncouple if _fits(_uncouple, y) else _uncouple_reference
    return run(y, out, dy, dlogdet, scale, float(clamp), bool(shift_first))


def unmix(y: Tensor, *arguments: Tensor | None) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Of (y, z2, dy, dz1, dz2, matrix, inverse, offset of the inverse): x, and the gradients of x, matrix and
    offset; dz1 may be None."""
    return (_unmix if _fits(_unmix, y) else _unmix_reference)(y, *arguments)  # type: ignore[arg-type]
