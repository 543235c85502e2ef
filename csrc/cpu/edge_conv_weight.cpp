// The adjoint of edge_conv in the weight, and the bias's gradient; edge_conv.cpp has the other two.
#include "edge_conv_planes.h"

#include "../export.h"

namespace PF_NAMESPACE {
namespace {

#if defined(__AVX512F__)
constexpr int kWeightRows = 4, kWeightColumns = 6;  // of the tile of a weight gradient
#else
constexpr int kWeightRows = 2, kWeightColumns = 4;
#endif

// sums[row][column] += rows[row * plane + x] * columns[column][x], over whole vectors that cover [0, count).
template <class V, class S = Scalar<V>>
PF_FN void weight_tile(const S* rows, int64_t plane, const S* const* columns, int64_t count, V* sums) {
    constexpr int kStep = static_cast<int>(Lanes<V>::size());
    V total[kWeightRows][kWeightColumns];
#pragma GCC unroll 8
    for (int r = 0; r < kWeightRows; ++r)
#pragma GCC unroll 8
        for (int c = 0; c < kWeightColumns; ++c) total[r][c] = sums[r * kWeightColumns + c];
    for (int64_t x = 0; x < count; x += kStep) {
        V row[kWeightRows];
#pragma GCC unroll 8
        for (int r = 0; r < kWeightRows; ++r) row[r] = load<V>(rows + r * plane + x);
#pragma GCC unroll 8
        for (int c = 0; c < kWeightColumns; ++c) {
            const V column = load<V>(columns[c] + x);
#pragma GCC unroll 8
            for (int r = 0; r < kWeightRows; ++r) total[r][c] += row[r] * column;
        }
    }
#pragma GCC unroll 8
    for (int r = 0; r < kWeightRows; ++r)
#pragma GCC unroll 8
        for (int c = 0; c < kWeightColumns; ++c) sums[r * kWeightColumns + c] = total[r][c];
}

template <class V>
PF_FN double lane_sum(V v) {
    Scalar<V> lane[Lanes<V>::size()];
    store(lane, v);
    double sum = 0;
    for (Scalar<V> x : lane) sum += x;
    return sum;
}

// Of [0, count) and what follows in the last vector, which is zero.
template <class V, class S = Scalar<V>>
PF_FN double plane_sum(const S* plane, int64_t count) {
    constexpr int kStep = static_cast<int>(Lanes<V>::size());
    V total{};
    for (int64_t x = 0; x < count; x += kStep) total += load<V>(plane + x);
    return lane_sum(total);
}

template <class T, class S = S_of<T>>
void weight_gradient(const Geometry& g, const T* image, const T* feature, const T* gate, S slope, T* gradient,
                     T* bias_gradient, int threads) {
    using V = Pack<T>;
    constexpr int64_t kTile = kWeightRows * kWeightColumns;
    const int64_t columns = g.phases() * g.shifts(), count = (g.fh - 1) * g.pitch() + g.fw;
    const int64_t across = (columns + kWeightColumns - 1) / kWeightColumns;
    const int64_t down = (g.k + kWeightRows - 1) / kWeightRows;
    std::vector<double> partial(g.pieces() * g.k * columns), bias_partial(g.pieces() * g.k);
    parallel_for(g.pieces(), threads, g.small(), [&](int64_t piece) {
        S* const phases = zeros<S>(0, g.phases() * g.phase_plane());
        S* const row = zeros<S>(1, g.s * g.pitch() + g.p + g.w + kSlack);
        S* const planes = zeros<S>(2, down * kWeightRows * g.feature_plane());
        V* const sums = zeros<V>(3, down * across * kTile);
        for (int64_t n = piece * g.group(); n < g.n && n < (piece + 1) * g.group(); ++n) {
            pack_image(g, image + n * g.image[0], phases, row);
            const int64_t at = n * g.feature[0];
            pack_features(g, feature + at, gate ? gate + at : nullptr, slope, planes);
            for (int64_t k = 0; bias_gradient && k < g.k; ++k)
                bias_partial[piece * g.k + k] +=
                    plane_sum<V>(planes + k * g.feature_plane() + g.feature_start(), count);
            for (int64_t i = 0; i < down; ++i)
                for (int64_t j = 0; j < across; ++j) {
                    const S* shifted[kWeightColumns];
                    for (int64_t c = 0; c < kWeightColumns; ++c) {
                        // The last tile repeats the last column.
                        const int64_t t = j * kWeightColumns + c < columns ? j * kWeightColumns + c : columns - 1;
                        shifted[c] = phases + t / g.shifts() * g.phase_plane() + g.shift(t % g.shifts());
                    }
                    weight_tile<V>(planes + i * kWeightRows * g.feature_plane() + g.feature_start(), g.feature_plane(),
                                   shifted, count, sums + (i * across + j) * kTile);
                }
        }
        for (int64_t k = 0; k < g.k; ++k)
            for (int64_t t = 0; t < columns; ++t) {
                const V total = sums[(k / kWeightRows * across + t / kWeightColumns) * kTile +
                                     k % kWeightRows * kWeightColumns + t % kWeightColumns];
                partial[(piece * g.k + k) * columns + t] = lane_sum(total);
            }
    });
    for (int64_t k = 0; bias_gradient && k < g.k; ++k) {
        double sum = 0;
        for (int64_t piece = 0; piece < g.pieces(); ++piece) sum += bias_partial[piece * g.k + k];
        bias_gradient[k] = from_scalar<T>(static_cast<S>(sum));
    }
    for (int64_t k = 0; k < g.k; ++k)
        for (int64_t t = 0; t < columns; ++t) {
            double sum = 0;
            for (int64_t piece = 0; piece < g.pieces(); ++piece) sum += partial[(piece * g.k + k) * columns + t];
            gradient[weight_index(g, k, t / g.shifts(), t % g.shifts())] = from_scalar<T>(static_cast<S>(sum));
        }
}

}  // namespace

// gate and bias_gradient may be null.
static const char* edge_conv_weight(const void* image, const void* feature, const void* gate, void* gradient,
                                    void* bias_gradient, double slope, int type, int threads, PF_GEOMETRY) {
    return with_type(type, [&](auto element) -> const char* {
        using T = decltype(element);
        weight_gradient<T>(PF_GIVEN, static_cast<const T*>(image), static_cast<const T*>(feature),
                           static_cast<const T*>(gate), static_cast<S_of<T>>(slope), static_cast<T*>(gradient),
                           static_cast<T*>(bias_gradient), threads);
        return nullptr;
    });
}
PF_EXPORT(edge_conv_weight);

}  // namespace PF_NAMESPACE
