"""Layers of Glow (Kingma and Dhariwal 2018): normalisation, channel mixing, and whole steps."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from pyfastgan._names import check_choice
from pyfastgan.ops import affine_coupling, glow_steps
from pyfastgan.ops._common import accumulation
from pyfastgan.ops._glow_parts import mix_channels
from pyfastgan.ops._glow_step import GlowParameters
from pyfastgan.ops.affine_coupling import SCALES


def _positions(x: Tensor) -> int:
    return math.prod(x.shape[2:])


def _check_channels(x: Tensor, channels: int) -> None:
    if x.dim() < 2 or x.size(1) != channels:
        raise ValueError(
            f"x must have {channels} channels in dimension 1, got shape {tuple(x.shape)}"
        )


def _along(v: Tensor, x: Tensor) -> Tensor:
    return v.to(x.dtype).reshape(1, -1, *[1] * (x.dim() - 2))


def _mean_over_ranks(total: Tensor, count: int) -> Tensor:
    """Sums over all ranks, divided by the elements of all ranks."""
    both = torch.cat((total, total.new_tensor([float(count)])))
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.all_reduce(both)
    return both[:-1] / both[-1]


class ActNorm(nn.Module):
    """(x + bias) exp(log_scale) over the channels of (N, C, ...), with statistics of a first batch.

    `init(batch)` sets both so that the batch, of all ranks together, comes out with mean 0 and variance 1. Nothing else
    initialises the layer, in training or in evaluation; used before, it raises an error. A channel that does not vary
    keeps the scale 1.

    Args:
        channels: C; at least 1.

    State: bias, log_scale (C,), and `initialized`, a flag on the device, so that a saved model knows.
    """

    initialized: Tensor

    def __init__(self, channels: int) -> None:
        super().__init__()
        if channels < 1:
            raise ValueError(f"channels must be at least 1, got {channels}")
        self.bias = nn.Parameter(torch.zeros(channels))
        self.log_scale = nn.Parameter(torch.zeros(channels))
        self.register_buffer("initialized", torch.tensor(False))
        self._ready = False  # what is known of the flag on the host

    @torch.no_grad()
    def init(self, batch: Tensor) -> Tensor:
        """Takes the statistics of `batch` (N, C, ...) and returns it normalised, for the next layer to see.

        Raises:
            ValueError: the batch is empty or has another number of channels.
        """
        _check_channels(batch, self.bias.numel())
        if batch.numel() == 0:
            raise ValueError(f"batch must not be empty, got shape {tuple(batch.shape)}")
        wide = batch.transpose(0, 1).flatten(1).double()
        mean = _mean_over_ranks(wide.sum(1), wide.size(1))
        variance = _mean_over_ranks((wide - mean[:, None]).square().sum(1), wide.size(1))
        # What rounding leaves of a constant channel in the batch's own precision is no variance.
        noise = (torch.finfo(batch.dtype).eps * mean.abs()).square().clamp(min=1e-30)
        self.bias.copy_(-mean)
        self.log_scale.copy_(
            torch.where(variance > noise, -0.5 * variance.log(), torch.zeros_like(mean))
        )
        self.initialized.fill_(True)
        self._ready = True
        return (batch + _along(self.bias, batch)) * _along(self.log_scale.exp(), batch)

    def check_initialized(self) -> None:
        """Raises RuntimeError if `init` has not been called and no initialised state was loaded."""
        if not self._ready:
            # Read once, and again only while it says no: after that there is no synchronisation.
            self._ready = bool(self.initialized)
        if not self._ready:
            raise RuntimeError(
                "ActNorm is not initialized: call init(batch) with the first data, or load a state"
            )

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        super()._load_from_state_dict(*args, **kwargs)
        self._ready = False

    def _logdet(self, x: Tensor) -> Tensor:
        wide = accumulation(x.dtype)
        return (_positions(x) * self.log_scale.to(wide).sum()).expand(x.size(0))

    def forward(self, x: Tensor, condition: Tensor | None = None) -> tuple[Tensor, Tensor]:
        _check_channels(x, self.bias.numel())
        self.check_initialized()
        return (x + _along(self.bias, x)) * _along(self.log_scale.exp(), x), self._logdet(x)

    def inverse(self, y: Tensor, condition: Tensor | None = None) -> tuple[Tensor, Tensor]:
        _check_channels(y, self.bias.numel())
        self.check_initialized()
        return y * _along((-self.log_scale).exp(), y) - _along(self.bias, y), -self._logdet(y)

    def extra_repr(self) -> str:
        return f"{self.bias.numel()}"


class InvertibleConv1x1(nn.Module):
    """y = W x over the channels of (N, C, ...), W invertible, a random rotation at first.

    Args:
        channels: C.
        lu: W = P L U with a fixed permutation P, unit lower L and upper U, whose diagonal keeps its signs: the
            log-determinant is a sum, and W cannot become singular.

    The inverse that sampling uses is kept until the weight changes, in place or by loading a state.

    Raises, when it is called:
        ValueError: W is singular (on a GPU only `inverse` can tell).
    """

    permutation: Tensor
    sign: Tensor

    def __init__(self, channels: int, *, lu: bool = False) -> None:
        super().__init__()
        if channels < 1:
            raise ValueError(f"channels must be at least 1, got {channels}")
        self.channels, self.lu = channels, lu
        rotation = torch.linalg.qr(torch.randn(channels, channels, dtype=torch.float64))[0]
        if lu:
            permutation, lower, upper = torch.linalg.lu(rotation)
            diagonal = upper.diagonal()
            self.register_buffer("permutation", permutation.float())
            self.register_buffer("sign", diagonal.sign().float())
            self.lower = nn.Parameter(lower.tril(-1).float())
            self.upper = nn.Parameter(upper.triu(1).float())
            self.log_diagonal = nn.Parameter(diagonal.abs().log().float())
        else:
            self.weight = nn.Parameter(rotation.float())
        self._cached: tuple[Any, Tensor] | None = None

    def matrix(self) -> Tensor:
        """W (C, C)."""
        if not self.lu:
            return self.weight
        lower = self.lower.tril(-1) + torch.eye(
            self.channels, device=self.lower.device, dtype=self.lower.dtype
        )
        upper = self.upper.triu(1) + torch.diag(self.sign * self.log_diagonal.exp())
        # Rounded, it would have another determinant.
        with torch.autocast(lower.device.type, enabled=False):
            return self.permutation @ lower @ upper

    def log_abs_det(self) -> Tensor:
        """log |det W|, a scalar in float32 or better."""
        return conv_log_abs_dets([self])[0]

    def inverse_matrix(self) -> Tensor:
        """The inverse of W, by float64; differentiable where gradients are recorded.

        Raises:
            ValueError: W is singular.
        """
        tensors = list(self.parameters())
        recorded = torch.is_grad_enabled() and any(t.requires_grad for t in tensors)
        # Tensors made in inference mode count no changes.
        countable = not recorded and not any(t.is_inference() for t in tensors)
        key = (
            [(t.data_ptr(), t._version, t.dtype, t.device) for t in tensors] if countable else None
        )
        if self._cached is not None and key is not None and self._cached[0] == key:
            return self._cached[1]
        matrix = self.matrix()
        inverse, info = torch.linalg.inv_ex(matrix.double())
        if info.item() != 0 or not torch.isfinite(inverse).all():
            raise ValueError("the weight of InvertibleConv1x1 is singular: it has no inverse")
        inverse = inverse.to(matrix.dtype)
        if key is not None:
            self._cached = (key, inverse)
        return inverse

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_cached": None}

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        self._cached = None
        super()._load_from_state_dict(*args, **kwargs)

    def forward(self, x: Tensor, condition: Tensor | None = None) -> tuple[Tensor, Tensor]:
        _check_channels(x, self.channels)
        log = self.log_abs_det()
        check_not_singular(log)
        return mix_channels(x, self.matrix()), self._logdet(x, log)

    def inverse(self, y: Tensor, condition: Tensor | None = None) -> tuple[Tensor, Tensor]:
        _check_channels(y, self.channels)
        return mix_channels(y, self.inverse_matrix()), -self._logdet(y, self.log_abs_det())

    def _logdet(self, x: Tensor, log: Tensor) -> Tensor:
        return (_positions(x) * log.to(accumulation(x.dtype))).expand(x.size(0))

    def extra_repr(self) -> str:
        return f"{self.channels}, lu={self.lu}"


def check_not_singular(log_abs_dets: Tensor) -> None:
    """Raises ValueError where one is minus infinity, if that can be seen without waiting for a GPU."""
    if (
        log_abs_dets.device.type == "cpu"
        and not torch.compiler.is_compiling()
        and torch.isneginf(log_abs_dets).any()
    ):
        raise ValueError("the weight of InvertibleConv1x1 is singular: its log-determinant is -inf")


def conv_log_abs_dets(convs: Sequence[InvertibleConv1x1]) -> list[Tensor]:
    """log |det W| of each; plain ones of equal width in one call."""
    found: dict[int, Tensor] = {}
    plain: dict[tuple[int, torch.device], list[int]] = {}
    for k, conv in enumerate(convs):
        if conv.lu:
            found[k] = conv.log_diagonal.to(accumulation(conv.log_diagonal.dtype)).sum()
        else:
            plain.setdefault((conv.channels, conv.weight.device), []).append(k)
    for places in plain.values():
        stack = torch.stack([convs[k].weight for k in places])
        logs = torch.linalg.slogdet(stack.double())[1].to(accumulation(stack.dtype))
        found |= zip(places, logs.unbind(), strict=True)
    return [found[k] for k in range(len(convs))]


class GlowStep(nn.Module):
    """ActNorm, 1x1 convolution and affine coupling, by `pyfastgan.ops.glow_step`.

    Args:
        channels: C; even.
        network: takes (N, C / 2, ...), and the condition if there is one, and gives (N, C, ...): the raw scale of the
            second half, then its shift.
        lu: of the convolution.
        scale, clamp, shift_first: of the coupling; the defaults are Glow's.
        recompute: keep the output alone for the backward pass.

    Children: actnorm, conv, network.
    """

    def __init__(
        self,
        channels: int,
        network: nn.Module,
        *,
        lu: bool = False,
        scale: str = "sigmoid",
        clamp: float = 2.0,
        shift_first: bool = True,
        recompute: bool = True,
    ) -> None:
        super().__init__()
        if channels < 2 or channels % 2:
            raise ValueError(f"channels must be even, got {channels}")
        check_choice("scale", scale, SCALES)
        self.actnorm, self.conv = ActNorm(channels), InvertibleConv1x1(channels, lu=lu)
        self.network = network
        self.settings: dict[str, Any] = {"scale": scale, "clamp": clamp, "shift_first": shift_first}
        self.recompute = recompute

    def forward(self, x: Tensor, condition: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return run_glow_steps([self], x, condition, self.recompute)

    def inverse(self, y: Tensor, condition: Tensor | None = None) -> tuple[Tensor, Tensor]:
        _check_channels(y, self.conv.channels)
        y1, y2 = y.chunk(2, 1)
        out = self.network(y1) if condition is None else self.network(y1, condition)
        raw, shift = out.to(y.dtype).chunk(2, 1)
        z2, logdet = affine_coupling(y2, raw, shift, inverse=True, **self.settings)
        z, more = self.conv.inverse(torch.cat((y1, z2), 1))
        x, last = self.actnorm.inverse(z)
        return x, logdet + more + last

    @torch.no_grad()
    def init(self, batch: Tensor, condition: Tensor | None = None) -> Tensor:
        """Initialises the ActNorm from `batch` and returns the step's output, for the next one to see."""
        self.actnorm.init(batch)
        return run_glow_steps([self], batch, condition, False)[0]

    def extra_repr(self) -> str:
        return ", ".join(
            [*(f"{k}={v!r}" for k, v in self.settings.items()), f"recompute={self.recompute}"]
        )


def run_glow_steps(
    steps: Iterable[GlowStep], x: Tensor, condition: Tensor | None = None, recompute: bool = True
) -> tuple[Tensor, Tensor]:
    """A row of steps of one width and one kind of coupling. With recompute it keeps the last output alone, however many
    steps there are; the convolutions' log-determinants are computed in one call.

    Raises:
        ValueError: the steps' couplings are of different kinds.
        RuntimeError: an ActNorm was not initialised.
    """
    steps = list(steps)
    if not steps:
        return x, x.new_zeros(x.size(0), dtype=accumulation(x.dtype))
    if any(step.settings != steps[0].settings for step in steps):
        raise ValueError("steps must have one kind of coupling, got several")
    for step in steps:
        _check_channels(x, step.conv.channels)
        step.actnorm.check_initialized()
    logs = conv_log_abs_dets([step.conv for step in steps])
    check_not_singular(torch.stack(logs))
    parameters = [
        GlowParameters(s.actnorm.bias, s.actnorm.log_scale, s.conv.matrix(), log, s.network)
        for s, log in zip(steps, logs, strict=True)
    ]
    return glow_steps(x, parameters, condition=condition, recompute=recompute, **steps[0].settings)
