"""rational_quadratic_spline against nflows, normflows, zuko and FrEIA."""

import math

import pytest
import torch
import zuko.transforms
from hypothesis import example, given, settings
from hypothesis import strategies as st
from nflows.transforms import splines as nflows_splines
from normflows.utils import splines as normflows_splines

import pyfastgan as pf
from pyfastgan.ops._registry import ops
from pyfastgan.testing import backends

from .splines import CASES, NAMES, close_to_a_knot, derivatives, inputs, logits

BACKENDS = backends(ops()["rational_quadratic_spline"])
spline = pf.ops.rational_quadratic_spline


def agree(function, bound, x, parameters, ours, theirs):
    """Ours is as near to the truth as theirs, or is right for an x within some roundings of its own: where the spline
    bends sharply, and at a knot, whose gradients jump, no more can be asked for."""
    exact = derivatives(function, x, parameters, torch.float64)
    eps = torch.finfo(torch.float32).eps
    near = [x.double() + 2 * eps * bound * k for k in (-16, -4, -1, 1, 4, 16)]
    around = [derivatives(function, t, parameters, torch.float64) for t in near]
    # A gradient by a knot's place is a difference of terms as large as dx: their roundings are left where they cancel.
    cancelled = 4 * eps * exact[NAMES.index("dx")].abs()[..., None]
    for name, a, b, c, *near in zip(NAMES, ours, theirs, exact, *around):
        if c.numel() == 0:  # one bin has no inner derivatives
            continue
        size = c.abs().clamp(min=1)
        error, other = (a.double() - c).abs() / size, (b.double() - c).abs() / size
        allowed = torch.stack([(t - c).abs() / size for t in near]).amax(0)
        allowed = 2 * (allowed + other.nan_to_num().max()) + 3e-4  # theirs gives NaN at some knots
        if name in ("dwidths", "dheights"):
            allowed = allowed + cancelled
        assert (error <= allowed).all(), (name, (error - allowed).max().item())
    return exact


