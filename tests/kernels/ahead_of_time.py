"""Compiles every Triton kernel as a launch on a GPU would, without a GPU, and prints what it takes, as JSON lines.

The launchers run with tensors in host memory up to the launch itself. It is a process of its own because one process
cannot have both Triton's interpreter and its compiler.
"""

import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.runtime.jit import JITFunction

from pyfastgan.kernels import (
    affine_coupling,
    bias_act,
    conv_transpose_act,
    edge_conv,
    glow_step,
    mmd,
    nearest_code,
    norm_act,
    penalty,
    per_sample,
    random,
    reparameterize,
    upfirdn2d,
)
from pyfastgan.kernels.activation import ACTIVATIONS
from pyfastgan.ops._glow_parts import MOST_CHANNELS

IMAGES, SMALL_IMAGES, ODD = (16, 64, 32, 32), (16, 64, 8, 8), (7, 5, 3, 3)
PIECEWISE_LINEAR = ACTIVATIONS[:3]
COMPILE = JITFunction.run


class Recorder:
    """Stands for the driver of a GPU, and for the launches there: a kernel is compiled, measured, and not run."""

    def __init__(self, architecture):
        self.architecture, self.label = architecture, ""
        self.get_current_device = lambda: architecture  # compiled kernels are kept by device
        self.get_current_stream = lambda device: 0
        self.get_current_target = lambda: GPUTarget("cuda", architecture, 32)
        self.measured = set()

    def launch(self, kernel, *arguments, grid, warmup, **options):
        assert 0 < grid[0] < 2**31, f"{self.label}: a grid of {grid}"
        compiled = COMPILE(kernel, *arguments, grid=grid, warmup=True, **options)
        if compiled.hash in self.measured:
            return
        self.measured.add(compiled.hash)
        with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
            Path(file.name).write_bytes(compiled.asm["cubin"])
            tool = triton.knobs.nvidia.cuobjdump.path
            report = subprocess.check_output([tool, "--dump-resource-usage", file.name], text=True)
        used = {k: int(v) for k, v in re.findall(r"(REG|STACK|LOCAL):(\d+)", report)}
        vectors = len(re.findall(r"(?:ld|st)\.global[.\w]*\.v[248]\.", compiled.asm["ptx"]))
        line = {
            "kernel": f"{kernel.fn.__module__.rsplit('.')[-1]}:{kernel.fn.__name__}",
            "label": self.label,
            "sm": self.architecture,
            "vectors": vectors,
        }
        print(json.dumps(line | used), flush=True)


def run_bias_act(act, shape, dtype, clamp=None, masked=False):
    x, bias = torch.zeros(shape, dtype=dtype), torch.zeros(shape[1], dtype=dtype)
    settings = (act, 0.2, 1.5, clamp)
    y, mask = bias_act.bias_act(x, bias, *settings, masked)
    if act in PIECEWISE_LINEAR:
        bias_act.bias_act_backward(x, None, mask if masked else y, None, *settings, False, True)
    else:
        bias_act.bias_act_backward(x, None, x, bias, *settings, False, True)
        bias_act.bias_act_backward_backward(x, bias, x, x, bias, *settings, True)


# A norm's geometries: long rows, groups of short rows, columns, and groups down columns.
NORMED = (
    (IMAGES, "batch", 64, "leaky_relu", torch.float32, False),
    (IMAGES, "group", 8, "silu", torch.float32, True),
    (SMALL_IMAGES, "group", 8, "gelu", torch.bfloat16, False),
    (SMALL_IMAGES, "batch", 64, "tanh", torch.float64, True),
    (SMALL_IMAGES, "affine", 64, "relu", torch.float16, True),
)


