// What the kernels of norm_act share: the loops over lines and columns, sums, the units of work, and their choice by
// activation and layout.
//
// A line is what has one mean, one weight and one bias: a row of contiguous memory, or a column of channels-last
// memory, of which a pack holds as many as it has lanes. So one loop serves both: it steps through a row pack by
// pack, or down a pack of columns.
//
// Sums are float32 packs over at most kChunk steps and float64 beyond (float64 for float64), made from fixed pieces in
// a fixed order.
#pragma once

#include "norm_act_formulas.h"
#include "threads.h"

#include <initializer_list>
#include <memory>

namespace PF_NAMESPACE {
namespace {

constexpr int64_t kPiece = 32768;  // elements of a piece of work
constexpr int64_t kChunk = 512;  // steps that a float32 sum goes on for
constexpr int64_t kNear = 8192;  // elements of a block of columns that is passed through column by column
constexpr int64_t kFewest = 32;  // and the rows that it has at least
constexpr int64_t kPastCaches = int64_t{12} << 20;  // bytes of an output that will not stay in a cache
constexpr int64_t kSmall = 32768;  // below this the calling thread does it all

enum Norm { kBatch, kGroup, kAffine };  // shared with pyfastgan/ops/_norm_act_kernels.py

struct Shape {
    int64_t samples, channels, space, groups;
    int norm;
    bool last;  // channels innermost
    int64_t size() const { return samples * channels * space; }
    int64_t group_channels() const { return channels / groups; }
};

template <class T>
struct Tensors {
    const T* in[3];
    T* out[2];
    bool past_caches;  // outputs are stored around the caches, where that is possible
};

// Packs of lines with the same coefficients: `rows` times, `pitch` elements apart, `count` of them, `stride` apart.
struct Walk {
    int64_t at, rows, pitch, count, stride;
    int64_t ahead = 0;  // how far on what comes next lies, where that is not just behind
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
        if (w.ahead)
            for (int j = 0; j < F::kIn; ++j) __builtin_prefetch(t.in[j] + place + w.ahead);
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
    near = near < kFewest ? kFewest : near;
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
                pass.run({first, 1, 0, count, channels, begin + near < rows ? near * channels : 0}, k, total);
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

const char* wrong(const Shape& s) {
    if (s.samples < 1 || s.channels < 1 || s.space < 1) return "there must be an element";
    if (s.groups < 1 || s.channels % s.groups != 0) return "groups must divide the channels";
    if (s.norm < kBatch || s.norm > kAffine) return "unknown norm";
    return nullptr;
}

}  // namespace
}  // namespace PF_NAMESPACE
