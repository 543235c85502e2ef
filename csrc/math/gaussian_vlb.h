// The two terms of a diffusion model's variational bound, a number: the divergence between two normal distributions,
// and the negative logarithm of a discretised normal distribution's probability. Both with their derivatives.
#pragma once

#include "elementary.h"

namespace PF_NAMESPACE {

// A row of the coefficients, in the order of pyfastgan/ops/_gaussian_vlb_formulas.py.
template <class S>
struct VlbCoefficients {
    S x0_state, x0_prediction;  // x0 = x0_state x_t + x0_prediction m
    S mean_x0, mean_state;      // mean = mean_x0 x0 + mean_state x_t
    S log_min, log_max;         // the model's log-variance stands between them as (v + 1) / 2 says
    S log_true;                 // the posterior's log-variance
    S decode;                   // above 1/2: the discretised likelihood instead of the divergence
    PF_FN bool decodes() const { return decode > S(0.5); }
};

// value, and its derivatives by the model's mean and log-variance.
template <class V>
struct VlbTerm {
    V value, by_mean, by_log_variance;
};

// exp(q^2 / 2) P(Z > q) for q >= 0, relative error 4e-7: t times a minimax polynomial in t = 1 / (1 + 0.3 q).
template <class V>
PF_FN V scaled_tail(V q) {
    const V t = 1.0f / (1.0f + 0.3f * q);
    return t * polynomial(t, 1.19682692e-01f, 1.19680032e-01f, 1.09011605e-01f, 8.59197751e-02f, 6.83871508e-02f,
                          -1.55362682e-02f, 9.95845422e-02f, -1.47241041e-01f, 7.29392022e-02f, -1.24276364e-02f);
}
PF_FN double scaled_tail(double q) {
    if (q < 30) return 0.5 * ::erfc(q * kInvSqrt2) * ::exp(0.5 * q * q);
    const double s = 1 / (q * q);
    return kInvSqrt2Pi / q * (1 - s * (1 - s * (3 - s * (15 - s * (105 - 945 * s)))));
}

// exp(-r) - 1 + r without cancellation near 0, where `decayed` is exp(-r).
template <class V>
PF_FN V decay_residual(V r, V decayed) {
    const V series =
        r * r *
        polynomial(-r, 0.5f, 1.66666667e-1f, 4.16666667e-2f, 8.3333333e-3f, 1.3888889e-3f, 1.984127e-4f, 2.48016e-5f);
    return select(absolute(r) < 0.5f, series, (decayed - 1.0f) + r);
}
PF_FN double decay_residual(double r, double) { return ::expm1(-r) + r; }

// KL(N(x0's posterior) || N(model)) where `distance` is the model's mean minus the posterior's, and `precision` is
// exp(-log_true).
template <class V>
PF_FN VlbTerm<V> divergence(V distance, V log_variance, Scalar<V> log_true, Scalar<V> precision) {
    using S = Scalar<V>;
    const V r = log_variance - log_true;
    const V decayed = exponential(-r);
    const V pull = distance * decayed * precision;
    return {S(0.5) * (decay_residual(r, decayed) + distance * pull), pull,
            S(0.5) * ((S(1) - decayed) - distance * pull)};
}

// -ln P(the level at x | mean, log_variance): the normal distribution's mass within `half` of x, and all that lies
// beyond at the lowest and the highest level, -1 and 1.
//
// Turned so that u = (x - mean) / sigma <= 0 (towards the tail that ends where the level is an outer one), the level
// spans [u - d, u + d]. Probabilities are kept as multiples of exp(-(u + d)^2 / 2), which cancels from every ratio; a
// narrow level, where their difference would cancel too, is integrated by the Taylor series of the density at u.
template <class V>
PF_FN VlbTerm<V> discretised(V x, V mean, V log_variance, Scalar<V> half) {
    using S = Scalar<V>;
    const V one = splat<V>(1), zero = splat<V>(0);
    const V inverse = exponential(S(-0.5) * log_variance);
    const V z = (x - mean) * inverse, d = half * inverse;
    const auto lowest = x < half - S(1);
    const auto highest = x > S(1) - half;
    const V turn = select(highest, -one, select(lowest, one, select(z > S(0), -one, one)));
    const V u = turn * z, upper = u + d, q = absolute(upper);

    const V tail = scaled_tail(q);
    V ratio = exponential(S(2) * d * u);  // of the densities at u - d and u + d
    V below = ratio * scaled_tail(absolute(u - d));
    ratio = select(highest, zero, select(lowest, zero, ratio));
    below = select(highest, zero, select(lowest, zero, below));
    const V density = exponential(S(-0.5) * q * q);  // at u + d, times sqrt(2 pi)
    const V inside = one - density * (tail + below);
    const V outside = tail - below;
    const auto straddles = upper > S(0);
    V log_p = select(straddles, logarithm(inside), logarithm(outside) - S(0.5) * q * q);
    const V at_upper = S(kInvSqrt2Pi) * select(straddles, density / inside, one / outside);
    V by_u = at_upper - at_upper * ratio, by_d = at_upper + at_upper * ratio;

    const V m = u * u, s = d * d;  // Hermite polynomials of u in the series in s
    const V h2 = m - S(1), h4 = (m - S(6)) * m + S(3), h6 = ((m - S(15)) * m + S(45)) * m - S(15);
    const V h3 = m - S(3), h5 = (m - S(10)) * m + S(15);  // over u
    const V sum = one + s * (h2 * S(1.0 / 6) + s * (h4 * S(1.0 / 120) + s * h6 * S(1.0 / 5040)));
    const V sum_u = u * s * (splat<V>(S(1.0 / 3)) + s * (h3 * S(1.0 / 30) + s * h5 * S(1.0 / 840)));
    const V sum_d = d * (h2 * S(1.0 / 3) + s * (h4 * S(1.0 / 30) + s * h6 * S(1.0 / 840)));
    // Where the series' remainder and the cancellation of the difference are both below the type's precision.
    constexpr S kNarrow = sizeof(S) == 8 ? S(0.01) : S(0.25);
    const V width = select(d > S(0), d, one);
    const auto narrow = d * (one + absolute(u)) < select(highest, zero, select(lowest, zero, splat<V>(kNarrow)));
    log_p = select(narrow, logarithm(S(2 * kInvSqrt2Pi) * d * sum) - S(0.5) * m, log_p);
    by_u = select(narrow, sum_u / sum - u, by_u);
    by_d = select(narrow, one / width + sum_d / sum, by_d);
    return {-log_p, turn * inverse * by_u, S(0.5) * (u * by_u + d * by_d)};
}

}  // namespace PF_NAMESPACE
