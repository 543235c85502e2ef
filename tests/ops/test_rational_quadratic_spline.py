"""rational_quadratic_spline beyond the contract: peers, knots and bounds, wild logits, Jacobians, round trips."""

import math

import pytest
import torch
import zuko.transforms
from hypothesis import example, given, settings
from hypothesis import strategies as st
from nflows.transforms import splines as nflows_splines
from normflows.utils import splines as normflows_splines

import pyfastgan as pf
from pyfastgan.ops._registry import Sample, T, ops
from pyfastgan.ops.rational_quadratic_spline import (
    _backward_reference,
    _settings,
    rational_quadratic_spline_reference,
)
from pyfastgan.testing import backends, check_not_finite, check_values

BACKENDS = backends(ops()["rational_quadratic_spline"])
spline = pf.ops.rational_quadratic_spline
NAMES = ("y", "logdet", "dx", "dwidths", "dheights", "dderivatives")


def logits(count, bins, *, knots=-1, extra=0, seed=0, dtype=torch.float32, scale=1.0):
    g = torch.Generator().manual_seed(seed)
    return [
        scale * torch.randn(count, 1, n, generator=g, dtype=dtype)
        for n in (bins + extra, bins + extra, bins + knots)
    ]


def inputs(count, bound, w, seed):
    """Numbers inside and outside, the bounds and their neighbours, zero, and every knot of the first elements."""
    g = torch.Generator().manual_seed(seed)
    x = bound * 1.5 * (2 * torch.rand(count, 1, generator=g, dtype=torch.float64) - 1)
    limit = torch.tensor(float(bound), dtype=torch.float32)
    near = [limit, torch.nextafter(limit, 2 * limit), torch.nextafter(limit, 0 * limit), 0 * limit]
    special = torch.stack([*near, *(-t for t in near)]).double()
    x[: len(special), 0] = special
    at = len(special)
    share = 1e-3 + (1 - 1e-3 * w.size(-1)) * torch.softmax(w.double(), -1)
    for k in range(w.size(-1) - 1):
        row = (at + k) % count
        x[row, 0] = bound * (2 * share[row, 0, : k + 1].sum() - 1)
    return x.float()


def derivatives(function, x, parameters, dtype):
    """Value, log-determinant and gradients for fixed cotangents."""
    leaves = [t.to(dtype).detach().requires_grad_() for t in (x, *parameters)]
    y, log = function(*leaves)
    g = torch.Generator().manual_seed(7)
    cotangents = [torch.randn(x.shape, generator=g, dtype=torch.float64).to(dtype) for _ in "yl"]
    grads = torch.autograd.grad((y, log), leaves, (cotangents[0], cotangents[1].reshape(log.shape)))
    return [y.detach(), log.detach(), *grads]


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


def close_to_a_knot(x, share, bound):
    at = share.cumsum(-1)
    knots = torch.cat((torch.zeros_like(at[..., :1]), at), -1) * 2 * bound - bound
    return ((x.double()[..., None] - knots).abs() < 3e-6 * bound).any(-1)


CASES = st.tuples(
    st.integers(1, 16),
    st.floats(0.5, 5.0),
    st.booleans(),
    st.floats(0.1, 3.0),
    st.integers(0, 2**31),
)


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


def test_a_second_derivative_raises():
    x = torch.randn(3, 1, requires_grad=True)
    y, _ = spline(x, *logits(3, 4))
    (dx,) = torch.autograd.grad(y.sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="rational_quadratic_spline can be differentiated once"):
        torch.autograd.grad(dx.sum(), x)


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