def run_norm_act(shape, norm, groups, act, dtype, last):
    x = torch.zeros(shape, dtype=dtype)
    x = x.contiguous(memory_format=torch.channels_last) if last else x
    w = torch.zeros(shape[1], dtype=torch.float64 if dtype == torch.float64 else torch.float32)
    settings = (norm, groups, 1e-5, act, 0.2)
    _, mean, var = norm_act.norm_act(x, w, w, *settings)
    norm_act.norm_act_backward(x, x, mean, var, w, w, *settings)
    norm_act.norm_act_backward_backward(x, w, w, x, x, mean, var, w, w, *settings)


def run_rows(dtype):
    """What makes one number a sample."""
    x = torch.zeros((16, 3072), dtype=dtype)
    wide = torch.zeros(16, dtype=torch.float64 if dtype == torch.float64 else torch.float32)
    for seed, noise in ((torch.tensor(1), None), (torch.arange(16), None), (None, x)):
        reparameterize.reparameterize(x, x, seed, noise, 0, 0)
        reparameterize.reparameterize_backward(x, wide, x, x, seed, noise, 0, 0)
    per_sample.bernoulli_nll(x, x)
    per_sample.bernoulli_nll_backward(wide, x, x, 2)
    per_sample.gaussian_nll(x, x, x)
    per_sample.gaussian_nll_backward(wide, x, x, x, 7)
    for scale, first, inverse in (
        ("exp", False, False),
        ("tanh", False, True),
        ("sigmoid", True, False),
        ("softclamp", True, True),
    ):
        affine_coupling.affine_coupling(x, x, x, scale, 2.0, first, inverse)
        affine_coupling.affine_coupling_backward(x, wide, x, x, scale, 2.0, first, inverse)


def run_nearest_code(dtype):
    x, book = torch.zeros((4096, 64), dtype=dtype), torch.zeros((512, 64), dtype=dtype)
    index, _ = nearest_code.nearest_code(x, book)
    nearest_code.code_sums(x, index, 512)


def run_all_bias_act(label, newest):
    for act in ACTIVATIONS if newest else ("leaky_relu", "gelu"):
        label(act)
        run_bias_act(act, IMAGES, torch.float32)
    for act, dtype in (
        ("leaky_relu", torch.float16),
        ("gelu", torch.bfloat16),
        ("tanh", torch.float64),
    ):
        label(act, dtype, "clamp")
        run_bias_act(act, SMALL_IMAGES, dtype, clamp=2.0)
    label("leaky_relu with a mask")
    run_bias_act("leaky_relu", IMAGES, torch.float32, masked=True)
    label("silu odd sizes")
    run_bias_act("silu", ODD, torch.float32)
    label("silu 64-bit offsets")
    bias_act.WIDE_FROM, before = 0, bias_act.WIDE_FROM
    run_bias_act("silu", IMAGES, torch.float32)
    bias_act.WIDE_FROM = before


def run_all_norms(label, newest):
    for settings in NORMED if newest else NORMED[1:2]:
        label("norm_act", *settings[1:])
        run_norm_act(*settings)


def for_types(run, types):
    def run_all(label, newest):
        for dtype in types if newest else types[:1]:
            label(run.__name__, dtype)
            run(dtype)

    return run_all


def run_random(label, newest):
    for function in (random.random_words, random.random_uniform, random.random_normal):
        for seeds in (torch.tensor(1), torch.arange(16)):
            label(function.__name__, seeds.dim())
            function(seeds, (16, 1000), 2, 3)


def run_mmd(dtype):
    """The values of one sample alone, and with a derivative."""
    x, y = torch.zeros((4096, 64), dtype=dtype), torch.zeros((2048, 64), dtype=dtype)
    mmd.mmd(x, y, [2.0, 4.0, 8.0], True, 1)


def run_upfirdn2d(dtype):
    """Enlarging, and halving of channels-last images."""
    x, taps = torch.zeros(SMALL_IMAGES, dtype=dtype), [0.125, 0.375, 0.375, 0.125]
    upfirdn2d.upfirdn2d(x, taps, 2, 1, (2, 1, 2, 1))
    x = x.contiguous(memory_format=torch.channels_last)
    upfirdn2d.upfirdn2d(x, taps, 1, 2, (1, 1, 1, 1))


