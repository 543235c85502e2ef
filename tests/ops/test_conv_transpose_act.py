"""conv_transpose_act beyond the contract: middle layers, which torch convolves, and folded batch norm."""

import pytest
import torch

import pyfastgan as pf
from pyfastgan.ops._registry import ops
from pyfastgan.ops.conv_transpose_act import conv_transpose_act_reference
from pyfastgan.testing import backends

BACKENDS = backends(ops()["bias_act"])


def drawn(*shape, dtype, seed, around=0.0):
    generator = torch.Generator().manual_seed(seed)
    return (around + 0.3 * torch.randn(shape, generator=generator)).to(dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("channels", [(6, 5), (9, 3)])  # of the middle, of the image's edge
@pytest.mark.parametrize("norm", [None, "batch", "instance", "group", "layer"])
def test_layers_equal_the_reference(norm, channels, dtype):
    x, w = (
        drawn(3, channels[0], 4, 5, dtype=dtype, seed=0),
        drawn(*channels, 4, 4, dtype=dtype, seed=1),
    )
    b = drawn(channels[1], dtype=dtype, seed=2)
    inputs = [x, w, b]
    settings = {"stride": 2, "padding": 1, "output_padding": 1, "act": "silu", "norm": norm}
    if norm is not None:
        inputs += [
            drawn(channels[1], dtype=dtype, seed=3, around=1.0),
            drawn(channels[1], dtype=dtype, seed=4),
        ]
        settings["groups"] = channels[1] if norm == "group" else None

    def results(function, inputs):
        inputs = [t.detach().requires_grad_() for t in inputs]
        names = ("norm_weight", "norm_bias")
        y = function(*inputs[:3], **settings, **dict(zip(names, inputs[3:], strict=False)))
        return y, *torch.autograd.grad((y * y).sum(), inputs)

    ours = results(pf.ops.conv_transpose_act, inputs)
    exact = results(conv_transpose_act_reference, [t.double() for t in inputs])
    tolerance = 1e-10 if dtype == torch.float64 else 2e-4
    for a, e in zip(ours, exact, strict=True):
        torch.testing.assert_close(a.double(), e, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("channels", [(6, 5), (9, 3)])
def test_batch_norm_is_folded_where_no_gradient_is_needed(channels, dtype):
    x, w = (
        drawn(3, channels[0], 4, 5, dtype=dtype, seed=0),
        drawn(*channels, 4, 4, dtype=dtype, seed=1),
    )
    b, mean, norm_bias = (drawn(channels[1], dtype=dtype, seed=k) for k in (2, 3, 4))
    var, norm_weight = (drawn(channels[1], dtype=dtype, seed=k, around=1.5) for k in (5, 6))
    settings = {"stride": 2, "padding": 1, "norm": "batch", "training": False, "act": "tanh"}
    given = {
        "running_mean": mean,
        "running_var": var,
        "norm_weight": norm_weight,
        "norm_bias": norm_bias,
    }
    # By name: small tensors would go to torch's own operations.
    with pf.use_backend(BACKENDS[0]), torch.profiler.profile() as profile:
        y = pf.ops.conv_transpose_act(x, w, b, **settings, **given)
    names = {event.key for event in profile.key_averages()}
    assert "pyfastgan::norm_act" not in names
    assert "pyfastgan::bias_act" in names
    given = {k: t.double() for k, t in given.items()}
    exact = conv_transpose_act_reference(x.double(), w.double(), b.double(), **settings, **given)
    tolerance = {torch.float32: 1e-5, torch.float64: 1e-12, torch.bfloat16: 0.03}[dtype]
    torch.testing.assert_close(y.double(), exact, rtol=0, atol=tolerance)
