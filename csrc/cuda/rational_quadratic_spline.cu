// Rational-quadratic splines and their backward, a thread an element. The formulas are csrc/math's, which the CPU
// kernels share; a logit's exponential is computed again where a CPU keeps it, so that no thread needs an array.
//
// Floor: that of the CPU kernels, 4 (P + 2) bytes forward and 4 (2 P + 3) backward an element of P parameters. The
// logarithms are written an element each; a sum over a sample is torch's.
#include "launch.h"
#include "types.h"

#include "../export.h"
#include "../math/rational_quadratic_spline.h"

// Loops over bins hold much state: unrolled, they would need more registers than leave room for other threads.
#ifdef __CUDACC__
#define PF_ROLLED _Pragma("unroll 1")
#else
#define PF_ROLLED
#endif

namespace PF_NAMESPACE {
namespace {

template <class T>
using Computed = std::conditional_t<std::is_same_v<T, double>, double, float>;

template <class S>
struct Spline {
    int bins, knots;  // knots: how many have a logit of their own, bins - 1 (linear tails) or bins + 1
    SplineAxis<S> x, y;
    KnotSlope<S> slope;
    S scale, pull;
    bool inverse;
    PF_FN bool tails() const { return knots < bins; }
};

// Blocks of a multiprocessor: as many as 64 registers a thread let there be, or 128 for pairs of them.
template <class T>
constexpr int kLeastBlocks = sizeof(T) == 8 ? 2 : 4;

template <class P>
struct Source {
    P data;
    int64_t stride;
};

// The logits of one axis of an element.
template <class T>
struct Logits {
    using S = Computed<T>;
    const T* data;
    int bins;
    S scale, pull, largest;
    __device__ Logits(const T* data, const Spline<S>& s)
        : data(data), bins(s.bins), scale(s.scale), pull(s.pull), largest(0) {
        largest = clipped(0);
        PF_ROLLED
        for (int k = 1; k < bins; ++k) largest = select(clipped(k) > largest, clipped(k), largest);
    }
    __device__ S clipped(int k) const { return soft_clip(to_scalar(data[k]) * scale, pull); }
    __device__ S mass(int k) const { return decay(clipped(k) - largest); }
};

// A bin on one axis.
template <class S>
struct Place {
    S below, own, unit, inverse;  // masses, range * free / total, 1 / total
};

template <class T, class S>
__device__ int find(S at, const Logits<T>& logits, const SplineAxis<S>& axis, Place<S>& p, S& offset) {
    Exact<S> total = {0, 0};
    PF_ROLLED
    for (int k = 0; k < logits.bins; ++k) accumulate(total, logits.mass(k));
    const Search<S> search = search_axis(at, total, axis);
    Exact<S> sum = {0, 0};
    int index = 0;
    p.below = 0;
    p.own = logits.mass(0);
    offset = offset_from(search, sum, S(0), axis);
    S before = p.own;
    PF_ROLLED
    for (int k = 1; k < logits.bins; ++k) {
        accumulate(sum, before);
        before = logits.mass(k);
        const S next = offset_from(search, sum, static_cast<S>(k), axis);
        if (next >= S(0)) {
            index = k;
            offset = next;
            p.below = sum.sum + sum.rest;
            p.own = before;
        }
    }
    p.inverse = search.inverse_total;
    p.unit = axis.range * axis.free * p.inverse;
    return index;
}

template <class T, class S>
__device__ void pick(int index, const Logits<T>& logits, const SplineAxis<S>& axis, Place<S>& p) {
    S sum = 0;
    p.below = p.own = 0;
    PF_ROLLED
    for (int k = 0; k < logits.bins; ++k) {
        const S mass = logits.mass(k);
        if (k == index) {
            p.below = sum;
            p.own = mass;
        }
        sum += mass;
    }
    p.inverse = S(1) / sum;
    p.unit = axis.range * axis.free * p.inverse;
}

template <class S>
struct Found {
    int index;
    Place<S> x, y;
    Bin<S> bin;
    S left_slope, right_slope, theta;
};

template <class T, class S>
__device__ Found<S> locate(S at, const Logits<T>& widths, const Logits<T>& heights, const T* slopes,
                           const Spline<S>& s) {
    Found<S> f;
    S offset;
    if (s.inverse) {
        f.index = find(at, heights, s.y, f.y, offset);
        pick(f.index, widths, s.x, f.x);
    } else {
        f.index = find(at, widths, s.x, f.x, offset);
        pick(f.index, heights, s.y, f.y);
    }
    const S index = static_cast<S>(f.index);
    f.bin.x = s.x.low + (s.x.range * s.x.minimum * index + f.x.unit * f.x.below);
    f.bin.y = s.y.low + (s.y.range * s.y.minimum * index + f.y.unit * f.y.below);
    f.bin.width = s.x.range * s.x.minimum + f.x.unit * f.x.own;
    f.bin.height = s.y.range * s.y.minimum + f.y.unit * f.y.own;
    f.bin.over_width = S(1) / f.bin.width;
    f.bin.slope = f.bin.height * f.bin.over_width;
    const int left = s.tails() ? f.index - 1 : f.index, right = left + 1;
    f.bin.left = f.bin.right = 1;
    f.left_slope = f.right_slope = 0;
    if (left >= 0) f.bin.left = knot_slope(to_scalar(slopes[left]), s.slope, f.left_slope);
    if (right < s.knots) f.bin.right = knot_slope(to_scalar(slopes[right]), s.slope, f.right_slope);
    const S share = within_unit(s.inverse ? offset / f.bin.height : offset * f.bin.over_width);
    f.theta = s.inverse ? spline_root(share, f.bin) : share;
    return f;
}

template <class S>
__device__ S clamped(S at, const SplineAxis<S>& axis) {
    const S high = axis.low + axis.range;
    at = select(at < axis.low, axis.low, at);
    return select(at > high, high, at);
}

template <class T>
__global__ void __launch_bounds__(kThreads, kLeastBlocks<T>)
    forward(int64_t elements, const T* x, Source<const T*> widths, Source<const T*> heights, Source<const T*> slopes,
            T* y, Computed<T>* log, Spline<Computed<T>> s) {
    using S = Computed<T>;
    for (int64_t k = first_item(); k < elements; k += item_stride()) {
        const S at = to_scalar(x[k]), inside = clamped(at, s.inverse ? s.y : s.x);
        const Logits<T> w(widths.data + k * widths.stride, s);
        const Logits<T> h(heights.data + k * heights.stride, s);
        const Found<S> f = locate(inside, w, h, slopes.data + k * slopes.stride, s);
        const AtShare<S> a = spline_at(f.theta, f.bin);
        S value = s.inverse ? f.bin.x + f.theta * f.bin.width : f.bin.y + f.bin.height * (a.above * a.over_below);
        S result = logarithm(a.jacobian);
        if (s.inverse) result = -result;
        if (s.tails() && inside != at && at == at) {
            value = at;
            result = 0;
        }
        y[k] = from_scalar<T>(value);
        log[k] = result;
    }
}

template <class T, class S>
__device__ void axis_gradients(const Logits<T>& logits, int index, S knot, S extent, const Place<S>& p, T* to) {
    const S common = (knot * p.below + extent * p.own) * p.inverse;
    PF_ROLLED
    for (int k = 0; k < logits.bins; ++k) {
        const S direct = k < index ? knot : k == index ? extent : S(0);
        const S g = p.unit * logits.scale * logits.mass(k) * (direct - common);
        to[k] = from_scalar<T>(g * soft_clip_slope(logits.clipped(k), logits.pull));
    }
}

template <class T>
__global__ void __launch_bounds__(kThreads, kLeastBlocks<T>)
    backward(int64_t elements, const T* dy, const Computed<T>* dlog, const T* x, Source<const T*> widths,
             Source<const T*> heights, Source<const T*> slopes, T* dx, Source<T*> dwidths, Source<T*> dheights,
             Source<T*> dslopes, Spline<Computed<T>> s) {
    using S = Computed<T>;
    for (int64_t k = first_item(); k < elements; k += item_stride()) {
        const S at = to_scalar(x[k]), inside = clamped(at, s.inverse ? s.y : s.x), given = to_scalar(dy[k]);
        const bool outside = inside != at && at == at;
        const bool beyond = s.tails() && outside;
        const Logits<T> w(widths.data + k * widths.stride, s);
        const Logits<T> h(heights.data + k * heights.stride, s);
        const Found<S> f = locate(inside, w, h, slopes.data + k * slopes.stride, s);
        const AtShare<S> a = spline_at(f.theta, f.bin);
        const BinGradients<S> g = spline_gradients(beyond ? S(0) : given, beyond ? S(0) : dlog[k], a, f.bin, s.inverse);
        axis_gradients(w, f.index, g.x, g.width, f.x, dwidths.data + k * dwidths.stride);
        axis_gradients(h, f.index, g.y, g.height, f.y, dheights.data + k * dheights.stride);
        const int left = s.tails() ? f.index - 1 : f.index;
        T* to = dslopes.data + k * dslopes.stride;
        PF_ROLLED
        for (int j = 0; j < s.knots; ++j)
            to[j] = from_scalar<T>(j == left ? g.left * f.left_slope : j == left + 1 ? g.right * f.right_slope : S(0));
        dx[k] = from_scalar<T>(outside ? (s.tails() ? given : S(0)) : g.at);
    }
}

template <class S>
Spline<S> spline_of(int bins, int tails, double low, double range, double min_width, double min_height,
                    double min_slope, double scale, double pull, double slope_pull, int exponent, int inverse) {
    const auto axis = [&](double minimum) {
        return SplineAxis<S>{static_cast<S>(low), static_cast<S>(range), static_cast<S>(minimum),
                             static_cast<S>(1 - bins * minimum)};
    };
    return {bins,
            tails ? bins - 1 : bins + 1,
            axis(min_width),
            axis(min_height),
            {static_cast<S>(min_slope), static_cast<S>(slope_pull), exponent != 0},
            static_cast<S>(scale),
            static_cast<S>(pull),
            inverse != 0};
}

}  // namespace

// log, and dlog below, have a number an element.
static const char* rational_quadratic_spline(const void* x, const void* widths, int64_t width_stride,
                                             const void* heights, int64_t height_stride, const void* slopes,
                                             int64_t slope_stride, void* y, void* log, int type, int64_t elements,
                                             int bins, int tails, double low, double range, double min_width,
                                             double min_height, double min_slope, double scale, double pull,
                                             double slope_pull, int exponent, int inverse, void* queue) {
    return with_type(type, [&](auto t) -> const char* {
        using T = decltype(t);
        using S = Computed<T>;
        const auto source = [](const void* p, int64_t stride) {
            return Source<const T*>{static_cast<const T*>(p), stride};
        };
        return launch(forward<T>, elements, queue, elements, static_cast<const T*>(x), source(widths, width_stride),
                      source(heights, height_stride), source(slopes, slope_stride), static_cast<T*>(y),
                      static_cast<S*>(log),
                      spline_of<S>(bins, tails, low, range, min_width, min_height, min_slope, scale, pull, slope_pull,
                                   exponent, inverse));
    });
}
PF_EXPORT(rational_quadratic_spline);

static const char* rational_quadratic_spline_backward(
    const void* dy, const void* dlog, const void* x, const void* widths, int64_t width_stride, const void* heights,
    int64_t height_stride, const void* slopes, int64_t slope_stride, void* dx, void* dwidths, int64_t dwidth_stride,
    void* dheights, int64_t dheight_stride, void* dslopes, int64_t dslope_stride, int type, int64_t elements, int bins,
    int tails, double low, double range, double min_width, double min_height, double min_slope, double scale,
    double pull, double slope_pull, int exponent, int inverse, void* queue) {
    return with_type(type, [&](auto t) -> const char* {
        using T = decltype(t);
        using S = Computed<T>;
        const auto source = [](const void* p, int64_t stride) {
            return Source<const T*>{static_cast<const T*>(p), stride};
        };
        const auto target = [](void* p, int64_t stride) { return Source<T*>{static_cast<T*>(p), stride}; };
        return launch(backward<T>, elements, queue, elements, static_cast<const T*>(dy), static_cast<const S*>(dlog),
                      static_cast<const T*>(x), source(widths, width_stride), source(heights, height_stride),
                      source(slopes, slope_stride), static_cast<T*>(dx), target(dwidths, dwidth_stride),
                      target(dheights, dheight_stride), target(dslopes, dslope_stride),
                      spline_of<S>(bins, tails, low, range, min_width, min_height, min_slope, scale, pull, slope_pull,
                                   exponent, inverse));
    });
}
PF_EXPORT(rational_quadratic_spline_backward);

}  // namespace PF_NAMESPACE
