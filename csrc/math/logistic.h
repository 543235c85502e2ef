// A discretised logistic distribution: the mass that a logistic of mean m and scale s gives to the bin of width 2/255
// around x, where the first bin of [-1, 1] reaches down to minus infinity and the last one up to infinity
// (Salimans et al. 2017, "PixelCNN++", equation 2).
//
// With mid = (x - m) / s and h = 1 / (255 s) the mass is sigma(mid + h) - sigma(mid - h). In |mid|, with E =
// exp(-|mid|) and q = exp(-h), it is
//     2h E (sinh(h) / h) / ((1 + E q) (1 + E / q)),
// of which every factor is positive and none cancels: its logarithm is right also far in the tails. The two factors of
// the denominator belong to the outer and to the inner edge of the bin, seen from the mean; at an end of the range one
// of the edges is at infinity.
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
constexpr double kLogBin = -4.848116364598481;  // ln(2 / 255)
constexpr double kLeastLogScale = -7.0;

// sinh(h) / h for h from 0 to 1 / (255 exp(kLeastLogScale)) = 4.3006, by a minimax polynomial in h^2 whose coefficients
// are all positive.
template <class V>
PF_FN V sinh_ratio(V h) {
    return polynomial(h * h, 1.0f, 1.6666652e-01f, 8.3335219e-03f, 1.9833486e-04f, 2.7698663e-06f, 2.3800309e-08f,
                      2.1286307e-10f);
}
PF_FN double sinh_ratio(double h) { return h < 1e-8 ? 1.0 : ::sinh(h) / h; }

// e^x for x <= 0, without the bound above.
template <class V>
PF_FN V falling_exponential(V x) {
    x = at_least(x, -105.0f);
    const V k = (x * 1.44269504f + kRound) - kRound;
    const V r = (x - k * kLn2High) - k * kLn2Low;
    const V p = polynomial(r, 4.9999994e-01f, 1.6666515e-01f, 4.1668456e-02f, 8.369419e-03f, 1.3813142e-03f);
    return times_power_of_two(1.0f + (r + r * r * p), k);
}
PF_FN double falling_exponential(double x) { return ::exp(x); }

// One bin of one logistic. low and high: whether x is the first or the last value.
template <class V>
struct Bin {
    V inverse;             // 1 / s
    V log_rest;            // the logarithm of the mass is log_rest + ln(numerator / denominator)
    V numerator;           // from 1 to 8.6
    V denominator;         // from 1 to 150
    V slope_mid;           // d log mass / d mid
    V slope_scale;         // -d log mass / d ln s
};

template <class V, class M>
PF_FN Bin<V> logistic_bin(V centered, V log_scale, M low, M high) {
    using S = Scalar<V>;
    const V zero = splat<V>(0), one = splat<V>(1);
    const V inverse = exponential(-log_scale);
    const V mid = centered * inverse, h = S(kHalfBin) * inverse, distance = absolute(mid);
    const M below = mid < S(0), above = mid >= S(0);
    const M no_outer = (below & low) | (above & high), no_inner = (below & high) | (above & low);
    const V e = falling_exponential(-distance), q = falling_exponential(-h), sinh_h = sinh_ratio(h);
    const V p = q + S(2) * h * sinh_h;  // exp(h)
    const V o = select(no_outer, zero, e * q), i = select(no_inner, zero, e * p);
    const V outer = one + o, inner = one + i;
    const V log_double = S(kLogBin) - log_scale;  // ln 2h
    Bin<V> bin;
    bin.inverse = inverse;
    bin.log_rest = select(no_inner, zero, select(no_outer, h, log_double) - distance);
    bin.numerator = select(no_inner, one, select(no_outer, one, sinh_h));
    bin.denominator = outer * inner;
    const V r = one / (bin.denominator * sinh_h);
    const V scaled = r * sinh_h;
    const V of_outer = o * inner * scaled;                          // the logistic beyond the outer edge
    const V of_inner = select(no_inner, zero, outer * scaled);      // and what is within the inner one
    const V width = select(no_inner, zero, select(no_outer, zero, q * bin.denominator * r));  // 2h / (exp(2h) - 1)
    const V apart = of_outer - of_inner;
    bin.slope_mid = select(below, -apart, apart);
    bin.slope_scale = distance * apart + h * (of_outer + of_inner) + width;
    return bin;
}

// One component of the mixture over the C channels of a pixel, 1 or 3. The means of the second and the third channel
// are shifted by coefficients times the channels before them.
template <class V, int C>
struct Component {
    V logit, mean[C], log_scale[C], coefficient[C];  // as the parameters are, before tanh and before the bound
    Bin<V> bin[C];

    // ln of weight (not normalised) times mass, less ln ratio.
    template <class M>
    PF_FN V apply(const V* x, const M* low, const M* high, V& ratio) {
        using S = Scalar<V>;
        V rest = logit, numerator = splat<V>(1), denominator = splat<V>(1);
        PF_UNROLL_CHANNELS
        for (int c = 0; c < C; ++c) {
            V m = mean[c];
            if constexpr (C == 3) {
                // tanh, to an absolute error, which is what counts where it multiplies pixels of [-1, 1].
                coefficient[c] = S(1) - S(2) / (S(1) + exponential(S(2) * coefficient[c]));
                if (c == 1) m = m + coefficient[0] * x[0];
                if (c == 2) m = m + coefficient[1] * x[0] + coefficient[2] * x[1];
            }
            const V s = select(log_scale[c] < S(kLeastLogScale), splat<V>(S(kLeastLogScale)), log_scale[c]);
            bin[c] = logistic_bin(x[c] - m, s, low[c], high[c]);
            rest = rest + bin[c].log_rest;
            numerator = numerator * bin[c].numerator;
            denominator = denominator * bin[c].denominator;
        }
        ratio = numerator / denominator;
        return rest;
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

// The largest of values v that come one by one, each with a positive factor, and the sum of factor e^(v - most).
template <class V>
struct LogSum {
    V most, sum;
    PF_FN void start(V v, V factor) {
        most = v;
        sum = factor;
    }
    PF_FN void add(V v, V factor) {
        using S = Scalar<V>;
        const V apart = select(v == most, splat<V>(0), v - most);  // also where both are -infinity
        const V e = exponential(-absolute(apart));
        sum = select(apart > S(0), sum * e + factor, sum + factor * e);
        most = select(apart > S(0), v, most);
    }
    PF_FN V value() const { return most + logarithm(sum); }
};

}  // namespace PF_NAMESPACE
