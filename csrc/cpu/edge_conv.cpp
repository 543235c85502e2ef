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
// Floor, each of the three: 2 n k fh fw c kh kw operations over the rate of multiply-adds; one pass over the image and
// one over the features.
//
// Here is the first; the others have files of their own.
#include "edge_conv_windows.h"

#include "../export.h"

namespace PF_NAMESPACE {
namespace {

constexpr int64_t kPlacesAtOnce = 96;  // that are turned around: whole tiles, and whole lines of a cache

// Places from q on, of scratch memory with so many features in a row, to features that lie plane by plane.
template <class T, class S = S_of<T>>
void write_planes(const Geometry& g, const S* from, int64_t wide, int64_t q, int64_t places, T* feature,
                  bool past_caches) {
    using V = Pack<T>;
    constexpr int kStep = lanes<T>();
    for (int64_t k = 0; k < g.k; k += kStep)
        for (int64_t p = 0; p < places; p += kStep) {
            V r[kStep];
#pragma GCC unroll 16
            for (int i = 0; i < kStep; ++i) r[i] = load<V>(from + (p + i) * wide + k);
            transpose(r);
            const int64_t some = places - p;
            for (int64_t i = 0; i < kStep && k + i < g.k; ++i) {
                T* const to = feature + (k + i) * g.feature[1] + q + p;
                if (some < kStep)
                    write_part(to, r[i], some);
                else if (past_caches)
                    stream(to, r[i]);
                else
                    Storage<T>::write(to, r[i]);
            }
        }
}

template <class T, class S = S_of<T>>
void forward(const Geometry& g, const T* image, const T* weight, const T* bias, S slope, T* feature, int threads) {
    constexpr int kStep = lanes<T>();
    const Padded<T> padded(g);
    const int64_t terms = padded.terms(), count = g.fh * g.fw, wide = (g.k + kStep - 1) / kStep * kStep;
    const std::vector<Chunk> chunks = chunks_of(g.k, kStep);
    std::vector<S> weights(terms * wide), biases(wide);  // [chunk][term][feature of the chunk]
    for (const Chunk& chunk : chunks)
        for (int64_t j = 0; j < chunk.vectors * kStep && chunk.first + j < g.k; ++j) {
            const int64_t k = chunk.first + j;
            if (bias) biases[k] = to_scalar(bias[k]);
            for (int64_t t = 0; t < terms; ++t)
                weights[chunk.first * terms + t * chunk.vectors * kStep + j] = to_scalar(weight[k * terms + t]);
        }
    const bool last = g.features_last();
    const int64_t bytes = g.n * g.k * count * static_cast<int64_t>(sizeof(T)), together = last ? count : kPlacesAtOnce;
    const bool past_caches = std::is_same_v<T, S> && bytes >= kPastCaches && (last ? g.k : count) % kStep == 0 &&
                             reinterpret_cast<uintptr_t>(feature) % sizeof(Pack<T>) == 0;
    parallel_for(g.pieces(), threads, g.small(), [&](int64_t piece) {
        S* const copy = zeros<S>(0, padded.elements());
        S* const turned = zeros<S>(1, last ? 1 : (kPlacesAtOnce + 8) * wide);
        // Places [q, end) of a chunk; place(r, y, x) is where to write.
        const auto tiles = [&](const Chunk& chunk, int64_t q, int64_t end, auto* out, int64_t features, bool past,
                               auto place) {
            using Out = std::remove_pointer_t<decltype(out)>;
            with_vectors(chunk.vectors, [&](auto vectors) {
                constexpr int kRows = rows_of(vectors());
                const S* at[kRows];
                Out* to[kRows];
                for (int64_t first = q, y = q / g.fw, x = q % g.fw; first < end; first += kRows) {
                    for (int r = 0; r < kRows; ++r) {  // the last tile repeats the last place
                        at[r] = copy + padded.corner(y, x);
                        to[r] = out + place(first + r - q, y, x);
                        if (first + r + 1 >= end) continue;
                        if (++x == g.fw) x = 0, ++y;
                    }
                    forward_tile<vectors(), Out>(at, padded.offset.data(), terms, weights.data() + chunk.first * terms,
                                                 biases.data() + chunk.first, slope, to, end - first, features, past);
                }
            });
        };
        for (int64_t n = piece * g.group(); n < g.n && n < (piece + 1) * g.group(); ++n) {
            padded.fill(image + n * g.image[0], copy);
            T* const out = feature + n * g.feature[0];
            for (int64_t q = 0; q < count; q += together) {
                const int64_t end = count - q < together ? count : q + together;
                for (const Chunk& chunk : chunks) {
                    if (last)
                        tiles(chunk, q, end, out + chunk.first, g.k - chunk.first, past_caches,
                              [&](int64_t, int64_t y, int64_t x) { return y * g.feature[2] + x * g.feature[3]; });
                    else
                        tiles(chunk, q, end, turned + chunk.first, wide - chunk.first, false,
                              [&](int64_t place, int64_t, int64_t) { return place * wide; });
                }
                if (!last) write_planes(g, turned, wide, q, end - q, out, past_caches);
            }
        }
        if (past_caches) stream_done();
    });
}

}  // namespace

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

}  // namespace PF_NAMESPACE