def run_edge_conv(dtype):
    """A critic's first layer and a generator's last one; of float32 in both layouts."""
    image, weight = (
        torch.zeros((16, 3, 64, 64), dtype=dtype),
        torch.zeros((64, 3, 4, 4), dtype=dtype),
    )
    for last in (False, True) if dtype == torch.float32 else (True,):
        f = edge_conv.edge_conv(image, weight, 2, 1, last, weight.new_zeros(64), 0.2)
        edge_conv.edge_conv_transpose(f, weight, 2, 1, 64, 64, f, 0.2)
        edge_conv.edge_conv_weight(image, f, 2, 1, 4, 4, f, 0.2, True)


def run_conv_transpose_act(dtype):
    """Of a generator's middle: bare with moments, and with bias and activation; in both layouts."""
    x, weight = torch.zeros((16, 128, 8, 8), dtype=dtype), torch.zeros((128, 64, 4, 4), dtype=dtype)
    conv_transpose_act.conv_transpose_act(x, weight, None, 2, 1, 0, "linear", 0.0, True)
    x = x.contiguous(memory_format=torch.channels_last)
    conv_transpose_act.conv_transpose_act(
        x, weight, weight.new_zeros(64), 2, 1, 0, "leaky_relu", 0.2, False
    )


def run_glow_step(dtype):
    """Of three levels: 12, 24 and 48 channels."""
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    for channels in (12, 24, 48):
        x, half = torch.zeros((16, channels, 16, 16), dtype=dtype), (16, channels // 2, 16, 16)
        matrix, offset = (
            torch.zeros((channels, channels), dtype=wide),
            torch.zeros(channels, dtype=wide),
        )
        h = torch.zeros(half, dtype=dtype)
        glow_step.glow_mix(x, matrix, offset)
        if channels <= MOST_CHANNELS["glow_unmix"]:
            glow_step.glow_unmix(x, h, x, h, h, matrix, matrix, offset)
    glow_step.glow_couple(x, x, "sigmoid", 2.0, True)
    glow_step.glow_uncouple(x, x, x, torch.zeros(16, dtype=wide), "sigmoid", 2.0, True)


def run_penalty(dtype):
    """As of a critic's gradients, and points with one seed and with one a sample."""
    g = torch.zeros((16, 3072), dtype=dtype)
    for shape in penalty.SHAPES:
        penalty.penalty_gradient(g, shape, 10.0)
    s = penalty.row_products(g, g)
    penalty.scale_rows(g, s)
    for seed in (torch.tensor(1), torch.arange(16)):
        penalty.points_between(g, g, seed, 0, 0)


THREE = (torch.float32, torch.float64, torch.bfloat16)
RUNS = {
    "bias_act": run_all_bias_act,
    "norm_act": run_all_norms,
    "rows": for_types(run_rows, THREE),
    "nearest_code": for_types(run_nearest_code, THREE),
    "random": run_random,
    "penalty": for_types(run_penalty, THREE),
    "glow_step": for_types(run_glow_step, THREE),
    "conv_transpose_act": for_types(run_conv_transpose_act, THREE),
    "edge_conv": for_types(run_edge_conv, THREE),
    "mmd": for_types(run_mmd, THREE[:2]),
    "upfirdn2d": for_types(run_upfirdn2d, THREE),
}


def main():
    """ahead_of_time.py ARCHITECTURE [RUN ...]"""
    architecture = int(sys.argv[1])
    recorder = Recorder(architecture)
    triton.runtime.driver.set_active(recorder)
    JITFunction.run = lambda kernel, *a, **k: recorder.launch(kernel, *a, **k)

    def label(*words):
        recorder.label = " ".join(map(str, words))

    for name in sys.argv[2:] or RUNS:
        RUNS[name](label, architecture == 90)


if __name__ == "__main__":
    main()
