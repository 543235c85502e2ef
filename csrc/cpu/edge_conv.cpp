// Convolutions between an image of few channels and features of many, for strides that divide the kernel:
//
//   edge_conv             feature[k, p] = sum over c, i of weight[k, c, i] * image[c, s p - padding + i]
//   edge_conv_transpose   its adjoint in the image: features to an image, a transposed convolution
//   edge_conv_weight      its adjoint in the weight
//
// edge_conv adds a bias and takes a leaky ReLU of the sum (slope 0: a ReLU, slope 1: nothing). The others take the
// backward pass of that on the way in: features whose `gate`, the output of the forward pass, is not positive are
// multiplied by the slope.
//
// Floor, each of the three: 2 n k fh fw c kh kw operations over the rate of a matrix product; one pass over the image
// and one over the features.
//
// A padded image is cut into s x s phases, one for each remainder (a, b) of its coordinates: phase[c, a, b][q] =
// image[c, s q + (a, b) - padding]. With i = (a, b) + s j the stride is gone: every kernel is a sum of products over
// shifts by j of planes that share one pitch, so that a shift is an offset, and vectors run over the flattened plane.
// Planes are zero-padded copies in scratch memory; reading and writing them converts types and layouts. The last
// pitch - fw positions of a row mean nothing and are not copied out.
//
// A piece of work is a number of samples that depends on nothing but the batch.
#include "types.h"
#include "threads.h"

#include <new>
#include <vector>

#include "../export.h"

namespace PF_NAMESPACE {
namespace {

#if defined(__AVX512F__)
constexpr int kAccumulators = 24;  // of 32 registers
constexpr int kFeatureTile = 8;  // features that edge_conv computes at once
constexpr int kWeightRows = 4, kWeightColumns = 6;  // of the tile of a weight gradient
#else
constexpr int kAccumulators = 12;  // of 16
constexpr int kFeatureTile = 4;
constexpr int kWeightRows = 2, kWeightColumns = 4;
#endif
constexpr int64_t kPieces = 16;
constexpr int64_t kPieceWork = 262144;  // products that are worth a piece of work
constexpr int64_t kSlack = 8 * kLanes;  // behind a plane, for whole tiles at its end

// Vectors of positions that a tile of m outputs has.
constexpr int vectors_of(int m) { return m * 6 <= kAccumulators ? 6 : m <= kAccumulators ? kAccumulators / m : 1; }

struct Geometry {
    int64_t n, c, h, w, k, fh, fw, kh, kw, s, p;
    int64_t image[4], feature[4];  // strides in elements: sample, channel, row, column

