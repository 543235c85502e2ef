"""sample_discretized_mix_logistic: images drawn from the distribution of `discretized_mix_logistic`."""

from __future__ import annotations

import torch
from torch import Tensor

from ._common import accumulation
from .discretized_mix_logistic import check_parameters, split_parameters
from .random import random_uniform


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
    dtype = accumulation(params.dtype)
    logits, means, log_scales, coefficients = split_parameters(params.to(dtype), channels)
    rows, mixtures, *pixels = logits.shape
    uniform = random_uniform(
        (rows, mixtures + channels, *pixels),
        seed,
        stream=stream,
        sample_offset=sample_offset,
        generator=generator,
        dtype=dtype,
        device=params.device,
    )
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
