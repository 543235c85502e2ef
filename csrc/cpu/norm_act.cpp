// y = act(weight (x - mean) / sqrt(var + eps) + bias), its backward and the backward of that; the formulas are derived
// in pyfastgan/ops/norm_act.py.
//
// Floor, n elements of s bytes: forward 2 n s, backward 3 n s, backward of the backward 5 n s over the copy bandwidth.
// Each has two phases over its inputs, sums and then results, so what shares a mean is taken through both while it is
// in a cache: a channel of contiguous batch norm, a group of a sample, a sample in channels-last. Only channels-last
// batch norm reads everything twice.
//
// A line is what has one mean, one weight and one bias: a row of contiguous memory, or a column of channels-last
// memory, of which a pack holds as many as it has lanes. So one loop serves both: it steps through a row pack by
// pack, or down a pack of columns.
//
// Sums are float32 packs over at most kChunk steps and float64 beyond (float64 for float64), made from fixed pieces in
// a fixed order.
#include "types.h"
#include "threads.h"

#include <memory>

#include "../export.h"
#include "../math/activation.h"

namespace PF_NAMESPACE {
namespace {

constexpr int64_t kPiece = 32768;  // elements of a piece of work
constexpr int64_t kChunk = 512;  // steps that a float32 sum goes on for
constexpr int64_t kNear = 2048;  // elements of a block of columns that is passed through column by column
constexpr int64_t kEstimate = 16;  // a first estimate of a mean is that of every such part
constexpr int64_t kPastCaches = int64_t{12} << 20;  // bytes of an output that will not stay in a cache
constexpr int64_t kSmall = 32768;  // below this the calling thread does it all

enum Norm { kBatch, kGroup, kAffine };  // shared with pyfastgan/ops/norm_act.py

struct Shape {
    int64_t samples, channels, space, groups;
    int norm;
    bool last;  // channels innermost
    int64_t size() const { return samples * channels * space; }
    int64_t group_channels() const { return channels / groups; }
};

// The loops' formulas: kIn tensors in, kCoef numbers a line, kOut tensors out, kSums sums a line.

// in: x. coef: an estimate of the mean.
template <class T>
struct Statistics {
    using V = Pack<T>;
    static constexpr int kIn = 1, kCoef = 1, kOut = 0, kSums = 2;
    static PF_FN void apply(const V* in, const V* k, Scalar<V>, V*, V* sums) {
        const V d = in[0] - k[0];
        sums[0] += d;
        sums[1] += d * d;
    }
};

// Every line's first three coefficients: with x less the mean, z = (x - mean) scale + shift.
enum { kMean, kScale, kShift };

// in: x. out: y.
template <class T, int A>
struct Forward {
    using V = Pack<T>;
    static constexpr int kIn = 1, kCoef = 3, kOut = 1, kSums = 0;
    static PF_FN void apply(const V* in, const V* k, Scalar<V> slope, V* out, V*) {
        out[0] = activate<A>((in[0] - k[kMean]) * k[kScale] + k[kShift], slope);
    }
};

// Numbers of lines that share a mean.
template <class S>
struct Lines {
    int64_t count;
    double values;  // that the mean is of; 0 where there is no mean
    double rstd;
    const S *weight, *p, *q;  // of each line; weight may be null
    double weight_of(int64_t l) const { return weight ? static_cast<double>(weight[l]) : 1.0; }
};

// in: x, dy.
template <class T, int A>
struct Backward {
    using V = Pack<T>;
    using S = Scalar<V>;
    static constexpr int kIn = 2, kOut = 1, kSums = 2, kCoef = 5;
    enum { kConstant = 3, kOfX };

    static PF_FN V scaled(const V* in, V x, const V* k, S slope) {
        return in[1] * activate_slope<A>(x * k[kScale] + k[kShift], slope);
    }
    struct Sums {
        static constexpr int kIn = 2, kCoef = 3, kOut = 0, kSums = 2;
        static PF_FN void apply(const V* in, const V* k, S slope, V*, V* sums) {
            const V x = in[0] - k[kMean], dz = scaled(in, x, k, slope);
            sums[0] += dz;
            sums[1] += dz * x;
        }
    };
    struct Results {
        static constexpr int kIn = 2, kCoef = 5, kOut = 1, kSums = 0;
        static PF_FN void apply(const V* in, const V* k, S slope, V* out, V*) {
            const V x = in[0] - k[kMean], dz = scaled(in, x, k, slope);
            out[0] = k[kScale] * dz + k[kOfX] * x + k[kConstant];
        }
    };

    // From the sums of each line to the coefficients of Results and the gradients; `pitch` apart.
    static void solve(const Lines<S>& lines, const double* sums, S* coef, int64_t pitch, S* dweight, S* dbias) {
        const double r = lines.rstd;
        double u = 0, a = 0;
        for (int64_t l = 0; l < lines.count; ++l) {
            const double w = lines.weight_of(l);
            u += w * sums[l];
            a += w * sums[pitch + l] * r;
            dbias[l] = static_cast<S>(sums[l]);
            dweight[l] = static_cast<S>(sums[pitch + l] * r);
        }
        const double share = lines.values > 0 ? 1 / lines.values : 0;
        const S constant = static_cast<S>(-r * u * share), of_x = static_cast<S>(-r * r * a * share);
        for (int64_t l = 0; l < lines.count; ++l) {
            coef[kConstant * pitch + l] = constant;
            coef[kOfX * pitch + l] = of_x;
        }
    }
};

// in: x, dy, v. out: grad_dy, grad_x.
template <class T, int A>
struct BackwardBackward {
    using V = Pack<T>;
    using S = Scalar<V>;
    static constexpr int kIn = 3, kOut = 2, kSums = piecewise_linear(A) ? 5 : 10, kCoef = 8;
    enum { kTangentOfX = 3, kTangent, kOfV, kOfX, kConstant };

