// The adjoint of edge_conv in the image; edge_conv.cpp says what the three are.
//
// A padded image is cut into s x s phases, one for each remainder (a, b) of its coordinates: phase[c, a, b][q] =
// image[c, s q + (a, b) - padding]. With i = (a, b) + s j the stride is gone: the sum is one of products over shifts by
// j of planes that share one pitch, so that a shift is an offset, and vectors run over the flattened plane. Planes are
// zero-padded copies in scratch memory; reading and writing them converts types and layouts. The last pitch - fw
// positions of a row mean nothing and are not copied out.
#include "edge_conv.h"

#include "../export.h"

namespace PF_NAMESPACE {
namespace {

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
    if (!g.features_last()) {
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

// Where weight[k, c, a + s jy, b + s jx] lies, for phase = (c, a, b) and j = (jy, jx).
int64_t weight_index(const Geometry& g, int64_t k, int64_t phase, int64_t j) {
    const int64_t c = phase / (g.s * g.s), a = phase / g.s % g.s, b = phase % g.s;
    return ((k * g.c + c) * g.kh + a + g.s * (j / g.jx())) * g.kw + b + g.s * (j % g.jx());
}

#if defined(__AVX512F__)
constexpr int kAccumulators = 24;  // of 32 registers
#else
constexpr int kAccumulators = 12;  // of 16
#endif

// Vectors of positions that a tile of m outputs has.
constexpr int vectors_of(int m) { return m * 6 <= kAccumulators ? 6 : m <= kAccumulators ? kAccumulators / m : 1; }

// out[m][x] = the sum over t of weight[t][m] * in[offset[t] + x], for whole tiles of positions
// that cover [0, count).
template <int M, class S>
void shifted_product(const S* in, const int64_t* offsets, int64_t terms, const S* weight, S* out, int64_t plane,
                     int64_t count) {
    using V = std::conditional_t<std::is_same_v<S, float>, vfloat, vdouble>;
    constexpr int kStep = static_cast<int>(Lanes<V>::size()), kVectors = vectors_of(M);
    for (int64_t x = 0; x < count; x += kVectors * kStep) {
        V sums[M][kVectors];
#pragma GCC unroll 32
        for (int m = 0; m < M; ++m)
#pragma GCC unroll 8
            for (int v = 0; v < kVectors; ++v) sums[m][v] = V{};
        const S* w = weight;
        for (int64_t t = 0; t < terms; ++t, w += M) {
            const S* const from = in + offsets[t] + x;
            V at[kVectors];
#pragma GCC unroll 8
            for (int v = 0; v < kVectors; ++v) at[v] = load<V>(from + v * kStep);
#pragma GCC unroll 32
            for (int m = 0; m < M; ++m) {
                const V factor = spread<V>(w[m]);
#pragma GCC unroll 8
                for (int v = 0; v < kVectors; ++v) sums[m][v] += factor * at[v];
            }
        }
#pragma GCC unroll 32
        for (int m = 0; m < M; ++m)
#pragma GCC unroll 8
            for (int v = 0; v < kVectors; ++v) store(out + m * plane + x + v * kStep, sums[m][v]);
    }
}

template <class S>
using Product = void (*)(const S*, const int64_t*, int64_t, const S*, S*, int64_t, int64_t);

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

template <class T, class S = S_of<T>>
const char* transposed(const Geometry& g, const T* feature, const T* gate, S slope, const T* weight, T* image,
                       int threads) {
    const int64_t terms = g.k * g.shifts(), outputs = g.phases();
    const Product<S> product = product_of<S>(outputs);
    if (!product) return "so many channels and so large a stride have no kernel";
    std::vector<int64_t> offsets(terms);
    std::vector<S> weights(terms * outputs);  // [term][phase]
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
            product(planes, offsets.data(), terms, weights.data(), phases, g.phase_plane(), g.rows() * g.pitch());
            unpack_image(g, phases, image + n * g.image[0], row);
        }
    });
    return nullptr;
}

}  // namespace

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

}  // namespace PF_NAMESPACE
