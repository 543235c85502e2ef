"""diffuse: the noise is `random_normal`'s, is never stored, and is never lost in a half type."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import pyfastgan as pf
from pyfastgan.ops._registry import FLOATS, ops
from pyfastgan.testing import backends

BACKENDS = backends(ops()["diffuse"])


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_noise_is_random_normal_s_and_is_what_was_added(backend):
    x0, alpha, sigma = torch.randn(3, 5, 7), torch.rand(3), torch.rand(3)
    place = {"stream": 4, "sample_offset": 2}
    with pf.use_backend(backend):
        for dtype in FLOATS:
            x = x0.to(dtype)
            x_t, noise = pf.ops.diffuse(x, alpha, sigma, 11, **place)
            assert torch.equal(noise, pf.ops.random_normal(x.shape, 11, **place, dtype=dtype))
            again, given = pf.ops.diffuse(x, alpha, sigma, noise=noise)
            assert torch.equal(x_t, again)
            assert given is noise
            a, s = (t.double().reshape(3, 1, 1) for t in (alpha, sigma))
            expected = a * x.double() + s * noise.double()
            torch.testing.assert_close(x_t, expected.to(dtype))
            assert pf.ops.diffuse(x, alpha, sigma, 11, return_noise=False)[1] is None


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_batch_is_its_parts(backend):
    x0, alpha, sigma = torch.randn(64, 3, 4, 4), torch.rand(64), torch.rand(64)
    with pf.use_backend(backend):
        whole, _ = pf.ops.diffuse(x0, alpha, sigma, 5)
        parts = [
            pf.ops.diffuse(*(t[k : k + 16] for t in (x0, alpha, sigma)), 5, sample_offset=k)[0]
            for k in range(0, 64, 16)
        ]
    assert torch.equal(whole, torch.cat(parts))


def test_a_missing_seed_follows_torch():
    x0, one = torch.zeros(2, 3), torch.ones(2)
    torch.manual_seed(3)
    a, b = pf.ops.diffuse(x0, one, one)[0], pf.ops.diffuse(x0, one, one)[0]
    torch.manual_seed(3)
    assert torch.equal(a, pf.ops.diffuse(x0, one, one)[0])
    assert not torch.equal(a, b)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_small_sigmas_are_not_lost_in_half_types(dtype):
    """sigma = sqrt(1 - alpha_bar) of a first step, from float32 numbers beside a half x0."""
    alpha_bar = torch.tensor([1 - 4e-5])
    sigma = (1 - alpha_bar).sqrt()
    x_t, noise = pf.ops.diffuse(torch.zeros(1, 100, dtype=dtype), alpha_bar.sqrt(), sigma, 1)
    torch.testing.assert_close(x_t.float(), sigma * noise.float(), rtol=1e-2, atol=1e-6)
    assert (x_t != 0).all()


def test_the_backward_pass_makes_the_noise_again():
    kept = []
    x0 = torch.randn(2, 1000, requires_grad=True)
    alpha, sigma = (torch.rand(2, requires_grad=True) for _ in range(2))
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        x_t, noise = pf.ops.diffuse(x0, alpha, sigma, 3)
    assert not noise.requires_grad
    assert [t.data_ptr() for t in kept if t.numel() > 2] == [x0.data_ptr()]
    dx0, dalpha, dsigma = torch.autograd.grad(x_t.sum(), (x0, alpha, sigma))
    torch.testing.assert_close(dx0, alpha.detach()[:, None].expand(2, 1000))
    torch.testing.assert_close(dalpha, x0.detach().sum(1))
    torch.testing.assert_close(dsigma, noise.sum(1))


def test_the_returned_noise_gets_no_gradient_of_zeros():
    """It would cost as much as the noise itself."""

    class Zeros(TorchDispatchMode):
        made = 0

        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            self.made += "zeros" in str(function)
            return function(*args, **(kwargs or {}))

    x0 = torch.randn(2, 10, requires_grad=True)
    x_t, noise = pf.ops.diffuse(x0, *torch.rand(2, 2), 3)
    with Zeros() as zeros:
        torch.autograd.grad(x_t, x0, torch.ones_like(x_t))
    assert zeros.made == 0


def test_given_noise_has_a_gradient():
    x0, alpha, sigma = torch.randn(2, 3), torch.rand(2), torch.rand(2)
    noise = torch.randn(2, 3, requires_grad=True)
    x_t, _ = pf.ops.diffuse(x0, alpha, sigma, noise=noise)
    (g,) = torch.autograd.grad(x_t.sum(), noise)
    torch.testing.assert_close(g, sigma[:, None].expand(2, 3))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("size", [7, 9001])
def test_given_noise_takes_a_short_way(dtype, size):
    """Where nothing is recorded, of little memory and of much."""
    x, noise = torch.randn(2, 3, size, dtype=dtype)
    alpha, sigma = torch.randn(2, 3, dtype=dtype)
    expected = alpha[:, None] * x + sigma[:, None] * noise
    x_t, kept = pf.ops.diffuse(x, alpha, sigma, noise=noise)
    assert kept is noise
    torch.testing.assert_close(x_t, expected)
    long, none = pf.ops.diffuse(x, alpha, sigma, noise=noise, sample_offset=1, return_noise=False)
    assert none is None
    assert torch.equal(x_t, long)


@pytest.mark.parametrize("return_noise", [True, False])
def test_noise_made_on_the_short_way_is_that_of_the_long_one(return_noise):
    """Which a seed in a tensor asks for."""
    x, (alpha, sigma) = torch.randn(3, 2, 5), torch.randn(2, 3)
    options = {"stream": 3, "sample_offset": 4, "return_noise": return_noise}
    short = pf.ops.diffuse(x, alpha, sigma, 7, **options)
    long = pf.ops.diffuse(x, alpha, sigma, torch.tensor(7), **options)
    assert torch.equal(short[0], long[0])
    assert torch.equal(short[1], long[1]) if return_noise else short[1] is long[1] is None
