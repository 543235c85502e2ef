// Convolutions of 4 x 4 and stride 2 in 9/16 of their products: what conv_weight_tiles and edge_conv's kernels share.
//
// The rows and columns of the image split by parity into four phases, in each of which the convolution is one of 2 x 2
// and stride 1. Along one axis, two places of features f0, f1 meet three pixels d0, d1, d2 of a phase and two taps w0,
// w1, and three products serve where four are plain (Winograd, "Arithmetic complexity of computations", 1980; Lavin and
// Gray 2016 for networks). Forward:
//     f0 = d0 w0 + d1 w1 = (d0 - d1) w0 + d1 (w0 + w1),     f1 = d1 w0 + d2 w1 = d1 (w0 + w1) - (d1 - d2) w1
// and in the gradient of the weight, whose factors are the same pixels':
//     w0 = f0 d0 + f1 d1 = (d0 - d1) f0 + d1 (f0 + f1),     w1 = f0 d1 + f1 d2 = d1 (f0 + f1) - (d1 - d2) f1
// so that tiles of 2 x 2 places take nine products: 3 v + h is the v-th down the columns and the h-th along the rows.
// A result has the numbers that it would have by plain products and no others, so that NaN reaches nothing else; an
// infinity may become NaN.
#pragma once

#include "simd.h"

namespace PF_NAMESPACE {
namespace {

constexpr int kProducts = 9;

// The factors of four numbers at the places of a tile, or of four taps, but for the signs.
template <class V>
PF_FN void factors_of_four(V a, V b, V c, V d, V* to) {
    const V all[kProducts] = {a, a + b, b, a + c, (a + b) + (c + d), b + d, c, c + d, d};
#pragma GCC unroll 9
    for (int i = 0; i < kProducts; ++i) to[i] = all[i];
}

// The four taps of a phase from its nine sums, `apart` vectors from each other.
template <class V>
PF_FN void taps_of_sums(const V* sums, int64_t apart, V* tap) {
    V along[6];
#pragma GCC unroll 3
    for (int y = 0; y < 3; ++y) {
        const V middle = sums[(3 * y + 1) * apart];
        along[2 * y] = sums[3 * y * apart] + middle;
        along[2 * y + 1] = middle - sums[(3 * y + 2) * apart];
    }
#pragma GCC unroll 2
    for (int x = 0; x < 2; ++x) {
        tap[x] = along[x] + along[2 + x];
        tap[2 + x] = along[2 + x] - along[4 + x];
    }
}

}  // namespace
}  // namespace PF_NAMESPACE
