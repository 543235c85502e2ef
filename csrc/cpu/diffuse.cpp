// x_t = alpha x0 + sigma z with normal numbers z, and its backward, which makes z again. One pass each.
//
// Floor, n elements of s bytes: forward 2 n s over the copy bandwidth, 3 n s where the noise is kept; backward as much.
// Making the noise costs several times that (random.cpp).
#include "segments.h"

#include "../export.h"

namespace PF_NAMESPACE {

// alpha and sigma: a number for each sample, of the computing type. `noise` is given, or null and made from the seeds;
// `kept` takes what was made, if it is not null.
static const char* diffuse(const void* x0, const void* alpha, const void* sigma, const void* noise, void* y, void* kept,
                           int type, int64_t samples, int64_t elements, const int64_t* seeds, int per_sample,
                           int64_t stream, int64_t sample_offset, int threads) {
    if (samples <= 0 || elements <= 0) return nullptr;
    const Noise n{
        samples, elements, seeds, per_sample != 0, static_cast<uint32_t>(stream), static_cast<uint32_t>(sample_offset)};
    return with_type(type, [&](auto t) -> const char* {
        using T = decltype(t);
        using S = Scalar<Pack<T>>;
        const auto run = [&](int64_t, int64_t begin, int64_t end, const T* z) {
            parts_of_samples(begin, end, elements, [&](int64_t sample, int64_t start, int64_t count) {
                const S a = static_cast<const S*>(alpha)[sample], s = static_cast<const S*>(sigma)[sample];
                const T *from = static_cast<const T*>(x0) + start, *normal = z + (start - begin);
                T* to = static_cast<T*>(y) + start;
                each_pack<T>(count, [&](int64_t k, auto part) {
                    put(to + k, a * take(from + k, part) + s * take(normal + k, part), part);
                });
            });
        };
        with_normals(n, static_cast<const T*>(noise), static_cast<T*>(kept), threads, run);
        return nullptr;
    });
}
PF_EXPORT(diffuse);

// dx0 = alpha dy; the sums over each sample of dy x0 and dy z. Each output may be null; without dsigma no noise is
// made.
static const char* diffuse_backward(const void* dy, const void* x0, const void* alpha, const void* noise, void* dx0,
                                    void* dalpha, void* dsigma, int type, int64_t samples, int64_t elements,
                                    const int64_t* seeds, int per_sample, int64_t stream, int64_t sample_offset,
                                    int threads) {
    const Noise n{
        samples, elements, seeds, per_sample != 0, static_cast<uint32_t>(stream), static_cast<uint32_t>(sample_offset)};
    return with_type(type, [&](auto t) -> const char* {
        using T = decltype(t);
        using V = Pack<T>;
        using S = Scalar<V>;
        const bool some = samples > 0 && elements > 0;
        const int64_t pieces = some ? noisy_pieces(n) : 0;
        SampleSums with_x0(dalpha ? pieces : 0, samples), with_noise(dsigma ? pieces : 0, samples);
        const auto run = [&](int64_t piece, int64_t begin, int64_t end, const T* z) {
            parts_of_samples(begin, end, elements, [&](int64_t sample, int64_t start, int64_t count) {
                const S a = static_cast<const S*>(alpha)[sample];
                const T *g = static_cast<const T*>(dy) + start, *x = static_cast<const T*>(x0) + start;
                V by_x0 = splat<V>(0), by_noise = splat<V>(0);
                each_pack<T>(count, [&](int64_t k, auto part) {
                    const V d = take(g + k, part);
                    if (dx0) put(static_cast<T*>(dx0) + start + k, a * d, part);
                    if (dalpha) by_x0 += d * take(x + k, part);
                    if (dsigma) by_noise += d * take(z + (start - begin) + k, part);
                });
                if (dalpha) with_x0.part(piece, sample) = sum_of_lanes(by_x0);
                if (dsigma) with_noise.part(piece, sample) = sum_of_lanes(by_noise);
            });
        };
        // Where no noise is asked for, anything stands in for it.
        const void* given = noise || dsigma ? noise : dy;
        if (some) with_normals(n, static_cast<const T*>(given), static_cast<T*>(nullptr), threads, run);
        const auto start = [&](int64_t piece) { return noisy_start(n, piece); };
        if (dalpha) with_x0.finish(elements, start, static_cast<S*>(dalpha));
        if (dsigma) with_noise.finish(elements, start, static_cast<S*>(dsigma));
        return nullptr;
    });
}
PF_EXPORT(diffuse_backward);

}  // namespace PF_NAMESPACE
