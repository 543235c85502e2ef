// Tiles of a 4 x 4 convolution of stride 2, in 9/16 of its products (winograd.h), for edge_conv and the gradient of its
// weight.
//
// Pixels are transformed a row of tiles at a time, along whole rows of the image: a product's factor is then a fixed
// distance behind the corner of its tile, as the elements of a window are.
#pragma once

#include "edge_conv_windows.h"
#include "winograd.h"

#include <cfloat>

namespace PF_NAMESPACE {
namespace {

// Whether no element of whole vectors is NaN or larger.
inline bool moderate(const float* x, int64_t count, float largest) {
    vint ok = vint{} - 1;
    for (int64_t i = 0; i < count; i += kLanes) {
        const vfloat v = load<vfloat>(x + i);
        ok &= (v <= largest) & (v >= -largest);
    }
    int32_t all = -1;
    for (int i = 0; i < kLanes; ++i) all &= ok[i];
    return all != 0;
}

template <class T>
struct Tiles {
    const Geometry& g;
    const Padded<T>& padded;
    const int64_t across = g.fw / 2, down = g.fh / 2;
    const int64_t length = (4 * across + 2) * padded.step;  // of a row of the image that tiles meet
    const int64_t line = (length + 3 * kLanes - 1) / kLanes * kLanes;
    const int64_t terms = 4 * g.c;  // [channel][phase]

    // Sums of fewer terms, vectors or places are too short to pay for what is done beside the products.
    static bool serve(const Geometry& g) {
        return std::is_same_v<S_of<T>, float> && g.kh == 4 && g.kw == 4 && g.s == 2 && g.fh % 2 == 0 && g.fw % 2 == 0 &&
               g.c >= 3 && g.k >= 64 && g.fh * g.fw >= 1024;
    }
    // Rows of tiles that have so many.
    int64_t rows_of(int64_t some) const { return across ? (some + across - 1) / across : 1; }
    int64_t behind() const { return 2 * kLanes; }  // the copy of an image
    // Of a row of tiles: [channel][phase of rows][product][differences along rows or not][column], where channels side
    // by side are one.
    int64_t row() const { return (padded.last ? 1 : g.c) * 12 * line; }
    int64_t corner(int64_t x) const { return 4 * x * padded.step; }
    int64_t offset(int64_t point, int64_t term) const {
        const int64_t c = term / 4, a = term / 2 % 2, b = term % 2, v = point / 3, h = point % 3;
        const int64_t at = ((padded.last ? 0 : c) * 2 + a) * 3 + v;
        return (2 * at + h % 2) * line + (b + (h ? 2 : 0)) * padded.step + (padded.last ? c : 0);
    }

    // Row y of tiles, from the copy of an image.
    void transform(const float* copy, int64_t y, float* to) const {
        using V = vfloat;
        const int64_t apart = 2 * padded.step, below = 2 * padded.pitch;
        for (int64_t c = 0; c < (padded.last ? 1 : g.c); ++c)
            for (int64_t a = 0; a < 2; ++a, to += 6 * line) {
                const float* const from = copy + c * padded.plane + (4 * y + a) * padded.pitch;
                const auto column = [&](int64_t x, V* d) {
                    const V d0 = load<V>(from + x), d2 = load<V>(from + 2 * below + x);
                    d[1] = load<V>(from + below + x);
                    d[0] = d0 - d[1];
                    d[2] = d[1] - d2;
                };
                for (int64_t x = 0; x < length - apart; x += kLanes) {
                    V here[3], next[3];
                    column(x, here);
                    column(x + apart, next);
#pragma GCC unroll 3
                    for (int v = 0; v < 3; ++v) {
                        store(to + 2 * v * line + x, here[v] - next[v]);
                        store(to + (2 * v + 1) * line + x, here[v]);
                    }
                }
            }
    }
};

}  // namespace
}  // namespace PF_NAMESPACE
