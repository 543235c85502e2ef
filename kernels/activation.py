"""The eight activations for Triton kernels, their first and their second derivatives, as in csrc/math/activation.h.

ACT is a compile-time constant, so that each kernel holds one formula. `slope` is leaky ReLU's.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .elementary import hyperbolic_tangent, log1p_unit, logistic, normal_cdf, normal_density

# The numbers are shared with csrc/math/activation.h.
ACTIVATIONS = ("linear", "relu", "leaky_relu", "tanh", "sigmoid", "silu", "gelu", "softplus")
LINEAR = tl.constexpr(0)
RELU = tl.constexpr(1)
LEAKY_RELU = tl.constexpr(2)
TANH = tl.constexpr(3)
SIGMOID = tl.constexpr(4)
SILU = tl.constexpr(5)
GELU = tl.constexpr(6)
SOFTPLUS = tl.constexpr(7)


@triton.jit
def activate(x, slope, ACT: tl.constexpr):
    if ACT == LINEAR:
        y = x
    elif ACT == RELU:
        y = tl.where(x < 0.0, 0.0, x)  # `x < 0` is the side that changes, so that NaN goes through
    elif ACT == LEAKY_RELU:
        y = tl.where(x < 0.0, x * slope, x)
    elif ACT == TANH:
        y = hyperbolic_tangent(x)
    elif ACT == SIGMOID:
        y = logistic(x)
    elif ACT == SILU:
        y = x * logistic(x)
    elif ACT == GELU:
        y = x * normal_cdf(x)
    else:
        tl.static_assert(ACT == SOFTPLUS, "unknown activation")
        y = tl.where(x < 0.0, 0.0, x) + log1p_unit(tl.exp(-tl.abs(x)))
    return y


@triton.jit
def activate_slope(x, slope, ACT: tl.constexpr):
    """d activate / dx. For linear, relu and leaky_relu x may be any number of the same sign."""
    if ACT == LINEAR:
        d = tl.full(x.shape, 1.0, x.dtype)
    elif ACT == RELU:
        d = tl.where(x > 0.0, 1.0, 0.0).to(x.dtype)
    elif ACT == LEAKY_RELU:
        d = tl.where(x > 0.0, 1.0, slope)
    elif ACT == TANH:
        t = hyperbolic_tangent(x)
        d = 1.0 - t * t
    elif ACT == SIGMOID:
        s = logistic(x)
        d = s * (1.0 - s)
    elif ACT == SILU:
        s = logistic(x)
        d = s * (1.0 + x * (1.0 - s))
    elif ACT == GELU:
        d = normal_cdf(x) + x * normal_density(x)
    else:
        tl.static_assert(ACT == SOFTPLUS, "unknown activation")
        d = logistic(x)
    return d


@triton.jit
def activate_curvature(x, ACT: tl.constexpr):
    """d^2 activate / dx^2 of the smooth ones; of the others it is zero."""
    if ACT == TANH:
        t = hyperbolic_tangent(x)
        d = -2.0 * t * (1.0 - t * t)
    elif ACT == SIGMOID:
        s = logistic(x)
        d = s * (1.0 - s) * (1.0 - 2.0 * s)
    elif ACT == SILU:
        s = logistic(x)
        d = s * (1.0 - s) * (2.0 + x * (1.0 - 2.0 * s))
    elif ACT == GELU:
        d = normal_density(x) * (2.0 - x * x)
    else:
        tl.static_assert(ACT == SOFTPLUS, "no second derivative, or an unknown activation")
        s = logistic(x)
        d = s * (1.0 - s)
    return d
