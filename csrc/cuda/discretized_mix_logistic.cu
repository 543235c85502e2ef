// The negative log-likelihood of images under a mixture of discretised logistics, its backward, and images drawn from
// it, a pixel a thread.
//
// Floor, P parameters a pixel (10 M for three channels) of s bytes: P s read forward, 2 P s backward; drawing reads the
// logits and one component. A warp's threads
// read neighbouring pixels of a plane. Each component is met once and kept in registers.
#include "launch.h"
#include "noise.h"
#include "types.h"

#include "../export.h"
#include "../math/logistic.h"

namespace PF_NAMESPACE {
namespace {

constexpr int planes(int channels) { return channels == 3 ? 10 : 3; }

// Where a pixel's numbers stand.
struct Pixels {
    int64_t samples, mixtures, pixels;
    template <class T>
    PF_FN const T* image(const T* x, int channels, int64_t item) const {
        return x + item / pixels * channels * pixels + item % pixels;
    }
    template <class T>
    PF_FN T* parameters(T* params, int channels, int64_t item) const {
        return params + item / pixels * (planes(channels) * mixtures * pixels) + item % pixels;
    }
    PF_FN int64_t sums(int64_t item) const { return item / pixels * 3 * pixels + item % pixels; }
};

template <class T, int C, class V = Computed<T>>
__device__ __forceinline__ void read_component(const T* params, const Pixels& p, int64_t m, Component<V, C>& part) {
    part.logit = to_scalar(params[m * p.pixels]);
    PF_UNROLL_CHANNELS
    for (int c = 0; c < C; ++c) {
        const auto read = [&](int kind) {
            return static_cast<V>(to_scalar(params[plane_of(p.mixtures, C, c, kind, m) * p.pixels]));
        };
        part.mean[c] = read(0);
        part.log_scale[c] = read(1);
        if constexpr (C == 3) part.coefficient[c] = read(2);
    }
}

template <class T, int C, class V = Computed<T>>
__device__ __forceinline__ void read_pixel(const T* x, const Pixels& p, V value[C], bool low[C], bool high[C]) {
    PF_UNROLL_CHANNELS
    for (int c = 0; c < C; ++c) {
        value[c] = to_scalar(x[c * p.pixels]);
        low[c] = value[c] < V(-0.999);
        high[c] = value[c] > V(0.999);
    }
}

// sums as in csrc/cpu/discretized_mix_logistic.cpp.
template <class T, int C>
__global__ void __launch_bounds__(kThreads, 2) forward(const T* x, const T* params, Computed<T>* sums, Pixels p) {
    using V = Computed<T>;
    for (int64_t item = first_item(); item < p.samples * p.pixels; item += item_stride()) {
        V value[C];
        bool low[C], high[C];
        read_pixel<T, C>(p.image(x, C, item), p, value, low, high);
        const T* own = p.parameters(params, C, item);
        const V one = V(1);
        LogSum<V> weight{}, mass{};
        for (int64_t m = 0; m < p.mixtures; ++m) {
            Component<V, C> part;
            read_component<T, C>(own, p, m, part);
            V ratio;
            const V logit = part.logit, rest = part.apply(value, low, high, ratio);
            if (m == 0) {
                weight.start(logit, one);
                mass.start(rest, ratio);
            } else {
                weight.add(logit, one);
                mass.add(rest, ratio);
            }
        }
        sums[p.sums(item)] = weight.value();
        sums[p.sums(item) + p.pixels] = mass.most;
        sums[p.sums(item) + 2 * p.pixels] = mass.sum;
    }
}

// dx may be null.
template <class T, int C>
__global__ void __launch_bounds__(kThreads, 2) backward(const Computed<T>* dnll, const T* x, const T* params,
                                                        const Computed<T>* sums, T* dx, T* dparams, Pixels p) {
    using V = Computed<T>;
    for (int64_t item = first_item(); item < p.samples * p.pixels; item += item_stride()) {
        V value[C], slope[C];
        bool low[C], high[C];
        read_pixel<T, C>(p.image(x, C, item), p, value, low, high);
        PF_UNROLL_CHANNELS
        for (int c = 0; c < C; ++c) slope[c] = V(0);
        const T* own = p.parameters(params, C, item);
        T* to = p.parameters(dparams, C, item);
        const V g = dnll[item / p.pixels];
        const V weights = sums[p.sums(item)], most = sums[p.sums(item) + p.pixels];
        const V share = g / sums[p.sums(item) + 2 * p.pixels];
        for (int64_t m = 0; m < p.mixtures; ++m) {
            Component<V, C> part;
            read_component<T, C>(own, p, m, part);
            const V prior = g * exponential(part.logit - weights);
            V ratio;
            const V rest = part.apply(value, low, high, ratio);
            const V posterior = share * exponential(rest - most) * ratio;
            part.differentiate(value, -posterior, prior - posterior, slope);
            to[m * p.pixels] = from_scalar<T>(part.logit);
            PF_UNROLL_CHANNELS
            for (int c = 0; c < C; ++c) {
                const auto write = [&](int kind, V v) {
                    to[plane_of(p.mixtures, C, c, kind, m) * p.pixels] = from_scalar<T>(v);
                };
                write(0, part.mean[c]);
                write(1, part.log_scale[c]);
                if constexpr (C == 3) write(2, part.coefficient[c]);
            }
        }
        if (dx) {
            T* image = dx + (p.image(x, C, item) - x);
            PF_UNROLL_CHANNELS
            for (int c = 0; c < C; ++c) image[c * p.pixels] = from_scalar<T>(slope[c]);
        }
    }
}

// Element j of a sample's uniform numbers, by `random_uniform` in the type that is computed in.
template <class V>
PF_FN V uniform_at(const Noise& n, int64_t sample, int64_t j) {
    uint32_t words[4];
    make_words(n, sample, j / 4, words);
    const int64_t lane = j % 4;
    // Selected, since an array that is indexed by a number would lie in memory.
    const uint32_t word = lane < 2 ? (lane == 0 ? words[0] : words[1]) : (lane == 2 ? words[2] : words[3]);
    if constexpr (std::is_same_v<V, double>)
        return (word + 0.5) * 2.3283064365386963e-10;
    else
        return uniform_float(word);
}

// An image's value that is nearest: of equally near ones that with an even number, as torch rounds. NaN stays.
template <class V>
PF_FN V nearest_value(V x) {
    V level = (x + V(1)) * V(127.5);
    if constexpr (std::is_same_v<V, double>)
        level = ::rint(level);
    else
        level = ::rintf(level);
    level = level < V(0) ? V(0) : level > V(255) ? V(255) : level;
    return level / V(127.5) - V(1);
}

// A pixel drawn from its mixture, a thread each. The noise of a sample is (M + C, pixels): the component whose logit
// with Gumbel noise is largest is one drawn from their softmax; then a logistic number for each channel.
template <class T, int C>
__global__ void __launch_bounds__(kThreads) draw(const T* params, T* x, Noise n, Pixels p) {
    using V = Computed<T>;
    for (int64_t item = first_item(); item < p.samples * p.pixels; item += item_stride()) {
        const int64_t sample = item / p.pixels, pixel = item % p.pixels;
        const T* own = p.parameters(params, C, item);
        int64_t chosen = 0;
        V most = V(0);
        for (int64_t m = 0; m < p.mixtures; ++m) {
            const V u = uniform_at<V>(n, sample, m * p.pixels + pixel);
            const V v = static_cast<V>(to_scalar(own[m * p.pixels])) - logarithm(-logarithm(u));
            // NaN is the largest, as torch has it; of equal ones the first.
            if (m == 0 || v > most || (v != v && most == most)) {
                chosen = m;
                most = v;
            }
        }
        Component<V, C> part;
        read_component<T, C>(own, p, chosen, part);
        V value[C];
        PF_UNROLL_CHANNELS
        for (int c = 0; c < C; ++c) {
            const V u = uniform_at<V>(n, sample, (p.mixtures + c) * p.pixels + pixel);
            const V noise = logarithm(u) - logarithm(V(1) - u), least = V(kLeastLogScale);
            const V log_scale = part.log_scale[c] < least ? least : part.log_scale[c];
            V drawn = part.mean[c] + exponential(log_scale) * noise;
            if constexpr (C == 3) {
                if (c == 1) drawn += hyperbolic_tangent(part.coefficient[0]) * value[0];
                if (c == 2)
                    drawn += hyperbolic_tangent(part.coefficient[1]) * value[0] +
                             hyperbolic_tangent(part.coefficient[2]) * value[1];
            }
            value[c] = nearest_value(drawn);
        }
        T* image = x + sample * C * p.pixels + pixel;
        PF_UNROLL_CHANNELS
        for (int c = 0; c < C; ++c) image[c * p.pixels] = from_scalar<T>(value[c]);
    }
}

}  // namespace

// channels is 1 or 3. sums, (samples, 3, pixels), is of the type that is computed in.
static const char* discretized_mix_logistic(const void* x, const void* params, void* sums, int type, int64_t samples,
                                            int64_t channels, int64_t mixtures, int64_t pixels, void* queue) {
    return with_type(type, [&](auto t) {
        using T = decltype(t);
        return launch(channels == 3 ? forward<T, 3> : forward<T, 1>, samples * pixels, queue, static_cast<const T*>(x),
                      static_cast<const T*>(params), static_cast<Computed<T>*>(sums),
                      Pixels{samples, mixtures, pixels});
    });
}
PF_EXPORT(discretized_mix_logistic);

// dx may be null.
static const char* discretized_mix_logistic_backward(const void* dnll, const void* x, const void* params,
                                                     const void* sums, void* dx, void* dparams, int type,
                                                     int64_t samples, int64_t channels, int64_t mixtures,
                                                     int64_t pixels, void* queue) {
    return with_type(type, [&](auto t) {
        using T = decltype(t);
        using S = Computed<T>;
        return launch(channels == 3 ? backward<T, 3> : backward<T, 1>, samples * pixels, queue,
                      static_cast<const S*>(dnll), static_cast<const T*>(x), static_cast<const T*>(params),
                      static_cast<const S*>(sums), static_cast<T*>(dx), static_cast<T*>(dparams),
                      Pixels{samples, mixtures, pixels});
    });
}
PF_EXPORT(discretized_mix_logistic_backward);

static const char* sample_discretized_mix_logistic(const void* params, void* x, int type, int64_t samples,
                                                   int64_t channels, int64_t mixtures, int64_t pixels,
                                                   const int64_t* seeds, int per_sample, int64_t stream,
                                                   int64_t sample_offset, void* queue) {
    const Noise n{samples,         (mixtures + channels) * pixels, seeds,
                  per_sample != 0, static_cast<uint32_t>(stream),  static_cast<uint32_t>(sample_offset)};
    return with_type(type, [&](auto t) {
        using T = decltype(t);
        return launch(channels == 3 ? draw<T, 3> : draw<T, 1>, samples * pixels, queue, static_cast<const T*>(params),
                      static_cast<T*>(x), n, Pixels{samples, mixtures, pixels});
    });
}
PF_EXPORT(sample_discretized_mix_logistic);

}  // namespace PF_NAMESPACE
