"""diffuse: x_t = alpha x_0 + sigma z with standard normal noise z, made in the pass that uses it.

    x0             (N, ...) with two dimensions or more, of any layout; x_t and noise are contiguous
    alpha, sigma   (N,), a number for each sample, of any floating-point type
    noise          z, as `random_normal` makes it in x0's dtype: the noise that is returned is the
                   very noise that was added

Ho, Jain & Abbeel 2020, "Denoising diffusion probabilistic models", equation 4, with alpha =
sqrt(alpha_bar) and sigma = sqrt(1 - alpha_bar); Karras et al. 2022 with alpha = 1; flow matching
with alpha = 1 - t and sigma = t.

The coefficients are used in float32 (float64 for a float64 x0), also where x0 is of a half type: in
bfloat16 small sigmas and 1 - alpha_bar are lost. Products are rounded once.

Differentiable any number of times in x0, alpha, sigma and a given noise. The backward pass makes the noise again from
the seed; nothing of it is stored. Gradients to alpha and sigma are summed in float64 over fixed
pieces. Deterministic.
"""

from __future__ import annotations

import functools
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
    forward_mode,
    needs_grad,
    output,
)
from ._diffuse_calls import bad_calls, rows, samples
from ._random_kernels import _normal_kernel
from ._registry import Kernel, Op, register
from .random import noise_arguments, noise_seed


def normals_like(x: Tensor, seed: Tensor, stream: int, sample_offset: int) -> Tensor:
    """The noise that kernels make from these numbers, by the reference, in x's dtype."""
    return _normal_kernel(seed, x.shape, stream, sample_offset, x.dtype)


def column(numbers: Tensor, like: Tensor) -> Tensor:
    """A number for each sample, shaped to multiply samples."""
    return numbers.reshape(-1, *[1] * (like.dim() - 1))


def _noised(x0: Tensor, alpha: Tensor, sigma: Tensor, noise: Tensor) -> Tensor:
    wide = accumulation(x0.dtype)
    alpha, sigma = column(alpha.to(wide), x0), column(sigma.to(wide), x0)
    return (alpha * x0.to(wide) + sigma * noise.to(wide)).to(x0.dtype)


def diffuse_reference(
    x0: Tensor,
    alpha: Tensor,
    sigma: Tensor,
    seed: int | Tensor | None = None,
    *,
    stream: int = 0,
    sample_offset: int = 0,
    generator: torch.Generator | None = None,
    noise: Tensor | None = None,
    return_noise: bool = True,
) -> tuple[Tensor, Tensor | None]:
    """The definition in plain PyTorch, differentiable by autograd any number of times."""
    key = noise_seed(x0, noise, seed, stream, sample_offset, generator)
    z = normals_like(x0, key, stream, sample_offset) if key is not None else noise
    assert z is not None
    return _noised(x0, alpha, sigma, z), z if return_noise else None


def _forward_reference(
    x0: Tensor,
    alpha: Tensor,
    sigma: Tensor,
    noise: Tensor | None,
    seed: Tensor | None,
    stream: int,
    sample_offset: int,
    want_noise: bool,
) -> tuple[Tensor, Tensor]:
    x0 = x0.contiguous()
    z = noise if seed is None else normals_like(x0, seed, stream, sample_offset)
    assert z is not None
    return _noised(x0, alpha, sigma, z.contiguous()), z if want_noise else x0.new_empty(0)


