"""reparameterize: z = mean + exp(logvar / 2) noise, and KL(N(mean, exp(logvar)) || N(0, 1)) a sample, in one pass.

Kingma & Welling (2014), "Auto-encoding variational Bayes", section 2.4 and appendix B:

    kl[n] = 1/2 sum over the elements of sample n of (exp(logvar) + mean^2 - 1 - logvar), in nats

    mean, logvar   (N, ...) of any layout, at least two dimensions
    z              their shape and dtype, contiguous
    kl             (N,), float32, or float64 for float64

The noise is `random_normal`'s for the seed, not rounded to a half type. It is not stored: the
backward pass makes it again. Half types are computed in float32. Differentiable any number of times
in mean, logvar and a given noise; from the second order on by torch's own operations. Forward mode
is served by the reference. Deterministic.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from . import _backends
from ._common import (
    TYPE_NUMBER,
    accumulation,
    address,
    apply,
    check_float,
    check_like,
    forward_mode,
    fresh,
    needs_grad,
)
from ._registry import FLOATS, BadCall, Kernel, Op, Row, Sample, T, register
from .random import _normal, noise_arguments, noise_seed


def _noise(mean: Tensor, seed: Tensor | None, noise: Tensor | None, *counter: int) -> Tensor:
    dtype = accumulation(mean.dtype)
    if noise is not None:
        return noise.to(dtype)
    assert seed is not None
    return _normal.implementation("reference")(seed, mean.shape, *counter, dtype)


def _formula(
    mean: Tensor,
    logvar: Tensor,
    seed: Tensor | None,
    noise: Tensor | None,
    stream: int,
    sample_offset: int,
) -> tuple[Tensor, Tensor]:
    dtype = accumulation(mean.dtype)
    m, v = mean.to(dtype), logvar.to(dtype)
    z = m + torch.exp(0.5 * v) * _noise(mean, seed, noise, stream, sample_offset)
    kl = 0.5 * (v.exp() + m.square() - 1 - v).flatten(1).sum(1)
    return z.to(mean.dtype).contiguous(), kl


def reparameterize_reference(
    mean: Tensor,
    logvar: Tensor,
    seed: int | Tensor | None = None,
    *,
    stream: int = 0,
    sample_offset: int = 0,
    generator: torch.Generator | None = None,
    noise: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """The definition in plain PyTorch, differentiable by autograd any number of times."""
    key = noise_seed(mean, noise, seed, stream, sample_offset, generator)
    return _formula(mean, logvar, key, noise, stream, sample_offset)


def _derivative(
    dz: Tensor,
    dkl: Tensor,
    mean: Tensor,
    logvar: Tensor,
    seed: Tensor | None,
    noise: Tensor | None,
    stream: int,
    sample_offset: int,
) -> tuple[Tensor, Tensor, Tensor]:
    dtype = accumulation(mean.dtype)
    d, m = dz.to(dtype), mean.to(dtype)
    deviation = torch.exp(0.5 * logvar.to(dtype))
    of_kl = dkl.reshape(-1, *[1] * (mean.dim() - 1))
    e = _noise(mean, seed, noise, stream, sample_offset)
    dlogvar = 0.5 * (d * deviation * e + of_kl * (deviation.square() - 1))
    dnoise = d * deviation if noise is not None else d.new_empty(0)
    dmean = d + of_kl * m
    return tuple(g.to(mean.dtype).contiguous() for g in (dmean, dlogvar, dnoise))  # type: ignore[return-value]


def _like(x: Tensor) -> Tensor:
    return fresh(x, x.shape)


def _forward_fake(mean: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
    return _like(mean), mean.new_empty(mean.size(0), dtype=accumulation(mean.dtype))


def _backward_fake(
    dz: Tensor, dkl: Tensor, mean: Tensor, logvar: Tensor, seed: Any, noise: Any, *_: Any
) -> tuple[Tensor, Tensor, Tensor]:
    return _like(mean), _like(mean), mean.new_empty(0) if noise is None else _like(mean)


def _forward_cpu(
    mean: Tensor,
    logvar: Tensor,
    seed: Tensor | None,
    noise: Tensor | None,
    stream: int,
    sample_offset: int,
) -> tuple[Tensor, Tensor]:
    mean, logvar = mean.contiguous(), logvar.contiguous()
    noise = None if noise is None else noise.contiguous()
    z = fresh(mean, mean.shape)
    kl = mean.new_empty(mean.size(0), dtype=accumulation(mean.dtype))
    seed, counter = noise_arguments(seed, mean.shape, stream, sample_offset)
    _backends.native("_cpu").reparameterize(
        mean.data_ptr(),
        logvar.data_ptr(),
        address(noise),
        address(z),
        kl.data_ptr(),
        TYPE_NUMBER[mean.dtype],
        *counter,
        torch.get_num_threads(),
    )
    return z, kl


def _backward_cpu(
    dz: Tensor,
    dkl: Tensor,
    mean: Tensor,
    logvar: Tensor,
    seed: Tensor | None,
    noise: Tensor | None,
    stream: int,
    sample_offset: int,
) -> tuple[Tensor, Tensor, Tensor | None]:
    dz, dkl, mean, logvar = (
        dz.contiguous(),
        dkl.contiguous(),
        mean.contiguous(),
        logvar.contiguous(),
    )
    noise = None if noise is None else noise.contiguous()
    dmean, dlogvar = fresh(mean, mean.shape), fresh(mean, mean.shape)
    dnoise = None if noise is None else fresh(mean, mean.shape)
    seed, counter = noise_arguments(seed, mean.shape, stream, sample_offset)
    _backends.native("_cpu").reparameterize_backward(
        dz.data_ptr(),
        dkl.data_ptr(),
        mean.data_ptr(),
        logvar.data_ptr(),
        address(noise),
        address(dmean),
        address(dlogvar),
        address(dnoise),
        TYPE_NUMBER[mean.dtype],
        *counter,
        torch.get_num_threads(),
    )
    return dmean, dlogvar, dnoise


_SETTINGS = "Tensor? seed, Tensor? noise, int stream, SymInt sample_offset"

_forward = Kernel(
    f"reparameterize(Tensor mean, Tensor logvar, {_SETTINGS}) -> (Tensor z, Tensor kl)",
    reference=_formula,
    fake=_forward_fake,
    cpu=_forward_cpu,
    triton="reparameterize:reparameterize",
)
# dnoise is empty where there was no noise tensor.
_backward = Kernel(
    f"reparameterize_backward(Tensor dz, Tensor dkl, Tensor mean, Tensor logvar, {_SETTINGS}) -> "
    "(Tensor dmean, Tensor dlogvar, Tensor dnoise)",
    reference=_derivative,
    fake=_backward_fake,
    cpu=_backward_cpu,
    triton="reparameterize:reparameterize_backward",
)


class _Reparameterize(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(*arguments: Any) -> tuple[Tensor, Tensor]:
        return _forward(*arguments)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        *tensors, ctx.stream, ctx.sample_offset = inputs
        ctx.save_for_backward(*tensors)

    @staticmethod
    def backward(ctx: Any, dz: Tensor, dkl: Tensor) -> tuple[Any, ...]:
        mean, logvar, seed, noise = ctx.saved_tensors
        run = _derivative if needs_grad(dz, dkl, mean, logvar, noise) else _backward
        dmean, dlogvar, dnoise = run(
            dz, dkl, mean, logvar, seed, noise, ctx.stream, ctx.sample_offset
        )
        return dmean, dlogvar, None, None if noise is None else dnoise, None, None


def _check(mean: Tensor, logvar: Tensor) -> None:
    check_float("mean", mean)
    if mean.dim() < 2:
        raise ValueError(
            f"mean must have a dimension of samples and at least one more, got shape {tuple(mean.shape)}"
        )
    check_like("logvar", logvar, "mean", mean)


def reparameterize(
    mean: Tensor,
    logvar: Tensor,
    seed: int | Tensor | None = None,
    *,
    stream: int = 0,
    sample_offset: int = 0,
    generator: torch.Generator | None = None,
    noise: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """A sample of N(mean, exp(logvar)) and its divergence from the standard normal, in one pass.

    Args:
        mean: (N, ...) float32, float64, bfloat16 or float16, of any layout.
        logvar: natural logarithm of the variance, of mean's shape, dtype and device.
        seed: a number, an int64 tensor with one number, or with one for each sample. None draws one
            from torch's generator, without a host sync.
        stream: separates uses under one seed; 0 to 2^32 - 1.
        sample_offset: the number of the first sample, so that parts of a batch give what the whole
            would.
        generator: the torch generator that a missing seed is drawn from.
        noise: standard normal numbers to use instead, of mean's shape, dtype and device.

    Returns:
        z of mean's shape and dtype, and kl (N,) in nats, in float32 (float64 for float64).

    Raises:
        TypeError, ValueError: an argument has a wrong type, shape, device or value; the message
            names it.
    """
    _check(mean, logvar)
    key = noise_seed(mean, noise, seed, stream, sample_offset, generator)
    if forward_mode():
        return _formula(mean, logvar, key, noise, stream, sample_offset)
    arguments = (mean, logvar, key, noise, stream, sample_offset)
    return (
        apply(_Reparameterize, *arguments)
        if needs_grad(mean, logvar, noise)
        else _forward(*arguments)
    )


def _samples() -> tuple[Sample, ...]:
    seeds = torch.tensor([1, -2, 3, 4, 5])
    return (
        # Whole vectors of blocks; samples shorter than a block, several of them in a piece.
        Sample("vectors", (T((6, 128)), T((6, 128))), {"seed": 3, "stream": 7}),
        Sample("short, odd", (T((9, 7)), T((9, 7), scale=3.0)), {"seed": -1, "sample_offset": 5}),
        Sample(
            "channels last, a seed a sample",
            (T((5, 3, 5, 5), channels_last=True), T((5, 3, 5, 5))),
            {"seed": seeds},
        ),
        # Parts of samples on several threads.
        Sample("large samples", (T((3, 9001)), T((3, 9001))), {"seed": 5}),
        Sample("given noise", (T((4, 9)), T((4, 9))), {"noise": T((4, 9))}),
        Sample("no samples", (T((0, 4)), T((0, 4))), {"seed": 1}),
        Sample("no elements", (T((2, 0)), T((2, 0))), {"seed": 1}),
    )


def _bad_calls() -> tuple[BadCall, ...]:
    x, seeds = torch.zeros(2, 3), torch.zeros(3, dtype=torch.int64)
    return (
        BadCall("one dimension", (x[0], x[0]), {}, ValueError, "mean must have a dimension of samples"),
        BadCall("integers", (x.long(), x), {}, TypeError, "mean must be float32"),
        BadCall("another shape", (x, x[:, :2]), {}, ValueError, "logvar must have the shape of mean"),
        BadCall("another dtype", (x, x.double()), {}, TypeError, "logvar must have the dtype of mean"),
        BadCall("another device", (x, x.to("meta")), {}, ValueError, "logvar must be on cpu"),
        BadCall("too many seeds", (x, x, seeds), {}, ValueError, "2 samples"),
        BadCall("negative stream", (x, x, 1), {"stream": -1}, ValueError, "stream must lie in"),
        BadCall("noise and seed", (x, x, 1), {"noise": x}, ValueError, "seed and generator must be None"),
        BadCall("noise of another shape", (x, x), {"noise": x[:1]}, ValueError, "noise must have shape"),
        BadCall("noise of another dtype", (x, x), {"noise": x.double()}, TypeError, "noise must have dtype"),
    )  # fmt: skip


def _rows() -> Sequence[Row]:
    def make(shape: tuple[int, ...], train: bool) -> dict[str, Callable[[], Any]]:
        mean, logvar, dz = torch.randn(shape), torch.randn(shape), torch.randn(shape)
        dkl = torch.rand(shape[0])
        if train:
            mean.requires_grad_()
            logvar.requires_grad_()

        def eager() -> tuple[Tensor, Tensor]:
            z = mean + torch.exp(0.5 * logvar) * torch.randn_like(mean)
            return z, -0.5 * (1 + logvar - mean.pow(2) - logvar.exp()).sum(1)

        def run(f: Callable[[], tuple[Tensor, Tensor]]) -> Any:
            return torch.autograd.grad(f(), (mean, logvar), (dz, dkl)) if train else f()

        return {
            "ours": lambda: run(lambda: reparameterize(mean, logvar)),
            "eager": lambda: run(eager),
        }

    return [
        Row(
            f"reparameterize fwd{'+bwd' if train else ''}",
            ",".join(map(str, shape)),
            lambda shape=shape, train=train: make(shape, train),  # type: ignore[misc]
            bytes=(3 + 5 * train) * 4 * math.prod(shape),
        )
        for shape, train in (((4096, 128), True), ((4096, 128), False), ((256, 32), True))
    ]


register(
    Op(
        name="reparameterize",
        function=reparameterize,
        reference=reparameterize_reference,
        kernels=(_forward, _backward),
        samples=_samples(),
        bad_calls=_bad_calls(),
        # The second order is torch's own; with it asked for, the checks would not see the kernel.
        orders=1,
        # 4 ulp of the noise, times a deviation of up to about 40 in the samples.
        epsilon={dtype: 16 * torch.finfo(accumulation(dtype)).eps for dtype in FLOATS},
        rows=_rows,
    )
)
