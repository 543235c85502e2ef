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

#include <initializer_list>
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

// The formulas of the loops: kIn tensors in, kCoef numbers a line, kOut tensors out, kSums sums a line.

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

// in: x, dy. dx = dz scale + x of_x + constant.
enum { kOfX = 3, kConstant };

template <class T, int A>
struct BackwardSums {
    using V = Pack<T>;
    static constexpr int kIn = 2, kCoef = 3, kOut = 0, kSums = 2;
    static PF_FN void apply(const V* in, const V* k, Scalar<V> slope, V*, V* sums) {
        const V x = in[0] - k[kMean], dz = in[1] * activate_slope<A>(x * k[kScale] + k[kShift], slope);
        sums[0] += dz;
        sums[1] += dz * x;
    }
};

template <class T, int A>
struct BackwardResults {
    using V = Pack<T>;
    static constexpr int kIn = 2, kCoef = 5, kOut = 1, kSums = 0;
    static PF_FN void apply(const V* in, const V* k, Scalar<V> slope, V* out, V*) {
        const V x = in[0] - k[kMean], dz = in[1] * activate_slope<A>(x * k[kScale] + k[kShift], slope);
        out[0] = k[kScale] * dz + k[kOfX] * x + k[kConstant];
    }
};

// in: x, dy, v. t = v scale + x tangent_of_x + tangent; grad_x = dy act'' t scale + dz tangent_of_x + v of_v + x of_x +
// constant.
enum { kOfV = 5, kTangentOfX, kTangent };

