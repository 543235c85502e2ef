"""couple_channels: its kernels against the definition, what its gradients are added to, and what it refuses."""

import pytest
import torch
from torch import nn

import pyfastgan as pf
from pyfastgan.ops import _backends, affine_coupling
from pyfastgan.ops._couple_channels import (
    KERNELS,
    Behind,
    _forward_reference,
    couple_channels,
    halves,
    serves,
)

# Of x, and how many channels are coupled: single numbers, one pack and more, uneven halves, no whole packs, samples of
# several pieces of work, nothing.
SHAPES = [
    *(((7, 5), 2), ((600, 64), 32), ((3, 37), 18)),
    *(((2, 5, 3, 7), 2), ((3, 12, 70, 90), 6), ((2, 4, 0), 2)),
]
SCALES = ["exp", "tanh", "sigmoid", "softclamp", "clamped_tanh"]


def behind(channels, dtype):
    order = torch.randperm(channels)
    scale = torch.rand(1, channels, dtype=dtype) + 0.5
    return Behind(scale, torch.randn(channels, dtype=dtype), order, order.argsort())


def inputs(shape, coupled, dtype=torch.float32):
    torch.manual_seed(0)
    out = torch.randn(shape[0], 2 * coupled, *shape[2:], dtype=dtype)
    return torch.randn(shape, dtype=dtype), out


def gradients(y, logdet, wanted):
    torch.manual_seed(1)
    return torch.autograd.grad((y, logdet), wanted, (torch.randn_like(y), torch.randn_like(logdet)))


@pytest.mark.parametrize("apart", [False, True])
@pytest.mark.parametrize(("shape", "coupled"), SHAPES)
@pytest.mark.parametrize("number", range(len(SCALES)))
def test_kernels_are_the_definition(number, shape, coupled, apart, compiled):
    dtype = torch.float64 if number == 3 else torch.float32
    x, out = inputs(shape, coupled, dtype)
    after = behind(shape[1], dtype) if (number + apart) % 2 else None
    if apart:  # samples that lie apart, as the halves of something larger do
        x, out = torch.cat((x, x), 1)[:, : shape[1]], torch.cat((out, out), 1)[:, : 2 * coupled]
    settings = (SCALES[number], 1.5, 0.3, number in (0, 2))
    tensors = [t.detach().clone().requires_grad_() for t in (x, out, *(after or ())[:2])]
    rest = after or (None, None, None, None)
    exact = [t.double() for t in tensors]
    given = (*exact[2:], *rest[2:]) if after else rest
    expected = _forward_reference(exact[0], exact[1], *given, *settings)
    with torch.no_grad():
        found = KERNELS[0](x, out, *rest, *settings)
    small = 1e-12 if dtype is torch.float64 else 1e-5
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours.double(), theirs, rtol=small, atol=10 * small)
    wanted = gradients(*expected, tensors)
    torch.manual_seed(1)
    dy, dlogdet = (torch.randn_like(t) for t in expected)
    if apart:
        dy = torch.cat((dy, dy), 1)[:, : shape[1]]
    found = KERNELS[1](dy.to(dtype), dlogdet.to(dtype), x, out, *rest, *settings)
    for ours, theirs in zip(found, wanted, strict=False):
        # Sums of up to 20,000 terms.
        far = small * max(1.0, float(theirs.abs().max())) if theirs.numel() else 0.0
        torch.testing.assert_close(
            ours, theirs.reshape(ours.shape).to(dtype), rtol=10 * small, atol=10 * far
        )


def test_the_same_bits_on_any_number_of_threads(compiled):
    for shape in ((600, 64), (9, 12, 33, 40)):
        x, out = inputs(shape, shape[1] // 2)
        after, settings = behind(shape[1], x.dtype), ("clamped_tanh", 2.0, 0.1, False)
        dy, dlogdet = torch.randn_like(x), torch.randn(len(x))

        def run(threads, x=x, out=out, after=after, dy=dy, dlogdet=dlogdet, settings=settings):
            torch.set_num_threads(threads)
            forward = KERNELS[0](x, out, *after, *settings)
            return *forward, *KERNELS[1](dy, dlogdet, x, out, *after, *settings)

        before = torch.get_num_threads()
        try:
            for one, three in zip(run(1), run(3), strict=True):
                assert torch.equal(one, three)
        finally:
            torch.set_num_threads(before)


@pytest.mark.parametrize("inplace", [False, True])
def test_the_networks_gradient_joins_that_of_its_input(inplace):
    x, _ = inputs((4, 6, 3, 3), 3, torch.float64)
    network = nn.Sequential(nn.Conv2d(3, 6, 1), nn.ReLU(inplace), nn.Conv2d(6, 6, 1)).double()
    x.requires_grad_()
    wanted = [x, *network.parameters()]
    assert serves(x)
    x1, whole = halves(x, 3)
    found = couple_channels(whole, network(x1), scale="tanh", shift_first=True)
    z1, z2 = x.chunk(2, 1)
    raw, shift = network(z1).chunk(2, 1)
    y2, logdet = affine_coupling(z2, raw, shift, scale="tanh", shift_first=True)
    expected = torch.cat((z1, y2), 1), logdet
    for ours, theirs in zip(
        (*found, *gradients(*found, wanted)),
        (*expected, *gradients(*expected, wanted)),
        strict=True,
    ):
        torch.testing.assert_close(ours, theirs)


def test_it_refuses_what_does_not_fit():
    x, out = inputs((4, 6, 3, 3), 3)
    for bad, error, says in (
        (out[:, :5], ValueError, "out must hold a raw scale and a shift"),
        (out[..., :2], ValueError, "out must hold a raw scale and a shift"),
        (torch.cat((out, out, out), 1), ValueError, "out must hold a raw scale and a shift"),
        (out.double(), TypeError, "out must have the dtype of x"),
        (out.to("meta"), ValueError, "on a CPU like x"),
    ):
        with pytest.raises(error, match=says):
            couple_channels(x, bad, scale="exp")
    with pytest.raises(ValueError, match="6 channels like x"):
        couple_channels(x, out, scale="exp", behind=behind(5, x.dtype))
    with pytest.raises(ValueError, match="did you mean 'sigmoid'"):
        couple_channels(x, out, scale="sigmiod")
    with pytest.raises(ValueError, match="clamp must be finite and positive"):
        couple_channels(x, out, scale="exp", clamp=0.0)


def test_what_the_kernels_do_not_know_is_left_alone():
    x, _ = inputs((2, 4, 3, 3), 2)
    assert serves(x)
    assert not serves(x.bfloat16())
    assert not serves(x.contiguous(memory_format=torch.channels_last))
    assert not torch.func.vmap(lambda t: torch.tensor(serves(t)))(x[None]).any()


@pytest.fixture
def compiled():
    with pf.use_backend("reference" if _backends.missing("cpu") else "cpu"):
        yield
