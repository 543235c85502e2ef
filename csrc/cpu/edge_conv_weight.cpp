// The adjoint of edge_conv in the weight, and the bias's gradient; edge_conv.cpp says what the three are.
#include "edge_conv_tiles.h"

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
constexpr int64_t kTilesAtOnce = 32;    // as many

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
            const int64_t some = places - q, from = at + k * g.feature[1] + q;
            V r[kStep];
            if (some >= kStep && g.k - k >= kStep) {
                const auto whole = [&](const T* p) {
                    // What comes next in this plane: the hardware does not follow as many planes.
                    __builtin_prefetch(p + places);
                    return Storage<T>::read(p);
                };
#pragma GCC unroll 16
                for (int64_t i = 0; i < kStep; ++i) r[i] = whole(feature + from + i * g.feature[1]);
                if (gate) {
#pragma GCC unroll 16
                    for (int64_t i = 0; i < kStep; ++i)
                        r[i] = gated(r[i], whole(gate + from + i * g.feature[1]), slope);
                }
            } else {
                const auto part = [&](const T* p) { return some >= kStep ? Storage<T>::read(p) : read_part(p, some); };
                for (int64_t i = 0; i < kStep; ++i) {
                    r[i] = k + i < g.k ? part(feature + from + i * g.feature[1]) : V{};
                    if (gate && k + i < g.k) r[i] = gated(r[i], part(gate + from + i * g.feature[1]), slope);
                }
            }
            transpose(r);
            for (int64_t i = 0; i < kStep && i < some; ++i) store(to + (q + i) * wide + k, r[i]);
        }
}

// What all samples of a call share.
template <class T, class S = S_of<T>>
struct Call {
    using V = Pack<T>;
    const Geometry& g;
    const T *const feature, *const gate;
    const S slope;
    const bool want_bias;
    static constexpr int kStep = lanes<T>();
    const Padded<T> padded{g};
    const Tiles<T> tiles{g, padded};
    const int64_t terms = padded.terms(), vectors = (g.k + kStep - 1) / kStep, wide = vectors * kStep;
    const std::vector<Chunk> chunks = chunks_of(g.k, kStep);
    const bool as_it_lies = std::is_same_v<T, S> && !gate && g.k == wide && g.features_last();
    const bool in_tiles = Tiles<T>::serve(g);
    // Rows of features, plain and in tiles.
    const int64_t together = g.fw < kPlacesAtOnce ? kPlacesAtOnce / g.fw : 1, tiled = 2 * tiles.rows_of(kTilesAtOnce);

    int64_t laid_out() const {
        return as_it_lies ? 1 : (in_tiles && tiled > together ? tiled : together) * g.fw * wide;
    }
    // Plain: [chunk][term][vector], with room for the last tile of a chunk. In tiles: [product][term][vector].
    int64_t sums() const {
        const int64_t plain = (terms + 1) * vectors + 8 * kMostVectors * static_cast<int64_t>(chunks.size());
        const int64_t in_products = (kProducts * tiles.terms + 1) * vectors;
        return in_tiles && in_products > plain ? in_products : plain;
    }
    Features<S> features(int64_t n, int64_t y, int64_t rows, S* behind_gate) const {
        const int64_t at = n * g.feature[0] + y * g.feature[2];
        if constexpr (std::is_same_v<T, S>)
            if (as_it_lies) return {feature + at, g.feature[2], g.feature[3]};
        lay_out(g, feature, gate, slope, at, rows, behind_gate, wide);
        return {behind_gate, g.fw * wide, wide};
    }
    void add(V& sum, int64_t term, int64_t first, double* total) const {
        S lane[kStep];
        store(lane, sum);
        for (int i = 0; i < kStep; ++i) total[term * wide + first + i] += lane[i];
        sum = V{};
    }
};

