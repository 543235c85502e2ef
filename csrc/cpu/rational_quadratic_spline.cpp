// Rational-quadratic splines with the log-determinant, their inverse, and the backward of both, which computes
// everything anew from the inputs. One pass each.
//
// Floor, for an element with P = 3 K - 1 (or 3 K + 1) parameters: forward 4 (P + 2) bytes, backward 4 (2 P + 3), over
// the copy bandwidth. The arithmetic is above it: 2 K exponentials, the sums in two parts and the search.
#include "pieces.h"
#include "spline_tiles.h"
#include "threads.h"

#include "../export.h"
#include "../math/rational_quadratic_spline.h"

namespace PF_NAMESPACE {

PF_FN vdouble decay(vdouble x) { return exponential(x); }

#if defined(__AVX512F__)
PF_FN vfloat decay(vfloat x) {
    const __m512 t = (__m512)at_least(x * 1.44269504f, -126.0f);
    const vfloat p = polynomial((vfloat)_mm512_reduce_ps(t, _MM_FROUND_TO_NEG_INF), 1.0f, 6.93146984e-01f,
                                2.40229836e-01f, 5.54833420e-02f, 9.67884100e-03f, 1.24396878e-03f, 2.17022554e-04f);
    return (vfloat)_mm512_scalef_ps((__m512)p, t);  // p 2^floor(t)
}
#endif

// One truth a lane.
#if defined(__AVX512F__)
PF_FN __mmask16 not_negative(vfloat x) { return _mm512_cmp_ps_mask((__m512)x, _mm512_setzero_ps(), _CMP_GE_OQ); }
PF_FN vfloat select(__mmask16 c, vfloat a, vfloat b) { return (vfloat)_mm512_mask_blend_ps(c, (__m512)b, (__m512)a); }
#else
PF_FN vint not_negative(vfloat x) { return x >= 0.0f; }
#endif
PF_FN vlong not_negative(vdouble x) { return x >= 0.0; }
template <class V>
using Mask = decltype(not_negative(V{}));

namespace {

constexpr int64_t kPiece = 512;  // elements of a piece of work
constexpr int64_t kSmall = 1024;  // below this the calling thread does it all

// The bin that was found, on both axes and with what the gradients need.
template <class V>
struct Found {
    V index;                             // of the bin
    V x_below, x_mass, y_below, y_mass;  // masses before the bin, and its own
    V x_inverse, y_inverse;              // 1 / the total of the masses
    V x_unit, y_unit;
    V left_slope, right_slope;  // derivatives of the knots' derivatives by their logits
    V offset;  // from the lower knot of the axis that was searched
    Bin<V> bin;
};

// exp(logit - largest) of each bin. Of a soft clip's logits it leaves 1 / (1 + |logit| pull).
template <int K, class V, class S>
PF_FN void masses(V* logits, const Spline<K, S>& s, V* mass) {
    if (s.pull != 0)
        each<0, K>(s.bins(), [&](int k) PF_LAMBDA {
            const V x = logits[k] * s.scale;
            logits[k] = S(1) / (S(1) + absolute(x) * s.pull);
            mass[k] = x * logits[k];
        });
    else
        each<0, K>(s.bins(), [&](int k) PF_LAMBDA { mass[k] = logits[k] * s.scale; });
    V largest = mass[0];
    each<1, K>(s.bins(), [&](int k) PF_LAMBDA { largest = select(mass[k] > largest, mass[k], largest); });
    each<0, K>(s.bins(), [&](int k) PF_LAMBDA { mass[k] = decay(mass[k] - largest); });
}

// The bin of `at` on the axis that has the masses `mass`, and the same bin of the other axis. reached[k] is where
// lanes have come to bin k.
template <int K, class V, class S>
PF_FN void find(V at, const V* mass, const V* other, const Spline<K, S>& s, const SplineAxis<S>& axis, Mask<V>* reached,
                V& index, V& offset, V& below, V& own, V& inverse, V& other_below, V& other_own, V& other_inverse) {
    Exact<V> sum[K > 0 ? K + 1 : kMostBins + 1];
    sum[0] = {splat<V>(0), splat<V>(0)};
    each<0, K>(s.bins(), [&](int k) PF_LAMBDA {
        sum[k + 1] = sum[k];
        accumulate(sum[k + 1], mass[k]);
    });
    const Search<V> search = search_axis(at, sum[s.bins()], axis);
    V number = splat<V>(0), total = other[0];
    index = below = other_below = number;
    own = mass[0];
    other_own = total;
    offset = offset_from(search, sum[0], number, axis);
    each<1, K>(s.bins(), [&](int k) PF_LAMBDA {
        number += S(1);
        const V next = offset_from(search, sum[k], number, axis);
        reached[k] = not_negative(next);
        index = select(reached[k], number, index);
        offset = select(reached[k], next, offset);
        below = select(reached[k], sum[k].sum + sum[k].rest, below);
        own = select(reached[k], mass[k], own);
        other_below = select(reached[k], total, other_below);
        other_own = select(reached[k], other[k], other_own);
        total += other[k];
    });
    inverse = search.inverse_total;
    other_inverse = S(1) / total;
}

template <int K, class V, class S>
PF_FN Found<V> locate(V at, V* columns, const Spline<K, S>& s, V* x_mass, V* y_mass, Mask<V>* reached) {
    masses(columns, s, x_mass);
    masses(columns + s.bins(), s, y_mass);
    Found<V> f;
    if (s.inverse)
        find(at, y_mass, x_mass, s, s.y, reached, f.index, f.offset, f.y_below, f.y_mass, f.y_inverse, f.x_below,
             f.x_mass, f.x_inverse);
    else
        find(at, x_mass, y_mass, s, s.x, reached, f.index, f.offset, f.x_below, f.x_mass, f.x_inverse, f.y_below,
             f.y_mass, f.y_inverse);
    f.x_unit = s.x.range * s.x.free * f.x_inverse;
    f.y_unit = s.y.range * s.y.free * f.y_inverse;
    f.bin.x = s.x.low + (s.x.range * s.x.minimum * f.index + f.x_unit * f.x_below);
    f.bin.y = s.y.low + (s.y.range * s.y.minimum * f.index + f.y_unit * f.y_below);
    f.bin.width = s.x.range * s.x.minimum + f.x_unit * f.x_mass;
    f.bin.height = s.y.range * s.y.minimum + f.y_unit * f.y_mass;
    f.bin.over_width = S(1) / f.bin.width;
    f.bin.slope = f.bin.height * f.bin.over_width;

    // With linear tails the outer knots have the derivative 1 and no logit.
    const V* logits = columns + 2 * s.bins();
    const int skipped = s.tails() ? 1 : 0;
    V left = logits[0], right = logits[1 - skipped];
    each<1, K>(s.bins(), [&](int k) PF_LAMBDA {
        if (k > skipped) left = select(reached[k], logits[k - skipped], left);
        if (k < s.knots()) right = select(reached[k], logits[k + 1 - skipped], right);
    });
    f.bin.left = knot_slope(left, s.slope, f.left_slope);
    f.bin.right = knot_slope(right, s.slope, f.right_slope);
    if (s.tails()) {
        f.bin.left = select(f.index == S(0), splat<V>(1), f.bin.left);
        f.bin.right = select(f.index == static_cast<S>(s.bins() - 1), splat<V>(1), f.bin.right);
    }
    return f;
}

template <class V, class S>
PF_FN V clamped(V at, const SplineAxis<S>& axis) {
    const S high = axis.low + axis.range;
    at = select(at < axis.low, splat<V>(axis.low), at);
    return select(at > high, splat<V>(high), at);
}

// The spline at the place that was found, from the share of the bin's extent.
template <int K, class V, class S>
PF_FN AtShare<V> evaluate(const Found<V>& f, const Spline<K, S>& s) {
    if (s.inverse) return spline_at(spline_root(within_unit(f.offset / f.bin.height), f.bin), f.bin);
    return spline_at(within_unit(f.offset * f.bin.over_width), f.bin);
}

template <int K, class V, class S>
PF_FN V transform(V at, V* columns, const Spline<K, S>& s, V* x_mass, V* y_mass, V& log) {
    Mask<V> reached[K > 0 ? K : kMostBins];
    const V inside = clamped(at, s.inverse ? s.y : s.x);
    const Found<V> f = locate(inside, columns, s, x_mass, y_mass, reached);
    const AtShare<V> a = evaluate(f, s);
    log = logarithm(a.jacobian);
    if (s.inverse) log = -log;
    const V value = s.inverse ? f.bin.x + a.theta * f.bin.width : f.bin.y + f.bin.height * (a.above * a.over_below);
    if (!s.tails()) return value;
    const auto outside = inside != at;
    log = select(outside & (at == at), splat<V>(0), log);
    return select(outside, at, value);
}

// Logit gradients of an axis in place of the logits: those of the bin's lower knot and extent through the softmax.
template <int K, class V, class S>
PF_FN void axis_gradients(V* logits, const V* mass, const Spline<K, S>& s, const Mask<V>* reached, V knot, V extent,
                          V unit, V inverse, V below, V own) {
    unit = unit * s.scale;
    const V common = (knot * below + extent * own) * inverse;
    // Of a bin before the one that was found, of that, and of one after it.
    const V before = unit * (knot - common), here = unit * (extent - common), after = -unit * common;
    each<0, K>(s.bins(), [&](int k) PF_LAMBDA {
        V g = k == 0 ? here : select(reached[k], here, after);
        if (k + 1 < s.bins()) g = select(reached[k + 1], before, g);
        g = g * mass[k];
        logits[k] = s.pull != 0 ? g * logits[k] * logits[k] : g;
    });
}

// Leaves the gradients of the parameters in `columns`, and returns that of `at`.
template <int K, class V, class S>
PF_FN V differentiate(V at, V dout, V dlog, V* columns, const Spline<K, S>& s, V* x_mass, V* y_mass) {
    Mask<V> reached[K > 0 ? K : kMostBins];
    const V inside = clamped(at, s.inverse ? s.y : s.x);
    const auto outside = (inside != at) & (at == at);
    V out = dout;
    if (s.tails()) {
        out = select(outside, splat<V>(0), dout);
        dlog = select(outside, splat<V>(0), dlog);
    }
    const Found<V> f = locate(inside, columns, s, x_mass, y_mass, reached);
    const BinGradients<V> g = spline_gradients(out, dlog, evaluate(f, s), f.bin, s.inverse);
    axis_gradients(columns, x_mass, s, reached, g.x, g.width, f.x_unit, f.x_inverse, f.x_below, f.x_mass);
    axis_gradients(columns + s.bins(), y_mass, s, reached, g.y, g.height, f.y_unit, f.y_inverse, f.y_below, f.y_mass);
    const V left = g.left * f.left_slope, right = g.right * f.right_slope, zero = splat<V>(0);
    // The knot to the right of bin k is the found bin's right one or its left one, or another's.
    V* slopes = columns + 2 * s.bins();
    const int skipped = s.tails() ? 1 : 0;
    each<0, K == 0 ? 0 : K - 1>(s.knots(), [&](int j) PF_LAMBDA {
        const int k = j - 1 + skipped;  // the knot is the right one of bin k, and the left one of the next
        V g = k < 0 ? zero : k == 0 ? right : select(reached[k], right, zero);
        if (k + 1 < s.bins()) g = k < 0 ? left : select(reached[k + 1], left, g);
        if (k + 2 < s.bins()) g = select(reached[k + 2], zero, g);
        slopes[j] = g;
    });
    return select(outside, s.tails() ? dout : zero, g.at);
}

template <class T>
PF_FN Pack<T> read_some(const T* p, int64_t count) {
    return count < lanes<T>() ? read_part(p, count) : Storage<T>::read(p);
}
template <class T>
PF_FN void write_some(T* p, Pack<T> v, int64_t count) {
    if (count < lanes<T>())
        write_part(p, v, count);
    else
        Storage<T>::write(p, v);
}

template <int K, class T>
void forward(Batch batch, const T* x, const Source<const T*>* sources, T* y, Scalar<Pack<T>>* logdet, bool elementwise,
             const Spline<K, Scalar<Pack<T>>> s, int threads) {
    using V = Pack<T>;
    using S = Scalar<V>;
    constexpr int64_t kStep = lanes<T>();
    constexpr int kBins = K > 0 ? K : kMostBins, kColumns = 3 * kBins + 1 + tile_columns<T>();
    const Pieces pieces(batch, kPiece);
    const int columns[] = {s.bins(), s.bins(), s.knots()};
    SampleSums<V> sums(batch, pieces, logdet);
    parallel_for(pieces.count(), threads, batch.samples * batch.size < kSmall, [&](int64_t k) {
        const Piece piece = pieces[k];
        const int64_t start = piece.first * batch.size + piece.begin, count = (piece.last - piece.first) * piece.count;
        V parameters[kColumns], x_mass[kBins], y_mass[kBins];
        S logs[kPiece + kStep];
        for (int64_t i = 0; i < count; i += kStep) {
            const int64_t here = count - i < kStep ? count - i : kStep, element = start + i;
            prefetch(sources, columns, element + kAhead * kStep, kStep, batch.samples * batch.size);
            read_columns<T>(s, sources, element, here, parameters);
            const V at = read_some(x + element, here);
            V log;
            const V value = transform(at, parameters, s, x_mass, y_mass, log);
            store(logs + i, log);
            write_some(y + element, value, here);
        }
        if (elementwise)
            memcpy(logdet + start, logs, static_cast<std::size_t>(count) * sizeof(S));
        else
            sums.add(k, piece, logs);
    });
    if (!elementwise) sums.finish();
}

template <int K, class T>
void backward(Batch batch, const T* dy, const Scalar<Pack<T>>* dlogdet, const T* x, const Source<const T*>* sources,
              T* dx, const Source<T*>* gradients, bool elementwise, const Spline<K, Scalar<Pack<T>>> s, int threads) {
    using V = Pack<T>;
    using S = Scalar<V>;
    constexpr int64_t kStep = lanes<T>();
    constexpr int kBins = K > 0 ? K : kMostBins, kColumns = 3 * kBins + 1 + tile_columns<T>();
    const Pieces pieces(batch, kPiece);
    const int columns[] = {s.bins(), s.bins(), s.knots()};
    const bool past_caches = streams(batch, columns, gradients);
    parallel_for(pieces.count(), threads, batch.samples * batch.size < kSmall, [&](int64_t k) {
        const Piece piece = pieces[k];
        const int64_t start = piece.first * batch.size + piece.begin, count = (piece.last - piece.first) * piece.count;
        V parameters[kColumns], x_mass[kBins], y_mass[kBins], buffer[kColumns];
        S dlogs[kPiece + kStep];
        if (elementwise)
            memcpy(dlogs, dlogdet + start, static_cast<std::size_t>(count) * sizeof(S));
        else
            repeat(piece, dlogdet, dlogs);
        store(dlogs + count, splat<V>(0));
        for (int64_t i = 0; i < count; i += kStep) {
            const int64_t here = count - i < kStep ? count - i : kStep, element = start + i;
            prefetch(sources, columns, element + kAhead * kStep, kStep, batch.samples * batch.size);
            if (!past_caches) prefetch(gradients, columns, element + kAhead * kStep, kStep, batch.samples * batch.size);
            read_columns<T>(s, sources, element, here, parameters);
            const V at = read_some(x + element, here), dvalue = read_some(dy + element, here);
            const V result = differentiate(at, dvalue, load<V>(dlogs + i), parameters, s, x_mass, y_mass);
            if (past_caches && here == kStep && element % kStep == 0)
                stream_columns<T>(s, gradients, element, parameters, buffer);
            else
                write_columns<T>(s, gradients, element, here, parameters);
            write_some(dx + element, result, here);
        }
        if (past_caches) stream_done();
    });
}

template <int K, class S>
Spline<K, S> spline_of(int bins, int tails, double low, double range, double min_width, double min_height,
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
            inverse != 0,
            nullptr};
}

// Calls f with a spline of a known number of bins, those that papers and libraries have by default, or of any number.
template <class T, class F, class... A>
void with_bins(F f, int bins, int tails, A... numbers) {
    using S = Scalar<Pack<T>>;
    if constexpr (std::is_same_v<T, float> && kLanes >= 8) {
        if (tails && bins == 8) return f(spline_of<8, S>(bins, tails, numbers...));
        if (tails && bins == 10) return f(spline_of<10, S>(bins, tails, numbers...));
        if (tails && bins == 16) return f(spline_of<16, S>(bins, tails, numbers...));
    }
    auto s = spline_of<0, S>(bins, tails, numbers...);
    const Tiles tiles(bins, s.knots(), tile_columns<T>());
    s.tiles = &tiles;
    f(s);
}

}  // namespace

