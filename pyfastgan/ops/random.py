"""random_words, random_uniform, random_normal: counter-based numbers, the same on every backend.

Philox4x32-10 (Salmon, Moraes, Dror & Shaw 2011, "Parallel random numbers: as easy as 1, 2, 3"). The
key is the 64-bit seed, the counter (block low, block high, sample, stream). Dimension 0 of the shape
counts samples, a 1-D shape is one sample; element j of a sample is lane j % 4 of block j // 4. So
the numbers of a sample do not depend on the batch it stands in, on the number of threads or on the
device.

    words     uint32 words w in an int64 tensor
    uniform   u = (w + 1/2) / 2^32, rounded down in the output type: 0 <= u < 1, and never 0 in
              float32 and float64
    normal    Box & Muller (1958) on word pairs (0, 1) and (2, 3):
              sqrt(-2 ln u0) (cos 2 pi u1, sin 2 pi u1), where u0 and u1 are not rounded first

Words are bitwise equal on every backend, normals within 4 ulp of max(|z|, 1). Not differentiable.
Deterministic.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from ._common import TYPE_NUMBER
from ._random_calls import bad_calls, rows, samples
from ._random_kernels import (
    _launch_arguments,
    _normal,
    _normal_kernel,
    _samples_elements,
    _uniform,
    _uniform_kernel,
    _words,
    _words_kernel,
    few_numbers,
)
from ._registry import FLOATS, Kernel, Op, register

_shift: Tensor | None = None


@contextmanager
def seeds_shifted_by(shift: Tensor) -> Iterator[None]:
    """Within the context `shift`, a 0-dimensional int64 tensor, is added to every seed that is not
    drawn. It is read on its device: a CUDA graph that was captured here makes other noise
    whenever it is replayed with another number in it."""
    global _shift
    before, _shift = _shift, shift
    try:
        yield
    finally:
        _shift = before


def _shifted(seed: Tensor) -> Tensor:
    return seed if _shift is None else seed + _shift.to(seed.device)


def seed_tensor(
    seed: int | Tensor | None,
    generator: torch.Generator | None,
    device: torch.device | str | None,
    samples: int,
) -> Tensor:
    """The seed as an int64 tensor, 0-dimensional or one a sample; drawn if None, with no host sync.

    It lies on `device`; without one, where a tensor already lies, or on torch's default device.

    Raises:
        TypeError: the seed is neither an int nor an int64 tensor.
        ValueError: it is out of range, on another device, of another length than `samples`, or
            given beside a generator.
    """
    if seed is None:
        return torch.randint(
            -(2**63), 2**63 - 1, (), generator=generator, dtype=torch.int64, device=device
        )
    if generator is not None:
        raise ValueError("generator must be None when a seed is given, got both")
    if isinstance(seed, Tensor):
        if seed.dtype != torch.int64:
            raise TypeError(f"seed must be an int64 tensor or an int, got a tensor of {seed.dtype}")
        # "cuda" means the current one of the CUDA devices.
        if (
            device is not None
            and seed.device != device
            and seed.device != torch.empty(0, device=device).device
        ):
            raise ValueError(f"seed must be on {device} like the output, got {seed.device}")
        if seed.dim() > 1 or (seed.dim() == 1 and seed.size(0) != samples):
            raise ValueError(
                f"seed must be a number or one number for each of {samples} samples, "
                f"got shape {tuple(seed.shape)}"
            )
        return _shifted(seed)
    if not isinstance(seed, int) or isinstance(seed, bool):
        raise TypeError(f"seed must be an int64 tensor or an int, got {type(seed).__name__}")
    if not -(2**63) <= seed < 2**64:
        raise ValueError(f"seed must lie in [-2^63, 2^64), got {seed}")
    signed = seed if seed < 2**63 else seed - 2**64
    return _shifted(torch.full((), signed, dtype=torch.int64, device=device))


def noise_seed(
    like: Tensor,
    noise: Tensor | None,
    seed: int | Tensor | None,
    stream: int,
    sample_offset: int,
    generator: torch.Generator | None,
) -> Tensor | None:
    """The seed of an op that consumes noise of `like`'s shape; None where `noise` is given.

    Raises:
        TypeError, ValueError: the arguments of the noise are wrong, or both noise and a seed are
            given.
    """
    samples, _ = _samples_elements(like.shape)
    check_counter(stream, sample_offset, samples)
    if noise is None:
        return seed_tensor(seed, generator, like.device, samples)
    if not isinstance(noise, Tensor):
        raise TypeError(f"noise must be a tensor or None, got {type(noise).__name__}")
    if seed is not None or generator is not None:
        raise ValueError("seed and generator must be None when noise is given")
    if noise.shape != like.shape or noise.device != like.device:
        raise ValueError(
            f"noise must have shape {tuple(like.shape)} and be on {like.device}, "
            f"got shape {tuple(noise.shape)} on {noise.device}"
        )
    if noise.dtype != like.dtype:
        raise TypeError(f"noise must have dtype {like.dtype}, got {noise.dtype}")
    return None


def noise_arguments(
    seed: Tensor | None, shape: Sequence[int], stream: int, sample_offset: int
) -> tuple[Tensor | None, tuple[Any, ...]]:
    """The seed, to be kept alive, and what a kernel that consumes noise takes after its type."""
    if seed is not None:
        return _launch_arguments(seed, shape, stream, sample_offset)
    return None, (*_samples_elements(shape), None, 0, stream, sample_offset)


def check_counter(stream: int, sample_offset: int, samples: int) -> None:
    """Refuses a stream or a range of samples that 32 bits do not hold."""
    if type(stream) is type(sample_offset) is int and (
        0 <= stream < 2**32 and 0 <= sample_offset <= 2**32 - samples
    ):
        return
    for name, value in (("stream", stream), ("sample_offset", sample_offset)):
        if not isinstance(value, int | torch.SymInt):
            raise TypeError(f"{name} must be an int, got {type(value).__name__} {value!r}")
    if not 0 <= stream < 2**32:
        raise ValueError(f"stream must lie in [0, 2^32), got {stream}")
    if sample_offset < 0 or sample_offset + samples > 2**32:
        raise ValueError(
            f"sample_offset must be at least 0 and sample_offset + {samples} samples at most 2^32, "
            f"got {sample_offset}"
        )


def _prepare(
    shape: Sequence[int],
    seed: int | Tensor | None,
    stream: int,
    sample_offset: int,
    generator: torch.Generator | None,
    device: torch.device | str | None,
) -> tuple[Tensor, list[int]]:
    if isinstance(shape, int):
        raise TypeError(f"shape must be a sequence of ints, got {shape!r}")
    for n in shape:
        if type(n) is int and n >= 0:
            continue
        if not isinstance(n, int | torch.SymInt):
            raise TypeError(f"shape must be a sequence of ints, got {shape!r}")
        if n < 0:
            raise ValueError(f"shape must not have negative sizes, got {tuple(shape)}")
    samples, _ = _samples_elements(shape)
    check_counter(stream, sample_offset, samples)
    if device is not None:
        try:
            device = torch.device(device)
        except RuntimeError as error:
            raise ValueError(f"device must name a device, got {device!r}: {error}") from None
    if device is None and generator is not None:
        device = generator.device
    return seed_tensor(seed, generator, device, samples), list(shape)


def _output_dtype(dtype: torch.dtype | None) -> torch.dtype:
    dtype = torch.get_default_dtype() if dtype is None else dtype
    if dtype not in TYPE_NUMBER:
        raise TypeError(f"dtype must be float32, float64, bfloat16 or float16, got {dtype}")
    return dtype


def random_words(
    shape: Sequence[int],
    seed: int | Tensor | None = None,
    *,
    stream: int = 0,
    sample_offset: int = 0,
    generator: torch.Generator | None = None,
    device: torch.device | str | None = None,
) -> Tensor:
    """Random 32-bit words of Philox4x32-10, as numbers from 0 to 2^32 - 1 in an int64 tensor.

    Args:
        shape: dimension 0 counts samples; a 1-D shape is one sample.
        seed: a number, an int64 tensor with one number, or with one for each sample: then a sample
            has the same words wherever it stands in the batch. None draws one from torch's
            generator, on the device, without a host sync.
        stream: separates uses under one seed, e.g. layers or time steps; 0 to 2^32 - 1.
        sample_offset: the number of the first sample, so that parts of a batch give what the whole
            would.
        generator: the torch generator that a missing seed is drawn from.
        device: where; by default the seed's, the generator's, or torch's default device.

    Raises:
        TypeError, ValueError: an argument is of the wrong kind or out of range; the message names
            it.
    """
    key, size = _prepare(shape, seed, stream, sample_offset, generator, device)
    return _words(key, size, stream, sample_offset)


def random_uniform(
    shape: Sequence[int],
    seed: int | Tensor | None = None,
    *,
    stream: int = 0,
    sample_offset: int = 0,
    generator: torch.Generator | None = None,
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
) -> Tensor:
    """Uniform numbers in [0, 1): (w + 1/2) / 2^32 of each word w, rounded down in `dtype`.

    Arguments and errors are those of `random_words`; `dtype` is float32, float64, bfloat16 or
    float16, by default torch's default dtype. float64 numbers have 32 random bits.
    """
    if _shift is None:
        few = few_numbers(
            "random_uniform", shape, seed, stream, sample_offset, generator, dtype, device
        )
        if few is not None:
            return few
    dtype = _output_dtype(dtype)
    key, size = _prepare(shape, seed, stream, sample_offset, generator, device)
    return _uniform(key, size, stream, sample_offset, dtype)


def random_normal(
    shape: Sequence[int],
    seed: int | Tensor | None = None,
    *,
    stream: int = 0,
    sample_offset: int = 0,
    generator: torch.Generator | None = None,
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
) -> Tensor:
    """Standard normal numbers by Box and Muller's formula; at most 6.8 in magnitude, as 32-bit words allow.

    Arguments and errors are those of `random_words`; `dtype` is float32, float64, bfloat16 or
    float16, by default torch's default dtype. Half types are rounded from float32.
    """
    if _shift is None:
        few = few_numbers(
            "random_normal", shape, seed, stream, sample_offset, generator, dtype, device
        )
        if few is not None:
            return few
    dtype = _output_dtype(dtype)
    key, size = _prepare(shape, seed, stream, sample_offset, generator, device)
    return _normal(key, size, stream, sample_offset, dtype)


def _reference(kernel: Any, typed: bool) -> Any:
    def reference(
        shape: Sequence[int],
        seed: int | Tensor | None = None,
        *,
        stream: int = 0,
        sample_offset: int = 0,
        generator: torch.Generator | None = None,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ) -> Tensor:
        key, size = _prepare(shape, seed, stream, sample_offset, generator, device)
        return kernel(key, size, stream, sample_offset, *([_output_dtype(dtype)] if typed else []))

    return reference


random_words_reference = _reference(_words_kernel, typed=False)
random_uniform_reference = _reference(_uniform_kernel, typed=True)
random_normal_reference = _reference(_normal_kernel, typed=True)


def _register(
    function: Any, reference: Any, kernel: Kernel, epsilon: float, eager: Any, item: int
) -> None:
    typed = function is not random_words
    register(
        Op(
            name=function.__name__,
            function=function,
            reference=reference,
            kernels=(kernel,),
            samples=samples(typed),
            bad_calls=bad_calls(typed),
            orders=0,
            epsilon={dtype: epsilon * torch.finfo(dtype).eps for dtype in FLOATS},
            rows=rows(function.__name__, eager, function, item),
        )
    )


_register(random_words, random_words_reference, _words, 0, lambda n: torch.randint(2**32, (n,)), 8)
_register(random_uniform, random_uniform_reference, _uniform, 0, torch.rand, 4)
_register(random_normal, random_normal_reference, _normal, 4, torch.randn, 4)
