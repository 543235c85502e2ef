"""The kernels of `random_words`, `random_uniform` and `random_normal`, and their references.

`random.py` says which number is which.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.compiler import is_compiling as _is_compiling

from . import _backends
from ._backends import choice as _choice
from ._common import FEW, TYPE_NUMBER, fresh
from ._registry import Kernel, _modes, _profiled, _transforms

_MASK = 0xFFFFFFFF

# Asked in every call of a few numbers.
_threads, _default_dtype, _empty = torch.get_num_threads, torch.get_default_dtype, torch.empty


def _samples_elements(shape: Sequence[int]) -> tuple[int, int]:
    """How many samples a shape holds and how many elements each has."""
    count = len(shape)
    if count == 2:
        return shape[0], shape[1]
    if count < 2:
        return 1, shape[0] if count else 1
    return shape[0], math.prod(shape[1:])


def _philox(counter: list[Tensor], key0: Tensor, key1: Tensor) -> list[Tensor]:
    """Ten rounds on int64 tensors that hold uint32 words."""
    for _ in range(10):
        # The products wrap around in int64; their 64 bits are right all the same.
        product0, product1 = counter[0] * 0xD2511F53, counter[2] * 0xCD9E8D57
        counter = [
            ((product1 >> 32) & _MASK) ^ counter[1] ^ key0,
            product1 & _MASK,
            ((product0 >> 32) & _MASK) ^ counter[3] ^ key1,
            product0 & _MASK,
        ]
        key0, key1 = (key0 + 0x9E3779B9) & _MASK, (key1 + 0xBB67AE85) & _MASK
    return counter


def _word_blocks(seed: Tensor, shape: Sequence[int], stream: int, sample_offset: int) -> Tensor:
    """The words as (samples, blocks, 4), the last block filled up."""
    samples, elements = _samples_elements(shape)
    block = torch.arange((elements + 3) // 4, device=seed.device)[None, :]
    sample = torch.arange(samples, device=seed.device)[:, None]
    sample = sample * 0 if seed.dim() else (sample + sample_offset) & _MASK
    key = seed.reshape(-1, 1)
    zero = torch.zeros_like(block + sample)
    counter = [zero + (block & _MASK), zero + (block >> 32), zero + sample, zero + stream]
    words = _philox(counter, zero + (key & _MASK), zero + ((key >> 32) & _MASK))
    return torch.stack(words, dim=-1)


def _in_shape(blocks: Tensor, shape: Sequence[int]) -> Tensor:
    _, elements = _samples_elements(shape)
    return blocks.flatten(1)[:, :elements].reshape(shape).contiguous()


def _words_kernel(seed: Tensor, shape: Sequence[int], stream: int, sample_offset: int) -> Tensor:
    return _in_shape(_word_blocks(seed, shape, stream, sample_offset), shape)


def round_down(x: Tensor, dtype: torch.dtype) -> Tensor:
    """Non-negative float64 numbers to the nearest number of `dtype` that is not above them."""
    y = x.to(dtype)
    below = torch.nextafter(y, torch.zeros_like(y))
    return torch.where(y.double() > x, below, y)


def _uniform_kernel(
    seed: Tensor, shape: Sequence[int], stream: int, sample_offset: int, dtype: torch.dtype
) -> Tensor:
    words = _words_kernel(seed, shape, stream, sample_offset)
    return round_down((words.double() + 0.5) * 2.0**-32, dtype)


def _normal_kernel(
    seed: Tensor, shape: Sequence[int], stream: int, sample_offset: int, dtype: torch.dtype
) -> Tensor:
    words = _word_blocks(seed, shape, stream, sample_offset)
    w0, w1 = words[..., 0::2], words[..., 1::2]
    radius = torch.sqrt(-2.0 * torch.log((w0.double() + 0.5) * 2.0**-32))
    # The nearest quarter of a turn is taken off in integers, so that small sines and cosines keep
    # their precision.
    quarter = (w1 + (1 << 29)) >> 30
    angle = ((w1 - (quarter << 30)).double() + 0.5) * (2.0 * math.pi * 2.0**-32)
    cosine, sine = torch.cos(angle), torch.sin(angle)
    odd = quarter % 2 == 1
    cosine, sine = torch.where(odd, sine, cosine), torch.where(odd, cosine, sine)
    cosine = torch.where((quarter + 1) & 2 != 0, -cosine, cosine)
    sine = torch.where(quarter & 2 != 0, -sine, sine)
    normals = torch.stack((radius * cosine, radius * sine), dim=-1).flatten(-2)
    return _in_shape(normals, shape).to(dtype)


def _fake(
    seed: Tensor,
    shape: Sequence[int],
    stream: int,
    sample_offset: int,
    dtype: torch.dtype = torch.int64,
) -> Tensor:
    return seed.new_empty(shape, dtype=dtype)


def _launch_arguments(
    seed: Tensor, shape: Sequence[int], stream: int, sample_offset: int
) -> tuple[Tensor, tuple[int, ...]]:
    samples, elements = _samples_elements(shape)
    seed = seed.contiguous()
    return seed, (samples, elements, seed.data_ptr(), int(seed.dim() > 0), stream, sample_offset)


def _words_cpu(seed: Tensor, shape: Sequence[int], stream: int, sample_offset: int) -> Tensor:
    out = fresh(seed, shape)
    seed, arguments = _launch_arguments(seed, shape, stream, sample_offset)
    _backends.native("_cpu").random_words(out.data_ptr(), *arguments, torch.get_num_threads())
    return out


def _numbers_cpu(name: str) -> Any:
    def run(
        seed: Tensor, shape: Sequence[int], stream: int, sample_offset: int, dtype: torch.dtype
    ) -> Tensor:
        out = fresh(seed, shape, dtype)
        seed, arguments = _launch_arguments(seed, shape, stream, sample_offset)
        kernel = getattr(_backends.native("_cpu"), name)
        kernel(out.data_ptr(), TYPE_NUMBER[dtype], *arguments, torch.get_num_threads())
        return out

    return run


def _words_cuda(seed: Tensor, shape: Sequence[int], stream: int, sample_offset: int) -> Tensor:
    out = seed.new_empty(shape)
    seed, arguments = _launch_arguments(seed, shape, stream, sample_offset)
    with torch.cuda.device(seed.device):
        queue = torch.cuda.current_stream().cuda_stream
        _backends.native("_cuda").random_words(out.data_ptr(), *arguments, queue)
    return out


def _numbers_cuda(name: str) -> Any:
    def run(
        seed: Tensor, shape: Sequence[int], stream: int, sample_offset: int, dtype: torch.dtype
    ) -> Tensor:
        out = seed.new_empty(shape, dtype=dtype)
        seed, arguments = _launch_arguments(seed, shape, stream, sample_offset)
        kernel = getattr(_backends.native("_cuda"), name)
        with torch.cuda.device(seed.device):
            queue = torch.cuda.current_stream().cuda_stream
            kernel(out.data_ptr(), TYPE_NUMBER[dtype], *arguments, queue)
        return out

    return run


_LOWEST, _HIGHEST = -(2**63), 2**63 - 1
_CPU = torch.device("cpu")
# The kernels that few numbers come from without the calls that all others go through, which take longer than they do,
# and the choices that allow it.
_DIRECT = {name: _backends.cpu_kernel(name) for name in ("random_uniform", "random_normal")}
_CHOSEN = ("auto", "cpu") if all(_DIRECT.values()) else ()


class _Seed(threading.local):
    """A thread's place for a seed that nobody sees."""

    def __init__(self) -> None:
        with torch.inference_mode(False):
            self.tensor = torch.empty((), dtype=torch.int64, device=_CPU)
        self.number, self.address = self.tensor.numpy(), self.tensor.data_ptr()


