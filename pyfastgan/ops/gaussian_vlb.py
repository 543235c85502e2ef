"""gaussian_vlb: one term of a diffusion model's variational bound for each sample, in nats.

    x0 hat       = x0_state x_t + x0_prediction prediction,  within [-clip, clip] if there is a clip
    mean         = mean_x0 (x0 hat) + mean_state x_t
    log_variance = log_min + (variance + 1) / 2 (log_max - log_min),  or log_max without `variance`
    decode <= 1/2: KL(N(mean_x0 x0 + mean_state x_t, exp(log_true)) || N(mean, exp(log_variance)))
    decode > 1/2:  -ln P(x0 | N(mean, exp(log_variance)) discretised),  the term of t = 0

summed over the elements of a sample. The names are those of `COEFFICIENTS`, a row of numbers for
all samples or for each. Ho, Jain & Abbeel 2020, equations 5 and 13; the learned variance is Nichol &
Dhariwal 2021, equation 15, whose hybrid objective is this bound with the prediction detached.

The discretised normal distribution gives each of `levels` numbers, evenly spaced from -1 to 1, the
mass within half a step of it, and to the outer two all that lies beyond them; so it sums to 1. The distribution
function is the normal one itself, where common implementations use a tanh for it, and stop at 1e-12.

    x0, x_t, prediction, variance   (N, ...), two dimensions or more, any layout, of one dtype
    coefficients                    (8,) or (N, 8), floating point

Differentiable once. The gradient to the coefficients, which are constants as a rule, is made in plain
PyTorch; decode has none. Computed in float32 (float64 for float64);
the sums are made in float64 over fixed pieces, returned in float32 (float64). Deterministic.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ._common import (
    TYPE_NUMBER,
    accumulation,
    address,
    apply,
    check_float,
    forward_mode,
    fresh,
    needs_grad,
)
from ._diffuse_kernels import launch, parts_of
from ._gaussian_vlb_calls import bad_calls, rows, samples
from ._gaussian_vlb_formulas import (
    COEFFICIENTS,
    _backward_reference,
    _coefficients_gradient,
    _terms,
    gaussian_vlb_reference,
)
from ._registry import Kernel, Op, register
from .diffuse import check_batch


def _nll_fake(x0: Tensor, *rest: Any) -> Tensor:
    return x0.new_empty(x0.size(0), dtype=accumulation(x0.dtype))


def _gradients_fake(
    dnll: Tensor, x0: Tensor, x_t: Tensor, prediction: Tensor, variance: Tensor | None, *rest: Any
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    a, b, c, d = (fresh(x0, x0.shape if wanted else (0,)) for wanted in rest[-1])
    return a, b, c, d


def _tensors(*tensors: Tensor | None) -> tuple[list[Any], list[Any]]:
    """Contiguous tensors, and their addresses."""
    kept = [None if t is None else t.contiguous() for t in tensors]
    return kept, [None if t is None else t.data_ptr() for t in kept]


def _settings(
    x0: Tensor, coefficients: Tensor, half: float, clip: float | None
) -> tuple[tuple[Any, ...], tuple[Any, ...]]:
    """What kernels take after the coefficients and at the end."""
    samples = x0.size(0)
    stride = len(COEFFICIENTS) if coefficients.dim() == 2 else 0
    elements = x0.numel() // samples if samples else 0
    sizes = (TYPE_NUMBER[x0.dtype], samples, elements)
    return (stride, half, math.nan if clip is None else clip), sizes


def _forward_cpu(
    x0: Tensor,
    x_t: Tensor,
    prediction: Tensor,
    variance: Tensor | None,
    coefficients: Tensor,
    half: float,
    clip: float | None,
) -> Tensor:
    kept, addresses = _tensors(x0, x_t, prediction, variance, coefficients)
    nll = _nll_fake(x0)
    settings, sizes = _settings(x0, coefficients, half, clip)
    launch("cpu", "gaussian_vlb", x0, *addresses, *settings, nll.data_ptr(), *sizes)
    return nll


def _forward_cuda(
    x0: Tensor,
    x_t: Tensor,
    prediction: Tensor,
    variance: Tensor | None,
    coefficients: Tensor,
    half: float,
    clip: float | None,
) -> Tensor:
    kept, addresses = _tensors(x0, x_t, prediction, variance, coefficients)
    settings, sizes = _settings(x0, coefficients, half, clip)
    parts = parts_of(sizes[2])
    sums = x0.new_empty(x0.size(0), parts, dtype=accumulation(x0.dtype))
    launch("cuda", "gaussian_vlb", x0, *addresses, *settings, sums.data_ptr(), parts, *sizes)
    return sums.sum(1)


def _backward_native(
    backend: str,
    dnll: Tensor,
    x0: Tensor,
    x_t: Tensor,
    prediction: Tensor,
    variance: Tensor | None,
    coefficients: Tensor,
    half: float,
    clip: float | None,
    wanted: Sequence[bool],
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    kept, addresses = _tensors(dnll, x0, x_t, prediction, variance, coefficients)
    outputs = _gradients_fake(dnll, x0, x_t, prediction, variance, wanted)
    settings, sizes = _settings(x0, coefficients, half, clip)
    to = (address(t if want else None) for t, want in zip(outputs, wanted))
    launch(backend, "gaussian_vlb_backward", x0, *addresses, *settings, *to, *sizes)
    return outputs


_ARGUMENTS = (
    "Tensor x0, Tensor x_t, Tensor prediction, Tensor? variance, Tensor coefficients, "
    "float half, float? clip"
)

_forward = Kernel(
    f"gaussian_vlb({_ARGUMENTS}) -> Tensor",
    reference=_terms,
    fake=_nll_fake,
    cpu=_forward_cpu,
    cuda=_forward_cuda,
)
# `wanted` says which of the gradients to x0, x_t, prediction and variance are made; the others are empty.
_backward = Kernel(
    f"gaussian_vlb_backward(Tensor dnll, {_ARGUMENTS}, bool[] wanted) "
    "-> (Tensor dx0, Tensor dx_t, Tensor dprediction, Tensor dvariance)",
    reference=_backward_reference,
    fake=_gradients_fake,
    cpu=functools.partial(_backward_native, "cpu"),
    cuda=functools.partial(_backward_native, "cuda"),
)
# For schedules that learn: in plain PyTorch everywhere.
_to_coefficients = Kernel(
    f"gaussian_vlb_coefficients(Tensor dnll, {_ARGUMENTS}) -> Tensor",
    reference=_coefficients_gradient,
    fake=lambda *arguments: arguments[5].new_empty(arguments[5].shape),
    cpu=_coefficients_gradient,
    cuda=_coefficients_gradient,
)


class _GaussianVlb(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(*arguments: Any) -> Tensor:
        return _forward(*arguments)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        *tensors, ctx.half, ctx.clip = inputs
        ctx.save_for_backward(*tensors)

    @staticmethod
    def backward(ctx: Any, dnll: Tensor) -> tuple[Any, ...]:
        wanted = [bool(w) for w in ctx.needs_input_grad[:5]]
        arguments = (dnll, *ctx.saved_tensors, ctx.half, ctx.clip)
        if needs_grad(dnll, *ctx.saved_tensors):
            found = apply(_Gradients, *arguments, wanted)
        else:
            found = _Gradients.forward(*arguments, wanted)
        return (*(t if want else None for t, want in zip(found, wanted)), None, None)


class _Gradients(torch.autograd.Function):
    """The gradients, which have no derivatives of their own."""

    generate_vmap_rule = True

    @staticmethod
    def forward(*arguments: Any) -> tuple[Tensor, ...]:
        *others, wanted = arguments
        found = _backward(*others, wanted[:4])
        last = _to_coefficients(*others) if wanted[4] else others[5].new_empty(0)
        return (*found, last)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        pass

    @staticmethod
    def backward(ctx: Any, *_: Tensor) -> tuple[Any, ...]:
        raise RuntimeError(
            "gaussian_vlb can be differentiated once, and this asks for a second derivative; "
            "pyfastgan.ops.gaussian_vlb.gaussian_vlb_reference has it"
        )


def _check(
    x0: Tensor,
    x_t: Tensor,
    prediction: Tensor,
    variance: Tensor | None,
    coefficients: Tensor,
    levels: int,
    clip: float | None,
) -> None:
    check_batch("x0", x0)
    others = (("x_t", x_t), ("prediction", prediction), ("variance", variance))
    for name, t in others[: 2 if variance is None else 3]:
        check_float(name, t)
        assert t is not None
        if t.shape != x0.shape or t.device != x0.device:
            raise ValueError(
                f"{name} must have shape {tuple(x0.shape)} on {x0.device} like x0, "
                f"got {tuple(t.shape)} on {t.device}"
            )
        if t.dtype != x0.dtype:
            raise TypeError(f"{name} must have the dtype of x0, {x0.dtype}, got {t.dtype}")
    check_float("coefficients", coefficients)
    width, shape = len(COEFFICIENTS), coefficients.shape
    if shape != (width,) and shape != (x0.size(0), width):
        raise ValueError(
            f"coefficients must have shape ({width},) or ({x0.size(0)}, {width}), a row or a row for each sample, "
            f"got {tuple(shape)}"
        )
    if coefficients.device != x0.device:
        raise ValueError(f"coefficients must be on {x0.device} like x0, got {coefficients.device}")
    if not isinstance(levels, int) or isinstance(levels, bool) or levels < 2:
        raise ValueError(f"levels must be an int of at least 2, got {levels}")
    if clip is not None and not (math.isfinite(clip) and clip > 0):
        raise ValueError(f"clip must be finite and positive, or None, got {clip}")


def gaussian_vlb(
    x0: Tensor,
    x_t: Tensor,
    prediction: Tensor,
    variance: Tensor | None,
    coefficients: Tensor,
    *,
    levels: int = 256,
    clip: float | None = None,
) -> Tensor:
    """A term of the variational bound for each sample: the divergence from the posterior, or at t = 0 the discretised
    negative log-likelihood.

    Args:
        x0: (N, ...) data in [-1, 1], float32, float64, bfloat16 or float16.
        x_t: (N, ...) noisy data, of x0's dtype.
        prediction: (N, ...) the network's output that x0 is predicted from.
        variance: (N, ...) the network's place between log_min and log_max, -1 to 1 (also beyond), or None for log_max.
        coefficients: (8,) or (N, 8), floating point, in the order of `COEFFICIENTS`.
        levels: the number of levels that data have.
        clip: the bound on the predicted x0; where it binds, the derivative is zero.

    Returns:
        (N,) nats, sums over each sample: float32, or float64 for float64 data. Divide by ln 2 and the
        number of elements for bits a dimension.

    Raises:
        TypeError, ValueError: an argument has a wrong type, shape, device or value; the message names it.
        RuntimeError: a second derivative is asked for.
    """
    _check(x0, x_t, prediction, variance, coefficients, levels, clip)
    row = coefficients.to(accumulation(x0.dtype))
    arguments = (x0, x_t, prediction, variance, row, 1 / (levels - 1), clip)
    if forward_mode():
        return _terms(*arguments)
    if needs_grad(x0, x_t, prediction, variance, row):
        return apply(_GaussianVlb, *arguments)
    return _forward(*arguments)


register(
    Op(
        name="gaussian_vlb",
        function=gaussian_vlb,
        reference=gaussian_vlb_reference,
        kernels=(_forward, _backward, _to_coefficients),
        samples=samples(),
        bad_calls=bad_calls(),
        orders=1,
        # Exponentials of up to 20 carry their error on to gradients that have been divided by a
        # variance; half types round those.
        epsilon={
            torch.float32: 1e-5,
            torch.float64: 1e-11,
            torch.bfloat16: 1e-5,
            torch.float16: 1e-5,
        },
        rows=rows,
    )
)
