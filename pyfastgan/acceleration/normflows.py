"""normflows: spline couplings and their autoregressive relative, affine couplings, Glow blocks."""

from __future__ import annotations

from typing import Any

import torch
from normflows import flows
from normflows.flows.affine.coupling import AffineCoupling as _AffineCoupling
from normflows.flows.neural_spline.autoregressive import (
    MaskedPiecewiseRationalQuadraticAutoregressive as _MaskedSpline,
)
from normflows.flows.neural_spline.coupling import (
    PiecewiseRationalQuadraticCDF as _SplineCDF,
)
from normflows.flows.neural_spline.coupling import (
    PiecewiseRationalQuadraticCoupling as _SplineCoupling,
)
from torch import Tensor

from pyfastgan.ops import affine_coupling
from pyfastgan.ops._glow_parts import mix_channels

from .splines import hidden_size, packed_spline
from .swap import Library, Swap, has_hooks, serves


class PiecewiseRationalQuadraticCoupling(_SplineCoupling):
    def _coupling_transform(
        self, inputs: Tensor, transform_params: Tensor, inverse: bool = False
    ) -> tuple[Tensor, Tensor]:
        hidden = hidden_size(self.transform_net)
        # Without it normflows warns, and says so in its own words.
        if hidden is None or not serves(inputs, transform_params):
            return super()._coupling_transform(inputs, transform_params, inverse)
        n, c, *positions = inputs.shape
        logits = transform_params.reshape(n, c, -1, *positions).movedim(2, -1)
        return packed_spline(self, inputs, logits, hidden, inverse)


class PiecewiseRationalQuadraticCDF(_SplineCDF):
    def _spline(self, inputs: Tensor, inverse: bool = False) -> tuple[Tensor, Tensor]:
        own = (self.unnormalized_widths, self.unnormalized_heights, self.unnormalized_derivatives)
        if not serves(inputs, *own):
            return super()._spline(inputs, inverse)
        logits = torch.cat(own, -1).expand(len(inputs), *inputs.shape[1:], -1)
        return packed_spline(self, inputs, logits, None, inverse)


class MaskedPiecewiseRationalQuadraticAutoregressive(_MaskedSpline):
    def _elementwise(
        self, inputs: Tensor, autoregressive_params: Tensor, inverse: bool = False
    ) -> tuple[Tensor, Tensor]:
        if not serves(inputs, autoregressive_params):
            return super()._elementwise(inputs, autoregressive_params, inverse)
        hidden = getattr(self.autoregressive_net, "hidden_features", None)
        logits = autoregressive_params.view(*inputs.shape[:2], self._output_dim_multiplier())
        return packed_spline(self, inputs, logits, hidden, inverse)


class AffineCoupling(_AffineCoupling):
    """From the base to data. With "sigmoid" that divides by sigmoid(s + 2), the inverse of Glow's (x - t) S."""

    def _couple(self, z: Any, inverse: bool) -> Any:
        z1, z2 = z
        params = self.param_map(z1)
        shift, raw = params[:, 0::2, ...], params[:, 1::2, ...]
        first = self.scale_map == "sigmoid"
        if first:
            shift, inverse = -shift, not inverse
        z2, logdet = affine_coupling(
            z2,
            raw,
            shift,
            scale="exp" if self.scale_map == "exp" else "sigmoid",
            shift_first=first,
            inverse=inverse,
        )
        return [z1, z2], logdet

    def forward(self, z: Any) -> Any:
        return self._couple(z, False) if serves(z[1]) else super().forward(z)

    def inverse(self, z: Any) -> Any:
        return self._couple(z, True) if serves(z[1]) else super().inverse(z)


class MaskedAffineFlow(flows.MaskedAffineFlow):
    def _couple(self, z: Tensor, inverse: bool) -> tuple[Tensor, Tensor]:
        kept, moved = self.b * z, 1 - self.b
        # As in normflows, what a network gives that is not finite is NaN.
        nan = float("nan")
        log, shift = (
            moved * torch.nan_to_num(f(kept), nan=nan, posinf=nan, neginf=nan)
            for f in (self.s, self.t)
        )
        return affine_coupling(z, log, shift, inverse=inverse)

    def forward(self, z: Tensor) -> tuple[Tensor, Tensor]:
        return self._couple(z, False) if serves(z) else super().forward(z)

    def inverse(self, z: Tensor) -> tuple[Tensor, Tensor]:
        return self._couple(z, True) if serves(z) else super().inverse(z)


