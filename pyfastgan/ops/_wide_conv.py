"""Convolutions in the middle of a network, which are torch's but for the weight gradient of the commonest kind.

torch's weight gradient runs at two thirds of the rate of its forward pass, and lays its result out twice. Of a 4 x 4
convolution of stride 2 and padding 1 between layers of 32 channels and more, by which GANs halve and double their
images, ours takes 9/16 of the products (csrc/cpu/conv_weight_tiles.cpp). On two AVX-512 threads of one core: 64
images, 64 -> 128 channels, 32 -> 16 pixels, 13 ms where torch takes 17; 128 -> 256, 16 -> 8 pixels, 9 where torch takes
17; 32 images, 128 -> 256, 8 -> 4 pixels, 1.5 where torch takes 2.9; 16 images, 32 -> 64 channels, 0.12 where torch
takes 0.25. Its error against float64 is in the mean 1.1 times torch's where sums are of thousands of products, and
twice torch's where they are of a few dozen. Where a number is not finite, the same gradients are not finite,
though torch may give an infinity where ours is NaN.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from . import _backends
from ._common import address, apply, forward_mode, fresh, is_channels_last, needs_grad
from ._registry import Kernel, Row

_convolution = torch.ops.aten.convolution.default
_convolution_backward = torch.ops.aten.convolution_backward.default

# Stride, padding and dilation of what the kernel computes.
_KIND = ((2, 2), (1, 1), (1, 1))
# Channels and features come in whole panels of the widest vectors. The kernel keeps 144 bytes for each pair of both.
_CHANNELS, _FEATURES, _MOST = 32, 16, 1 << 18
_SERVED = (
    _backends.cpu_kernel("conv_weight_tiles") is not None
    and _backends.native("_cpu").isa != "portable"
)


def _reference(image: Tensor, feature: Tensor, channels_last: bool) -> Tensor:
    weight = _fake(image, feature, channels_last)
    mask = [False, True, False]
    gradient = _convolution_backward(
        feature, image, weight, None, *map(list, _KIND), False, [0, 0], 1, mask
    )[1]
    form = torch.channels_last if channels_last else torch.contiguous_format
    return gradient.contiguous(memory_format=form)


def _fake(image: Tensor, feature: Tensor, channels_last: bool) -> Tensor:
    shape = (feature.size(1), image.size(1), 4, 4)
    return fresh(image, shape, channels_last=channels_last)


def _cpu(image: Tensor, feature: Tensor, channels_last: bool) -> Tensor:
    image = image.contiguous(memory_format=torch.channels_last)
    feature = feature.contiguous(memory_format=torch.channels_last)
    gradient = _fake(image, feature, channels_last)
    if len(image) == 0:
        return gradient.zero_()
    _backends.native("_cpu").conv_weight_tiles(
        *(address(image), address(feature), address(gradient), channels_last),
        *(*image.shape[:2], *feature.shape[1:], torch.get_num_threads()),
    )
    return gradient


_tiles = Kernel(
    "conv_weight_tiles(Tensor image, Tensor feature, bool channels_last) -> Tensor",
    reference=_reference,
    fake=_fake,
    cpu=_cpu,
)


def serves(weight: Tensor, image_size: tuple[int, ...], conv: tuple[Any, ...]) -> bool:
    """Whether there is a kernel for the weight gradient of a convolution, transposed or not.

    Args:
        weight: The weight, (features, channels, kh, kw).
        image_size: Height and width of the larger side, where the channels are.
        conv: Stride, padding, dilation, transposed, output_padding, groups.
    """
    if not _SERVED or weight.dtype != torch.float32 or weight.device.type != "cpu":
        return False
    if _backends.choice.name not in ("auto", "cpu") or weight.shape[2:] != (4, 4):
        return False
    features, channels = weight.shape[:2]
    if features % _FEATURES or channels % _CHANNELS or features * channels > _MOST:
        return False
    stride, padding, dilation, _, output_padding, groups = conv
    kind = (tuple(stride), tuple(padding), tuple(dilation))
    # Tiles are of 2 x 2 places, and no pixel lies behind the last one.
    whole = image_size[0] % 4 == 0 and image_size[1] % 4 == 0 and 0 not in image_size
    return kind == _KIND and groups == 1 and max(output_padding) == 0 and whole


def weight_gradient(image: Tensor, feature: Tensor, channels_last: bool) -> Tensor:
    """The gradient of a weight (features, channels, 4, 4) for which there `serves` a kernel.

    Args:
        image: (N, channels, 2 H, 2 W), the input or, of a transposed convolution, the cotangent.
        feature: (N, features, H, W), the cotangent or the input.
        channels_last: The layout of the gradient.
    """
    return _tiles(image, feature, channels_last)


class _Convolution(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, conv: tuple[Any, ...]) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.conv = conv
        return _convolution(x, weight, None, *conv)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Any, ...]:
        x, weight = ctx.saved_tensors
        want_x, want_weight = ctx.needs_input_grad[:2]
        if not want_weight or needs_grad(dy, x, weight):
            # To be differentiated again, as torch does.
            mask = [want_x, want_weight, False]
            return *_convolution_backward(dy, x, weight, None, *ctx.conv, mask)[:2], None
        dx = None
        if want_x:
            mask = [True, False, False]
            dx = _convolution_backward(dy, x, weight, None, *ctx.conv, mask)[0]
        image, feature = (dy, x) if ctx.conv[3] else (x, dy)
        last = not weight.is_contiguous() and is_channels_last(weight)
        return dx, weight_gradient(image, feature, last), None


def convolve(
    x: Tensor,
    weight: Tensor,
    stride: int,
    padding: int,
    transposed: bool = False,
    output_padding: int = 0,
) -> Tensor:
    """torch's convolution or transposed convolution, its weight gradient by the kernel where that `serves`."""
    conv = (
        *([stride, stride], [padding, padding], [1, 1]),
        *(transposed, [output_padding, output_padding], 1),
    )
    if (
        x.device.type == "cpu"
        and needs_grad(weight)
        and not torch.compiler.is_compiling()
        and not torch._C._are_functorch_transforms_active()
        and not forward_mode()
        and is_channels_last(x)
    ):
        scale = stride if transposed else 1
        size = (x.size(2) * scale, x.size(3) * scale)
        if serves(weight, size, conv):
            result: Tensor = apply(_Convolution, x, weight, conv)
            return result
    if transposed:
        return torch.nn.functional.conv_transpose2d(
            x, weight, None, stride, padding, output_padding
        )
    return torch.nn.functional.conv2d(x, weight, None, stride, padding)


def rows() -> Sequence[Row]:
    """Weight gradients alone, beside torch's."""

    def make(
        batch: int, channels: int, features: int, size: int
    ) -> Callable[[], dict[str, Callable[[], Any]]]:
        def contestants() -> dict[str, Callable[[], Any]]:
            form = torch.channels_last
            image = torch.randn(batch, channels, size, size).contiguous(memory_format=form)
            dy = torch.randn(batch, features, size // 2, size // 2).contiguous(memory_format=form)
            return {
                "ours": lambda: weight_gradient(image, dy, False),
                "eager": lambda: _reference(image, dy, False),
            }

        return contestants

    found = []
    for batch, channels, features, size in ((64, 64, 128, 32), (32, 128, 256, 8)):
        places = batch * size * size // 4
        plain = 2 * places * channels * features * 16
        moved = 4 * (batch * size * size * channels + places * features + channels * features * 16)
        found.append(
            Row(
                f"wide convolution {channels}->{features} weight gradient",
                f"{batch} images of {size} px, k4 s2 p1, channels last",
                make(batch, channels, features, size),
                bytes=moved,
                flops=plain * 9 / 16,
            )
        )
    return found
