// How the parameters of splines are read and their gradients written: an element's lie next to each other, so a pack of
// elements has them in rows; tiles of columns are transposed in registers. A tile runs over the ends of the three
// tensors.
#pragma once

#include "pieces.h"

#include "../math/rational_quadratic_spline.h"

namespace PF_NAMESPACE {
namespace {

constexpr int64_t kPastCaches = int64_t{12} << 20;  // bytes of gradients that will not stay in a cache
constexpr int kAhead = 4;  // packs that are fetched before they are read
constexpr int kMostBins = 64;  // shared with pyfastgan/ops/_spline_kernels.py

// A tile has that many columns, of all rows of a pack: so many packs, in which a row of the tile, or two, lie.
template <class T>
constexpr int tile_columns() {
    return lanes<T>() < 8 ? lanes<T>() : 8;
}
constexpr int kMostColumns = 3 * kMostBins + 1 + 8;

template <int kFirst, class F, int... I>
PF_FN void each_of(F f, std::integer_sequence<int, I...>) {
    (f(kFirst + I), ...);
}
// f(k) for first <= k < last; kLast is the latter where it is known.
template <int kFirst, int kLast, class F>
PF_FN void each(int last, F f) {
    if constexpr (kLast > kFirst)
        each_of<kFirst>(f, std::make_integer_sequence<int, kLast - kFirst>{});
    else
        for (int k = kFirst; k < last; ++k) f(k);
}

#define PF_LAMBDA __attribute__((always_inline))

// Rows of parameters.
template <class P>
struct Source {
    P data;
    int64_t stride;
};

// The part of a tile's lanes that comes from one source.
struct Segment {
    int source, column, lane, count;
};

struct Tiles {
    int count = 0;
    struct {
        int segments = 0;
        Segment segment[3] = {};
    } tile[kMostColumns];