def _forward_fake(x0: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
    return x0.new_empty(x0.shape), x0.new_empty(x0.shape if rest[-1] else 0)


def _contiguous(*tensors: Tensor | None) -> list[Any]:
    return [None if t is None else t.contiguous() for t in tensors]


def launch(backend: str, kernel: str, like: Tensor, *arguments: Any) -> None:
    """Calls a compiled kernel: on the threads that torch has, or on the stream of `like`'s device."""
    if backend == "cpu":
        getattr(_backends.native("_cpu"), kernel)(*arguments, torch.get_num_threads())
        return
    call = getattr(_backends.native("_cuda"), kernel)
    with torch.cuda.device(like.device):
        call(*arguments, torch.cuda.current_stream().cuda_stream)


def _forward_native(
    backend: str,
    x0: Tensor,
    alpha: Tensor,
    sigma: Tensor,
    noise: Tensor | None,
    seed: Tensor | None,
    stream: int,
    sample_offset: int,
    want_noise: bool,
) -> tuple[Tensor, Tensor | None]:
    x0, alpha, sigma = x0.contiguous(), alpha.contiguous(), sigma.contiguous()
    noise = None if noise is None else noise.contiguous()
    seed, counter = noise_arguments(seed, x0.shape, stream, sample_offset)
    y = torch.empty_like(x0)
    kept = torch.empty_like(x0) if want_noise else None
    launch(
        backend,
        "diffuse",
        x0,
        x0.data_ptr(),
        alpha.data_ptr(),
        sigma.data_ptr(),
        address(noise),
        output(y),
        output(kept),
        TYPE_NUMBER[x0.dtype],
        *counter,
    )
    return y, kept


def _backward_reference(
    dy: Tensor,
    x0: Tensor,
    alpha: Tensor,
    noise: Tensor | None,
    seed: Tensor | None,
    stream: int,
    sample_offset: int,
    want_x0: bool,
    want_coefficients: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    z = noise if seed is None else normals_like(x0, seed, stream, sample_offset)
    dy = dy.contiguous()
    wide = accumulation(dy.dtype)
    dx0 = (column(alpha, dy) * dy.to(wide)).to(dy.dtype) if want_x0 else dy.new_empty(0)
    if not want_coefficients:
        return dx0, dy.new_empty(0), dy.new_empty(0)
    assert z is not None
    by_x0, by_noise = ((dy.to(wide) * t.to(wide)).flatten(1).sum(1) for t in (x0, z))
    return dx0, by_x0, by_noise


def _backward_fake(
    dy: Tensor, x0: Tensor, alpha: Tensor, *rest: Any
) -> tuple[Tensor, Tensor, Tensor]:
    *_, want_x0, want_coefficients = rest
    dx0 = dy.new_empty(dy.shape if want_x0 else 0)
    if not want_coefficients:
        return dx0, dy.new_empty(0), dy.new_empty(0)
    return dx0, alpha.new_empty(alpha.shape), alpha.new_empty(alpha.shape)


def _backward_cpu(
    dy: Tensor,
    x0: Tensor,
    alpha: Tensor,
    noise: Tensor | None,
    seed: Tensor | None,
    stream: int,
    sample_offset: int,
    want_x0: bool,
    want_coefficients: bool,
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    dy, x0, alpha = dy.contiguous(), x0.contiguous(), alpha.contiguous()
    noise = None if noise is None else noise.contiguous()
    seed, counter = noise_arguments(seed, x0.shape, stream, sample_offset)
    dx0 = torch.empty_like(dy) if want_x0 else None
    dalpha = torch.empty_like(alpha) if want_coefficients else None
    dsigma = torch.empty_like(alpha) if want_coefficients else None
    launch(
        "cpu",
        "diffuse_backward",
        dy,
        dy.data_ptr(),
        x0.data_ptr(),
        alpha.data_ptr(),
        address(noise),
        output(dx0),
        address(dalpha),
        address(dsigma),
        TYPE_NUMBER[x0.dtype],
        *counter,
    )
    return dx0, dalpha, dsigma


def parts_of(elements: int) -> int:
    """How many threads of a GPU share the sum over a sample."""
    return min(max(elements // 4, 1), 1024)


def _backward_cuda(
    dy: Tensor,
    x0: Tensor,
    alpha: Tensor,
    noise: Tensor | None,
    seed: Tensor | None,
    stream: int,
    sample_offset: int,
    want_x0: bool,
    want_coefficients: bool,
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    dy, x0, alpha, noise = _contiguous(dy, x0, alpha, noise)
    seed, counter = noise_arguments(seed, x0.shape, stream, sample_offset)
    dx0, *_ = _backward_fake(dy, x0, alpha, want_x0, False)
    parts = parts_of(counter[1])
    sums = alpha.new_empty((2, len(alpha), parts) if want_coefficients else 0)
    launch(
        "cuda",
        "diffuse_backward",
        dy,
        dy.data_ptr(),
        x0.data_ptr(),
        alpha.data_ptr(),
        address(noise),
        dx0.data_ptr() if want_x0 else None,
        sums.data_ptr() if want_coefficients else None,
        parts,
        TYPE_NUMBER[x0.dtype],
        *counter,
    )
    if not want_coefficients:
        return dx0, None, None
    by_x0, by_noise = sums.sum(-1)
    return dx0, by_x0.clone(), by_noise.clone()


_NOISE = "Tensor? noise, Tensor? seed, int stream, SymInt sample_offset"

# The coefficients are of the computing dtype. Either the noise is given or a seed; the second output
# is empty unless the noise is wanted.
_forward = Kernel(
    f"diffuse(Tensor x0, Tensor alpha, Tensor sigma, {_NOISE}, bool want_noise) -> (Tensor x_t, Tensor kept)",
    reference=_forward_reference,
    fake=_forward_fake,
    cpu=functools.partial(_forward_native, "cpu"),
    cuda=functools.partial(_forward_native, "cuda"),
)
_backward = Kernel(
    f"diffuse_backward(Tensor dy, Tensor x0, Tensor alpha, {_NOISE}, bool want_x0, bool want_coefficients) "
    "-> (Tensor dx0, Tensor dalpha, Tensor dsigma)",
    reference=_backward_reference,
    fake=_backward_fake,
    cpu=_backward_cpu,
    cuda=_backward_cuda,
)


class _Diffuse(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(*arguments: Any) -> tuple[Tensor, Tensor]:
        return _forward(*arguments)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        x0, alpha, sigma, noise, seed, *ctx.counter, _ = inputs
        if output[1] is not None:
            ctx.mark_non_differentiable(output[1])
        ctx.save_for_backward(x0, alpha, sigma, noise, seed)

    @staticmethod
    def backward(ctx: Any, dy: Tensor, _: Any) -> tuple[Any, ...]:
        x0, alpha, sigma, noise, seed = ctx.saved_tensors
        want_x0, want_alpha, want_sigma, want_noise = ctx.needs_input_grad[:4]
        want_coefficients = want_alpha or want_sigma
        if needs_grad(dy, x0, alpha, sigma, noise):
            z = normals_like(x0, seed, *ctx.counter) if noise is None else noise
            wide = alpha.dtype
            dx0 = (column(alpha, dy) * dy).to(dy.dtype)
            dalpha, dsigma = ((dy.to(wide) * t.to(wide)).flatten(1).sum(1) for t in (x0, z))
        else:
            arguments = (dy, x0, alpha, noise, seed, *ctx.counter)
            dx0, dalpha, dsigma = _backward(*arguments, want_x0, want_coefficients)
        dnoise = (column(sigma, dy) * dy).to(dy.dtype) if want_noise else None
        return (
            dx0 if want_x0 else None,
            dalpha if want_alpha else None,
            dsigma if want_sigma else None,
            dnoise,
            *(None,) * (len(ctx.counter) + 2),
        )


def check_samples(argument: str, numbers: object, x: Tensor) -> None:
    """Refuses what is not a floating-point tensor (N,) beside an x of N samples."""
    check_float(argument, numbers)
    assert isinstance(numbers, Tensor)
    if numbers.shape != x.shape[:1]:
        raise ValueError(
            f"{argument} must have shape ({x.size(0)},), one value for each sample, got {tuple(numbers.shape)}"
        )
    if numbers.device != x.device:
        raise ValueError(f"{argument} must be on {x.device}, got {numbers.device}")


def check_batch(argument: str, x: object) -> None:
    """Refuses what is not a floating-point tensor of samples: two dimensions or more."""
    check_float(argument, x)
    assert isinstance(x, Tensor)
    if x.dim() < 2:
        raise ValueError(
            f"{argument} must have shape (N, ...) with two dimensions or more, got {tuple(x.shape)}"
        )


def diffuse(
    x0: Tensor,
    alpha: Tensor,
    sigma: Tensor,
    seed: int | Tensor | None = None,
    *,
    stream: int = 0,
    sample_offset: int = 0,
    generator: torch.Generator | None = None,
    noise: Tensor | None = None,
    return_noise: bool = True,
) -> tuple[Tensor, Tensor | None]:
    """alpha x0 + sigma z and the noise z, in one pass, differentiable any number of times.

    Args:
        x0: (N, ...) float32, float64, bfloat16 or float16, of any layout.
        alpha: (N,), floating point.
        sigma: (N,), floating point.
        seed: what the noise is made from, as in `random_normal`; drawn from torch's generator if None.
        stream: separates uses under one seed.
        sample_offset: the number of the first sample in the global batch.
        generator: the torch generator that a missing seed is drawn from.
        noise: given noise of x0's shape and dtype, instead of a seed.
        return_noise: whether the noise is returned; without it less memory moves.

    Returns:
        x_t and the noise (None without `return_noise`), contiguous, of x0's shape and dtype. Made
        noise has no gradient.

    Raises:
        TypeError, ValueError: an argument has a wrong type, shape, device or value; the message names it.
    """
    check_batch("x0", x0)
    check_samples("alpha", alpha, x0)
    check_samples("sigma", sigma, x0)
    key = noise_seed(x0, noise, seed, stream, sample_offset, generator)
    wide = accumulation(x0.dtype)
    # `to` costs as much as a small kernel, also where it does nothing.
    if alpha.dtype != wide:
        alpha = alpha.to(wide)
    if sigma.dtype != wide:
        sigma = sigma.to(wide)
    if forward_mode():
        z = normals_like(x0, key, stream, sample_offset) if key is not None else noise
        assert z is not None
        return _noised(x0, alpha, sigma, z), z if return_noise else None
    arguments = (x0, alpha, sigma, noise, key, stream, sample_offset)
    want_noise = return_noise and noise is None
    if needs_grad(x0, alpha, sigma, noise):
        x_t, kept = apply(_Diffuse, *arguments, want_noise)
    else:
        x_t, kept = _forward(*arguments, want_noise)
    return x_t, (kept if noise is None else noise) if return_noise else None


register(
    Op(
        name="diffuse",
        function=diffuse,
        reference=diffuse_reference,
        kernels=(_forward, _backward),
        samples=samples(),
        bad_calls=bad_calls(),
        orders=2,
        # A normal number is good to 4 ulp of max(|z|, 1); a half type rounds it, to the other side
        # at times. The gradients of alpha and sigma are sums over a sample, in an order that
        # depends on the width of the vectors.
        epsilon={
            torch.float32: 6e-6,
            torch.float64: 1e-13,
            torch.bfloat16: 1e-2,
            torch.float16: 1.5e-3,
        },
        rows=rows,
    )
)
