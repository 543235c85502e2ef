// x_t = alpha x0 + sigma z with normal numbers z, and its backward, which makes z again; four elements a thread.
//
// Floor: that of the CPU kernels. The sums over a sample are left as a number for each of up to 1024 threads a sample,
// which torch adds: without atomics, in an order of their own.
#include "launch.h"
#include "noise.h"

#include "../export.h"

namespace PF_NAMESPACE {
namespace {

template <class T>
__global__ void __launch_bounds__(kThreads)
    noised(Noise n, const T* x0, const Computed<T>* alpha, const Computed<T>* sigma, const T* noise, T* y, T* kept,
           bool whole) {
    const int64_t blocks = n.blocks(), total = n.samples * blocks;
    for (int64_t item = first_item(); item < total; item += item_stride()) {
        const int64_t block = item % blocks;
        const Place at = place_of(n, item / blocks, block);
        const Computed<T> a = alpha[at.sample], s = sigma[at.sample];
        const Four<T> x = read_four(x0, at, whole), z = normals_of(n, noise, at, block, whole);
        Four<T> to;
        for (int k = 0; k < 4; ++k) to.of[k] = from_scalar<T>(a * to_scalar(x.of[k]) + s * to_scalar(z.of[k]));
        write_four(y, to, at, whole);
        if (kept) write_four(kept, z, at, whole);
    }
}

// `parts` threads share a sample; sums is (2, samples, parts): of dy x0 and of dy z.
template <class T>
__global__ void __launch_bounds__(kThreads)
    noised_backward(Noise n, int64_t parts, const T* dy, const T* x0, const Computed<T>* alpha, const T* noise, T* dx0,
                    Computed<T>* sums, bool whole) {
    using S = Computed<T>;
    const int64_t total = n.samples * parts;
    for (int64_t item = first_item(); item < total; item += item_stride()) {
        const int64_t sample = item / parts;
        const S a = alpha[sample];
        S by_x0 = 0, by_noise = 0;
        for (int64_t block = item % parts; block < n.blocks(); block += parts) {
            const Place at = place_of(n, sample, block);
            const Four<T> d = read_four(dy, at, whole);
            if (dx0) {
                Four<T> to;
                for (int k = 0; k < 4; ++k) to.of[k] = from_scalar<T>(a * to_scalar(d.of[k]));
                write_four(dx0, to, at, whole);
            }
            if (!sums) continue;
            const Four<T> x = read_four(x0, at, whole), z = normals_of(n, noise, at, block, whole);
            for (int k = 0; k < 4; ++k) {
                // What lies past the end of a sample is zero in d.
                by_x0 += to_scalar(d.of[k]) * to_scalar(x.of[k]);
                by_noise += to_scalar(d.of[k]) * to_scalar(z.of[k]);
            }
        }
        if (!sums) continue;
        sums[item] = by_x0;
        sums[total + item] = by_noise;
    }
}

}  // namespace

static const char* diffuse(const void* x0, const void* alpha, const void* sigma, const void* noise, void* y, void* kept,
                           int type, int64_t samples, int64_t elements, const int64_t* seeds, int per_sample,
                           int64_t stream, int64_t sample_offset, void* queue) {
    const Noise n{
        samples, elements, seeds, per_sample != 0, static_cast<uint32_t>(stream), static_cast<uint32_t>(sample_offset)};
    return with_type(type, [&](auto t) {
        using T = decltype(t);
        using S = Computed<T>;
        const bool whole = moves_whole<T>(n, {x0, noise, y, kept});
        return launch(noised<T>, samples * n.blocks(), queue, n, static_cast<const T*>(x0),
                      static_cast<const S*>(alpha), static_cast<const S*>(sigma), static_cast<const T*>(noise),
                      static_cast<T*>(y), static_cast<T*>(kept), whole);
    });
}
PF_EXPORT(diffuse);

// dx0 and sums may be null.
static const char* diffuse_backward(const void* dy, const void* x0, const void* alpha, const void* noise, void* dx0,
                                    void* sums, int64_t parts, int type, int64_t samples, int64_t elements,
                                    const int64_t* seeds, int per_sample, int64_t stream, int64_t sample_offset,
                                    void* queue) {
    const Noise n{
        samples, elements, seeds, per_sample != 0, static_cast<uint32_t>(stream), static_cast<uint32_t>(sample_offset)};
    return with_type(type, [&](auto t) {
        using T = decltype(t);
        using S = Computed<T>;
        const bool whole = moves_whole<T>(n, {dy, x0, noise, dx0});
        return launch(noised_backward<T>, samples * parts, queue, n, parts, static_cast<const T*>(dy),
                      static_cast<const T*>(x0), static_cast<const S*>(alpha), static_cast<const T*>(noise),
                      static_cast<T*>(dx0), static_cast<S*>(sums), whole);
    });
}
PF_EXPORT(diffuse_backward);

}  // namespace PF_NAMESPACE
