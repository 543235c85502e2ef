"""Sampling a Gaussian: the divergence in closed form, whose noise it is, and what is kept of it."""

import pytest
import torch
from torch.distributions import Normal, kl_divergence

import pyfastgan as pf
from pyfastgan.ops._registry import ops
from pyfastgan.testing import backends

BACKENDS = backends(ops()["reparameterize"])


@pytest.mark.parametrize("backend", BACKENDS)
def test_against_the_normal_distribution(backend):
    generator = torch.Generator().manual_seed(0)
    mean, logvar = torch.randn(2, 5, 3, 7, generator=generator, dtype=torch.float64)
    with pf.use_backend(backend):
        z, kl = pf.ops.reparameterize(mean, logvar, 11, stream=2, sample_offset=4)
    q = Normal(mean, (0.5 * logvar).exp())
    torch.testing.assert_close(kl, kl_divergence(q, Normal(0.0, 1.0)).flatten(1).sum(1))
    noise = pf.ops.random_normal((5, 3, 7), 11, stream=2, sample_offset=4, dtype=torch.float64)
    torch.testing.assert_close(z, mean + q.stddev * noise)
    assert not pf.ops.reparameterize(mean, logvar)[0].equal(pf.ops.reparameterize(mean, logvar)[0])


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_batch_is_its_parts(backend):
    mean, logvar = torch.randn(2, 9, 130)
    with pf.use_backend(backend):
        z, kl = pf.ops.reparameterize(mean, logvar, 5)
        for k, part in ((0, slice(0, 4)), (4, slice(4, 9))):
            own = pf.ops.reparameterize(mean[part], logvar[part], 5, sample_offset=k)
            assert torch.equal(own[0], z[part])
            assert torch.equal(own[1], kl[part])


def test_the_noise_is_not_kept():
    mean, logvar = torch.randn(2, 4, 1000, requires_grad=True).unbind()
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        pf.ops.reparameterize(mean, logvar)
    assert sorted(t.numel() for t in kept) == [1, 4000, 4000]
