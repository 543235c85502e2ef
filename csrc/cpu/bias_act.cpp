// y = clamp(gain * act(x + bias)), its backward and the backward of that. One pass each.
//
// Floor, n elements of s bytes: forward 2 n s, backward 3 n s, backward of the backward 4 n s (piecewise linear: 3 n s)
// over the copy bandwidth; the arithmetic of the piecewise-linear ones hides under it.
//
// The piecewise-linear ones can keep a bit an element, whether x + bias > 0, instead of y: the backward pass then moves
// 2 n s bytes, and so does the backward of the backward. Bit k of the mask belongs to element k as it lies in memory.
//
// A tensor is (outer, channels, inner). With inner = 1 (channels last, or no spatial extent) the bias runs along the
// innermost axis, otherwise it is one number a row. Sums over all but the channels are made from fixed pieces in a
// fixed order, so that they do not depend on the number of threads.
#include "types.h"
#include "threads.h"

#include <memory>

#include "../export.h"
#include "../math/activation.h"

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
    bool clamped() const { return clamp == clamp; }
};

// The piecewise-linear ones read a sign: the mask's, or the output's, which is that of gain * x.
template <int A, class V>
PF_FN V slope_at(V at, V bias, const Settings<Scalar<V>>& s) {
    if constexpr (piecewise_linear(A))
        return activate_slope<A>(s.flipped ? -at : at, s.slope);
    else
        return activate_slope<A>(at + bias, s.slope);
}

// d y / d x without the activation: gain where the clamp does not bind, zero where it does.
template <int A, class V>
PF_FN V open_gain(V at, V bias, const Settings<Scalar<V>>& s) {
    const V gain = splat<V>(s.gain);
    if (!s.clamped()) return gain;
    V y = at;
    if constexpr (!piecewise_linear(A)) y = activate<A>(at + bias, s.slope) * s.gain;
    return select(absolute(y) >= s.clamp, splat<V>(0), gain);
}

template <int A, class T>
struct Forward {
    using V = Pack<T>;
    static constexpr int kIn = 1, kOut = 1;
    static constexpr bool kMakesMask = piecewise_linear(A), kTakesMask = false;
    static PF_FN V apply(const V* in, V bias, V, const Settings<Scalar<V>>& s, V* out) {
        V y = activate<A>(in[0] + bias, s.slope) * s.gain;
        if (s.clamped()) {
            y = select(y > s.clamp, splat<V>(s.clamp), y);
            y = select(y < -s.clamp, splat<V>(-s.clamp), y);
        }
        out[0] = y;
        return y;
    }
};

// in: dy, and y or the mask's signs (piecewise linear) or x; `extra` is added to dy. Returns dx, which is also what the
// bias gradient sums.
template <int A, class T>
struct Backward {
    using V = Pack<T>;
    static constexpr int kIn = 2, kOut = 1;
    static constexpr bool kMakesMask = false, kTakesMask = piecewise_linear(A);
    static PF_FN V apply(const V* in, V bias, V extra, const Settings<Scalar<V>>& s, V* out) {
        out[0] = (in[0] + extra) * slope_at<A>(in[1], bias, s) * open_gain<A>(in[1], bias, s);
        return out[0];
    }
};

// in: ddx, dy, x; `extra` is the cotangent of the bias gradient. out: gradients to dy and to x.
template <int A, class T>
struct BackwardBackward {
    using V = Pack<T>;
    static constexpr int kIn = 3, kOut = 2;
    static constexpr bool kMakesMask = false, kTakesMask = false;
    static PF_FN V apply(const V* in, V bias, V extra, const Settings<Scalar<V>>& s, V* out) {
        const V v = (in[0] + extra) * open_gain<A>(in[2], bias, s);
        out[0] = v * slope_at<A>(in[2], bias, s);
        out[1] = v * in[1] * activate_curvature<A>(in[2] + bias);
        return out[1];
    }
};

