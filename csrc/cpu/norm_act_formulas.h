// What norm_act computes: for each element in the loops, and for lines that share a mean from their sums.
#pragma once

#include "types.h"

#include "../math/activation.h"

namespace PF_NAMESPACE {
namespace {

// The formulas of the loops: kIn tensors in, kCoef numbers a line, kOut tensors out, kSums sums a line.

// in: x. coef: an estimate of the mean.
template <class T>
struct Statistics {
    using V = Pack<T>;
    static constexpr int kIn = 1, kCoef = 1, kOut = 0, kSums = 2;
    static PF_FN void apply(const V* in, const V* k, Scalar<V>, V*, V* sums) {
        const V d = in[0] - k[0];
        sums[0] += d;
        sums[1] += d * d;
    }
};

// Every line's first three coefficients: with x less the mean, z = (x - mean) scale + shift.
enum { kMean, kScale, kShift };

// in: x. out: y.
template <class T, int A>
struct Forward {
    using V = Pack<T>;
    static constexpr int kIn = 1, kCoef = 3, kOut = 1, kSums = 0;
    static PF_FN void apply(const V* in, const V* k, Scalar<V> slope, V* out, V*) {
        out[0] = activate<A>((in[0] - k[kMean]) * k[kScale] + k[kShift], slope);
    }
};

// in: x, dy. dx = dz scale + x of_x + constant.
enum { kOfX = 3, kConstant };

template <class T, int A>
struct BackwardSums {
    using V = Pack<T>;
    static constexpr int kIn = 2, kCoef = 3, kOut = 0, kSums = 2;
    static PF_FN void apply(const V* in, const V* k, Scalar<V> slope, V*, V* sums) {
        const V x = in[0] - k[kMean], dz = in[1] * activate_slope<A>(x * k[kScale] + k[kShift], slope);
        sums[0] += dz;
        sums[1] += dz * x;
    }
};

template <class T, int A>
struct BackwardResults {
    using V = Pack<T>;
    static constexpr int kIn = 2, kCoef = 5, kOut = 1, kSums = 0;
    static PF_FN void apply(const V* in, const V* k, Scalar<V> slope, V* out, V*) {
        const V x = in[0] - k[kMean], dz = in[1] * activate_slope<A>(x * k[kScale] + k[kShift], slope);
        out[0] = k[kScale] * dz + k[kOfX] * x + k[kConstant];
    }
};

// in: x, dy, v. t = v scale + x tangent_of_x + tangent; grad_x = dy act'' t scale + dz tangent_of_x + v of_v + x of_x +
// constant.
enum { kOfV = 5, kTangentOfX, kTangent };

template <class T, int A>
struct SecondSums {
    using V = Pack<T>;
    static constexpr int kIn = 3, kCoef = 3, kOut = 0, kSums = piecewise_linear(A) ? 5 : 10;
    static PF_FN void apply(const V* in, const V* k, Scalar<V> slope, V*, V* sums) {
        const V x = in[0] - k[kMean], z = x * k[kScale] + k[kShift], v = in[2];
        const V dz = in[1] * activate_slope<A>(z, slope);
        sums[0] += dz;
        sums[1] += dz * x;
        sums[2] += v;
        sums[3] += v * x;
        sums[4] += dz * v;
        if constexpr (!piecewise_linear(A)) {
            const V c = in[1] * activate_curvature<A>(z), cx = c * x;
            sums[5] += c;
            sums[6] += cx;
            sums[7] += cx * x;
            sums[8] += c * v;
            sums[9] += cx * v;
        }
    }
};

template <class T, int A>
struct SecondResults {
    using V = Pack<T>;
    static constexpr int kIn = 3, kCoef = 8, kOut = 2, kSums = 0;
    static PF_FN void apply(const V* in, const V* k, Scalar<V> slope, V* out, V*) {
        const V x = in[0] - k[kMean], z = x * k[kScale] + k[kShift], v = in[2];
        const V first = activate_slope<A>(z, slope);
        const V t = k[kScale] * v + k[kTangentOfX] * x + k[kTangent];
        out[0] = first * t;
        out[1] = k[kTangentOfX] * (in[1] * first) + k[kOfV] * v + k[kOfX] * x + k[kConstant];
        if constexpr (!piecewise_linear(A)) out[1] += k[kScale] * (in[1] * activate_curvature<A>(z) * t);
    }
};

constexpr int kMostSums = 10, kMostCoef = 8;

// Lines that share a mean.
template <class S>
struct Lines {
    int64_t count;
    double values;  // that the mean is of; 0 where there is no mean
    double rstd;
    const S *weight, *p, *q;  // of each line; weight may be null
    double weight_of(int64_t l) const { return weight ? static_cast<double>(weight[l]) : 1.0; }
    double share() const { return values > 0 ? 1 / values : 0; }
};

// From the sums of each line to the gradients and to the coefficients of the results, all `pitch` apart.
template <class S>
void solve_first(const Lines<S>& lines, const double* sums, S* coef, int64_t pitch, S* dweight, S* dbias) {
    const double r = lines.rstd;
    double u = 0, a = 0;
    for (int64_t l = 0; l < lines.count; ++l) {
        const double w = lines.weight_of(l) * lines.share();
        u += w * sums[l];
        a += w * sums[pitch + l] * r;
        dbias[l] = static_cast<S>(sums[l]);
        dweight[l] = static_cast<S>(sums[pitch + l] * r);
    }
    for (int64_t l = 0; l < lines.count; ++l) {
        coef[kOfX * pitch + l] = static_cast<S>(-r * r * a);
        coef[kConstant * pitch + l] = static_cast<S>(-r * u);
    }
}

template <class S>
void solve_second(const Lines<S>& lines, bool smooth, const double* sums, S* coef, int64_t pitch, S* grad_weight,
                  S* grad_bias) {
    const double r = lines.rstd, share = lines.share();
    const auto sum = [&](int k, int64_t l) { return sums[k * pitch + l]; };
    double u = 0, a = 0, vm = 0, b = 0, uv = 0;
    for (int64_t l = 0; l < lines.count; ++l) {
        const double w = lines.weight_of(l) * share;
        u += w * sum(0, l);
        a += w * sum(1, l) * r;
        vm += share * sum(2, l);
        b += share * sum(3, l) * r;
        uv += w * sum(4, l);
    }
    double e = 0, ex = 0;  // the means of e and of e xhat, e being what reaches xhat
    for (int64_t l = 0; l < lines.count; ++l) {
        const double w = lines.weight_of(l), p = lines.p[l];
        const double of_v = w * r, of_xhat = p - w * r * b, constant = static_cast<double>(lines.q[l]) - w * r * vm;
        double s = 0, sx = 0;
        if (smooth) {
            s = of_v * sum(8, l) + of_xhat * sum(6, l) * r + constant * sum(5, l);
            sx = of_v * sum(9, l) * r + of_xhat * sum(7, l) * r * r + constant * sum(6, l) * r;
        }
        grad_weight[l] = static_cast<S>(r * (sum(4, l) - vm * sum(0, l) - b * sum(1, l) * r) + sx);
        grad_bias[l] = static_cast<S>(s);
        e += share * (w * s + p * sum(0, l));
        ex += share * (w * sx + p * sum(1, l) * r);
        coef[kTangentOfX * pitch + l] = static_cast<S>(of_xhat * r);
        coef[kTangent * pitch + l] = static_cast<S>(constant);
    }
    e -= r * (b * u + a * vm);
    ex -= 2 * r * a * b;
    const double spread = uv - u * vm - a * b;
    for (int64_t l = 0; l < lines.count; ++l) {
        coef[kOfV * pitch + l] = static_cast<S>(-r * r * a);
        coef[kOfX * pitch + l] = static_cast<S>(-r * r * (ex + r * spread));
        coef[kConstant * pitch + l] = static_cast<S>(-r * e);
    }
}

}  // namespace
}  // namespace PF_NAMESPACE
