// z = mean + exp(logvar / 2) noise and its divergence from the standard normal, one pass; the backward makes the noise
// again.
//
// Floor: 12 bytes an element forward, 20 backward; about 25 vector operations a pack, most of them the noise. Making
// the noise twice costs 0.19 ns a number each time on two cores.
#include "noise.h"
#include "samples.h"

#include "../export.h"

namespace PF_NAMESPACE {
namespace {

// The noise of a piece: made into a buffer, or read from a tensor.
template <class T, bool kGiven>
class Source {
public:
    using S = Scalar<Pack<T>>;
    Source(const Noise& n, const T* given, int64_t first, int64_t last, int64_t begin, int64_t end) {
        if constexpr (kGiven) {
            given_ = given;
        } else {
            start_ = first * n.elements + begin;
            const int64_t size = (last - first - 1) * n.elements + end - begin;
            if (size <= 0) return;
            buffer_.reset(new S[size]);
            const int64_t blocks = n.blocks();
            fill_blocks<Maker<kNormal, S>>(n, first * blocks + begin / 4, (last - 1) * blocks + (end + 3) / 4,
                                           buffer_.get());
        }
    }
    PF_FN Pack<T> read(int64_t at, int64_t count) const {
        if constexpr (kGiven)
            return read_some(given_ + at, count);
        else
            return read_some(static_cast<const S*>(buffer_.get()) + (at - start_), count);
    }

private:
    const T* given_ = nullptr;
    int64_t start_ = 0;
    std::unique_ptr<S[]> buffer_;
};

template <class T, bool kGiven>
void forward(const Noise& n, const T* mean, const T* logvar, const T* noise, T* z, Scalar<Pack<T>>* kl, int threads) {
    using V = Pack<T>;
    using S = Scalar<V>;
    each_sample(
        n.samples, n.elements, kPart, kl, n.samples * n.elements < kSmallWork, threads,
        [&](int64_t first, int64_t last, int64_t begin, int64_t end) {
            return Source<T, kGiven>(n, noise, first, last, begin, end);
        },
        [&](const Source<T, kGiven>& source, int64_t sample, int64_t begin, int64_t end) {
            const int64_t start = sample * n.elements + begin;
            return 0.5 * sum_over<T>(end - begin, [&](int64_t k, int64_t count) {
                       const V m = read_some(mean + start + k, count), l = read_some(logvar + start + k, count);
                       const V deviation = exponential(S(0.5) * l);
                       write_some(z + start + k, m + deviation * source.read(start + k, count), count);
                       return m * m + (deviation * deviation - S(1) - l);
                   });
        });
}

template <class T, bool kGiven>
void backward(const Noise& n, const T* dz, const Scalar<Pack<T>>* dkl, const T* mean, const T* logvar, const T* noise,
              T* dmean, T* dlogvar, T* dnoise, int threads) {
    using V = Pack<T>;
    using S = Scalar<V>;
    each_sample(
        n.samples, n.elements, kPart, static_cast<S*>(nullptr), n.samples * n.elements < kSmallWork, threads,
        [&](int64_t first, int64_t last, int64_t begin, int64_t end) {
            return Source<T, kGiven>(n, noise, first, last, begin, end);
        },
        [&](const Source<T, kGiven>& source, int64_t sample, int64_t begin, int64_t end) {
            const int64_t start = sample * n.elements + begin;
            const S of_kl = dkl[sample];
            const S half_of_kl = S(0.5) * of_kl;
            for (int64_t k = 0; k < end - begin; k += lanes<T>()) {
                const int64_t at = start + k, left = end - begin - k, count = left < lanes<T>() ? left : lanes<T>();
                const V d = read_some(dz + at, count), m = read_some(mean + at, count);
                const V deviation = exponential(S(0.5) * read_some(logvar + at, count));
                const V along = d * deviation;
                write_some(dmean + at, d + of_kl * m, count);
                const V by_noise = S(0.5) * along * source.read(at, count);
                write_some(dlogvar + at, by_noise + half_of_kl * (deviation * deviation - S(1)), count);
                if constexpr (kGiven)
                    if (dnoise) write_some(dnoise + at, along, count);
            }
            return 0.0;
        });
}

Noise noise_of(int64_t samples, int64_t elements, const int64_t* seeds, int per_sample, int64_t stream,
               int64_t sample_offset) {
    return {
        samples, elements, seeds, per_sample != 0, static_cast<uint32_t>(stream), static_cast<uint32_t>(sample_offset)};
}

}  // namespace

// kl is of the type that is computed in. Either `noise` or `seeds` is null.
static const char* reparameterize(const void* mean, const void* logvar, const void* noise, void* z, void* kl, int type,
                                  int64_t samples, int64_t elements, const int64_t* seeds, int per_sample,
                                  int64_t stream, int64_t sample_offset, int threads) {
    const Noise n = noise_of(samples, elements, seeds, per_sample, stream, sample_offset);
    return with_type(type, [&](auto t) -> const char* {
        using T = decltype(t);
        const auto run = noise ? forward<T, true> : forward<T, false>;
        run(n, static_cast<const T*>(mean), static_cast<const T*>(logvar), static_cast<const T*>(noise),
            static_cast<T*>(z), static_cast<Scalar<Pack<T>>*>(kl), threads);
        return nullptr;
    });
}
PF_EXPORT(reparameterize);

// dnoise may be null.
static const char* reparameterize_backward(const void* dz, const void* dkl, const void* mean, const void* logvar,
                                           const void* noise, void* dmean, void* dlogvar, void* dnoise, int type,
                                           int64_t samples, int64_t elements, const int64_t* seeds, int per_sample,
                                           int64_t stream, int64_t sample_offset, int threads) {
    const Noise n = noise_of(samples, elements, seeds, per_sample, stream, sample_offset);
    return with_type(type, [&](auto t) -> const char* {
        using T = decltype(t);
        const auto run = noise ? backward<T, true> : backward<T, false>;
        run(n, static_cast<const T*>(dz), static_cast<const Scalar<Pack<T>>*>(dkl), static_cast<const T*>(mean),
            static_cast<const T*>(logvar), static_cast<const T*>(noise), static_cast<T*>(dmean),
            static_cast<T*>(dlogvar), static_cast<T*>(dnoise), threads);
        return nullptr;
    });
}
PF_EXPORT(reparameterize_backward);

}  // namespace PF_NAMESPACE