template <class T, class F>
struct Pointers {
    const T* in[F::kIn];
    T* out[F::kOut];
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

// n elements that lie next to each other. Along the innermost axis (kAlong) `bias` and `extra` advance with them, and
// `sums` gets what F returns, per element; else they are one number each, and the sum of what F returns is the result.
// p and s are copies: behind a reference they would be read again after every store.
template <bool kAlong, bool kMasked, class T, class F, class V = Pack<T>, class S = Scalar<V>>
PF_FN V run(const Pointers<T, F> p, int64_t start, int64_t n, const S* bias, const S* extra, S* sums,
            const Settings<S> s) {
    constexpr int64_t kStep = lanes<T>();
    constexpr int kRead = F::kTakesMask && kMasked ? F::kIn - 1 : F::kIn;  // inputs that are tensors
    const V row_bias = splat<V>(*bias), row_extra = splat<V>(*extra);
    MaskWriter writer(p.mask, start);
    // Rows that lie along the bias are short: there it does not pay.
    bool past_caches = !kAlong && sizeof(T) == sizeof(S) && p.past_caches;
    for (int j = 0; j < F::kOut; ++j)
        past_caches = past_caches && reinterpret_cast<uintptr_t>(p.out[j] + start) % sizeof(V) == 0;
    const auto step = [&](int64_t k, uint64_t& bits, int shift) {
        V in[F::kIn], out[F::kOut];
        for (int j = 0; j < kRead; ++j) in[j] = Storage<T>::read(p.in[j] + start + k);
        if constexpr (kRead < F::kIn) in[kRead] = signs_of(mask_bits(p.mask, start + k), V{});
        const V b = kAlong ? load<V>(bias + k) : row_bias;
        const V r = F::apply(in, b, kAlong ? load<V>(extra + k) : row_extra, s, out);
        if constexpr (F::kMakesMask && kMasked) bits |= static_cast<uint64_t>(positive_bits(in[0] + b)) << shift;
        for (int j = 0; j < F::kOut; ++j) {
            if (past_caches)
                stream(p.out[j] + start + k, out[j]);
            else
                Storage<T>::write(p.out[j] + start + k, out[j]);
        }
        if constexpr (kAlong)
            if (sums) store(sums + k, load<V>(sums + k) + r);
        return r;
    };
    // Packs: on AVX-512 four fill a word of the mask. Longer formulas keep the processor busy by themselves.
    constexpr int kTogether = F::kMakesMask || F::kTakesMask ? 4 : 1;
    V totals[2] = {splat<V>(0), splat<V>(0)};
    int64_t k = 0;
    for (; k + kTogether * kStep <= n; k += kTogether * kStep) {
        uint64_t bits = 0;
        for (int j = 0; j < kTogether; ++j) totals[j % 2] += step(k + j * kStep, bits, j * static_cast<int>(kStep));
        if constexpr (F::kMakesMask && kMasked) writer.add(bits, kTogether * static_cast<int>(kStep));
    }
    if constexpr (kTogether > 1)
        for (; k + kStep <= n; k += kStep) {
            uint64_t bits = 0;
            totals[0] += step(k, bits, 0);
            if constexpr (F::kMakesMask && kMasked) writer.add(bits, static_cast<int>(kStep));
        }
    V total = totals[0] + totals[1];
    if (k < n) {
        const int64_t left = n - k;
        V in[F::kIn], out[F::kOut];
        for (int j = 0; j < kRead; ++j) in[j] = read_part(p.in[j] + start + k, left);
        if constexpr (kRead < F::kIn) in[kRead] = signs_of(mask_bits(p.mask, start + k), V{});
        V b = row_bias, e = row_extra;
        if constexpr (kAlong) {
            b = splat<V>(0);
            e = splat<V>(0);
            memcpy(&b, bias + k, static_cast<std::size_t>(left) * sizeof(S));
            memcpy(&e, extra + k, static_cast<std::size_t>(left) * sizeof(S));
        }
        const V r = F::apply(in, b, e, s, out);
        if constexpr (F::kMakesMask && kMasked)
            writer.add(positive_bits(in[0] + b) & ((1u << left) - 1), static_cast<int>(left));
        for (int j = 0; j < F::kOut; ++j) write_part(p.out[j] + start + k, out[j], left);
        for (int lane = 0; lane < left; ++lane) {
            if constexpr (kAlong) {
                if (sums) sums[k + lane] += r[lane];
            } else {
                total[lane] += r[lane];
            }
        }
    }
    if constexpr (F::kMakesMask && kMasked) writer.finish();
    return total;
}

// One number a row: the rows in pieces of whole rows, or of parts of one row where rows are long.
template <bool kMasked, class T, class F, class S = Scalar<Pack<T>>>
void run_rows(Shape shape, const Pointers<T, F>& p, const T* bias, const T* extra, S* sums, const Settings<S>& s,
              int threads) {
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
            const Pack<T> total =
                run<false, kMasked, T, F>(p, row * shape.inner + begin, n, &b, &e, static_cast<S*>(nullptr), s);
            if (sums) partial[row * parts + part] = sum_lanes(total);
            if (++c == shape.channels) c = 0;
        }
        if (p.past_caches) stream_done();
    });
    if (!sums) return;
    for (int64_t c = 0; c < shape.channels; ++c) {
        double sum = 0;
        for (int64_t n = 0; n < shape.outer; ++n)
            for (int64_t k = 0; k < parts; ++k) sum += partial[(n * shape.channels + c) * parts + k];
        sums[c] = static_cast<S>(sum);
    }
}

