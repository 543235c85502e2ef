"""Normal likelihoods against torch's distribution."""

import torch
from torch.distributions import Normal

import pyfastgan as pf


def test_against_the_distribution():
    generator = torch.Generator().manual_seed(0)
    x, mean, logvar = torch.randn(3, 4, 3, 5, generator=generator, dtype=torch.float64)
    expected = -Normal(mean, (0.5 * logvar).exp()).log_prob(x).flatten(1).sum(1)
    torch.testing.assert_close(pf.ops.gaussian_nll(x, mean, logvar), expected)
    shared = torch.tensor(0.3, dtype=torch.float64).expand_as(x)
    expected = -Normal(mean, (0.5 * shared).exp()).log_prob(x).flatten(1).sum(1)
    torch.testing.assert_close(pf.ops.gaussian_nll(x, mean, shared), expected)
