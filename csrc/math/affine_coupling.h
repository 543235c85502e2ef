// The scale of an affine coupling, its logarithm, and that logarithm's derivative; and what a coupling makes of them.
// The inverse of y = x S + t is (y - t) / S: the other order of the two steps with 1 / S and -t, so that one formula
// with a sign serves both directions.
#pragma once

#include "elementary.h"

namespace PF_NAMESPACE {

// The numbers are shared with pyfastgan/ops/affine_coupling.py.
enum ScaleMap { kScaleExp, kScaleTanh, kScaleSigmoid, kScaleSoftclamp, kScaleClampedTanh, kScaleCount };

template <class V>
struct ScaleAt {
    V factor, log, slope;  // S or 1 / S, its logarithm, and d log / d raw
};

template <int M, class V>
PF_FN ScaleAt<V> scale_at(V raw, Scalar<V> clamp, bool inverse) {
    using S = Scalar<V>;
    const S sign = inverse ? S(-1) : S(1);
    if constexpr (M == kScaleSigmoid) {
        const V a = raw + S(2);
        const V e = exponential(-absolute(a));
        const V one = splat<V>(1), below = one + e;
        const auto left = a < S(0);
        const V above = select(left, e, one);  // S = above / below
        const V log = select(left, a, splat<V>(0)) - log1p_unit(e);
        return {inverse ? below / above : above / below, log * sign, select(left, one, e) / below * sign};
    } else {
        V log = raw, slope = splat<V>(1);
        if constexpr (M == kScaleTanh || M == kScaleClampedTanh) {
            log = hyperbolic_tangent(raw);
            slope = S(1) - log * log;
        }
        if constexpr (M == kScaleClampedTanh) {
            log = clamp * log;
            slope = clamp * slope;
        }
        if constexpr (M == kScaleSoftclamp) {
            const V u = raw / clamp;
            log = clamp * S(0.636) * arctangent(u);
            slope = S(0.636) / (S(1) + u * u);
        }
        log = log * sign;
        return {M == kScaleTanh ? exponential_of_unit(log) : exponential(log), log, slope * sign};
    }
}

// (x + t) S if `first`, else x S + t; `shift` is already negated for the inverse.
template <class V>
PF_FN V couple(V x, V shift, const ScaleAt<V>& s, bool first) {
    return first ? (x + shift) * s.factor : x * s.factor + shift;
}

// From the output if the shift comes first, else from the input: d loss / d x, and d loss / d raw.
template <class V>
PF_FN void couple_backward(V dy, V dlog, V kept, const ScaleAt<V>& s, bool first, V& dx, V& draw) {
    dx = dy * s.factor;
    draw = ((first ? dy : dx) * kept + dlog) * s.slope;
}

}  // namespace PF_NAMESPACE
