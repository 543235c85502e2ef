"""glow_step: actnorm, 1x1 convolution and affine coupling, for one step or a row of them, with a backward that
computes the activations anew from the outputs.

A step (Kingma and Dhariwal 2018) maps x (N, C, ...) to

    z = W ((x + bias) exp(log_scale)),  (z1, z2) the halves of its channels,
    y = (z1, coupling of z2 with network(z1)),

where the network gives (N, C, ...): the raw scale of z2, then its shift. Actnorm and convolution are one affine map
z = M x + c, computed in one pass.

With recompute, a row of steps keeps nothing but its last output. The backward pass goes from step to step: it runs
the network once more, with gradients, undoes the coupling and the affine map, and so has the step's input. The memory
does not grow with the number of steps, and the gradients are those of the stored form up to the rounding of the
inverse. The network then has to give the same result twice: one that draws random numbers (dropout) or whose state the
forward pass changes (batch norm) is refused in training mode.

Differentiable once with recompute (a second derivative raises an error), any number of times without. Deterministic if
the networks are. The log-determinant is summed in float32 or better.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ._common import accumulation, check_float, needs_grad
from ._couple_channels import couple_channels, halves, serves
from ._glow_parts import couple, mix, uncouple, unmix


class GlowParameters(NamedTuple):
    """What a step is made of.

    bias, log_scale (C,): the actnorm. weight (C, C): the convolution. log_abs_det: of the weight, a scalar.
    network: (N, C / 2, ...), and a condition if there is one, to (N, C, ...).
    """

    bias: Tensor
    log_scale: Tensor
    weight: Tensor
    log_abs_det: Tensor
    network: nn.Module


def _affine_maps(steps: Sequence[GlowParameters]) -> tuple[Sequence[Tensor], Sequence[Tensor]]:
    """The matrix and the offset of each step's actnorm and convolution."""
    scaled = torch.stack([p.weight for p in steps])
    scaled = scaled * torch.stack([p.log_scale for p in steps]).exp()[:, None]
    offsets = (scaled * torch.stack([p.bias for p in steps])[:, None]).sum(2)
    return scaled.unbind(), offsets.unbind()


def _call_network(network: nn.Module, z1: Tensor, condition: Tensor | None) -> Tensor:
    out: Tensor = network(z1) if condition is None else network(z1, condition)
    if out.shape != (z1.size(0), 2 * z1.size(1), *z1.shape[2:]):
        raise ValueError(
            f"network must give shape {(z1.size(0), 2 * z1.size(1), *z1.shape[2:])}, a raw scale and a shift for each "
            f"element of the other half, got {tuple(out.shape)}"
        )
    return out


def _lying_as(z: Tensor, out: Tensor) -> Tensor:
    """A network's output in z's dtype, and lying as z does: one copy, where the coupling would make two and its
    backward pass two more."""
    out = out.to(z.dtype)
    return out.contiguous() if z.is_contiguous() else out


