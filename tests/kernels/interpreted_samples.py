"""The Triton kernels that go over samples row by row, in Triton's interpreter, on CPU tensors.

test_triton.py runs this file in a process of its own, with TRITON_INTERPRET=1.
"""

import pytest
import torch
from drawn import drawn

from pyfastgan import testing, use_backend
from pyfastgan.kernels import glow_step, penalty, rows
from pyfastgan.ops import _glow_parts as of_glow
from pyfastgan.ops import _penalty as of_penalties
from pyfastgan.ops._glow_step import GlowParameters, glow_steps
from pyfastgan.ops._registry import Sample, T, ops


@pytest.fixture
def small_row_tiles(monkeypatch):
    monkeypatch.setattr(rows, "TILE", 16)
    monkeypatch.setattr(rows, "FLOAT64_SHARE", 1)
    monkeypatch.setattr(rows, "PROGRAMS", 6)
    monkeypatch.setattr(rows, "WIDE_FROM", 100)  # which some of the tensors below are beyond


THREE = (T((3, 75)), T((3, 75)), T((3, 75)))
ROWS = {
    "reparameterize": ((T((3, 75)), T((3, 75))), {"seed": 3, "stream": 2**32 - 1, "sample_offset": 5}),
    "bernoulli_nll": ((T((3, 75), map=torch.sigmoid), T((3, 75), scale=9.0)), {}),
    "gaussian_nll": (THREE, {}),
    "affine_coupling": (THREE, {"scale": "softclamp", "inverse": True}),
}  # fmt: skip


@pytest.mark.parametrize("name", ROWS)
def test_samples_in_parts(small_row_tiles, name):
    testing.check_values(ops()[name], Sample("parts", *ROWS[name]), torch.float32)


def test_couplings_of_parts_of_a_tensor():
    """The halves of a network's output, whose samples lie apart, are read in place."""
    both, x = T((3, 8, 5)).make(torch.float32, "cpu"), T((3, 4, 5)).make(torch.float32, "cpu", 1)
    raw, shift = both.chunk(2, 1)
    op = ops()["affine_coupling"]
    y, logdet = op.function(x, raw, shift)
    torch.testing.assert_close(y, op.reference(x, raw, shift)[0])
    torch.testing.assert_close(logdet, raw.flatten(1).sum(1))


@pytest.mark.parametrize("scale", [1e-9, 0.3, 1.0, 3.0, 1e9])
def test_arctangents(scale):
    """Through the soft clamp, whose logarithm is its multiple: to some four roundings."""
    for dtype, error in ((torch.float32, 5e-7), (torch.float64, 2e-15)):
        raw = T((400, 1), scale=scale).make(dtype, "cpu")
        zeros = torch.zeros_like(raw)
        _, logdet = ops()["affine_coupling"].function(
            zeros, raw, zeros, scale="softclamp", clamp=1.0
        )
        exact = 0.636 * torch.atan(raw[:, 0].double())
        assert ((logdet - exact).abs() <= error * exact.abs() + 1e-300).all()


def test_normals_of_float64():
    x, op = torch.zeros((5, 50), dtype=torch.float64), ops()["reparameterize"]
    ours, exact = (f(x, x, 11)[0] for f in (op.function, op.reference))
    assert ((ours - exact).abs() <= 1e-14 * exact.abs()).all()


PENALISED = {
    "parts": drawn(3, 75),
    "several samples": drawn(9, 5),
    "channels last": drawn(3, 4, 5, 2, last=True),
    "numbers": drawn(7),
}


@pytest.mark.parametrize(
    ("kind", "dtype"),
    [
        *((kind, torch.float32) for kind in PENALISED),
        ("channels last", torch.bfloat16),
        ("parts", torch.float16),
        ("parts", torch.float64),
    ],
)
def test_penalties_of_gradients(small_row_tiles, kind, dtype):
    """The penalty, its derivative and the norms, of a sample of zeros and of one with a norm below 1 too."""
    g = (0.3 * PENALISED[kind]).to(dtype)
    g[1], g[2] = 0, g[2] * 0.1
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    close = {"rtol": 3e-6, "atol": 1e-7}
    for shape in penalty.SHAPES:
        ours = penalty.penalty_gradient(g, shape, 10.0)
        exact = of_penalties._gradient_reference(g.double(), shape, 10.0)
        assert ours[0].dtype == ours[2].dtype == wide
        assert ours[1].dtype == dtype
        assert ours[1].stride() == g.stride()
        torch.testing.assert_close(ours[0].double(), exact[0], **close)
        torch.testing.assert_close(ours[2].double(), exact[2], **close)
        rounding = 0 if wide == dtype else torch.finfo(dtype).eps / 2
        torch.testing.assert_close(ours[1].double(), exact[1], rtol=3e-6 + rounding, atol=1e-7)


