"""Every op is called with shapes, strides, dtypes, values and settings that hypothesis makes up: it answers as the
reference does, or both refuse with an error that says what was wrong. PYFASTGAN_FUZZ_CALLS sets how many calls there
are; `make proofs` makes 100,000.
"""

import contextlib
import functools
import math
import os
import re

import pytest
import torch
from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as st

import pyfastgan as pf
from pyfastgan.ops._registry import FLOATS, T, ops
from pyfastgan.testing import backends

CALLS = int(os.environ.get("PYFASTGAN_FUZZ_CALLS", "2000"))
OTHERS = (torch.int64, torch.int32, torch.bool, torch.complex64, torch.uint8)
EXTREMES = (math.nan, math.inf, -math.inf, 1e30, -1e30, 1e-30, 0.0)
# Far from the samples' values sums cancel and knots move: of the largest value of a result or an argument.
RELATIVE = {torch.float64: 1e-6, torch.float32: 3e-3, torch.bfloat16: 0.1, torch.float16: 0.1}
# Far outside of [-1, 1] its reference, in float64 too, subtracts squares from each other, which the kernel does not.
DOMAIN = {"gaussian_vlb": 1e6}
OPS = [op for op in ops().values() if "cpu" in backends(op)]


# Strategies made once, since hypothesis takes longer to check a new one than a call takes.
@functools.cache
def index(count):
    return st.integers(0, count - 1)


def pick(draw, choices):
    return choices[draw(index(len(choices)))]


def small(sample):
    values = [v for v in (*sample.args, *sample.kwargs.values()) if isinstance(v, T)]
    return sum(math.prod(v.shape) for v in values) <= 3000


def changed(draw, x):
    """x, with another shape, layout, type or other values."""
    kind = pick(draw, ["size", "dim", "strides", "dtype", "values", "device"])
    at = draw(index(max(x.dim(), 1)))
    if kind == "size" and x.dim():
        size = draw(index(x.size(at) + 3))
        rows = torch.arange(size).remainder(max(x.size(at), 1))
        return x.index_select(at, rows) if x.size(at) else x
    if kind == "dim":
        return (
            x.unsqueeze(at)
            if draw(index(2)) or not x.dim()
            else x.select(at, 0)
            if x.size(at)
            else x
        )
    if kind == "strides" and x.dim():
        how = pick(draw, ["expand", "transpose", "every other", "offset", "flipped"])
        if how == "expand" and x.size(at):
            return x.narrow(at, 0, 1).expand(x.shape)
        if how == "transpose":
            return x.transpose(at, draw(index(x.dim())))
        if how == "every other":
            return torch.stack((x, x), -1)[..., 0]
        if how == "offset":
            return torch.cat((x.flatten()[:1], x.flatten()))[min(1, x.numel()) :].view(x.shape)
        return x.flip(at)
    if kind == "dtype":
        return x.to(pick(draw, FLOATS + OTHERS))
    if kind == "device" and draw(index(10)) == 0:
        return x.to("meta")
    if kind == "values" and x.numel() and x.dtype.is_floating_point:
        x = x.clone(memory_format=torch.contiguous_format)
        x.view(-1)[draw(index(x.numel()))] = pick(draw, EXTREMES)
    return x


def others(value):
    if isinstance(value, bool):
        return [not value, None, 2]
    if isinstance(value, int):
        return [-1, 0, 1, 3, 100, 1.5, None, "3"]  # an image enlarged 1,000 times fills the memory
    if isinstance(value, float):
        return [*EXTREMES, -1.0, 1.0, 3, None, "x"]
    if isinstance(value, str):
        return ["", "nonsense", value.upper(), 1, None]
    if isinstance(value, tuple):
        return [value[:-1], (*value, 2), (), (0, *value), tuple(-1 for _ in value)]
    return [None, 0, 1.0, "x", [1.0]]


