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
// Floor, each of the three: 2 n k fh fw c kh kw operations over the rate of multiply-adds, or 9/16 of them for the
// first and the last of a 4 x 4 kernel and stride 2 in float32 (edge_conv_tiles.h); one pass over the image and one
// over the features.
//
// Here is the first; the others have files of their own.
#include "edge_conv_tiles.h"

#include "../export.h"

namespace PF_NAMESPACE {
namespace {

constexpr int64_t kTilesAtOnce = 48;   // whole tiles of registers, whose pixels stay in the nearest caches
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

// What all samples of a call share.
template <class T, class S = S_of<T>>
struct Call {
    const Geometry& g;
    const T* const weight;
    const S slope;
    static constexpr int kStep = lanes<T>();
    const Padded<T> padded{g};
    const Tiles<T> tiles{g, padded};
    const int64_t wide = (g.k + kStep - 1) / kStep * kStep;
    const std::vector<Chunk> chunks = chunks_of(g.k, kStep);
    const bool last = g.features_last();
    // Places that are written together.
    const int64_t together = last ? g.fh * g.fw : kPlacesAtOnce,
                  tiled_together = 2 * tiles.rows_of(kTilesAtOnce) * g.fw;
    std::vector<S> biases = std::vector<S>(wide);
    std::vector<int64_t> offsets{};  // of tiles, as their weights lie

