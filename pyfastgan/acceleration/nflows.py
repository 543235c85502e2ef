"""nflows: spline and affine couplings, their autoregressive relatives, ActNorm and 1x1 convolutions."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from nflows import transforms
from nflows.transforms.base import InputOutsideDomain
from torch import Tensor

from pyfastgan.ops import affine_coupling
from pyfastgan.ops._glow_parts import mix_channels

from .splines import hidden_size, packed_spline
from .swap import Library, Swap, serves


def check_domain(x: Tensor, tails: str | None) -> None:
    if tails is None and (torch.min(x) < 0 or torch.max(x) > 1):
        raise InputOutsideDomain()


class PiecewiseRationalQuadraticCouplingTransform(
    transforms.PiecewiseRationalQuadraticCouplingTransform
):
    def _coupling_transform(
        self, inputs: Tensor, transform_params: Tensor, inverse: bool = False
    ) -> tuple[Tensor, Tensor]:
        hidden = hidden_size(self.transform_net)
        # Without it nflows warns, and says so in its own words.
        if hidden is None or not serves(inputs, transform_params):
            return super()._coupling_transform(inputs, transform_params, inverse)
        check_domain(inputs, self.tails)
        n, c, *positions = inputs.shape
        logits = transform_params.reshape(n, c, -1, *positions).movedim(2, -1)
        return packed_spline(self, inputs, logits, hidden, inverse)


class MaskedPiecewiseRationalQuadraticAutoregressiveTransform(
    transforms.MaskedPiecewiseRationalQuadraticAutoregressiveTransform
):
    def _elementwise(
        self, inputs: Tensor, autoregressive_params: Tensor, inverse: bool = False
    ) -> tuple[Tensor, Tensor]:
        if not serves(inputs, autoregressive_params):
            return super()._elementwise(inputs, autoregressive_params, inverse)
        check_domain(inputs, self.tails)
        hidden = getattr(self.autoregressive_net, "hidden_features", None)
        logits = autoregressive_params.view(*inputs.shape[:2], self._output_dim_multiplier())
        return packed_spline(self, inputs, logits, hidden, inverse)


class AffineCouplingTransform(transforms.AffineCouplingTransform):
    """The scale is sigmoid(s + 2) + 1e-3: the op gets its logarithm."""

    def _couple(self, inputs: Tensor, params: Tensor, inverse: bool) -> tuple[Tensor, Tensor]:
        shift, raw = params.tensor_split((self.num_transform_features,), 1)
        log = torch.log(torch.sigmoid(raw + 2) + 1e-3)
        return affine_coupling(inputs, log, shift, inverse=inverse)

    def _coupling_transform_forward(
        self, inputs: Tensor, transform_params: Tensor
    ) -> tuple[Tensor, Tensor]:
        if not serves(inputs, transform_params):
            return super()._coupling_transform_forward(inputs, transform_params)
        return self._couple(inputs, transform_params, False)

    def _coupling_transform_inverse(
        self, inputs: Tensor, transform_params: Tensor
    ) -> tuple[Tensor, Tensor]:
        if not serves(inputs, transform_params):
            return super()._coupling_transform_inverse(inputs, transform_params)
        return self._couple(inputs, transform_params, True)


class MaskedAffineAutoregressiveTransform(transforms.MaskedAffineAutoregressiveTransform):
    """The scale is softplus(s) + 1e-3: the op gets its logarithm."""

    def _couple(self, inputs: Tensor, params: Tensor, inverse: bool) -> tuple[Tensor, Tensor]:
        raw, shift = self._unconstrained_scale_and_shift(params)
        log = torch.log(F.softplus(raw) + self._epsilon)
        return affine_coupling(inputs, log, shift, inverse=inverse)

    def _elementwise_forward(
        self, inputs: Tensor, autoregressive_params: Tensor
    ) -> tuple[Tensor, Tensor]:
        if not serves(inputs, autoregressive_params):
            return super()._elementwise_forward(inputs, autoregressive_params)
        return self._couple(inputs, autoregressive_params, False)

    def _elementwise_inverse(
        self, inputs: Tensor, autoregressive_params: Tensor
    ) -> tuple[Tensor, Tensor]:
        if not serves(inputs, autoregressive_params):
            return super()._elementwise_inverse(inputs, autoregressive_params)
        return self._couple(inputs, autoregressive_params, True)


class OneByOneConvolution(transforms.OneByOneConvolution):
    """Permutation and L U are one matrix, and the images are not turned to rows of pixels and back."""

    def forward(self, inputs: Tensor, context: Any = None) -> tuple[Tensor, Tensor]:
        cached = not self.training and self.using_cache
        if inputs.dim() != 4 or cached or not serves(inputs):
            return super().forward(inputs, context)
        lower, upper = self._create_lower_upper()
        # The permutation picks channels, so its inverse picks the matrix's columns.
        matrix = (lower @ upper)[:, self.permutation._inverse_permutation]
        logdet = math.prod(inputs.shape[2:]) * self.logabsdet()
        return mix_channels(inputs, matrix, self.bias), logdet * inputs.new_ones(len(inputs))


def _tails(part: Any) -> str | None:
    return None if part.tails in ("linear", None) else f"its tails are {part.tails!r}"


LIBRARY = Library(
    swaps={
        transforms.PiecewiseRationalQuadraticCouplingTransform: Swap(
            PiecewiseRationalQuadraticCouplingTransform, "rational_quadratic_spline", _tails
        ),
        transforms.MaskedPiecewiseRationalQuadraticAutoregressiveTransform: Swap(
            MaskedPiecewiseRationalQuadraticAutoregressiveTransform,
            "rational_quadratic_spline",
            _tails,
        ),
        transforms.AffineCouplingTransform: Swap(AffineCouplingTransform, "affine_coupling"),
        transforms.MaskedAffineAutoregressiveTransform: Swap(
            MaskedAffineAutoregressiveTransform, "affine_coupling"
        ),
        transforms.OneByOneConvolution: Swap(OneByOneConvolution, "torch: one convolution"),
    },
    named=(transforms.Transform,),
    silent=(
        transforms.CompositeTransform,
        transforms.InverseTransform,
        transforms.MultiscaleCompositeTransform,
        transforms.Permutation,
        transforms.RandomPermutation,
        transforms.ReversePermutation,
    ),
)
