"""Sampling 16 colour images of 32 x 32 from a gated PixelCNN of 10 layers and width 64.

Eager is the loop as most code writes it: a full forward pass for every pixel, of which one pixel is
kept; `compile` is the same with the network compiled. A whole image of it takes minutes, so the row
times 4 of the 1024 pixels: the last ones of a row in the middle. Ours does in these 4 pixels the work
of the vertical stack for the whole next row, which otherwise serves 32, so the ratio is a lower bound;
that of whole images is printed below it, with the naive loop taken as 256 times its 4 pixels.
pytest-benchmark's own table times whole images by ours.
"""

from statistics import median
from time import perf_counter

import torch
from torch.utils.flop_counter import FlopCounterMode

from pyfastgan.autoregressive import GatedPixelCNN, LogisticMixture
from pyfastgan.ops._registry import Row, ops

COUNT, SIZE, PIXELS = 16, 32, 4
FIRST = SIZE * SIZE // 2 + SIZE - PIXELS


def network():
    torch.manual_seed(0)
    return GatedPixelCNN(LogisticMixture(3), (SIZE, SIZE), layers=10, width=64).eval()


def cached(net, values):
    """Walks to the first pixel that is timed, once; each call draws the pixels from there on."""
    with torch.no_grad():
        cache = net.begin(COUNT)
        for pixel in range(FIRST):
            cache.parameters()
            cache.append(values[(..., *divmod(pixel, SIZE))])

    @torch.no_grad()
    def draw():
        cache.pixel = FIRST
        for pixel in range(FIRST, FIRST + PIXELS):
            cache.append(net.likelihood.draw(cache.parameters(), 0, pixel, 0))

    return draw


def naive(net, values, prepare=lambda net: net):
    forward = prepare(net)

    @torch.no_grad()
    def draw():
        for pixel in range(FIRST, FIRST + PIXELS):
            place = (..., *divmod(pixel, SIZE))
            parameters = forward(values)[place]
            values[place] = net.likelihood.draw(parameters, 0, pixel, 0)

    return draw


def test_sampling(measure, benchmark, capsys):
    net = network()
    values = net.sample(COUNT, 0)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        net(values)
    row = Row(
        "gated PixelCNN sampling, 10 layers, width 64",
        f"{PIXELS} of {SIZE * SIZE} pixels, {COUNT},3,{SIZE},{SIZE}",
        lambda: {
            "ours": cached(net, values.clone()),
            "eager": naive(net, values.clone()),
            "compile": naive(net, values.clone(), torch.compile),
        },
        bytes=0,
        flops=counter.get_total_flops() * PIXELS / SIZE**2,
    )
    result = measure(row, [ops()["discretized_mix_logistic"]])
    seconds = []
    for _ in range(3):
        start = perf_counter()
        net.sample(COUNT, 0)
        seconds.append(perf_counter() - start)
    whole = {
        f"{name}, whole images": entry["seconds"] * SIZE**2 / PIXELS / median(seconds)
        for name, entry in result["contestants"].items()
        if name != "ours" and "seconds" in entry
    }
    with capsys.disabled():
        print(f"\n    whole images by ours {median(seconds):.2f} s", end="")
        for name, ratio in whole.items():
            print(f"; {name} {ratio:.0f}x as long", end="")
    benchmark.extra_info |= result["ratios"] | whole
    benchmark(net.sample, COUNT, 0)
