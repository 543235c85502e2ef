"""The nearest code against distances in float64, on ties, and where numbers are not finite."""

import math

import pytest
import torch

import pyfastgan as pf
from pyfastgan.ops._registry import ops
from pyfastgan.ops.nearest_code import code_sums
from pyfastgan.testing import backends

BACKENDS = backends(ops()["nearest_code"])
pytestmark = pytest.mark.parametrize("backend", BACKENDS)


@pytest.mark.parametrize(("rows", "codes", "width"), [(700, 333, 8), (200, 40, 200), (50, 2, 1)])
def test_the_float64_argmin_wherever_the_gap_exceeds_rounding(backend, rows, codes, width):
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(rows, width, generator=generator)
    book = torch.randn(codes, width, generator=generator)
    exact = torch.cdist(
        x.double(), book.double(), compute_mode="donot_use_mm_for_euclid_dist"
    ).square()
    with pf.use_backend(backend):
        index, distance = pf.ops.nearest_code(x, book)
    nearest = exact.min(1)
    two = exact.topk(2, largest=False).values
    # The score x.e - |e|^2 / 2 is a sum of width terms, each rounded relative to the largest.
    rounding = (
        4 * torch.finfo(torch.float32).eps * (width + 1) * x.norm(dim=1) * book.norm(dim=1).max()
    )
    clear = two[:, 1] - two[:, 0] > rounding
    assert clear.double().mean() > 0.9
    assert torch.equal(index[clear], nearest.indices[clear])
    torch.testing.assert_close(distance.double(), nearest.values, rtol=1e-5, atol=1e-5)


def test_the_leftmost_of_equal_codes(backend):
    """Equal codes in one lane, in other lanes, other vectors and other blocks of codes."""
    book = torch.randint(-2, 3, (150, 5), generator=torch.Generator().manual_seed(2)).float()
    x = book[torch.arange(149, -1, -1)]
    with pf.use_backend(backend):
        index, distance = pf.ops.nearest_code(x, book)
    first = (x[:, None] == book[None]).all(2).double().argmax(1)
    assert (first != torch.arange(149, -1, -1)).any()
    assert torch.equal(index, first)
    assert not distance.any()
    with pf.use_backend(backend):
        assert not pf.ops.nearest_code(torch.ones(3, 4), torch.ones(300, 4))[0].any()
        halves = torch.tensor([[-1.0], [1.0], [3.0]])
        assert pf.ops.nearest_code(torch.tensor([[0.0], [2.0]]), halves)[0].tolist() == [0, 1]


def test_numbers_that_are_not_finite(backend):
    x, book = torch.randn(20, 3), torch.randn(40, 3)
    x[7, 1] = math.nan
    with pf.use_backend(backend):
        index, distance = pf.ops.nearest_code(x, book)
        assert index[7] == 0
        assert distance.isnan().nonzero().tolist() == [[7]]
        book[33, 0] = math.inf  # infinitely far
        again, _ = pf.ops.nearest_code(x, book)
        assert not (again == 33).any()
        book[[5, 9], 0] = math.nan
        index, distance = pf.ops.nearest_code(x[:7], book)
    assert (index == 5).all()
    assert distance.isnan().all()


def test_sums_of_the_vectors_of_each_code(backend):
    """Against an addition row by row; one code has more rows than are summed in one run."""
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(500, 19, generator=generator)
    index = torch.randint(0, 9, (500,), generator=generator).clamp(max=7) * (
        torch.arange(500) % 3 > 0
    )
    with pf.use_backend(backend):
        counts, sums = code_sums(x, index, 9)
    assert torch.equal(counts, torch.bincount(index, minlength=9).float())
    expected = torch.zeros(9, 19, dtype=torch.float64).index_add_(0, index, x.double())
    torch.testing.assert_close(sums.double(), expected, rtol=1e-5, atol=1e-5)


def test_the_distance_trains_the_codebook(backend):
    """Steps along the gradient of the mean distance are those of a minibatch k-means."""
    x = torch.randn(64, 3, dtype=torch.float64)
    book = x[:4].clone().requires_grad_()
    with pf.use_backend(backend):
        index, distance = pf.ops.nearest_code(x, book)
        (slope,) = torch.autograd.grad(distance.sum(), book)
    means = torch.stack([x[index == k].mean(0) for k in range(4)])
    counts = torch.bincount(index, minlength=4)[:, None]
    torch.testing.assert_close(book - slope / (2 * counts), means)
