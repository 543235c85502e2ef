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

from typing import Any

import torch
from torch import Tensor
from torch.compiler import is_compiling as _is_compiling

from . import _backends
from ._backends import choice as _choice
from ._common import (
    FEW,
    TYPE_NUMBER,
    accumulation,
    apply,
    check_float,
    forward_mode,
    fresh_like,
    needs_grad,
)
from ._diffuse_calls import bad_calls, rows, samples
from ._diffuse_kernels import _backward, _forward, _noised, column, normals_like
from ._random_kernels import place_of_seed
from ._registry import Op, is_plain_call, register
from .random import noise_seed


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
        ctx.set_materialize_grads(False)  # or the noise would get a gradient of zeros
        ctx.save_for_backward(x0, alpha, sigma, noise, seed)

    @staticmethod
    def backward(ctx: Any, dy: Tensor | None, _: Any) -> tuple[Any, ...]:
        if dy is None:
            return (None,) * (len(ctx.counter) + 6)
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


# Called past all that calls usually go through, which takes as long as the kernel does over a quarter of a million
# elements.
_kernel = _backends.cpu_kernel("diffuse")


def _plain(
    x0: Any,
    alpha: Any,
    sigma: Any,
    noise: Any,
    made: tuple[Any, Any, Any, Any] | None,
    return_noise: Any,
) -> tuple[Tensor, Tensor | None] | None:
    """A call on a CPU with contiguous tensors of one type that nothing is recorded for. `made` is the seed, generator,
    stream and sample_offset of noise to be made. None for all else, calls with a mistake among them."""
    if (
        _is_compiling()
        or _kernel is None
        or (_choice.name != "auto" and _choice.name != "cpu")
        or not type(x0) is type(alpha) is type(sigma) is Tensor
        or forward_mode()
        or not is_plain_call()
    ):
        return None
    dtype, shape, size = x0.dtype, x0.shape, x0.numel()
    if (
        not (dtype is torch.float32 or dtype is torch.float64)
        or len(shape) < 2
        or size == 0
        or alpha.dtype is not dtype
        or sigma.dtype is not dtype
        or not alpha.dim() == sigma.dim() == 1
        or not alpha.numel() == sigma.numel() == shape[0]
        or not (x0.is_cpu and alpha.is_cpu and sigma.is_cpu)
        or not (x0.is_contiguous() and alpha.is_contiguous() and sigma.is_contiguous())
        or needs_grad(x0, alpha, sigma)
    ):
        return None
    place, stream, offset = None, 0, 0
    if made is not None:
        seed, generator, stream, offset = made
        if not (0 <= stream < 2**32 and 0 <= offset <= 2**32 - shape[0]):
            return None
        place = place_of_seed(seed, generator)  # last, since it may draw
        if place is None:
            return None
    elif (
        type(noise) is not Tensor
        or noise.dtype is not dtype
        or noise.shape != shape
        or not (noise.is_cpu and noise.is_contiguous())
        or needs_grad(noise)
    ):
        return None
    new = torch.empty_like if size <= FEW else fresh_like
    x_t = new(x0)
    kept = new(x0) if made is not None and return_noise else None
    _kernel(
        x0.data_ptr(),
        alpha.data_ptr(),
        sigma.data_ptr(),
        None if made is not None else noise.data_ptr(),
        x_t.data_ptr(),
        None if kept is None else kept.data_ptr(),
        TYPE_NUMBER[dtype],
        shape[0],
        size // shape[0],
        place,
        0,
        stream,
        offset,
        torch.get_num_threads(),
    )
    return x_t, kept if made is not None or not return_noise else noise


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
    if type(stream) is type(sample_offset) is int:
        made = (seed, generator, stream, sample_offset) if noise is None else None
        if made or (seed is generator is None and stream == sample_offset == 0):
            found = _plain(x0, alpha, sigma, noise, made, return_noise)
            if found is not None:
                return found
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