// The bias along the innermost axis. Few channels are repeated until they fill packs, several rows at a time.
template <bool kMasked, class T, class F, class S = Scalar<Pack<T>>>
void run_innermost(Shape shape, const Pointers<T, F>& p, const T* bias, const T* extra, S* sums, const Settings<S>& s,
                   int threads) {
    const int64_t channels = shape.channels;
    const int64_t repeat = channels % lanes<T>() == 0 || channels > 1024 ? 1 : lanes<T>();
    const int64_t width = channels * repeat;
    const int64_t rows_per_piece = ((kPiece + width - 1) / width) * repeat;
    const int64_t pieces = (shape.outer + rows_per_piece - 1) / rows_per_piece;
    const std::unique_ptr<S[]> b(new S[width]), e(new S[width]);
    for (int64_t k = 0; k < width; ++k) {
        b[k] = bias ? static_cast<S>(to_scalar(bias[k % channels])) : S(0);
        e[k] = extra ? static_cast<S>(to_scalar(extra[k % channels])) : S(0);
    }
    const std::unique_ptr<S[]> partial(sums ? new S[pieces * width]() : nullptr);
    parallel_for(pieces, threads, shape.size() < kSmall, [&](int64_t piece) {
        const int64_t begin = piece * rows_per_piece * channels;
        const int64_t rest = shape.size() - begin;
        const int64_t n = rest < rows_per_piece * channels ? rest : rows_per_piece * channels;
        for (int64_t k = 0; k < n; k += width)
            run<true, kMasked, T, F>(p, begin + k, n - k < width ? n - k : width, b.get(), e.get(),
                                     sums ? partial.get() + piece * width : nullptr, s);
    });
    if (!sums) return;
    for (int64_t c = 0; c < channels; ++c) {
        double sum = 0;
        for (int64_t piece = 0; piece < pieces; ++piece)
            for (int64_t k = c; k < width; k += channels) sum += partial[piece * width + k];
        sums[c] = static_cast<S>(sum);
    }
}

template <bool kMasked, class T, class F, class S = Scalar<Pack<T>>>
void run_shape(Shape shape, const Pointers<T, F>& p, const T* bias, const T* extra, S* sums, const Settings<S>& s,
               int threads) {
    if (shape.inner == 1)
        run_innermost<kMasked, T, F>(shape, p, bias, extra, sums, s, threads);
    else
        run_rows<kMasked, T, F>(shape, p, bias, extra, sums, s, threads);
}

