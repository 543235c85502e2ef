"""Ten million normal numbers, as diffusion's noise is drawn: mean, variance, and the Kolmogorov-Smirnov distance."""

import math

import pytest
import torch
from scipy import stats

import pyfastgan as pf
from pyfastgan.ops.denoise_step import COEFFICIENTS

COUNT = 10_000_000


@pytest.mark.parametrize("way", ["random_normal", "diffuse", "denoise_step"])
def test_ten_million_draws(way: str) -> None:
    shape = (1000, COUNT // 1000)
    zero, one = torch.zeros(shape), torch.ones(shape[0])
    if way == "random_normal":
        z = pf.ops.random_normal(shape, 11)
    elif way == "diffuse":
        z = pf.ops.diffuse(zero, one, one, 12, return_noise=False)[0]
    else:
        row = torch.zeros(11)
        row[COEFFICIENTS.index("noise")] = 1.0
        z = pf.ops.denoise_step(zero, zero, row, 13, add_noise=True)[0]
    z = z.double().flatten()
    mean, variance = float(z.mean()), float(z.var())
    distance = stats.kstest(z.numpy(), "norm")
    print(
        f"\n{way}: mean {mean:.2e}, variance {variance:.6f}, Kolmogorov-Smirnov"
        f" {distance.statistic:.2e} (p = {distance.pvalue:.3f})"
    )
    # Four standard deviations of either estimate; a distance that is larger by chance once in a thousand.
    assert abs(mean) < 4 / math.sqrt(COUNT)
    assert abs(variance - 1) < 4 * math.sqrt(2 / COUNT)
    assert distance.pvalue > 1e-3
