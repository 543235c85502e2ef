"""What `edge_conv` and `edge_conv_transpose` are tested and measured by: samples, bad calls and rows."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ._edge_kernels import size_of
from ._registry import BadCall, Row, Sample, T

Function = Callable[..., Tensor]


def samples(transposed: bool) -> tuple[Sample, ...]:
    def sample(
        label: str, image: tuple[int, ...], weight: tuple[int, ...], **settings: Any
    ) -> Sample:
        last = settings.pop("last", False)
        k, _, kh, kw = weight
        shape = image
        if transposed:
            s, p = settings["stride"], settings["padding"]
            sizes = (size_of(image[2], kh, s, p), size_of(image[3], kw, s, p))
            shape = (image[0], k, *sizes)
            extra = (image[2] + 2 * p - kh) % s
            settings = settings | ({"output_padding": extra} if extra else {})
        return Sample(label, (T(shape, channels_last=last), T(weight, scale=0.1)), settings)

    if transposed:
        return (
            # One channel, and a second vector in a row, over several pieces of work.
            sample("k3 s1 p1", (17, 1, 3, 38), (17, 1, 3, 3), stride=1, padding=1),
            # A kernel that is not square, and nothing cut.
            sample("channels last", (2, 2, 10, 8), (9, 2, 4, 2), stride=2, padding=0, last=True),
            sample("no samples", (0, 3, 4, 4), (8, 3, 4, 4), stride=2, padding=1),
        )
    return (
        # Rows that are not whole vectors; a number of features that is not whole tiles.
        sample("k4 s2 p1", (3, 3, 10, 8), (9, 3, 4, 4), stride=2, padding=1),
        # A whole square of 16 to transpose, and the ends of others.
        sample(
            "channels last",
            (2, 1, 5, 39),
            (19, 1, 4, 2),
            stride=2,
            padding=1,
            last=True,
            bias=T((19,)),
            act="leaky_relu",
        ),
        sample("relu", (2, 2, 6, 5), (8, 2, 3, 3), bias=T((8,)), act="relu"),
    )


def bad_calls(transposed: bool) -> tuple[BadCall, ...]:
    x, w = torch.zeros(2, 8, 6, 6), torch.zeros(8, 8, 4, 4)
    common = (
        BadCall("not a tensor", ([1.0], w), {}, TypeError, "x must be a tensor, got list"),
        BadCall("integers", (x.int(), w), {}, TypeError, "x must be float32"),
        BadCall("three dimensions", (x[0], w), {}, ValueError, "x must have 4 dimensions"),
        BadCall("a flat weight", (x, w[0]), {}, ValueError, "weight must have 4 dimensions"),
        BadCall("no kernel", (x, w[:, :, :0]), {}, ValueError, "weight must have elements"),
        BadCall("other channels", (x[:, :7], w), {}, ValueError, "weight must have 7 in dimension"),
        BadCall("mixed dtypes", (x, w.double()), {}, TypeError, "weight must have the dtype of x"),
        BadCall("mixed devices", (x, w.to("meta")), {}, ValueError, "weight must be on cpu"),
        BadCall("no stride", (x, w), {"stride": 0}, ValueError, "stride must be at least 1, got 0"),
        BadCall("a real stride", (x, w), {"stride": 1.5}, TypeError, "stride must be an integer"),
        BadCall("negative padding", (x, w), {"padding": -1}, ValueError, "padding must be at least 0"),
    )  # fmt: skip
    if transposed:
        return (
            *common,
            BadCall("a large output padding", (x, w), {"stride": 2, "output_padding": 2}, ValueError,
                    "output_padding must be less than stride 2, got 2"),
            BadCall("nothing left", (x, w), {"padding": 5}, ValueError, "padding 5 leaves nothing"),
            BadCall("no rows", (x[:, :, :0], w), {}, ValueError, "x must have channels, rows"),
        )  # fmt: skip
    return (
        *common,
        BadCall(
            "a wide bias", (x, w, torch.zeros(9)), {}, ValueError, r"bias must have shape \(8,\)"
        ),
        BadCall(
            "a double bias",
            (x, w, torch.zeros(8).double()),
            {},
            TypeError,
            "bias must have the dtype",
        ),
        BadCall("unknown activation", (x, w), {"act": "rely"}, ValueError, "did you mean 'relu'"),
        BadCall("negative slope", (x, w), {"slope": -1.0}, ValueError, "slope must be finite"),
        BadCall(
            "no rows",
            (x[:, :, :0], w),
            {"padding": 3},
            ValueError,
            "x must have channels, rows and columns",
        ),
        BadCall("a small image", (x[:, :, :3], w), {}, ValueError, "is smaller than the kernel"),
    )


def convolution_backward(
    dy: Tensor,
    x: Tensor,
    weight: Tensor,
    stride: int,
    padding: int,
    transposed: bool,
    mask: tuple[bool, bool, bool],
) -> tuple[Tensor, ...]:
    axes = ((stride,) * 2, (padding,) * 2, (1, 1), transposed, (0, 0), 1)
    return torch.ops.aten.convolution_backward(dy, x, weight, None, *axes, mask)


def rows(run: Function, transposed: bool, channels_last: bool = False) -> Sequence[Row]:
    batch, features, channels, size = 64, 64, 3, 64
    flops = 2 * batch * features * channels * size * size * 4

    def make(what: str) -> Callable[[], dict[str, Callable[[], Any]]]:
        def contestants() -> dict[str, Callable[[], Any]]:
            layout = torch.channels_last if channels_last else torch.contiguous_format
            image = torch.randn(batch, channels, size, size).contiguous(memory_format=layout)
            feature = torch.randn(batch, features, size // 2, size // 2)
            feature = feature.contiguous(memory_format=layout)
            w = torch.randn(features, channels, 4, 4)
            x, dy = (feature, image) if transposed else (image, feature)
            eager = F.conv_transpose2d if transposed else F.conv2d
            masks = {
                "data gradient": (True, False, False),
                "weight gradient": (False, True, False),
                "bwd": (True, True, False),
            }
            if what == "fwd":
                return {
                    "ours": lambda: run(x, w, stride=2, padding=1),
                    "eager": lambda: eager(x, w, None, 2, 1),
                }
            wanted = (*([x] if masks[what][0] else []), *([w] if masks[what][1] else []))
            for t in wanted:
                t.requires_grad_()
            y = run(x, w, stride=2, padding=1)
            return {
                "ours": lambda: torch.autograd.grad(y, wanted, dy, retain_graph=True),
                "eager": lambda: convolution_backward(dy, x, w, 2, 1, transposed, masks[what]),
            }

        return contestants

    name = "edge_conv_transpose 64->3" if transposed else "edge_conv 3->64"
    shape = f"{batch} images of {size} px, k4 s2 p1" + (", channels last" if channels_last else "")
    kinds = (
        {"fwd": 1, "bwd": 2} if transposed else {"fwd": 1, "data gradient": 1, "weight gradient": 1}
    )
    bytes = 4 * batch * size * size * (channels + features / 4)
    return [
        Row(f"{name} {what}", shape, make(what), bytes=bytes, flops=n * flops)
        for what, n in kinds.items()
    ]


def points_rows(run: Function) -> Sequence[Row]:
    def make(backward: bool) -> Callable[[], dict[str, Callable[[], Any]]]:
        def contestants() -> dict[str, Callable[[], Any]]:
            x = torch.randn(64, 100, 1, 1, requires_grad=backward)
            w = torch.randn(100, 512, 4, 4, requires_grad=backward)
            dy = torch.randn(64, 512, 4, 4)
            if not backward:
                return {
                    "ours": lambda: run(x, w),
                    "eager": lambda: F.conv_transpose2d(x, w),
                }
            y, z = run(x, w), F.conv_transpose2d(x, w)
            return {
                "ours": lambda: torch.autograd.grad(y, (x, w), dy, retain_graph=True),
                "eager": lambda: torch.autograd.grad(z, (x, w), dy, retain_graph=True),
            }

        return contestants

    sizes = 64 * 100, 100 * 512 * 16, 64 * 512 * 16
    return [
        Row(
            f"edge_conv_transpose 100->512 {('fwd', 'bwd')[backward]}",
            "64 points, k4",
            make(backward),
            bytes=4 * (2 if backward else 1) * sum(sizes),
            flops=(2 if backward else 1) * 2 * 64 * 100 * 512 * 16,
        )
        for backward in (False, True)
    ]