template <template <int, class> class F, class T, int A>
void run_act(Shape shape, const void* const* in, void* const* out, const void* bias, const void* extra, void* sums,
             void* mask, double slope, double gain, double clamp, int threads) {
    using S = Scalar<Pack<T>>;
    using Op = F<A, T>;
    // The bound as the storage type has it, so that a stored y at the bound compares equal to it.
    const S bound = static_cast<S>(to_scalar(from_scalar<T>(static_cast<S>(clamp))));
    const Settings<S> s{static_cast<S>(slope), static_cast<S>(gain), bound, gain < 0 && !mask};
    Pointers<T, Op> p;
    p.past_caches = shape.size() * static_cast<int64_t>(sizeof(T)) >= kPastCaches;
    p.mask = static_cast<uint8_t*>(mask);
    for (int k = 0; k < Op::kIn; ++k) p.in[k] = static_cast<const T*>(in[k]);
    for (int k = 0; k < Op::kOut; ++k) p.out[k] = static_cast<T*>(out[k]);
    if constexpr (Op::kMakesMask)
        if (mask) {
            const int64_t used = (shape.size() + 7) / 8;
            memset(p.mask + used, 0, static_cast<std::size_t>((shape.size() + 63) / 64 * 8 + 8 - used));
        }
    const T* b = static_cast<const T*>(bias);
    const T* e = static_cast<const T*>(extra);
    const std::unique_ptr<S[]> totals(sums ? new S[shape.channels]() : nullptr);
    if (shape.size() > 0) {
        if constexpr (Op::kMakesMask || Op::kTakesMask)
            if (mask) run_shape<true, T, Op>(shape, p, b, e, totals.get(), s, threads);
        if (!mask) run_shape<false, T, Op>(shape, p, b, e, totals.get(), s, threads);
    }
    if (sums)
        for (int64_t c = 0; c < shape.channels; ++c) static_cast<T*>(sums)[c] = from_scalar<T>(totals[c]);
}

// Null where the piecewise-linear activations have no such pass: their second derivative is zero.
template <template <int, class> class F, class T, int A>
constexpr decltype(&run_act<F, T, A>) linear_act() {
    if constexpr (F<A, T>::kMakesMask || F<A, T>::kTakesMask)
        return run_act<F, T, A>;
    else
        return nullptr;
}

template <template <int, class> class F>
const char* dispatch(int type, int act, Shape shape, const void* const* in, void* const* out, const void* bias,
                     const void* extra, void* sums, void* mask, double slope, double gain, double clamp, int threads) {
    return with_type(type, [&](auto t) -> const char* {
        using T = decltype(t);
        decltype(&run_act<F, T, kTanh>) table[] = {linear_act<F, T, 0>(), linear_act<F, T, 1>(), linear_act<F, T, 2>(),
                                                   run_act<F, T, 3>,      run_act<F, T, 4>,      run_act<F, T, 5>,
                                                   run_act<F, T, 6>,      run_act<F, T, 7>};
        if (act < 0 || act >= kActCount || !table[act]) return "unknown activation";
        table[act](shape, in, out, bias, extra, sums, mask, slope, gain, clamp, threads);
        return nullptr;
    });
}

}  // namespace

// mask may be null; then nothing is kept beside y. It has a bit an element in words of 64 and one word of padding.
static const char* bias_act(const void* x, const void* bias, void* y, void* mask, int type, int64_t outer,
                            int64_t channels, int64_t inner, int act, double slope, double gain, double clamp,
                            int threads) {
    const void* in[] = {x};
    void* out[] = {y};
    return dispatch<Forward>(type, act, {outer, channels, inner}, in, out, bias, nullptr, nullptr, mask, slope, gain,
                             clamp, threads);
}
PF_EXPORT(bias_act);

// `at` is y for the piecewise-linear activations and x for the others, null where there is a mask; shift (added to dy)
// and dbias may be null.
static const char* bias_act_backward(const void* dy, const void* shift, const void* at, void* mask, const void* bias,
                                     void* dx, void* dbias, int type, int64_t outer, int64_t channels, int64_t inner,
                                     int act, double slope, double gain, double clamp, int threads) {
    const void* in[] = {dy, at};
    void* out[] = {dx};
    return dispatch<Backward>(type, act, {outer, channels, inner}, in, out, bias, shift, dbias, mask, slope, gain,
                              clamp, threads);
}
PF_EXPORT(bias_act_backward);

// For the smooth activations. shift, the cotangent of the bias gradient, and grad_bias may be null.
static const char* bias_act_backward_backward(const void* ddx, const void* shift, const void* dy, const void* x,
                                              const void* bias, void* grad_dy, void* grad_x, void* grad_bias, int type,
                                              int64_t outer, int64_t channels, int64_t inner, int act, double slope,
                                              double gain, double clamp, int threads) {
    const void* in[] = {ddx, dy, x};
    void* out[] = {grad_dy, grad_x};
    return dispatch<BackwardBackward>(type, act, {outer, channels, inner}, in, out, bias, shift, grad_bias, nullptr,
                                      slope, gain, clamp, threads);
}
PF_EXPORT(bias_act_backward_backward);

}  // namespace PF_NAMESPACE