_seed = _Seed()


def place_of_seed(seed: Any, generator: Any) -> int | None:
    """The address of a seed that is a number, or drawn where it is None; it stands until this thread's next. None for
    all else, calls with a mistake among them."""
    kept = _seed
    if seed is None:
        if generator is None:
            kept.tensor.random_(_LOWEST, _HIGHEST)
        elif type(generator) is torch.Generator and generator.device == _CPU:
            kept.tensor.random_(_LOWEST, _HIGHEST, generator=generator)
        else:
            return None
    elif type(seed) is int and generator is None and _LOWEST <= seed < 2**64:
        kept.number[()] = seed if seed <= _HIGHEST else seed - 2**64
    else:
        return None
    return kept.address


def few_numbers(
    name: str,
    shape: Any,
    seed: Any,
    stream: Any,
    sample_offset: Any,
    generator: Any,
    dtype: Any,
    device: Any,
) -> Tensor | None:
    """What the op of this name gives, of a seed that is a number or drawn; None for all else than few numbers on a CPU,
    calls with a mistake among them."""
    if (
        _is_compiling()
        or type(shape) is not tuple
        or not type(stream) is type(sample_offset) is int
        or (device is not None and device != _CPU)
        or _choice.name not in _CHOSEN
        or _modes()
        or _transforms()
        or _profiled()
    ):
        return None
    for n in shape:
        if type(n) is not int or n < 0:
            return None
    samples, elements = (1, shape[0]) if len(shape) == 1 else _samples_elements(shape)
    number = TYPE_NUMBER.get(_default_dtype() if dtype is None else dtype)
    if (
        number is None
        or samples * elements > FEW
        or not (0 <= stream < 2**32 and 0 <= sample_offset <= 2**32 - samples)
    ):
        return None
    # What is given as None costs as much as what is not.
    out = _empty(shape) if dtype is device is None else _empty(shape, dtype=dtype, device=device)
    if not out.is_cpu:
        return None
    place = place_of_seed(seed, generator)
    if place is None:
        return None
    _DIRECT[name](
        out.data_ptr(),
        number,
        samples,
        elements,
        place,
        0,
        stream,
        sample_offset,
        _threads(),
    )
    return out


_COUNTER = "Tensor seed, SymInt[] shape, int stream, SymInt sample_offset"

_words = Kernel(
    f"random_words({_COUNTER}) -> Tensor",
    reference=_words_kernel,
    fake=_fake,
    cpu=_words_cpu,
    cuda=_words_cuda,
)
_uniform = Kernel(
    f"random_uniform({_COUNTER}, ScalarType dtype) -> Tensor",
    reference=_uniform_kernel,
    fake=_fake,
    cpu=_numbers_cpu("random_uniform"),
    cuda=_numbers_cuda("random_uniform"),
)
_normal = Kernel(
    f"random_normal({_COUNTER}, ScalarType dtype) -> Tensor",
    reference=_normal_kernel,
    fake=_fake,
    cpu=_numbers_cpu("random_normal"),
    cuda=_numbers_cuda("random_normal"),
)
