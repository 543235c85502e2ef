// One update of a sampler: every one is a linear combination of the state x, the predicted x0, the prediction itself,
// earlier tensors and noise, where x0 is itself linear in x and the prediction before it is bounded.
#pragma once

#include "elementary.h"

namespace PF_NAMESPACE {

constexpr int kMostHistory = 3;

// A row of the coefficients, in the order of pyfastgan/ops/_denoise_step_kernels.py.
template <class S>
struct StepCoefficients {
    S x0_state, x0_prediction;  // x0 = x0_state x + x0_prediction m
    S state, x0, prediction, noise;
    S history[kMostHistory];
    S log_min, log_max;  // of a learned variance: it stands between them as (v + 1) / 2 says
};

// Classifier-free guidance (Ho and Salimans 2022).
template <class V>
PF_FN V guided(V conditional, V unconditional, Scalar<V> scale) {
    return unconditional + scale * (conditional - unconditional);
}

template <class V>
PF_FN V predicted_x0(V x, V m, const StepCoefficients<Scalar<V>>& c) {
    return c.x0_state * x + c.x0_prediction * m;
}

// Within [-bound, bound], then times `scale`. NaN stays.
template <class V>
PF_FN V bounded(V x, Scalar<V> bound, Scalar<V> scale) {
    x = select(x > bound, splat<V>(bound), x);
    return select(x < -bound, splat<V>(-bound), x) * scale;
}

template <class V>
PF_FN V learned_deviation(V v, const StepCoefficients<Scalar<V>>& c) {
    const Scalar<V> half = Scalar<V>(0.5);
    return exponential(half * (c.log_min + half * (v + Scalar<V>(1)) * (c.log_max - c.log_min)));
}

}  // namespace PF_NAMESPACE