// A sample, from the copy of its image; the sums are zero before and after.
template <class T, class S = S_of<T>, class V = Pack<T>>
void plain(const Call<T>& call, int64_t n, const S* copy, S* behind_gate, V* sums, double* total) {
    const Geometry& g = call.g;
    const int64_t terms = call.terms;
    for (int64_t y = 0; y < g.fh; y += call.together) {
        const int64_t rows = g.fh - y < call.together ? g.fh - y : call.together;
        const Features<S> f = call.features(n, y, rows, behind_gate);
        V* sum = sums;
        for (const Chunk& chunk : call.chunks)
            with_vectors(chunk.vectors, [&](auto some) {
                constexpr int kRows = rows_of(some());
                for (int64_t t = 0; t < terms; t += kRows, sum += kRows * some()) {
                    const S* from[kRows];
                    for (int r = 0; r < kRows; ++r)  // the last tile repeats the last term
                        from[r] =
                            copy + call.padded.corner(y, 0) + call.padded.offset[t + r < terms ? t + r : terms - 1];
                    outer_tile<some(), V>(from, g.s * call.padded.pitch, g.s * call.padded.step, f.data + chunk.first,
                                          f, rows, g.fw, sum);
                }
            });
        for (int64_t v = 0; call.want_bias && v < call.vectors; ++v, ++sum)
            for (int64_t r = 0; r < rows; ++r)
                for (int64_t x = 0; x < g.fw; ++x) *sum += load<V>(f.data + r * f.row + x * f.column + v * call.kStep);
    }
    V* sum = sums;
    for (const Chunk& chunk : call.chunks) {
        const int64_t rows = chunk.vectors == kMostVectors ? rows_of(kMostVectors) : rows_of(1);
        for (int64_t t = 0; t < (terms + rows - 1) / rows * rows; ++t)
            for (int v = 0; v < chunk.vectors; ++v, ++sum)
                if (t < terms)
                    call.add(*sum, t, chunk.first + v * call.kStep, total);
                else
                    *sum = V{};
    }
    for (int64_t v = 0; call.want_bias && v < call.vectors; ++v, ++sum) call.add(*sum, terms, v * call.kStep, total);
}

// Vectors of features in a tile of so many terms.
constexpr int widest(int terms) { return terms == 4 ? kMostVectors : kMostVectors / 2; }
// Calls f with a number of terms as a constant: 12, or as many of 8 and 4 as it takes.
template <class F>
int with_terms(int64_t left, F f) {
    if (left == 12) return f(std::integral_constant<int, 12>{}), 12;
    if (left >= 8) return f(std::integral_constant<int, 8>{}), 8;
    return f(std::integral_constant<int, 4>{}), 4;
}

// sums[r * apart + v] += the sum over tiles of a product's factor of term r and that of vector v of the features, which
// is of one place or of two along either axis. The second of a pair of terms lies `second` behind the first.
template <int kVectors, int kTerms, bool kRows, bool kColumns>
void add_product(const float* const* from, int64_t second, int64_t row, int64_t column, const Features<float>& f,
                 int64_t ahead, int64_t rows, int64_t columns, vfloat* sums, int64_t apart) {
    using V = vfloat;
    V total[kTerms][kVectors];
#pragma GCC unroll 12
    for (int r = 0; r < kTerms; ++r)
#pragma GCC unroll 4
        for (int v = 0; v < kVectors; ++v) total[r][v] = sums[r * apart + v];
    for (int64_t y = 0; y < rows; ++y) {
        const float *at = f.data + 2 * y * f.row, *below = at + f.row;
        for (int64_t x = y * row, end = x + columns * column; x < end;
             x += column, at += 2 * f.column, below += 2 * f.column) {
            const int64_t next = x + second;
            V by[kVectors];
#pragma GCC unroll 4
            for (int v = 0; v < kVectors; ++v) {
                const auto of_row = [&](const float* p) {
                    const V first = load<V>(p + v * kLanes);
                    return kColumns ? first + load<V>(p + f.column + v * kLanes) : first;
                };
                by[v] = kRows ? of_row(at) + of_row(below) : of_row(at);
                if (!kRows && !kColumns) __builtin_prefetch(at + ahead + v * kLanes, 0, 2);
            }
#pragma GCC unroll 12
            for (int r = 0; r < kTerms; ++r) {
                const V pixel = spread<V>(from[r / 2][r % 2 ? next : x]);
#pragma GCC unroll 4
                for (int v = 0; v < kVectors; ++v) total[r][v] += pixel * by[v];
            }
        }
    }
#pragma GCC unroll 12
    for (int r = 0; r < kTerms; ++r)
#pragma GCC unroll 4
        for (int v = 0; v < kVectors; ++v) sums[r * apart + v] = total[r][v];
}

