// Elementwise work that ends in one number a sample: losses and divergences. The elements of a sample lie together.
#pragma once

#include <memory>

#include "threads.h"
#include "types.h"

namespace PF_NAMESPACE {

template <class T>
PF_FN Pack<T> read_some(const T* p, int64_t n) {
    return n == lanes<T>() ? Storage<T>::read(p) : read_part(p, n);
}
template <class T>
PF_FN void write_some(T* p, Pack<T> v, int64_t n) {
    n == lanes<T>() ? Storage<T>::write(p, v) : write_part(p, v, n);
}

// f(k, count) for `count` elements from k on, a pack of them but at the end; returns the sum of what f returns.
template <class T, class F>
PF_FN double sum_over(int64_t n, F f) {
    constexpr int64_t kStep = lanes<T>();
    using V = Pack<T>;
    V total = splat<V>(0), other = splat<V>(0);
    int64_t k = 0;
    for (; k + 2 * kStep <= n; k += 2 * kStep) {
        total += f(k, kStep);
        other += f(k + kStep, kStep);
    }
    for (; k + kStep <= n; k += kStep) total += f(k, kStep);
    total += other;
    double sum = sum_lanes(total);
    if (k < n) {
        const V rest = f(k, n - k);
        for (int lane = 0; lane < n - k; ++lane) sum += rest[lane];
    }
    return sum;
}

constexpr int64_t kPart = 4096;  // elements, a multiple of a block of noise
constexpr int64_t kSmallWork = 8192;  // elements below which a second thread costs more than it gives

// f(state, sample, begin, end) for every part of every sample, in pieces of whole samples, or of `size` elements of one
// where samples are larger; `state` is what before(first, last, begin, end) returns at the start of a piece. sums[n] is
// the sum of what f returned for sample n, in a fixed order; sums may be null.
template <class S, class Before, class F>
void each_sample(int64_t samples, int64_t elements, int64_t size, S* sums, bool small, int threads, Before before,
                 F f) {
    if (samples <= 0) return;
    const int64_t parts = elements > size ? (elements + size - 1) / size : 1;
    const int64_t group = parts > 1 ? 1 : size / (elements > 0 ? elements : size);  // samples of a piece
    const int64_t pieces = parts > 1 ? samples * parts : (samples + group - 1) / group;
    const std::unique_ptr<double[]> partial(new double[samples * parts]);
    parallel_for(pieces, threads, small, [&](int64_t piece) {
        const int64_t first = parts > 1 ? piece / parts : piece * group, part = parts > 1 ? piece % parts : 0;
        const int64_t last = parts > 1 ? first + 1 : (first + group < samples ? first + group : samples);
        const int64_t begin = part * size, end = begin + size < elements ? begin + size : elements;
        auto state = before(first, last, begin, end);
        for (int64_t n = first; n < last; ++n) partial[n * parts + part] = f(state, n, begin, end);
    });
    if (!sums) return;
    for (int64_t n = 0; n < samples; ++n) {
        double sum = 0;
        for (int64_t part = 0; part < parts; ++part) sum += partial[n * parts + part];
        sums[n] = static_cast<S>(sum);
    }
}

}  // namespace PF_NAMESPACE
