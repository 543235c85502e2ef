"""nearest_code: for each vector the nearest of K codes, without an N x K matrix.

    index[n] = argmin over k of |x[n] - codebook[k]|^2, the leftmost of equal scores
    squared_distance[n] = |x[n] - codebook[index[n]]|^2

    x                 (N, D) of any layout
    codebook          (K, D) of x's dtype, at least one code
    index             (N,) int64
    squared_distance  (N,), float32, or float64 for float64

The search compares x.e - |e|^2 / 2 in the type of squared_distance, so the index is the exact one
wherever two codes differ by more than the rounding of such a sum; the distance is then taken from
the difference of the two vectors.

On a CPU with AVX512-VNNI products of 16-bit integers say first which codes may be the nearest at
all, at twice the rate of float32 products; vectors for which more than one is left go through the
float32 search. Index and distance are the same to the last bit. So the floor is not the float32
matrix product N x D x K, the limit that the benchmark names, but half of it.

squared_distance is differentiable any number of times in x and codebook, which is d/dx =
2 (x - e), d/de = -2 (x - e) for the chosen code; the first order by a gather and `code_sums`, those
above by torch's own operations. The index has no gradient. Forward mode is served by the reference.
Deterministic on CPUs and GPUs.

A vector that holds a NaN gets index 0 and the distance NaN; a code that holds one is the nearest of
all, as it is to `torch.argmin`. Under autocast the vectors and codes are taken in float32.
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
    apply,
    check_float,
    forward_mode,
    needs_grad,
    under_autocast,
)
from ._registry import FLOATS, BadCall, Kernel, Op, Row, Sample, T, register

# Vectors whose scores the reference holds at a time.
_CHUNK = 4096


def _search(x: Tensor, codebook: Tensor) -> Tensor:
    half_square = 0.5 * codebook.square().sum(1)
    scores = (part @ codebook.T - half_square for part in x.split(_CHUNK))
    # A code at infinity is never near; its scores may be infinity minus infinity.
    scores = (score.masked_fill(half_square == math.inf, -math.inf) for score in scores)
    return torch.cat([torch.argmax(score, 1) for score in scores])


def nearest_code_reference(x: Tensor, codebook: Tensor) -> tuple[Tensor, Tensor]:
    """The definition in plain PyTorch, whose distance is differentiable by autograd."""
    dtype = accumulation(x.dtype)
    x, codebook = x.to(dtype), codebook.to(dtype)
    index = _search(x.detach(), codebook.detach())
    return index, (x - codebook[index]).square().sum(1)


def _fake(x: Tensor, codebook: Tensor) -> tuple[Tensor, Tensor]:
    rows = x.size(0)
    return x.new_empty(rows, dtype=torch.int64), x.new_empty(rows, dtype=accumulation(x.dtype))


def _cpu(x: Tensor, codebook: Tensor) -> tuple[Tensor, Tensor]:
    x, codebook = x.contiguous(), codebook.contiguous()
    index, distance = _fake(x, codebook)
    _backends.native("_cpu").nearest_code(
        x.data_ptr(),
        codebook.data_ptr(),
        index.data_ptr(),
        distance.data_ptr(),
        TYPE_NUMBER[x.dtype],
        *(x.size(0), *codebook.shape),
        1,  # screened
        torch.get_num_threads(),
    )
    return index, distance


def _sums_reference(x: Tensor, index: Tensor, codes: int) -> tuple[Tensor, Tensor]:
    # Sorted, since an addition by index has no fixed order on a GPU.
    x = x.to(accumulation(x.dtype))
    one = torch.ones_like(index)
    counts = torch.zeros(codes, dtype=torch.int64, device=x.device).scatter_add_(0, index, one)
    rows = x[torch.argsort(index, stable=True)]
    sums = torch.segment_reduce(rows, "sum", lengths=counts, axis=0, unsafe=True, initial=0)
    return counts.to(x.dtype), sums


def _sums_fake(x: Tensor, index: Tensor, codes: int) -> tuple[Tensor, Tensor]:
    dtype = accumulation(x.dtype)
    return x.new_empty(codes, dtype=dtype), x.new_empty((codes, x.size(1)), dtype=dtype)


def _sums_cpu(x: Tensor, index: Tensor, codes: int) -> tuple[Tensor, Tensor]:
    x, index = x.contiguous(), index.contiguous()
    counts, sums = _sums_fake(x, index, codes)
    _backends.native("_cpu").code_sums(
        x.data_ptr(),
        index.data_ptr(),
        counts.data_ptr(),
        sums.data_ptr(),
        TYPE_NUMBER[x.dtype],
        *(x.size(0), codes, x.size(1)),
        torch.get_num_threads(),
    )
    return counts, sums


_forward = Kernel(
    "nearest_code(Tensor x, Tensor codebook) -> (Tensor index, Tensor squared_distance)",
    reference=nearest_code_reference,
    fake=_fake,
    cpu=_cpu,
    triton="nearest_code:nearest_code",
)
# How many vectors chose each code, and their sum, in the type that is computed in. The indices must
# be in range.
code_sums = Kernel(
    "code_sums(Tensor x, Tensor index, SymInt codes) -> (Tensor counts, Tensor sums)",
    reference=_sums_reference,
    fake=_sums_fake,
    cpu=_sums_cpu,
    triton="nearest_code:code_sums",
)


class _NearestCode(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, codebook: Tensor) -> tuple[Tensor, Tensor]:
        return _forward(x, codebook)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        ctx.mark_non_differentiable(output[0])
        ctx.save_for_backward(*inputs, output[0])

    @staticmethod
    def backward(ctx: Any, _: Any, cotangent: Tensor) -> tuple[Tensor | None, Tensor | None]:
        x, codebook, index = ctx.saved_tensors
        dtype = accumulation(x.dtype)
        dx = (x.to(dtype) - codebook[index].to(dtype)) * (2 * cotangent)[:, None]
        dcodebook = None
        if ctx.needs_input_grad[1]:
            if needs_grad(cotangent, x, codebook):
                dcodebook = torch.zeros_like(codebook, dtype=dtype).index_add(0, index, -dx)
            else:
                dcodebook = -code_sums(dx, index, codebook.size(0))[1]
            dcodebook = dcodebook.to(codebook.dtype)
        return dx.to(x.dtype) if ctx.needs_input_grad[0] else None, dcodebook


def _check(x: Tensor, codebook: Tensor) -> None:
    check_float("x", x)
    check_float("codebook", codebook)
    if x.dim() != 2:
        raise ValueError(f"x must have shape (N, D), got {tuple(x.shape)}")
    if codebook.dim() != 2 or codebook.size(0) < 1:
        raise ValueError(
            f"codebook must have shape (K, D) with at least one code, got {tuple(codebook.shape)}"
        )
    if x.size(1) != codebook.size(1):
        raise ValueError(
            f"codebook must be as wide as x, {x.size(1)}, got {codebook.size(1)} "
            f"(x {tuple(x.shape)}, codebook {tuple(codebook.shape)})"
        )
    if codebook.device != x.device:
        raise ValueError(f"codebook must be on {x.device} like x, got {codebook.device}")
    if codebook.dtype != x.dtype:
        raise TypeError(f"codebook must have the dtype of x, {x.dtype}, got {codebook.dtype}")


def nearest_code(x: Tensor, codebook: Tensor) -> tuple[Tensor, Tensor]:
    """The nearest code of each vector and its squared distance, without an N x K matrix.

    Args:
        x: (N, D) float32, float64, bfloat16 or float16, of any layout.
        codebook: (K, D) of x's dtype and device, K at least 1.

    Returns:
        index (N,) int64, the leftmost of equally near codes, and squared_distance (N,) in float32
        (float64 for float64), differentiable in x and codebook.

    Raises:
        TypeError, ValueError: an argument has a wrong type, shape, device or dtype; the message
            names it.
    """
    if isinstance(x, Tensor) and under_autocast(x.device):
        x, codebook = x.float(), codebook.float()
    _check(x, codebook)
    if forward_mode():
        return nearest_code_reference(x, codebook)
    return apply(_NearestCode, x, codebook) if needs_grad(x, codebook) else _forward(x, codebook)


def _samples() -> tuple[Sample, ...]:
    return (
        # Whole blocks of codes and tiles of vectors; an odd end of each, and of the width.
        Sample("whole tiles", (T((96, 16)), T((64, 16)))),
        Sample("odd ends", (T((13, 7)), T((11, 7)))),
        Sample("several chunks, pieces", (T((201, 131)), T((70, 131)))),
        # More than 256 KiB of codes are met in several goes.
        Sample("several goes", (T((30, 300)), T((300, 300)))),
        Sample("one code", (T((5, 3)), T((1, 3)))),
        Sample("no vectors", (T((0, 3)), T((4, 3)))),
    )


def _bad_calls() -> tuple[BadCall, ...]:
    x, book = torch.zeros(5, 3), torch.zeros(4, 3)
    return (
        BadCall("another width", (x, book[:, :2]), {}, ValueError, "codebook must be as wide as x, 3, got 2"),
        BadCall("no codes", (x, book[:0]), {}, ValueError, "at least one code"),
        BadCall("images", (x[None], book), {}, ValueError, r"x must have shape \(N, D\)"),
        BadCall("a vector of codes", (x, book[0]), {}, ValueError, "codebook must have shape"),
        BadCall("integers", (x.long(), book), {}, TypeError, "x must be float32"),
        BadCall("another dtype", (x, book.double()), {}, TypeError, "codebook must have the dtype of x"),
        BadCall("another device", (x, book.to("meta")), {}, ValueError, "codebook must be on cpu"),
    )  # fmt: skip


def _row(rows: int, codes: int, width: int) -> Row:
    def make() -> dict[str, Callable[[], Any]]:
        x, book = torch.randn(rows, width), torch.randn(codes, width)

        def eager() -> tuple[Tensor, Tensor]:
            distance = torch.cdist(x, book)
            nearest = distance.argmin(1)
            return nearest, distance.gather(1, nearest[:, None])[:, 0].square()

        return {"ours": lambda: nearest_code(x, book), "eager": eager}

    return Row(
        "nearest_code",
        f"{rows} x {codes} x {width}",
        make,
        bytes=4 * (rows * width + codes * width + 3 * rows),
        flops=2 * rows * codes * width,
    )


def _rows() -> Sequence[Row]:
    return [_row(16384, 512, 64), _row(16384, 1024, 256), _row(1024, 512, 64)]


register(
    Op(
        name="nearest_code",
        function=nearest_code,
        reference=nearest_code_reference,
        kernels=(_forward, code_sums),
        samples=_samples(),
        bad_calls=_bad_calls(),
        orders=1,  # as the checks see it: more come from torch's operations
        epsilon={dtype: 16 * torch.finfo(accumulation(dtype)).eps for dtype in FLOATS},
        rows=_rows,
    )
)
