"""bias_act beyond the contract: shapes by hypothesis, agreement with torch's own layers, what is
kept for backward."""

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.autograd import forward_ad

import pyfastgan as pf
from pyfastgan.ops._registry import ops
from pyfastgan.ops.bias_act import ACTIVATIONS, bias_act_reference
from pyfastgan.testing import backends


@pytest.fixture(autouse=True)
def _the_kernels(request):
    """Asked for by name: small tensors would go to torch's own operations."""
    if request.node.get_closest_marker("small"):
        yield
        return
    with pf.use_backend("cpu" if "cpu" in backends(ops()["bias_act"]) else "reference"):
        yield


BACKENDS = backends(ops()["bias_act"])

TORCH = {
    "linear": lambda x: x,
    "relu": F.relu,
    "leaky_relu": lambda x: F.leaky_relu(x, 0.2),
    "tanh": torch.tanh,
    "sigmoid": torch.sigmoid,
    "silu": F.silu,
    "gelu": F.gelu,
    "softplus": F.softplus,
}


@pytest.mark.parametrize("backend", BACKENDS)
@settings(deadline=None, max_examples=60)
@given(
    shape=st.lists(st.integers(1, 70), min_size=2, max_size=4).filter(
        lambda s: math.prod(s) < 60_000
    ),
    act=st.sampled_from(sorted(ACTIVATIONS)),
    channels_last=st.booleans(),
    dtype=st.sampled_from([torch.float32, torch.float64]),
    seed=st.integers(0, 2**31),
)
def test_any_shape_equals_torch(backend, shape, act, channels_last, dtype, seed):
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(shape, generator=g, dtype=dtype)
    if channels_last and len(shape) == 4:
        x = x.contiguous(memory_format=torch.channels_last)
    b = torch.randn(shape[1], generator=g, dtype=dtype)
    dy = torch.randn(shape, generator=g, dtype=dtype)
    x.requires_grad_()
    b.requires_grad_()
    close = (
        {"rtol": 3e-6, "atol": 3e-6} if dtype == torch.float32 else {"rtol": 1e-12, "atol": 1e-12}
    )
    with pf.use_backend(backend):
        y = pf.ops.bias_act(x, b, act)
        dx, db = torch.autograd.grad(y, (x, b), dy)
    plain = TORCH[act](x + b.reshape(-1, *[1] * (len(shape) - 2)))
    ex, eb = torch.autograd.grad(plain, (x, b), dy)
    torch.testing.assert_close(y, plain, **close)
    torch.testing.assert_close(dx, ex, **close)
    # A sum of n terms of size 1 is known to sqrt(n) roundings or so.
    torch.testing.assert_close(
        db, eb, rtol=close["rtol"], atol=close["atol"] * math.sqrt(dy.numel())
    )
    assert y.stride() == x.stride()


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("act", sorted(ACTIVATIONS))
def test_accuracy_over_the_whole_range(backend, act):
    """Every activation and its derivatives in float32, against float64, from -1e4 to 1e4 and close
    to 0."""
    grid = torch.cat(
        (torch.linspace(-20, 20, 4001), torch.logspace(-30, 4, 500), -torch.logspace(-30, 4, 500))
    )
    with pf.use_backend(backend):
        x = grid.requires_grad_()
        y = pf.ops.bias_act(x, None, act)
        (dx,) = torch.autograd.grad(y.sum(), x, create_graph=True)
        results = [y, dx]
        if not ACTIVATIONS[act].piecewise_linear:
            results.append(torch.autograd.grad(dx.sum(), x)[0])
    wide = grid.detach().double().requires_grad_()
    exact = [bias_act_reference(wide, None, act)]
    exact += torch.autograd.grad(exact[0].sum(), wide, create_graph=True)
    if len(results) == 3:
        exact += torch.autograd.grad(exact[1].sum(), wide)
    for a, b in zip(results, exact, strict=True):
        error = (a.double() - b).abs() / b.abs().clamp(min=1)
        assert error.max() < 1e-6, f"at x = {grid[error.argmax()].item()}"