@pytest.mark.parametrize("backend", BACKENDS)
@settings(deadline=None, max_examples=25)
@given(case=CASES, minima=st.tuples(*[st.sampled_from([1e-3, 0.01, 0.05])] * 3))
def test_nflows_and_normflows(backend, case, minima):
    bins, bound, inverse, scale, seed = case
    bound = float(torch.tensor(bound))
    w, h, d = logits(80, bins, seed=seed, scale=scale)
    x = inputs(80, bound, h if inverse else w, seed)
    kwargs = dict(zip(("min_bin_width", "min_bin_height", "min_derivative"), minima))
    kwargs |= {"inverse": inverse, "tails": "linear", "tail_bound": bound}

    def theirs(*a):
        return nflows_splines.unconstrained_rational_quadratic_spline(*a, **kwargs)

    def others(*a):
        return normflows_splines.unconstrained_rational_quadratic_spline(*a, **kwargs)

    with pf.use_backend(backend):
        ours = derivatives(
            lambda *a: spline(*a, **kwargs, elementwise=True), x, (w, h, d), torch.float32
        )
    try:
        single = derivatives(theirs, x, (w, h, d), torch.float32)
    except AssertionError:  # about a discriminant below zero
        single = derivatives(theirs, x, (w, h, d), torch.float64)
    exact = agree(theirs, bound, x, (w, h, d), ours, single)
    least = minima[inverse]
    share = least + (1 - least * bins) * torch.softmax((h if inverse else w).double(), -1)
    knots = close_to_a_knot(x, share, bound)
    for a, b in zip(derivatives(others, x, (w, h, d), torch.float64), exact):
        torch.testing.assert_close(a[~knots], b[~knots])  # the two are one definition
    double = derivatives(
        lambda *a: spline(*a, **kwargs, elementwise=True), x, (w, h, d), torch.float64
    )
    for a, b in zip(double, exact):
        torch.testing.assert_close(a[~knots], b[~knots], rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("inverse", [False, True])
def test_nflows_without_tails(inverse):
    parameters = logits(200, 6, knots=1, dtype=torch.float64)
    x = torch.rand(200, 1, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    x[:2, 0] = torch.tensor([0.0, 1.0])

    def theirs(*a):
        return nflows_splines.rational_quadratic_spline(*a, inverse=inverse)

    def ours(*a):
        return spline(*a, tails=None, inverse=inverse, elementwise=True)

    for name, a, b in zip(
        NAMES,
        derivatives(ours, x, parameters, torch.float64),
        derivatives(theirs, x, parameters, torch.float64),
    ):
        # At the bounds the two differ in whether the clamp has a derivative.
        rows = slice(2, None) if name == "dx" else slice(None)
        torch.testing.assert_close(a[rows], b[rows], rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("backend", BACKENDS)
@settings(deadline=None, max_examples=25)
@given(case=CASES, slope=st.sampled_from([1e-3, 1e-2]))
@example(case=(15, 1.0, True, 3.0, 198), slope=1e-3)  # a root whose usual form cancels
def test_zuko(backend, case, slope):
    bins, bound, inverse, scale, seed = case
    bound = float(torch.tensor(bound))
    w, h, d = logits(80, bins, seed=seed, scale=3 * scale)
    x = inputs(80, bound, h if inverse else w, seed)

    def theirs(x, *p):
        t = zuko.transforms.MonotonicRQSTransform(*p, bound=bound, slope=slope)
        if inverse:
            y = t._inverse(x)
            return y, -t.call_and_ladj(y)[1]
        return t.call_and_ladj(x)

    def ours(*a):
        return spline(
            *a,
            tail_bound=bound,
            min_derivative=slope,
            inverse=inverse,
            elementwise=True,
            parameterisation="zuko",
        )

    with pf.use_backend(backend):
        single = derivatives(ours, x, (w, h, d), torch.float32)
        double = derivatives(ours, x, (w, h, d), torch.float64)
    other = derivatives(theirs, x, (w, h, d), torch.float32)
    exact = agree(theirs, bound, x, (w, h, d), single, other)
    v = (h if inverse else w).double()
    share = torch.softmax(v / (1 - v.abs() * 2 / math.log(slope)), -1)
    knots = close_to_a_knot(x, share, bound)
    for a, b in zip(double, exact):
        torch.testing.assert_close(a[~knots], b[~knots], rtol=1e-7, atol=1e-7)


@pytest.mark.parametrize("backend", BACKENDS)
def test_freia(backend):
    """Numbers from the formulas of FrEIA's BinnedSpline and RationalQuadraticSpline (github.com/vislearn/FrEIA, a93db01
    and b5beb66) written out apart from ours, since its releases have no spline to run: its defaults, in float64,
    inside and outside of a domain that has moved."""
    bins = 4
    element = torch.arange(6, dtype=torch.float64)[:, None]
    column = torch.arange(3 * bins + 1, dtype=torch.float64)
    numbers = (2 * torch.sin(1.0 + 1.7 * element + 0.9 * column)).float().double()
    left, bottom, w, h, d = numbers.split((1, 1, bins, bins, bins - 1), -1)
    w, h = torch.cat((left, w), -1), torch.cat((bottom, h), -1)
    x = torch.tensor([-7.0, -2.5, 0.3, 4.0, 9.0, 40.0], dtype=torch.float64)
    y = [-9.094262027791531, -4.267983969103147, -0.538070887803733]
    y += [1.6899877650644664, 13.532364526752497, 33.765780897188414]
    log = [0.3403289263821668, 0.07644558012027294, 0.4269445037320796]
    log += [0.06420763221641246, -1.0955375391123154, -0.11607394687974928]
    kwargs = {"tail_bound": 3.0, "min_bin_width": 0.1, "min_bin_height": 0.1, "elementwise": True}
    kwargs["parameterisation"] = "freia"
    for dtype, close in ((torch.float64, 1e-12), (torch.float32, 2e-5)):
        there, here = (torch.tensor(t, dtype=dtype) for t in (y, log))
        with pf.use_backend(backend):
            ours = spline(*(t.to(dtype) for t in (x, w, h, d)), **kwargs)
            back = spline(there, *(t.to(dtype) for t in (w, h, d)), inverse=True, **kwargs)
        torch.testing.assert_close(ours, (there, here), rtol=close, atol=close)
        torch.testing.assert_close(back, (x.to(dtype), -here), rtol=close, atol=close)
