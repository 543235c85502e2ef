// The terms of a diffusion model's variational bound, summed over each sample, and their derivatives. One pass each.
//
// Floor, n elements of s bytes: forward 4 n s over the copy bandwidth (x0, x_t, prediction, variance), backward 4 n s
// and n s for each gradient; an exponential an element.
#include "segments.h"

#include "../export.h"
#include "../math/denoise.h"

namespace PF_NAMESPACE {
// Before the formulas, which do not find functions of built-in vector types later.
PF_FN vdouble scaled_tail(vdouble q);
PF_FN vdouble decay_residual(vdouble r, vdouble decayed);
}  // namespace PF_NAMESPACE

#include "../math/gaussian_vlb.h"

namespace PF_NAMESPACE {

PF_FN vdouble scaled_tail(vdouble q) {
    return each_lane(q, [](double v) { return scaled_tail(v); });
}
PF_FN vdouble decay_residual(vdouble r, vdouble) {
    return each_lane(r, [](double v) { return decay_residual(v, 0.0); });
}

namespace {

constexpr int64_t kPiece = 4096;  // elements of a piece of work
constexpr int64_t kSmall = 8192;  // below this the calling thread does it all

template <class T>
struct Inputs {
    const T *x0, *state, *prediction, *variance;  // the last may be null: the log-variance is log_max then
};

// What each sample needs beside its elements.
template <class S>
struct Row {
    VlbCoefficients<S> c;
    S precision, half, clip;
    Row(const void* coefficients, int64_t stride, int64_t sample, double half_level, double clip_at) {
        memcpy(&c, static_cast<const S*>(coefficients) + sample * stride, sizeof c);
        precision = static_cast<S>(::exp(-static_cast<double>(c.log_true)));
        half = static_cast<S>(half_level);
        clip = static_cast<S>(clip_at);
    }
};

// The term at element k, and whether the clip binds on the predicted x0.
template <class T, class P, class V = Pack<T>, class S = Scalar<V>>
PF_FN VlbTerm<V> term(const Inputs<T>& in, const Row<S>& row, int64_t k, P part, V& open) {
    const auto& c = row.c;
    const V x0 = take(in.x0 + k, part), state = take(in.state + k, part);
    V predicted = c.x0_state * state + c.x0_prediction * take(in.prediction + k, part);
    open = splat<V>(1);
    if (row.clip == row.clip) {
        open = select(absolute(predicted) > row.clip, splat<V>(0), open);
        predicted = bounded(predicted, row.clip, S(1));
    }
    V log_variance = splat<V>(c.log_max);
    if (in.variance) log_variance = c.log_min + S(0.5) * (take(in.variance + k, part) + S(1)) * (c.log_max - c.log_min);
    if (!c.decodes()) return divergence(c.mean_x0 * (predicted - x0), log_variance, c.log_true, row.precision);
    return discretised(x0, c.mean_x0 * predicted + c.mean_state * state, log_variance, row.half);
}

}  // namespace

// nll: a number for each sample, of the computing type.
static const char* gaussian_vlb(const void* x0, const void* state, const void* prediction, const void* variance,
                                const void* coefficients, int64_t row_stride, double half, double clip, void* nll,
                                int type, int64_t samples, int64_t elements, int threads) {
    const int64_t size = samples * elements, pieces = (size + kPiece - 1) / kPiece;
    return with_type(type, [&](auto t) -> const char* {
        using T = decltype(t);
        using V = Pack<T>;
        using S = Scalar<V>;
        const Inputs<T> in{static_cast<const T*>(x0), static_cast<const T*>(state), static_cast<const T*>(prediction),
                           static_cast<const T*>(variance)};
        SampleSums sums(pieces, samples);
        parallel_for(pieces, threads, size < kSmall, [&](int64_t piece) {
            const int64_t begin = piece * kPiece, end = begin + kPiece < size ? begin + kPiece : size;
            parts_of_samples(begin, end, elements, [&](int64_t sample, int64_t start, int64_t count) {
                const Row<S> row(coefficients, row_stride, sample, half, clip);
                V total = splat<V>(0);
                each_pack<T>(count, [&](int64_t k, auto part) {
                    V open;
                    add(total, term(in, row, start + k, part, open).value, part);
                });
                sums.part(piece, sample) = sum_of_lanes(total);
            });
        });
        sums.finish(elements, [](int64_t piece) { return piece * kPiece; }, static_cast<S*>(nll));
        return nullptr;
    });
}
PF_EXPORT(gaussian_vlb);

// dnll: a number for each sample, of the computing type. Each output may be null.
static const char* gaussian_vlb_backward(const void* dnll, const void* x0, const void* state, const void* prediction,
                                         const void* variance, const void* coefficients, int64_t row_stride,
                                         double half, double clip, void* dx0, void* dstate, void* dprediction,
                                         void* dvariance, int type, int64_t samples, int64_t elements, int threads) {
    const int64_t size = samples * elements, pieces = (size + kPiece - 1) / kPiece;
    return with_type(type, [&](auto t) -> const char* {
        using T = decltype(t);
        using V = Pack<T>;
        using S = Scalar<V>;
        const Inputs<T> in{static_cast<const T*>(x0), static_cast<const T*>(state), static_cast<const T*>(prediction),
                           static_cast<const T*>(variance)};
        parallel_for(pieces, threads, size < kSmall, [&](int64_t piece) {
            const int64_t begin = piece * kPiece, end = begin + kPiece < size ? begin + kPiece : size;
            parts_of_samples(begin, end, elements, [&](int64_t sample, int64_t start, int64_t count) {
                const Row<S> row(coefficients, row_stride, sample, half, clip);
                const auto& c = row.c;
                const S g = static_cast<const S*>(dnll)[sample];
                // The divergence sees x_t through the predicted x0 alone: both means hold the same share of x_t.
                const S through_state = c.decodes() ? c.mean_state : S(0);
                const S to_x0 = c.decodes() ? S(-1) : -c.mean_x0;
                const S to_variance = S(0.5) * (c.log_max - c.log_min) * g;
                each_pack<T>(count, [&](int64_t j, auto part) {
                    const int64_t k = start + j;
                    V open;
                    const VlbTerm<V> found = term(in, row, k, part, open);
                    const V by_mean = found.by_mean * g, by_predicted = by_mean * c.mean_x0 * open;
                    if (dx0) put(static_cast<T*>(dx0) + k, by_mean * to_x0, part);
                    if (dstate)
                        put(static_cast<T*>(dstate) + k, by_predicted * c.x0_state + by_mean * through_state, part);
                    if (dprediction) put(static_cast<T*>(dprediction) + k, by_predicted * c.x0_prediction, part);
                    if (dvariance) put(static_cast<T*>(dvariance) + k, found.by_log_variance * to_variance, part);
                });
            });
        });
        return nullptr;
    });
}
PF_EXPORT(gaussian_vlb_backward);

}  // namespace PF_NAMESPACE