@st.composite
def calls(draw, samples):
    args, kwargs = pick(draw, samples).make(pick(draw, FLOATS))
    args = list(args)
    for _ in range(draw(index(4))):
        places = [(args, k) for k in range(len(args))] + [(kwargs, k) for k in sorted(kwargs)]
        holder, key = pick(draw, places)
        value = holder[key]
        tensor = isinstance(value, torch.Tensor) and draw(index(10)) > 0
        holder[key] = changed(draw, value) if tensor else pick(draw, others(value))
    return args, kwargs


def answer(op, backend, args, kwargs):
    """Results and then gradients, or the error."""

    def leaf(x):
        floating = isinstance(x, torch.Tensor) and x.is_floating_point() and op.orders
        return x.detach().requires_grad_() if floating else x

    args, kwargs = [leaf(a) for a in args], {k: leaf(v) for k, v in kwargs.items()}
    inputs = [
        x for x in (*args, *kwargs.values()) if isinstance(x, torch.Tensor) and x.requires_grad
    ]
    torch.default_generator.manual_seed(0)  # for a seed of None
    with pf.use_backend(backend):
        try:
            outputs = op.function(*args, **kwargs)
        except (TypeError, ValueError, pf.BackendError) as error:
            return error
        outputs = outputs if isinstance(outputs, tuple) else (outputs,)
        outputs = [y for y in outputs if isinstance(y, torch.Tensor)]
        smooth = [y for y in outputs if y.requires_grad]
        if not smooth:
            return outputs, []
        grads = torch.autograd.grad([y.sum() for y in smooth], inputs, allow_unused=True)
    return outputs, grads


def floating(value):
    return isinstance(value, torch.Tensor) and value.is_floating_point()


def largest(call):
    """Of the numbers in tensors, not finite if one is not, and of finite settings."""
    values = (*call[0], *call[1].values())
    tensors = [t for t in values if floating(t)]
    sizes = [t.abs().max().item() for t in tensors if t.device.type != "meta" and t.numel()]
    sizes += [abs(v) for v in values if isinstance(v, float) and math.isfinite(v)]
    return math.nan if any(math.isnan(size) for size in sizes) else max(sizes, default=0.0)


def exact(op, args, kwargs):
    """The reference's results in float64, of the very numbers of the call; none if it refuses that type."""
    wide = [a.double() if floating(a) else a for a in args]
    found = answer(
        op, "reference", wide, {k: v.double() if floating(v) else v for k, v in kwargs.items()}
    )
    return None if isinstance(found, Exception) else found


def calm(value):
    """A number or a tensor of numbers with an ordinary one for each that is not."""
    if floating(value) and value.device.type != "meta":
        return torch.where(value.abs() < 1e6, value, torch.full_like(value, 0.5))
    if isinstance(value, float):
        return value if abs(value) < 1e6 else 0.5
    return value


def untouched(op, call, plain):
    """The call without what is huge or not finite, and which elements of its results and gradients have nothing to do
    with that: in the reference they keep their bits. None if nothing is huge, or the reference refuses the other call.
    """
    other = [calm(a) for a in call[0]], {k: calm(v) for k, v in call[1].items()}
    values = [*call[0], *call[1].values()], [*other[0], *other[1].values()]
    changed_one = any(
        not torch.equal(a, b) if floating(a) and a.device.type != "meta" else a is not b
        for a, b in zip(*values)
    )
    quiet = answer(op, "reference", *other) if changed_one else ValueError("the same call")
    if isinstance(quiet, Exception):
        return None
    pairs = zip([*plain[0], *plain[1]], [*quiet[0], *quiet[1]])
    masks = [
        None if a is None or b is None or a.device.type == "meta" or a.shape != b.shape else a == b
        for a, b in pairs
    ]
    # A NaN may count where the reference does not look at it (a logit of a single bin, whose softmax of an infinity is
    # NaN too), in its own sample.
    for x in values[0]:
        if floating(x) and x.dim() and x.device.type != "meta":
            spoilt = ~x.isfinite() if x.dim() > 1 and x.size(-1) == 1 else x.isnan()
            rows = spoilt.flatten(1).any(1) if x.dim() > 1 else spoilt
            for mask in masks:
                if mask is not None and mask.dim() and mask.size(0) == len(rows):
                    mask[rows] = False
    return other, masks


