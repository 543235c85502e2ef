"""sample_discretized_mix_logistic: images drawn from the distribution of `discretized_mix_logistic`."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from . import _backends
from ._common import TYPE_NUMBER, accumulation
from ._registry import Kernel
from .discretized_mix_logistic import check_parameters, split_parameters
from .random import _launch_arguments, _uniform, check_counter, seed_tensor


def _draw_reference(
    params: Tensor, channels: int, seed: Tensor, stream: int, sample_offset: int
) -> Tensor:
    dtype = accumulation(params.dtype)
    logits, means, log_scales, coefficients = split_parameters(params.to(dtype), channels)
    rows, mixtures, *pixels = logits.shape
    shape = (rows, mixtures + channels, *pixels)
    uniform = _uniform(seed, shape, stream, sample_offset, dtype)
    # The largest of logits with Gumbel noise is one drawn from their softmax.
    chosen = (logits - torch.log(-torch.log(uniform[:, :mixtures]))).argmax(1, keepdim=True)

    index = chosen[:, None].expand(-1, channels, *[-1] * (logits.dim() - 1))

    def of_chosen(parameters: Tensor) -> Tensor:
        return parameters.gather(2, index)[:, :, 0]

    noise = torch.log(uniform[:, mixtures:]) - torch.log1p(-uniform[:, mixtures:])
    drawn = of_chosen(means) + torch.exp(of_chosen(log_scales)) * noise
    values: list[Tensor] = []
    for channel in range(channels):
        value = drawn[:, channel]
        if coefficients is not None and channel:
            c = of_chosen(coefficients)
            value = value + (
                c[:, 0] * values[0] if channel == 1 else c[:, 1] * values[0] + c[:, 2] * values[1]
            )
        level = torch.round((value + 1) * 127.5).clamp(0, 255)
        values.append(level / 127.5 - 1)
    return torch.stack(values, 1).to(params.dtype)


def _draw_fake(
    params: Tensor, channels: int, seed: Tensor, stream: int, sample_offset: int
) -> Tensor:
    return params.new_empty((params.size(0), channels, *params.shape[2:]))


def _draw_cuda(
    params: Tensor, channels: int, seed: Tensor, stream: int, sample_offset: int
) -> Tensor:
    params = params.contiguous()
    x = _draw_fake(params, channels, seed, stream, sample_offset)
    rows, planes, *pixels = params.shape
    sizes = (rows, channels, planes // (10 if channels == 3 else 3), math.prod(pixels))
    seed, (_, _, *noise) = _launch_arguments(seed, x.shape, stream, sample_offset)
    with torch.cuda.device(params.device):
        queue = torch.cuda.current_stream().cuda_stream
        run = _backends.native("_cuda").sample_discretized_mix_logistic
        run(params.data_ptr(), x.data_ptr(), TYPE_NUMBER[x.dtype], *sizes, *noise, queue)
    return x


_draw = Kernel(
    "sample_discretized_mix_logistic(Tensor params, int channels, Tensor seed, int stream, SymInt sample_offset) "
    "-> Tensor",
    reference=_draw_reference,
    fake=_draw_fake,
    cuda=_draw_cuda,
)


def sample_discretized_mix_logistic(
    params: Tensor,
    channels: int = 3,
    seed: int | Tensor | None = None,
    *,
    stream: int = 0,
    sample_offset: int = 0,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Images drawn from the very distribution that `discretized_mix_logistic` measures.

    Args:
        params: (N, 10 M, ...) for three channels, (N, 3 M, ...) for one.
        channels: 1 or 3.
        seed: a number, an int64 tensor with one number, or with one for each sample. None draws one
            from torch's generator, without a host sync.
        stream: separates uses under one seed; 0 to 2^32 - 1.
        sample_offset: the number of the first sample.
        generator: the torch generator that a missing seed is drawn from.

    Returns:
        (N, channels, ...) of params' dtype, one of the 256 values (k / 127.5) - 1 each: the logistic
        number is rounded to its bin, also before it shifts the means of later channels.

    Raises:
        TypeError, ValueError: an argument has a wrong type, shape or value; the message names it.
    """
    if channels not in (1, 3):
        raise ValueError(f"channels must be 1 or 3, got {channels}")
    check_parameters(params, channels)
    rows = params.size(0)
    check_counter(stream, sample_offset, rows)
    key = seed_tensor(seed, generator, params.device, rows)
    run = _draw if _draw.on_gpu(params.device) else _draw_reference
    return run(params.detach(), channels, key, stream, sample_offset)
