"""Bernoulli likelihoods against torch's distribution, and with extreme logits."""

import pytest
import torch
from torch.distributions import Bernoulli

import pyfastgan as pf
from pyfastgan.ops._registry import ops
from pyfastgan.testing import backends


def test_against_the_distribution():
    generator = torch.Generator().manual_seed(0)
    x = torch.randint(0, 2, (4, 3, 5), generator=generator).double()
    logits = 3 * torch.randn(4, 3, 5, generator=generator, dtype=torch.float64)
    expected = -Bernoulli(logits=logits).log_prob(x).flatten(1).sum(1)
    torch.testing.assert_close(pf.ops.bernoulli_nll(x, logits), expected)


@pytest.mark.parametrize("backend", ["auto", *backends(ops()["bernoulli_nll"])])
def test_extreme_logits(backend):
    """A sure and right answer costs nothing, a sure and wrong one its logit."""
    with pf.use_backend(backend):
        check_extreme_logits()


def check_extreme_logits():
    logits = torch.tensor([[1e4], [-1e4], [1e4], [-1e4]], requires_grad=True)
    nll = pf.ops.bernoulli_nll(torch.tensor([[1.0], [0.0], [0.0], [1.0]]), logits)
    assert nll.tolist() == [0, 0, 1e4, 1e4]
    assert torch.autograd.grad(nll.sum(), logits)[0].flatten().tolist() == [0, 0, 1, -1]


def test_small_tensors_give_what_large_ones_do():
    """Torch's own operations serve them; values, both gradients and the second derivative are the same."""
    generator = torch.Generator().manual_seed(1)
    x, logits = (torch.rand(3, 2, 5, generator=generator).double() for _ in range(2))
    x, logits = x.requires_grad_(), (20 * logits - 10).requires_grad_()

    def derivatives():
        nll = pf.ops.bernoulli_nll(x, logits)
        first = torch.autograd.grad(nll.square().sum(), (x, logits), create_graph=True)
        return nll, *first, *torch.autograd.grad(sum(g.sin().sum() for g in first), (x, logits))

    with pf.use_backend("auto"):
        small = derivatives()
    with pf.use_backend("reference"):
        large = derivatives()
    for a, b in zip(small, large, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)
    assert pf.ops.bernoulli_nll(torch.ones(4), torch.ones(4, requires_grad=True)).shape == (4,)


def test_torch_serves_what_is_small_only_where_the_choice_is_ours():
    def served_by_an_autograd_function(size):
        nll = pf.ops.bernoulli_nll(torch.zeros(2, size), torch.zeros(2, size, requires_grad=True))
        return "_Function" in type(nll.grad_fn).__name__

    assert not served_by_an_autograd_function(8)
    assert served_by_an_autograd_function(2**14)
    with pf.use_backend("reference"):
        assert served_by_an_autograd_function(8)


def test_small_calls_with_a_mistake_are_refused_too():
    """torch itself would broadcast, and compute in the wider type."""
    logits = torch.zeros(1, 4, requires_grad=True)
    with pytest.raises(ValueError, match="logits must have the shape of x"):
        pf.ops.bernoulli_nll(torch.zeros(2, 4), logits)
    with pytest.raises(TypeError, match="logits must have the dtype of x"):
        pf.ops.bernoulli_nll(torch.zeros(1, 4).double(), logits)
    with pytest.raises(ValueError, match="x must have a dimension of samples"):
        pf.ops.bernoulli_nll(torch.zeros(()), torch.zeros((), requires_grad=True))
