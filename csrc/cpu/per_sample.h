// Losses of elements that are summed over each sample, and their gradients. A loss F has kIn inputs, `value` of a pack
// of each, and `slopes`, its derivatives by all of them.
#pragma once

#include "samples.h"

namespace PF_NAMESPACE {

// in: the inputs; nll: a number a sample, of the type that is computed in.
template <class F>
const char* per_sample_forward(const void* const* in, void* nll, int type, int64_t samples, int64_t elements,
                               int threads) {
    return with_type(type, [&](auto t) -> const char* {
        using T = decltype(t);
        using V = Pack<T>;
        each_sample(
            samples, elements, kPart, static_cast<Scalar<V>*>(nll), samples * elements < kSmallWork, threads,
            [](int64_t, int64_t, int64_t, int64_t) { return 0; },
            [&](int, int64_t n, int64_t begin, int64_t end) {
                const int64_t start = n * elements + begin;
                return sum_over<T>(end - begin, [&](int64_t k, int64_t count) {
                    V v[F::kIn];
                    for (int j = 0; j < F::kIn; ++j) v[j] = read_some(static_cast<const T*>(in[j]) + start + k, count);
                    return F::value(v);
                });
            });
        return nullptr;
    });
}

// out: gradients to the inputs, null where they are not wanted; dnll: a number a sample.
template <class F>
const char* per_sample_backward(const void* dnll, const void* const* in, void* const* out, int type, int64_t samples,
                                int64_t elements, int threads) {
    return with_type(type, [&](auto t) -> const char* {
        using T = decltype(t);
        using V = Pack<T>;
        using S = Scalar<V>;
        each_sample(
            samples, elements, kPart, static_cast<S*>(nullptr), samples * elements < kSmallWork, threads,
            [](int64_t, int64_t, int64_t, int64_t) { return 0; },
            [&](int, int64_t n, int64_t begin, int64_t end) {
                const int64_t start = n * elements + begin;
                const S of_sum = static_cast<const S*>(dnll)[n];
                return sum_over<T>(end - begin, [&](int64_t k, int64_t count) {
                    V v[F::kIn], slope[F::kIn];
                    for (int j = 0; j < F::kIn; ++j) v[j] = read_some(static_cast<const T*>(in[j]) + start + k, count);
                    F::slopes(v, slope);
                    for (int j = 0; j < F::kIn; ++j)
                        if (out[j]) write_some(static_cast<T*>(out[j]) + start + k, of_sum * slope[j], count);
                    return splat<V>(0);
                });
            });
        return nullptr;
    });
}

}  // namespace PF_NAMESPACE
