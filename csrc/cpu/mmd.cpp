// Sums of a mixture of Gaussian kernels over all pairs of two sets of vectors, and their slopes, without a matrix of
// pairs.
//
// Of a tile of rows and a block of columns the products a.b stay in registers, become |a|^2 + |b|^2 - 2 a.b and then
// kernel values; the weights of the slopes go through a small scratch into a second product, with the columns'
// vectors. All vectors are taken from a common centre, since the squares' difference loses digits far from zero. A
// piece owns its rows, so that pairs of two sets with slopes are met once from each side, and nothing is scattered.
//
// Floor with both slopes: (N + M)^2 pairs, two products of 2 D operations each, and an exponential a bandwidth.
#include <limits>
#include <memory>
#include <numeric>

#include "pieces.h"
#include "samples.h"

#include "../export.h"

namespace PF_NAMESPACE {
namespace {

#if defined(__AVX512F__)
constexpr int kRows = 12;  // with two vectors of columns 24 sums in 32 registers
#else
constexpr int kRows = 6;  // 12 in 16
#endif
constexpr int kWide = 2;
constexpr int64_t kChunk = 64;  // terms of a product whose rows lie at fixed offsets
constexpr int64_t kTiles = 8;  // of a piece of work
constexpr int64_t kGroup = 256;  // columns that are met by all tiles of a piece before the next ones
constexpr int64_t kPieceRows = kRows * kTiles;

template <class V>
struct Set {
    using S = Scalar<V>;
    static constexpr int kL = sizeof(V) / sizeof(S);
    static constexpr int kBlock = kWide * kL;
    int64_t count, width, blocks, parts;  // parts: of kBlock dimensions
    std::unique_ptr<V[]> columns;  // [block][dimension][kWide]
    std::unique_ptr<V[]> square;  // [block][kWide]: |a|^2, infinity past the last vector
    std::unique_ptr<V[]> rows;  // [blocks * kBlock][parts * kWide], zero past the ends
    int64_t stride() const { return parts * kBlock; }
    const S* row(int64_t n) const { return reinterpret_cast<const S*>(rows.get()) + n * stride(); }
};

template <class T, class V = Pack<T>>
Set<V> pack(const T* x, const double* centre, int64_t count, int64_t width, int threads) {
    using S = Scalar<V>;
    constexpr int kBlock = Set<V>::kBlock;
    Set<V> set{count, width, (count + kBlock - 1) / kBlock, (width + kBlock - 1) / kBlock, nullptr, nullptr, nullptr};
    set.columns.reset(new V[set.blocks * width * kWide]);
    set.square.reset(new V[set.blocks * kWide]);
    set.rows.reset(new V[set.blocks * kBlock * set.parts * kWide]());
    parallel_for(set.blocks, threads, count * width < kSmallWork, [&](int64_t b) {
        S* columns = reinterpret_cast<S*>(set.columns.get() + b * width * kWide);
        S* square = reinterpret_cast<S*>(set.square.get() + b * kWide);
        S* rows = reinterpret_cast<S*>(set.rows.get()) + b * kBlock * set.stride();
        for (int lane = 0; lane < kBlock; ++lane) {
            const int64_t n = b * kBlock + lane;
            double sum = n < count ? 0 : std::numeric_limits<double>::infinity();
            for (int64_t d = 0; d < width; ++d) {
                const S a = n < count ? static_cast<S>(to_scalar(x[n * width + d]) - centre[d]) : S(0);
                columns[d * kBlock + lane] = rows[lane * set.stride() + d] = a;
                sum += static_cast<double>(a) * a;
            }
            square[lane] = static_cast<S>(sum);
        }
    });
    return set;
}

// sum += a b, where a is [kRows][kChunk] and b has a vector pair every `step` vectors.
template <class V>
PF_FN void multiply(V (&sum)[kRows][kWide], const Scalar<V>* a, const V* b, int64_t step, int64_t n) {
    for (int64_t k = 0; k < n; ++k, ++a, b += step) {
        V e[kWide];
#pragma GCC unroll 2
        for (int w = 0; w < kWide; ++w) e[w] = b[w];
#pragma GCC unroll 12
        for (int r = 0; r < kRows; ++r) {
            const V at = splat<V>(a[r * kChunk]);
#pragma GCC unroll 2
            for (int w = 0; w < kWide; ++w) sum[r][w] += at * e[w];
        }
    }
}

struct Mixture {
    const double* bandwidths;
    int64_t count;
};

// The kRows rows from `first` on of a set, as the products take them, and what is summed up for them.
template <class V>
struct Tile {
    using S = Scalar<V>;
    int64_t first;
    const S* a;  // [chunk][kRows][kChunk]
    S square[kRows];  // infinity past the last row
    V* slopes;  // [part][kRows][kWide]: sum over columns of weight times vector
    V weights[kRows];  // sum of the weights
};

// Kernel values of a tile with the columns of blocks [first, last): their sum is returned, and the weights
// sum over bandwidths of k / bandwidth^2 are left in `scratch`, [chunk of columns][kRows][kChunk]. Of the same set the
// diagonal is left out, and of a triangle all that is not above it.
template <class V, class S = Scalar<V>>
double meet(Tile<V>& tile, const Set<V>& set, const Mixture& mixture, int64_t first, int64_t last, bool same,
            bool triangle, S* scratch) {
    constexpr int kL = Set<V>::kL, kBlock = Set<V>::kBlock;
    V total[kRows] = {};
    for (int64_t b = first; b < last; ++b) {
        V sum[kRows][kWide] = {};
        for (int64_t chunk = 0; chunk < set.width; chunk += kChunk)
            multiply<V>(sum, tile.a + chunk * kRows, set.columns.get() + (b * set.width + chunk) * kWide, kWide,
                        set.width - chunk < kChunk ? set.width - chunk : kChunk);
        V distance[kRows][kWide];
        for (int r = 0; r < kRows; ++r)
            for (int w = 0; w < kWide; ++w) {
                const V d = set.square[b * kWide + w] + tile.square[r] - S(2) * sum[r][w];
                distance[r][w] = select(d < S(0), splat<V>(0), d);  // NaN stays
            }
        if (same && b * kBlock < tile.first + kRows && (triangle || (b + 1) * kBlock > tile.first)) {
            for (int r = 0; r < kRows; ++r)
                for (int lane = 0; lane < kBlock; ++lane) {
                    const int64_t row = tile.first + r, column = b * kBlock + lane;
                    if (triangle ? column <= row : column == row)
                        distance[r][lane / kL][lane % kL] = std::numeric_limits<S>::infinity();
                }
        }
        const int64_t column = (b - first) * kBlock;
        S* to = scratch + column / kChunk * kChunk * kRows + column % kChunk;
        for (int r = 0; r < kRows; ++r)
            for (int w = 0; w < kWide; ++w) {
                V value = splat<V>(0), weight = splat<V>(0);
                for (int64_t k = 0; k < mixture.count; ++k) {
                    const S rate = static_cast<S>(1 / (mixture.bandwidths[k] * mixture.bandwidths[k]));
                    const V e = exponential(distance[r][w] * (S(-0.5) * rate));
                    value += e;
                    weight += e * rate;
                }
                total[r] += value;
                tile.weights[r] += weight;
                store(to + r * kChunk + w * kL, weight);
            }
    }
    double sum = 0;
    for (int r = 0; r < kRows; ++r) sum += sum_of<V>(reinterpret_cast<const S*>(&total[r]), kL);
    return sum;
}

// Adds weight times vector of those columns to the slopes of the tile.
template <class V, class S = Scalar<V>>
void pull(Tile<V>& tile, const Set<V>& set, int64_t first, int64_t last, const S* scratch) {
    constexpr int kBlock = Set<V>::kBlock;
    const int64_t columns = (last - first) * kBlock, stride = set.parts * kWide;
    for (int64_t part = 0; part < set.parts; ++part) {
        V sum[kRows][kWide];
        V* slopes = tile.slopes + part * kRows * kWide;
        memcpy(sum, slopes, sizeof sum);
        for (int64_t chunk = 0; chunk < columns; chunk += kChunk)
            multiply<V>(sum, scratch + chunk * kRows, set.rows.get() + (first * kBlock + chunk) * stride + part * kWide,
                        stride, columns - chunk < kChunk ? columns - chunk : kChunk);
        memcpy(slopes, sum, sizeof sum);
    }
}

// The sum of k over the rows of a piece and all columns; with slopes it adds factor times its derivative by the rows
// to them. Without, pairs of the same set are met once and counted twice.
template <class V, class S = Scalar<V>>
double pairs(const Set<V>& from, const Set<V>& to, const Mixture& mixture, int64_t piece, S* slopes, S factor) {
    constexpr int kBlock = Set<V>::kBlock;
    constexpr int64_t kGroupBlocks = kGroup / kBlock;
    const bool same = &from == &to, triangle = same && slopes == nullptr;
    const int64_t begin = piece * kPieceRows, end = begin + kPieceRows < from.count ? begin + kPieceRows : from.count;
    const int64_t tiles = (end - begin + kRows - 1) / kRows;
    const int64_t chunks = (from.width + kChunk - 1) / kChunk, tile_size = chunks * kChunk * kRows;
    const std::unique_ptr<S[]> a(new S[tiles * tile_size]()), scratch(new S[kGroup * kRows]);
    const std::unique_ptr<V[]> pulled(new V[slopes ? tiles * from.parts * kRows * kWide : 0]());
    Tile<V> tile[kTiles];
    for (int64_t t = 0; t < tiles; ++t) {
        tile[t] = {begin + t * kRows, a.get() + t * tile_size, {}, pulled.get() + t * from.parts * kRows * kWide, {}};
        for (int r = 0; r < kRows; ++r) {
            const int64_t n = tile[t].first + r;
            const bool there = n < end;
            tile[t].square[r] =
                there ? reinterpret_cast<const S*>(from.square.get())[n] : std::numeric_limits<S>::infinity();
            for (int64_t d = 0; there && d < from.width; ++d)
                a[t * tile_size + d / kChunk * kChunk * kRows + r * kChunk + d % kChunk] = from.row(n)[d];
        }
    }
    double sum = 0;
    for (int64_t first = triangle ? begin / kBlock : 0; first < to.blocks; first += kGroupBlocks) {
        const int64_t last = first + kGroupBlocks < to.blocks ? first + kGroupBlocks : to.blocks;
        for (int64_t t = 0; t < tiles; ++t) {
            sum += meet<V>(tile[t], to, mixture, first, last, same, triangle, scratch.get());
            if (slopes) pull<V>(tile[t], to, first, last, scratch.get());
        }
    }
    for (int64_t n = begin; slopes && n < end; ++n) {
        const Tile<V>& own = tile[(n - begin) / kRows];
        const int r = static_cast<int>((n - begin) % kRows);
        const S weight = static_cast<S>(sum_of<V>(reinterpret_cast<const S*>(&own.weights[r]), Set<V>::kL));
        for (int64_t d = 0; d < from.width; ++d) {
            const V* at = own.slopes + (d / kBlock * kRows + r) * kWide;
            const S mean = reinterpret_cast<const S*>(at)[d % kBlock];
            slopes[n * from.width + d] += factor * (mean - weight * from.row(n)[d]);
        }
    }
    return triangle ? 2 * sum : sum;
}

template <class T>
void centre_of(const T* x, int64_t rows, int64_t width, double* centre) {
    for (int64_t d = 0; d < width; ++d) centre[d] = 0;
    for (int64_t n = 0; n < rows; ++n)
        for (int64_t d = 0; d < width; ++d) centre[d] += to_scalar(x[n * width + d]);
    for (int64_t d = 0; d < width; ++d) centre[d] /= static_cast<double>(rows);
}

}  // namespace

// value = own_x * K(x, x) + own_y * K(y, y) - 2 * cross * K(x, y) + diagonal, K a sum over pairs, without those of a
// vector and itself. value, dx and dy are of the type that is computed in; dx or dy is null where it is not wanted.
static const char* mmd(const void* x, const void* y, const double* bandwidths, void* value, void* dx, void* dy,
                       int64_t rows_x, int64_t rows_y, int64_t width, int64_t count, double own_x, double own_y,
                       double cross, double diagonal, int type, int threads) {
    if (rows_x < 1 || rows_y < 1) return "both sets need at least one vector";
    return with_type(type, [&](auto t) -> const char* {
        using T = decltype(t);
        using V = Pack<T>;
        using S = Scalar<V>;
        const std::unique_ptr<double[]> centre(new double[width]);
        centre_of(static_cast<const T*>(x), rows_x, width, centre.get());
        const Set<V> a = pack<T>(static_cast<const T*>(x), centre.get(), rows_x, width, threads);
        const Set<V> b = pack<T>(static_cast<const T*>(y), centre.get(), rows_y, width, threads);
        const Mixture mixture{bandwidths, count};
        const int64_t of_x = (rows_x + kPieceRows - 1) / kPieceRows, of_y = (rows_y + kPieceRows - 1) / kPieceRows;
        const bool small = (rows_x + rows_y) * (rows_x + rows_y) * (width + 16 * count) < 64 * kSmallWork;
        // Pieces cost differently by set and, in a triangle, by place. Golden steps through them give every run of
        // consecutive ones, which is what a thread gets, some of all kinds.
        const int64_t all = of_x + of_y;
        const std::unique_ptr<double[]> part(new double[all]);
        int64_t step = all * 618 / 1000 + 1;
        while (std::gcd(step, all) != 1) ++step;
        parallel_for(all, threads, small, [&](int64_t turn) {
            const int64_t k = turn * step % all;
            const bool is_x = k < of_x;
            const int64_t piece = is_x ? k : k - of_x;
            const Set<V>&own = is_x ? a : b, &other = is_x ? b : a;
            S* slopes = static_cast<S*>(is_x ? dx : dy);
            const double factor = is_x ? own_x : own_y;
            if (slopes) {
                const int64_t begin = piece * kPieceRows;
                const int64_t rows = begin + kPieceRows < own.count ? kPieceRows : own.count - begin;
                memset(slopes + begin * width, 0, static_cast<std::size_t>(rows * width) * sizeof(S));
            }
            part[k] = factor * pairs<V>(own, own, mixture, piece, slopes, static_cast<S>(2 * factor));
            if (!is_x && !slopes) return;
            const double met = pairs<V>(own, other, mixture, piece, slopes, static_cast<S>(-2 * cross));
            if (is_x) part[k] -= 2 * cross * met;
        });
        double sum = diagonal;
        for (int64_t k = 0; k < all; ++k) sum += part[k];
        *static_cast<S*>(value) = static_cast<S>(sum);
        return nullptr;
    });
}
PF_EXPORT(mmd);

}  // namespace PF_NAMESPACE
