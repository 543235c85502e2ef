"""The U-Net of DDPM (Ho, Jain & Abbeel 2020, appendix B) for images of any size.

Residual blocks of group norm, SiLU and 3 x 3 convolutions, told the time; self-attention on small maps;
strided convolutions on the way down, nearest neighbours and a convolution on the way up. The last
layer of every branch starts at zero.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from pyfastgan.diffusion.mlp import Embedding, check_times, with_estimate
from pyfastgan.nn import NormAct

_HEAD = 32  # channels of an attention head


def _norm(channels: int, act: str) -> NormAct:
    """At least four channels a group, and at most 32 groups."""
    most = min(32, channels // 4)
    groups = next(count for count in range(most, 0, -1) if channels % count == 0)
    return NormAct("group", channels, groups=groups, act=act)


def _zeroed(layer: nn.Conv2d) -> nn.Conv2d:
    nn.init.zeros_(layer.weight)
    assert layer.bias is not None
    nn.init.zeros_(layer.bias)
    return layer


class _Residual(nn.Module):
    """skip(x) + conv(drop(act(norm(conv(act(norm(x))) + embedding))))."""

    def __init__(self, inner: int, outer: int, embedding: int, dropout: float) -> None:
        super().__init__()
        self.norm1, self.conv1 = _norm(inner, "silu"), nn.Conv2d(inner, outer, 3, padding=1)
        self.embed = nn.Linear(embedding, outer)
        self.norm2, self.dropout = _norm(outer, "silu"), nn.Dropout(dropout)
        self.conv2 = _zeroed(nn.Conv2d(outer, outer, 3, padding=1))
        self.skip = nn.Identity() if inner == outer else nn.Conv2d(inner, outer, 1)

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        h = self.conv1(self.norm1(x)) + self.embed(embedding)[..., None, None]
        return self.skip(x) + self.conv2(self.dropout(self.norm2(h)))


class _Attention(nn.Module):
    """x + what its places have to say to each other."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.heads = max(1, channels // _HEAD)
        self.norm = _norm(channels, "linear")
        self.inwards = nn.Conv2d(channels, 3 * channels, 1)
        self.outwards = _zeroed(nn.Conv2d(channels, channels, 1))

    def forward(self, x: Tensor) -> Tensor:
        n, c, height, width = x.shape
        parts = self.inwards(self.norm(x)).reshape(n, 3, self.heads, c // self.heads, -1)
        query, key, value = parts.transpose(3, 4).unbind(1)
        seen = functional.scaled_dot_product_attention(query, key, value)
        return x + self.outwards(seen.transpose(2, 3).reshape(n, c, height, width))


class _Level(nn.Module):
    """A residual block, attention behind it where it is wanted."""

    def __init__(
        self, inner: int, outer: int, embedding: int, dropout: float, attends: bool
    ) -> None:
        super().__init__()
        self.block = _Residual(inner, outer, embedding, dropout)
        self.attention = _Attention(outer) if attends else nn.Identity()

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        return self.attention(self.block(x, embedding))


class UNet(nn.Module):
    """A U-Net for images (N, channels, size, size).

    Args:
        channels: Of the images.
        size: Pixels a side, halved without a rest by every level but the last.
        out: Channels that are predicted; `channels` by default.
        width: Channels of the first level; a multiple of 4.
        multipliers: Channels of each level, over `width`.
        blocks: Residual blocks a level on the way down, and one more on the way up.
        attention: Maps of at most so many pixels a side attend to themselves; the middle always does.
        dropout: In the residual blocks.
        classes, time_scale: Of the `Embedding`.
        self_conditioning: Whether an earlier estimate of x_0 is an input too.

    Raises `ValueError` for counts below 1, a width that is no multiple of 4, a size that cannot be halved.
    """

    def __init__(
        self,
        channels: int,
        size: int,
        *,
        out: int | None = None,
        width: int = 64,
        multipliers: Sequence[int] = (1, 2, 2),
        blocks: int = 2,
        attention: int = 16,
        dropout: float = 0.0,
        classes: int | None = None,
        time_scale: float = 1.0,
        self_conditioning: bool = False,
    ) -> None:
        super().__init__()
        if width < 4 or width % 4:
            raise ValueError(f"width must be a positive multiple of 4, got {width}")
        if channels < 1:
            raise ValueError(f"channels must be at least 1, got {channels}")
        if blocks < 1 or not multipliers or min(multipliers) < 1:
            raise ValueError(
                f"blocks and multipliers must be at least 1, got {blocks}, {multipliers}"
            )
        halvings = len(multipliers) - 1
        if size < 1 or size % 2**halvings:
            raise ValueError(
                f"size must be a multiple of {2**halvings} for {len(multipliers)} levels, got {size}"
            )
        self.channels, self.size, self.self_conditioning = channels, size, self_conditioning
        embedding = 4 * width
        self.embedding = Embedding(embedding, time_scale, classes)
        self.input = nn.Conv2d(channels * (1 + self_conditioning), width, 3, padding=1)
        self.down, self.up = nn.ModuleList(), nn.ModuleList()
        kept, now, side = [width], width, size
        for level, multiplier in enumerate(multipliers):
            for _ in range(blocks):
                new = width * multiplier
                self.down.append(_Level(now, new, embedding, dropout, side <= attention))
                now = new
                kept.append(now)
            if level < halvings:
                self.down.append(nn.Conv2d(now, now, 3, 2, 1))
                kept.append(now)
                side //= 2
        self.middle = nn.ModuleList(
            (
                _Level(now, now, embedding, dropout, True),
                _Level(now, now, embedding, dropout, False),
            )
        )
        for level, multiplier in reversed(list(enumerate(multipliers))):
            for _ in range(blocks + 1):
                new = width * multiplier
                self.up.append(_Level(now + kept.pop(), new, embedding, dropout, side <= attention))
                now = new
            if level > 0:
                self.up.append(
                    nn.Sequential(nn.Upsample(scale_factor=2), nn.Conv2d(now, now, 3, padding=1))
                )
                side *= 2
        self.norm = _norm(now, "silu")
        self.output = _zeroed(nn.Conv2d(now, out or channels, 3, padding=1))
        # torch convolves sooner in this layout on a CPU.
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def forward(
        self, x: Tensor, time: Tensor, labels: Tensor | None = None, x0: Tensor | None = None
    ) -> Tensor:
        """The prediction (N, out, size, size).

        Args:
            x: (N, channels, size, size).
            time: (N,).
            labels: int64 (N,), of a conditional network.
            x0: Like x, the estimate of a network with self-conditioning; zeros by default.
        """
        if x.shape[1:] != (self.channels, self.size, self.size):
            raise ValueError(
                f"x must be of shape (N, {self.channels}, {self.size}, {self.size}),"
                f" got {tuple(x.shape)}"
            )
        check_times(time, x)
        x = with_estimate(x, x0) if self.self_conditioning else x
        embedding = functional.silu(self.embedding(time, labels))
        h = self.input(x)
        kept = [h]
        for part in self.down:
            h = part(h, embedding) if isinstance(part, _Level) else part(h)
            kept.append(h)
        for part in self.middle:
            h = part(h, embedding)
        for part in self.up:
            if isinstance(part, _Level):
                h = part(torch.cat((h, kept.pop()), 1), embedding)
            else:
                h = part(h)
        return self.output(self.norm(h))
