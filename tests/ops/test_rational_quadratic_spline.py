"""rational_quadratic_spline beyond contract and peers: knots and bounds, wild logits, Jacobians, round trips."""

import math

import pytest
import torch
from hypothesis import given, settings
from nflows.transforms import splines as nflows_splines

import pyfastgan as pf
from pyfastgan.ops._registry import Sample, T, ops
from pyfastgan.ops._spline_formulas import _backward_reference, _settings
from pyfastgan.ops.rational_quadratic_spline import (
    packed_rational_quadratic_spline,
    rational_quadratic_spline_reference,
)
from pyfastgan.testing import backends, check_not_finite, check_values

from .splines import CASES, NAMES, close_to_a_knot, derivatives, inputs, logits

BACKENDS = backends(ops()["rational_quadratic_spline"])
spline = pf.ops.rational_quadratic_spline


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("kwargs", [
    {}, {"inverse": True}, {"parameterisation": "zuko"}, {"parameterisation": "freia"},
    {"parameterisation": "freia", "inverse": True}, {"tails": None}, {"tails": None, "inverse": True},
])  # fmt: skip
def test_logdet_is_that_of_the_jacobian(kwargs, backend):
    kwargs = {"tail_bound": 2.0, **kwargs}
    extra = int(kwargs.get("parameterisation") == "freia")
    parameters = logits(
        7, 5, extra=extra, knots=1 if kwargs.get("tails", 1) is None else -1, dtype=torch.float64
    )
    parameters = [p.reshape(1, 7, -1) for p in parameters]
    x = torch.rand(1, 7, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    with pf.use_backend(backend):
        jacobian = torch.autograd.functional.jacobian(
            lambda t: spline(t, *parameters, **kwargs)[0], x
        ).reshape(7, 7)
        logdet = spline(x, *parameters, **kwargs)[1]
    torch.testing.assert_close(logdet[0], torch.linalg.slogdet(jacobian)[1], rtol=0, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("parameterisation", ["nflows", "zuko", "freia"])
@pytest.mark.parametrize("scale", [10.0, 50.0, 1e4])
def test_wild_logits_give_finite_values_and_gradients(scale, parameterisation, backend, dtype):
    extra = int(parameterisation == "freia")
    parameters = [p.to(dtype) for p in logits(4000, 10, scale=scale, extra=extra)]
    x = (4 * torch.randn(4000, 1, generator=torch.Generator().manual_seed(2))).to(dtype)
    for inverse in (False, True):

        def call(*a, inverse=inverse):
            return spline(*a, tail_bound=3.0, inverse=inverse, parameterisation=parameterisation)

        with pf.use_backend(backend):
            for name, t in zip(NAMES, derivatives_of_sums(call, x, parameters)):
                assert t.isfinite().all(), (name, inverse)


def derivatives_of_sums(function, x, parameters):
    leaves = [t.detach().requires_grad_() for t in (x, *parameters)]
    y, log = function(*leaves)
    return [
        y,
        log,
        *torch.autograd.grad((y, log), leaves, (torch.ones_like(y), torch.ones_like(log))),
    ]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@settings(deadline=None, max_examples=40)
@given(case=CASES)
def test_round_trip(dtype, case):
    bins, bound, inverse, scale, seed = case
    parameters = logits(200, bins, seed=seed, scale=scale, dtype=dtype)
    x = inputs(200, bound, parameters[1 if inverse else 0], seed).to(dtype)
    kwargs = {"tail_bound": bound, "elementwise": True}
    y, there = spline(x, *parameters, inverse=inverse, **kwargs)
    back, here = spline(y, *parameters, inverse=not inverse, **kwargs)
    # Where the spline is flat, a rounding of y is one of x over the slope.
    eps = torch.finfo(dtype).eps
    allowed = 400 * eps * bound * (1 + (-there).exp().clamp(max=1e6))
    assert ((back - x).abs() <= allowed).all()
    assert y.abs().le(bound * (1 + 4 * eps)).logical_or(x.abs() > bound * (1 - 4 * eps)).all()


def test_the_value_and_its_derivative_are_continuous_at_knots_and_bounds():
    w, h, d = logits(1, 6, dtype=torch.float64)
    knots = inputs(20, 1.0, w.expand(20, 1, 6), 0).double()[8:13]
    for at in (*knots.flatten().tolist(), -1.0, 1.0):
        x = torch.tensor([[at - 1e-9], [at], [at + 1e-9]], dtype=torch.float64)
        y, log = spline(x, *(p.expand(3, 1, -1) for p in (w, h, d)), elementwise=True)
        torch.testing.assert_close(y, y[1:2].expand(3, 1), rtol=0, atol=1e-6)
        torch.testing.assert_close(log, log[1:2].expand(3, 1), rtol=0, atol=1e-5)


def test_an_even_spline_is_the_identity():
    x = torch.linspace(-2, 2, 401).reshape(1, -1)
    flat = math.log(math.expm1(1 - 1e-3))
    p = torch.zeros(1, 401, 8), torch.zeros(1, 401, 8), torch.full((1, 401, 7), flat)
    for inverse in (False, True):
        y, logdet = spline(x, *p, inverse=inverse)
        torch.testing.assert_close(y, x, rtol=0, atol=3e-7)
        torch.testing.assert_close(logdet, torch.zeros(1), rtol=0, atol=1e-4)


def test_outside_the_tails_inputs_come_back_bit_for_bit():
    x = torch.tensor([[1.0000001, -3.7, math.inf, -math.inf, 1e30]])
    for inverse in (False, True):
        p = [t.reshape(1, 5, -1) for t in logits(5, 4)]
        y, log = spline(x, *p, inverse=inverse, elementwise=True)
        assert torch.equal(y, x)
        assert torch.equal(log, torch.zeros_like(log))


@pytest.mark.skipif("cpu" not in BACKENDS, reason="about the compiled kernel's rounding")
def test_narrow_bins_keep_their_digits():
    """A float32 gradient through bins near the least width, against float64. Rounded knots would be divided by such a
    width: nflows' own error here is larger."""
    w, h, d = logits(20_000, 10, scale=1.5)
    x = 3 * torch.randn(20_000, 1, generator=torch.Generator().manual_seed(3)).clamp(-0.99, 0.99)
    for inverse in (False, True):

        def ours(*a, inverse=inverse):
            return spline(*a, tail_bound=3.0, inverse=inverse, elementwise=True)

        def theirs(*a, inverse=inverse):
            return nflows_splines.unconstrained_rational_quadratic_spline(
                *a, tail_bound=3.0, inverse=inverse
            )

        exact = derivatives(ours, x, (w, h, d), torch.float64)
        share = 1e-3 + 0.99 * torch.softmax((h if inverse else w).double(), -1)
        knots = close_to_a_knot(x, share, 3.0)
        means = []  # the worst is that of a single narrow bin, and chance
        for function in (ours, theirs):
            single = derivatives(function, x, (w, h, d), torch.float32)
            error = ((single[2].double() - exact[2]).abs() / exact[2].abs().clamp(min=1))[~knots]
            means.append(error.mean().item())
        assert means[0] < 0.7 * means[1]  # 0.2 to 0.3 with fused products, 0.45 to 0.6 without


@pytest.mark.parametrize("parameterisation", ["nflows", "zuko"])
@pytest.mark.parametrize("inverse", [False, True])
@pytest.mark.parametrize("bins", [8, 10, 16])  # those that the compiled kernel knows beforehand
def test_known_numbers_of_bins(bins, inverse, parameterisation):
    sizes = (bins, bins, bins - 1)
    sample = Sample(
        f"{bins} bins",
        (T((7, 9), scale=1.5), *(T((7, 9, n), scale=2.0) for n in sizes)),
        {
            "tail_bound": 2.0,
            "inverse": inverse,
            "parameterisation": parameterisation,
            "logit_scale": 0.6,
        },
    )
    op = ops()["rational_quadratic_spline"]
    for backend in BACKENDS:
        with pf.use_backend(backend):
            check_values(op, sample, torch.float32)
            check_not_finite(op, sample)


@pytest.mark.parametrize("inverse", [False, True])
def test_one_tensor_of_all_logits(inverse):
    """Read in place, with its gradient made in place."""
    from pyfastgan.ops.rational_quadratic_spline import _call

    g = torch.Generator().manual_seed(0)
    packed = torch.randn(6, 5, 3 * 7 - 1, generator=g, requires_grad=True)
    x = torch.randn(6, 5, generator=g)
    results = []
    for backend in BACKENDS:
        with pf.use_backend(backend):
            s = _settings(inverse, "linear", 2.0, 1e-3, 1e-3, 1e-3, False, "nflows", 1.0)
            one = _call(x, packed, None, None, s)
            three = spline(x, *packed.split((7, 7, 6), -1), tail_bound=2.0, inverse=inverse)
            for outputs in (one, three):
                grad = torch.autograd.grad(sum((t * t).sum() for t in outputs), packed)
                results.append((*outputs, *grad))
    for other in results[1:]:
        for a, b in zip(other, results[0]):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def test_more_bins_than_the_kernels_take():
    parameters = [p.requires_grad_() for p in logits(3, 70, dtype=torch.float64)]
    x = torch.randn(3, 1, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(
        lambda *a: spline(*a, min_bin_width=1e-4, min_bin_height=1e-4),
        (x, *parameters),
        fast_mode=True,
    )


def test_the_reference_s_backward_is_autograd_s():
    """It is written out, and the kernels are measured against autograd through the reference alone."""
    for kwargs in ({}, {"inverse": True}, {"parameterisation": "zuko"}):
        w, h, d = logits(50, 5, dtype=torch.float64)
        x = torch.randn(50, 1, dtype=torch.float64, generator=torch.Generator().manual_seed(1))

        def call(*a, kwargs=kwargs):
            return rational_quadratic_spline_reference(*a, elementwise=True, **kwargs)

        exact = derivatives(call, x, (w, h, d), torch.float64)
        s = _settings(
            kwargs.get("inverse", False), "linear", 1.0, 1e-3, 1e-3, 1e-3, True,
            kwargs.get("parameterisation", "nflows"), 1.0,
        )  # fmt: skip
        g = torch.Generator().manual_seed(7)
        dy, dlog = (torch.randn(x.shape, generator=g, dtype=torch.float64) for _ in "yl")
        for a, b in zip(_backward_reference(dy, dlog, x, w, h, d, *s), exact[2:]):
            torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("kwargs", [{}, {"inverse": True}, {"parameterisation": "zuko"}])
def test_higher_derivatives(kwargs):
    # The kernels' first derivative, and torch's operations from there on; one element is outside.
    g = torch.Generator().manual_seed(3)
    draw = lambda *shape: torch.randn(shape, generator=g, dtype=torch.float64)  # noqa: E731
    x, packed = draw(3, 2).requires_grad_(), draw(3, 2, 11).requires_grad_()
    dy, dlogdet = (
        draw(3, 2).requires_grad_(),
        draw(3),
    )  # a cotangent that is asked for, and one that is not
    with torch.no_grad():
        x[0, 0] = 2.5

    def results(f):
        first = torch.autograd.grad(f(), (x, packed), (dy, dlogdet), create_graph=True)
        value = sum(t.square().sum() for t in first)
        second = torch.autograd.grad(value, (x, packed, dy), create_graph=True)
        third = torch.autograd.grad(sum(t.square().sum() for t in second), (x, packed, dy))
        return (*first, *second, *third)

    parts = lambda: packed.split((4, 4, 3), -1)  # noqa: E731
    calls = (
        lambda: packed_rational_quadratic_spline(x, packed, tail_bound=2.0, **kwargs),
        lambda: spline(x, *parts(), tail_bound=2.0, **kwargs),
    )
    exact = results(
        lambda: rational_quadratic_spline_reference(x, *parts(), tail_bound=2.0, **kwargs)
    )
    for call in calls:
        for ours, theirs in zip(results(call), exact, strict=True):
            size = float(theirs.detach().abs().max())
            torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9 * size)


def test_a_second_derivative_by_torch_func_raises():
    x, parameters = torch.randn(3, 1), logits(3, 4)
    first = torch.func.grad(lambda x: spline(x, *parameters)[0].sum())
    with pytest.raises(RuntimeError, match="rational_quadratic_spline can be differentiated once"):
        torch.func.grad(lambda x: first(x).sum())(x)


def test_rounding_past_the_domain_is_clamped():
    x = torch.tensor([[-1e-6], [1 + 1e-6], [math.nan]])
    y, _ = spline(x, *logits(3, 4, knots=1), tails=None)
    assert y[0] == 0
    assert 1 - 1e-7 <= y[1] <= 1  # the reference rounds the end of the last bin
    assert y[2].isnan().all()


@pytest.mark.parametrize(("count", "bins"), [(76_800, 4), (37_120, 8)])  # 12.9 and 13.0 MiB
@pytest.mark.parametrize("backend", BACKENDS)
def test_gradients_too_large_for_the_caches(backend, count, bins):
    """They are written past them, the same bits as in parts that are not."""
    g = torch.Generator().manual_seed(0)
    x, dy = torch.randn(2, count, 4, generator=g)
    sizes = (bins, bins, bins - 1)
    inputs = [torch.randn(count, 4, n, generator=g).requires_grad_() for n in sizes]

    def run(rows):
        y, logdet = spline(x[rows], *(t[rows] for t in inputs))
        grads = torch.autograd.grad((y, logdet), inputs, (dy[rows], dy[rows, 0]))
        return (y, logdet, *(t[rows] for t in grads))

    with pf.use_backend(backend):
        whole = run(slice(0, count))
        parts = [run(slice(k, k + count // 8)) for k in range(0, count, count // 8)]
    for one, several in zip(whole, zip(*parts)):
        torch.testing.assert_close(one, torch.cat(several), rtol=0, atol=0)