def test_penalties_are_differentiated_twice(small_row_tiles):
    """As they are in a critic's loss, and once more; torch's operations give the same."""
    g, y = drawn(3, 2, 5, 2, last=True), drawn(3, 2, 5, 2, seed=1)

    def total(g, y):
        s = of_penalties.row_products(g * y, None)
        return of_penalties.SHAPES["two-sided"].value(s).mean() + (
            of_penalties.scale_rows(y, of_penalties.row_products(g, y)).square().sum()
        )

    def derivatives(g, y):
        g, y = g.clone().requires_grad_(), y.clone().requires_grad_()
        first = torch.autograd.grad(total(g, y), (g, y), create_graph=True)
        return *first, *torch.autograd.grad(sum(t.pow(3).sum() for t in first), (g, y))

    ours = derivatives(g, y)
    with use_backend("reference"):
        expected = derivatives(g, y)
    for a, b in zip(ours, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize(
    "dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16], ids=str
)
@pytest.mark.parametrize("seed", [7, torch.arange(9) * 5 - 11], ids=["one seed", "a seed a sample"])
def test_points_between_samples(small_row_tiles, dtype, seed):
    """The very shares of `random_uniform`, of each layout."""
    for last in (False, True):
        fake, real = (drawn(9, 3, 2, 3, seed=k, last=last).to(dtype) for k in (1, 2))
        place = {"stream": 2**32 - 1, "sample_offset": 3}
        ours = of_penalties.points_between(fake, real, seed, **place)
        with use_backend("reference"):
            expected = of_penalties.points_between(fake, real, seed, **place)
        assert ours.stride() == real.stride()
        eps = torch.finfo(dtype).eps
        assert (
            (ours.double() - expected.double()).abs() <= eps * expected.double().abs().clamp(min=1)
        ).all()


@pytest.mark.parametrize(
    "dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16], ids=str
)
def test_shares_are_those_of_random_uniform(dtype):
    """Between 0 and 1 a point is its share; small ones are kept, and none is rounded up."""
    zeros, place = torch.zeros((4096, 1), dtype=dtype), {"sample_offset": 44_000}
    shares = of_penalties.points_between(zeros, zeros + 1, 5, **place)
    with use_backend("reference"):
        expected = ops()["random_uniform"].function((4096, 1), 5, dtype=dtype, **place)
    assert (expected < 2.0**-16).any()
    below = expected < 0.5
    assert torch.equal(shares[below], expected[below])
    assert ((shares - expected).abs() <= torch.finfo(dtype).eps).all()


@pytest.fixture
def small_glow_tiles(small_row_tiles, monkeypatch):
    """Several blocks of a sample's pixels with an odd end, several of them a program, the last one with fewer."""
    monkeypatch.setattr(glow_step, "PIXELS", {})
    monkeypatch.setattr(glow_step, "USUAL_PIXELS", 16)
    monkeypatch.setattr(glow_step, "PROGRAMS", 3)
    monkeypatch.setattr(rows, "TILE", 64)


@pytest.mark.parametrize(
    "dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16], ids=str
)
def test_parts_of_a_glow_step(small_glow_tiles, dtype):
    """Against torch's operations in float64; 12 channels in blocks of 16, 49 pixels in blocks of 16."""
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    x, out, dy = (drawn(2, 12, 7, 7, seed=k).to(dtype) for k in range(3))
    z2, dz1, dz2 = (drawn(2, 6, 7, 7, seed=k).to(dtype) for k in range(3, 6))
    matrix, inverse, offset = drawn(12, 12, seed=6), drawn(12, 12, seed=7), drawn(12, seed=8)
    dlogdet = drawn(2, seed=9).to(wide)
    of_map = (matrix.to(wide), inverse.to(wide), offset.to(wide))
    calls = [("mix", (x, of_map[0], of_map[2])), ("unmix", (x, z2, dy, None, dz2, *of_map)),
             ("unmix", (x, z2, dy, dz1, dz2, *of_map))]  # fmt: skip
    for scale, first in (("sigmoid", True), ("exp", False)):
        calls.append(("couple", (x, out, scale, 1.5, first)))
        calls.append(("uncouple", (x, out, dy, dlogdet, scale, 1.5, first)))
    for name, arguments in calls:
        kernel = getattr(of_glow, f"_{name}")
        exact = [t.double() if isinstance(t, torch.Tensor) else t for t in arguments]
        with use_backend("reference"):
            expected = testing.tensors_of(kernel.implementation("reference")(*exact))
        for ours, e in zip(
            testing.tensors_of(kernel.implementation("triton")(*arguments)), expected, strict=True
        ):
            error = (ours.double() - e).abs().max() / e.abs().max()
            # A half type is rounded once; sums of a hundred products have a few roundings more.
            assert error <= (8 if ours.dtype == wide else 1) * torch.finfo(ours.dtype).eps, (
                name,
                error,
            )


def test_glow_steps_with_recomputation(small_glow_tiles):
    """A row of steps and all its gradients; torch's operations give the same."""
    torch.manual_seed(0)
    x = drawn(2, 4, 5, 5)
    networks = [torch.nn.Conv2d(2, 4, 3, padding=1).double() for _ in range(2)]
    leaves = [[0.3 * drawn(4, seed=k), 0.2 * drawn(4, seed=k + 1), torch.eye(4).double() + 0.2 * drawn(4, 4, seed=k)]
              for k in range(2)]  # fmt: skip

    def run():
        given = [x.clone().requires_grad_()]
        steps = []
        for own, network in zip(leaves, networks, strict=True):
            bias, log_scale, weight = (t.clone().requires_grad_() for t in own)
            given += [bias, log_scale, weight, *network.parameters()]
            steps.append(
                GlowParameters(bias, log_scale, weight, torch.linalg.slogdet(weight)[1], network)
            )
        y, logdet = glow_steps(given[0], steps)
        return [
            y,
            logdet,
            *torch.autograd.grad(
                (y * drawn(2, 4, 5, 5, seed=5)).sum() + logdet.square().sum(), given
            ),
        ]

    ours = run()
    with use_backend("reference"):
        expected = run()
    for a, b in zip(ours, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)