    int64_t jy() const { return kh / s; }
    int64_t jx() const { return kw / s; }
    int64_t shifts() const { return jy() * jx(); }
    int64_t phases() const { return c * s * s; }
    int64_t pitch() const { return fw + jx() - 1; }
    int64_t rows() const { return fh + jy() - 1; }  // of a phase
    int64_t shift(int64_t j) const { return j / jx() * pitch() + j % jx(); }
    // An odd number of cache lines, so that the same place of several planes does not fall into one set of a cache.
    int64_t plane(int64_t elements) const { return ((elements + kSlack + 15) & ~int64_t{15}) | 16; }
    int64_t phase_plane() const { return plane(rows() * pitch()); }
    int64_t feature_plane() const { return plane((fh + 2 * (jy() - 1)) * pitch() + jx() - 1); }
    int64_t feature_start() const { return (jy() - 1) * pitch() + jx() - 1; }
    int64_t work() const { return k * fh * fw * c * kh * kw; }  // products of a sample
    // Samples of a piece: a sixteenth of the batch, or as many as are worth a start.
    int64_t group() const {
        const int64_t share = (n + kPieces - 1) / kPieces, worth = kPieceWork / (work() + 1) + 1;
        return share > worth ? share : worth;
    }
    int64_t pieces() const { return n ? (n + group() - 1) / group() : 0; }
    bool small() const { return n * work() < kPieceWork; }
};

// Zeros that begin a cache line, in memory that each thread keeps: fresh memory would fault page by page.
template <class V>
V* zeros(int slot, int64_t count) {
    struct Kept {
        char* data[4] = {};
        std::size_t size[4] = {};
        ~Kept() {
            for (char* p : data) ::operator delete(p, std::align_val_t{64});
        }
    };
    static thread_local Kept kept;
    const std::size_t bytes = static_cast<std::size_t>(count) * sizeof(V);
    if (kept.size[slot] < bytes) {
        ::operator delete(kept.data[slot], std::align_val_t{64});
        kept.data[slot] = nullptr;
        kept.size[slot] = 0;
        kept.data[slot] = static_cast<char*>(::operator new(bytes, std::align_val_t{64}));
        kept.size[slot] = bytes;
    }
    memset(kept.data[slot], 0, bytes);
    return reinterpret_cast<V*>(kept.data[slot]);
}

template <class T>
using S_of = Scalar<Pack<T>>;

template <class T, class S = S_of<T>>
void read_row(const T* from, int64_t stride, int64_t count, S* to) {
    constexpr int kStep = lanes<T>();
    int64_t x = 0;
    if (stride == 1)
        for (; x + kStep <= count; x += kStep) store(to + x, Storage<T>::read(from + x));
    for (; x < count; ++x) to[x] = to_scalar(from[x * stride]);
}

// The gradient behind a leaky ReLU with output `gate`.
template <class V>
PF_FN V gated(V x, V gate, Scalar<V> slope) {
    return select(gate > 0, x, x * slope);
}
template <class T, class S = S_of<T>>
void read_gated_row(const T* from, const T* gate, S slope, int64_t stride, int64_t count, S* to) {
    constexpr int kStep = lanes<T>();
    int64_t x = 0;
    if (stride == 1)
        for (; x + kStep <= count; x += kStep)
            store(to + x, gated(Storage<T>::read(from + x), Storage<T>::read(gate + x), slope));
    for (; x < count; ++x) {
        const S value = to_scalar(from[x * stride]);
        to[x] = to_scalar(gate[x * stride]) > 0 ? value : value * slope;
    }
}

template <class T, class S = S_of<T>>
void write_row(const S* from, int64_t count, T* to, int64_t stride) {
    constexpr int kStep = lanes<T>();
    int64_t x = 0;
    if (stride == 1)
        for (; x + kStep <= count; x += kStep) Storage<T>::write(to + x, load<Pack<T>>(from + x));
    for (; x < count; ++x) to[x * stride] = from_scalar<T>(from[x]);
}

template <class V, std::size_t... I>
PF_FN V merge_low(V a, V b, std::index_sequence<I...>) {
    return __builtin_shufflevector(a, b, (I / 2 + I % 2 * sizeof...(I))...);
}
template <class V, std::size_t... I>
PF_FN V merge_high(V a, V b, std::index_sequence<I...>) {
    return __builtin_shufflevector(a, b, (sizeof...(I) / 2 + I / 2 + I % 2 * sizeof...(I))...);
}
template <class V, std::size_t... I>
PF_FN V evens(V a, V b, std::index_sequence<I...>) {
    return __builtin_shufflevector(a, b, (2 * I)...);
}
template <class V, std::size_t... I>
PF_FN V odds(V a, V b, std::index_sequence<I...>) {
    return __builtin_shufflevector(a, b, (2 * I + 1)...);
}
template <class V>
using Lanes = std::make_index_sequence<sizeof(V) / sizeof(Scalar<V>)>;

// A square of n vectors: merging its first half with its second one log2(n) times transposes it.
template <class V>
PF_FN void merge_halves(V* r) {
    constexpr int n = static_cast<int>(Lanes<V>::size());
    V t[n];
#pragma GCC unroll 16
    for (int i = 0; i < n / 2; ++i) {
        t[2 * i] = merge_low(r[i], r[i + n / 2], Lanes<V>{});
        t[2 * i + 1] = merge_high(r[i], r[i + n / 2], Lanes<V>{});
    }
#pragma GCC unroll 16
    for (int i = 0; i < n; ++i) r[i] = t[i];
}
template <class V>
PF_FN void transpose(V* r) {
    constexpr std::size_t n = Lanes<V>::size();
    merge_halves(r);
    if constexpr (n > 2) merge_halves(r);
    if constexpr (n > 4) merge_halves(r);
    if constexpr (n > 8) merge_halves(r);
}

// A sample's image to its phases. `row` holds zeros before p and from p + w on.
template <class T, class S = S_of<T>>
void pack_image(const Geometry& g, const T* image, S* phases, S* row) {
    using V = Pack<T>;
    constexpr int kStep = lanes<T>();
    const int64_t s = g.s, pitch = g.pitch(), plane = g.phase_plane();
    for (int64_t c = 0; c < g.c; ++c)
        for (int64_t y = 0; y < g.h; ++y) {
            const int64_t q = (y + g.p) / s, a = (y + g.p) % s;
            if (q >= g.rows()) break;
            read_row(image + c * g.image[1] + y * g.image[2], g.image[3], g.w, row + g.p);
            S* const to = phases + (c * s + a) * s * plane + q * pitch;
            int64_t x = 0;
            if (s == 2)
                for (; x + kStep <= pitch; x += kStep) {
                    const V low = load<V>(row + 2 * x), high = load<V>(row + 2 * x + kStep);
                    store(to + x, evens(low, high, Lanes<V>{}));
                    store(to + plane + x, odds(low, high, Lanes<V>{}));
                }
            for (int64_t b = 0; b < s; ++b)
                for (int64_t k = x; k < pitch; ++k) to[b * plane + k] = row[s * k + b];
        }
}

// The phases to a sample's image. What no phase reaches is zero.
template <class T, class S = S_of<T>>
void unpack_image(const Geometry& g, const S* phases, T* image, S* row) {
    using V = Pack<T>;
    constexpr int kStep = lanes<T>();
    const int64_t s = g.s, pitch = g.pitch(), plane = g.phase_plane();
    for (int64_t c = 0; c < g.c; ++c)
        for (int64_t y = 0; y < g.h; ++y) {
            const int64_t q = (y + g.p) / s, a = (y + g.p) % s;
            const S* const from = phases + (c * s + a) * s * plane + q * pitch;
            int64_t end = 0;
            if (q < g.rows()) {
                end = s * pitch;
                if (s == 2) {
                    for (int64_t x = 0; x < pitch; x += kStep) {
                        const V even = load<V>(from + x), odd = load<V>(from + plane + x);
                        store(row + 2 * x, merge_low(even, odd, Lanes<V>{}));
                        store(row + 2 * x + kStep, merge_high(even, odd, Lanes<V>{}));
                    }
                } else {
                    for (int64_t b = 0; b < s; ++b)
                        for (int64_t x = 0; x < pitch; ++x) row[s * x + b] = from[b * plane + x];
                }
            }
            for (int64_t x = end; x < g.p + g.w; ++x) row[x] = 0;
            write_row(row + g.p, g.w, image + c * g.image[1] + y * g.image[2], g.image[3]);
        }
}

// A sample's features to planes with a zero border; what lies between them stays zero.
template <class T, class S = S_of<T>>
void pack_features(const Geometry& g, const T* feature, const T* gate, S slope, S* planes) {
    using V = Pack<T>;
    constexpr int kStep = lanes<T>();
    const int64_t plane = g.feature_plane(), start = g.feature_start(), pitch = g.pitch();
    if (g.feature[1] != 1 || g.k == 1) {
        for (int64_t k = 0; k < g.k; ++k)
            for (int64_t y = 0; y < g.fh; ++y) {
                const int64_t from = k * g.feature[1] + y * g.feature[2];
                S* const to = planes + k * plane + start + y * pitch;
                if (gate)
                    read_gated_row(feature + from, gate + from, slope, g.feature[3], g.fw, to);
                else
                    read_row(feature + from, g.feature[3], g.fw, to);
            }
        return;
    }
    for (int64_t y = 0; y < g.fh; ++y)
        for (int64_t x = 0; x < g.fw; x += kStep) {
            const int64_t columns = g.fw - x < kStep ? g.fw - x : kStep;
            for (int64_t k = 0; k < g.k; k += kStep) {
                const int64_t channels = g.k - k < kStep ? g.k - k : kStep;
                const int64_t at = y * g.feature[2] + x * g.feature[3] + k;
                V r[kStep];
                if (columns == kStep && channels == kStep) {
#pragma GCC unroll 16
                    for (int i = 0; i < kStep; ++i) r[i] = Storage<T>::read(feature + at + i * g.feature[3]);
                    if (gate) {
#pragma GCC unroll 16
                        for (int i = 0; i < kStep; ++i)
                            r[i] = gated(r[i], Storage<T>::read(gate + at + i * g.feature[3]), slope);
                    }
                } else {
                    const auto part = [&](const T* from, int64_t i) {
                        const T* const p = from + at + i * g.feature[3];
                        return channels == kStep ? Storage<T>::read(p) : read_part(p, channels);
                    };
                    for (int i = 0; i < kStep; ++i) {
                        r[i] = i < columns ? part(feature, i) : V{};
                        if (gate && i < columns) r[i] = gated(r[i], part(gate, i), slope);
                    }
                }
                transpose(r);
                // Zeros past the row's end are overwritten by the next row, or belong there.
                S* const to = planes + k * plane + start + y * pitch + x;
                if (channels == kStep) {
#pragma GCC unroll 16
                    for (int i = 0; i < kStep; ++i) store(to + i * plane, r[i]);
                } else {
                    for (int64_t i = 0; i < channels; ++i) store(to + i * plane, r[i]);
                }
            }
        }
}

template <class T, class S = S_of<T>>
void unpack_features(const Geometry& g, const S* planes, int64_t plane, T* feature) {
    using V = Pack<T>;
    constexpr int kStep = lanes<T>();
    const int64_t pitch = g.pitch();
    if (g.feature[1] != 1 || g.k == 1) {
        for (int64_t k = 0; k < g.k; ++k)
            for (int64_t y = 0; y < g.fh; ++y)
                write_row(planes + k * plane + y * pitch, g.fw, feature + k * g.feature[1] + y * g.feature[2],
                          g.feature[3]);
        return;
    }
    for (int64_t y = 0; y < g.fh; ++y)
        for (int64_t x = 0; x < g.fw; x += kStep) {
            const int64_t columns = g.fw - x < kStep ? g.fw - x : kStep;
            for (int64_t k = 0; k < g.k; k += kStep) {
                const int64_t channels = g.k - k < kStep ? g.k - k : kStep;
                V r[kStep];
                const S* const from = planes + k * plane + y * pitch + x;
                if (channels == kStep) {
#pragma GCC unroll 16
                    for (int i = 0; i < kStep; ++i) r[i] = load<V>(from + i * plane);
                } else {
                    for (int i = 0; i < kStep; ++i) r[i] = i < channels ? load<V>(from + i * plane) : V{};
                }
                transpose(r);
                T* const to = feature + y * g.feature[2] + x * g.feature[3] + k;
                if (columns == kStep && channels == kStep) {
#pragma GCC unroll 16
                    for (int i = 0; i < kStep; ++i) Storage<T>::write(to + i * g.feature[3], r[i]);
                } else {
                    for (int64_t i = 0; i < columns; ++i) {
                        if (channels == kStep)
                            Storage<T>::write(to + i * g.feature[3], r[i]);
                        else
                            write_part(to + i * g.feature[3], r[i], channels);
                    }
                }
            }
        }
}

// out[m][x] = leaky ReLU of bias[m] + the sum over t of weight[t][m] * in[offset[t] + x], for whole tiles of positions
// that cover [0, count).
template <int M, class S>
void shifted_product(const S* in, const int64_t* offsets, int64_t terms, const S* weight, const S* bias, S slope,
                     S* out, int64_t plane, int64_t count) {
    using V = std::conditional_t<std::is_same_v<S, float>, vfloat, vdouble>;
    constexpr int kStep = static_cast<int>(Lanes<V>::size()), kVectors = vectors_of(M);
    for (int64_t x = 0; x < count; x += kVectors * kStep) {
        V sums[M][kVectors];
#pragma GCC unroll 32
        for (int m = 0; m < M; ++m)
#pragma GCC unroll 8
            for (int v = 0; v < kVectors; ++v) sums[m][v] = V{} + bias[m];
        const S* w = weight;
        for (int64_t t = 0; t < terms; ++t, w += M) {
            const S* const from = in + offsets[t] + x;
            V at[kVectors];
#pragma GCC unroll 8
            for (int v = 0; v < kVectors; ++v) at[v] = load<V>(from + v * kStep);
#pragma GCC unroll 32
            for (int m = 0; m < M; ++m) {
                const V factor = V{} + w[m];
#pragma GCC unroll 8
                for (int v = 0; v < kVectors; ++v) sums[m][v] += factor * at[v];
            }
        }
        if (slope != 1) {
            // -inf times 0 is not what a ReLU gives.
#pragma GCC unroll 32
            for (int m = 0; m < M; ++m)
#pragma GCC unroll 8
                for (int v = 0; v < kVectors; ++v)
                    sums[m][v] = select(sums[m][v] <= 0, slope == 0 ? V{} : sums[m][v] * slope, sums[m][v]);
        }
#pragma GCC unroll 32
        for (int m = 0; m < M; ++m)
#pragma GCC unroll 8
            for (int v = 0; v < kVectors; ++v) store(out + m * plane + x + v * kStep, sums[m][v]);
    }
}

template <class S>
using Product = void (*)(const S*, const int64_t*, int64_t, const S*, const S*, S, S*, int64_t, int64_t);

// Null where there is none for so many outputs.
template <class S>
Product<S> product_of(int64_t outputs) {
    switch (outputs) {
        case 1:
            return shifted_product<1, S>;
        case 2:
            return shifted_product<2, S>;
        case 3:
            return shifted_product<3, S>;
        case 4:
            return shifted_product<4, S>;
        case 8:
            return shifted_product<8, S>;
        case 12:
            return shifted_product<12, S>;
        case 16:
            return shifted_product<16, S>;
    }
    return nullptr;
}

// Where weight[k, c, a + s jy, b + s jx] lies, for phase = (c, a, b) and j = (jy, jx).
int64_t weight_index(const Geometry& g, int64_t k, int64_t phase, int64_t j) {
    const int64_t c = phase / (g.s * g.s), a = phase / g.s % g.s, b = phase % g.s;
    return ((k * g.c + c) * g.kh + a + g.s * (j / g.jx())) * g.kw + b + g.s * (j % g.jx());
}

template <class T, class S = S_of<T>>
void forward(const Geometry& g, const T* image, const T* weight, const T* bias, S slope, T* feature, int threads) {
    const int64_t terms = g.phases() * g.shifts(), tiles = (g.k + kFeatureTile - 1) / kFeatureTile;
    const int64_t count = (g.fh - 1) * g.pitch() + g.fw, plane = g.plane(count);
    constexpr int64_t kTile = vectors_of(kFeatureTile) * lanes<T>();
    std::vector<int64_t> offsets(terms);
    std::vector<S> weights(tiles * terms * kFeatureTile);  // [tile][term][feature of the tile]
    std::vector<S> biases(tiles * kFeatureTile);
    for (int64_t k = 0; bias && k < g.k; ++k) biases[k] = to_scalar(bias[k]);
    for (int64_t t = 0; t < terms; ++t) {
        const int64_t phase = t / g.shifts(), j = t % g.shifts();
        offsets[t] = phase * g.phase_plane() + g.shift(j);
        for (int64_t k = 0; k < g.k; ++k)
            weights[(k / kFeatureTile * terms + t) * kFeatureTile + k % kFeatureTile] =
                to_scalar(weight[weight_index(g, k, phase, j)]);
    }
    parallel_for(g.pieces(), threads, g.small(), [&](int64_t piece) {
        S* const phases = zeros<S>(0, g.phases() * g.phase_plane());
        S* const row = zeros<S>(1, g.s * g.pitch() + g.p + g.w + kSlack);
        S* const planes = zeros<S>(2, tiles * kFeatureTile * plane);
        for (int64_t n = piece * g.group(); n < g.n && n < (piece + 1) * g.group(); ++n) {
            pack_image(g, image + n * g.image[0], phases, row);
            for (int64_t x = 0; x < count; x += kTile)
                for (int64_t tile = 0; tile < tiles; ++tile)
                    shifted_product<kFeatureTile>(
                        phases + x, offsets.data(), terms, weights.data() + tile * terms * kFeatureTile,
                        biases.data() + tile * kFeatureTile, slope, planes + tile * kFeatureTile * plane + x, plane, 1);
            unpack_features(g, planes, plane, feature + n * g.feature[0]);
        }
    });
}

template <class T, class S = S_of<T>>
const char* transposed(const Geometry& g, const T* feature, const T* gate, S slope, const T* weight, T* image,
                       int threads) {
    const int64_t terms = g.k * g.shifts(), outputs = g.phases();
    const Product<S> product = product_of<S>(outputs);
    if (!product) return "so many channels and so large a stride have no kernel";
    std::vector<int64_t> offsets(terms);
    std::vector<S> weights(terms * outputs), none(outputs);  // [term][phase]
    for (int64_t t = 0; t < terms; ++t) {
        const int64_t k = t / g.shifts(), j = t % g.shifts();
        offsets[t] = k * g.feature_plane() + g.feature_start() - g.shift(j);
        for (int64_t o = 0; o < outputs; ++o) weights[t * outputs + o] = to_scalar(weight[weight_index(g, k, o, j)]);
    }
    parallel_for(g.pieces(), threads, g.small(), [&](int64_t piece) {
        S* const planes = zeros<S>(0, g.k * g.feature_plane());
        S* const row = zeros<S>(1, g.s * g.pitch() + g.p + g.w + 2 * kSlack);
        S* const phases = zeros<S>(2, outputs * g.phase_plane());
        for (int64_t n = piece * g.group(); n < g.n && n < (piece + 1) * g.group(); ++n) {
            const int64_t at = n * g.feature[0];
            pack_features(g, feature + at, gate ? gate + at : nullptr, slope, planes);
            product(planes, offsets.data(), terms, weights.data(), none.data(), 1, phases, g.phase_plane(),
                    g.rows() * g.pitch());
            unpack_image(g, phases, image + n * g.image[0], row);
        }
    });
    return nullptr;
}

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

// weight and its gradient are contiguous (k, c, kh, kw); i0.. and f0.. are the strides of image and feature.
#define PF_GEOMETRY                                                                                                   \
    int64_t n, int64_t c, int64_t h, int64_t w, int64_t k, int64_t fh, int64_t fw, int64_t kh, int64_t kw, int64_t s, \
        int64_t p, int64_t i0, int64_t i1, int64_t i2, int64_t i3, int64_t f0, int64_t f1, int64_t f2, int64_t f3
#define PF_GIVEN                                                                  \
    {                                                                             \
        n, c, h, w, k, fh, fw, kh, kw, s, p, {i0, i1, i2, i3}, { f0, f1, f2, f3 } \
    }

// bias may be null.
static const char* edge_conv(const void* image, const void* weight, const void* bias, void* feature, double slope,
                             int type, int threads, PF_GEOMETRY) {
    return with_type(type, [&](auto element) -> const char* {
        using T = decltype(element);
        forward<T>(PF_GIVEN, static_cast<const T*>(image), static_cast<const T*>(weight), static_cast<const T*>(bias),
                   static_cast<S_of<T>>(slope), static_cast<T*>(feature), threads);
        return nullptr;
    });
}
PF_EXPORT(edge_conv);

// gate, which lies in memory as feature does, may be null.
static const char* edge_conv_transpose(const void* feature, const void* gate, const void* weight, void* image,
                                       double slope, int type, int threads, PF_GEOMETRY) {
    return with_type(type, [&](auto element) -> const char* {
        using T = decltype(element);
        return transposed<T>(PF_GIVEN, static_cast<const T*>(feature), static_cast<const T*>(gate),
                             static_cast<S_of<T>>(slope), static_cast<const T*>(weight), static_cast<T*>(image),
                             threads);
    });
}
PF_EXPORT(edge_conv_transpose);

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