// The strides are from one element's parameters to the next one's. logdet, and dlogdet below, is of the type that is
// computed in: a number a sample, or for elementwise an element.
static const char* rational_quadratic_spline(const void* x, const void* widths, int64_t width_stride,
                                             const void* heights, int64_t height_stride, const void* slopes,
                                             int64_t slope_stride, void* y, void* logdet, int type, int64_t samples,
                                             int64_t size, int elementwise, int bins, int tails, double low,
                                             double range, double min_width, double min_height, double min_slope,
                                             double scale, double pull, double slope_pull, int exponent, int inverse,
                                             int threads) {
    if (bins < 1 || bins > kMostBins) return "too many bins";
    return with_type(type, [&](auto t) -> const char* {
        using T = decltype(t);
        using S = Scalar<Pack<T>>;
        const Source<const T*> sources[] = {{static_cast<const T*>(widths), width_stride},
                                            {static_cast<const T*>(heights), height_stride},
                                            {static_cast<const T*>(slopes), slope_stride}};
        const auto run = [&](const auto& s) {
            forward({samples, size}, static_cast<const T*>(x), sources, static_cast<T*>(y), static_cast<S*>(logdet),
                    elementwise != 0, s, threads);
        };
        with_bins<T>(run, bins, tails, low, range, min_width, min_height, min_slope, scale, pull, slope_pull, exponent,
                     inverse);
        return nullptr;
    });
}
PF_EXPORT(rational_quadratic_spline);