template <class T, int A>
struct SecondSums {
    using V = Pack<T>;
    static constexpr int kIn = 3, kCoef = 3, kOut = 0, kSums = piecewise_linear(A) ? 5 : 10;
    static PF_FN void apply(const V* in, const V* k, Scalar<V> slope, V*, V* sums) {
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

template <class T, int A>
struct SecondResults {
    using V = Pack<T>;
    static constexpr int kIn = 3, kCoef = 8, kOut = 2, kSums = 0;
    static PF_FN void apply(const V* in, const V* k, Scalar<V> slope, V* out, V*) {
        const V x = in[0] - k[kMean], z = x * k[kScale] + k[kShift], v = in[2];
        const V first = activate_slope<A>(z, slope);
        const V t = k[kScale] * v + k[kTangentOfX] * x + k[kTangent];
        out[0] = first * t;
        out[1] = k[kTangentOfX] * (in[1] * first) + k[kOfV] * v + k[kOfX] * x + k[kConstant];
        if constexpr (!piecewise_linear(A)) out[1] += k[kScale] * (in[1] * activate_curvature<A>(z) * t);
    }
};

constexpr int kMostSums = 10, kMostCoef = 8;

// Lines that share a mean.
template <class S>
struct Lines {
    int64_t count;
    double values;  // that the mean is of; 0 where there is no mean
    double rstd;
    const S *weight, *p, *q;  // of each line; weight may be null
    double weight_of(int64_t l) const { return weight ? static_cast<double>(weight[l]) : 1.0; }
    double share() const { return values > 0 ? 1 / values : 0; }
};

// From the sums of each line to the gradients and to the coefficients of the results, all `pitch` apart.
template <class S>
void solve_first(const Lines<S>& lines, const double* sums, S* coef, int64_t pitch, S* dweight, S* dbias) {
    const double r = lines.rstd;
    double u = 0, a = 0;
    for (int64_t l = 0; l < lines.count; ++l) {
        const double w = lines.weight_of(l) * lines.share();
        u += w * sums[l];
        a += w * sums[pitch + l] * r;
        dbias[l] = static_cast<S>(sums[l]);
        dweight[l] = static_cast<S>(sums[pitch + l] * r);
    }
    for (int64_t l = 0; l < lines.count; ++l) {
        coef[kOfX * pitch + l] = static_cast<S>(-r * r * a);
        coef[kConstant * pitch + l] = static_cast<S>(-r * u);
    }
}

template <class S>
void solve_second(const Lines<S>& lines, bool smooth, const double* sums, S* coef, int64_t pitch, S* grad_weight,
                  S* grad_bias) {
    const double r = lines.rstd, share = lines.share();
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
        if (smooth) {
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

template <class T>
struct Tensors {
    const T* in[3];
    T* out[2];
    bool past_caches;  // outputs are stored around the caches, where that is possible
};

// Packs of lines with the same coefficients: `rows` times, `pitch` elements apart, `count` of them, `stride` apart.
struct Walk {
    int64_t at, rows, pitch, count, stride;
};

// Adds to `sums`. Not inlined: it is the loop of everything below.
template <class T, class F, class V = Pack<T>>
__attribute__((noinline)) void loop(const Tensors<T>& tensors, const Walk& walk, const V* coef, Scalar<V> slope,
                                    V* sums) {
    const Tensors<T> t = tensors;  // behind a reference it would be read again after every store
    const Walk w = walk;
    V k[F::kCoef], total[F::kSums + 1], other[F::kSums + 1];
    for (int j = 0; j < F::kCoef; ++j) k[j] = coef[j];
    for (int j = 0; j < F::kSums; ++j) {
        total[j] = sums[j];
        other[j] = splat<V>(0);
    }
    bool past_caches = t.past_caches && sizeof(T) == sizeof(Scalar<V>) && (w.stride | w.pitch) % lanes<T>() == 0;
    for (int j = 0; j < F::kOut; ++j)
        past_caches = past_caches && reinterpret_cast<uintptr_t>(t.out[j] + w.at) % sizeof(V) == 0;
    const auto step = [&](int64_t place, V* into) __attribute__((always_inline)) {
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
    for (int64_t row = 0; row < w.rows; ++row) {
        int64_t at = w.at + row * w.pitch, i = 0;
        for (; i + 2 <= w.count; i += 2, at += 2 * w.stride) {
            step(at, total);
            step(at + w.stride, other);
        }
        if (i < w.count) step(at, total);
    }
    for (int j = 0; j < F::kSums; ++j) sums[j] = total[j] + other[j];
}

// A formula over tensors.
template <class T>
struct Pass {
    using V = Pack<T>;
    using S = Scalar<V>;
    Tensors<T> t;
    void (*loop)(const Tensors<T>&, const Walk&, const V*, S, V*);
    int in, coef, out, sums;
    S slope;

    template <class F>
    static Pass of(const Tensors<T>& t, S slope) {
        return {t, &PF_NAMESPACE::loop<T, F>, F::kIn, F::kCoef, F::kOut, F::kSums, slope};
    }
    void run(const Walk& walk, const V* k, V* into) const { loop(t, walk, k, slope, into); }

    // Fewer elements than a pack holds. What is missing must not count: an input is 0 there, or, where there are sums
    // of x alone, the estimate of the mean.
    void run_part(int64_t at, int64_t count, const V* k, V* into) const {
        T inputs[3][lanes<T>()], outputs[2][lanes<T>()];
        Tensors<T> own{};
        for (int j = 0; j < in; ++j) {
            Storage<T>::write(inputs[j], in == 1 && out == 0 ? k[0] : splat<V>(0));
            memcpy(inputs[j], t.in[j] + at, static_cast<std::size_t>(count) * sizeof(T));
            own.in[j] = inputs[j];
        }
        for (int j = 0; j < out; ++j) own.out[j] = outputs[j];
        loop(own, {0, 1, 0, 1, 0}, k, slope, into);
        for (int j = 0; j < out; ++j) memcpy(t.out[j] + at, outputs[j], static_cast<std::size_t>(count) * sizeof(T));
    }

    // Rows of n elements, `pitch` apart.
    void run_rows(int64_t at, int64_t rows, int64_t pitch, int64_t n, const V* k, V* into) const {
        constexpr int64_t kStep = lanes<T>();
        const int64_t left = n % kStep;
        if (n >= kStep) run({at, rows, pitch, n / kStep, kStep}, k, into);
        if (left == 0) return;
        if (sums == 0 && n >= kStep)
            run({at + n - kStep, rows, pitch, 1, kStep}, k, into);  // some results twice, the same ones
        else
            for (int64_t row = 0; row < rows; ++row) run_part(at + row * pitch + n - left, left, k, into);
    }
};

template <class V>
PF_FN double sum_of_lanes(V v) {
    double sum = 0;
    for (std::size_t k = 0; k < sizeof(V) / sizeof(Scalar<V>); ++k) sum += v[k];
    return sum;
}

// The sums of one line that is rows of n elements.
template <class T, class V = Pack<T>>
void sum_rows(const Pass<T>& pass, int64_t at, int64_t rows, int64_t stride, int64_t n, const V* coef, double* sums,
              int64_t pitch) {
    constexpr int64_t kMost = kChunk * lanes<T>();
    for (int k = 0; k < pass.sums; ++k) sums[k * pitch] = 0;
    const int64_t together = n < kMost ? kMost / n : 1;
    for (int64_t row = 0; row < rows; row += together)
        for (int64_t k = 0; k < n; k += kMost) {
            V total[kMostSums] = {};
            pass.run_rows(at + row * stride + k, rows - row < together ? rows - row : together, stride,
                          n - k < kMost ? n - k : kMost, coef, total);
            for (int j = 0; j < pass.sums; ++j) sums[j * pitch] += sum_of_lanes(total[j]);
        }
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
template <class T, class S = Scalar<Pack<T>>>
void run_columns(const Pass<T>& pass, int64_t at, int64_t rows, int64_t channels, const S* coef, int64_t pitch,
                 S* sums) {
    using V = Pack<T>;
    const Columns<T> columns{channels};
    int64_t near = kNear / channels;
    near = near < 16 ? 16 : near;
    for (int64_t begin = 0; begin < rows; begin += near) {
        const int64_t count = rows - begin < near ? rows - begin : near;
        for (int64_t column = 0; column < columns.count(); ++column) {
            const int64_t c = columns.start(column), first = at + begin * channels + c;
            V k[kMostCoef], total[kMostSums];
            for (int j = 0; j < pass.coef; ++j) k[j] = load<V>(coef + j * pitch + c);
            for (int j = 0; j < pass.sums; ++j) total[j] = load<V>(sums + j * columns.width() + column * columns.kStep);
            if (channels < columns.kStep)
                for (int64_t row = 0; row < count; ++row) pass.run_part(first + row * channels, channels, k, total);
            else
                pass.run({first, 1, 0, count, channels}, k, total);
            for (int j = 0; j < pass.sums; ++j) store(sums + j * columns.width() + column * columns.kStep, total[j]);
        }
    }
    if (pass.t.past_caches) stream_done();
}

// The same in float64 from zero on, a number a channel, for any number of rows.
template <class T, class S = Scalar<Pack<T>>>
void sum_columns(const Pass<T>& pass, int64_t at, int64_t rows, int64_t channels, const S* coef, int64_t pitch, S* held,
                 double* sums) {
    const Columns<T> columns{channels};
    for (int64_t k = 0; k < pass.sums * pitch; ++k) sums[k] = 0;
    for (int64_t begin = 0; begin < rows; begin += kChunk) {
        const int64_t count = rows - begin < kChunk ? rows - begin : kChunk;
        for (int64_t k = 0; k < pass.sums * columns.width(); ++k) held[k] = 0;
        run_columns(pass, at + begin * channels, count, channels, coef, pitch, held);
        for (int k = 0; k < pass.sums; ++k)
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

// Blocks of rows of channels-last memory.
struct Blocks {
    int64_t rows, per_block;
    explicit Blocks(const Shape& s) : rows(s.samples * s.space), per_block((kPiece + s.channels - 1) / s.channels) {}
    int64_t count() const { return (rows + per_block - 1) / per_block; }
    int64_t first(int64_t block) const { return block * per_block; }
    int64_t size(int64_t block) const { return rows - first(block) < per_block ? rows - first(block) : per_block; }
};

// Pieces of whole samples.
struct Samples {
    int64_t samples, per_piece;
    explicit Samples(const Shape& s)
        : samples(s.samples), per_piece((kPiece + s.channels * s.space - 1) / (s.channels * s.space)) {}
    int64_t count() const { return (samples + per_piece - 1) / per_piece; }
    int64_t first(int64_t piece) const { return piece * per_piece; }
    int64_t end(int64_t piece) const { return first(piece + 1) < samples ? first(piece + 1) : samples; }
};

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

template <class T, class S = Scalar<Pack<T>>>
struct ForwardCall {
    Shape shape;
    Parameters<S> given;
    Pass<T> statistics, results;
    S *mean, *var;
    int threads;

    bool small() const { return shape.size() < kSmall; }

    void rows() const {
        using V = Pack<T>;
        parallel_for(Unit::count(shape), threads, small(), [&](int64_t index) {
            const Unit unit(shape, index);
            double rstd = 1, middle = 0;
            if (shape.norm != kAffine) {
                // The lines of a group follow each other in memory.
                const int64_t n = unit.lines * shape.space;
                const int64_t rows = shape.norm == kBatch ? (unit.rows + kEstimate - 1) / kEstimate : 1;
                const int64_t part = shape.norm == kBatch ? n : (n + kEstimate - 1) / kEstimate;
                double sums[2];
                V estimate = splat<V>(0);
                sum_rows(statistics, unit.at, rows, unit.stride, part, &estimate, sums, 1);
                estimate = splat<V>(rounded<T>(sums[0] / static_cast<double>(rows * part)));
                sum_rows(statistics, unit.at, unit.rows, unit.stride, n, &estimate, sums, 1);
                finish(estimate[0], sums[0], sums[1], values(shape), mean + index, var + index);
                middle = mean[index];
                rstd = given.rstd(var[index]);
            }
            for (int64_t l = 0; l < unit.lines; ++l) {
                S coef[3];
                given.fill(unit.channel + l, 1, middle, rstd, coef, 1);
                const V k[3] = {splat<V>(coef[0]), splat<V>(coef[1]), splat<V>(coef[2])};
                results.run_rows(unit.at + l * shape.space, unit.rows, unit.stride, shape.space, k, nullptr);
            }
            if (results.t.past_caches) stream_done();
        });
    }

    // Samples in channels-last memory, several in a piece where they are small.
    void samples() const {
        const int64_t channels = shape.channels, lines = shape.group_channels(), each = channels * shape.space;
        const int64_t width = Columns<T>{channels}.width();
        const Samples pieces(shape);
        parallel_for(pieces.count(), threads, small(), [&](int64_t piece) {
            Scratch scratch(2 * width, 5 * width, sizeof(S));
            double* sums = scratch.take<double>(2 * width);
            S *coef = scratch.take<S>(3 * width), *held = scratch.take<S>(2 * width);
            for (int64_t n = pieces.first(piece); n < pieces.end(piece); ++n) {
                const int64_t rows = (shape.space + kEstimate - 1) / kEstimate;
                for (int64_t c = 0; c < width; ++c) coef[c] = 0;
                sum_columns(statistics, n * each, rows, channels, coef, width, held, sums);
                for (int64_t c = 0; c < channels; c += lines) {
                    double sum = 0;
                    for (int64_t l = 0; l < lines; ++l) sum += sums[c + l];
                    const S estimate = rounded<T>(sum / static_cast<double>(rows * lines));
                    for (int64_t l = 0; l < lines; ++l) coef[c + l] = estimate;
                }
                sum_columns(statistics, n * each, shape.space, channels, coef, width, held, sums);
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
                run_columns(results, n * each, shape.space, channels, coef, width, held);
            }
        });
    }

    // Batch norm's statistics: each block's mean and sum of squares about it, then those of all.
    void block_statistics() const {
        const int64_t channels = shape.channels, width = Columns<T>{channels}.width();
        const Blocks blocks(shape);
        const std::unique_ptr<double[]> partial(new double[2 * blocks.count() * channels]);
        parallel_for(blocks.count(), threads, small(), [&](int64_t block) {
            Scratch scratch(2 * width, 3 * width, sizeof(S));
            double* sums = scratch.take<double>(2 * width);
            S *estimate = scratch.take<S>(width), *held = scratch.take<S>(2 * width);
            const int64_t at = blocks.first(block) * channels, n = blocks.size(block);
            const int64_t rows = (n + kEstimate - 1) / kEstimate;
            for (int64_t c = 0; c < width; ++c) estimate[c] = 0;
            sum_columns(statistics, at, rows, channels, estimate, width, held, sums);
            for (int64_t c = 0; c < channels; ++c) estimate[c] = rounded<T>(sums[c] / static_cast<double>(rows));
            sum_columns(statistics, at, n, channels, estimate, width, held, sums);
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
        for (int64_t c = 0; c < channels; ++c) finish(middle[c], 0, square[c], values(shape), mean + c, var + c);
    }

    void blocks() const {
        const int64_t channels = shape.channels, width = Columns<T>{channels}.width();
        const Blocks blocks(shape);
        const std::unique_ptr<S[]> coef(new S[3 * width]);
        const bool affine = shape.norm == kAffine;
        if (!affine) block_statistics();
        for (int64_t c = 0; c < channels; ++c)
            given.fill(c, 1, affine ? 0 : mean[c], affine ? 1 : given.rstd(var[c]), coef.get() + c, width);
        parallel_for(blocks.count(), threads, small(), [&](int64_t block) {
            run_columns(results, blocks.first(block) * channels, blocks.size(block), channels, coef.get(), width,
                        static_cast<S*>(nullptr));
        });
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

// The backward pass, or the backward of it, where p and q are the cotangents of dweight and dbias.
template <class T, class S = Scalar<Pack<T>>>
struct DerivativeCall {
    using V = Pack<T>;
    Shape shape;
    Parameters<S> given;
    Pass<T> sums, results;
    const S *mean, *var, *p, *q;
    S *dweight, *dbias;
    int threads;

    bool small() const { return shape.size() < kSmall; }

    // The first coefficients of lines that share a mean.
    void fill(int64_t channel, int64_t count, int64_t group, S* coef, int64_t pitch) const {
        const bool affine = shape.norm == kAffine;
        given.fill(channel, count, affine ? 0 : mean[group], affine ? 1 : given.rstd(var[group]), coef, pitch);
    }
    // And the others, which come from the sums, and the gradients.
    void solve(int64_t channel, int64_t count, int64_t group, const double* from, S* coef, int64_t pitch, S* to_weight,
               S* to_bias) const {
        const auto own = [&](const S* v) { return v ? v + channel : nullptr; };
        const double rstd = shape.norm == kAffine ? 1 : given.rstd(var[group]);
        const Lines<S> lines{count, values(shape), rstd, own(given.weight), own(p), own(q)};
        if (p)
            solve_second(lines, sums.sums > 5, from, coef, pitch, to_weight, to_bias);
        else
            solve_first(lines, from, coef, pitch, to_weight, to_bias);
    }

    void rows() const {
        const bool group = shape.norm == kGroup;
        const int64_t all = group ? shape.samples * shape.channels : 0;
        const std::unique_ptr<S[]> parts(new S[2 * all]);  // of the weight's and the bias's gradient
        parallel_for(Unit::count(shape), threads, small(), [&](int64_t index) {
            const Unit unit(shape, index);
            Scratch scratch(sums.sums * unit.lines, results.coef * unit.lines, sizeof(S));
            double* from = scratch.take<double>(sums.sums * unit.lines);
            S* coef = scratch.take<S>(results.coef * unit.lines);
            V k[kMostCoef];
            const auto numbers = [&](int count, int64_t l) {
                for (int j = 0; j < count; ++j) k[j] = splat<V>(coef[j * unit.lines + l]);
                return k;
            };
            const auto at = [&](int64_t l) { return unit.at + l * shape.space; };
            fill(unit.channel, unit.lines, index, coef, unit.lines);
            for (int64_t l = 0; l < unit.lines; ++l)
                sum_rows(sums, at(l), unit.rows, unit.stride, shape.space, numbers(sums.coef, l), from + l, unit.lines);
            const int64_t place = group ? index * unit.lines : unit.channel;
            solve(unit.channel, unit.lines, index, from, coef, unit.lines, (group ? parts.get() : dweight) + place,
                  (group ? parts.get() + all : dbias) + place);
            for (int64_t l = 0; l < unit.lines; ++l)
                results.run_rows(at(l), unit.rows, unit.stride, shape.space, numbers(results.coef, l), nullptr);
            if (results.t.past_caches) stream_done();
        });
        if (!group) return;
        add_up(parts.get(), shape.samples, shape.channels, dweight);
        add_up(parts.get() + all, shape.samples, shape.channels, dbias);
    }

    void samples() const {
        const int64_t channels = shape.channels, lines = shape.group_channels(), each = channels * shape.space;
        const int64_t width = Columns<T>{channels}.width();
        const Samples pieces(shape);
        const int64_t all = pieces.count() * channels;
        const std::unique_ptr<S[]> parts(new S[2 * all]);
        parallel_for(pieces.count(), threads, small(), [&](int64_t piece) {
            Scratch scratch((sums.sums + 2) * width, (results.coef + sums.sums + 2) * width, sizeof(S));
            double *from = scratch.take<double>(sums.sums * width), *total = scratch.take<double>(2 * width);
            S *coef = scratch.take<S>(results.coef * width), *held = scratch.take<S>(sums.sums * width);
            S* gradient = scratch.take<S>(2 * width);
            for (int64_t k = 0; k < 2 * width; ++k) total[k] = 0;
            for (int64_t n = pieces.first(piece); n < pieces.end(piece); ++n) {
                const auto group = [&](int64_t c) { return n * shape.groups + c / lines; };
                for (int64_t c = 0; c < channels; c += lines) fill(c, lines, group(c), coef + c, width);
                sum_columns(sums, n * each, shape.space, channels, coef, width, held, from);
                for (int64_t c = 0; c < channels; c += lines)
                    solve(c, lines, group(c), from + c, coef + c, width, gradient + c, gradient + width + c);
                for (int64_t c = 0; c < channels; ++c) {
                    total[c] += gradient[c];
                    total[width + c] += gradient[width + c];
                }
                run_columns(results, n * each, shape.space, channels, coef, width, held);
            }
            for (int64_t c = 0; c < channels; ++c) {
                parts[piece * channels + c] = static_cast<S>(total[c]);
                parts[all + piece * channels + c] = static_cast<S>(total[width + c]);
            }
        });
        add_up(parts.get(), pieces.count(), channels, dweight);
        add_up(parts.get() + all, pieces.count(), channels, dbias);
    }

    void blocks() const {
        const int64_t channels = shape.channels, width = Columns<T>{channels}.width(), each = sums.sums * width;
        const Blocks blocks(shape);
        const bool affine = shape.norm == kAffine;
        const std::unique_ptr<S[]> coef(new S[results.coef * width]);
        const std::unique_ptr<double[]> total(new double[each]()), partial(new double[blocks.count() * each]);
        const auto solve_all = [&] {
            for (int64_t c = 0; c < channels; ++c)
                solve(c, 1, c, total.get() + c, coef.get() + c, width, dweight + c, dbias + c);
        };
        const auto write = [&](int64_t block) {
            run_columns(results, blocks.first(block) * channels, blocks.size(block), channels, coef.get(), width,
                        static_cast<S*>(nullptr));
        };
        for (int64_t c = 0; c < channels; ++c) fill(c, 1, c, coef.get() + c, width);
        if (affine) solve_all();  // there the coefficients do not come from the sums: one pass is enough
        parallel_for(blocks.count(), threads, small(), [&](int64_t block) {
            const std::unique_ptr<S[]> held(new S[each]);
            sum_columns(sums, blocks.first(block) * channels, blocks.size(block), channels, coef.get(), width,
                        held.get(), partial.get() + block * each);
            if (affine) write(block);
        });
        for (int64_t block = 0; block < blocks.count(); ++block)
            for (int64_t k = 0; k < each; ++k) total[k] += partial[block * each + k];
        solve_all();
        // The blocks that were read last are still in a cache.
        if (!affine) parallel_for(blocks.count(), threads, small(), [&](int64_t k) { write(blocks.count() - 1 - k); });
    }
};

template <class Call>
void run(const Call& call) {
    if (!call.shape.last)
        call.rows();
    else if (call.shape.norm == kGroup)
        call.samples();
    else
        call.blocks();
}

template <class T>
Tensors<T> tensors(const Shape& shape, std::initializer_list<const void*> in, std::initializer_list<void*> out) {
    Tensors<T> t{};
    int j = 0;
    for (const void* x : in) t.in[j++] = static_cast<const T*>(x);
    j = 0;
    for (void* y : out) t.out[j++] = static_cast<T*>(y);
    t.past_caches = shape.size() * static_cast<int64_t>(sizeof(T)) >= kPastCaches;
    return t;
}

// Calls f with the activation as a type; linear and relu are left to the caller.
template <int A>
using Chosen = std::integral_constant<int, A>;

template <class F>
const char* with_activation(int act, F f) {
    switch (act) {
        case kLeakyRelu:
            return f(Chosen<kLeakyRelu>{});
        case kTanh:
            return f(Chosen<kTanh>{});
        case kSigmoid:
            return f(Chosen<kSigmoid>{});
        case kSilu:
            return f(Chosen<kSilu>{});
        case kGelu:
            return f(Chosen<kGelu>{});
        case kSoftplus:
            return f(Chosen<kSoftplus>{});
    }
    return "unknown activation";
}

// The derivative of every piecewise-linear activation is 1 or `slope`.
void as_leaky(int& act, double& slope) {
    if (act != kLinear && act != kRelu) return;
    slope = act == kLinear ? 1 : 0;
    act = kLeakyRelu;
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
        using S = Scalar<Pack<T>>;
        const auto call = [&](auto chosen) -> const char* {
            const Tensors<T> t = tensors<T>(shape, {x}, {y});
            const S s = static_cast<S>(slope);
            const Parameters<S> given{static_cast<const S*>(weight), static_cast<const S*>(bias), eps};
            run(ForwardCall<T>{shape, given, Pass<T>::template of<Statistics<T>>(t, s),
                               Pass<T>::template of<Forward<T, decltype(chosen)::value>>(t, s), static_cast<S*>(mean),
                               static_cast<S*>(var), threads});
            return nullptr;
        };
        if (act == kLinear) return call(Chosen<kLinear>{});
        if (act == kRelu) return call(Chosen<kRelu>{});
        return with_activation(act, call);
    });
}
PF_EXPORT(norm_act);

static const char* norm_act_backward(const void* dy, const void* x, const void* mean, const void* var,
                                     const void* weight, const void* bias, void* dx, void* dweight, void* dbias,
                                     int type, int64_t samples, int64_t channels, int64_t space, int64_t groups,
                                     int norm, int last, double eps, int act, double slope, int threads) {
    const Shape shape{samples, channels, space, groups, norm, last != 0};
    if (const char* problem = wrong(shape)) return problem;
    as_leaky(act, slope);
    return with_type(type, [&](auto element) -> const char* {
        using T = decltype(element);
        using S = Scalar<Pack<T>>;
        return with_activation(act, [&](auto chosen) -> const char* {
            constexpr int A = decltype(chosen)::value;
            const Tensors<T> t = tensors<T>(shape, {x, dy}, {dx});
            const S s = static_cast<S>(slope);
            const Parameters<S> given{static_cast<const S*>(weight), static_cast<const S*>(bias), eps};
            run(DerivativeCall<T>{shape, given, Pass<T>::template of<BackwardSums<T, A>>(t, s),
                                  Pass<T>::template of<BackwardResults<T, A>>(t, s), static_cast<const S*>(mean),
                                  static_cast<const S*>(var), nullptr, nullptr, static_cast<S*>(dweight),
                                  static_cast<S*>(dbias), threads});
            return nullptr;
        });
    });
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
    as_leaky(act, slope);
    return with_type(type, [&](auto element) -> const char* {
        using T = decltype(element);
        using S = Scalar<Pack<T>>;
        return with_activation(act, [&](auto chosen) -> const char* {
            constexpr int A = decltype(chosen)::value;
            const Tensors<T> t = tensors<T>(shape, {x, dy, ddx}, {grad_dy, grad_x});
            const S s = static_cast<S>(slope);
            const Parameters<S> given{static_cast<const S*>(weight), static_cast<const S*>(bias), eps};
            run(DerivativeCall<T>{shape, given, Pass<T>::template of<SecondSums<T, A>>(t, s),
                                  Pass<T>::template of<SecondResults<T, A>>(t, s), static_cast<const S*>(mean),
                                  static_cast<const S*>(var), static_cast<const S*>(ddweight),
                                  static_cast<const S*>(ddbias), static_cast<S*>(grad_weight),
                                  static_cast<S*>(grad_bias), threads});
            return nullptr;
        });
    });
}
PF_EXPORT(norm_act_backward_backward);

}  // namespace PF_NAMESPACE