def compare(op, call, ours, plain, size, masks=None):
    """Of each result the elements that its mask has, if there are masks."""
    masks = masks or [...] * len([*plain[0], *plain[1]])

    def within(x, k):
        return x if x.device.type == "meta" else x[masks[k]]

    # Equal up to rounding, the nearest code may be another one, and the gradient goes there.
    tied = any(
        masks[k] is not None
        and a.device.type != "meta"
        and not a.is_floating_point()
        and not torch.equal(within(a, k), within(b, k))
        for k, (a, b) in enumerate(zip(ours[0], plain[0]))
    )
    assert op.orders or not tied
    results = plain[0]
    (ours, plain) = (x[0] if tied else [*x[0], *x[1]] for x in (ours, plain))
    for k, (a, b) in enumerate(zip(ours, plain, strict=True)):
        if masks[k] is None:
            continue
        if a is None or b is None:
            rest = a if b is None else b
            assert rest is None or rest.device.type == "meta" or not rest.any()
            continue
        assert (a.shape, a.dtype, a.device) == (b.shape, b.dtype, b.device)
        # Where the reference's gradient holds some, sums over whole vectors may hold more: zero times an infinity.
        if k >= len(results) and masks[k] is not ... and not b.isfinite().all():
            a = torch.where(a.isfinite(), a, b)
        a, b = within(a, k), within(b, k)
        if a.device.type == "meta" or not a.numel() or not a.dtype.is_floating_point:
            continue
        if not b.isfinite().all():
            return
        scale = max(b.double().abs().max().item(), size, 1.0)
        error = (a.double() - b.double()).abs().max().item()
        if error <= RELATIVE[a.dtype] * scale:
            continue
        # Where plain PyTorch is as far from the truth, the call asks for digits that the type does not have.
        truth = exact(op, *call)
        truth = [None] if truth is None else [*truth[0], *truth[1]][k : k + 1]
        assert truth[0] is not None, (error, scale)
        right = within(truth[0], k).double()
        if right.isfinite().all():
            own, others = ((x.double() - right).abs().max().item() for x in (a, b))
            assert own <= 2 * others + RELATIVE[a.dtype] * scale, (own, others, scale)


@contextlib.contextmanager
def printed_short():
    """A failing call is told with the ends of its tensors."""
    torch.set_printoptions(threshold=4, edgeitems=1)
    yield
    torch.set_printoptions(profile="default")


@pytest.mark.parametrize("op", OPS, ids=lambda op: op.name)
def test_any_call(op):
    @settings(
        max_examples=math.ceil(CALLS / len(OPS)),
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
    )
    @given(call=calls([s for s in op.samples if small(s)]))
    def check(call):
        plain = answer(op, "reference", *call)
        ours = answer(op, "cpu", *call)
        if isinstance(plain, Exception) or isinstance(ours, Exception):
            # A kernel that was asked for by name refuses devices that are not its own.
            assert type(plain) is type(ours) or isinstance(ours, pf.BackendError), (plain, ours)
            assert re.sub(r"\W", "", str(ours)), "an error that says nothing"
            event("refused")
            return
        size = largest(call)
        if math.isfinite(size) and size < DOMAIN.get(op.name, math.inf):
            compare(op, call, ours, plain, size)
        # What a huge number, an infinity or a NaN has nothing to do with is as exact as without it.
        if found := untouched(op, call, plain):
            event("huge")
            compare(op, call, ours, plain, largest(found[0]), found[1])

    with printed_short():
        check()
