// What the kernels of edge_conv share: the geometry of image and features, scratch memory, and rows of any element
// type.
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
    // Features of a place side by side, or those of a feature.
    bool features_last() const { return k > 1 && feature[1] == 1; }
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

// x in every lane. Zero is subtracted, which changes nothing and costs nothing; added, it would cost an addition, since
// that turns -0 into 0.
template <class V>
PF_FN V spread(Scalar<V> x) {
    return x - V{};
}

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