// A sample in tiles, unless its sums are not finite: then nothing is added.
template <class T>
bool in_tiles(const Call<T>& call, int64_t n, const float* copy, float* behind_gate, float* pixels, vfloat* sums,
              double* total) {
    using V = vfloat;
    const Tiles<T>& tiles = call.tiles;
    const int64_t terms = tiles.terms, vectors = call.vectors, together = call.tiled / 2;
    V* const bias = sums + kProducts * terms * vectors;
    for (int64_t first = 0; first < tiles.down; first += together) {
        const int64_t rows = tiles.down - first < together ? tiles.down - first : together;
        for (int64_t y = 0; y < rows; ++y) tiles.transform(copy, first + y, pixels + y * tiles.row());
        const Features<float> f = call.features(n, 2 * first, 2 * rows, behind_gate);
        // What comes next in memory, which the hardware does not follow in such steps.
        const int64_t ahead = call.as_it_lies ? 2 * rows * call.g.fw * f.column : 0;
        const auto add = [&](auto some, auto wide, int64_t t, int64_t v) {
            for (int i = 0; i < kProducts; ++i) {
                const float* from[some() / 2];
                for (int r = 0; r < some() / 2; ++r) from[r] = pixels + tiles.offset(i, t + 2 * r);
                const Features<float> at{f.data + v * kLanes + (i / 3 == 2) * f.row + (i % 3 == 2) * f.column, f.row,
                                         f.column};
                const auto product = i / 3 == 1   ? i % 3 == 1 ? add_product<wide(), some(), true, true>
                                                               : add_product<wide(), some(), true, false>
                                     : i % 3 == 1 ? add_product<wide(), some(), false, true>
                                                  : add_product<wide(), some(), false, false>;
                product(from, tiles.padded.step, tiles.row(), tiles.corner(1), at, ahead, rows, tiles.across,
                        sums + (i * terms + t) * vectors + v, vectors);
            }
        };
        for (int64_t t = 0; t < terms;)
            t += with_terms(terms - t, [&](auto some) {
                for (int64_t v = 0; v < vectors;) {
                    int wide = widest(some());
                    while (wide > vectors - v) wide /= 2;
                    with_vectors(wide, [&](auto constant) {
                        if constexpr (constant() <= widest(some())) add(some, constant, t, v);
                    });
                    v += wide;
                }
            });
        for (int64_t v = 0; call.want_bias && v < vectors; ++v)
            for (int64_t y = 0; y < rows; ++y)
                for (int64_t x = 0; x < tiles.across; ++x) {
                    const float *const p = f.data + 2 * (y * f.row + x * f.column) + v * kLanes, *const q = p + f.row;
                    bias[v] += (load<V>(p) + load<V>(p + f.column)) + (load<V>(q) + load<V>(q + f.column));
                }
    }
    const int64_t count = (kProducts * terms + 1) * vectors;
    const bool finite = moderate(reinterpret_cast<const float*>(sums), count * kLanes, FLT_MAX);
    for (int64_t t = 0; finite && t < terms; ++t)
        for (int64_t v = 0; v < vectors; ++v) {
            V tap[4];
            taps_of_sums(sums + t * vectors + v, terms * vectors, tap);
            for (int64_t i = 0; i < 4; ++i)
                call.add(tap[i], t / 4 * 16 + (t / 2 % 2 + i / 2 * 2) * 4 + t % 2 + i % 2 * 2, v * kLanes, total);
        }
    for (int64_t v = 0; finite && call.want_bias && v < vectors; ++v) call.add(bias[v], call.terms, v * kLanes, total);
    for (int64_t i = 0; i < count; ++i) sums[i] = V{};
    return finite;
}

// The sums of a piece are in the computing type over a sample, and in float64 over samples and pieces.
template <class T, class S = S_of<T>>
void weight_gradient(const Geometry& g, const T* image, const T* feature, const T* gate, S slope, T* gradient,
                     T* bias_gradient, int threads) {
    using V = Pack<T>;
    const Call<T> call{g, feature, gate, slope, bias_gradient != nullptr};
    const Padded<T>& padded = call.padded;
    const int64_t terms = call.terms, wide = call.wide;
    const int64_t share = (terms + 1) * wide;  // of a piece: the last row is the bias's
    std::vector<double> partial((g.pieces() > 0 ? g.pieces() : 1) * share);
    parallel_for(g.pieces(), threads, g.small(), [&](int64_t piece) {
        S* const copy = zeros<S>(0, padded.elements() + call.tiles.behind());
        S* const behind_gate = zeros<S>(1, call.laid_out());
        V* const sums = zeros<V>(2, call.sums());
        [[maybe_unused]] S* const pixels = zeros<S>(3, call.in_tiles ? call.tiled / 2 * call.tiles.row() : 1);
        double* const total = partial.data() + piece * share;
        for (int64_t n = piece * g.group(); n < g.n && n < (piece + 1) * g.group(); ++n) {
            padded.fill(image + n * g.image[0], copy);
            if constexpr (std::is_same_v<S, float>)
                if (call.in_tiles && in_tiles(call, n, copy, behind_gate, pixels, sums, total)) continue;
            plain(call, n, copy, behind_gate, sums, total);
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
