// The eight activations, their first and their second derivatives. Act is a compile-time constant, so that each loop
// holds one formula. `slope` is leaky ReLU's.
#pragma once

#include "elementary.h"

namespace PF_NAMESPACE {

// The numbers are shared with pyfastgan/ops/_bias_act_formulas.py.
enum Act { kLinear, kRelu, kLeakyRelu, kTanh, kSigmoid, kSilu, kGelu, kSoftplus, kActCount };

constexpr bool piecewise_linear(int act) { return act <= kLeakyRelu; }

template <int A, class V>
PF_FN V activate(V x, Scalar<V> slope) {
    const V zero = splat<V>(0);
    if constexpr (A == kLinear) return x;
    // `x < 0` is the side that changes, so that NaN goes through.
    if constexpr (A == kRelu) return select(x < Scalar<V>(0), zero, x);
    if constexpr (A == kLeakyRelu) return select(x < Scalar<V>(0), x * slope, x);
    if constexpr (A == kTanh) return hyperbolic_tangent(x);
    if constexpr (A == kSigmoid) return logistic(x);
    if constexpr (A == kSilu) return x / (Scalar<V>(1) + exponential(-x));
    if constexpr (A == kGelu) return x * normal_cdf(x);
    if constexpr (A == kSoftplus) return select(x < Scalar<V>(0), zero, x) + log1p_unit(exponential(-absolute(x)));
}

template <class V>
PF_FN V normal_density(V x) {
    return Scalar<V>(kInvSqrt2Pi) * exponential(Scalar<V>(-0.5) * x * x);
}

// d activate / dx. For the piecewise-linear ones x may be any number of the same sign.
template <int A, class V>
PF_FN V activate_slope(V x, Scalar<V> slope) {
    const Scalar<V> one = 1;
    if constexpr (A == kLinear) return splat<V>(1);
    if constexpr (A == kRelu) return select(x > Scalar<V>(0), splat<V>(1), splat<V>(0));
    if constexpr (A == kLeakyRelu) return select(x > Scalar<V>(0), splat<V>(1), splat<V>(slope));
    if constexpr (A == kTanh) {
        const V t = hyperbolic_tangent(x);
        return one - t * t;
    }
    if constexpr (A == kSigmoid) {
        const V s = logistic(x);
        return s * (one - s);
    }
    if constexpr (A == kSilu) {
        const V s = logistic(x);
        return s * (one + x * (one - s));
    }
    if constexpr (A == kGelu) return normal_cdf(x) + x * normal_density(x);
    if constexpr (A == kSoftplus) return logistic(x);
}

// d^2 activate / dx^2, zero for the piecewise-linear ones.
template <int A, class V>
PF_FN V activate_curvature(V x) {
    const Scalar<V> one = 1, two = 2;
    if constexpr (piecewise_linear(A)) return splat<V>(0);
    if constexpr (A == kTanh) {
        const V t = hyperbolic_tangent(x);
        return -two * t * (one - t * t);
    }
    if constexpr (A == kSigmoid) {
        const V s = logistic(x);
        return s * (one - s) * (one - two * s);
    }
    if constexpr (A == kSilu) {
        const V s = logistic(x);
        return s * (one - s) * (two + x * (one - two * s));
    }
    if constexpr (A == kGelu) return normal_density(x) * (two - x * x);
    if constexpr (A == kSoftplus) {
        const V s = logistic(x);
        return s * (one - s);
    }
}

}  // namespace PF_NAMESPACE