class GlowBlock(flows.GlowBlock):
    """The normalisation is part of the convolution's matrix and bias once it is initialised."""

    def _matrix(self, conv: Any, inverse: bool) -> tuple[Tensor, Tensor]:
        """The matrix of a direction and its log-determinant a pixel."""
        if conv.use_lu:
            log = conv.log_S.sum()
            return conv._assemble_W(inverse=not inverse), log if inverse else -log
        log = torch.slogdet(conv.W)[1]
        if inverse:
            return conv.W, log
        return torch.inverse(conv.W.double()).to(conv.W.dtype), -log

    def _fused(self, z: Tensor, inverse: bool) -> tuple[Tensor, Tensor] | None:
        coupling, *rest = self.flows
        if len(rest) != 2 or not serves(z) or z.dim() != 4:
            return None
        conv, norm = rest
        if not norm.data_dep_init_done > 0 or has_hooks(conv) or has_hooks(norm):
            return None
        if not inverse:
            z, before = coupling(z)
        matrix, log = self._matrix(conv, inverse)
        s, t = norm.s.flatten(), norm.t.flatten()
        if inverse:
            matrix = matrix * torch.exp(-s)
            offset, log = -(matrix @ t), log - s.sum()
        else:
            matrix, offset, log = matrix * torch.exp(s)[:, None], t, log + s.sum()
        z = mix_channels(z, matrix, offset)
        log = log * (z.size(2) * z.size(3))
        if inverse:
            z, before = coupling.inverse(z)
        return z, before + log

    def forward(self, z: Tensor) -> tuple[Tensor, Tensor]:
        return self._fused(z, False) or super().forward(z)

    def inverse(self, z: Tensor) -> tuple[Tensor, Tensor]:
        return self._fused(z, True) or super().inverse(z)


def _spline_reason(part: Any) -> str | None:
    if part.tails not in ("linear", None):
        return f"its tails are {part.tails!r}"
    return "its bound is a tensor" if isinstance(part.tail_bound, Tensor) else None


def _scale_reason(part: Any) -> str | None:
    if not part.scale:
        return "it has no scale"
    known = part.scale_map in ("exp", "sigmoid", "sigmoid_inv")
    return None if known else f"its scale map is {part.scale_map!r}"


def _mask_reason(part: Any) -> str | None:
    b = part.b
    return None if bool(((b == 0) | (b == 1)).all()) else "its mask has values other than 0 and 1"


def _glow_reason(part: Any) -> str | None:
    kinds = [type(f) for f in part.flows][1:]
    if kinds != [flows.Invertible1x1Conv, flows.ActNorm]:
        return "it is not a coupling, a 1x1 convolution and a normalisation of normflows"
    return None


LIBRARY = Library(
    swaps={
        _SplineCoupling: Swap(
            PiecewiseRationalQuadraticCoupling, "rational_quadratic_spline", _spline_reason
        ),
        _SplineCDF: Swap(
            PiecewiseRationalQuadraticCDF, "rational_quadratic_spline", _spline_reason
        ),
        _MaskedSpline: Swap(
            MaskedPiecewiseRationalQuadraticAutoregressive,
            "rational_quadratic_spline",
            _spline_reason,
        ),
        _AffineCoupling: Swap(AffineCoupling, "affine_coupling", _scale_reason),
        flows.MaskedAffineFlow: Swap(MaskedAffineFlow, "affine_coupling", _mask_reason),
        flows.GlowBlock: Swap(GlowBlock, "torch: one convolution", _glow_reason),
    },
    named=(flows.Flow,),
    silent=tuple(
        getattr(flows, name)
        for name in (
            *("AffineCouplingBlock", "CoupledRationalQuadraticSpline", "Split", "Merge", "Squeeze"),
            *("CircularCoupledRationalQuadraticSpline", "AutoregressiveRationalQuadraticSpline"),
            *("CircularAutoregressiveRationalQuadraticSpline", "Composite", "Reverse", "Permute"),
            *("ActNorm", "Invertible1x1Conv"),
        )
        if hasattr(flows, name)
    ),
)
