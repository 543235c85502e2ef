// The nearest of K codes for each of N vectors, without an N x K matrix, and sums of the vectors of each code.
//
// |x - e|^2 is least where x.e - |e|^2 / 2 is greatest: a matrix product whose tile of scores never leaves the
// registers. The codes are packed so that a step over a dimension reads kWide whole vectors; a tile's vectors are
// copied in chunks whose rows lie at fixed offsets.
//
// Floor: 2 N K D operations at the rate of a matrix product; comparing the scores adds 6 to every 2 D operations. With
// AVX512-VNNI half of that: nearest_code_screen.h.
#include <limits>
#include <memory>

#include "nearest_code_screen.h"
#include "samples.h"

#include "../export.h"

namespace PF_NAMESPACE {
namespace {

#if defined(__AVX512F__)
constexpr int kRows = 12;  // with two vectors of codes 24 sums in 32 registers
#else
constexpr int kRows = 6;  // 12 in 16
#endif
constexpr int kWide = 2;
constexpr int64_t kChunk = 64;  // dimensions of a chunk
constexpr int64_t kTiles = 8;  // of a piece of work
constexpr int64_t kCodeBytes = 256 * 1024;  // of the codes that are met by all tiles of a piece before the next ones

template <class V>
using Index = decltype(V{} > V{});

template <class V>
using Number = std::conditional_t<sizeof(Scalar<V>) == 4, int32_t, int64_t>;

template <class V>
struct Book {
    static constexpr int kL = sizeof(V) / sizeof(Scalar<V>);
    int64_t codes, width, blocks;
    std::unique_ptr<V[]> packed;  // [block][dimension][kWide]
    std::unique_ptr<V[]> start;  // [block][kWide]: -|e|^2 / 2, -infinity past the last code
    int64_t not_a_number;  // the first code that holds a NaN, or -1
};

template <class T, class V = Pack<T>>
Book<V> pack(const T* codebook, int64_t codes, int64_t width, int threads) {
    using S = Scalar<V>;
    constexpr int kL = Book<V>::kL, kBlock = kWide * kL;
    Book<V> book{codes, width, (codes + kBlock - 1) / kBlock, nullptr, nullptr, -1};
    book.packed.reset(new V[book.blocks * width * kWide]);
    book.start.reset(new V[book.blocks * kWide]);
    parallel_for(book.blocks, threads, codes * width < kSmallWork, [&](int64_t b) {
        S* to = reinterpret_cast<S*>(book.packed.get() + b * width * kWide);
        S* start = reinterpret_cast<S*>(book.start.get() + b * kWide);
        for (int lane = 0; lane < kBlock; ++lane) {
            const int64_t code = b * kBlock + lane;
            double square = 0;
            for (int64_t d = 0; d < width; ++d) {
                const S e = code < codes ? to_scalar(codebook[code * width + d]) : S(0);
                to[d * kBlock + lane] = e;
                square += static_cast<double>(e) * e;
            }
            start[lane] = code < codes ? static_cast<S>(-0.5 * square) : -std::numeric_limits<S>::infinity();
        }
    });
    const S* start = reinterpret_cast<const S*>(book.start.get());
    for (int64_t code = codes - 1; code >= 0; --code)
        if (start[code] != start[code]) book.not_a_number = code;
    return book;
}

// Meets kRows vectors with the codes of blocks [first, last). `x` is [chunk][kRows][kChunk].
template <class V>
PF_FN void meet(const Book<V>& book, const Scalar<V>* x, int64_t first, int64_t last, V* best, Index<V>* which) {
    for (int64_t b = first; b < last; ++b) {
        V sum[kRows][kWide];
#pragma GCC unroll 12
        for (int r = 0; r < kRows; ++r)
#pragma GCC unroll 2
            for (int w = 0; w < kWide; ++w) sum[r][w] = book.start[b * kWide + w];
        const V* code = book.packed.get() + b * book.width * kWide;
        for (int64_t chunk = 0; chunk < book.width; chunk += kChunk) {
            const Scalar<V>* row = x + chunk * kRows;
            const int64_t n = book.width - chunk < kChunk ? book.width - chunk : kChunk;
            for (int64_t d = 0; d < n; ++d, code += kWide, ++row) {
                V e[kWide];
#pragma GCC unroll 2
                for (int w = 0; w < kWide; ++w) e[w] = code[w];
#pragma GCC unroll 12
                for (int r = 0; r < kRows; ++r) {
                    const V at = splat<V>(row[r * kChunk]);
#pragma GCC unroll 2
                    for (int w = 0; w < kWide; ++w) sum[r][w] += at * e[w];
                }
            }
        }
        // Only a greater score wins, so that the first of equal codes in a lane stays, and a NaN never does.
#pragma GCC unroll 12
        for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 2
            for (int w = 0; w < kWide; ++w) {
                const auto better = sum[r][w] > best[r];
                best[r] = better ? sum[r][w] : best[r];
                which[r] = better ? Index<V>{} + static_cast<Number<V>>(b * kWide + w) : which[r];
            }
        }
    }
}

// Of the vectors in `list`, or of the first `rows` without one.
template <class T, class V = Pack<T>, class S = Scalar<V>>
void search(const T* x, int64_t* index, const int64_t* list, int64_t rows, const Book<V>& book, int threads) {
    constexpr int kL = Book<V>::kL;
    constexpr int64_t kPieceRows = kRows * kTiles;
    const int64_t width = book.width, chunks = (width + kChunk - 1) / kChunk;
    const int64_t tile_size = chunks * kChunk * kRows;
    const int64_t block_bytes = kWide * static_cast<int64_t>(sizeof(V)) * (width > 0 ? width : 1);
    const int64_t group = block_bytes < kCodeBytes ? kCodeBytes / block_bytes : 1;  // blocks met in one go
    const int64_t pieces = (rows + kPieceRows - 1) / kPieceRows;
    parallel_for(pieces, threads, rows * book.codes * width < 64 * kSmallWork, [&](int64_t piece) {
        const int64_t begin = piece * kPieceRows, end = begin + kPieceRows < rows ? begin + kPieceRows : rows;
        const int64_t tiles = (end - begin + kRows - 1) / kRows;
        const std::unique_ptr<S[]> scratch(new S[tiles * tile_size]());
        V best[kPieceRows];
        Index<V> which[kPieceRows];
        for (int64_t r = 0; r < tiles * kRows; ++r) {
            best[r] = splat<V>(-std::numeric_limits<S>::infinity());
            which[r] = Index<V>{};
            if (begin + r >= end) continue;
            S* to = scratch.get() + r / kRows * tile_size + r % kRows * kChunk;
            const T* from = x + (list ? list[begin + r] : begin + r) * width;
            for (int64_t d = 0; d < width; d += kL) {
                const V v = read_some(from + d, width - d < kL ? width - d : kL);
                store(to + d / kChunk * kChunk * kRows + d % kChunk, v);
            }
        }
        for (int64_t first = 0; first < book.blocks; first += group) {
            const int64_t last = first + group < book.blocks ? first + group : book.blocks;
            for (int64_t t = 0; t < tiles; ++t)
                meet<V>(book, scratch.get() + t * tile_size, first, last, best + t * kRows, which + t * kRows);
        }
        for (int64_t r = 0; r < end - begin; ++r) {
            S most = best[r][0];
            int64_t nearest = static_cast<int64_t>(which[r][0]) * kL;
            for (int lane = 1; lane < kL; ++lane) {
                const int64_t code = static_cast<int64_t>(which[r][lane]) * kL + lane;
                if (best[r][lane] > most || (best[r][lane] == most && code < nearest)) {
                    most = best[r][lane];
                    nearest = code;
                }
            }
            if (book.not_a_number >= 0) nearest = book.not_a_number;
            // No score was above -infinity: the vector holds a NaN, or all is too far away for this type.
            if (most == -std::numeric_limits<S>::infinity() && book.not_a_number < 0) nearest = 0;
            index[list ? list[begin + r] : begin + r] = nearest;
        }
    });
}

// Of the difference itself: the score has lost digits where x and e are long and near.
template <class T, class V = Pack<T>, class S = Scalar<V>>
void measure(const T* x, const T* codebook, const int64_t* index, S* distance, int64_t rows, int64_t width,
             int threads) {
    constexpr int64_t kTogether = 64;  // rows of a piece
    parallel_for((rows + kTogether - 1) / kTogether, threads, rows * width < kSmallWork, [&](int64_t piece) {
        const int64_t last = (piece + 1) * kTogether < rows ? (piece + 1) * kTogether : rows;
        for (int64_t n = piece * kTogether; n < last; ++n) {
            const T *a = x + n * width, *e = codebook + index[n] * width;
            distance[n] = static_cast<S>(sum_over<T>(width, [&](int64_t d, int64_t count) {
                const V apart = read_some(a + d, count) - read_some(e + d, count);
                return apart * apart;
            }));
        }
    });
}

// Finds all indices by the screen where there is one, and what it leaves open by the search.
template <class T>
void find(const T* x, const T* codebook, int64_t* index, int64_t rows, int64_t codes, int64_t width, bool screened,
          int threads) {
    const int64_t* list = nullptr;
#if defined(PF_SCREEN)
    std::unique_ptr<int64_t[]> open;
    if constexpr (!std::is_same_v<T, double>) {
        Screen s;
        if (screened && may_screen(rows, codes, width) && prepare(s, codebook, codes, width, threads)) {
            screen(s, x, index, rows, width, threads);
            int64_t count = 0;
            for (int64_t n = 0; n < rows; ++n) count += index[n] < 0;
            if (!count) return;
            open.reset(new int64_t[count]);
            count = 0;
            for (int64_t n = 0; n < rows; ++n)
                if (index[n] < 0) open[count++] = n;
            list = open.get();
            rows = count;
        }
    }
#endif
    (void)screened;
    search<T>(x, index, list, rows, pack<T>(codebook, codes, width, threads), threads);
}

// sums[k] adds up the vectors of code k in the order of their rows, counts[k] says how many there are.
template <class T, class V = Pack<T>, class S = Scalar<V>>
void add_up(const T* x, const int64_t* index, S* counts, S* sums, int64_t rows, int64_t codes, int64_t width,
            int threads) {
    constexpr int kL = Book<V>::kL;
    constexpr int64_t kTogether = 8;  // codes of a piece
    constexpr int64_t kRun = 128;  // rows that are summed before they join the total, which keeps rounding small
    const std::unique_ptr<int64_t[]> begin(new int64_t[codes + 1]());
    const std::unique_ptr<int64_t[]> order(new int64_t[rows]);
    for (int64_t n = 0; n < rows; ++n) ++begin[index[n] + 1];
    for (int64_t k = 0; k < codes; ++k) {
        counts[k] = static_cast<S>(begin[k + 1]);
        begin[k + 1] += begin[k];
    }
    {
        const std::unique_ptr<int64_t[]> next(new int64_t[codes]);
        memcpy(next.get(), begin.get(), static_cast<std::size_t>(codes) * sizeof(int64_t));
        for (int64_t n = 0; n < rows; ++n) order[next[index[n]]++] = n;
    }
    const int64_t pieces = (codes + kTogether - 1) / kTogether;
    parallel_for(pieces, threads, rows * width < kSmallWork, [&](int64_t piece) {
        const int64_t last = (piece + 1) * kTogether < codes ? (piece + 1) * kTogether : codes;
        for (int64_t k = piece * kTogether; k < last; ++k) {
            for (int64_t d = 0; d < width; d += kL) {
                const int64_t count = width - d < kL ? width - d : kL;
                V total = splat<V>(0);
                for (int64_t run = begin[k]; run < begin[k + 1]; run += kRun) {
                    const int64_t end = run + kRun < begin[k + 1] ? run + kRun : begin[k + 1];
                    V sum = splat<V>(0);
                    for (int64_t n = run; n < end; ++n) sum += read_some(x + order[n] * width + d, count);
                    total += sum;
                }
                write_some(sums + k * width + d, total, count);
            }
        }
    });
}

}  // namespace

