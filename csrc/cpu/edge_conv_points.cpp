// A transposed convolution of 1 x 1 inputs: a matrix product of few rows, points (n, k), with a wide matrix (k,
// columns).
//
// A piece of work is a panel of columns, as wide as a tile of registers, which is laid row under row in the nearest
// cache and met by all the points.
//
// Floor: 2 n k columns operations over the rate of multiply-adds; the matrix read and the result written once.
#include "edge_conv_windows.h"

#include "../export.h"

namespace PF_NAMESPACE {
namespace {

template <class T>
void product(const T* points, const T* matrix, T* y, int64_t n, int64_t k, int64_t columns, int threads) {
    constexpr int64_t kStep = lanes<T>(), kWide = kMostVectors * kStep, kRows = rows_of(kMostVectors);
    std::vector<int64_t> offset(k);
    for (int64_t t = 0; t < k; ++t) offset[t] = t;
    const int64_t panels = (columns + kWide - 1) / kWide;
    parallel_for(panels, threads, n * k * columns < kPieceWork, [&](int64_t panel) {
        const int64_t first = panel * kWide, some = columns - first < kWide ? columns - first : kWide;
        T* const laid = zeros<T>(0, k * kWide);
        const T bias[kWide] = {};
        for (int64_t t = 0; t < k; ++t) read_row(matrix + t * columns + first, 1, some, laid + t * kWide);
        for (int64_t row = 0; row < n; row += kRows) {
            const T* at[kRows];
            T* to[kRows];
            for (int64_t r = 0; r < kRows; ++r) {  // the last tile repeats the last point
                const int64_t point = row + r < n ? row + r : n - 1;
                at[r] = points + point * k, to[r] = y + point * columns + first;
            }
            forward_tile<kMostVectors, T>(at, offset.data(), k, laid, bias, T(1), to, n - row, some, false);
        }
    });
}

}  // namespace

static const char* edge_conv_points(const void* points, const void* matrix, void* y, int64_t n, int64_t k,
                                    int64_t columns, int type, int threads) {
    const auto run = [&](auto element) {
        using T = decltype(element);
        product(static_cast<const T*>(points), static_cast<const T*>(matrix), static_cast<T*>(y), n, k, columns,
                threads);
    };
    if (type == kFloat32)
        run(float{});
    else if (type == kFloat64)
        run(double{});
    else
        return "points are multiplied in float32 and float64";
    return nullptr;
}
PF_EXPORT(edge_conv_points);

}  // namespace PF_NAMESPACE
