"""A gated PixelCNN learns the entropy of a binary Markov raster.

Row by row each pixel of 16 x 16 equals the one to its left, and flips with probability 0.1; the first
of a row follows the first of the row above; the very first is a fair coin. So the entropy is
1 + 255 h bits an image, with h = -0.1 log2 0.1 - 0.9 log2 0.9 = 0.4690.
"""

import math
from pathlib import Path

import torch
from torch import Tensor

import pyfastgan as pf

SIZE, FLIP = 16, 0.1
BITS_OF_A_FLIP = -FLIP * math.log2(FLIP) - (1 - FLIP) * math.log2(1 - FLIP)
ENTROPY = (1 + (SIZE**2 - 1) * BITS_OF_A_FLIP) / SIZE**2


def rasters(count: int, seed: int) -> Tensor:
    """0 and 1, (count, 16, 16)."""
    generator = torch.Generator().manual_seed(seed)
    flips = torch.rand(count, SIZE, SIZE, generator=generator) < FLIP
    flips[:, 0, 0] = torch.rand(count, generator=generator) < 0.5
    first = flips[:, :, 0].cumsum(1)
    steps = torch.cat((first[:, :, None], flips[:, :, 1:]), 2)
    return steps.cumsum(2) % 2


def images(values: Tensor) -> Tensor:
    return values[:, None] * 2.0 - 1


def test_the_raster_is_learned_to_its_entropy(tmp_path: Path) -> None:
    run = pf.autoregressive.train(
        "pixelcnn",
        data=images(rasters(20_000, seed=1)),
        out=tmp_path / "run",
        levels=2,
        layers=2,
        width=16,
        first_kernel_size=3,
        steps=1200,
        learning_rate=3e-3,
        ema_decay=0.99,
        accelerator="cpu",
        sample_every=0,
    )
    model = pf.autoregressive.load(run)
    # The mean over 4,000 images is known to 0.001 bits a pixel.
    found = model.bits_per_dim(pf.data.TensorData(images(rasters(4_000, seed=2))))
    print(f"\n{found:.4f} bits/pixel, the entropy is {ENTROPY:.4f}")
    assert abs(found - ENTROPY) < 0.01

    # Samples flip as often, in the rows and in the first column.
    drawn = (model.sample(500, seed=3)[:, 0] > 0).long()
    for flips in (drawn[:, :, 1:] != drawn[:, :, :-1], drawn[:, 1:, 0] != drawn[:, :-1, 0]):
        assert abs(flips.double().mean() - FLIP) < 0.015