static const char* rational_quadratic_spline_backward(
    const void* dy, const void* dlogdet, const void* x, const void* widths, int64_t width_stride, const void* heights,
    int64_t height_stride, const void* slopes, int64_t slope_stride, void* dx, void* dwidths, int64_t dwidth_stride,
    void* dheights, int64_t dheight_stride, void* dslopes, int64_t dslope_stride, int type, int64_t samples,
    int64_t size, int elementwise, int bins, int tails, double low, double range, double min_width, double min_height,
    double min_slope, double scale, double pull, double slope_pull, int exponent, int inverse, int threads) {
    if (bins < 1 || bins > kMostBins) return "too many bins";
    return with_type(type, [&](auto t) -> const char* {
        using T = decltype(t);
        using S = Scalar<Pack<T>>;
        const Source<const T*> sources[] = {{static_cast<const T*>(widths), width_stride},
                                            {static_cast<const T*>(heights), height_stride},
                                            {static_cast<const T*>(slopes), slope_stride}};
        const Source<T*> gradients[] = {{static_cast<T*>(dwidths), dwidth_stride},
                                        {static_cast<T*>(dheights), dheight_stride},
                                        {static_cast<T*>(dslopes), dslope_stride}};
        const auto run = [&](const auto& s) {
            backward({samples, size}, static_cast<const T*>(dy), static_cast<const S*>(dlogdet),
                     static_cast<const T*>(x), sources, static_cast<T*>(dx), gradients, elementwise != 0, s, threads);
        };
        with_bins<T>(run, bins, tails, low, range, min_width, min_height, min_slope, scale, pull, slope_pull, exponent,
                     inverse);
        return nullptr;
    });
}
PF_EXPORT(rational_quadratic_spline_backward);

}  // namespace PF_NAMESPACE