    struct Sums {
        static constexpr int kIn = 3, kCoef = 3, kOut = 0, kSums = piecewise_linear(A) ? 5 : 10;
        static PF_FN void apply(const V* in, const V* k, S slope, V*, V* sums) {
            const V x = in[0] - k[kMean], z = x * k[kScale] + k[kShift], v = in[2];
            const V dz = in[1] * activate_slope<A>(z, slope);
            sums[0] += dz;
            sums[1] += dz * x;
            sums[2] += v;
            sums[3] += v * x;
            sums[4] += dz * v;
            if constexpr (!piecewise_linear(A)) {
                const V c = in[1] * activate_curvature<A>(z), cx = c * x;
                sums[5] += c;
                sums[6] += cx;
                sums[7] += cx * x;
                sums[8] += c * v;
                sums[9] += cx * v;
            }
        }
    };
    struct Results {
        static constexpr int kIn = 3, kCoef = 8, kOut = 2, kSums = 0;
        static PF_FN void apply(const V* in, const V* k, S slope, V* out, V*) {
            const V x = in[0] - k[kMean], z = x * k[kScale] + k[kShift], v = in[2];
            const V first = activate_slope<A>(z, slope);
            const V t = k[kScale] * v + k[kTangentOfX] * x + k[kTangent];
            out[0] = first * t;
            V dx = k[kTangentOfX] * (in[1] * first) + k[kOfV] * v + k[kOfX] * x + k[kConstant];
            if constexpr (!piecewise_linear(A)) dx += k[kScale] * (in[1] * activate_curvature<A>(z) * t);
            out[1] = dx;
        }
    };