@pytest.mark.skipif("cpu" not in BACKENDS, reason="without compiled kernels")
@pytest.mark.parametrize("act", ["tanh", "sigmoid", "silu", "softplus"])
def test_functions_are_known_to_their_last_digits(act):
    """In float32, relative to the value however small that is, as csrc/math/elementary.h says of them."""
    small = torch.logspace(-36, 1.5, 20_001)
    grid = torch.cat((torch.linspace(-12, 12, 40_001), small, -small))
    with pf.use_backend("cpu"):
        y = pf.ops.bias_act(grid, None, act)
    exact = bias_act_reference(grid.double(), None, act)
    error = torch.where(exact.abs() > 1e-36, (y - exact) / exact, 0).abs()
    assert error.max() < 2e-7, f"at x = {grid[error.argmax()].item()}"


def test_no_bound_binds_a_nan():
    """Every backend's derivative passes there, as the definition's: the bias' gradient counts that element."""
    x = torch.tensor([[math.nan, 0.3], [9.0, -0.1]])
    found = []
    for backend in ("reference", *BACKENDS, None):
        bias = torch.zeros(2, requires_grad=True)
        with pf.use_backend(backend or "reference"):
            function = pf.ops.bias_act if backend else bias_act_reference
            y = function(x, bias, "linear", gain=-1.5, clamp=0.8)
            found.append(torch.autograd.grad(y.sum(), bias)[0].tolist())
    assert all(g == [-1.5, -3.0] for g in found), found


def kept(act, **kwargs):
    """What the forward pass saves: the names of known tensors, and the bytes of anything else."""
    x = torch.randn(4, 3, 8, 8, requires_grad=True)
    b = torch.zeros(3, requires_grad=True)
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
        y = pf.ops.bias_act(x, b, act, **kwargs)
    names = {x.data_ptr(): "x", y.data_ptr(): "y", b.data_ptr(): "bias"}
    return sorted(names.get(t.data_ptr(), f"{t.nbytes} bytes") for t in saved)


@pytest.mark.parametrize("backend", BACKENDS)
def test_little_is_kept_for_backward(backend):
    bits = 4 * 3 * 8 * 8 // 8 + 8
    with pf.use_backend(backend):
        assert kept("leaky_relu") == [f"{bits} bytes" if "cpu" in BACKENDS else "y"]
        assert kept("leaky_relu", clamp=1.0) == ["y"]
        assert kept("gelu") == ["bias", "x"]


@pytest.mark.parametrize("count", [1, 7, 8, 63, 64, 65, 1000])
def test_masks_are_packed_and_unpacked(count):
    from pyfastgan.ops._bias_act_formulas import signs_of
    from pyfastgan.ops._bias_act_kernels import _forward

    x = torch.randn(count, generator=torch.Generator().manual_seed(count))
    masks = []
    for backend in BACKENDS:
        with pf.use_backend(backend):
            masks.append(_forward(x, None, "relu", 0.0, 1.0, None, True)[1])
    for mask in masks:
        assert torch.equal(mask, masks[0])
        assert torch.equal(signs_of(mask, x) > 0, x > 0)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_a_mask_is_read_by_another_backend(layout):
    """The backend may change between the two passes."""
    x = torch.randn(2, 8, 3, 8).contiguous(memory_format=layout).requires_grad_()
    b = torch.randn(8, requires_grad=True)
    results = []
    for there in BACKENDS:
        for back in BACKENDS:
            with pf.use_backend(there):
                y = pf.ops.bias_act(x, b, "relu", gain=-1.5)
            with pf.use_backend(back):
                results.append(torch.autograd.grad((y * y).sum(), (x, b)))
    for dx, db in results:
        torch.testing.assert_close(dx, results[0][0])
        torch.testing.assert_close(db, results[0][1])


