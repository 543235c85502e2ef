// The terms of a diffusion model's variational bound and their derivatives, an element a thread at a time.
//
// Floor: that of the CPU kernels. The sums over a sample are left as a number for each of up to 1024 threads a sample,
// which torch adds: without atomics, in an order of their own.
#include "launch.h"
#include "types.h"

#include "../export.h"
#include "../math/denoise.h"
#include "../math/gaussian_vlb.h"

namespace PF_NAMESPACE {
namespace {

template <class T>
using Computed = std::conditional_t<std::is_same_v<T, double>, double, float>;

template <class T>
struct Inputs {
    const T *x0, *state, *prediction, *variance;  // the last may be null: the log-variance is log_max then
    const Computed<T>* coefficients;
    int64_t row_stride;  // between samples, 0 where all share
    Computed<T> half, clip;  // clip is NaN if there is none
};

template <class T, class S = Computed<T>>
__device__ __forceinline__ VlbTerm<S> term(const Inputs<T>& in, const VlbCoefficients<S>& c, int64_t k, bool& open) {
    const S x0 = to_scalar(in.x0[k]), state = to_scalar(in.state[k]);
    S predicted = c.x0_state * state + c.x0_prediction * to_scalar(in.prediction[k]);
    open = true;
    if (in.clip == in.clip) {
        open = !(absolute(predicted) > in.clip);
        predicted = bounded(predicted, in.clip, S(1));
    }
    S log_variance = c.log_max;
    if (in.variance) log_variance = c.log_min + S(0.5) * (to_scalar(in.variance[k]) + S(1)) * (c.log_max - c.log_min);
    if (!c.decodes())
        return divergence(c.mean_x0 * (predicted - x0), log_variance, c.log_true, exponential(-c.log_true));
    return discretised(x0, c.mean_x0 * predicted + c.mean_state * state, log_variance, in.half);
}

template <class T, class S = Computed<T>>
__device__ __forceinline__ VlbCoefficients<S> row_of(const Inputs<T>& in, int64_t sample) {
    VlbCoefficients<S> c;
    memcpy(&c, in.coefficients + sample * in.row_stride, sizeof c);
    return c;
}

// `parts` threads share a sample; sums is (samples, parts).
template <class T>
__global__ void __launch_bounds__(kThreads, sizeof(T) == 8 ? 2 : 4)
    bound(Inputs<T> in, int64_t samples, int64_t elements, int64_t parts, Computed<T>* sums) {
    for (int64_t item = first_item(); item < samples * parts; item += item_stride()) {
        const int64_t sample = item / parts;
        const auto c = row_of(in, sample);
        Computed<T> sum = 0;
        for (int64_t k = item % parts; k < elements; k += parts) {
            bool open;
            sum += term(in, c, sample * elements + k, open).value;
        }
        sums[item] = sum;
    }
}

template <class T>
struct Gradients {
    T *x0, *state, *prediction, *variance;  // null where they are not wanted
};

template <class T>
__global__ void __launch_bounds__(kThreads, sizeof(T) == 8 ? 2 : 4)
    bound_backward(const Computed<T>* dnll, Inputs<T> in, int64_t elements, int64_t total, Gradients<T> to) {
    using S = Computed<T>;
    for (int64_t k = first_item(); k < total; k += item_stride()) {
        const int64_t sample = k / elements;
        const auto c = row_of(in, sample);
        bool open;
        const VlbTerm<S> found = term(in, c, k, open);
        const S by_mean = found.by_mean * dnll[sample];
        const S by_predicted = open ? by_mean * c.mean_x0 : S(0);
        // The divergence sees x_t through the predicted x0 alone: both means hold the same share of x_t.
        const S through_state = c.decodes() ? by_mean * c.mean_state : S(0);
        if (to.x0) to.x0[k] = from_scalar<T>(c.decodes() ? -by_mean : -by_mean * c.mean_x0);
        if (to.state) to.state[k] = from_scalar<T>(by_predicted * c.x0_state + through_state);
        if (to.prediction) to.prediction[k] = from_scalar<T>(by_predicted * c.x0_prediction);
        if (to.variance)
            to.variance[k] = from_scalar<T>(found.by_log_variance * S(0.5) * (c.log_max - c.log_min) * dnll[sample]);
    }
}

template <class T>
Inputs<T> inputs_of(const void* x0, const void* state, const void* prediction, const void* variance,
                    const void* coefficients, int64_t row_stride, double half, double clip) {
    using S = Computed<T>;
    return {static_cast<const T*>(x0),
            static_cast<const T*>(state),
            static_cast<const T*>(prediction),
            static_cast<const T*>(variance),
            static_cast<const S*>(coefficients),
            row_stride,
            static_cast<S>(half),
            static_cast<S>(clip)};
}

}  // namespace

static const char* gaussian_vlb(const void* x0, const void* state, const void* prediction, const void* variance,
                                const void* coefficients, int64_t row_stride, double half, double clip, void* sums,
                                int64_t parts, int type, int64_t samples, int64_t elements, void* queue) {
    return with_type(type, [&](auto t) {
        using T = decltype(t);
        const auto in = inputs_of<T>(x0, state, prediction, variance, coefficients, row_stride, half, clip);
        return launch(bound<T>, samples * parts, queue, in, samples, elements, parts, static_cast<Computed<T>*>(sums));
    });
}
PF_EXPORT(gaussian_vlb);

static const char* gaussian_vlb_backward(const void* dnll, const void* x0, const void* state, const void* prediction,
                                         const void* variance, const void* coefficients, int64_t row_stride,
                                         double half, double clip, void* dx0, void* dstate, void* dprediction,
                                         void* dvariance, int type, int64_t samples, int64_t elements, void* queue) {
    return with_type(type, [&](auto t) {
        using T = decltype(t);
        const auto in = inputs_of<T>(x0, state, prediction, variance, coefficients, row_stride, half, clip);
        const Gradients<T> to{static_cast<T*>(dx0), static_cast<T*>(dstate), static_cast<T*>(dprediction),
                              static_cast<T*>(dvariance)};
        return launch(bound_backward<T>, samples * elements, queue, static_cast<const Computed<T>*>(dnll), in, elements,
                      samples * elements, to);
    });
}
PF_EXPORT(gaussian_vlb_backward);

}  // namespace PF_NAMESPACE
