"""norm_act beyond the contract: agreement with torch's norms over shapes by hypothesis, second order
against float64, running statistics, means far from zero, what is kept for backward."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

import pyfastgan as pf
from pyfastgan.ops._registry import ops
from pyfastgan.ops.bias_act import ACTIVATIONS
from pyfastgan.testing import backends

BACKENDS = backends(ops()["norm_act"])
LAYOUTS = {"contiguous": torch.contiguous_format, "channels last": torch.channels_last}


def torch_norm(x, w, b, norm, groups=None, eps=1e-5):
    if norm == "batch":
        return F.batch_norm(x, None, None, w, b, training=True, eps=eps)
    if norm == "instance":
        return F.instance_norm(x, weight=w, bias=b, eps=eps)
    return F.group_norm(x, groups or 1, w, b, eps=eps)


@pytest.mark.parametrize("backend", BACKENDS)
@settings(deadline=None, max_examples=50)
@given(
    samples=st.integers(1, 40),
    groups=st.integers(1, 6),
    per_group=st.integers(1, 20),
    space=st.lists(st.integers(1, 24), max_size=2),
    norm=st.sampled_from(["batch", "instance", "group", "layer"]),
    act=st.sampled_from(["linear", "relu", "leaky_relu", "tanh"]),
    last=st.booleans(),
    seed=st.integers(0, 2**31),
)
def test_any_shape_equals_torch(backend, samples, groups, per_group, space, norm, act, last, seed):
    g = torch.Generator().manual_seed(seed)
    shape = (samples, groups * per_group, *space)
    groups = groups if norm == "group" else None
    x, dy, v = (torch.randn(shape, generator=g, dtype=torch.float64) for _ in range(3))
    if x.numel() > 100_000:
        return
    if last and len(space) == 2:
        x, dy, v = (t.contiguous(memory_format=torch.channels_last) for t in (x, dy, v))
    w, b = (torch.randn(shape[1], generator=g, dtype=torch.float64) for _ in range(2))
    inputs = [t.requires_grad_() for t in (x, w, b, dy)]
    try:
        plain = ACTIVATIONS[act].value(torch_norm(x, w, b, norm, groups), 0.2)
    except ValueError:  # torch refuses some groups of one value, whose result is the bias
        if norm in ("batch", "instance"):
            with pytest.raises(ValueError, match="x must have more than one value"):
                pf.ops.norm_act(x, w, b, norm=norm, groups=groups, act=act)
        return
    with pf.use_backend(backend):
        y = pf.ops.norm_act(x, w, b, norm=norm, groups=groups, act=act)
        first = torch.autograd.grad(y, inputs[:3], dy, create_graph=True)
        second = torch.autograd.grad((first[0] * v).sum(), inputs, allow_unused=True)
    exact = torch.autograd.grad(plain, inputs[:3], dy, create_graph=True)
    exact2 = torch.autograd.grad((exact[0] * v).sum(), inputs, allow_unused=True)
    assert y.stride() == torch.empty_like(x).stride()
    for ours, theirs in zip((y, *first, *second), (plain, *exact, *exact2), strict=True):
        if ours is None or theirs is None:
            assert ours is None or not ours.any()
            assert theirs is None or not theirs.any()
            continue
        # Two equal values give a variance of 0 and derivatives of size 1 / eps.
        scale = max(1.0, theirs.abs().max().item())
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9 * scale)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("norm", ["batch", "instance", "group", "layer"])
@pytest.mark.parametrize("act", ["leaky_relu", "silu", "gelu", "tanh", "softplus", "sigmoid"])
def test_a_gradient_penalty_in_float32(backend, layout, norm, act):
    """The squared input gradient by everything, float32 against the plain form in float64."""
    g = torch.Generator().manual_seed(1)
    x, dy = (torch.randn(3, 20, 7, 6, generator=g, dtype=torch.float64) for _ in range(2))
    w, b = (torch.randn(20, generator=g, dtype=torch.float64) for _ in range(2))
    groups = 4 if norm == "group" else None

    def penalty(function, dtype):
        leaves = [t.to(dtype).contiguous() for t in (w, b)]
        leaves += [t.to(dtype).contiguous(memory_format=LAYOUTS[layout]) for t in (x, dy)]
        leaves = [t.detach().requires_grad_() for t in leaves]
        (dx,) = torch.autograd.grad(
            function(leaves[2], *leaves[:2]), leaves[2], leaves[3], create_graph=True
        )
        return torch.autograd.grad(dx.square().sum(), leaves, allow_unused=True)

    with pf.use_backend(backend):
        ours = penalty(
            lambda x, w, b: pf.ops.norm_act(x, w, b, norm=norm, groups=groups, act=act),
            torch.float32,
        )
    exact = penalty(
        lambda x, w, b: ACTIVATIONS[act].value(torch_norm(x, w, b, norm, groups), 0.2),
        torch.float64,
    )
    for a, e in zip(ours, exact, strict=True):
        if e is None or not e.any():
            assert a is None or not a.any()
            continue
        assert (a - e).abs().max() < 2e-5 * e.abs().max()


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("norm", ["batch", "instance"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_running_statistics_are_torch_s_after_twenty_steps(backend, norm, dtype):
    g = torch.Generator().manual_seed(2)
    kind = torch.float64 if dtype == torch.float64 else torch.float32
    ours, theirs = ([torch.zeros(6, dtype=kind), torch.ones(6, dtype=kind)] for _ in range(2))
    call = F.batch_norm if norm == "batch" else F.instance_norm
    name = "training" if norm == "batch" else "use_input_stats"
    for _ in range(20):
        x = (3 + 2 * torch.randn(4, 6, 5, 3, generator=g)).to(dtype)
        with pf.use_backend(backend):
            pf.ops.norm_act(x, norm=norm, running_mean=ours[0], running_var=ours[1], momentum=0.2)
        call(x.to(kind), *theirs, momentum=0.2, **{name: True})
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=2e-6 if kind == torch.float32 else 1e-12, atol=0)
    x, w, b = torch.randn(2, 6, 3, 3, dtype=dtype), torch.randn(6), torch.randn(6)
    w, b = w.to(dtype), b.to(dtype)
    with pf.use_backend(backend):
        y = pf.ops.norm_act(
            x, w, b, norm=norm, running_mean=ours[0], running_var=ours[1], training=False
        )
    wide = [t.double() for t in (x, *ours, w, b)]
    exact = F.leaky_relu(F.batch_norm(*wide), 0.2)
    bound = {torch.float32: 1e-6, torch.float64: 1e-13, torch.bfloat16: 2**-8}[dtype]
    assert ((y - exact).abs() <= bound * exact.abs().clamp(min=1)).all()


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("norm", ["batch", "instance", "layer"])
def test_a_mean_far_from_zero_leaves_the_variance_right(backend, layout, norm):
    g = torch.Generator().manual_seed(3)
    x = torch.randn(16, 20, 12, 13, generator=g)
    cases = {"far": x + 1e4, "constant": torch.full_like(x, 1e4 / 3)}
    # What the first estimate of the mean is made from may lie elsewhere.
    for name, place in {"first sample": 0, "all but the first": slice(1, None)}.items():
        cases[name] = x.clone()
        cases[name][place] += 1e4
    cases["first rows"] = x.clone()
    cases["first rows"][:, :, :2] += 1e4
    for name, case in cases.items():
        case = case.contiguous(memory_format=LAYOUTS[layout])
        with pf.use_backend(backend):
            y = pf.ops.norm_act(case, norm=norm, act="linear")
        exact = torch_norm(case.double(), None, None, norm)
        # Half an ulp of a mean of 1e4 is 5e-4, and no float32 mean is nearer; over sqrt(eps) = 3e-3
        # where nothing varies.
        bound = 0.2 if name == "constant" else 6e-4
        assert (y - exact).abs().max() < bound, name


@pytest.mark.parametrize("backend", BACKENDS)
def test_layer_norm_is_torch_s(backend):
    x, w, b = torch.randn(5, 6, 4, 3), torch.randn(6), torch.randn(6)
    with pf.use_backend(backend):
        points = pf.ops.norm_act(x[:, :, 0, 0], w, b, norm="layer", act="linear")
        images = pf.ops.norm_act(x, w, b, norm="layer", act="linear")
    close = {"rtol": 1e-5, "atol": 1e-5}
    torch.testing.assert_close(points, F.layer_norm(x[:, :, 0, 0], (6,), w, b), **close)
    expected = F.layer_norm(x, (6, 4, 3)) * w[:, None, None] + b[:, None, None]
    torch.testing.assert_close(images, expected, **close)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("norm", ["batch", "group"])
def test_the_number_of_threads_changes_no_bit(layout, norm):
    """Large enough that the work is shared out, in several pieces of each kind."""
    g = torch.Generator().manual_seed(4)
    x, dy, v = (
        torch.randn(9, 24, 30, 20, generator=g).contiguous(memory_format=LAYOUTS[layout])
        for _ in range(3)
    )
    w, b, p, q = (torch.randn(24, generator=g) for _ in range(4))
    settings = (norm, 24 if norm == "batch" else 3, 1e-5, "silu", 0.2)
    op = torch.ops.pyfastgan
    results, threads = [], torch.get_num_threads()
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            y, mean, var = op.norm_act(x, w, b, *settings)
            saved = (x, mean, var, w, b, *settings)
            first = op.norm_act_backward(dy, *saved)
            second = op.norm_act_backward_backward(v, p, q, dy, *saved)
            results.append((y, mean, var, *first, *second))
    finally:
        torch.set_num_threads(threads)
    for other in results[1:]:
        assert all(map(torch.equal, results[0], other))


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("shape", [(6, 32, 128, 128), (3, 33, 181, 181)])
def test_outputs_that_no_cache_holds(layout, shape):
    """They are stored past the caches, where their rows are whole packs and where they are not."""
    g = torch.Generator().manual_seed(6)
    x, dy = (
        torch.randn(shape, generator=g).contiguous(memory_format=LAYOUTS[layout]) for _ in range(2)
    )
    w, b = (torch.randn(shape[1], generator=g) for _ in range(2))
    x.requires_grad_()
    y = pf.ops.norm_act(x, w, b, act="relu")
    (dx,) = torch.autograd.grad(y, x, dy)
    # Not torch in float32, whose channels-last sums are off by 1e-4 at this size.
    wide, w, b = x.detach().double().requires_grad_(), w.double(), b.double()
    expected = F.relu(torch_norm(wide, w, b, "batch"))
    torch.testing.assert_close(y.double(), expected, rtol=1e-5, atol=1e-5)
    (exact,) = torch.autograd.grad(expected, wide, dy.double())
    # Where z is 0 but for rounding, the two may lie on different sides of the kink.
    away = (y > 1e-5) | (expected == 0) & (y == 0)
    torch.testing.assert_close(dx * away, (exact * away).float(), rtol=1e-4, atol=1e-5)


def test_little_is_kept_for_backward():
    x, w, b = torch.randn(4, 3, 8, 8, requires_grad=True), torch.ones(3), torch.zeros(3)
    saved = []
    keep = torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t)
    with keep, pf.use_backend("cpu" if "cpu" in BACKENDS else "reference"):
        pf.ops.norm_act(x, w.requires_grad_(), b.requires_grad_())
    sizes = {"mean": 3 * 4, "var": 3 * 4, "x": x.nbytes, "weight": 3 * 4, "bias": 3 * 4}
    assert sorted(t.nbytes for t in saved) == sorted(sizes.values())
    assert sum(t.data_ptr() == x.data_ptr() for t in saved) == 1


def test_an_empty_batch_leaves_the_running_statistics_alone():
    mean, var = torch.randn(3), torch.rand(3)
    before = mean.clone(), var.clone()
    y = pf.ops.norm_act(torch.zeros(0, 3, 4), running_mean=mean, running_var=var)
    assert y.shape == (0, 3, 4)
    assert torch.equal(mean, before[0])
    assert torch.equal(var, before[1])


@pytest.mark.parametrize("backend", BACKENDS)
def test_float32_parameters_of_a_half_type(backend):
    """As mixed precision has them: half activations, float32 weights and their gradients."""
    g = torch.Generator().manual_seed(5)
    x, dy = (torch.randn(4, 6, 5, 5, generator=g).bfloat16().requires_grad_() for _ in range(2))
    w, b = (torch.randn(6, generator=g, requires_grad=True) for _ in range(2))
    with pf.use_backend(backend):
        y = pf.ops.norm_act(x, w, b)
    dx, dw, db = torch.autograd.grad(y, (x, w, b), dy)
    assert (y.dtype, dx.dtype) == (torch.bfloat16, torch.bfloat16)
    assert (dw.dtype, db.dtype) == (torch.float32, torch.float32)
    exact = F.leaky_relu(torch_norm(x.double(), w.double(), b.double(), "batch"), 0.2)
    torch.testing.assert_close(y.double(), exact, rtol=2**-8, atol=1e-5)


def test_running_statistics_move_in_compiled_code():
    x = torch.randn(4, 3, 5, 5, requires_grad=True)
    mean, var = torch.zeros(3), torch.ones(3)

    def step(x, mean, var):
        return pf.ops.norm_act(2 * x, running_mean=mean, running_var=var, act="silu") + 1

    compiled = torch.compile(step, fullgraph=True, backend="aot_eager")
    y = compiled(x, mean, var)
    other = torch.zeros(3), torch.ones(3)
    torch.testing.assert_close(y, step(x, *other))
    torch.testing.assert_close((mean, var), other)
    assert torch.autograd.grad(y.sum(), x)[0].isfinite().all()


@pytest.mark.parametrize("act", ACTIVATIONS)
def test_small_batch_norms_have_every_activation(act):
    x, w, b, dy = (torch.randn(s) for s in ((5, 7, 3), (7,), (7,), (5, 7, 3)))
    found = []
    for backend in ("auto", "reference"):
        mean, var = torch.zeros(7), torch.ones(7)
        settings = {"running_mean": mean, "running_var": var, "act": act, "slope": 0.3}
        leaves = [t.clone().requires_grad_() for t in (x, w, b)]
        with pf.use_backend(backend):
            y = pf.ops.norm_act(*leaves, **settings)
            with torch.no_grad():
                plain = pf.ops.norm_act(x, w, b, **settings)
        found.append((y, plain, mean, var, *torch.autograd.grad(y, leaves, dy)))
    for ours, expected in zip(*found, strict=True):
        torch.testing.assert_close(ours, expected, rtol=1e-5, atol=2e-6)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_small_batch_norms_are_torchs_and_the_same_function(layout):
    """Values, both derivatives and running statistics, on either side of the bound."""
    for channels in (16, 48):  # times 4096, from which contiguous tensors are not small
        x = torch.randn(4, channels, 32, 32).contiguous(memory_format=LAYOUTS[layout])
        x = (3 + 2 * x).double().requires_grad_()
        w, b = (torch.randn(channels, dtype=torch.float64, requires_grad=True) for _ in range(2))
        dy, ddx = (torch.randn_like(x) for _ in range(2))
        found = []
        for backend in ("auto", "reference"):
            mean, var = torch.zeros(channels).double(), torch.ones(channels).double()
            with pf.use_backend(backend):
                y = pf.ops.norm_act(
                    x, w, b, running_mean=mean, running_var=var, momentum=0.3, eps=1e-3, act="silu"
                )
                if backend == "auto" and channels == 16:
                    assert y.grad_fn.name() == "SiluBackward0"
                dx, dw, db = torch.autograd.grad(y, (x, w, b), dy, create_graph=True)
                again = torch.autograd.grad(dx, (x, w), ddx)
            found.append((y, dx, dw, db, *again, mean, var))
        for one, two in zip(*found, strict=True):
            torch.testing.assert_close(one, two, rtol=1e-9, atol=1e-9)
