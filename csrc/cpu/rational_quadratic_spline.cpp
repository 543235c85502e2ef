// Rational-quadratic splines with the log-determinant, their inverse, and the backward of both, which computes
// everything anew from the inputs. One pass each.
//
// Floor, for an element with P = 3 K - 1 (or 3 K + 1) parameters: forward 4 (P + 2) bytes, backward 4 (2 P + 3), over
// the copy bandwidth. The arithmetic is above it: 2 K exponentials, the compensated sums and the searches are about
// 70 K operations a pack, and turning rows of parameters into packs another 16 K.
//
// An element's parameters lie next to each other, so a pack of elements has them in rows; tiles of as many columns as
// a pack has lanes are transposed in registers. A tile runs over the ends of the three tensors, which saves every
// third transposition.
#include "pieces.h"
#include "threads.h"

#include "../export.h"
#include "../math/rational_quadratic_spline.h"

namespace PF_NAMESPACE {

PF_FN vdouble decay(vdouble x) { return exponential(x); }

namespace {

constexpr int64_t kPiece = 512;  // elements of a piece of work
constexpr int64_t kSmall = 1024;  // below this the calling thread does it all
constexpr int64_t kPastCaches = int64_t{12} << 20;  // bytes of gradients that will not stay in a cache
constexpr int kAhead = 4;  // packs that are fetched before they are read
constexpr int kMostBins = 64;  // shared with pyfastgan/ops/rational_quadratic_spline.py
constexpr int kMostColumns = 3 * kMostBins + 1 + kLanes;

template <class S>
struct Spline {
    int bins, knots;  // knots: how many have a logit of their own, bins - 1 (linear tails) or bins + 1
    SplineAxis<S> x, y;
    KnotSlope<S> slope;
    S scale, pull;  // of the logits of widths and heights: a factor, then the soft clip
    bool inverse;
    bool tails() const { return knots < bins; }
};

// Rows of parameters.
template <class P>
struct Source {
    P data;
    int64_t stride;
};

// The part of a tile's lanes that comes from one source.
struct Segment {
    int source, column, lane, count;
};

struct Tiles {
    int count = 0;
    struct {
        int segments;
        Segment segment[3];
    } tile[kMostColumns];

