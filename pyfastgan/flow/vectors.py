"""Flows over vectors (N, D): dense RealNVP, neural spline flows, MAF and IAF."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from pyfastgan._names import check_choice
from pyfastgan.flow.layers import (
    AffineAutoregressive,
    Chain,
    Inverse,
    Permutation,
    SplineAutoregressive,
)
from pyfastgan.flow.model import Flow, condition_size
from pyfastgan.flow.networks import MADE, ResidualNet
from pyfastgan.nn import ActNorm, AffineCoupling, InvertibleConv1x1, SplineCoupling
from pyfastgan.ops.rational_quadratic_spline import PARAMETERISATIONS
from pyfastgan.training.config import check_number

MIXINGS = ("none", "reverse", "random", "lu")
# Of the affine couplings in front of splines: e^8 is more than tails need.
_FRONT = {"scale": "softclamp", "clamp": 8.0}


def alternating_mask(features: int, odd: bool) -> Tensor:
    """True for features 1, 3, ... (odd), or 0, 2, ..."""
    return torch.arange(features) % 2 == (1 if odd else 0)


def mixing_layers(mixing: str, features: int) -> list[nn.Module]:
    """What stands before each layer."""
    check_choice("mixing", mixing, MIXINGS)
    if mixing == "none":
        return []
    if mixing == "reverse":
        return [Permutation(torch.arange(features - 1, -1, -1))]
    if mixing == "random":
        return [Permutation(torch.randperm(features))]
    return [InvertibleConv1x1(features, lu=True)]


def coupling_layers(
    features: int,
    layers: int,
    make: Callable[[int, int, Tensor], nn.Module],
    mixing: str = "none",
) -> list[nn.Module]:
    """Couplings that transform odd and even features in turns.

    Args:
        make: (kept features, transformed features, mask) to a coupling.
    """
    check_number("layers", layers, int, at_least=1)
    if features < 2:
        raise ValueError(f"features must be at least 2 for a coupling, got {features}")
    made: list[nn.Module] = []
    for k in range(layers):
        mask = alternating_mask(features, odd=k % 2 == 0)
        changed = int(mask.sum())
        made += [*mixing_layers(mixing, features), make(features - changed, changed, mask)]
    return made


class DenseRealNVP(Flow):
    """Affine couplings over vectors (Dinh et al. 2017).

    Args:
        features: D, at least 2.
        layers: Couplings.
        width, blocks: Of their residual networks.
        scale: Of `pyfastgan.ops.affine_coupling`.
        actnorm: Whether an ActNorm stands before each coupling (in place of the paper's batch norm).
        classes, condition: As for `Flow`.
    """

    def __init__(
        self,
        features: int,
        *,
        layers: int = 8,
        width: int = 64,
        blocks: int = 2,
        scale: str = "tanh",
        actnorm: bool = True,
        classes: int | None = None,
        condition: int | None = None,
    ) -> None:
        extra = condition_size(classes, condition)

        def make(kept: int, changed: int, mask: Tensor) -> nn.Module:
            network = ResidualNet(kept, 2 * changed, width=width, blocks=blocks, condition=extra)
            coupling = AffineCoupling(features, network, mask=mask, scale=scale)
            return Chain([ActNorm(features), coupling]) if actnorm else coupling

        made = coupling_layers(features, layers, make)
        super().__init__(Chain(made), (features,), classes=classes, condition=condition)


class DenseNSF(Flow):
    """Rational-quadratic neural spline flow over vectors (Durkan et al. 2019).

    Args:
        features: D; at least 2 unless autoregressive.
        layers: Spline layers.
        autoregressive: Each feature by those before it (NSF-AR), instead of couplings (NSF-C).
        width, blocks: Of the residual networks, or of MADE.
        bins, tail_bound, parameterisation: Of the splines, which are the identity outside [-tail_bound, tail_bound].
        mixing: What stands before each layer: "none" (couplings still take turns), "reverse", "random" (permutations,
            stored with the model) or "lu", an invertible matrix; by default "none" for two features and "lu" for
            more, or "reverse" where it is autoregressive.
        affine: Affine couplings in front of the splines, each with an ActNorm: for data with tails that no bound holds.
        classes, condition: As for `Flow`.
    """

    def __init__(
        self,
        features: int,
        *,
        layers: int = 5,
        autoregressive: bool = False,
        width: int = 64,
        blocks: int = 2,
        bins: int = 8,
        tail_bound: float = 3.0,
        parameterisation: str = "nflows",
        mixing: str | None = None,
        affine: int = 0,
        classes: int | None = None,
        condition: int | None = None,
    ) -> None:
        extra = condition_size(classes, condition)
        check_choice("parameterisation", parameterisation, PARAMETERISATIONS)
        check_number("bins", bins, int, at_least=1)
        if mixing is None:
            mixing = "reverse" if autoregressive else "none" if features == 2 else "lu"
        options: dict[str, Any] = {"width": width, "blocks": blocks, "condition": extra}
        settings: dict[str, Any] = {"tail_bound": tail_bound, "parameterisation": parameterisation}
        each = SplineCoupling.numbers(bins, "linear", parameterisation)

        def front(kept: int, changed: int, mask: Tensor) -> nn.Module:
            network = ResidualNet(kept, 2 * changed, **options)
            return Chain(
                [ActNorm(features), AffineCoupling(features, network, mask=mask, **_FRONT)]  # type: ignore[arg-type]
            )

        def spline(kept: int, changed: int, mask: Tensor) -> nn.Module:
            network = ResidualNet(kept, each * changed, **options)
            start_as_identity(network.final_layer, bins, parameterisation)
            return SplineCoupling(features, network, bins=bins, mask=mask, **settings)

        made = coupling_layers(features, affine, front) if affine else []
        if affine:
            made.append(ActNorm(features))
        if autoregressive:
            check_number("layers", layers, int, at_least=1)
            for _ in range(layers):
                network = MADE(features, each, **options)
                start_as_identity(network.final_layer, bins, parameterisation)
                made += mixing_layers(mixing, features)
                made.append(SplineAutoregressive(network, **settings))
        else:
            made += coupling_layers(features, layers, spline, mixing)
        super().__init__(Chain(made), (features,), classes=classes, condition=condition)


class MAF(Flow):
    """Masked autoregressive flow (Papamakarios et al. 2017): log p(x) in one pass of each network, samples in D.

    Args:
        features: D.
        layers: Autoregressive layers.
        width, blocks: Of their `MADE` networks.
        scale: "softplus" as in nflows, or one of `pyfastgan.ops.affine_coupling`.
        mixing: As for `DenseNSF`.
        actnorm: Whether an ActNorm stands before each layer (in place of the paper's batch norm).
        classes, condition: As for `Flow`.
    """

    _inverted = False

    def __init__(
        self,
        features: int,
        *,
        layers: int = 5,
        width: int = 64,
        blocks: int = 2,
        scale: str = "softplus",
        mixing: str = "reverse",
        actnorm: bool = False,
        classes: int | None = None,
        condition: int | None = None,
    ) -> None:
        extra = condition_size(classes, condition)
        check_number("layers", layers, int, at_least=1)
        made: list[nn.Module] = []
        for _ in range(layers):
            network = MADE(features, 2, width=width, blocks=blocks, condition=extra)
            if scale == "softplus":  # 1 at first
                with torch.no_grad():
                    network.final_layer.bias[::2] = _UNIT_SOFTPLUS
            layer: nn.Module = AffineAutoregressive(network, scale=scale)
            if self._inverted:
                layer = Inverse(layer)
            if actnorm:
                made.append(ActNorm(features))
            made += [*mixing_layers(mixing, features), layer]
        super().__init__(Chain(made), (features,), classes=classes, condition=condition)


class IAF(MAF):
    """Inverse autoregressive flow (Kingma et al. 2016): samples in one pass of each network, log p(x) of other points
    in D. Arguments as for `MAF`."""

    _inverted = True


# softplus of this is 0.999: with nflows' least value of 0.001 a scale, or a derivative, of 1.
_UNIT_SOFTPLUS = float(torch.tensor(0.999, dtype=torch.float64).expm1().log())


@torch.no_grad()
def start_as_identity(layer: nn.Module, bins: int, parameterisation: str = "nflows") -> None:
    """Sets the biases of derivatives in a network's last layer, which is zero, so that every spline is the identity."""
    if parameterisation == "nflows":  # the others' are 1 at zero
        bias = layer.bias
        assert isinstance(bias, Tensor)
        bias.view(-1, 3 * bins - 1)[:, 2 * bins :] = _UNIT_SOFTPLUS
