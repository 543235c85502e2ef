// The loops of bias_act: a formula over the elements of a tensor, with or without a mask of a bit an element.
//
// A tensor is (outer, channels, inner). With inner = 1 (channels last, or no spatial extent) the bias runs along the
// innermost axis, otherwise it is one number a row; short rows are taken as one, along which it runs too. Sums over all
// but the channels are made from fixed pieces in a fixed order, so that they do not depend on the number of threads.
#pragma once

#include "threads.h"
#include "types.h"

#include <memory>

namespace PF_NAMESPACE {
namespace {

constexpr int64_t kPiece = 16384;  // elements of a piece of work
constexpr int64_t kPastCaches = int64_t{12} << 20;  // bytes of an output that will not stay in a cache
constexpr int64_t kSmall = 32768;  // below this the calling thread does it all

struct Shape {
    int64_t outer, channels, inner;
    int64_t size() const { return outer * channels * inner; }
};

// Everything a formula needs beside the elements. A clamp that is not wanted is NaN: no comparison with it holds.
template <class S>
struct Settings {
    S slope, gain, clamp;
    bool flipped;  // the sign that is read is that of -x
    bool rectified;  // relu, whose result is 0 also for -inf
    bool clamped() const { return clamp == clamp; }
};

template <class T>
struct Pointers {
    const T* in[3];
    T* out[2];
    bool past_caches;  // outputs are stored around the caches, where that is possible
    uint8_t* mask;  // made by Forward, or read by Backward instead of its last input; may be null
};

// Collects the bits of consecutive packs and stores them 64 at a time. It starts at an element that begins a byte.
class MaskWriter {
public:
    PF_FN MaskWriter(uint8_t* mask, int64_t start) : to_(mask + (start >> 3)) {}
    PF_FN void add(uint64_t bits, int count) {
        held_ |= bits << filled_;
        filled_ += count;
        if (filled_ == 64) {
            memcpy(to_, &held_, sizeof held_);
            to_ += sizeof held_;
            held_ = 0;
            filled_ = 0;
        }
    }
    PF_FN void finish() {
        if (filled_) memcpy(to_, &held_, static_cast<std::size_t>(filled_ + 7) >> 3);
    }

private:
    uint8_t* to_;
    uint64_t held_ = 0;
    int filled_ = 0;
};

// The bits from element k on, as many as a pack has lanes. The mask ends in padding, so that two bytes can be read.
PF_FN uint32_t mask_bits(const uint8_t* mask, int64_t k) {
    uint16_t two;
    memcpy(&two, mask + (k >> 3), sizeof two);
    return static_cast<uint32_t>(two) >> (k & 7);
}

// The bias, what is added to dy, and the sums of what F returns (or null) of elements that lie next to each other. With
// `along` they advance with the elements; otherwise they are a pack of the same number, and there are no sums.
template <class S>
struct Channels {
    const S *bias, *extra;
    S* sums;
    bool along;
};

// Whole packs of elements that lie next to each other, along the bias or (kAlong false) with one; gives the sum of what
// F returns.
template <bool kAlong, bool kMasked, class T, class F, class V = Pack<T>, class S = Scalar<V>>
V run_packs(const Pointers<T>& pointers, int64_t start, int64_t n, const Channels<S>& channels,
            const Settings<S>& settings) {
    // Behind a reference they would be read again after every store.
    const Pointers<T> p = pointers;
    const Channels<S> c = channels;
    const Settings<S> s = settings;
    constexpr int64_t kStep = lanes<T>();
    const V row_bias = load<V>(c.bias), row_extra = load<V>(c.extra);
    MaskWriter writer(p.mask, start);
    bool past_caches = sizeof(T) == sizeof(S) && p.past_caches;
    for (int j = 0; j < F::kOut; ++j)
        past_caches = past_caches && reinterpret_cast<uintptr_t>(p.out[j] + start) % sizeof(V) == 0;
    const auto step = [&](int64_t k, uint64_t& bits, int shift) __attribute__((always_inline)) {
        V in[F::kIn], out[F::kOut];
        for (int j = 0; j < F::kIn; ++j) {
            if (F::kTakesMask && kMasked && j == F::kIn - 1)
                in[j] = signs_of(mask_bits(p.mask, start + k), V{});
            else
                in[j] = Storage<T>::read(p.in[j] + start + k);
        }
        const V b = kAlong ? load<V>(c.bias + k) : row_bias;
        const V r = F::apply(in, b, kAlong ? load<V>(c.extra + k) : row_extra, s, out);
        if constexpr (F::kMakesMask && kMasked) bits |= static_cast<uint64_t>(positive_bits(in[0] + b)) << shift;
        for (int j = 0; j < F::kOut; ++j) {
            if (past_caches)
                stream(p.out[j] + start + k, out[j]);
            else
                Storage<T>::write(p.out[j] + start + k, out[j]);
        }
        if (kAlong && c.sums) store(c.sums + k, load<V>(c.sums + k) + r);
        return r;
    };
    // On AVX-512 four packs fill a word of the mask. Longer formulas keep the processor busy by themselves.
    constexpr int kTogether = F::kMakesMask || F::kTakesMask ? 4 : 1;
    V totals[2] = {splat<V>(0), splat<V>(0)};
    int64_t k = 0;
    for (; k + kTogether * kStep <= n; k += kTogether * kStep) {
        uint64_t bits = 0;
        for (int j = 0; j < kTogether; ++j) totals[j % 2] += step(k + j * kStep, bits, j * static_cast<int>(kStep));
        if constexpr (F::kMakesMask && kMasked) writer.add(bits, kTogether * static_cast<int>(kStep));
    }
    if constexpr (kTogether > 1)
        for (; k < n; k += kStep) {
            uint64_t bits = 0;
            totals[0] += step(k, bits, 0);
            if constexpr (F::kMakesMask && kMasked) writer.add(bits, static_cast<int>(kStep));
        }
    if constexpr (F::kMakesMask && kMasked) writer.finish();
    return totals[0] + totals[1];
}

// A formula over tensors.
template <class T>
struct Pass {
    using V = Pack<T>;
    using S = Scalar<V>;
    static constexpr int64_t kStep = lanes<T>();
    V (*loops[2])(const Pointers<T>&, int64_t, int64_t, const Channels<S>&,
                  const Settings<S>&);  // one bias, or along it
    int in, out;
    bool makes_mask, takes_mask;
    Pointers<T> p;
    Settings<S> s;

