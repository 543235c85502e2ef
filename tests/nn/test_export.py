"""Layers leave the batch open when they are exported."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from torch.utils._pytree import tree_leaves

import pyfastgan as pf

LAYERS: dict[str, tuple[Any, tuple[tuple[int, ...], ...]]] = {
    "bias_act": (lambda: pf.nn.BiasAct(8, "silu"), ((3, 8, 5, 7),)),
    "norm_act": (lambda: pf.nn.NormAct("group", 8, groups=2), ((3, 8, 5, 7),)),
    "convolution": (lambda: pf.nn.ConvBlock(3, 8, 3, 1, 1, norm="batch"), ((2, 3, 9, 11),)),
    "from 1 x 1": (lambda: pf.nn.ConvTransposeBlock(10, 8, 4, norm="batch"), ((4, 10, 1, 1),)),
    "to an image": (lambda: pf.nn.ConvTransposeBlock(8, 3, 4, 2, 1, act="tanh"), ((2, 8, 5, 7),)),
    "modulated": (lambda: pf.nn.ModulatedConv2d(4, 8, 3, 6), ((3, 4, 6, 6), (3, 6))),
    "codes": (lambda: pf.nn.VectorQuantizer(16, 8), ((4, 8, 6, 6),)),
    "spline": (lambda: pf.nn.SplineCoupling(6, nn.Linear(3, 69)), ((4, 6),)),
}


@pytest.mark.parametrize("name", LAYERS)
def test_an_exported_layer_takes_any_batch(name: str) -> None:
    torch.manual_seed(0)
    make, shapes = LAYERS[name]
    layer, given = make().eval(), tuple(torch.randn(shape) for shape in shapes)
    batch = torch.export.Dim("batch", min=2, max=4096)
    program = torch.export.export(layer, given, dynamic_shapes=tuple({0: batch} for _ in given))
    # Far beyond the sizes at which kernels choose other ways.
    several = tuple(torch.cat([x] * 600) for x in given)
    for found, expected in zip(
        tree_leaves(program.module()(*several)), tree_leaves(layer(*several)), strict=True
    ):
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("training", [True, False])
def test_a_quantiser_compiles_whole(training: bool) -> None:
    torch.manual_seed(0)
    layer, twin = (pf.nn.VectorQuantizer(16, 8) for _ in range(2))
    twin.load_state_dict(layer.state_dict())
    layer.train(training), twin.train(training)
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    x = torch.randn(4, 8, 6, 6)
    for found, expected in zip(compiled(x), twin(x), strict=True):
        torch.testing.assert_close(found, expected)
    for found, expected in zip(layer.buffers(), twin.buffers(), strict=True):
        torch.testing.assert_close(found, expected)
