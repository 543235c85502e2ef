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
// Here are the first two; edge_conv_weight.cpp has the third, edge_conv_planes.h the planes that they are sums over.
#include "edge_conv_planes.h"

#include "../export.h"

namespace PF_NAMESPACE {
namespace {

#if defined(__AVX512F__)
constexpr int kAccumulators = 24;  // of 32 registers
constexpr int kFeatureTile = 8;  // features that edge_conv computes at once
#else
constexpr int kAccumulators = 12;  // of 16
constexpr int kFeatureTile = 4;
#endif

// Vectors of positions that a tile of m outputs has.
constexpr int vectors_of(int m) { return m * 6 <= kAccumulators ? 6 : m <= kAccumulators ? kAccumulators / m : 1; }

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
