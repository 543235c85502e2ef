"""The kernels of `diffuse` and their references."""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor

from . import _backends
from ._common import TYPE_NUMBER, accumulation, address, fresh
from ._random_kernels import _normal_kernel
from ._registry import Kernel
from .random import noise_arguments


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
    return fresh(x0, x0.shape), fresh(x0, x0.shape if rest[-1] else (0,))


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
    y = fresh(x0, x0.shape)
    kept = fresh(x0, x0.shape) if want_noise else None
    launch(
        backend,
        "diffuse",
        x0,
        x0.data_ptr(),
        alpha.data_ptr(),
        sigma.data_ptr(),
        address(noise),
        address(y),
        address(kept),
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
    dx0 = fresh(dy, dy.shape if want_x0 else (0,))
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
    dx0 = fresh(dy, dy.shape) if want_x0 else None
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
        address(dx0),
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