def test_clamp_has_no_derivative_where_it_binds():
    x = torch.tensor([[-3.0, -0.5, 0.5, 1.0, 3.0]], requires_grad=True)
    y = pf.ops.bias_act(x, None, "linear", clamp=1.0)
    assert y.tolist() == [[-1.0, -0.5, 0.5, 1.0, 1.0]]
    assert torch.autograd.grad(y.sum(), x)[0].tolist() == [[0.0, 1.0, 1.0, 0.0, 0.0]]


def test_kinks_have_torch_s_derivatives():
    x = torch.tensor([[0.0, -0.0]], requires_grad=True)
    for act, slope in (("relu", 0.0), ("leaky_relu", 0.25)):
        y = pf.ops.bias_act(x, None, act, slope=0.25)
        assert torch.autograd.grad(y.sum(), x)[0].tolist() == [[slope, slope]]


def test_the_input_is_never_returned_or_changed():
    x = torch.randn(2, 3)
    before = x.clone()
    y = pf.ops.bias_act(x, None, "linear")
    y.zero_()
    assert torch.equal(x, before)


def test_a_third_derivative_of_a_smooth_activation_raises():
    x = torch.randn(2, 3, dtype=torch.float64, requires_grad=True)
    y = pf.ops.bias_act(x, None, "silu").sum()
    for _ in range(2):
        (y,) = torch.autograd.grad(y, x, create_graph=True)
        y = y.sum()
    with pytest.raises(RuntimeError, match=r"act='silu' can be differentiated twice"):
        torch.autograd.grad(y, x)


def test_a_gradient_penalty_through_two_layers():
    """Second order in the weights, as WGAN-GP takes it, against plain torch in float64."""
    torch.manual_seed(0)
    x = torch.randn(6, 4, dtype=torch.float64)
    weights = [torch.randn(5, 4, dtype=torch.float64), torch.randn(1, 5, dtype=torch.float64)]
    bias = torch.randn(5, dtype=torch.float64)

    def penalty(layer):
        leaves = [w.clone().requires_grad_() for w in (*weights, bias)]
        point = x.clone().requires_grad_()
        critic = layer(point @ leaves[0].T, leaves[2]) @ leaves[1].T
        (g,) = torch.autograd.grad(critic.sum(), point, create_graph=True)
        value = ((g.norm(dim=1) - 1) ** 2).mean()
        return torch.autograd.grad(value, leaves, allow_unused=True)

    for act in ("leaky_relu", "silu"):
        ours = penalty(lambda h, b, act=act: pf.ops.bias_act(h, b, act))
        plain = penalty(lambda h, b, act=act: TORCH[act](h + b))
        for a, b in zip(ours, plain, strict=True):
            a = torch.zeros_like(bias) if a is None else a
            b = torch.zeros_like(bias) if b is None else b
            torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)


def test_autocast_takes_a_float32_bias():
    x, b = torch.randn(2, 3, 4).bfloat16(), torch.randn(3, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16):
        y = pf.ops.bias_act(x, b)
    assert y.dtype == torch.bfloat16
    y.sum().backward()
    assert b.grad.dtype == torch.float32


def test_inductor_goes_through():
    x = torch.randn(2, 3, 4, 4, requires_grad=True)
    b = torch.randn(3, requires_grad=True)
    compiled = torch.compile(lambda x, b: pf.ops.bias_act(2 * x, b, "silu") + 1, fullgraph=True)
    torch.testing.assert_close(compiled(x, b), pf.ops.bias_act(2 * x, b, "silu") + 1)
    for t in torch.autograd.grad(compiled(x, b).sum(), (x, b)):
        assert t.isfinite().all()


