// The adjoint of edge_conv in the weight, and the bias's gradient; edge_conv.cpp says what the three are.
#include "edge_conv_windows.h"

#include "../export.h"

namespace PF_NAMESPACE {
namespace {

// Features of some rows of a sample: as they lie in memory, or a copy in the computing type, behind their gate, with
// zeros behind the last one.
template <class S>
struct Features {
    const S* data;
    int64_t row, column;  // between rows and columns
};

// sums[r][v] += the sum over places of the pixel of term r and vector v of the features.
template <int kVectors, class V, class S = Scalar<V>>
PF_FN void outer_tile(const S* const* from, int64_t row, int64_t column, const S* features, const Features<S>& f,
                      int64_t rows, int64_t columns, V* sums) {
    constexpr int kStep = static_cast<int>(sizeof(V) / sizeof(S)), kRows = rows_of(kVectors);
    V total[kRows][kVectors];
#pragma GCC unroll 8
    for (int r = 0; r < kRows; ++r)
#pragma GCC unroll 4
        for (int v = 0; v < kVectors; ++v) total[r][v] = sums[r * kVectors + v];
    for (int64_t y = 0; y < rows; ++y) {
        const S* at = features + y * f.row;
        for (int64_t x = y * row, end = x + columns * column; x < end; x += column, at += f.column) {
            V by[kVectors];
#pragma GCC unroll 4
            for (int v = 0; v < kVectors; ++v) by[v] = load<V>(at + v * kStep);
#pragma GCC unroll 8
            for (int r = 0; r < kRows; ++r) {
                const V pixel = spread<V>(from[r][x]);
#pragma GCC unroll 4
                for (int v = 0; v < kVectors; ++v) total[r][v] += pixel * by[v];
            }
        }
    }
#pragma GCC unroll 8
    for (int r = 0; r < kRows; ++r)
#pragma GCC unroll 4
        for (int v = 0; v < kVectors; ++v) sums[r * kVectors + v] = total[r][v];
}

constexpr int64_t kPlacesAtOnce = 128;  // whose features stay in the nearest cache

// Some rows of features from `at` on, place by place, behind their gate and with zeros behind the last feature.
template <class T, class S = S_of<T>>
void lay_out(const Geometry& g, const T* feature, const T* gate, S slope, int64_t at, int64_t rows, S* to,
             int64_t wide) {
    using V = Pack<T>;
    constexpr int kStep = lanes<T>();
    const int64_t places = rows * g.fw;
    if (g.features_last()) {
        for (int64_t q = 0; q < places; ++q) {
            const int64_t from = at + q / g.fw * g.feature[2] + q % g.fw * g.feature[3];
            if (gate)
                read_gated_row(feature + from, gate + from, slope, 1, g.k, to + q * wide);
            else
                read_row(feature + from, 1, g.k, to + q * wide);
        }
        return;
    }
    for (int64_t k = 0; k < g.k; k += kStep)
        for (int64_t q = 0; q < places; q += kStep) {
            const int64_t some = places - q;
            const auto part = [&](const T* p) {
                // What comes next in this plane: the hardware does not follow as many planes.
                __builtin_prefetch(p + places);
                return some >= kStep ? Storage<T>::read(p) : read_part(p, some);
            };
            V r[kStep];
            for (int64_t i = 0; i < kStep; ++i) {
                const int64_t from = at + (k + i) * g.feature[1] + q;
                r[i] = k + i < g.k ? part(feature + from) : V{};
                if (gate && k + i < g.k) r[i] = gated(r[i], part(gate + from), slope);
            }
            transpose(r);
            for (int64_t i = 0; i < kStep && i < some; ++i) store(to + (q + i) * wide + k, r[i]);
        }
}

// The sums of a piece are in the computing type over a sample, and in float64 over samples and pieces.
template <class T, class S = S_of<T>>
void weight_gradient(const Geometry& g, const T* image, const T* feature, const T* gate, S slope, T* gradient,
                     T* bias_gradient, int threads) {
    using V = Pack<T>;
    constexpr int kStep = lanes<T>();
    const Padded<T> padded(g);
    const int64_t terms = padded.terms(), vectors = (g.k + kStep - 1) / kStep, wide = vectors * kStep;
    const std::vector<Chunk> chunks = chunks_of(g.k, kStep);
    const bool as_it_lies = std::is_same_v<T, S> && !gate && g.k == wide && g.features_last();
    const int64_t together = g.fw < kPlacesAtOnce ? kPlacesAtOnce / g.fw : 1;
    const int64_t share = (terms + 1) * wide;  // of a piece: the last row is the bias's
    std::vector<double> partial((g.pieces() > 0 ? g.pieces() : 1) * share);
    parallel_for(g.pieces(), threads, g.small(), [&](int64_t piece) {
        S* const copy = zeros<S>(0, padded.elements());
        S* const behind_gate = zeros<S>(1, as_it_lies ? 1 : together * g.fw * wide);
        // [chunk][term][vector], with room for the last tile of a chunk
        V* const sums = zeros<V>(2, (terms + 1) * vectors + 8 * kMostVectors * static_cast<int64_t>(chunks.size()));
        double* const total = partial.data() + piece * share;
        for (int64_t n = piece * g.group(); n < g.n && n < (piece + 1) * g.group(); ++n) {
            padded.fill(image + n * g.image[0], copy);
            for (int64_t y = 0; y < g.fh; y += together) {
                const int64_t rows = g.fh - y < together ? g.fh - y : together;
                Features<S> f{behind_gate, g.fw * wide, wide};
                if constexpr (std::is_same_v<T, S>)
                    if (as_it_lies) f = {feature + n * g.feature[0] + y * g.feature[2], g.feature[2], g.feature[3]};
                if (!as_it_lies)
                    lay_out(g, feature, gate, slope, n * g.feature[0] + y * g.feature[2], rows, behind_gate, wide);
                V* sum = sums;
                for (const Chunk& chunk : chunks)
                    with_vectors(chunk.vectors, [&](auto some) {
                        constexpr int kRows = rows_of(some());
                        for (int64_t t = 0; t < terms; t += kRows, sum += kRows * some()) {
                            const S* from[kRows];
                            for (int r = 0; r < kRows; ++r)  // the last tile repeats the last term
                                from[r] = copy + padded.corner(y, 0) + padded.offset[t + r < terms ? t + r : terms - 1];
                            outer_tile<some(), V>(from, g.s * padded.pitch, g.s * padded.step, f.data + chunk.first, f,
                                                  rows, g.fw, sum);
                        }
                    });
                for (int64_t v = 0; bias_gradient && v < vectors; ++v, ++sum)
                    for (int64_t r = 0; r < rows; ++r)
                        for (int64_t x = 0; x < g.fw; ++x)
                            *sum += load<V>(f.data + r * f.row + x * f.column + v * kStep);
            }
            V* sum = sums;
            const auto flush = [&](int64_t term, int64_t first) {
                S lane[kStep];
                store(lane, *sum);
                for (int i = 0; i < kStep; ++i) total[term * wide + first + i] += lane[i];
                *sum++ = V{};
            };
            for (const Chunk& chunk : chunks) {
                const int64_t rows = chunk.vectors == kMostVectors ? rows_of(kMostVectors) : rows_of(1);
                for (int64_t t = 0; t < (terms + rows - 1) / rows * rows; ++t)
                    for (int v = 0; v < chunk.vectors; ++v)
                        if (t < terms)
                            flush(t, chunk.first + v * kStep);
                        else
                            *sum++ = V{};
            }
            for (int64_t v = 0; bias_gradient && v < vectors; ++v) flush(terms, v * kStep);
        }
    });
    for (int64_t piece = 1; piece < g.pieces(); ++piece)
        for (int64_t i = 0; i < share; ++i) partial[i] += partial[piece * share + i];
    for (int64_t k = 0; k < g.k; ++k) {
        for (int64_t t = 0; t < terms; ++t)
            gradient[k * terms + t] = from_scalar<T>(static_cast<S>(partial[t * wide + k]));
        if (bias_gradient) bias_gradient[k] = from_scalar<T>(static_cast<S>(partial[terms * wide + k]));
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
