// One update of a sampler in one pass, and the dynamic threshold of its predicted x0.
//
// Floor, n elements of s bytes: (inputs + outputs) n s over the copy bandwidth, 3 n s for DDIM and 4 n s with guidance;
// with noise, what making it costs (random.cpp).
#include <algorithm>
#include <limits>
#include <vector>

#include "segments.h"

#include "../export.h"
#include "../math/denoise.h"

namespace PF_NAMESPACE {
namespace {

constexpr int64_t kPiece = 16384;  // elements of a piece of work
constexpr int64_t kSmall = 32768;  // below this the calling thread does it all

// A row for each sample, or one for all of them.
template <class S>
StepCoefficients<S> row_of(const void* coefficients, int64_t stride, int64_t sample) {
    StepCoefficients<S> row;
    memcpy(&row, static_cast<const S*>(coefficients) + sample * stride, sizeof row);
    return row;
}

template <class T>
struct Tensors {
    const T *x, *prediction, *unconditional, *variance, *history[kMostHistory];
    T *y, *x0;
};

struct Settings {
    const void *guidance, *coefficients, *bound;
    int64_t guidance_stride, row_stride;
    double clip;  // NaN if there is none
};

// z points to the noise of the element at `start`, and may be null. kMore: there is more than x, predictions and y.
template <bool kGuided, bool kMore, class T>
PF_FN void run(const Tensors<T> p, const Settings& s, int64_t sample, int64_t start, int64_t n, const T* z) {
    using V = Pack<T>;
    using S = Scalar<V>;
    const StepCoefficients<S> c = row_of<S>(s.coefficients, s.row_stride, sample);
    const S w = s.guidance ? static_cast<const S*>(s.guidance)[sample * s.guidance_stride] : S(0);
    const S clip = static_cast<S>(s.clip), bound = s.bound ? static_cast<const S*>(s.bound)[sample] : clip;
    const S scale = s.bound ? clip / bound : S(1);
    const bool clips = clip == clip;
    each_pack<T>(n, [&](int64_t j, auto part) {
        const int64_t k = start + j;
        const V x = take(p.x + k, part);
        V m = take(p.prediction + k, part);
        if constexpr (kGuided) m = guided(m, take(p.unconditional + k, part), w);
        V x0 = predicted_x0(x, m, c);
        if (clips) x0 = bounded(x0, bound, scale);
        V y = c.state * x + c.x0 * x0 + c.prediction * m;
        if constexpr (kMore) {
            for (int h = 0; h < kMostHistory; ++h)
                if (p.history[h]) y += c.history[h] * take(p.history[h] + k, part);
            if (z) {
                V deviation = splat<V>(c.noise);
                if (p.variance) deviation = deviation * learned_deviation(take(p.variance + k, part), c);
                y += deviation * take(z + j, part);
            }
            if (p.x0) put(p.x0 + k, x0, part);
        }
        put(p.y + k, y, part);
    });
}

// The p-quantile of n numbers between two neighbours in order, NaN if one of them is. Bits of non-negative numbers are
// in their order, and NaN stands above all.
template <class S, class I>
S quantile(std::vector<I>& bits, double p) {
    const auto number = [](I i) {
        S x;
        memcpy(&x, &i, sizeof x);
        return x;
    };
    const double rank = p * static_cast<double>(bits.size() - 1);
    const auto below = static_cast<std::ptrdiff_t>(rank);
    std::nth_element(bits.begin(), bits.begin() + below, bits.end());
    const S low = number(bits[below]);
    if (bits.begin() + below + 1 == bits.end()) return low;
    const auto rest = std::minmax_element(bits.begin() + below + 1, bits.end());
    const S most = number(*rest.second);
    if (most != most) return most;
    const S high = number(*rest.first);
    return low == high ? low : low + static_cast<S>(rank - static_cast<double>(below)) * (high - low);
}

}  // namespace

// Optional pointers: unconditional and guidance, variance, the histories, bound, x0, noise and seeds (without either
// there is no noise). Strides are those between samples: 0 where all share.
static const char* denoise_step(const void* x, const void* prediction, const void* unconditional, const void* guidance,
                                int64_t guidance_stride, const void* variance, const void* history1,
                                const void* history2, const void* history3, const void* coefficients,
                                int64_t row_stride, const void* bound, double clip, const void* noise, void* y,
                                void* x0, int type, int64_t samples, int64_t elements, const int64_t* seeds,
                                int per_sample, int64_t stream, int64_t sample_offset, int threads) {
    const int64_t size = samples * elements;
    if (size <= 0) return nullptr;
    const Settings s{guidance, coefficients, bound, guidance_stride, row_stride, clip};
    const Noise n{
        samples, elements, seeds, per_sample != 0, static_cast<uint32_t>(stream), static_cast<uint32_t>(sample_offset)};
    return with_type(type, [&](auto t) -> const char* {
        using T = decltype(t);
        const Tensors<T> p{
            static_cast<const T*>(x),
            static_cast<const T*>(prediction),
            static_cast<const T*>(unconditional),
            static_cast<const T*>(variance),
            {static_cast<const T*>(history1), static_cast<const T*>(history2), static_cast<const T*>(history3)},
            static_cast<T*>(y),
            static_cast<T*>(x0)};
        const bool more = noise || seeds || x0 || history1 || history2 || history3;
        const auto piece_of = [&](int64_t begin, int64_t end, const T* z) {
            parts_of_samples(begin, end, elements, [&](int64_t sample, int64_t start, int64_t count) {
                const T* normals = z ? z + (start - begin) : nullptr;
                if (more && p.unconditional) return run<true, true>(p, s, sample, start, count, normals);
                if (more) return run<false, true>(p, s, sample, start, count, normals);
                if (p.unconditional) return run<true, false>(p, s, sample, start, count, normals);
                run<false, false>(p, s, sample, start, count, normals);
            });
        };
        if (noise || seeds)
            with_normals(n, static_cast<const T*>(noise), static_cast<T*>(nullptr), threads,
                         [&](int64_t, int64_t begin, int64_t end, const T* z) { piece_of(begin, end, z); });
        else
            parallel_for((size + kPiece - 1) / kPiece, threads, size < kSmall, [&](int64_t piece) {
                const int64_t begin = piece * kPiece, end = begin + kPiece < size ? begin + kPiece : size;
                piece_of(begin, end, nullptr);
            });
        return nullptr;
    });
}
PF_EXPORT(denoise_step);

// For each sample the p-quantile of |x0|, at least `least` and at most `most`.
static const char* denoise_bound(const void* x, const void* prediction, const void* unconditional, const void* guidance,
                                 int64_t guidance_stride, const void* coefficients, int64_t row_stride, double p,
                                 double least, double most, void* bound, int type, int64_t samples, int64_t elements,
                                 int threads) {
    if (samples <= 0 || elements <= 0) return nullptr;
    return with_type(type, [&](auto t) -> const char* {
        using T = decltype(t);
        using V = Pack<T>;
        using S = Scalar<V>;
        using I = std::conditional_t<sizeof(S) == 8, int64_t, int32_t>;
        parallel_for(samples, threads, samples * elements < kSmall, [&](int64_t sample) {
            const StepCoefficients<S> c = row_of<S>(coefficients, row_stride, sample);
            const S w = guidance ? static_cast<const S*>(guidance)[sample * guidance_stride] : S(0);
            const int64_t at = sample * elements;
            std::vector<I> bits(static_cast<std::size_t>(elements));
            each_pack<T>(elements, [&](int64_t k, auto part) {
                V m = take(static_cast<const T*>(prediction) + at + k, part);
                if (unconditional) m = guided(m, take(static_cast<const T*>(unconditional) + at + k, part), w);
                const V x0 = predicted_x0(take(static_cast<const T*>(x) + at + k, part), m, c);
                const int64_t left = elements - k < lanes<T>() ? elements - k : lanes<T>();
                memcpy(&bits[static_cast<std::size_t>(k)], &x0, static_cast<std::size_t>(left) * sizeof(S));
            });
            for (I& b : bits) b &= std::numeric_limits<I>::max();  // the magnitude
            S s = quantile<S>(bits, p);
            s = s < static_cast<S>(least) ? static_cast<S>(least) : s;
            static_cast<S*>(bound)[sample] = s > static_cast<S>(most) ? static_cast<S>(most) : s;
        });
        return nullptr;
    });
}
PF_EXPORT(denoise_bound);

}  // namespace PF_NAMESPACE