@pytest.mark.small
@pytest.mark.parametrize("act", ACTIVATIONS)
def test_small_tensors_are_left_to_torch(act):
    """The same function, without one of our operators, up to the stated size and no further."""
    torch.manual_seed(0)
    bias = torch.randn(3, requires_grad=True)
    limit = {"gelu": 2**20, "sigmoid": 2**17, "tanh": 2**13, "softplus": 2**13}.get(act, 2**18)
    for numel, ours in ((limit // 3 // 8 * 24, False), (limit // 3 // 8 * 24 + 24, True)):
        x = torch.randn(numel // 24, 3, 8, requires_grad=True)
        y = pf.ops.bias_act(x, bias, act)
        # The reference of gelu takes torch's erf, which is up to 7e-7 off in float32, times |x| / 2.
        torch.testing.assert_close(y, bias_act_reference(x, bias, act), rtol=1e-5, atol=3e-6)
        assert ("BiasAct" in type(y.grad_fn).__name__) == ours
    with pf.use_backend("reference"):
        y = pf.ops.bias_act(x[:4], bias, act)
        assert "BiasAct" in type(y.grad_fn).__name__


@pytest.mark.small
@pytest.mark.parametrize("act", ACTIVATIONS)
@pytest.mark.parametrize("shape", [(4, 3), (4, 3, 2), (2, 3, 4, 5), (1, 3, 2, 2, 2), (0, 3, 2, 2)])
def test_small_tensors_are_what_the_formula_says(act, shape):
    """Bit by bit where torch serves, whether the sum is written over or not, and where the kernel is exact; its smooth
    activations reach 3 ulp. The arguments stay as they are."""
    exact = act in ("linear", "relu", "leaky_relu", "gelu")
    x, bias = torch.randn(shape), torch.randn(3)
    before = x.clone(), bias.clone()
    for b in (bias, None):
        expected = bias_act_reference(x, b, act, slope=0.3)
        for recorded in (False, True):
            y = pf.ops.bias_act(x.clone().requires_grad_() if recorded else x, b, act, slope=0.3)
            near = 0 if exact or recorded else 4e-7
            torch.testing.assert_close(y, expected, rtol=near, atol=near)
            assert y.requires_grad == recorded
            assert y.data_ptr() != x.data_ptr() or x.numel() == 0
    assert torch.equal(x, before[0])
    assert torch.equal(bias, before[1])


@pytest.mark.small
def test_small_dual_numbers():
    """The kernels have no tangents, and must not drop them."""
    x, tangent, shift = torch.randn(3, 4, 5), torch.randn(3, 4, 5), torch.randn(3, 4, 5)
    with forward_ad.dual_level():
        dual = forward_ad.make_dual(x, tangent)
        for y, expected in (
            (pf.ops.bias_act(dual, act="tanh"), (1 - x.tanh() ** 2) * tangent),
            (pf.ops.affine_coupling(dual, x, shift)[0], x.exp() * tangent),
            (pf.ops.diffuse(dual, x[:, 0, 0], x[:, 0, 1], noise=shift)[0], x[:, :1, :1] * tangent),
            (pf.ops.denoise_step(dual, shift, torch.eye(11)[2])[0], tangent),
        ):
            torch.testing.assert_close(forward_ad.unpack_dual(y).tangent, expected)


@pytest.mark.small
def test_small_tensors_under_transforms():
    """Of torch.func, where a sum is written over too."""
    x, b = torch.randn(5, 2, 3, 4), torch.randn(5, 3)
    for act in ACTIVATIONS:
        mapped = torch.func.vmap(lambda x, b, act=act: pf.ops.bias_act(x, b, act))(x, b)
        each = [pf.ops.bias_act(x, b, act) for x, b in zip(x, b, strict=True)]
        torch.testing.assert_close(mapped, torch.stack(each), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(("dtype", "clamp"), [(torch.float16, 1e30), (torch.float32, 1e300)])
def test_a_clamp_that_the_dtype_does_not_hold(backend, dtype, clamp):
    """It is infinity, as the dtype rounds it."""
    x = torch.tensor([[3.0, -2.0, torch.inf]], dtype=dtype, requires_grad=True)
    with pf.use_backend(backend):
        y = pf.ops.bias_act(x, act="linear", gain=2.0, clamp=clamp)
        y.sum().backward()
    assert y.tolist() == [[6.0, -4.0, torch.inf]]
    assert x.grad.tolist() == [[2.0, 2.0, 0.0]]
