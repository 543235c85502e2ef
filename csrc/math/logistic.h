// A discretised logistic distribution: the mass that a logistic of mean m and scale s gives to the bin of width 2/255
// around x, where the first bin of [-1, 1] reaches down to minus infinity and the last one up to infinity
// (Salimans et al. 2017, "PixelCNN++", equation 2).
//
// With mid = (x - m) / s, h = 1 / (255 s), a = mid + h and b = mid - h the mass is
//     sigma(a) - sigma(b) = sigma(a) sigma(-b) (1 - exp(-2h)),
// of which every factor is positive and none cancels: its logarithm is right also far in the tails.
#pragma once

#include "elementary.h"

namespace PF_NAMESPACE {

// Loops over channels, whose arrays are to be registers.
#ifdef __CUDA_ARCH__
#define PF_UNROLL_CHANNELS _Pragma("unroll")
#elif defined(__CUDACC__)
#define PF_UNROLL_CHANNELS
#else
#define PF_UNROLL_CHANNELS _Pragma("GCC unroll 3")
#endif

constexpr double kHalfBin = 1.0 / 255.0;
constexpr double kLogBin = -4.8481164219183;  // ln(2 / 255)
constexpr double kLeastLogScale = -7.0;

// ln x for normal positive x.
template <class V>
PF_FN V log_positive(V x) {
    const auto exponent = (as_bits(x) - 0x3f3504f3) >> 23;
    const V f = from_bits(as_bits(x) - (exponent << 23)) - 1.0f;
    const V e = to_float(exponent);
    // Infinity and NaN stay what they are.
    return select(x < 3.0e38f, e * kLn2High + (e * kLn2Low + log1p_near_zero(f)), x);
}

PF_FN double log_positive(double x) { return ::log(x); }

// ln(1 - exp(-2h)) - ln(2h) and 2h / (exp(2h) - 1), for h > 0. exp(-2h) is `decay`.
template <class V>
PF_FN V log_bin_factor(V h, V decay, V log_double) {
    const V u = h * h;
    const V series =
        u * polynomial(u, 1.6666667e-01f, -5.5555556e-03f, 3.5273369e-04f, -2.6455026e-05f, 2.1377799e-06f) - h;
    const V large = select(h < 0.62f, splat<V>(0.0f), -decay);
    return select(h < 0.62f, series, log1p_near_zero(large) - log_double);
}
template <class V>
PF_FN V bin_slope(V h, V decay) {
    const V u = h * h;
    const V series = 1.0f - h +
                     u * polynomial(u, 3.3333333e-01f, -2.2222222e-02f, 2.1164021e-03f, -2.1164021e-04f, 2.1377799e-05f,
                                    -2.1644043e-06f);
    return select(h < 0.62f, series, 2.0f * h * decay / (1.0f - decay));
}

PF_FN double log_bin_factor(double h, double, double log_double) { return ::log(-::expm1(-2.0 * h)) - log_double; }
PF_FN double bin_slope(double h, double) { return h < 1e-8 ? 1.0 - h : 2.0 * h / ::expm1(2.0 * h); }

// One bin of one logistic. low and high: whether x is the first or the last value.
template <class V>
struct Bin {
    V inverse;      // 1 / s
    V log_rest;     // the logarithm of the mass is log_rest - ln(product)
    V product;      // (1 + exp(-|a|)) (1 + exp(-|b|)), in [1, 4]
    V slope_mid;    // d log mass / d mid
    V slope_scale;  // -d log mass / d ln s
};

template <class V, class M>
PF_FN Bin<V> logistic_bin(V centered, V log_scale, M low, M high) {
    using S = Scalar<V>;
    const V zero = splat<V>(0), one = splat<V>(1);
    const V inverse = exponential(-log_scale);
    const V mid = centered * inverse, h = S(kHalfBin) * inverse;
    const V a = mid + h, b = mid - h;
    const V ea = exponential(-absolute(a)), eb = exponential(-absolute(b));
    const V decay = exponential(S(-2) * h);
    const V log_double = S(kLogBin) - log_scale;
    // ln sigma(a) = min(a, 0) - ln(1 + ea), absent in the last bin; ln sigma(-b) = -max(b, 0) - ln(1 + eb), absent in
    // the first.
    const V left = select(high, zero, select(a < S(0), a, zero));
    const V right = select(low, zero, select(b > S(0), b, zero));
    const V middle = select(low, zero, select(high, zero, log_double + log_bin_factor(h, decay, log_double)));
    Bin<V> bin;
    bin.inverse = inverse;
    bin.log_rest = left - right + middle;
    const V da = one + ea, db = one + eb;
    bin.product = select(high, one, da) * select(low, one, db);
    const V above = select(high, zero, select(a < S(0), one, ea) / da);  // sigma(-a)
    const V below = select(low, zero, select(b < S(0), eb, one) / db);   // sigma(b)
    const V width = select(low, zero, select(high, zero, bin_slope(h, decay)));
    bin.slope_mid = above - below;
    bin.slope_scale = mid * bin.slope_mid + h * (above + below) + width;
    return bin;
}

// One component of the mixture over the C channels of a pixel, 1 or 3. The means of the second and the third channel
// are shifted by coefficients times the channels before them.
template <class V, int C>
struct Component {
    V logit, mean[C], log_scale[C], coefficient[C];  // as the parameters are, before tanh and before the bound
    Bin<V> bin[C];

