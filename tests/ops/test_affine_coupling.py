"""affine_coupling beyond the contract: peers, Jacobians, round trips, what is kept and how it is summed."""

import itertools
import math

import FrEIA.modules
import normflows
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import pyfastgan as pf
from pyfastgan.ops._registry import ops
from pyfastgan.ops.affine_coupling import SCALES, affine_coupling_reference
from pyfastgan.testing import backends

BACKENDS = backends(ops()["affine_coupling"])
ORDERS = list(itertools.product((False, True), (False, True)))


@pytest.fixture(autouse=True)
def _the_kernels():
    """Asked for by name: small tensors would go to torch's own operations."""
    with pf.use_backend("cpu" if "cpu" in BACKENDS else "reference"):
        yield


class Given(nn.Module):
    """A "network" whose output is what it is given."""

    def __init__(self, output):
        super().__init__()
        self.output = output

    def forward(self, x):
        return self.output


def three(*shape, seed=0, dtype=torch.float32, scale=1.0):
    g = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=g, dtype=dtype) * scale for _ in range(3)]


@pytest.mark.parametrize("inverse", [False, True])
@pytest.mark.parametrize("theirs", ["exp", "sigmoid", "sigmoid_inv"])
def test_normflows(theirs, inverse):
    x, raw, shift = three(5, 4, 3, 3)
    layer = normflows.flows.AffineCoupling(
        Given(torch.stack((shift, raw), 2).flatten(1, 2)), scale_map=theirs
    )
    (_, y), logdet = (layer.inverse if inverse else layer.forward)([x, x])
    if theirs == "sigmoid":
        # Their forward direction divides: it is the inverse of x = (y - t) S, shift first with -t.
        ours = pf.ops.affine_coupling(
            x, raw, -shift, scale="sigmoid", shift_first=True, inverse=not inverse
        )
    else:
        ours = pf.ops.affine_coupling(
            x, raw, shift, scale=theirs.removesuffix("_inv"), inverse=inverse
        )
    torch.testing.assert_close(ours[0], y, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(ours[1], logdet, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("inverse", [False, True])
@pytest.mark.parametrize("clamp", [2.0, 0.7])
def test_freia(clamp, inverse):
    x, raw, shift = three(5, 4)
    block = FrEIA.modules.AffineCouplingOneSided(
        [(8,)], subnet_constructor=lambda *_: Given(torch.cat((raw, shift), 1)), clamp=clamp
    )
    (y,), logdet = block([torch.cat((x, x), 1)], rev=inverse)
    # Its newer versions clamp c atan(s), the older ones and ours c atan(s / c).
    ours = pf.ops.affine_coupling(
        x, clamp * raw, shift, scale="softclamp", clamp=clamp, inverse=inverse
    )
    torch.testing.assert_close(ours[0], y[:, 4:], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(ours[1], logdet, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(("first", "inverse"), ORDERS)
@pytest.mark.parametrize("scale", SCALES)
def test_logdet_is_that_of_the_jacobian(scale, first, inverse, backend):
    x, raw, shift = three(1, 6, dtype=torch.float64)

    def call(t):
        return pf.ops.affine_coupling(
            t, raw, shift, scale=scale, shift_first=first, inverse=inverse
        )

    with pf.use_backend(backend):
        jacobian = torch.autograd.functional.jacobian(lambda t: call(t)[0], x).reshape(6, 6)
        logdet = call(x)[1]
    torch.testing.assert_close(logdet[0], torch.linalg.slogdet(jacobian)[1], rtol=0, atol=1e-12)


@settings(deadline=None, max_examples=60)
@given(
    shape=st.lists(st.integers(1, 40), min_size=1, max_size=4).filter(
        lambda s: math.prod(s) < 20_000
    ),
    order=st.sampled_from(ORDERS),
    scale=st.sampled_from(sorted(SCALES)),
    magnitude=st.sampled_from([0.0, 1.0, 5.0]),
    seed=st.integers(0, 2**31),
)
def test_round_trip(shape, order, scale, magnitude, seed):
    x, raw, shift = three(*shape, seed=seed, dtype=torch.float64)
    raw = raw * magnitude
    for direction in (False, True):
        kwargs = {"scale": scale, "shift_first": order[0]}
        y, there = pf.ops.affine_coupling(x, raw, shift, inverse=direction, **kwargs)
        back, here = pf.ops.affine_coupling(y, raw, shift, inverse=not direction, **kwargs)
        # A factor of e^-20 and back leaves this much of what stood beside a shift of 1.
        torch.testing.assert_close(back, x, rtol=1e-6, atol=1e-6)
        torch.testing.assert_close(here, -there, rtol=1e-12, atol=1e-12)


def test_halves_of_a_network_s_output_are_read_in_place():
    """Samples that lie apart, of every tensor, in both directions of differentiation."""
    x = torch.randn(3, 8, 4, 4)[:, 4:].detach().requires_grad_()
    out = torch.randn(3, 8, 4, 4, requires_grad=True)
    results = []
    for change in (lambda t: t, torch.Tensor.contiguous):
        raw, shift = map(change, out.chunk(2, 1))
        y, logdet = pf.ops.affine_coupling(change(x), raw, shift, scale="tanh")
        wide = torch.randn(3, 8, 4, 4, generator=torch.Generator().manual_seed(1))
        results.append(
            (y, logdet, *torch.autograd.grad((y, logdet), (x, out), (wide[:, :4], logdet.detach())))
        )
    for a, b in zip(*results):
        assert torch.equal(a, b)


def test_little_is_kept_for_backward():
    x, raw, shift = (t.requires_grad_() for t in three(2, 5))
    for first, kept in ((False, {"x", "raw"}), (True, {"y", "raw"})):
        saved: list = []
        hooks = (lambda t, saved=saved: saved.append(t) or t), (lambda t: t)
        with torch.autograd.graph.saved_tensors_hooks(*hooks):
            y, _ = pf.ops.affine_coupling(x, raw, shift, shift_first=first)
        names = {x.data_ptr(): "x", y.data_ptr(): "y", raw.data_ptr(): "raw"}
        names[shift.data_ptr()] = "shift"
        assert {names[t.data_ptr()] for t in saved} == kept


def test_logdet_of_half_types_is_summed_in_float32():
    x, raw, shift = (t.bfloat16() for t in three(2, 30_000))
    y, logdet = pf.ops.affine_coupling(x, raw + 3, shift)
    assert (y.dtype, logdet.dtype) == (torch.bfloat16, torch.float32)
    exact = (raw + 3).double().sum(1)
    torch.testing.assert_close(logdet.double(), exact, rtol=1e-6, atol=0)


def test_second_derivatives_are_the_reference_s():
    x, raw, shift = (t.requires_grad_() for t in three(2, 3, dtype=torch.float64))
    for first, inverse in ORDERS:

        def call(*inputs, first=first, inverse=inverse):
            return pf.ops.affine_coupling(
                *inputs, scale="softclamp", shift_first=first, inverse=inverse
            )

        assert torch.autograd.gradgradcheck(call, (x, raw, shift), fast_mode=True)


def test_autocast_keeps_the_variable_s_precision():
    x, raw, shift = three(2, 3)
    with torch.autocast("cpu", torch.bfloat16):
        y, logdet = pf.ops.affine_coupling(x, raw.bfloat16(), shift.bfloat16())
    assert y.dtype == logdet.dtype == torch.float32


def test_extreme_scales_stay_finite_where_they_are_bounded():
    x = torch.ones(1, 4, requires_grad=True)
    raw = torch.tensor([[-1e30, -200.0, 200.0, 1e30]], requires_grad=True)
    for scale in ("tanh", "softclamp"):
        y, logdet = pf.ops.affine_coupling(x, raw, x.detach(), scale=scale)
        for t in (
            y,
            logdet,
            *torch.autograd.grad((y.sum(), logdet), (x, raw), (torch.ones(()), torch.ones(1))),
        ):
            assert t.isfinite().all()


@pytest.mark.parametrize("backend", BACKENDS)
def test_outputs_too_large_for_the_caches(backend):
    """They are written past them, the same bits as in parts that are not."""
    shape = (4, 1 << 20)  # 16 MiB in float32
    inputs = [t.requires_grad_() for t in three(*shape)]
    dy, dlogdet = three(*shape, seed=1)[0], torch.randn(4)

    def run(rows):
        y, logdet = pf.ops.affine_coupling(*(t[rows] for t in inputs), scale="softclamp")
        grads = torch.autograd.grad((y, logdet), inputs, (dy[rows], dlogdet[rows]))
        return (y, logdet, *(g[rows] for g in grads))

    with pf.use_backend(backend):
        whole = run(slice(0, 4))
        parts = [run(slice(k, k + 1)) for k in range(4)]
    for one, several in zip(whole, zip(*parts)):
        if backend == "cpu":
            assert torch.equal(one, torch.cat(several))
        else:  # torch's sums are cut by the number of samples
            torch.testing.assert_close(one, torch.cat(several), rtol=1e-5, atol=1e-3)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_a_clamp_that_float16_does_not_hold(backend, dtype):
    """Far below the clamp its map is 0.636 s."""
    raw = torch.tensor([[1.0, 2.0, -3.0]], dtype=dtype)
    with pf.use_backend(backend):
        y, logdet = pf.ops.affine_coupling(
            torch.ones_like(raw), raw, torch.zeros_like(raw), scale="softclamp", clamp=1e30
        )
    torch.testing.assert_close(y, (0.636 * raw.double()).exp().to(dtype), rtol=2e-3, atol=0)
    torch.testing.assert_close(logdet, torch.zeros(1), rtol=0, atol=1e-6)


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("shape", [(4,), (4, 3), (2, 3, 4, 5), (0, 3), (3, 0)])
def test_small_tensors_take_a_short_way(scale, shape):
    """The same function by torch or by the kernel alone, in every order of the steps, recorded or not."""
    inputs = three(*shape, dtype=torch.float64)
    for first, inverse in ORDERS:
        settings = {"scale": scale, "shift_first": first, "inverse": inverse}
        expected = affine_coupling_reference(*inputs, **settings)
        for recorded in (False, True):
            given = [t.clone().requires_grad_(recorded) for t in inputs]
            with pf.use_backend("auto"):
                ours = pf.ops.affine_coupling(*given, **settings)
            torch.testing.assert_close(ours, expected, rtol=1e-12, atol=1e-12)
            assert ours[0].requires_grad == ours[1].requires_grad == recorded
            by_torch = "AffineCoupling" not in type(ours[0].grad_fn).__name__
            assert by_torch == (scale in ("exp", "tanh") or not recorded)
