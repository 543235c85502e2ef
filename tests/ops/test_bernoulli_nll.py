"""Bernoulli likelihoods against torch's distribution, and with extreme logits."""

import torch
from torch.distributions import Bernoulli

import pyfastgan as pf


def test_against_the_distribution():
    generator = torch.Generator().manual_seed(0)
    x = torch.randint(0, 2, (4, 3, 5), generator=generator).double()
    logits = 3 * torch.randn(4, 3, 5, generator=generator, dtype=torch.float64)
    expected = -Bernoulli(logits=logits).log_prob(x).flatten(1).sum(1)
    torch.testing.assert_close(pf.ops.bernoulli_nll(x, logits), expected)


def test_extreme_logits():
    """A sure and right answer costs nothing, a sure and wrong one its logit."""
    logits = torch.tensor([[1e4], [-1e4], [1e4], [-1e4]], requires_grad=True)
    nll = pf.ops.bernoulli_nll(torch.tensor([[1.0], [0.0], [0.0], [1.0]]), logits)
    assert nll.tolist() == [0, 0, 1e4, 1e4]
    assert torch.autograd.grad(nll.sum(), logits)[0].flatten().tolist() == [0, 0, 1, -1]
