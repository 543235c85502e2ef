"""Elementary functions for Triton kernels, by the formulas of csrc/math/elementary.h, and storing in a half type.

float32 reaches about 1e-7 of max(|value|, 1), float64 about 1e-15. They use no libdevice function, so that they run in
Triton's interpreter too. NaN stays NaN, infinities give their limits.
"""

from __future__ import annotations

import os

import triton
import triton.language as tl

# Whether the kernels run in Triton's interpreter, which keeps bfloat16 as bits and truncates what it stores there.
INTERPRETED = tl.constexpr(os.environ.get("TRITON_INTERPRET") == "1")


@triton.jit
def to_storage(x, dtype: tl.constexpr):
    """x rounded to the nearest number of `dtype`."""
    if INTERPRETED and dtype == tl.bfloat16:
        bits = x.to(tl.int32, bitcast=True)
        rounded = tl.where(x == x, (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16, 0x7FC0)
        result = rounded.to(tl.int16).to(tl.bfloat16, bitcast=True)
    else:
        result = x.to(dtype)
    return result


@triton.jit
def float_from_bits(bits, dtype: tl.constexpr):
    """A float64 that was passed as the integer with its bits. Triton passes a Python float as float32."""
    return bits.to(tl.int64).to(tl.float64, bitcast=True).to(dtype)


@triton.jit
def log1p_near_zero(f):
    """ln(1 + f) in float32 for f in [sqrt(1/2) - 1, sqrt(2) - 1]."""
    p = -1.180847e-01 + f * 6.927849e-02
    p = -1.2381655e-01 + f * (1.18772924e-01 + f * p)
    p = -1.6669369e-01 + f * (1.421779e-01 + f * p)
    p = -2.4999985e-01 + f * (2.000227e-01 + f * p)
    p = 3.333331e-01 + f * p
    square = f * f
    return f - (0.5 * square - square * f * p)


@triton.jit
def log1p_unit(t):
    """ln(1 + t) for t in [0, 1]."""
    if t.dtype == tl.float64:
        u = 1.0 + t
        small = u == 1.0
        result = tl.where(small, t, tl.log(u) * t / tl.where(small, 1.0, u - 1.0))
    else:
        above = t > 0.41421356
        f = tl.where(above, 0.5 * (t - 1.0), t)  # 1 + t = 2 (1 + (t - 1) / 2), with no rounding
        e = tl.where(above, 1.0, 0.0)
        result = e * 0.693359375 + (e * -2.12194440e-4 + log1p_near_zero(f))
    return result


@triton.jit
def logistic(x):
    return 1.0 / (1.0 + tl.exp(-x))


@triton.jit
def hyperbolic_tangent(x):
    a = tl.abs(x)
    if x.dtype == tl.float64:
        # exp(2 a) - 1 from the rounded u = exp(2 a), whose logarithm says what it was rounded from (Kahan).
        a = tl.where(a > 20.0, 20.0, a)
        u = tl.exp(2.0 * a)
        small = u == 1.0
        m = tl.where(small, 2.0 * a, (u - 1.0) * 2.0 * a / tl.where(small, 1.0, tl.log(u)))
        large = m / (m + 2.0)
        result = tl.where(x < 0.0, -large, large)
    else:
        u = x * x
        p = -5.3692967e-02 + u * (2.0483317e-02 + u * -5.5286335e-03)
        p = -3.3333263e-01 + u * (1.3330899e-01 + u * p)
        large = 1.0 - 2.0 / (tl.exp(2.0 * a) + 1.0)
        large = tl.where(x < 0.0, -large, large)
        result = tl.where(a < 0.625, x + x * u * p, large)
    return result


@triton.jit
def normal_density(x):
    return 0.39894228040143267794 * tl.exp(-0.5 * x * x)


@triton.jit
def normal_cdf(x):
    """P(Z <= x) for a standard normal Z: erf near zero, the scaled complement in the tails."""
    if x.dtype == tl.float64:
        result = 0.5 * (1.0 + tl.erf(x * 0.70710678118654752440))
    else:
        z = tl.abs(x) * 0.70710678
        u = z * z
        p = 5.1863836e-03 + u * (-7.991618e-04 + u * 7.787699e-05)
        p = 1.1283565e-01 + u * (-2.6852882e-02 + u * p)
        inner = 0.5 * z * (1.1283791e00 + u * (-3.7612623e-01 + u * p))
        bounded = tl.where(z > 10.25, 10.25, z)  # beyond it the tail is zero in float32
        t = 1.0 / (1.0 + 0.5 * bounded)
        p = 2.7036514e-02 + t * (-1.8610792e-01 + t * 8.1111774e-02)
        p = 2.5259972e-01 + t * (1.591214e-01 + t * (1.03429474e-01 + t * p))
        p = -3.7328446e-06 + t * (2.8219128e-01 + t * (2.810649e-01 + t * p))
        tail = 0.5 * tl.exp(-bounded * bounded) * p
        lower = tl.where(z < 1.0, 0.5 - inner, tail)  # P(Z <= -|x|)
        result = tl.where(x > 0.0, 1.0 - lower, lower)
    return result


@triton.jit
def arctangent(x):
    a = tl.abs(x)
    big, middle = a > 2.41421356, a > 0.414213562  # tan(3 pi / 8), tan(pi / 8)
    t = tl.where(big, -1.0, tl.where(middle, a - 1.0, a)) / tl.where(
        big, a, tl.where(middle, a + 1.0, 1.0)
    )
    if x.dtype == tl.float64:
        # Half the angle, at most pi / 16, by Taylor's series.
        t = t / (1.0 + tl.sqrt(1.0 + t * t))
        u = t * t
        p = tl.full(x.shape, 0.0, x.dtype)
        for k in tl.static_range(12):
            p = u * (p + (-1.0 if k % 2 == 0 else 1.0) * (-1.0 / (25 - 2 * k)))
        turned = 2.0 * (t + t * p)
        eighth = tl.full(
            x.shape, 0.78539816339744830962, x.dtype
        )  # a bare number would be a float32
        base = tl.where(big, 2.0 * eighth, tl.where(middle, eighth, 0.0))
    else:
        u = t * t
        p = -1.3877678e-01 + u * 8.0537215e-02
        turned = t + t * u * (-3.333295e-01 + u * (1.997771e-01 + u * p))
        base = tl.where(big, 1.57079633, tl.where(middle, 0.785398163, 0.0))
    value = base + turned
    return tl.where(x < 0.0, -value, value)
