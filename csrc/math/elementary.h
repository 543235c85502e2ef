// exp, log, log1p, tanh, arctan, the logistic function and the normal distribution function, each to 1e-7 or 2e-7 in
// float32.
// The polynomials are minimax fits made for these intervals. Infinities give their limits, NaN stays NaN.
// float64 uses the standard library, lane by lane on a CPU.
#pragma once

#include "value.h"

namespace PF_NAMESPACE {

template <class V>
using Scalar = decltype(scalar_of(V{}));

template <class V>
PF_FN V splat(Scalar<V> c) {
    return V{} + c;
}

template <class V>
PF_FN V absolute(V x) {
    return select(x < Scalar<V>(0), -x, x);
}

// c0 + c1 x + c2 x^2 + ... by Horner's rule.
template <class V, class C>
PF_FN V polynomial(V, C c0) {
    return splat<V>(c0);
}
template <class V, class C, class... Rest>
PF_FN V polynomial(V x, C c0, Rest... rest) {
    return c0 + x * polynomial(x, rest...);
}

constexpr float kLn2High = 0.693359375f;       // ln 2 in two parts: products of the first with an exponent are exact
constexpr float kLn2Low = -2.12194440e-4f;
constexpr double kInvSqrt2 = 0.70710678118654752440;
constexpr double kInvSqrt2Pi = 0.39894228040143267794;

constexpr float kRound = 12582912.0f;  // 1.5 * 2^23: adding it rounds to an integer that then stands in the low bits

// x * 2^k for whole k from -152 to 129, in two factors, since one exponent field does not hold that.
template <class V>
PF_FN V times_power_of_two(V x, V k) {
    const auto n = as_bits(k + kRound) - 0x4b400000;
    const auto half = n >> 1;
    return x * from_bits((half + 127) << 23) * from_bits((n - half + 127) << 23);
}

template <class V>
PF_FN V exponential(V x) {
    x = at_least(at_most(x, 89.0f), -105.0f);
    const V k = (x * 1.44269504f + kRound) - kRound;
    const V r = (x - k * kLn2High) - k * kLn2Low;
    const V p = polynomial(r, 4.9999994e-01f, 1.6666515e-01f, 4.1668456e-02f, 8.369419e-03f, 1.3813142e-03f);
    return times_power_of_two(1.0f + (r + r * r * p), k);
}

// e^x for |x| <= 1, to 2e-7, in few operations.
template <class V>
PF_FN V exponential_of_unit(V x) {
    return polynomial(x, 1.0f, 0.99999993f, 0.50000027f, 0.16666772f, 0.041665320f, 8.3291295e-3f, 1.3908486e-3f,
                      2.0439190e-4f, 2.4188683e-5f);
}

// ln(1 + f) for f in [sqrt(1/2) - 1, sqrt(2) - 1].
template <class V>
PF_FN V log1p_near_zero(V f) {
    const V p = polynomial(f, 3.333331e-01f, -2.4999985e-01f, 2.000227e-01f, -1.6669369e-01f, 1.421779e-01f,
                           -1.2381655e-01f, 1.18772924e-01f, -1.180847e-01f, 6.927849e-02f);
    const V square = f * f;
    return f - (0.5f * square - square * f * p);
}

// ln(1 + t) for t in [0, 1].
template <class V>
PF_FN V log1p_unit(V t) {
    const auto above = t > 0.41421356f;
    const V f = select(above, 0.5f * (t - 1.0f), t);  // 1 + t = 2 (1 + (t - 1) / 2), with no rounding
    const V e = select(above, splat<V>(1.0f), splat<V>(0.0f));
    return e * kLn2High + (e * kLn2Low + log1p_near_zero(f));
}

template <class V>
PF_FN V logistic(V x) {
    return 1.0f / (1.0f + exponential(-x));
}

// E / (E + 2) with E = e^2|x| - 1, which takes no precision from small x: 2^k (1 + q) - 1 = (2^k - 1) + 2^k q.
template <class V>
PF_FN V hyperbolic_tangent(V x) {
    const V twice = at_most(2.0f * absolute(x), 20.0f);
    const V shifted = twice * 1.44269504f + kRound, k = shifted - kRound;
    const V r = (twice - k * kLn2High) - k * kLn2Low;
    const V p = polynomial(r, 4.9999994e-01f, 1.6666515e-01f, 4.1668456e-02f, 8.369419e-03f, 1.3813142e-03f);
    const V power = from_bits((as_bits(shifted) << 23) + 0x3f800000);
    const V e = (power - 1.0f) + power * (r + r * r * p);
    return from_bits(as_bits(e / (e + 2.0f)) | (as_bits(x) & INT32_MIN));
}

template <class V>
PF_FN V arctangent(V x) {
    const V a = absolute(x);
    const auto big = a > 2.4142136f, middle = a > 0.41421356f;  // tan(3 pi / 8), tan(pi / 8)
    const V one = splat<V>(1.0f);
    const V t = select(big, -one, select(middle, a - 1.0f, a)) / select(big, a, select(middle, a + 1.0f, one));
    const V u = t * t;
    const V turned = t + t * u * polynomial(u, -3.333295e-01f, 1.997771e-01f, -1.3877678e-01f, 8.0537215e-02f);
    const V base = select(big, splat<V>(1.57079633f), select(middle, splat<V>(0.785398163f), splat<V>(0.0f)));
    const V value = base + turned;
    return select(x < 0.0f, -value, value);
}

// ln x for x > 0 that is not subnormal; -87.3 or less for anything smaller.
template <class V>
PF_FN V logarithm(V x) {
    const auto bits = as_bits(x);
    const auto exponent = (bits - 0x3f3504f3) >> 23;
    const V f = from_bits(bits - (exponent << 23)) - 1.0f;
    const V e = to_float(exponent);
    return select(x < 3.0e38f, e * kLn2High + (e * kLn2Low + log1p_near_zero(f)), x);  // infinity and NaN stay
}

// P(Z <= x) for a standard normal Z: erf near zero, the scaled complement in the tails.
template <class V>
PF_FN V normal_cdf(V x) {
    const V z = absolute(x) * 0.70710678f;
    const V u = z * z;
    const V inner = 0.5f * z *
                    polynomial(u, 1.1283791e+00f, -3.7612623e-01f, 1.1283565e-01f, -2.6852882e-02f, 5.1863836e-03f,
                               -7.991618e-04f, 7.787699e-05f);
    const V bounded = select(z > 10.25f, splat<V>(10.25f), z);  // beyond it the tail is zero in float32
    const V t = 1.0f / (1.0f + 0.5f * bounded);
    const V tail = 0.5f * exponential(-bounded * bounded) *
                   polynomial(t, -3.7328446e-06f, 2.8219128e-01f, 2.810649e-01f, 2.5259972e-01f, 1.591214e-01f,
                              1.03429474e-01f, 2.7036514e-02f, -1.8610792e-01f, 8.1111774e-02f);
    const V lower = select(z < 1.0f, 0.5f - inner, tail);  // P(Z <= -|x|)
    return select(x > 0.0f, 1.0f - lower, lower);
}

PF_FN double exponential(double x) { return ::exp(x); }
PF_FN double exponential_of_unit(double x) { return ::exp(x); }
PF_FN double log1p_unit(double t) { return ::log1p(t); }
PF_FN double arctangent(double x) { return ::atan(x); }
PF_FN double logarithm(double x) { return ::log(x); }
PF_FN double logistic(double x) { return 1.0 / (1.0 + ::exp(-x)); }
PF_FN double hyperbolic_tangent(double x) { return ::tanh(x); }
PF_FN double normal_cdf(double x) { return 0.5 * ::erfc(-x * kInvSqrt2); }

}  // namespace PF_NAMESPACE
