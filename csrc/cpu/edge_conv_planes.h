// What the kernels of edge_conv share: the geometry of image and features, and their planes in scratch memory.
//
// A padded image is cut into s x s phases, one for each remainder (a, b) of its coordinates: phase[c, a, b][q] =
// image[c, s q + (a, b) - padding]. With i = (a, b) + s j the stride is gone: every kernel is a sum of products over
// shifts by j of planes that share one pitch, so that a shift is an offset, and vectors run over the flattened plane.
// Planes are zero-padded copies in scratch memory; reading and writing them converts types and layouts. The last
// pitch - fw positions of a row mean nothing and are not copied out.
//
// A piece of work is a number of samples that depends on nothing but the batch.
#pragma once

#include "types.h"
#include "threads.h"

#include <new>
#include <vector>

namespace PF_NAMESPACE {
namespace {

constexpr int64_t kPieces = 16;
constexpr int64_t kPieceWork = 262144;  // products that are worth a piece of work
constexpr int64_t kSlack = 8 * kLanes;  // behind a plane, for whole tiles at its end

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

// Where weight[k, c, a + s jy, b + s jx] lies, for phase = (c, a, b) and j = (jy, jx).
int64_t weight_index(const Geometry& g, int64_t k, int64_t phase, int64_t j) {
    const int64_t c = phase / (g.s * g.s), a = phase / g.s % g.s, b = phase % g.s;
    return ((k * g.c + c) * g.kh + a + g.s * (j / g.jx())) * g.kw + b + g.s * (j % g.jx());
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

}  // namespace PF_NAMESPACE
