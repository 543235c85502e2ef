// What edge_conv, its gradient of the weight and the product of points share: vectors that run over the features of a
// place, and windows of the image.
//
// An image is copied with its padding and in its own order, and a place of the features is the corner of a window in
// that copy: element t of the window lies offset[t] behind the corner. Either kernel is an outer product of pixels,
// each spread over a vector, and weights or features, in tiles of registers. Features that do not lie side by side are
// turned around some places at a time, in the nearest cache.
#pragma once

#include "edge_conv.h"

namespace PF_NAMESPACE {
namespace {

#if defined(__AVX512F__)
constexpr int kMostVectors = 4;  // of features in a tile
#else
constexpr int kMostVectors = 2;
#endif
// Places, or elements of the window, in a tile of so many vectors: 24 accumulators of 32 registers, or 12 of 16.
constexpr int rows_of(int vectors) { return vectors == kMostVectors ? 6 : 8; }

// The features from `first` on that a tile covers.
struct Chunk {
    int64_t first;
    int vectors;
};
inline std::vector<Chunk> chunks_of(int64_t features, int64_t lanes) {
    std::vector<Chunk> chunks;
    for (int64_t v = 0, all = (features + lanes - 1) / lanes; v < all;) {
        int vectors = kMostVectors;
        while (vectors > all - v) vectors /= 2;
        chunks.push_back({v * lanes, vectors});
        v += vectors;
    }
    return chunks;
}
// Calls f with the number of vectors as a constant.
template <class F>
void with_vectors(int vectors, F f) {
    if (vectors == kMostVectors) return f(std::integral_constant<int, kMostVectors>{});
    if constexpr (kMostVectors > 2)
        if (vectors == 2) return f(std::integral_constant<int, 2>{});
    f(std::integral_constant<int, 1>{});
}

// The copy of a sample's image, and its windows.
template <class T, class S = S_of<T>>
struct Padded {
    const Geometry& g;
    const bool last = g.c > 1 && g.image[1] == 1 && g.image[3] == g.c;  // the channels of a pixel side by side
    const int64_t step = last ? g.c : 1;                                // between pixels
    const int64_t pitch = (g.w + 2 * g.p) * step;
    const int64_t plane = last ? 1 : (g.h + 2 * g.p) * pitch;
    std::vector<int64_t> offset;  // as the weights of a feature lie: of channel, row and column

    explicit Padded(const Geometry& g) : g(g), offset(g.c * g.kh * g.kw) {
        for (int64_t t = 0; t < terms(); ++t)
            offset[t] = t / (g.kh * g.kw) * plane + t / g.kw % g.kh * pitch + t % g.kw * step;
    }
    int64_t terms() const { return g.c * g.kh * g.kw; }
    int64_t elements() const { return (g.h + 2 * g.p) * pitch * (last ? 1 : g.c); }
    int64_t corner(int64_t y, int64_t x) const { return g.s * (y * pitch + x * step); }
    // `to` holds zeros, or the copy of another sample.
    void fill(const T* image, S* to) const {
        for (int64_t c = 0; c < (last ? 1 : g.c); ++c)
            for (int64_t y = 0; y < g.h; ++y)
                read_row(image + c * g.image[1] + y * g.image[2], last ? 1 : g.image[3], g.w * step,
                         to + c * plane + (y + g.p) * pitch + g.p * step);
    }
};

constexpr int64_t kPastCaches = int64_t{12} << 20;  // bytes of an output that will not stay in a cache

// Some vectors of sums, behind a leaky ReLU, to so many features of a place.
template <int kVectors, class T, class V = Pack<T>, class S = S_of<T>>
PF_FN void write_place(const V* sums, S slope, T* to, int64_t features, bool past_caches) {
    constexpr int kStep = lanes<T>();
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; ++v) {
        V y = sums[v];
        // -inf times 0 is not what a ReLU gives.
        if (slope != 1) y = select(y <= 0, slope == 0 ? V{} : y * slope, y);
        const int64_t some = features - v * kStep;
        if (some <= 0) break;
        if (some < kStep)
            write_part(to + v * kStep, y, some);
        else if (past_caches)
            stream(to + v * kStep, y);
        else
            Storage<T>::write(to + v * kStep, y);
    }
}

// to[r][v] = leaky ReLU of bias[v] + the sum over t of at[r][offset[t]] * weight[t][v], for so many places and
// features.
template <int kVectors, class T, class S = S_of<T>>
PF_FN void forward_tile(const S* const* at, const int64_t* offset, int64_t terms, const S* weight, const S* bias,
                        S slope, T* const* to, int64_t places, int64_t features, bool past_caches) {
    using V = Pack<T>;
    constexpr int kStep = lanes<T>(), kRows = rows_of(kVectors);
    V sums[kRows][kVectors];
#pragma GCC unroll 8
    for (int r = 0; r < kRows; ++r)
#pragma GCC unroll 4
        for (int v = 0; v < kVectors; ++v) sums[r][v] = load<V>(bias + v * kStep);
    for (int64_t t = 0; t < terms; ++t, weight += kVectors * kStep) {
        const int64_t from = offset[t];
        V by[kVectors];
#pragma GCC unroll 4
        for (int v = 0; v < kVectors; ++v) by[v] = load<V>(weight + v * kStep);
#pragma GCC unroll 8
        for (int r = 0; r < kRows; ++r) {
            const V pixel = spread<V>(at[r][from]);
#pragma GCC unroll 4
            for (int v = 0; v < kVectors; ++v) sums[r][v] += pixel * by[v];
        }
    }
#pragma GCC unroll 8
    for (int r = 0; r < kRows; ++r) {
        if (r >= places) break;
        write_place<kVectors>(sums[r], slope, to[r], features, past_caches);
    }
}

}  // namespace
}  // namespace PF_NAMESPACE
