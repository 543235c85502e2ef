// The negative log-likelihood of images under a mixture of discretised logistics, and its backward: one pass over the
// parameters each, a vector of pixels at a time.
//
// Floor, P parameters a pixel (10 M for three channels): 4 P bytes read forward, 8 P backward. About 90 vector
// operations for each channel of each component, so arithmetic comes first.
#include "samples.h"

#include "../export.h"

namespace PF_NAMESPACE {
// Before the formulas, which do not find functions of built-in vectors later.
PF_FN vdouble sinh_ratio(vdouble h) {
    return each_lane(h, [](double v) { return v < 1e-8 ? 1.0 : ::sinh(v) / v; });
}
PF_FN vdouble falling_exponential(vdouble x) { return exponential(x); }
}  // namespace PF_NAMESPACE

#include "../math/logistic.h"

namespace PF_NAMESPACE {
namespace {

constexpr int64_t kPixels = 256;  // of a piece
constexpr int64_t kSmallImages = 512;  // pixels below which a second thread costs more than it gives

template <class T, int C, class V = Pack<T>>
PF_FN void read_component(const T* params, int64_t mixtures, int64_t pixels, int64_t m, int64_t at, int64_t count,
                          Component<V, C>& part) {
    part.logit = read_some(params + m * pixels + at, count);
    PF_UNROLL_CHANNELS
    for (int c = 0; c < C; ++c) {
        const auto read = [&](int kind) {
            return read_some(params + plane_of(mixtures, C, c, kind, m) * pixels + at, count);
        };
        part.mean[c] = read(0);
        part.log_scale[c] = read(1);
        if constexpr (C == 3) part.coefficient[c] = read(2);
    }
}

template <class T, int C, class V = Pack<T>, class M = decltype(V{} < V{})>
PF_FN void read_pixels(const T* x, int64_t pixels, int64_t at, int64_t count, V* value, M* low, M* high) {
    using S = Scalar<V>;
    PF_UNROLL_CHANNELS
    for (int c = 0; c < C; ++c) {
        value[c] = read_some(x + c * pixels + at, count);
        low[c] = value[c] < S(-0.999);
        high[c] = value[c] > S(0.999);
    }
}

constexpr int64_t planes(int channels, int64_t mixtures) { return mixtures * (channels == 3 ? 10 : 3); }

// sums holds, for each pixel, ln sum exp of the logits; the largest logarithm of a weighted mass without its ratio; and
// the sum of the weighted masses over that: far out, where the logarithm has no digits left for this sum, the gradients
// need it.
template <class T, int C>
void forward(const T* x, const T* params, Scalar<Pack<T>>* nll, Scalar<Pack<T>>* sums, int64_t samples,
             int64_t mixtures, int64_t pixels, int threads) {
    using V = Pack<T>;
    using S = Scalar<V>;
    using M = decltype(V{} < V{});
    each_sample(
        samples, pixels, kPixels, nll, samples * pixels < kSmallImages, threads,
        [](int64_t, int64_t, int64_t, int64_t) { return 0; },
        [&](int, int64_t n, int64_t begin, int64_t end) {
            const T* image = x + n * C * pixels;
            const T* own = params + n * planes(C, mixtures) * pixels;
            double total = 0;
            for (int64_t at = begin; at < end; at += lanes<T>()) {
                const int64_t count = end - at < lanes<T>() ? end - at : lanes<T>();
                V value[C];
                M low[C], high[C];
                read_pixels<T, C>(image, pixels, at, count, value, low, high);
                const V one = splat<V>(1);
                LogSum<V> weight, mass;
                for (int64_t m = 0; m < mixtures; ++m) {
                    Component<V, C> part;
                    read_component<T, C>(own, mixtures, pixels, m, at, count, part);
                    V ratio;
                    const V logit = part.logit, rest = part.apply(value, low, high, ratio);
                    if (m == 0) {
                        weight.start(logit, one);
                        mass.start(rest, ratio);
                    } else {
                        weight.add(logit, one);
                        mass.add(rest, ratio);
                    }
                }
                const V weights = weight.value();
                write_some<S>(sums + (3 * n) * pixels + at, weights, count);
                write_some<S>(sums + (3 * n + 1) * pixels + at, mass.most, count);
                write_some<S>(sums + (3 * n + 2) * pixels + at, mass.sum, count);
                const V pixel = weights - mass.value();
                for (int lane = 0; lane < count; ++lane) total += pixel[lane];
            }
            return total;
        });
}

// dx may be null.
template <class T, int C>
void backward(const Scalar<Pack<T>>* dnll, const T* x, const T* params, const Scalar<Pack<T>>* sums, T* dx, T* dparams,
              int64_t samples, int64_t mixtures, int64_t pixels, int threads) {
    using V = Pack<T>;
    using S = Scalar<V>;
    using M = decltype(V{} < V{});
    each_sample(
        samples, pixels, kPixels, static_cast<S*>(nullptr), samples * pixels < kSmallImages, threads,
        [](int64_t, int64_t, int64_t, int64_t) { return 0; },
        [&](int, int64_t n, int64_t begin, int64_t end) {
            const int64_t start = n * planes(C, mixtures) * pixels;
            for (int64_t at = begin; at < end; at += lanes<T>()) {
                const int64_t count = end - at < lanes<T>() ? end - at : lanes<T>();
                V value[C], slope[C];
                M low[C], high[C];
                read_pixels<T, C>(x + n * C * pixels, pixels, at, count, value, low, high);
                PF_UNROLL_CHANNELS
                for (int c = 0; c < C; ++c) slope[c] = splat<V>(0);
                const V weights = read_some<S>(sums + (3 * n) * pixels + at, count);
                const V most = read_some<S>(sums + (3 * n + 1) * pixels + at, count);
                const V share = dnll[n] / read_some<S>(sums + (3 * n + 2) * pixels + at, count);
                for (int64_t m = 0; m < mixtures; ++m) {
                    Component<V, C> part;
                    read_component<T, C>(params + start, mixtures, pixels, m, at, count, part);
                    const V prior = dnll[n] * exponential(part.logit - weights);
                    V ratio;
                    const V rest = part.apply(value, low, high, ratio);
                    const V posterior = share * exponential(rest - most) * ratio;
                    part.differentiate(value, -posterior, prior - posterior, slope);
                    T* to = dparams + start;
                    write_some(to + m * pixels + at, part.logit, count);
                    PF_UNROLL_CHANNELS
                    for (int c = 0; c < C; ++c) {
                        const auto write = [&](int kind, V v) {
                            write_some(to + plane_of(mixtures, C, c, kind, m) * pixels + at, v, count);
                        };
                        write(0, part.mean[c]);
                        write(1, part.log_scale[c]);
                        if constexpr (C == 3) write(2, part.coefficient[c]);
                    }
                }
                if (dx) {
                    PF_UNROLL_CHANNELS
                    for (int c = 0; c < C; ++c) write_some(dx + (n * C + c) * pixels + at, slope[c], count);
                }
            }
            return 0.0;
        });
}

}  // namespace

// channels is 1 or 3. nll and sums are of the type that is computed in.
static const char* discretized_mix_logistic(const void* x, const void* params, void* nll, void* sums, int type,
                                            int64_t samples, int64_t channels, int64_t mixtures, int64_t pixels,
                                            int threads) {
    return with_type(type, [&](auto t) -> const char* {
        using T = decltype(t);
        using S = Scalar<Pack<T>>;
        const auto run = channels == 3 ? forward<T, 3> : forward<T, 1>;
        run(static_cast<const T*>(x), static_cast<const T*>(params), static_cast<S*>(nll), static_cast<S*>(sums),
            samples, mixtures, pixels, threads);
        return nullptr;
    });
}
PF_EXPORT(discretized_mix_logistic);

// dx may be null.
static const char* discretized_mix_logistic_backward(const void* dnll, const void* x, const void* params,
                                                     const void* sums, void* dx, void* dparams, int type,
                                                     int64_t samples, int64_t channels, int64_t mixtures,
                                                     int64_t pixels, int threads) {
    return with_type(type, [&](auto t) -> const char* {
        using T = decltype(t);
        using S = Scalar<Pack<T>>;
        const auto run = channels == 3 ? backward<T, 3> : backward<T, 1>;
        run(static_cast<const S*>(dnll), static_cast<const T*>(x), static_cast<const T*>(params),
            static_cast<const S*>(sums), static_cast<T*>(dx), static_cast<T*>(dparams), samples, mixtures, pixels,
            threads);
        return nullptr;
    });
}
PF_EXPORT(discretized_mix_logistic_backward);

}  // namespace PF_NAMESPACE
