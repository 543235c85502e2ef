"""The weight gradient of 4 x 4 convolutions of stride 2 in fewer products: against float64, and what it serves."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch.autograd import gradcheck, gradgradcheck

import pyfastgan as pf
from pyfastgan.ops import _backends, _wide_conv
from pyfastgan.ops._registry import ops
from pyfastgan.ops._wide_conv import convolve, serves, weight_gradient
from pyfastgan.testing import backends

# Without the compiled kernels, and on a processor without their vectors, torch serves.
SERVED = _wide_conv._SERVED
CONV = ([2, 2], [1, 1], [1, 1], False, [0, 0], 1)


kernel = pytest.mark.skipif(not SERVED, reason="what torch does there is its own")


def last(x):
    return x.contiguous(memory_format=torch.channels_last)


def exact(image, feature):
    weight = torch.empty(feature.size(1), image.size(1), 4, 4, dtype=torch.float64)
    mask = [False, True, False]
    return torch.ops.aten.convolution_backward(
        feature.double(), image.double(), weight, None, *CONV, mask
    )[1]


@settings(deadline=None, max_examples=30)
@example(9, 32, 48, (8, 8), True, 0)  # two blocks of tiles, the second not whole
@example(1, 64, 16, (2, 2), False, 1)  # one tile, that is all edge
@given(
    *(st.integers(1, 6), st.sampled_from([32, 64]), st.sampled_from([16, 32, 48])),
    st.tuples(*[st.integers(1, 6).map(lambda k: 2 * k)] * 2),
    *(st.booleans(), st.integers(0, 2**31)),
)
def test_any_size_equals_torch_in_float64(batch, channels, features, size, channels_last, seed):
    g = torch.Generator().manual_seed(seed)
    image = last(torch.randn(batch, channels, 2 * size[0], 2 * size[1], generator=g))
    feature = last(torch.randn(batch, features, *size, generator=g))
    found = weight_gradient(image, feature, channels_last)
    assert found.is_contiguous(
        memory_format=torch.channels_last if channels_last else torch.contiguous_format
    )
    # Roundings of sums whose terms are those of all the taps between two channels, which share factors.
    limit = 4 * 2**-24 * exact(image.abs(), feature.abs()).sum((2, 3), keepdim=True)
    assert ((found - exact(image, feature)).abs() <= limit).all()


def test_error_is_that_of_torch():
    """In the mean over a weight, for normal numbers; at most twice is the rule of the house."""
    image = last(torch.randn(32, 64, 16, 16))
    feature = last(torch.randn(32, 64, 8, 8))
    want = exact(image, feature)
    torchs = torch.ops.aten.convolution_backward(
        feature, image, torch.empty(64, 64, 4, 4), None, *CONV, [False, True, False]
    )[1]
    error, of_torch = (
        (x - want).square().mean().sqrt() for x in (weight_gradient(image, feature, True), torchs)
    )
    assert error <= 2 * of_torch


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("weight_last", [False, True])
def test_gradients_of_both_convolutions(transposed, weight_last):
    x = last(torch.randn(3, 32, 8, 4))
    if transposed:
        weight = torch.randn(32, 32, 4, 4)
        torchs = F.conv_transpose2d
    else:
        weight = torch.randn(16, 32, 4, 4)
        torchs = F.conv2d
    weight = last(weight) if weight_last else weight

    def results(call, x, weight, dy):
        x, weight = x.detach().requires_grad_(), weight.detach().requires_grad_()
        y = call(x, weight)
        return y, *torch.autograd.grad(y, (x, weight), dy)

    def double(x, weight):
        return torchs(x, weight, None, 2, 1)

    dy = torch.randn_like(torchs(x, weight, None, 2, 1))
    ours = results(lambda x, w: convolve(x, w, 2, 1, transposed), x, weight, dy)
    want = results(double, x.double(), weight.double(), dy.double())
    for a, b in zip(ours, want, strict=True):
        torch.testing.assert_close(a.double(), b, rtol=1e-4, atol=1e-4)
    if SERVED:
        assert ours[2].stride() == weight.stride()


def test_the_kernel_serves_blocks(monkeypatch):
    """A block's weight gradient comes from the kernel, that of a penalty's gradient from torch, and they agree."""
    calls = []
    kernel = _wide_conv._tiles
    monkeypatch.setattr(_wide_conv, "_tiles", lambda *a: calls.append(1) or kernel(*a))
    for block, size in (
        (pf.nn.ConvBlock(32, 32, 4, 2, 1), 8),
        (pf.nn.ConvTransposeBlock(32, 32, 4, 2, 1), 4),
    ):
        x = last(torch.randn(2, 32, size, size)).requires_grad_()
        calls.clear()
        block(x).sum().backward()
        assert calls == [1] * SERVED
        (g,) = torch.autograd.grad(block(x).square().sum(), x, create_graph=True)
        first = torch.autograd.grad(g.square().sum(), block.conv.weight)[0]
        assert (
            calls == [1, 1] * SERVED
        )  # of the cotangent that comes back through the block's result
        whole = block.double()
        x = x.detach().double().requires_grad_()
        (g,) = torch.autograd.grad(whole(x).square().sum(), x, create_graph=True)
        again = torch.autograd.grad(g.square().sum(), whole.conv.weight)[0]
        torch.testing.assert_close(first.double(), again, rtol=1e-3, atol=1e-3)


def test_differentiable_twice_where_it_serves(monkeypatch):
    """gradcheck in float64, with torch's own weight gradient in the place of the float32 kernel's."""
    monkeypatch.setattr(_wide_conv, "serves", lambda *a: True)
    monkeypatch.setattr(_wide_conv, "_tiles", _wide_conv._reference)
    g = torch.Generator().manual_seed(0)
    x = last(torch.randn(1, 2, 4, 4, generator=g, dtype=torch.float64)).requires_grad_()
    weight = torch.randn(2, 2, 4, 4, generator=g, dtype=torch.float64).requires_grad_()
    for transposed in (False, True):

        def call(x, weight, transposed=transposed):
            return convolve(x, weight, 2, 1, transposed)

        assert gradcheck(call, (x, weight))
        assert gradgradcheck(call, (x, weight))


@kernel
def test_what_is_not_finite_stays_where_it_is():
    """The gradients that torch finds not to be finite, and no others."""
    image, feature = last(torch.randn(2, 32, 8, 8)), last(torch.randn(2, 16, 4, 4))
    for where, value in (((0, 3, 2, 5), float("inf")), ((1, 30, 7, 0), float("nan"))):
        broken = image.clone(memory_format=torch.preserve_format)
        broken[where] = value
        torch.testing.assert_close(
            weight_gradient(broken, feature, False).isfinite(), exact(broken, feature).isfinite()
        )
        broken = feature.clone(memory_format=torch.preserve_format)
        broken[where[0], where[1] % 16, where[2] % 4, where[3] % 4] = value
        torch.testing.assert_close(
            weight_gradient(image, broken, False).isfinite(), exact(image, broken).isfinite()
        )


@kernel
def test_the_same_bits_on_any_number_of_threads():
    image, feature = last(torch.randn(9, 64, 16, 16)), last(torch.randn(9, 32, 8, 8))
    threads = torch.get_num_threads()
    try:
        found = []
        for some in (1, 2, 3):
            torch.set_num_threads(some)
            found.append(weight_gradient(image, feature, False))
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(found[0], found[1])
    assert torch.equal(found[0], found[2])


def test_what_is_served():
    weight = torch.empty(32, 64, 4, 4)
    with pf.use_backend("auto"):
        assert serves(weight, (8, 12), CONV) == SERVED
        assert not serves(weight.double(), (8, 12), CONV)
        assert not serves(weight.bfloat16(), (8, 12), CONV)
        assert not serves(weight[:, :, :3, :3], (8, 12), CONV)
        assert not serves(weight[:, :31], (8, 12), CONV)
        assert not serves(weight[:17], (8, 12), CONV)
        assert not serves(torch.empty(1024, 512, 4, 4), (8, 12), CONV)
        for size in ((6, 8), (8, 10), (0, 8)):
            assert not serves(weight, size, CONV)
        for k, other in enumerate(([1, 1], [0, 0], [2, 2], None, [1, 1], 2)):
            if other is not None:
                assert not serves(weight, (8, 12), (*CONV[:k], other, *CONV[k + 1 :]))
    with pf.use_backend("reference"):
        assert not serves(weight, (8, 12), CONV)


def test_operator_is_well_formed():
    image, feature = last(torch.randn(2, 32, 4, 8)), last(torch.randn(2, 16, 2, 4))
    for channels_last in (False, True):
        torch.library.opcheck(_wide_conv._tiles.op, (image, feature, channels_last))
    assert not weight_gradient(image[:0], feature[:0], False).any()


@pytest.mark.parametrize("backend", [b for b in backends(ops()["edge_conv"]) if b == "cpu"])
def test_the_kernel_refuses_sizes_that_it_does_not_serve(backend):
    image, feature = torch.zeros(1, 32, 6, 8), torch.zeros(1, 16, 3, 4)
    with pytest.raises(RuntimeError, match="even results"):
        _backends.native("_cpu").conv_weight_tiles(
            *(image.data_ptr(), feature.data_ptr(), torch.empty(16, 32, 4, 4).data_ptr(), False),
            *(1, 32, 16, 3, 4, 1),
        )