    constexpr Tiles(int bins, int knots, int width) {
        const int columns[] = {bins, bins, knots};
        int lane = width;
        for (int source = 0; source < 3; ++source)
            for (int column = 0; column < columns[source];) {
                if (lane == width) {
                    lane = 0;
                    tile[count++].segments = 0;
                }
                const int left = columns[source] - column, room = width - lane, n = left < room ? left : room;
                auto& t = tile[count - 1];
                t.segment[t.segments].source = source;
                t.segment[t.segments].column = column;
                t.segment[t.segments].lane = lane;
                t.segment[t.segments++].count = n;
                column += n;
                lane += n;
            }
    }
};

// A spline of K bins, linear tails and a logit for each inner knot, or of any number of bins for K = 0. Loops over the
// bins of the first have no counters and keep their arrays in registers.
template <int K, class S>
struct Spline {
    int bins_, knots_;  // knots: how many have a logit of their own, bins - 1 (linear tails) or bins + 1
    SplineAxis<S> x, y;
    KnotSlope<S> slope;
    S scale, pull;  // of the logits of widths and heights: a factor, then the soft clip
    bool inverse;
    const Tiles* tiles;  // for K = 0
    PF_FN int bins() const { return K > 0 ? K : bins_; }
    PF_FN int knots() const { return K > 0 ? K - 1 : knots_; }
    PF_FN bool tails() const { return K > 0 || knots_ < bins_; }
};

#if defined(__AVX512F__)
// Rows 2 j and 2 j + 1 in the halves of pack j, and packs of columns: one into the other.
PF_FN void to_columns(vfloat* t) {
    const __m512i low = _mm512_setr_epi32(0, 8, 1, 9, 2, 10, 3, 11, 16, 24, 17, 25, 18, 26, 19, 27);
    const __m512i high = _mm512_add_epi32(low, _mm512_set1_epi32(4));
    __m512 a[8], b[8];
#pragma GCC unroll 4
    for (int j = 0; j < 8; j += 2) {
        a[j] = _mm512_unpacklo_ps((__m512)t[j], (__m512)t[j + 1]);
        a[j + 1] = _mm512_unpackhi_ps((__m512)t[j], (__m512)t[j + 1]);
    }
#pragma GCC unroll 2
    for (int j = 0; j < 8; j += 4)
#pragma GCC unroll 2
        for (int c = 0; c < 2; ++c) {
            const __m512d even = _mm512_castps_pd(a[j + c]), odd = _mm512_castps_pd(a[j + c + 2]);
            b[j + 2 * c] = _mm512_castpd_ps(_mm512_unpacklo_pd(even, odd));
            b[j + 2 * c + 1] = _mm512_castpd_ps(_mm512_unpackhi_pd(even, odd));
        }
#pragma GCC unroll 4
    for (int c = 0; c < 4; ++c) {
        t[c] = (vfloat)_mm512_permutex2var_ps(b[c], low, b[c + 4]);
        t[c + 4] = (vfloat)_mm512_permutex2var_ps(b[c], high, b[c + 4]);
    }
}
PF_FN void to_rows(vfloat* t) {
    const __m512i low = _mm512_setr_epi32(0, 2, 4, 6, 16, 18, 20, 22, 1, 3, 5, 7, 17, 19, 21, 23);
    const __m512i high = _mm512_add_epi32(low, _mm512_set1_epi32(8));
    __m512 a[8], b[8];
#pragma GCC unroll 4
    for (int c = 0; c < 4; ++c) {
        a[c] = _mm512_permutex2var_ps((__m512)t[c], low, (__m512)t[c + 4]);
        a[c + 4] = _mm512_permutex2var_ps((__m512)t[c], high, (__m512)t[c + 4]);
    }
#pragma GCC unroll 2
    for (int j = 0; j < 8; j += 4)
#pragma GCC unroll 2
        for (int c = 0; c < 2; ++c) {
            const __m512d even = _mm512_castps_pd(a[j + 2 * c]), odd = _mm512_castps_pd(a[j + 2 * c + 1]);
            b[j + c] = _mm512_castpd_ps(_mm512_unpacklo_pd(even, odd));
            b[j + c + 2] = _mm512_castpd_ps(_mm512_unpackhi_pd(even, odd));
        }
#pragma GCC unroll 4
    for (int j = 0; j < 8; j += 2) {
        t[j] = (vfloat)_mm512_shuffle_ps(b[j], b[j + 1], _MM_SHUFFLE(2, 0, 2, 0));
        t[j + 1] = (vfloat)_mm512_shuffle_ps(b[j], b[j + 1], _MM_SHUFFLE(3, 1, 3, 1));
    }
}
#else
PF_FN void to_columns(vfloat* t) { transpose(t); }
PF_FN void to_rows(vfloat* t) { transpose(t); }
#endif
PF_FN void to_columns(vdouble* t) { transpose(t); }
PF_FN void to_rows(vdouble* t) { transpose(t); }

// The rows of a tile.
template <class T>
PF_FN void read_rows(const Source<const T*>* sources, const Segment* s, int segments, int64_t row, int64_t count,
                     Pack<T>* packs) {
    constexpr int kStep = lanes<T>(), kColumns = tile_columns<T>(), kRows = kStep / kColumns;
#if defined(__AVX512F__)
    if constexpr (std::is_same_v<T, float>) {
        if (count == kStep) {
            for (int k = 0; k < segments; ++k) {
                const int64_t step = sources[s[k].source].stride;
                const float* p = sources[s[k].source].data + row * step + s[k].column - s[k].lane;
                if (s[k].count == 8) {
#pragma GCC unroll 8
                    for (int j = 0; j < 8; ++j)
                        packs[j] = (vfloat)_mm512_insertf32x8(_mm512_castps256_ps512(_mm256_loadu_ps(p + 2 * j * step)),
                                                              _mm256_loadu_ps(p + (2 * j + 1) * step), 1);
                    continue;
                }
                const unsigned mask = ((1u << s[k].count) - 1u) << s[k].lane;
                const auto low = static_cast<__mmask16>(mask), high = static_cast<__mmask16>(mask << 8);
#pragma GCC unroll 8
                for (int j = 0; j < 8; ++j) {
                    const __m512 before = k == 0 ? _mm512_setzero_ps() : (__m512)packs[j];
                    packs[j] = (vfloat)_mm512_mask_loadu_ps(_mm512_mask_loadu_ps(before, low, p + 2 * j * step), high,
                                                            p + (2 * j + 1) * step - 8);
                }
            }
            return;
        }
    }
#endif
    for (int j = 0; j < kColumns; ++j) {
        T buffer[kStep] = {};
        for (int half = 0; half < kRows; ++half) {
            const int64_t r = kRows * j + half;
            if (r >= count) break;
            for (int k = 0; k < segments; ++k) {
                const auto& from = sources[s[k].source];
                memcpy(buffer + half * kColumns + s[k].lane, from.data + (row + r) * from.stride + s[k].column,
                       static_cast<std::size_t>(s[k].count) * sizeof(T));
            }
        }
        packs[j] = Storage<T>::read(buffer);
    }
}

template <class T>
PF_FN void write_rows(const Source<T*>* sources, const Segment* s, int segments, int64_t row, int64_t count,
                      const Pack<T>* packs) {
    constexpr int kStep = lanes<T>(), kColumns = tile_columns<T>(), kRows = kStep / kColumns;
#if defined(__AVX512F__)
    if constexpr (std::is_same_v<T, float>) {
        if (count == kStep) {
            for (int k = 0; k < segments; ++k) {
                const int64_t step = sources[s[k].source].stride;
                float* p = sources[s[k].source].data + row * step + s[k].column - s[k].lane;
                // Halves of a pack: a masked store of all of it that crosses a line takes several times as long.
                const auto mask = static_cast<__mmask8>(((1u << s[k].count) - 1u) << s[k].lane);
#pragma GCC unroll 8
                for (int j = 0; j < 8; ++j) {
                    const __m256 even = _mm512_castps512_ps256((__m512)packs[j]);
                    const __m256 odd = _mm512_extractf32x8_ps((__m512)packs[j], 1);
                    if (s[k].count == 8) {
                        _mm256_storeu_ps(p + 2 * j * step, even);
                        _mm256_storeu_ps(p + (2 * j + 1) * step, odd);
                    } else {
                        _mm256_mask_storeu_ps(p + 2 * j * step, mask, even);
                        _mm256_mask_storeu_ps(p + (2 * j + 1) * step, mask, odd);
                    }
                }
            }
            return;
        }
    }
#endif
    for (int j = 0; j < kColumns; ++j) {
        T buffer[kStep];
        Storage<T>::write(buffer, packs[j]);
        for (int half = 0; half < kRows; ++half) {
            const int64_t r = kRows * j + half;
            if (r >= count) return;
            for (int k = 0; k < segments; ++k) {
                const auto& to = sources[s[k].source];
                memcpy(to.data + (row + r) * to.stride + s[k].column, buffer + half * kColumns + s[k].lane,
                       static_cast<std::size_t>(s[k].count) * sizeof(T));
            }
        }
    }
}

// Those of a spline.
template <int K, class T, class S, class F>
PF_FN void each_tile(const Spline<K, S>& s, F f) {
    if constexpr (K > 0) {
        static constexpr Tiles tiles(K, K - 1, tile_columns<T>());
        each<0, tiles.count>(tiles.count,
                             [&](int t) PF_LAMBDA { f(t, tiles.tile[t].segment, tiles.tile[t].segments); });
    } else {
        const Tiles& tiles = *s.tiles;
        for (int t = 0; t < tiles.count; ++t) f(t, tiles.tile[t].segment, tiles.tile[t].segments);
    }
}

// The parameters of `count` elements from `row` on as a pack a column; lanes without an element are zero.
template <class T, int K, class S>
PF_FN void read_columns(const Spline<K, S>& s, const Source<const T*>* sources, int64_t row, int64_t count,
                        Pack<T>* columns) {
    each_tile<K, T>(s, [&](int t, const Segment* segment, int segments) PF_LAMBDA {
        Pack<T>* packs = columns + t * tile_columns<T>();
        read_rows<T>(sources, segment, segments, row, count, packs);
        to_columns(packs);
    });
}

template <class T, int K, class S>
PF_FN void write_columns(const Spline<K, S>& s, const Source<T*>* sources, int64_t row, int64_t count,
                         Pack<T>* columns) {
    each_tile<K, T>(s, [&](int t, const Segment* segment, int segments) PF_LAMBDA {
        Pack<T>* packs = columns + t * tile_columns<T>();
        to_rows(packs);
        write_rows<T>(sources, segment, segments, row, count, packs);
    });
}

// Rows that lie next to each other, past the caches. They are put together in `buffer` first, so that whole lines go
// out.
template <class T, int K, class S>
PF_FN void stream_columns(const Spline<K, S>& s, const Source<T*>* sources, int64_t row, Pack<T>* parameters,
                          Pack<T>* buffer) {
    const int columns[] = {s.bins(), s.bins(), s.knots()};
    Source<T*> local[3];
    Pack<T>* next = buffer;
    for (int k = 0; k < 3; ++k) {
        local[k] = {reinterpret_cast<T*>(next), columns[k]};
        next += columns[k];
    }
    write_columns<T>(s, local, 0, lanes<T>(), parameters);
    next = buffer;
    for (int k = 0; k < 3; ++k) {
        T* to = sources[k].data + row * columns[k];
        for (int j = 0; j < columns[k]; ++j) stream(to + j * lanes<T>(), *next++);
    }
}

template <class T>
bool streams(const Batch& b, const int columns[3], const Source<T*>* sources) {
    if (sizeof(T) != sizeof(Scalar<Pack<T>>)) return false;
    int64_t bytes = 0;
    for (int k = 0; k < 3; ++k) {
        if (sources[k].stride != columns[k] || reinterpret_cast<uintptr_t>(sources[k].data) % sizeof(Pack<T>) != 0)
            return false;
        bytes += b.samples * b.size * columns[k] * static_cast<int64_t>(sizeof(T));
    }
    return bytes >= kPastCaches;
}

// What a later pack reads or writes. Three streams of short rows are more than processors follow by themselves, and a
// store to a line that is far away waits for it.
template <class P>
PF_FN void prefetch(const Source<P*>* sources, const int columns[3], int64_t row, int64_t count, int64_t rows) {
    constexpr int64_t kLine = 64;
    if (row + count > rows) return;
    const auto place = [&](int k, int64_t r) {
        return reinterpret_cast<uintptr_t>(sources[k].data + r * sources[k].stride);
    };
    // Rows that hold all three are one stream.
    const bool packed = place(2, 0) - place(0, 0) < static_cast<uintptr_t>(sources[0].stride) * sizeof(P) &&
                        sources[0].stride == sources[2].stride;
    for (int k = packed ? 2 : 0; k < 3; ++k) {
        const uintptr_t end = place(k, row + count - 1) + static_cast<uintptr_t>(columns[k]) * sizeof(P);
        for (uintptr_t p = place(packed ? 0 : k, row); p < end; p += kLine)
            __builtin_prefetch(reinterpret_cast<const void*>(p));
    }
}

}  // namespace
}  // namespace PF_NAMESPACE