// distance is of the type that is computed in; codes is at least 1. `screened` may be 0 for a comparison: the results
// are the same.
static const char* nearest_code(const void* x, const void* codebook, int64_t* index, void* distance, int type,
                                int64_t rows, int64_t codes, int64_t width, int screened, int threads) {
    if (codes < 1) return "a codebook needs at least one code";
    return with_type(type, [&](auto t) -> const char* {
        using T = decltype(t);
        if (rows <= 0) return nullptr;
        const T *vectors = static_cast<const T*>(x), *book = static_cast<const T*>(codebook);
        find(vectors, book, index, rows, codes, width, screened != 0, threads);
        measure(vectors, book, index, static_cast<Scalar<Pack<T>>*>(distance), rows, width, threads);
        return nullptr;
    });
}
PF_EXPORT(nearest_code);

// Every index is in [0, codes). counts and sums are of the type that is computed in.
static const char* code_sums(const void* x, const int64_t* index, void* counts, void* sums, int type, int64_t rows,
                             int64_t codes, int64_t width, int threads) {
    return with_type(type, [&](auto t) -> const char* {
        using T = decltype(t);
        using S = Scalar<Pack<T>>;
        add_up<T>(static_cast<const T*>(x), index, static_cast<S*>(counts), static_cast<S*>(sums), rows, codes, width,
                  threads);
        return nullptr;
    });
}
PF_EXPORT(code_sums);

}  // namespace PF_NAMESPACE