def _step(
    x: Tensor,
    matrix: Tensor,
    offset: Tensor,
    network: nn.Module,
    condition: Tensor | None,
    settings: dict[str, Any],
) -> tuple[Tensor, Tensor]:
    z = mix(x, matrix, offset)
    if serves(z):
        z1, whole = halves(z, z.size(1) // 2)
        out = _lying_as(z, _call_network(network, z1, condition))
        return couple_channels(whole, out, **settings)
    out = _call_network(network, z.chunk(2, 1)[0], condition)
    return couple(z, _lying_as(z, out), **settings)


def _step_backward(
    y: Tensor,
    dy: Tensor,
    dlogdet: Tensor,
    condition: Tensor | None,
    matrix: Tensor,
    inverse: tuple[Tensor, Tensor],
    parameters: Sequence[Tensor],
    network: nn.Module,
    settings: dict[str, Any],
    autocast: tuple[str, torch.dtype, bool],
) -> tuple[Tensor, Tensor, Tensor | None, list[Tensor | None]]:
    """The step's input, and the gradients of it, of the condition, and of matrix, offset and the network."""
    with torch.enable_grad():
        z1 = y.chunk(2, 1)[0].detach().requires_grad_()
        given = condition
        if condition is not None and condition.is_floating_point():
            given = condition.detach().requires_grad_(condition.requires_grad)
        with torch.autocast(*autocast):
            out = _call_network(network, z1, given)
    z2, dz2, dout = uncouple(y, _lying_as(y, out.detach()), dy, dlogdet, **settings)
    dout = dout.to(out.dtype)
    leaves = [z1, *parameters]
    if given is not None and given.requires_grad:
        leaves.append(given)
    found: list[Tensor | None] = [None] * len(leaves)
    if out.requires_grad:
        found = list(torch.autograd.grad(out, leaves, dout, allow_unused=True))
    dz1 = found.pop(0)
    dcondition = found.pop() if given is not None and given.requires_grad else None
    x, dx, dmatrix, doffset = unmix(y, z2, dy, dz1, dz2, matrix, *inverse)
    return x, dx, dcondition, [dmatrix.to(matrix.dtype), doffset.to(matrix.dtype), *found]


def _inverse_maps(
    matrices: Sequence[Tensor], offsets: Sequence[Tensor]
) -> list[tuple[Tensor, Tensor]]:
    """The matrix and the offset of the inverse of each affine map, by float64."""
    inverses = torch.linalg.inv(torch.stack(list(matrices)).double())
    back = -(inverses @ torch.stack(list(offsets)).double()[..., None]).squeeze(2)
    return list(zip(inverses.unbind(), back.unbind(), strict=True))


class _GlowSteps(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        networks: Sequence[nn.Module],
        counts: Sequence[int],
        settings: dict[str, Any],
        x: Tensor,
        condition: Tensor | None,
        *tensors: Tensor,
    ) -> tuple[Tensor, Tensor]:
        logs = []
        place = 0
        for network, count in zip(networks, counts, strict=True):
            x, log = _step(x, tensors[place], tensors[place + 1], network, condition, settings)
            logs.append(log)
            place += 2 + count
        ctx.save_for_backward(x, condition, *tensors)
        ctx.networks, ctx.counts, ctx.settings = networks, counts, settings
        device = x.device.type
        ctx.autocast = (device, torch.get_autocast_dtype(device), torch.is_autocast_enabled(device))
        return x, torch.stack(logs).sum(0)

    @staticmethod
    def backward(ctx: Any, dy: Tensor, dlogdet: Tensor) -> tuple[Any, ...]:
        y, condition, *tensors = ctx.saved_tensors
        if needs_grad(dy, dlogdet):
            raise RuntimeError(
                "glow_step with recompute can be differentiated once, and this asks for a second derivative; "
                "recompute=False has all of them"
            )
        gradients: list[Tensor | None] = []
        dcondition = None
        places = list(itertools.accumulate((2 + count for count in ctx.counts), initial=0))
        inverses = _inverse_maps(
            [tensors[k] for k in places[:-1]], [tensors[k + 1] for k in places[:-1]]
        )
        for k in reversed(range(len(ctx.networks))):
            matrix, _, *parameters = tensors[places[k] : places[k + 1]]
            of_step = (parameters, ctx.networks[k], ctx.settings, ctx.autocast)
            y, dy, more, found = _step_backward(
                y, dy, dlogdet, condition, matrix, inverses[k], *of_step
            )
            gradients = found + gradients
            if more is not None:
                dcondition = more if dcondition is None else dcondition + more
        return None, None, None, dy, dcondition, *gradients


_CHANGING = (
    nn.modules.batchnorm._BatchNorm,
    nn.modules.dropout._DropoutNd,
    nn.RReLU,
)


def _check(x: Tensor, steps: Sequence[GlowParameters], recompute: bool) -> None:
    check_float("x", x)
    if x.dim() < 2 or x.size(1) % 2:
        raise ValueError(
            f"x must have an even number of channels in dimension 1, got shape {tuple(x.shape)}"
        )
    channels = x.size(1)
    for p in steps:
        for name, t, shape in (
            ("bias", p.bias, (channels,)),
            ("log_scale", p.log_scale, (channels,)),
            ("weight", p.weight, (channels, channels)),
        ):
            check_float(name, t)
            if t.shape != shape:
                raise ValueError(f"{name} must have shape {shape}, got {tuple(t.shape)}")
            if t.device != x.device:
                raise ValueError(f"{name} must be on {x.device} like x, got {t.device}")
        if not recompute:
            continue
        for name, module in p.network.named_modules():
            if isinstance(module, _CHANGING) and module.training:
                raise ValueError(
                    f"network must give the same result twice with recompute, but its {name or 'root'} is a "
                    f"{type(module).__name__} in training mode"
                )


def glow_steps(
    x: Tensor,
    steps: Sequence[GlowParameters],
    *,
    condition: Tensor | None = None,
    scale: str = "sigmoid",
    clamp: float = 2.0,
    shift_first: bool = True,
    recompute: bool = True,
) -> tuple[Tensor, Tensor]:
    """A row of Glow steps that keeps one activation, however many they are.

    Args and errors as for `glow_step`; `steps` holds what each of them is made of.
    """
    _check(x, steps, recompute)
    settings = {"scale": scale, "clamp": clamp, "shift_first": shift_first}
    wide = accumulation(x.dtype)
    if not steps:
        return x, x.new_zeros(x.size(0), dtype=wide)
    of_maps = torch.stack([p.log_abs_det.to(wide) for p in steps]).sum()
    of_maps = of_maps + torch.stack([p.log_scale for p in steps]).to(wide).sum()
    of_maps = of_maps * math.prod(x.shape[2:])
    maps = list(zip(*_affine_maps(steps), strict=True))
    if recompute and torch.is_grad_enabled():
        tensors: list[Tensor] = []
        counts = []
        for p, affine in zip(steps, maps, strict=True):
            own = [q for q in p.network.parameters() if q.requires_grad]
            tensors += [*affine, *own]
            counts.append(len(own))
        if needs_grad(x, condition, *tensors):
            networks = [p.network for p in steps]
            y, coupled = _GlowSteps.apply(networks, counts, settings, x, condition, *tensors)
            return y, coupled + of_maps
    logs = []
    for p, affine in zip(steps, maps, strict=True):
        x, log = _step(x, *affine, p.network, condition, settings)
        logs.append(log)
    return x, torch.stack(logs).sum(0) + of_maps


def glow_step(
    x: Tensor,
    bias: Tensor,
    log_scale: Tensor,
    weight: Tensor,
    network: nn.Module,
    *,
    log_abs_det: Tensor | None = None,
    condition: Tensor | None = None,
    scale: str = "sigmoid",
    clamp: float = 2.0,
    shift_first: bool = True,
    recompute: bool = True,
) -> tuple[Tensor, Tensor]:
    """Actnorm, 1x1 convolution and affine coupling.

    Args:
        x: (N, C, ...), C even, of any float dtype.
        bias, log_scale: (C,), (x + bias) exp(log_scale).
        weight: (C, C), invertible.
        network: takes (N, C / 2, ...), and the condition if there is one, and gives (N, C, ...).
        log_abs_det: of the weight, a scalar; computed if it is not given.
        condition: what the network takes beside its input.
        scale, clamp, shift_first: of `affine_coupling`.
        recompute: keep only y, and compute the activations anew in the backward pass.

    Returns:
        y of x's shape and dtype, and logdet (N,) in float32 (float64 for float64).

    Raises:
        TypeError, ValueError: an argument has a wrong type, shape, device or value, or a network
            cannot be run twice; the message names it.
    """
    if log_abs_det is None:
        log_abs_det = torch.linalg.slogdet(weight.double())[1]
    return glow_steps(
        x,
        (GlowParameters(bias, log_scale, weight, log_abs_det, network),),
        condition=condition,
        scale=scale,
        clamp=clamp,
        shift_first=shift_first,
        recompute=recompute,
    )