    Tiles(const int columns[3], int width) {
        int lane = width;
        for (int source = 0; source < 3; ++source)
            for (int column = 0; column < columns[source];) {
                if (lane == width) {
                    lane = 0;
                    tile[count++].segments = 0;
                }
                const int left = columns[source] - column, room = width - lane, n = left < room ? left : room;
                auto& t = tile[count - 1];
                t.segment[t.segments++] = {source, column, lane, n};
                column += n;
                lane += n;
            }
    }
};

// The rows of a tile. What does not change from row to row is found once: rows are short.
template <class T>
PF_FN void read_rows(const Source<const T*>* sources, const Segment* s, int segments, int64_t row, int64_t count,
                     Pack<T>* rows) {
    constexpr int kStep = lanes<T>();
    for (int64_t r = count; r < kStep; ++r) rows[r] = splat<Pack<T>>(0);
#if defined(__AVX512F__)
    if constexpr (std::is_same_v<T, float>) {
        for (int k = 0; k < segments; ++k) {
            const int64_t step = sources[s[k].source].stride;
            const float* p = sources[s[k].source].data + row * step + s[k].column - s[k].lane;
            const auto mask = static_cast<__mmask16>(((1u << s[k].count) - 1u) << s[k].lane);
            if (k == 0 && count == kStep) {
#pragma GCC unroll 16
                for (int r = 0; r < kStep; ++r) rows[r] = (vfloat)_mm512_maskz_loadu_ps(mask, p + r * step);
            } else if (count == kStep) {
#pragma GCC unroll 16
                for (int r = 0; r < kStep; ++r)
                    rows[r] = (vfloat)_mm512_mask_loadu_ps((__m512)rows[r], mask, p + r * step);
            } else {
                for (int r = 0; r < count; ++r)
                    rows[r] = (vfloat)_mm512_mask_loadu_ps(k == 0 ? _mm512_setzero_ps() : (__m512)rows[r], mask,
                                                           p + r * step);
            }
        }
        return;
    }
#endif
    for (int r = 0; r < count; ++r) {
        const auto& source = sources[s->source];
        if (segments == 1 && s->count == kStep) {
            rows[r] = Storage<T>::read(source.data + (row + r) * source.stride + s->column);
            continue;
        }
        T buffer[kStep] = {};
        for (int k = 0; k < segments; ++k) {
            const auto& from = sources[s[k].source];
            memcpy(buffer + s[k].lane, from.data + (row + r) * from.stride + s[k].column,
                   static_cast<std::size_t>(s[k].count) * sizeof(T));
        }
        rows[r] = Storage<T>::read(buffer);
    }
}

template <class T>
PF_FN void write_rows(const Source<T*>* sources, const Segment* s, int segments, int64_t row, int64_t count,
                      const Pack<T>* rows) {
#if defined(__AVX512F__)
    if constexpr (std::is_same_v<T, float>) {
        for (int k = 0; k < segments; ++k) {
            const int64_t step = sources[s[k].source].stride;
            float* p = sources[s[k].source].data + row * step + s[k].column - s[k].lane;
            const auto mask = static_cast<__mmask16>(((1u << s[k].count) - 1u) << s[k].lane);
            for (int r = 0; r < count; ++r) _mm512_mask_storeu_ps(p + r * step, mask, (__m512)rows[r]);
        }
        return;
    }
#endif
    for (int r = 0; r < count; ++r) {
        T buffer[lanes<T>()];
        Storage<T>::write(buffer, rows[r]);
        for (int k = 0; k < segments; ++k) {
            const auto& to = sources[s[k].source];
            memcpy(to.data + (row + r) * to.stride + s[k].column, buffer + s[k].lane,
                   static_cast<std::size_t>(s[k].count) * sizeof(T));
        }
    }
}

// The parameters of `count` elements from `row` on as a pack a column; lanes without an element are zero.
template <class T>
PF_FN void read_columns(const Tiles& tiles, const Source<const T*>* sources, int64_t row, int64_t count,
                        Pack<T>* columns) {
    for (int t = 0; t < tiles.count; ++t) {
        Pack<T>* rows = columns + t * lanes<T>();
        read_rows<T>(sources, tiles.tile[t].segment, tiles.tile[t].segments, row, count, rows);
        transpose(rows);
    }
}

template <class T>
PF_FN void write_columns(const Tiles& tiles, const Source<T*>* sources, int64_t row, int64_t count, Pack<T>* columns) {
    for (int t = 0; t < tiles.count; ++t) {
        Pack<T>* rows = columns + t * lanes<T>();
        transpose(rows);
        write_rows<T>(sources, tiles.tile[t].segment, tiles.tile[t].segments, row, count, rows);
    }
}

// Rows that lie next to each other, past the caches. They are put together in `buffer` first, so that whole lines go
// out.
template <class T>
PF_FN void stream_columns(const Tiles& tiles, const int columns[3], const Source<T*>* sources, int64_t row,
                          Pack<T>* parameters, Pack<T>* buffer) {
    Source<T*> local[3];
    Pack<T>* next = buffer;
    for (int k = 0; k < 3; ++k) {
        local[k] = {reinterpret_cast<T*>(next), columns[k]};
        next += columns[k];
    }
    write_columns<T>(tiles, local, 0, lanes<T>(), parameters);
    next = buffer;
    for (int k = 0; k < 3; ++k) {
        T* to = sources[k].data + row * columns[k];
        for (int j = 0; j < columns[k]; ++j) stream(to + j * lanes<T>(), *next++);
    }
}

template <class T>
bool streams(const Batch& b, const int columns[3], const Source<T*>* sources) {
    if (sizeof(T) != sizeof(Scalar<Pack<T>>)) return false;
    int64_t bytes = 0;
    for (int k = 0; k < 3; ++k) {
        if (sources[k].stride != columns[k] || reinterpret_cast<uintptr_t>(sources[k].data) % sizeof(Pack<T>) != 0)
            return false;
        bytes += b.samples * b.size * columns[k] * static_cast<int64_t>(sizeof(T));
    }
    return bytes >= kPastCaches;
}

// What a later pack reads. Three streams of short rows are more than processors follow by themselves.
template <class T>
PF_FN void prefetch(const Source<const T*>* sources, const int columns[3], int64_t row, int64_t rows) {
    constexpr int kStep = lanes<T>();
    constexpr int64_t kLine = 64;
    if (row + kStep > rows) return;
    for (int k = 0; k < 3; ++k) {
        const char* p = reinterpret_cast<const char*>(sources[k].data + row * sources[k].stride);
        const char* end =
            reinterpret_cast<const char*>(sources[k].data + (row + kStep - 1) * sources[k].stride + columns[k]);
        for (; p < end; p += kLine) __builtin_prefetch(p);
    }
}

// The bin that was found, on both axes and with what the gradients need.
template <class V>
struct Found {
    V index;                             // of the bin
    V x_below, x_mass, y_below, y_mass;  // masses before the bin, and its own
    V x_unit, y_unit, x_inverse, y_inverse;
    V left_slope, right_slope;  // derivatives of the knots' derivatives by their logits
    V offset;  // from the lower knot of the axis that was searched
    Bin<V> bin;
};

// exp(logit - largest) of each bin.
template <class V, class S>
PF_FN void masses(const V* logits, const Spline<S>& s, V* mass) {
    for (int k = 0; k < s.bins; ++k) mass[k] = logits[k] * s.scale;
    if (s.pull != 0)
        for (int k = 0; k < s.bins; ++k) mass[k] = soft_clip(mass[k], s.pull);
    V largest = mass[0];
    for (int k = 1; k < s.bins; ++k) largest = select(mass[k] > largest, mass[k], largest);
    for (int k = 0; k < s.bins; ++k) mass[k] = decay(mass[k] - largest);
}

// The bin of `at` on the axis whose masses are `mass`; the inverse of their total.
template <class V, class S>
PF_FN V find(V at, const V* mass, int bins, const SplineAxis<S>& axis, V& index, V& offset, V& below, V& own) {
    Exact<V> sum[kMostBins + 1];
    sum[0] = {splat<V>(0), splat<V>(0)};
    for (int k = 0; k < bins; ++k) {
        sum[k + 1] = sum[k];
        accumulate(sum[k + 1], mass[k]);
    }
    const Search<V> search = search_axis(at, sum[bins], axis);
    V number = splat<V>(0);
    index = below = number;
    own = mass[0];
    offset = offset_from(search, sum[0], number, axis);
    for (int k = 1; k < bins; ++k) {
        number += S(1);
        const V next = offset_from(search, sum[k], number, axis);
        const auto reached = next >= S(0);
        index = select(reached, number, index);
        offset = select(reached, next, offset);
        below = select(reached, sum[k].sum, below);
        own = select(reached, mass[k], own);
    }
    return search.inverse_total;
}

// The masses of a bin whose index is known; the inverse of their total.
template <class V>
PF_FN V pick(V index, const V* mass, int bins, V& below, V& own) {
    using S = Scalar<V>;
    V sum = mass[0], number = splat<V>(0);
    below = number;
    own = sum;
    for (int k = 1; k < bins; ++k) {
        number += S(1);
        const auto reached = index >= number;
        below = select(reached, sum, below);
        own = select(reached, mass[k], own);
        sum += mass[k];
    }
    return S(1) / sum;
}

template <class V, class S>
PF_FN Found<V> locate(V at, const V* columns, const Spline<S>& s, V* x_mass, V* y_mass) {
    masses(columns, s, x_mass);
    masses(columns + s.bins, s, y_mass);
    Found<V> f;
    if (s.inverse) {
        f.y_inverse = find(at, y_mass, s.bins, s.y, f.index, f.offset, f.y_below, f.y_mass);
        f.x_inverse = pick(f.index, x_mass, s.bins, f.x_below, f.x_mass);
    } else {
        f.x_inverse = find(at, x_mass, s.bins, s.x, f.index, f.offset, f.x_below, f.x_mass);
        f.y_inverse = pick(f.index, y_mass, s.bins, f.y_below, f.y_mass);
    }
    f.x_unit = s.x.range * s.x.free * f.x_inverse;
    f.y_unit = s.y.range * s.y.free * f.y_inverse;
    f.bin.x = s.x.low + (s.x.range * s.x.minimum * f.index + f.x_unit * f.x_below);
    f.bin.y = s.y.low + (s.y.range * s.y.minimum * f.index + f.y_unit * f.y_below);
    f.bin.width = s.x.range * s.x.minimum + f.x_unit * f.x_mass;
    f.bin.height = s.y.range * s.y.minimum + f.y_unit * f.y_mass;

    // With linear tails the outer knots have the derivative 1 and no logit.
    const V* logits = columns + 2 * s.bins;
    V left = logits[0], right = logits[0];
    V number = splat<V>(s.tails() ? 0 : -1);  // of the bin to the left of a knot with a logit
    for (int k = 0; k < s.knots; ++k) {
        right = select(f.index == number, logits[k], right);
        number += S(1);
        left = select(f.index == number, logits[k], left);
    }
    f.bin.left = knot_slope(left, s.slope, f.left_slope);
    f.bin.right = knot_slope(right, s.slope, f.right_slope);
    if (s.tails()) {
        f.bin.left = select(f.index == S(0), splat<V>(1), f.bin.left);
        f.bin.right = select(f.index == static_cast<S>(s.bins - 1), splat<V>(1), f.bin.right);
    }
    return f;
}

template <class V, class S>
PF_FN V clamped(V at, const SplineAxis<S>& axis) {
    const S high = axis.low + axis.range;
    at = select(at < axis.low, splat<V>(axis.low), at);
    return select(at > high, splat<V>(high), at);
}

template <class V, class S>
PF_FN V evaluate(V at, const V* columns, const Spline<S>& s, V* x_mass, V* y_mass, V& log) {
    const V inside = clamped(at, s.inverse ? s.y : s.x);
    const Found<V> f = locate(inside, columns, s, x_mass, y_mass);
    const V share = within_unit(f.offset / (s.inverse ? f.bin.height : f.bin.width));
    const V theta = s.inverse ? spline_root(share, f.bin) : share;
    const AtShare<V> a = spline_at(theta, f.bin);
    log = logarithm(a.jacobian);
    if (s.inverse) log = -log;
    const V value = s.inverse ? f.bin.x + theta * f.bin.width : f.bin.y + f.bin.height * (a.above / a.below);
    if (!s.tails()) return value;
    const auto outside = inside != at;
    log = select(outside & (at == at), splat<V>(0), log);
    return select(outside, at, value);
}

// Logit gradients of an axis in place of the logits: those of the bin's lower knot and extent through the softmax.
template <class V, class S>
PF_FN void axis_gradients(V* logits, const V* mass, const Spline<S>& s, V index, V knot, V extent, V unit, V inverse,
                          V below, V own) {
    unit = unit * s.scale;
    const V common = (knot * below + extent * own) * inverse;
    V number = splat<V>(0);
    for (int k = 0; k < s.bins; ++k) {
        const V direct = select(index > number, knot, select(index == number, extent, splat<V>(0)));
        number += S(1);
        V g = unit * mass[k] * (direct - common);
        if (s.pull != 0) g = g * soft_clip_slope(soft_clip(logits[k] * s.scale, s.pull), s.pull);
        logits[k] = g;
    }
}

// Leaves the gradients of the parameters in `columns`, and returns that of `at`.
template <class V, class S>
PF_FN V differentiate(V at, V dout, V dlog, V* columns, const Spline<S>& s, V* x_mass, V* y_mass) {
    const V inside = clamped(at, s.inverse ? s.y : s.x);
    const auto outside = (inside != at) & (at == at);
    V out = dout;
    if (s.tails()) {
        out = select(outside, splat<V>(0), dout);
        dlog = select(outside, splat<V>(0), dlog);
    }
    const Found<V> f = locate(inside, columns, s, x_mass, y_mass);
    const V share = within_unit(f.offset / (s.inverse ? f.bin.height : f.bin.width));
    const AtShare<V> a = spline_at(s.inverse ? spline_root(share, f.bin) : share, f.bin);
    const BinGradients<V> g = spline_gradients(out, dlog, a, f.bin, s.inverse);
    axis_gradients(columns, x_mass, s, f.index, g.x, g.width, f.x_unit, f.x_inverse, f.x_below, f.x_mass);
    axis_gradients(columns + s.bins, y_mass, s, f.index, g.y, g.height, f.y_unit, f.y_inverse, f.y_below, f.y_mass);
    const V left = g.left * f.left_slope, right = g.right * f.right_slope, zero = splat<V>(0);
    V number = splat<V>(s.tails() ? 0 : -1);
    for (int k = 0; k < s.knots; ++k) {
        const V by_right = select(f.index == number, right, zero);
        number += S(1);
        columns[2 * s.bins + k] = select(f.index == number, left, by_right);
    }
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

template <class T>
void forward(Batch batch, const T* x, const Source<const T*>* sources, T* y, Scalar<Pack<T>>* logdet, bool elementwise,
             const Spline<Scalar<Pack<T>>> s, int threads) {
    using V = Pack<T>;
    using S = Scalar<V>;
    constexpr int64_t kStep = lanes<T>();
    const Pieces pieces(batch, kPiece);
    const int columns[] = {s.bins, s.bins, s.knots};
    const Tiles tiles(columns, kStep);
    SampleSums<V> sums(batch, pieces, logdet);
    parallel_for(pieces.count(), threads, batch.samples * batch.size < kSmall, [&](int64_t k) {
        const Piece piece = pieces[k];
        const int64_t start = piece.first * batch.size + piece.begin, count = (piece.last - piece.first) * piece.count;
        V parameters[kMostColumns], x_mass[kMostBins], y_mass[kMostBins];
        S logs[kPiece + kStep];
        for (int64_t i = 0; i < count; i += kStep) {
            const int64_t here = count - i < kStep ? count - i : kStep, element = start + i;
            prefetch<T>(sources, columns, element + kAhead * kStep, batch.samples * batch.size);
            read_columns<T>(tiles, sources, element, here, parameters);
            const V at = read_some(x + element, here);
            V log;
            const V value = evaluate(at, parameters, s, x_mass, y_mass, log);
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

template <class T>
void backward(Batch batch, const T* dy, const Scalar<Pack<T>>* dlogdet, const T* x, const Source<const T*>* sources,
              T* dx, const Source<T*>* gradients, bool elementwise, const Spline<Scalar<Pack<T>>> s, int threads) {
    using V = Pack<T>;
    using S = Scalar<V>;
    constexpr int64_t kStep = lanes<T>();
    const Pieces pieces(batch, kPiece);
    const int columns[] = {s.bins, s.bins, s.knots};
    const Tiles tiles(columns, kStep);
    const bool past_caches = streams(batch, columns, gradients);
    parallel_for(pieces.count(), threads, batch.samples * batch.size < kSmall, [&](int64_t k) {
        const Piece piece = pieces[k];
        const int64_t start = piece.first * batch.size + piece.begin, count = (piece.last - piece.first) * piece.count;
        V parameters[kMostColumns], x_mass[kMostBins], y_mass[kMostBins], buffer[kMostColumns];
        S dlogs[kPiece + kStep];
        if (elementwise)
            memcpy(dlogs, dlogdet + start, static_cast<std::size_t>(count) * sizeof(S));
        else
            repeat(piece, dlogdet, dlogs);
        store(dlogs + count, splat<V>(0));
        for (int64_t i = 0; i < count; i += kStep) {
            const int64_t here = count - i < kStep ? count - i : kStep, element = start + i;
            prefetch<T>(sources, columns, element + kAhead * kStep, batch.samples * batch.size);
            read_columns<T>(tiles, sources, element, here, parameters);
            const V at = read_some(x + element, here), dvalue = read_some(dy + element, here);
            const V result = differentiate(at, dvalue, load<V>(dlogs + i), parameters, s, x_mass, y_mass);
            if (past_caches && here == kStep && element % kStep == 0)
                stream_columns<T>(tiles, columns, gradients, element, parameters, buffer);
            else
                write_columns<T>(tiles, gradients, element, here, parameters);
            write_some(dx + element, result, here);
        }
        if (past_caches) stream_done();
    });
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
        forward<T>({samples, size}, static_cast<const T*>(x), sources, static_cast<T*>(y), static_cast<S*>(logdet),
                   elementwise != 0,
                   spline_of<S>(bins, tails, low, range, min_width, min_height, min_slope, scale, pull, slope_pull,
                                exponent, inverse),
                   threads);
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
        backward<T>({samples, size}, static_cast<const T*>(dy), static_cast<const S*>(dlogdet),
                    static_cast<const T*>(x), sources, static_cast<T*>(dx), gradients, elementwise != 0,
                    spline_of<S>(bins, tails, low, range, min_width, min_height, min_slope, scale, pull, slope_pull,
                                 exponent, inverse),
                    threads);
        return nullptr;
    });
}
PF_EXPORT(rational_quadratic_spline_backward);

}  // namespace PF_NAMESPACE