    static void solve(const Lines<S>& lines, const double* sums, S* coef, int64_t pitch, S* grad_weight, S* grad_bias) {
        const double r = lines.rstd, share = lines.values > 0 ? 1 / lines.values : 0;
        const auto sum = [&](int k, int64_t l) { return sums[k * pitch + l]; };
        double u = 0, a = 0, vm = 0, b = 0, uv = 0;
        for (int64_t l = 0; l < lines.count; ++l) {
            const double w = lines.weight_of(l) * share;
            u += w * sum(0, l);
            a += w * sum(1, l) * r;
            vm += share * sum(2, l);
            b += share * sum(3, l) * r;
            uv += w * sum(4, l);
        }
        double e = 0, ex = 0;  // the means of e and of e xhat, e being what reaches xhat
        for (int64_t l = 0; l < lines.count; ++l) {
            const double w = lines.weight_of(l), p = lines.p[l];
            const double of_v = w * r, of_xhat = p - w * r * b, constant = static_cast<double>(lines.q[l]) - w * r * vm;
            double s = 0, sx = 0;
            if constexpr (!piecewise_linear(A)) {
                s = of_v * sum(8, l) + of_xhat * sum(6, l) * r + constant * sum(5, l);
                sx = of_v * sum(9, l) * r + of_xhat * sum(7, l) * r * r + constant * sum(6, l) * r;
            }
            grad_weight[l] = static_cast<S>(r * (sum(4, l) - vm * sum(0, l) - b * sum(1, l) * r) + sx);
            grad_bias[l] = static_cast<S>(s);
            e += share * (w * s + p * sum(0, l));
            ex += share * (w * sx + p * sum(1, l) * r);
            coef[kTangentOfX * pitch + l] = static_cast<S>(of_xhat * r);
            coef[kTangent * pitch + l] = static_cast<S>(constant);
        }
        e -= r * (b * u + a * vm);
        ex -= 2 * r * a * b;
        const double spread = uv - u * vm - a * b;
        for (int64_t l = 0; l < lines.count; ++l) {
            coef[kOfV * pitch + l] = static_cast<S>(-r * r * a);
            coef[kOfX * pitch + l] = static_cast<S>(-r * r * (ex + r * spread));
            coef[kConstant * pitch + l] = static_cast<S>(-r * e);
        }
    }
};

template <class T, int kIn, int kOut>
struct Tensors {
    const T* in[kIn];
    T* out[kOut > 0 ? kOut : 1];
    bool past_caches;  // outputs are stored around the caches, where that is possible
};
template <class T, class F>
using TensorsOf = Tensors<T, F::kIn, F::kOut>;

// `count` packs, `stride` elements apart, of lines with these coefficients. `sums` is added to. Not inlined: it is the
// loop of everything below.
template <class T, class F, class V = Pack<T>>
__attribute__((noinline)) void run(const TensorsOf<T, F>& tensors, int64_t at, int64_t stride, int64_t count,
                                   const V* coef, Scalar<V> slope, V* sums) {
    const TensorsOf<T, F> t = tensors;  // behind a reference it would be read again after every store
    V k[F::kCoef], total[F::kSums + 1], other[F::kSums + 1];
    for (int j = 0; j < F::kCoef; ++j) k[j] = coef[j];
    for (int j = 0; j < F::kSums; ++j) {
        total[j] = sums[j];
        other[j] = splat<V>(0);
    }
    bool past_caches = t.past_caches && sizeof(T) == sizeof(Scalar<V>) && stride % lanes<T>() == 0;
    for (int j = 0; j < F::kOut; ++j)
        past_caches = past_caches && reinterpret_cast<uintptr_t>(t.out[j] + at) % sizeof(V) == 0;
    const auto step = [&](int64_t place, V* into) {
        V in[F::kIn], out[F::kOut + 1];
        for (int j = 0; j < F::kIn; ++j) in[j] = Storage<T>::read(t.in[j] + place);
        F::apply(in, k, slope, out, into);
        for (int j = 0; j < F::kOut; ++j) {
            if (past_caches)
                stream(t.out[j] + place, out[j]);
            else
                Storage<T>::write(t.out[j] + place, out[j]);
        }
    };
    int64_t i = 0;
    for (; i + 2 <= count; i += 2, at += 2 * stride) {
        step(at, total);
        step(at + stride, other);
    }
    if (i < count) step(at, total);
    for (int j = 0; j < F::kSums; ++j) sums[j] = total[j] + other[j];
}

// Fewer elements than a pack holds. What is missing must not count: an input is then 0, or the estimate of the mean.
template <class T, class F, class V = Pack<T>>
void run_part(const TensorsOf<T, F>& tensors, int64_t at, int64_t count, const V* coef, Scalar<V> slope, V* sums) {
    T in[F::kIn][lanes<T>()], out[F::kOut + 1][lanes<T>()];
    TensorsOf<T, F> t{};
    for (int j = 0; j < F::kIn; ++j) {
        V fill = splat<V>(0);
        if constexpr (std::is_same_v<F, Statistics<T>>) fill = coef[0];
        Storage<T>::write(in[j], fill);
        memcpy(in[j], tensors.in[j] + at, static_cast<std::size_t>(count) * sizeof(T));
        t.in[j] = in[j];
    }
    for (int j = 0; j < F::kOut; ++j) t.out[j] = out[j];
    run<T, F>(t, 0, 0, 1, coef, slope, sums);
    for (int j = 0; j < F::kOut; ++j) memcpy(tensors.out[j] + at, out[j], static_cast<std::size_t>(count) * sizeof(T));
}

// n elements of a row.
template <class T, class F, class V = Pack<T>>
void run_row(const TensorsOf<T, F>& t, int64_t at, int64_t n, const V* coef, Scalar<V> slope, V* sums) {
    constexpr int64_t kStep = lanes<T>();
    const int64_t left = n % kStep;
    if (n >= kStep) run<T, F>(t, at, kStep, n / kStep, coef, slope, sums);
    if (left == 0) return;
    if (F::kSums == 0 && n >= kStep)
        run<T, F>(t, at + n - kStep, kStep, 1, coef, slope, sums);  // some results twice, the same ones
    else
        run_part<T, F>(t, at + n - left, left, coef, slope, sums);
}

template <class V>
PF_FN double sum_of_lanes(V v) {
    constexpr int kStep = sizeof(V) / sizeof(Scalar<V>);
    double sum = 0;
    for (int k = 0; k < kStep; ++k) sum += v[k];
    return sum;
}

// The sums of one line that is `rows` rows of n elements, `stride` apart.
template <class T, class F, class V = Pack<T>>
void sum_rows(const TensorsOf<T, F>& t, int64_t at, int64_t rows, int64_t stride, int64_t n, const V* coef,
              Scalar<V> slope, double* sums, int64_t pitch) {
    constexpr int64_t kMost = kChunk * lanes<T>();
    V total[F::kSums] = {};
    int64_t held = 0;
    for (int k = 0; k < F::kSums; ++k) sums[k * pitch] = 0;
    const auto flush = [&] {
        for (int k = 0; k < F::kSums; ++k) {
            sums[k * pitch] += sum_of_lanes(total[k]);
            total[k] = splat<V>(0);
        }
        held = 0;
    };
    for (int64_t row = 0; row < rows; ++row)
        for (int64_t k = 0; k < n; k += kMost) {
            const int64_t count = n - k < kMost ? n - k : kMost;
            if (held + count > kMost) flush();
            run_row<T, F>(t, at + row * stride + k, count, coef, slope, total);
            held += count;
        }
    flush();
}

template <class T, class F, class V = Pack<T>>
void results_of_rows(const TensorsOf<T, F>& t, int64_t at, int64_t rows, int64_t stride, int64_t n, const V* coef,
                     Scalar<V> slope) {
    V none[1];
    for (int64_t row = 0; row < rows; ++row) run_row<T, F>(t, at + row * stride, n, coef, slope, none);
    if (t.past_caches) stream_done();
}

// Columns of packs: where the channels are no whole number of packs, the last one overlaps the one before.
template <class T>
struct Columns {
    static constexpr int64_t kStep = lanes<T>();
    int64_t channels;
    int64_t count() const { return (channels + kStep - 1) / kStep; }
    int64_t width() const { return count() * kStep; }
    int64_t start(int64_t column) const {
        const int64_t c = column * kStep;
        return channels < kStep || c + kStep <= channels ? c : channels - kStep;
    }
    // Where a channel's sum stands: a column has its own places.
    int64_t place(int64_t c) const {
        const int64_t column = c / kStep;
        return column * kStep + c - start(column);
    }
};

// Adds to `sums`, or makes results of, `rows` rows of channels-last memory. coef has numbers a channel, sums places.
template <class T, class F, class S = Scalar<Pack<T>>>
void run_columns(const TensorsOf<T, F>& t, int64_t at, int64_t rows, int64_t channels, const S* coef, int64_t pitch,
                 S slope, S* sums) {
    using V = Pack<T>;
    const Columns<T> columns{channels};
    int64_t near = kNear / channels;
    near = near < 16 ? 16 : near;
    for (int64_t begin = 0; begin < rows; begin += near) {
        const int64_t count = rows - begin < near ? rows - begin : near;
        for (int64_t column = 0; column < columns.count(); ++column) {
            const int64_t c = columns.start(column);
            V k[F::kCoef], total[F::kSums + 1];
            for (int j = 0; j < F::kCoef; ++j) k[j] = load<V>(coef + j * pitch + c);
            for (int j = 0; j < F::kSums; ++j) total[j] = load<V>(sums + j * columns.width() + column * columns.kStep);
            const int64_t first = at + begin * channels + c;
            if (channels < columns.kStep)
                for (int64_t row = 0; row < count; ++row)
                    run_part<T, F>(t, first + row * channels, channels, k, slope, total);
            else
                run<T, F>(t, first, channels, count, k, slope, total);
            for (int j = 0; j < F::kSums; ++j) store(sums + j * columns.width() + column * columns.kStep, total[j]);
        }
    }
}

// The same in float64 from zero on, a number a channel, for any number of rows.
template <class T, class F, class S = Scalar<Pack<T>>>
void sum_columns(const TensorsOf<T, F>& t, int64_t at, int64_t rows, int64_t channels, const S* coef, int64_t pitch,
                 S slope, S* held, double* sums) {
    const Columns<T> columns{channels};
    for (int64_t k = 0; k < F::kSums * pitch; ++k) sums[k] = 0;
    for (int64_t begin = 0; begin < rows; begin += kChunk) {
        const int64_t count = rows - begin < kChunk ? rows - begin : kChunk;
        for (int64_t k = 0; k < F::kSums * columns.width(); ++k) held[k] = 0;
        run_columns<T, F>(t, at + begin * channels, count, channels, coef, pitch, slope, held);
        for (int k = 0; k < F::kSums; ++k)
            for (int64_t c = 0; c < channels; ++c) sums[k * pitch + c] += held[k * columns.width() + columns.place(c)];
    }
}

// Arrays of one allocation.
class Scratch {
public:
    Scratch(int64_t doubles, int64_t scalars, std::size_t scalar)
        : memory_(new double[doubles + (scalars * static_cast<int64_t>(scalar) + 7) / 8]), used_(memory_.get()) {}
    template <class S>
    S* take(int64_t n) {
        S* p = reinterpret_cast<S*>(used_);
        used_ += (n * static_cast<int64_t>(sizeof(S)) + 7) / 8;
        return p;
    }

private:
    std::unique_ptr<double[]> memory_;
    double* used_;
};

template <class S>
struct Parameters {
    const S *weight, *bias;  // of a channel, may be null
    double eps;
    S slope;
    S weight_of(int64_t c) const { return weight ? weight[c] : S(1); }
    S bias_of(int64_t c) const { return bias ? bias[c] : S(0); }
    double rstd(double var) const { return 1 / ::sqrt(var + eps); }
    // The first three coefficients of `count` lines from channel c on.
    void fill(int64_t c, int64_t count, double mean, double rstd, S* coef, int64_t pitch) const {
        for (int64_t l = 0; l < count; ++l) {
            coef[kMean * pitch + l] = static_cast<S>(mean);
            coef[kScale * pitch + l] = static_cast<S>(weight_of(c + l) * rstd);
            coef[kShift * pitch + l] = bias_of(c + l);
        }
    }
};

// Lines in contiguous memory that share a mean.
struct Unit {
    int64_t channel, lines, at, rows, stride;
    Unit(const Shape& s, int64_t unit) {
        const bool group = s.norm == kGroup;
        lines = group ? s.group_channels() : 1;
        channel = group ? unit % s.groups * lines : unit;
        at = (group ? unit * lines : unit) * s.space;
        rows = group ? 1 : s.samples;
        stride = s.channels * s.space;
    }
    static int64_t count(const Shape& s) { return s.norm == kGroup ? s.samples * s.groups : s.channels; }
};

// Values that share a mean.
double values(const Shape& s) {
    if (s.norm == kAffine) return 0;
    return static_cast<double>(s.norm == kBatch ? s.samples : s.group_channels()) * static_cast<double>(s.space);
}

// mean and var from sums of d = x - estimate and of d^2. The estimate is the mean of a 16th of the values or more, so
// that the square of its error is at most 15 var: the difference below keeps its digits.
template <class S>
PF_FN void finish(double estimate, double d, double square, double n, S* mean, S* var) {
    const double shift = d / n, spread = square / n - shift * shift;
    *mean = static_cast<S>(estimate + shift);
    *var = static_cast<S>(spread < 0 ? 0 : spread);  // NaN stays
}

template <class T>
PF_FN Scalar<Pack<T>> rounded(double x) {
    return to_scalar(from_scalar<T>(static_cast<Scalar<Pack<T>>>(x)));
}

template <class T, int A, class S = Scalar<Pack<T>>>
void forward_rows(const Shape& shape, const Tensors<T, 1, 1>& t, const Parameters<S>& given, S* mean, S* var,
                  int threads) {
    using V = Pack<T>;
    using Stats = Statistics<T>;
    const TensorsOf<T, Stats> x{{t.in[0]}, {}, false};
    parallel_for(Unit::count(shape), threads, shape.size() < kSmall, [&](int64_t index) {
        const Unit unit(shape, index);
        double rstd = 1, middle = 0;
        if (shape.norm != kAffine) {
            // The lines of a group follow each other in memory.
            const int64_t n = unit.lines * shape.space;
            const int64_t rows = shape.norm == kBatch ? (unit.rows + kEstimate - 1) / kEstimate : 1;
            const int64_t part = shape.norm == kBatch ? n : (n + kEstimate - 1) / kEstimate;
            double sums[2];
            V estimate = splat<V>(0);
            sum_rows<T, Stats>(x, unit.at, rows, unit.stride, part, &estimate, S(0), sums, 1);
            estimate = splat<V>(rounded<T>(sums[0] / static_cast<double>(rows * part)));
            sum_rows<T, Stats>(x, unit.at, unit.rows, unit.stride, n, &estimate, S(0), sums, 1);
            finish(estimate[0], sums[0], sums[1], values(shape), mean + index, var + index);
            middle = mean[index];
            rstd = given.rstd(var[index]);
        }
        for (int64_t l = 0; l < unit.lines; ++l) {
            S coef[3];
            given.fill(unit.channel + l, 1, middle, rstd, coef, 1);
            const V k[3] = {splat<V>(coef[0]), splat<V>(coef[1]), splat<V>(coef[2])};
            results_of_rows<T, Forward<T, A>>(t, unit.at + l * shape.space, unit.rows, unit.stride, shape.space, k,
                                              given.slope);
        }
    });
}

// Samples in channels-last memory, several in a piece where they are small.
template <class T, int A, class S = Scalar<Pack<T>>>
void forward_samples(const Shape& shape, const Tensors<T, 1, 1>& t, const Parameters<S>& given, S* mean, S* var,
                     int threads) {
    using Stats = Statistics<T>;
    const TensorsOf<T, Stats> x{{t.in[0]}, {}, false};
    const int64_t channels = shape.channels, lines = shape.group_channels(), each = channels * shape.space;
    const int64_t width = Columns<T>{channels}.width();
    const int64_t per_piece = (kPiece + each - 1) / each;
    parallel_for((shape.samples + per_piece - 1) / per_piece, threads, shape.size() < kSmall, [&](int64_t piece) {
        Scratch scratch(2 * width, 5 * width, sizeof(S));
        double* sums = scratch.take<double>(2 * width);
        S *coef = scratch.take<S>(3 * width), *held = scratch.take<S>(2 * width);
        const int64_t end = (piece + 1) * per_piece < shape.samples ? (piece + 1) * per_piece : shape.samples;
        for (int64_t n = piece * per_piece; n < end; ++n) {
            const int64_t rows = (shape.space + kEstimate - 1) / kEstimate;
            for (int64_t c = 0; c < width; ++c) coef[c] = 0;
            sum_columns<T, Stats>(x, n * each, rows, channels, coef, width, S(0), held, sums);
            for (int64_t c = 0; c < channels; c += lines) {
                double sum = 0;
                for (int64_t l = 0; l < lines; ++l) sum += sums[c + l];
                const S estimate = rounded<T>(sum / static_cast<double>(rows * lines));
                for (int64_t l = 0; l < lines; ++l) coef[c + l] = estimate;
            }
            sum_columns<T, Stats>(x, n * each, shape.space, channels, coef, width, S(0), held, sums);
            for (int64_t c = 0; c < channels; c += lines) {
                double d = 0, square = 0;
                for (int64_t l = 0; l < lines; ++l) {
                    d += sums[c + l];
                    square += sums[width + c + l];
                }
                const int64_t group = n * shape.groups + c / lines;
                finish(coef[c], d, square, values(shape), mean + group, var + group);
                given.fill(c, lines, mean[group], given.rstd(var[group]), coef + c, width);
            }
            run_columns<T, Forward<T, A>>(t, n * each, shape.space, channels, coef, width, given.slope, held);
        }
        if (t.past_caches) stream_done();
    });
}

// Blocks of rows of channels-last memory.
struct Blocks {
    int64_t rows, per_block;
    explicit Blocks(const Shape& s) : rows(s.samples * s.space), per_block((kPiece + s.channels - 1) / s.channels) {}
    int64_t count() const { return (rows + per_block - 1) / per_block; }
    int64_t first(int64_t block) const { return block * per_block; }
    int64_t size(int64_t block) const { return rows - first(block) < per_block ? rows - first(block) : per_block; }
};

template <class T, int A, class S = Scalar<Pack<T>>>
void forward_blocks(const Shape& shape, const Tensors<T, 1, 1>& t, const Parameters<S>& given, S* mean, S* var,
                    int threads) {
    using Stats = Statistics<T>;
    const TensorsOf<T, Stats> x{{t.in[0]}, {}, false};
    const int64_t channels = shape.channels, width = Columns<T>{channels}.width();
    const Blocks blocks(shape);
    const bool small = shape.size() < kSmall;
    Scratch coefficients(0, 3 * width, sizeof(S));
    S* coef = coefficients.take<S>(3 * width);
    if (shape.norm == kAffine) {
        given.fill(0, channels, 0, 1, coef, width);
    } else {
        // Each block's mean and sum of squares about it, then those of all.
        const std::unique_ptr<double[]> partial(new double[2 * blocks.count() * channels]);
        parallel_for(blocks.count(), threads, small, [&](int64_t block) {
            Scratch scratch(2 * width, 3 * width, sizeof(S));
            double* sums = scratch.take<double>(2 * width);
            S *estimate = scratch.take<S>(width), *held = scratch.take<S>(2 * width);
            const int64_t at = blocks.first(block) * channels, n = blocks.size(block);
            const int64_t rows = (n + kEstimate - 1) / kEstimate;
            for (int64_t c = 0; c < width; ++c) estimate[c] = 0;
            sum_columns<T, Stats>(x, at, rows, channels, estimate, width, S(0), held, sums);
            for (int64_t c = 0; c < channels; ++c) estimate[c] = rounded<T>(sums[c] / static_cast<double>(rows));
            sum_columns<T, Stats>(x, at, n, channels, estimate, width, S(0), held, sums);
            double* to = partial.get() + 2 * block * channels;
            for (int64_t c = 0; c < channels; ++c) {
                to[c] = estimate[c] + sums[c] / static_cast<double>(n);
                to[channels + c] = sums[width + c] - sums[c] * sums[c] / static_cast<double>(n);
            }
        });
        const std::unique_ptr<double[]> all(new double[2 * channels]());
        double *middle = all.get(), *square = middle + channels;
        for (int64_t block = 0; block < blocks.count(); ++block) {
            const double share = static_cast<double>(blocks.size(block)) / static_cast<double>(blocks.rows);
            for (int64_t c = 0; c < channels; ++c) middle[c] += share * partial[2 * block * channels + c];
        }
        for (int64_t block = 0; block < blocks.count(); ++block) {
            const double n = static_cast<double>(blocks.size(block));
            const double* from = partial.get() + 2 * block * channels;
            for (int64_t c = 0; c < channels; ++c) {
                const double d = from[c] - middle[c];
                square[c] += from[channels + c] + n * d * d;
            }
        }
        for (int64_t c = 0; c < channels; ++c) {
            finish(middle[c], 0, square[c], values(shape), mean + c, var + c);
            given.fill(c, 1, mean[c], given.rstd(var[c]), coef + c, width);
        }
    }
    parallel_for(blocks.count(), threads, small, [&](int64_t block) {
        run_columns<T, Forward<T, A>>(t, blocks.first(block) * channels, blocks.size(block), channels, coef, width,
                                      given.slope, static_cast<S*>(nullptr));
        if (t.past_caches) stream_done();
    });
}

// What both derivatives take and give beside their tensors. p and q are the cotangents of dweight and dbias.
template <class S>
struct Derivative {
    Parameters<S> given;
    const S *mean, *var, *p, *q;
    S *dweight, *dbias;
    double rstd(int64_t group) const { return mean ? given.rstd(var[group]) : 1; }
    double middle(int64_t group) const { return mean ? mean[group] : 0; }
    Lines<S> lines(const Shape& s, int64_t channel, int64_t count, int64_t group) const {
        const auto from = [&](const S* v) { return v ? v + channel : nullptr; };
        return {count, values(s), rstd(group), from(given.weight), from(p), from(q)};
    }
};

// out[c] = the sum of parts[:, c].
template <class S>
void add_up(const S* parts, int64_t count, int64_t channels, S* out) {
    const std::unique_ptr<double[]> total(new double[channels]());
    for (int64_t k = 0; k < count; ++k)
        for (int64_t c = 0; c < channels; ++c) total[c] += parts[k * channels + c];
    for (int64_t c = 0; c < channels; ++c) out[c] = static_cast<S>(total[c]);
}

template <class T, class D, class S = Scalar<Pack<T>>>
void derivative_rows(const Shape& shape, const Tensors<T, D::kIn, D::kOut>& t, const Derivative<S>& d, int threads) {
    using V = Pack<T>;
    Tensors<T, D::kIn, 0> inputs{};
    for (int j = 0; j < D::kIn; ++j) inputs.in[j] = t.in[j];
    const bool group = shape.norm == kGroup;
    const int64_t all = group ? shape.samples * shape.channels : 0;
    const std::unique_ptr<S[]> parts(new S[2 * all]);  // of the weight's and the bias's gradient
    parallel_for(Unit::count(shape), threads, shape.size() < kSmall, [&](int64_t index) {
        const Unit unit(shape, index);
        Scratch scratch(D::kSums * unit.lines, D::kCoef * unit.lines, sizeof(S));
        double* sums = scratch.take<double>(D::kSums * unit.lines);
        S* coef = scratch.take<S>(D::kCoef * unit.lines);
        d.given.fill(unit.channel, unit.lines, d.middle(index), d.rstd(index), coef, unit.lines);
        const auto at = [&](int64_t l) { return unit.at + l * shape.space; };
        for (int64_t l = 0; l < unit.lines; ++l) {
            V k[3];
            for (int j = 0; j < 3; ++j) k[j] = splat<V>(coef[j * unit.lines + l]);
            sum_rows<T, typename D::Sums>(inputs, at(l), unit.rows, unit.stride, shape.space, k, d.given.slope,
                                          sums + l, unit.lines);
        }
        const int64_t place = group ? index * unit.lines : unit.channel;
        D::solve(d.lines(shape, unit.channel, unit.lines, index), sums, coef, unit.lines,
                 (group ? parts.get() : d.dweight) + place, (group ? parts.get() + all : d.dbias) + place);
        for (int64_t l = 0; l < unit.lines; ++l) {
            V k[D::kCoef];
            for (int j = 0; j < D::kCoef; ++j) k[j] = splat<V>(coef[j * unit.lines + l]);
            results_of_rows<T, typename D::Results>(t, at(l), unit.rows, unit.stride, shape.space, k, d.given.slope);
        }
    });
    if (!group) return;
    add_up(parts.get(), shape.samples, shape.channels, d.dweight);
    add_up(parts.get() + all, shape.samples, shape.channels, d.dbias);
}

template <class T, class D, class S = Scalar<Pack<T>>>
void derivative_samples(const Shape& shape, const Tensors<T, D::kIn, D::kOut>& t, const Derivative<S>& d, int threads) {
    Tensors<T, D::kIn, 0> inputs{};
    for (int j = 0; j < D::kIn; ++j) inputs.in[j] = t.in[j];
    const int64_t channels = shape.channels, lines = shape.group_channels(), each = channels * shape.space;
    const int64_t width = Columns<T>{channels}.width();
    const int64_t per_piece = (kPiece + each - 1) / each, pieces = (shape.samples + per_piece - 1) / per_piece;
    const int64_t all = pieces * channels;
    const std::unique_ptr<S[]> parts(new S[2 * all]);
    parallel_for(pieces, threads, shape.size() < kSmall, [&](int64_t piece) {
        Scratch scratch((D::kSums + 2) * width, (D::kCoef + D::kSums + 2) * width, sizeof(S));
        double *sums = scratch.take<double>(D::kSums * width), *total = scratch.take<double>(2 * width);
        S *coef = scratch.take<S>(D::kCoef * width), *held = scratch.take<S>(D::kSums * width);
        S* gradient = scratch.take<S>(2 * width);
        for (int64_t k = 0; k < 2 * width; ++k) total[k] = 0;
        const int64_t end = (piece + 1) * per_piece < shape.samples ? (piece + 1) * per_piece : shape.samples;
        for (int64_t n = piece * per_piece; n < end; ++n) {
            for (int64_t c = 0; c < channels; c += lines) {
                const int64_t group = n * shape.groups + c / lines;
                d.given.fill(c, lines, d.middle(group), d.rstd(group), coef + c, width);
            }
            sum_columns<T, typename D::Sums>(inputs, n * each, shape.space, channels, coef, width, d.given.slope, held,
                                             sums);
            for (int64_t c = 0; c < channels; c += lines)
                D::solve(d.lines(shape, c, lines, n * shape.groups + c / lines), sums + c, coef + c, width,
                         gradient + c, gradient + width + c);
            for (int64_t c = 0; c < channels; ++c) {
                total[c] += gradient[c];
                total[width + c] += gradient[width + c];
            }
            run_columns<T, typename D::Results>(t, n * each, shape.space, channels, coef, width, d.given.slope, held);
        }
        for (int64_t c = 0; c < channels; ++c) {
            parts[piece * channels + c] = static_cast<S>(total[c]);
            parts[all + piece * channels + c] = static_cast<S>(total[width + c]);
        }
        if (t.past_caches) stream_done();
    });
    add_up(parts.get(), pieces, channels, d.dweight);
    add_up(parts.get() + all, pieces, channels, d.dbias);
}

template <class T, class D, class S = Scalar<Pack<T>>>
void derivative_blocks(const Shape& shape, const Tensors<T, D::kIn, D::kOut>& t, const Derivative<S>& d, int threads) {
    Tensors<T, D::kIn, 0> inputs{};
    for (int j = 0; j < D::kIn; ++j) inputs.in[j] = t.in[j];
    const int64_t channels = shape.channels, width = Columns<T>{channels}.width();
    const Blocks blocks(shape);
    const bool small = shape.size() < kSmall, affine = shape.norm == kAffine;
    Scratch scratch(D::kSums * channels, D::kCoef * width, sizeof(S));
    double* sums = scratch.take<double>(D::kSums * channels);
    S* coef = scratch.take<S>(D::kCoef * width);
    for (int64_t k = 0; k < D::kSums * channels; ++k) sums[k] = 0;
    const auto solve = [&] {
        for (int64_t c = 0; c < channels; ++c) {
            double own[D::kSums];
            S k[D::kCoef];
            for (int j = 0; j < D::kSums; ++j) own[j] = sums[j * channels + c];
            D::solve(d.lines(shape, c, 1, c), own, k, 1, d.dweight + c, d.dbias + c);
            for (int j = 3; j < D::kCoef; ++j) coef[j * width + c] = k[j];
        }
    };
    const auto results = [&](int64_t block) {
        run_columns<T, typename D::Results>(t, blocks.first(block) * channels, blocks.size(block), channels, coef,
                                            width, d.given.slope, static_cast<S*>(nullptr));
        if (t.past_caches) stream_done();
    };
    for (int64_t c = 0; c < channels; ++c) d.given.fill(c, 1, d.middle(c), d.rstd(c), coef + c, width);
    if (affine) solve();  // there the coefficients do not come from the sums, so that one pass is enough
    const std::unique_ptr<double[]> partial(new double[blocks.count() * D::kSums * width]);
    parallel_for(blocks.count(), threads, small, [&](int64_t block) {
        const std::unique_ptr<S[]> held(new S[D::kSums * width]);
        sum_columns<T, typename D::Sums>(inputs, blocks.first(block) * channels, blocks.size(block), channels, coef,
                                         width, d.given.slope, held.get(), partial.get() + block * D::kSums * width);
        if (affine) results(block);
    });
    for (int64_t block = 0; block < blocks.count(); ++block)
        for (int k = 0; k < D::kSums; ++k)
            for (int64_t c = 0; c < channels; ++c)
                sums[k * channels + c] += partial[(block * D::kSums + k) * width + c];
    solve();
    if (!affine) parallel_for(blocks.count(), threads, small, results);
}

template <class T, int A>
const char* forward(const Shape& shape, const void* x, const void* weight, const void* bias, void* y, void* mean,
                    void* var, double eps, double slope, int threads) {
    using S = Scalar<Pack<T>>;
    const Tensors<T, 1, 1> t{{static_cast<const T*>(x)},
                             {static_cast<T*>(y)},
                             shape.size() * static_cast<int64_t>(sizeof(T)) >= kPastCaches};
    const Parameters<S> given{static_cast<const S*>(weight), static_cast<const S*>(bias), eps, static_cast<S>(slope)};
    const auto all = !shape.last            ? forward_rows<T, A>
                     : shape.norm == kGroup ? forward_samples<T, A>
                                            : forward_blocks<T, A>;
    all(shape, t, given, static_cast<S*>(mean), static_cast<S*>(var), threads);
    return nullptr;
}

template <class T, class D>
const char* derivative(const Shape& shape, const void* const* in, void* const* out, const void* const* parameters,
                       void* dweight, void* dbias, double eps, double slope, int threads) {
    using S = Scalar<Pack<T>>;
    Tensors<T, D::kIn, D::kOut> t{};
    for (int j = 0; j < D::kIn; ++j) t.in[j] = static_cast<const T*>(in[j]);
    for (int j = 0; j < D::kOut; ++j) t.out[j] = static_cast<T*>(out[j]);
    t.past_caches = shape.size() * static_cast<int64_t>(sizeof(T)) >= kPastCaches;
    const auto scalars = [&](int k) { return static_cast<const S*>(parameters[k]); };
    const bool affine = shape.norm == kAffine;
    const Derivative<S> d{{scalars(0), scalars(1), eps, static_cast<S>(slope)},
                          affine ? nullptr : scalars(2),
                          scalars(3),
                          scalars(4),
                          scalars(5),
                          static_cast<S*>(dweight),
                          static_cast<S*>(dbias)};
    const auto all = !shape.last            ? derivative_rows<T, D>
                     : shape.norm == kGroup ? derivative_samples<T, D>
                                            : derivative_blocks<T, D>;
    all(shape, t, d, threads);
    return nullptr;
}

template <template <class, int> class D>
const char* derivatives(int type, int act, const Shape& shape, const void* const* in, void* const* out,
                        const void* const* parameters, void* dweight, void* dbias, double eps, double slope,
                        int threads) {
    // The derivative of every piecewise-linear activation is 1 or `slope`.
    if (act == kLinear || act == kRelu) {
        slope = act == kLinear ? 1 : 0;
        act = kLeakyRelu;
    }
    return with_type(type, [&](auto element) -> const char* {
        using T = decltype(element);
        const auto call = [&](auto f) { return f(shape, in, out, parameters, dweight, dbias, eps, slope, threads); };
        switch (act) {
            case kLeakyRelu:
                return call(derivative<T, D<T, kLeakyRelu>>);
            case kTanh:
                return call(derivative<T, D<T, kTanh>>);
            case kSigmoid:
                return call(derivative<T, D<T, kSigmoid>>);
            case kSilu:
                return call(derivative<T, D<T, kSilu>>);
            case kGelu:
                return call(derivative<T, D<T, kGelu>>);
            case kSoftplus:
                return call(derivative<T, D<T, kSoftplus>>);
        }
        return "unknown activation";
    });
}

const char* wrong(const Shape& s) {
    if (s.samples < 1 || s.channels < 1 || s.space < 1) return "there must be an element";
    if (s.groups < 1 || s.channels % s.groups != 0) return "groups must divide the channels";
    if (s.norm < kBatch || s.norm > kAffine) return "unknown norm";
    return nullptr;
}

}  // namespace

// weight and bias may be null, and for kAffine mean and var. They are of the type that is computed in. `last`: channels
// lie innermost.
static const char* norm_act(const void* x, const void* weight, const void* bias, void* y, void* mean, void* var,
                            int type, int64_t samples, int64_t channels, int64_t space, int64_t groups, int norm,
                            int last, double eps, int act, double slope, int threads) {
    const Shape shape{samples, channels, space, groups, norm, last != 0};
    if (const char* problem = wrong(shape)) return problem;
    return with_type(type, [&](auto element) -> const char* {
        using T = decltype(element);
        decltype(&forward<T, 0>) table[] = {forward<T, 0>, forward<T, 1>, forward<T, 2>, forward<T, 3>,
                                            forward<T, 4>, forward<T, 5>, forward<T, 6>, forward<T, 7>};
        if (act < 0 || act >= kActCount) return "unknown activation";
        return table[act](shape, x, weight, bias, y, mean, var, eps, slope, threads);
    });
}
PF_EXPORT(norm_act);

static const char* norm_act_backward(const void* dy, const void* x, const void* mean, const void* var,
                                     const void* weight, const void* bias, void* dx, void* dweight, void* dbias,
                                     int type, int64_t samples, int64_t channels, int64_t space, int64_t groups,
                                     int norm, int last, double eps, int act, double slope, int threads) {
    const Shape shape{samples, channels, space, groups, norm, last != 0};
    if (const char* problem = wrong(shape)) return problem;
    const void* in[] = {x, dy};
    void* out[] = {dx};
    const void* parameters[] = {weight, bias, mean, var, nullptr, nullptr};
    return derivatives<Backward>(type, act, shape, in, out, parameters, dweight, dbias, eps, slope, threads);
}
PF_EXPORT(norm_act_backward);

static const char* norm_act_backward_backward(const void* ddx, const void* ddweight, const void* ddbias, const void* dy,
                                              const void* x, const void* mean, const void* var, const void* weight,
                                              const void* bias, void* grad_dy, void* grad_x, void* grad_weight,
                                              void* grad_bias, int type, int64_t samples, int64_t channels,
                                              int64_t space, int64_t groups, int norm, int last, double eps, int act,
                                              double slope, int threads) {
    const Shape shape{samples, channels, space, groups, norm, last != 0};
    if (const char* problem = wrong(shape)) return problem;
    const void* in[] = {x, dy, ddx};
    void* out[] = {grad_dy, grad_x};
    const void* parameters[] = {weight, bias, mean, var, ddweight, ddbias};
    return derivatives<BackwardBackward>(type, act, shape, in, out, parameters, grad_weight, grad_bias, eps, slope,
                                         threads);
}
PF_EXPORT(norm_act_backward_backward);

}  // namespace PF_NAMESPACE
