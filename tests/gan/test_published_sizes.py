"""Parameters and shapes of the networks at the papers' sizes, against tables of their layers.

The tables are written from the papers: Isola et al. 2017, section 6.1; Zhu et al. 2017, section 7.2;
Brock et al. 2019, figure 15 and table 4; Karras et al. 2018, table 2. A row counts kernel^2 * in * out
weights and out biases, unless it says otherwise. No memory is taken: networks stand on the `meta` device.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import nn
from torch._subclasses import FakeTensorMode

from pyfastgan.gan import (
    BigGANDiscriminator,
    BigGANGenerator,
    GrowingDiscriminator,
    GrowingGenerator,
    PatchDiscriminator,
    ResNetGenerator,
    UNet,
)
from pyfastgan.gan import biggan as biggan_networks

Row = tuple[int, int, int]  # kernel, channels in, channels out


def normed(rows: Iterable[Row], *, affine: bool) -> int:
    """Convolutions before a norm, which have no bias; batch norm has two numbers a channel."""
    return sum(k * k * a * b + (2 * b if affine else 0) for k, a, b in rows)


def biased(rows: Iterable[Row]) -> int:
    return sum(k * k * a * b + b for k, a, b in rows)


def pix2pix() -> tuple[int, int]:
    encoder = [64, 128, 256, 512, 512, 512, 512, 512]
    # The decoder sees the encoder's maps beside its own: U-Net of the paper's section 6.1.1.
    decoder = [
        (512, 512),
        (1024, 512),
        (1024, 512),
        (1024, 512),
        (1024, 256),
        (512, 128),
        (256, 64),
    ]
    rows = [(4, a, b) for a, b in pairwise(encoder[:-1])]
    generator = biased([(4, 3, 64), (4, 512, 512), (4, 128, 3)])  # first, innermost, last: no norm
    generator += normed([*rows, *((4, a, b) for a, b in decoder)], affine=True)
    # C64-C128-C256-C512 on the image given and the image judged, then one channel.
    judge = biased([(4, 6, 64), (4, 512, 1)])
    judge += normed([(4, 64, 128), (4, 128, 256), (4, 256, 512)], affine=True)
    return generator, judge


def cyclegan() -> tuple[int, int]:
    # c7s1-64, d128, d256, R256 nine times, u128, u64, c7s1-3; instance norm without parameters.
    rows = [(7, 3, 64), (3, 64, 128), (3, 128, 256), *[(3, 256, 256)] * 18]
    rows += [(3, 256, 128), (3, 128, 64)]
    generator = normed(rows, affine=False) + biased([(7, 64, 3)])
    judge = biased([(4, 3, 64), (4, 512, 1)])
    judge += normed([(4, 64, 128), (4, 128, 256), (4, 256, 512)], affine=False)
    return generator, judge


def biggan() -> tuple[int, int]:
    ch, classes = 96, 1000
    told = 20 + 128  # a piece of z, and the shared embedding of the class
    generator = classes * 128 + (20 * 16 * 16 * ch + 16 * 16 * ch)
    for a, b in ((16, 16), (16, 8), (8, 4), (4, 2), (2, 1)):
        a, b = a * ch, b * ch
        generator += biased([(3, a, b), (3, b, b), (1, a, b)])
        generator += 2 * told * (a + b)  # gains and biases of both norms
    generator += attention(2 * ch)
    generator += 2 * ch + biased([(3, ch, 3)])  # batch norm, and the convolution to the image
    judge = attention(ch)
    for a, b in ((3, ch), (ch, 2 * ch), (2 * ch, 4 * ch), (4 * ch, 8 * ch), (8 * ch, 16 * ch)):
        judge += biased([(3, a, b), (3, b, b), (1, a, b)])
    judge += biased([(3, 16 * ch, 16 * ch)] * 2)  # the last block keeps the size: no shortcut
    judge += 16 * ch + 1 + classes * 16 * ch  # linear, and the embedding of the projection
    return generator, judge


def attention(c: int) -> int:
    return c * (c // 8) * 2 + c * (c // 2) * 2 + 1


def progan() -> tuple[int, int]:
    maps = [512, 512, 512, 512, 256, 128, 64, 32, 16]  # 4 x 4 to 1024 x 1024
    rows = [(4, 512, 512), (3, 512, 512)]
    for a, b in pairwise(maps):
        rows += [(3, a, b), (3, b, b)]
    generator = biased([*rows, (1, 16, 3)])
    rows = [(1, 3, 16)]
    for a, b in pairwise(maps[::-1]):
        rows += [(3, a, a), (3, a, b)]
    judge = biased([*rows, (3, 513, 512), (4, 512, 512), (1, 512, 1)])
    return generator, judge


def shape_of(network: nn.Module, *inputs: Any) -> tuple[int, ...]:
    """Of the output, without memory: tuples stand for images or vectors, numbers for labels."""
    with FakeTensorMode():
        state = {
            name: torch.empty(value.shape, dtype=value.dtype)
            for name, value in (*network.named_parameters(), *network.named_buffers())
        }
        given = tuple(
            torch.empty(i) if isinstance(i, tuple) else torch.zeros(i, dtype=torch.int64)
            for i in inputs
        )
        return tuple(torch.func.functional_call(network, state, given).shape)


# What the networks have in their published code, or in the paper's own words where they say so.
PUBLISHED = {
    "pix2pix": (54_414_531, 2_768_705),
    "cyclegan": (11_372_931, 2_763_841),
    "biggan": (70_433_988, 87_982_370),
    "progan": (23_071_507, 23_077_137),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_parameters_are_those_of_the_papers_tables(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(biggan_networks, "check_range", lambda *_: None)  # labels without values
    with torch.device("meta"):
        generator, judge = {
            "pix2pix": lambda: (UNet(), PatchDiscriminator(6)),
            "cyclegan": lambda: (ResNetGenerator(), PatchDiscriminator(3, norm="instance")),
            "biggan": lambda: (BigGANGenerator(classes=1000), BigGANDiscriminator(classes=1000)),
            "progan": lambda: (GrowingGenerator(), GrowingDiscriminator()),
        }[name]()
    # The layers to and from smaller images take no part at 1024 pixels.
    unused = tuple(f"{layer}.{k}." for layer in ("to_image", "from_image") for k in range(8))
    found = tuple(
        sum(p.numel() for key, p in network.named_parameters() if not key.startswith(unused))
        for network in (generator, judge)
    )
    table = {"pix2pix": pix2pix, "cyclegan": cyclegan, "biggan": biggan, "progan": progan}[name]()
    assert found == table == PUBLISHED[name]
    images = {"pix2pix": 256, "cyclegan": 256, "biggan": 128, "progan": 1024}[name]
    made = (2, 3, images, images)
    if name in ("pix2pix", "cyclegan"):
        assert shape_of(generator, made) == made
        channels = 6 if name == "pix2pix" else 3
        assert shape_of(judge, (2, channels, 256, 256)) == (2, 1, 30, 30)
    elif name == "biggan":
        assert shape_of(generator, (2, 120), 2) == made
        assert shape_of(judge, made, 2) == (2,)
    else:
        with FakeTensorMode():
            z = torch.empty(2, 512)
            state = {k: torch.empty(v.shape) for k, v in generator.named_parameters()}
            drawn = torch.func.functional_call(generator, state, (z, 1024, 1.0))
        assert tuple(drawn.shape) == made
        assert shape_of(judge, made) == (2,)
