// The weight gradient of a 4 x 4 convolution of stride 2 and padding 1 between wide layers, in 9/16 of its products.
//
// Tiles of 2 x 2 places take nine products where sixteen are plain (winograd.h), each of which is a matrix product over
// all tiles: the taps are made of their sums at the end. Factors are sums and differences of at most four numbers, so
// that the error stays that of a sum in another order, about twice as large at most.
//
// A block of tiles is transformed into panels as wide as a tile of registers, which stay in the nearest caches while
// they are multiplied; the sums of blocks are added in their order.
//
// Floor: 9/16 of 2 n oh ow k c 16 operations at the rate of multiply-adds; the transforms take a fifth of that beside.
#include <new>

#include "types.h"
#include "threads.h"
#include "winograd.h"

#include "../export.h"

namespace PF_NAMESPACE {
namespace {

using V = vfloat;
constexpr int kStep = kLanes;
constexpr int kWide = 2;  // vectors of channels of a tile of registers
constexpr int kRows = kLanes >= 16 ? 8 : 4;  // features of one
constexpr int64_t kPanel = kWide * kStep;
constexpr int64_t kBlock = 128;  // tiles of a block: its panels of one product stay in the nearest cache
constexpr int64_t kPitch = kBlock + 1;  // so that the products of a tile do not fall into one set of a cache
constexpr int64_t kGroup = 16;  // tiles that are transformed together
constexpr int kPhases = 4;

struct Sizes {
    int64_t n, c, h, w, k, oh, ow;
    int64_t panels() const { return c / kPanel; }
    int64_t strips() const { return k / kStep; }
    int64_t across() const { return ow / 2; }
    int64_t tiles() const { return n * (oh / 2) * across(); }
};

// Memory that is kept for the next call: fresh memory would fault page by page.
V* kept(int64_t vectors) {
    struct Kept {
        V* data = nullptr;
        int64_t size = 0;
        ~Kept() { ::operator delete(data, std::align_val_t{64}); }
    };
    static thread_local Kept memory;
    if (memory.size < vectors) {
        ::operator delete(memory.data, std::align_val_t{64});
        memory.data = nullptr;
        memory.size = 0;
        memory.data =
            static_cast<V*>(::operator new(static_cast<std::size_t>(vectors) * sizeof(V), std::align_val_t{64}));
        memory.size = vectors;
    }
    return memory.data;
}

// What three numbers along an axis, or two, are multiplied as.
PF_FN void of_pixels(V d0, V d1, V d2, V* to, int64_t step) {
    to[0] = d0 - d1;
    to[step] = d1;
    to[2 * step] = d1 - d2;
}

// One vector of channels of a phase at a tile: nine pixels, nine factors, `apart` vectors from each other.
PF_FN void pixels(const float* const* pixel, int64_t c, V* to, int64_t apart) {
    V along[9];
#pragma GCC unroll 3
    for (int y = 0; y < 3; ++y)
        of_pixels(load<V>(pixel[3 * y] + c), load<V>(pixel[3 * y + 1] + c), load<V>(pixel[3 * y + 2] + c),
                  along + 3 * y, 1);
#pragma GCC unroll 3
    for (int x = 0; x < 3; ++x) of_pixels(along[x], along[3 + x], along[6 + x], to + x * apart, 3 * apart);
}

// [phase][panel][product][tile][kWide]
void lay_out_pixels(const Sizes& s, const float* image, int64_t first, const float* zeros, int64_t from, int64_t to,
                    V* laid) {
    const int64_t apart = kPitch * kWide;
    for (int64_t t = from; t < to; ++t) {
        const int64_t x = (first + t) % s.across(), y = (first + t) / s.across() % (s.oh / 2),
                      n = (first + t) / (s.across() * (s.oh / 2));
        for (int phase = 0; phase < kPhases; ++phase) {
            const float* pixel[9];
            for (int64_t k = 0; k < 9; ++k) {
                // An even phase's pixels begin at the tile's corner, an odd one's before it.
                const int64_t r = 4 * y + k / 3 * 2 - phase / 2, q = 4 * x + k % 3 * 2 - phase % 2;
                const bool inside = r >= 0 && r < s.h && q >= 0 && q < s.w;
                pixel[k] = inside ? image + ((n * s.h + r) * s.w + q) * s.c : zeros;
            }
            for (int64_t panel = 0; panel < s.panels(); ++panel)
                for (int64_t v = 0; v < kWide; ++v)
                    pixels(pixel, panel * kPanel + v * kStep,
                           laid + ((phase * s.panels() + panel) * kProducts * kPitch + t) * kWide + v, apart);
        }
    }
}

// [product][strip][tile]
void lay_out_features(const Sizes& s, const float* feature, int64_t first, int64_t from, int64_t to, V* laid) {
    const int64_t apart = s.strips() * kPitch;
    for (int64_t t = from; t < to; ++t) {
        const int64_t x = (first + t) % s.across(), row = (first + t) / s.across();  // of tiles, of all samples
        const float* const at = feature + (2 * row * s.ow + 2 * x) * s.k;
        const int64_t below = s.ow * s.k;
        for (int64_t strip = 0; strip < s.strips(); ++strip) {
            const float* const p = at + strip * kStep;
            const V a = load<V>(p), b = load<V>(p + s.k), c = load<V>(p + below), d = load<V>(p + below + s.k);
            V all[kProducts];
            factors_of_four(a, b, c, d, all);
            for (int q = 0; q < kProducts; ++q) laid[q * apart + strip * kPitch + t] = all[q];
        }
    }
}

// sums[r] = the sum over tiles of feature r times the panel's channels, beside what earlier blocks found.
PF_FN void multiply(const float* f, const V* panel, int64_t tiles, bool first, V* sums) {
    V total[kRows][kWide];
#pragma GCC unroll 8
    for (int r = 0; r < kRows; ++r)
#pragma GCC unroll 2
        for (int v = 0; v < kWide; ++v) total[r][v] = first ? V{} : sums[r * kWide + v];
    for (int64_t t = 0; t < tiles; ++t, f += kStep, panel += kWide) {
        V by[kWide];
#pragma GCC unroll 2
        for (int v = 0; v < kWide; ++v) by[v] = panel[v];
#pragma GCC unroll 8
        for (int r = 0; r < kRows; ++r) {
            const V x = f[r] - V{};
#pragma GCC unroll 2
            for (int v = 0; v < kWide; ++v) total[r][v] += x * by[v];
        }
    }
#pragma GCC unroll 8
    for (int r = 0; r < kRows; ++r)
#pragma GCC unroll 2
        for (int v = 0; v < kWide; ++v) sums[r * kWide + v] = total[r][v];
}

// The gradient of one feature: [c][4][4], or channels last.
void finish(const Sizes& s, int64_t k, const V* sums, float* gradient, bool last) {
    for (int64_t panel = 0; panel < s.panels(); ++panel)
        for (int64_t v = 0; v < kWide; ++v) {
            V all[16];
            for (int phase = 0; phase < kPhases; ++phase) {
                const int64_t at = (phase * s.panels() + panel) * kProducts * s.k + k;
                V tap[4];
                taps_of_sums(sums + at * kWide + v, s.k * kWide, tap);
                // An even phase has the taps 1 and 3 of an axis, an odd one 0 and 2.
                for (int i = 0; i < 4; ++i) {
                    const int y = 2 * (i / 2) + 1 - phase / 2, x = 2 * (i % 2) + 1 - phase % 2;
                    all[4 * y + x] = tap[i];
                }
            }
            const int64_t c = panel * kPanel + v * kStep;
            if (last) {
                for (int i = 0; i < 16; ++i) store(gradient + (k * 16 + i) * s.c + c, all[i]);
            } else {
                for (int i = 0; i < 16; i += kStep) transpose(all + i);
                for (int i = 0; i < 16; ++i)
                    store(gradient + (k * s.c + c + i % kStep) * 16 + i / kStep * kStep, all[i]);
            }
        }
}

void weight_gradient(const Sizes& s, const float* image, const float* feature, float* gradient, bool last,
                     int threads) {
    const int64_t of_sums = kPhases * kProducts * s.k * s.c / kStep;
    const int64_t of_pixels = kPhases * kProducts * kPitch * s.c / kStep, of_features = kProducts * kPitch * s.strips();
    V* const sums = kept(of_sums + of_pixels + of_features + s.c / kStep);
    V *const laid = sums + of_sums, *const features = laid + of_pixels;
    float* const zeros = reinterpret_cast<float*>(features + of_features);  // around the image
    memset(zeros, 0, s.c * sizeof(float));
    const int64_t items = kPhases * s.panels();
    for (int64_t first = 0; first < s.tiles(); first += kBlock) {
        const int64_t some = s.tiles() - first < kBlock ? s.tiles() - first : kBlock;
        parallel_for((some + kGroup - 1) / kGroup, threads, false, [&](int64_t group) {
            const int64_t from = group * kGroup, to = from + kGroup < some ? from + kGroup : some;
            lay_out_pixels(s, image, first, zeros, from, to, laid);
            lay_out_features(s, feature, first, from, to, features);
        });
        parallel_for(items, threads, false, [&](int64_t item) {
            V* const own = sums + item * kProducts * s.k * kWide;
            for (int64_t q = 0; q < kProducts; ++q)
                for (int64_t k = 0; k < s.k; k += kRows) {
                    const V* const strip = features + (q * s.strips() + k / kStep) * kPitch;
                    multiply(reinterpret_cast<const float*>(strip) + k % kStep,
                             laid + (item * kProducts + q) * kPitch * kWide, some, first == 0,
                             own + (q * s.k + k) * kWide);
                }
        });
    }
    parallel_for(s.k, threads, false, [&](int64_t k) { finish(s, k, sums, gradient, last); });
}

}  // namespace

// Image (n, c, 2 oh, 2 ow) and feature (n, k, oh, ow), channels last; the gradient (k, c, 4, 4) likewise, or
// contiguous.
static const char* conv_weight_tiles(const void* image, const void* feature, void* gradient, bool last, int64_t n,
                                     int64_t c, int64_t k, int64_t oh, int64_t ow, int threads) {
    if (n < 1 || c < 1 || k < 1 || oh < 2 || ow < 2 || c % kPanel || k % kStep || oh % 2 || ow % 2)
        return "conv_weight_tiles takes even results of whole vectors of features and channels";
    weight_gradient({n, c, 2 * oh, 2 * ow, k, oh, ow}, static_cast<const float*>(image),
                    static_cast<const float*>(feature), static_cast<float*>(gradient), last, threads);
    return nullptr;
}
PF_EXPORT(conv_weight_tiles);

}  // namespace PF_NAMESPACE
