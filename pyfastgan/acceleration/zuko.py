"""zuko: rational-quadratic splines, autoregressive, coupled or element by element."""

from __future__ import annotations

import functools
import math
from typing import Any

import torch
from torch import Tensor
from torch.distributions import Transform
from zuko.flows import autoregressive, coupling, gaussianization, spline
from zuko.lazy import LazyComposedTransform, LazyInverse, LazyTransform
from zuko.transforms import (
    CircularShiftTransform,
    ComposedTransform,
    DependentTransform,
    MonotonicRQSTransform,
)
from zuko.utils import broadcast

from pyfastgan.ops.rational_quadratic_spline import packed_rational_quadratic_spline

from .swap import Library, Swap, serves


class _RQSTransform(MonotonicRQSTransform):
    """zuko's spline of logits that lie one after the other in the last dimension."""

    def __init__(self, logits: Tensor, bound: float = 5.0, slope: float = 1e-3) -> None:
        Transform.__init__(self)
        self._logits, self._bound, self._slope = logits, bound, slope

    @property
    def bins(self) -> int:
        return (self._logits.size(-1) + 1) // 3

    @functools.cached_property
    def _knots(self) -> MonotonicRQSTransform:
        """zuko's own object, for who asks for its attributes."""
        sizes = (self.bins, self.bins, self.bins - 1)
        return MonotonicRQSTransform(*self._logits.split(sizes, -1), self._bound, self._slope)

    def __getattr__(self, name: str) -> Any:
        if name in ("horizontal", "vertical", "derivatives"):
            return getattr(self._knots, name)
        raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")

    def _compute(self, x: Tensor, inverse: bool, elementwise: bool = True) -> tuple[Tensor, Tensor]:
        logits = self._logits
        if x.shape != logits.shape[:-1]:
            shape = torch.broadcast_shapes(x.shape, logits.shape[:-1])
            x, logits = x.expand(shape), logits.expand(*shape, -1)
        return packed_rational_quadratic_spline(
            x,
            logits,
            inverse=inverse,
            tail_bound=self._bound,
            min_derivative=self._slope,
            elementwise=elementwise,
            parameterisation="zuko",
        )

    def _call(self, x: Tensor) -> Tensor:
        return self._compute(x, False)[0] if serves(x, self._logits) else self._knots._call(x)

    def _inverse(self, y: Tensor) -> Tensor:
        return self._compute(y, True)[0] if serves(y, self._logits) else self._knots._inverse(y)

    def call_and_ladj(self, x: Tensor) -> tuple[Tensor, Tensor]:
        if serves(x, self._logits):
            return self._compute(x, False)
        return self._knots.call_and_ladj(x)


class _Points(DependentTransform):
    """zuko's transformation of points (N, D) by one spline each number, whose logarithms the op adds up itself."""

    base: _RQSTransform

    def call_and_ladj(self, x: Tensor) -> tuple[Tensor, Tensor]:
        logits = self.base._logits
        if x.dim() != 2 or x.shape != logits.shape[:-1] or not serves(x, logits):
            return super().call_and_ladj(x)
        return self.base._compute(x, False, elementwise=False)


def _settings(univariate: Any) -> tuple[bool, dict[str, float]] | None:
    """Whether a constructor makes a circular spline, and its bound and slope; None if it makes something else."""
    keywords = {}
    if isinstance(univariate, functools.partial):
        if univariate.args:
            return None
        univariate, keywords = univariate.func, univariate.keywords
    if univariate is MonotonicRQSTransform and keywords.keys() <= {"bound", "slope"}:
        return False, keywords
    if univariate is spline.CircularRQSTransform and keywords.keys() <= {"slope"}:
        return True, {**keywords, "bound": math.pi}
    return None


def _transform(univariate: Any, logits: Tensor) -> Transform:
    settings = _settings(univariate)
    assert settings is not None
    circular, keywords = settings
    base = _RQSTransform(logits, **keywords)
    if not circular:
        return _Points(base, 1)
    return DependentTransform(ComposedTransform(CircularShiftTransform(bound=math.pi), base), 1)


def _meta(self: Any, c: Tensor | None, x: Tensor) -> Transform:
    if c is not None:
        x = torch.cat(broadcast(x, c, ignore=1), dim=-1)
    return _transform(self.univariate, self.hyper(x).unflatten(-1, (-1, self.total)))


class MaskedAutoregressiveTransform(autoregressive.MaskedAutoregressiveTransform):
    meta = _meta


class GeneralCouplingTransform(coupling.GeneralCouplingTransform):
    meta = _meta


class ElementWiseTransform(gaussianization.ElementWiseTransform):
    def forward(self, c: Tensor | None = None) -> Transform:
        if c is None:
            logits = torch.cat(tuple(self.phi), -1)
        else:
            logits = self.hyper(c).unflatten(-1, (-1, self.total))
        return _transform(self.univariate, logits)


def _reason(part: Any) -> str | None:
    if _settings(part.univariate) is None:
        function = getattr(part.univariate, "func", part.univariate)
        kind = getattr(function, "__name__", type(function).__name__)
        return f"its univariate transformation is {kind}"
    widths, heights, derivatives = (math.prod(s) for s in part.shapes)
    if widths != heights or derivatives != widths - 1:
        return "its shapes are not those of a spline with linear tails"
    return None


LIBRARY = Library(
    swaps={
        autoregressive.MaskedAutoregressiveTransform: Swap(
            MaskedAutoregressiveTransform, "rational_quadratic_spline", _reason
        ),
        coupling.GeneralCouplingTransform: Swap(
            GeneralCouplingTransform, "rational_quadratic_spline", _reason
        ),
        gaussianization.ElementWiseTransform: Swap(
            ElementWiseTransform, "rational_quadratic_spline", _reason
        ),
    },
    named=(LazyTransform,),
    silent=(LazyComposedTransform, LazyInverse),
)