    // Elements that lie next to each other.
    V run(int64_t start, int64_t n, const Channels<S>& c) const {
        const int64_t left = n % kStep, whole = n - left;
        V total = splat<V>(0);
        if (whole) total = loops[c.along](p, start, whole, c, s);
        if (left == 0) return total;
        if (whole && !c.along && (!p.mask || (start + n) % 8 == 0)) {
            // A row's last pack begins before the others end: some results twice, the same ones, and counted once. A
            // mask's bits have to begin a byte for that, which they do where all rows end one.
            V last = loops[0](p, start + n - kStep, kStep, c, s);
            for (int64_t lane = 0; lane < kStep - left; ++lane) last[lane] = 0;
            return total + last;
        }
        const int64_t by = c.along ? whole : 0;
        return total +
               run_part(start + whole, left, {c.bias + by, c.extra + by, c.sums ? c.sums + by : nullptr, c.along});
    }

    // Fewer elements than a pack holds: they are taken through the loop in a pack of their own.
    V run_part(int64_t start, int64_t count, const Channels<S>& c) const {
        const auto bytes = static_cast<std::size_t>(count) * sizeof(T);
        const auto numbers = static_cast<std::size_t>(c.along ? count : kStep) * sizeof(S);
        T inputs[3][kStep] = {}, outputs[2][kStep];
        S bias[kStep] = {}, extra[kStep] = {};
        uint8_t mask[8];
        memcpy(bias, c.bias, numbers);
        memcpy(extra, c.extra, numbers);
        Pointers<T> own{{inputs[0], inputs[1], inputs[2]}, {outputs[0], outputs[1]}, false, p.mask ? mask : nullptr};
        for (int j = 0; j < in; ++j)
            if (p.in[j]) memcpy(inputs[j], p.in[j] + start, bytes);
        if (takes_mask && p.mask) {
            const uint32_t bits = mask_bits(p.mask, start);
            memcpy(mask, &bits, sizeof bits);
        }
        V total = loops[1](own, 0, kStep, {bias, extra, nullptr, true}, s);
        for (int j = 0; j < out; ++j) memcpy(p.out[j] + start, outputs[j], bytes);
        for (int64_t lane = 0; lane < count; ++lane) {
            if (c.sums) c.sums[lane] += total[lane];
            if (makes_mask && p.mask) {
                // The packs before may have begun the byte.
                uint8_t& byte = p.mask[(start + lane) >> 3];
                const int place = static_cast<int>((start + lane) & 7);
                const int bit = mask[lane >> 3] >> (lane & 7) & 1;
                byte = static_cast<uint8_t>((byte & ((1 << place) - 1)) | bit << place);
            }
        }
        for (int64_t lane = count; lane < kStep; ++lane) total[lane] = 0;
        return total;
    }
};

// One number a row: the rows in pieces of whole rows, or of parts of one row where rows are long.
template <class T, class S = Scalar<Pack<T>>>
void run_rows(Shape shape, const Pass<T>& pass, const T* bias, const T* extra, S* sums, int threads) {
    const int64_t rows = shape.outer * shape.channels;
    const int64_t parts = (shape.inner + kPiece - 1) / kPiece;  // of a row
    const int64_t group = parts > 1 ? 1 : (kPiece + shape.inner - 1) / shape.inner;  // rows of a piece
    const int64_t pieces = parts > 1 ? rows * parts : (rows + group - 1) / group;
    // What each row, or part of a row, adds to its channel's sum.
    const std::unique_ptr<double[]> partial(sums ? new double[rows * parts] : nullptr);
    parallel_for(pieces, threads, shape.size() < kSmall, [&](int64_t piece) {
        const int64_t part = parts > 1 ? piece % parts : 0;
        const int64_t first = parts > 1 ? piece / parts : piece * group;
        const int64_t last = first + group < rows ? first + group : rows;
        const int64_t begin = part * kPiece;
        const int64_t n = parts > 1 && begin + kPiece < shape.inner ? kPiece : shape.inner - begin;
        int64_t c = first % shape.channels;
        for (int64_t row = first; row < last; ++row) {
            const S b = bias ? to_scalar(bias[c]) : S(0), e = extra ? to_scalar(extra[c]) : S(0);
            const Pack<T> same[2] = {splat<Pack<T>>(b), splat<Pack<T>>(e)};
            const auto* numbers = reinterpret_cast<const S*>(same);
            const Channels<S> channel{numbers, numbers + lanes<T>(), nullptr, false};
            const Pack<T> total = pass.run(row * shape.inner + begin, n, channel);
            if (sums) partial[row * parts + part] = sum_lanes(total);
            if (++c == shape.channels) c = 0;
        }
        if (pass.p.past_caches) stream_done();
    });
    if (!sums) return;
    for (int64_t c = 0; c < shape.channels; ++c) {
        double sum = 0;
        for (int64_t n = 0; n < shape.outer; ++n)
            for (int64_t k = 0; k < parts; ++k) sum += partial[(n * shape.channels + c) * parts + k];
        sums[c] = static_cast<S>(sum);
    }
}

// The bias along the innermost axis, or rows too short for a loop of their own: `row` elements that it repeats after.
// What is short is repeated until it fills packs and is long enough for a loop.
template <class T, class S = Scalar<Pack<T>>>
void run_innermost(Shape shape, const Pass<T>& pass, const T* bias, const T* extra, S* sums, int threads) {
    constexpr int64_t kLong = 512;
    const int64_t row = shape.channels * shape.inner;
    int64_t repeat = row % lanes<T>() == 0 || row > 1024 ? 1 : lanes<T>();
    if (row * repeat < kLong) repeat *= kLong / (row * repeat);
    if (repeat > shape.outer) repeat = shape.outer;
    const int64_t width = row * repeat;
    // Sums over a piece cost as much as a row of it.
    const int64_t fewest = 8, most = (kPiece + width - 1) / width;
    const int64_t rows_per_piece = (most < fewest ? fewest : most) * repeat;
    const int64_t pieces = (shape.outer + rows_per_piece - 1) / rows_per_piece;
    const std::unique_ptr<S[]> b(new S[width]), e(new S[width]);
    for (int64_t k = 0; k < width;)
        for (int64_t c = 0; c < shape.channels; ++c)
            for (int64_t i = 0; i < shape.inner; ++i, ++k) {
                b[k] = bias ? static_cast<S>(to_scalar(bias[c])) : S(0);
                e[k] = extra ? static_cast<S>(to_scalar(extra[c])) : S(0);
            }
    const std::unique_ptr<double[]> partial(sums ? new double[pieces * shape.channels]() : nullptr);
    parallel_for(pieces, threads, shape.size() < kSmall, [&](int64_t piece) {
        const int64_t begin = piece * rows_per_piece * row;
        const int64_t rest = shape.size() - begin;
        const int64_t n = rest < rows_per_piece * row ? rest : rows_per_piece * row;
        const std::unique_ptr<S[]> own(sums ? new S[width]() : nullptr);
        const Channels<S> all{b.get(), e.get(), own.get(), true};
        for (int64_t k = 0; k < n; k += width) pass.run(begin + k, n - k < width ? n - k : width, all);
        if (pass.p.past_caches) stream_done();
        if (!sums) return;
        for (int64_t k = 0; k < width;)
            for (int64_t c = 0; c < shape.channels; ++c) {
                S sum = 0;
                for (int64_t i = 0; i < shape.inner; ++i) sum += own[k++];
                partial[piece * shape.channels + c] += sum;
            }
    });
    if (!sums) return;
    for (int64_t c = 0; c < shape.channels; ++c) {
        double sum = 0;
        for (int64_t piece = 0; piece < pieces; ++piece) sum += partial[piece * shape.channels + c];
        sums[c] = static_cast<S>(sum);
    }
}

// Whether rows are so short, and repeat so soon and so often, that they are better taken as one.
template <class T>
bool short_rows(const Shape& shape) {
    if (shape.inner == 1) return true;
    if (shape.inner >= lanes<T>() && shape.outer < 8) return false;
    return shape.inner < 128 && shape.channels * shape.inner <= 32768;
}

template <class T, class F>
Pass<T> pass_of(bool masked) {
    Pass<T> pass{{&run_packs<false, false, T, F>, &run_packs<true, false, T, F>},
                 F::kIn,
                 F::kOut,
                 F::kMakesMask,
                 F::kTakesMask,
                 {},
                 {}};
    if constexpr (F::kMakesMask || F::kTakesMask)
        if (masked) {
            pass.loops[0] = &run_packs<false, true, T, F>;
            pass.loops[1] = &run_packs<true, true, T, F>;
        }
    return pass;
}

}  // namespace
}  // namespace PF_NAMESPACE