    // ln of weight (not normalised) times mass.
    template <class M>
    PF_FN V apply(const V* x, const M* low, const M* high) {
        using S = Scalar<V>;
        V rest = logit, product = splat<V>(1);
        PF_UNROLL_CHANNELS
        for (int c = 0; c < C; ++c) {
            V m = mean[c];
            if constexpr (C == 3) {
                coefficient[c] = hyperbolic_tangent(coefficient[c]);
                if (c == 1) m = m + coefficient[0] * x[0];
                if (c == 2) m = m + coefficient[1] * x[0] + coefficient[2] * x[1];
            }
            const V s = select(log_scale[c] < S(kLeastLogScale), splat<V>(S(kLeastLogScale)), log_scale[c]);
            bin[c] = logistic_bin(x[c] - m, s, low[c], high[c]);
            rest = rest + bin[c].log_rest;
            product = product * bin[c].product;
        }
        return rest - log_positive(product);
    }

    // After apply: turns the parameters into their gradients, for the cotangents of the mass and of the logit, and adds
    // to those of x.
    PF_FN void differentiate(const V* x, V of_mass, V of_logit, V* dx) {
        using S = Scalar<V>;
        logit = of_logit;
        PF_UNROLL_CHANNELS
        for (int c = 0; c < C; ++c) {
            mean[c] = -(of_mass * bin[c].slope_mid * bin[c].inverse);
            dx[c] = dx[c] - mean[c];
            const V slope = -(of_mass * bin[c].slope_scale);
            log_scale[c] = select(log_scale[c] < S(kLeastLogScale), splat<V>(0), slope);
        }
        if constexpr (C == 3) {
            dx[0] = dx[0] + mean[1] * coefficient[0] + mean[2] * coefficient[1];
            dx[1] = dx[1] + mean[2] * coefficient[2];
            const V shift[3] = {mean[1] * x[0], mean[2] * x[0], mean[2] * x[1]};
            PF_UNROLL_CHANNELS
            for (int c = 0; c < 3; ++c) coefficient[c] = shift[c] * (S(1) - coefficient[c] * coefficient[c]);
        }
    }
};

// Plane of a parameter in PixelCNN++'s layout: M logits, then for each channel M means, M log-scales and, where there
// are three channels, M coefficients.
PF_FN int64_t plane_of(int64_t mixtures, int channels, int channel, int kind, int64_t m) {
    const int kinds = channels == 3 ? 3 : 2;
    return mixtures * (1 + channel * kinds + kind) + m;
}

// max + ln sum of exp over values that come one by one.
template <class V>
struct LogSum {
    V most, sum;
    PF_FN void start(V v) {
        most = v;
        sum = splat<V>(1);
    }
    PF_FN void add(V v) {
        using S = Scalar<V>;
        const V apart = select(v == most, splat<V>(0), v - most);  // also where both are -infinity
        const V e = exponential(-absolute(apart));
        sum = select(apart > S(0), sum * e + S(1), sum + e);
        most = select(apart > S(0), v, most);
    }
    PF_FN V value() const { return most + log_positive(sum); }
};

}  // namespace PF_NAMESPACE
