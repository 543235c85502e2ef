// A penalty of each sample's norm |g|, and its derivative by g: one pass that adds up squares, one that scales.
#include <cmath>

#include "threads.h"
#include "types.h"

#include "../export.h"

namespace PF_NAMESPACE {

constexpr int64_t kPiece = 16384;  // elements of a piece of work, if samples are smaller
constexpr int64_t kBlock = 4096;   // elements that are added up in the computing type, before float64 takes over

template <class T>
static double sum_of_squares(const T* g, int64_t n) {
    constexpr int64_t kStep = lanes<T>();
    double total = 0;
    for (int64_t begin = 0; begin < n; begin += kBlock) {
        const int64_t end = begin + kBlock < n ? begin + kBlock : n;
        // Four sums, since one would wait for itself.
        Pack<T> sums[4] = {};
        int64_t k = begin;
        for (; k + 4 * kStep <= end; k += 4 * kStep)
            for (int j = 0; j < 4; ++j) {
                const Pack<T> x = Storage<T>::read(g + k + j * kStep);
                sums[j] += x * x;
            }
        for (; k < end; k += kStep) {
            const Pack<T> x = k + kStep <= end ? Storage<T>::read(g + k) : read_part(g + k, end - k);
            sums[0] += x * x;
        }
        const Pack<T> sum = (sums[0] + sums[1]) + (sums[2] + sums[3]);
        for (int j = 0; j < kStep; ++j) total += sum[j];
    }
    return total;
}

// kind 0: |g|^2 / 2; 1: (|g| - 1)^2; 2: max(0, |g| - 1)^2. Every sample's n elements lie one after the other.
static const char* norm_penalty(const void* g, void* penalty, void* norm, void* slope, int kind, double weight,
                                int type, int64_t samples, int64_t n, int threads) {
    return with_type(type, [&](auto element) -> const char* {
        using T = decltype(element);
        using S = Scalar<Pack<T>>;
        constexpr int64_t kStep = lanes<T>();
        const int64_t group = n > 0 && n < kPiece ? kPiece / n : 1;  // samples of a piece
        const int64_t pieces = (samples + group - 1) / group;
        parallel_for(pieces, threads, samples * n <= 2 * kPiece, [&](int64_t piece) {
            const int64_t last = (piece + 1) * group < samples ? (piece + 1) * group : samples;
            for (int64_t i = piece * group; i < last; ++i) {
                const T* from = static_cast<const T*>(g) + i * n;
                T* to = static_cast<T*>(slope) + i * n;
                const double square = sum_of_squares(from, n), length = std::sqrt(square);
                double value = 0.5 * square, factor = 1;
                if (kind != 0) {
                    double excess = length - 1;
                    if (kind == 2 && excess < 0) excess = 0;
                    value = excess * excess;
                    factor = square == 0 ? 0 : 2 * excess / length;
                }
                static_cast<S*>(penalty)[i] = static_cast<S>(weight * value);
                static_cast<S*>(norm)[i] = static_cast<S>(length);
                const S scale = static_cast<S>(weight * factor);
                int64_t k = 0;
                for (; k + kStep <= n; k += kStep) Storage<T>::write(to + k, Storage<T>::read(from + k) * scale);
                if (k < n) write_part(to + k, read_part(from + k, n - k) * scale, n - k);
            }
        });
        return nullptr;
    });
}
PF_EXPORT(norm_penalty);

}  // namespace PF_NAMESPACE