    bool past_caches(const T* feature, int64_t places) const {
        const int64_t count = g.fh * g.fw, bytes = g.n * g.k * count * static_cast<int64_t>(sizeof(T));
        const bool whole = last ? g.k % kStep == 0 : count % kStep == 0 && places % kStep == 0;
        return std::is_same_v<T, S> && bytes >= kPastCaches && whole &&
               reinterpret_cast<uintptr_t>(feature) % sizeof(Pack<T>) == 0;
    }
    // f(to, apart, k) for each feature, whose `terms` numbers lie `apart` from each other.
    template <class F>
    std::vector<S> panels(int64_t terms, F f) const {
        std::vector<S> to(terms * wide);
        for (const Chunk& chunk : chunks)
            for (int64_t j = 0; j < chunk.vectors * kStep && chunk.first + j < g.k; ++j)
                f(to.data() + chunk.first * terms + j, chunk.vectors * kStep, chunk.first + j);
        return to;
    }
    std::vector<S> weights() const {
        return panels(padded.terms(), [&](S* to, int64_t apart, int64_t k) {
            for (int64_t t = 0; t < padded.terms(); ++t) to[t * apart] = to_scalar(weight[k * padded.terms() + t]);
        });
    }
};

// A sample, from the copy of its image.
template <class T, class S = S_of<T>>
void plain(const Call<T>& call, const S* weights, const S* copy, S* turned, T* out, bool past_caches) {
    const Geometry& g = call.g;
    const int64_t terms = call.padded.terms(), count = g.fh * g.fw;
    // Places [q, end) of a chunk; place(r, y, x) is where to write.
    const auto cover = [&](const Chunk& chunk, int64_t q, int64_t end, auto* to_first, int64_t features, bool past,
                           auto place) {
        using Out = std::remove_pointer_t<decltype(to_first)>;
        with_vectors(chunk.vectors, [&](auto vectors) {
            constexpr int kRows = rows_of(vectors());
            const S* at[kRows];
            Out* to[kRows];
            for (int64_t first = q, y = q / g.fw, x = q % g.fw; first < end; first += kRows) {
                for (int r = 0; r < kRows; ++r) {  // the last tile repeats the last place
                    at[r] = copy + call.padded.corner(y, x);
                    to[r] = to_first + place(first + r - q, y, x);
                    if (first + r + 1 >= end) continue;
                    if (++x == g.fw) x = 0, ++y;
                }
                forward_tile<vectors(), Out>(at, call.padded.offset.data(), terms, weights + chunk.first * terms,
                                             call.biases.data() + chunk.first, call.slope, to, end - first, features,
                                             past);
            }
        });
    };
    for (int64_t q = 0; q < count; q += call.together) {
        const int64_t end = count - q < call.together ? count : q + call.together;
        for (const Chunk& chunk : call.chunks) {
            if (call.last)
                cover(chunk, q, end, out + chunk.first, g.k - chunk.first, past_caches,
                      [&](int64_t, int64_t y, int64_t x) { return y * g.feature[2] + x * g.feature[3]; });
            else
                cover(chunk, q, end, turned + chunk.first, call.wide - chunk.first, false,
                      [&](int64_t place, int64_t, int64_t) { return place * call.wide; });
        }
        if (!call.last) write_planes(g, turned, call.wide, q, end - q, out, past_caches);
    }
}

constexpr int kTiles = 6;  // tiles in a tile of registers
constexpr float kLargest = 0x1p56f;  // numbers up to it have products and sums that float32 holds

// The products in the order in which they are added, so that a sum that several places share is kept.
constexpr int kOrder[kProducts] = {4, 3, 5, 1, 0, 2, 7, 6, 8};

// What the products of a term are multiplied by, of the taps of its phase.
inline void factors_of_taps(const float* tap, float* to) {
    factors_of_four(tap[0], tap[1], tap[2], tap[3], to);
    for (int i = 0; i < 3; ++i) to[3 * i + 2] = -to[3 * i + 2], to[6 + i] = -to[6 + i];
}

// to[2 v + h][r] = leaky ReLU of the sums at the places of tile r, where it is not null. `kept` has room for three
// tiles of registers: what is kept in registers itself leaves too few of them.
template <int kVectors, class T>
PF_FN void forward_tiles(const float* const* at, const int64_t* offset, int64_t terms, const float* weight,
                         const float* bias, float slope, vfloat* kept, T* const (*to)[kTiles], int64_t features,
                         bool past_caches) {
    using V = vfloat;
    constexpr int kAll = kTiles * kVectors;
    V sums[kAll];
    const auto each = [](auto f) {
#pragma GCC unroll 32
        for (int i = 0; i < kAll; ++i) f(i);
    };
    const auto keep = [&](V* to) __attribute__((always_inline)) {
        each([&](int i) { store(to + i, sums[i]); });
        asm volatile("" ::: "memory");
    };
    const auto add_product = [&]() __attribute__((always_inline)) {
        for (int64_t t = 0; t < terms; ++t, weight += kVectors * kLanes) {
            const int64_t from = *offset++;
            V by[kVectors];
#pragma GCC unroll 4
            for (int v = 0; v < kVectors; ++v) by[v] = load<V>(weight + v * kLanes);
#pragma GCC unroll 16
            for (int r = 0; r < kTiles; ++r) {
                const V pixel = spread<V>(at[r][from]);
#pragma GCC unroll 4
                for (int v = 0; v < kVectors; ++v) sums[r * kVectors + v] += pixel * by[v];
            }
        }
    };
    V *const left = kept, *const right = kept + kAll, *const middle = kept + 2 * kAll;
    each([&](int i) { sums[i] = load<V>(bias + i % kVectors * kLanes); });
    add_product();
    keep(middle);
    add_product();
    keep(left);
    each([&](int i) { sums[i] = middle[i]; });
    add_product();
    keep(right);
    for (int y = 0; y < 2; ++y) {
        each([&](int i) { sums[i] = V{}; });
        add_product();
        keep(middle);
        for (int x = 0; x < 2; ++x, ++to) {
            each([&](int i) { sums[i] = middle[i] + kept[x * kAll + i]; });
            add_product();
#pragma GCC unroll 16
            for (int r = 0; r < kTiles; ++r)
                if ((*to)[r]) write_place<kVectors>(sums + r * kVectors, slope, (*to)[r], features, past_caches);
        }
    }
}

// A sample in tiles, from the copy of its image.
template <class T>
void tiled(const Call<T>& call, const float* weights, const float* copy, float* pixels, float* turned, T* out,
           bool past_caches) {
    const Geometry& g = call.g;
    const Tiles<T>& tiles = call.tiles;
    const int64_t together = tiles.rows_of(kTilesAtOnce);
    for (int64_t first = 0; first < tiles.down; first += together) {
        const int64_t rows = tiles.down - first < together ? tiles.down - first : together;
        for (int64_t y = 0; y < rows; ++y) tiles.transform(copy, first + y, pixels + y * tiles.row());
        const auto cover = [&](const Chunk& chunk, auto* to_first, int64_t row, int64_t column, int64_t features,
                               bool past) {
            using Out = std::remove_pointer_t<decltype(to_first)>;
            with_vectors(chunk.vectors, [&](auto vectors) {
                const float* at[kTiles];
                Out* to[4][kTiles];
                for (int64_t tile = 0, y = 0, x = 0; tile < rows * tiles.across;) {
                    for (int r = 0; r < kTiles; ++r) {  // what is too much repeats the last tile, and is not written
                        const bool some = tile < rows * tiles.across;
                        if (some)
                            at[r] = pixels + y * tiles.row() + tiles.corner(x);
                        else
                            at[r] = at[r - 1];
                        for (int64_t i = 0; i < 4; ++i)
                            to[i][r] = some ? to_first + (2 * y + i / 2) * row + (2 * x + i % 2) * column : nullptr;
                        if (some && (++tile, ++x) == tiles.across) x = 0, ++y;
                    }
                    vfloat kept[3 * kTiles * vectors()];
                    forward_tiles<vectors(), Out>(
                        at, call.offsets.data(), tiles.terms, weights + chunk.first * kProducts * tiles.terms,
                        call.biases.data() + chunk.first, call.slope, kept, to, features, past);
                }
            });
        };
        const int64_t y = 2 * first, places = 2 * rows * g.fw;
        for (const Chunk& chunk : call.chunks) {
            if (call.last)
                cover(chunk, out + y * g.feature[2] + chunk.first, g.feature[2], g.feature[3], g.k - chunk.first,
                      past_caches);
            else
                cover(chunk, turned + chunk.first, g.fw * call.wide, call.wide, call.wide - chunk.first, false);
        }
        if (!call.last) write_planes(g, turned, call.wide, y * g.fw, places, out, past_caches);
    }
}

template <class T, class S = S_of<T>>
void forward(const Geometry& g, const T* image, const T* weight, const T* bias, S slope, T* feature, int threads) {
    Call<T> call{g, weight, slope};
    const Padded<T>& padded = call.padded;
    for (int64_t k = 0; bias && k < g.k; ++k) call.biases[k] = to_scalar(bias[k]);
    bool in_tiles = false;
    std::vector<S> weights;
    if constexpr (std::is_same_v<S, float>)
        if (Tiles<T>::serve(g)) {
            const int64_t terms = call.tiles.terms;
            weights = call.panels(kProducts * terms, [&](float* to, int64_t apart, int64_t k) {
                for (int64_t t = 0; t < terms; ++t) {
                    const T* const at = weight + (k * g.c + t / 4) * 16 + t / 2 % 2 * 4 + t % 2;
                    const float tap[4] = {to_scalar(at[0]), to_scalar(at[2]), to_scalar(at[8]), to_scalar(at[10])};
                    float factors[kProducts];
                    factors_of_taps(tap, factors);
                    for (int i = 0; i < kProducts; ++i) to[(i * terms + t) * apart] = factors[kOrder[i]];
                }
            });
            for (int64_t t = 0; t < kProducts * terms; ++t)
                call.offsets.push_back(call.tiles.offset(kOrder[t / terms], t % terms));
            in_tiles = moderate(weights.data(), static_cast<int64_t>(weights.size()), kLargest);
        }
    if (!in_tiles) weights = call.weights();
    const bool past = call.past_caches(feature, call.together);
    [[maybe_unused]] const bool tiled_past = call.past_caches(feature, call.tiled_together);
    const int64_t places = (in_tiles && call.tiled_together > call.together ? call.tiled_together : call.together) + 16;
    parallel_for(g.pieces(), threads, g.small(), [&](int64_t piece) {
        S* const copy = zeros<S>(0, padded.elements() + call.tiles.behind());
        S* const turned = zeros<S>(1, call.last ? 1 : places * call.wide);
        [[maybe_unused]] S* const pixels =
            zeros<S>(2, in_tiles ? call.tiles.rows_of(kTilesAtOnce) * call.tiles.row() : 1);
        for (int64_t n = piece * g.group(); n < g.n && n < (piece + 1) * g.group(); ++n) {
            padded.fill(image + n * g.image[0], copy);
            T* const out = feature + n * g.feature[0];
            if constexpr (std::is_same_v<S, float>)
                if (in_tiles && moderate(copy, padded.elements(), kLargest)) {
                    tiled(call, weights.data(), copy, pixels, turned, out, tiled_past);
                    continue;
                }
            if (in_tiles)  // a sample that is not moderate is rare
                plain(call, call.weights().data(), copy, turned, out, past);
            else
                plain(call, weights.data(), copy, turned, out, past);
        }
        if (past || tiled_past) stream_done();
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
