// y = clamp(gain * act(x + bias)), its backward and the backward of that. One pass each.
//
// Floor, n elements of s bytes: forward 2 n s, backward 3 n s, backward of the backward 4 n s (piecewise linear: 3 n s)
// over the copy bandwidth; the arithmetic of the piecewise-linear ones hides under it.
//
// The piecewise-linear ones can keep a bit an element, whether x + bias > 0, instead of y: the backward pass then moves
// 2 n s bytes, and so does the backward of the backward. Bit k of the mask belongs to element k as it lies in memory.
//
// A tensor is (outer, channels, inner). With inner = 1 (channels last, or no spatial extent) the bias runs along the
// innermost axis, otherwise it is one number a row; short rows are taken as one, along which it runs too. Sums over all
// but the channels are made from fixed pieces in a fixed order, so that they do not depend on the number of threads.
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
    bool rectified;  // relu, whose result is 0 also for -inf
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
        const V x = in[0] + bias;
        V y = activate<A>(x, s.slope);
        if constexpr (piecewise_linear(A))
            if (s.rectified) y = activate<kRelu>(x, s.slope);
        y = y * s.gain;
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

struct Call {
    Shape shape;
    const void* const* in;
    void* const* out;
    const void *bias, *extra;
    void *sums, *mask;
    int act;
    double slope, gain, clamp;
    int threads;
};

template <class T>
void run_call(const Call& call, Pass<T> pass) {
    using S = Scalar<Pack<T>>;
    const Shape shape = call.shape;
    // What linear and relu are beside leaky relu is another slope, save for relu's own values.
    pass.s.slope = static_cast<S>(call.act == kLinear ? 1 : call.act == kRelu ? 0 : call.slope);
    pass.s.rectified = call.act == kRelu;
    pass.s.gain = static_cast<S>(call.gain);
    // The bound as the storage type has it, so that a stored y at the bound compares equal to it.
    pass.s.clamp = static_cast<S>(to_scalar(from_scalar<T>(static_cast<S>(call.clamp))));
    pass.s.flipped = call.gain < 0 && !call.mask;
    Pointers<T>& p = pass.p;
    p.past_caches = shape.size() * static_cast<int64_t>(sizeof(T)) >= kPastCaches;
    p.mask = static_cast<uint8_t*>(call.mask);
    for (int k = 0; k < pass.in; ++k) p.in[k] = static_cast<const T*>(call.in[k]);
    for (int k = 0; k < pass.out; ++k) p.out[k] = static_cast<T*>(call.out[k]);
    if (pass.makes_mask && p.mask) {
        const int64_t used = (shape.size() + 7) / 8;
        memset(p.mask + used, 0, static_cast<std::size_t>((shape.size() + 63) / 64 * 8 + 8 - used));
    }
    const T* bias = static_cast<const T*>(call.bias);
    const T* extra = static_cast<const T*>(call.extra);
    const std::unique_ptr<S[]> totals(call.sums ? new S[shape.channels]() : nullptr);
    if (shape.size() > 0) {
        if (short_rows<T>(shape))
            run_innermost(shape, pass, bias, extra, totals.get(), call.threads);
        else
            run_rows(shape, pass, bias, extra, totals.get(), call.threads);
    }
    if (call.sums)
        for (int64_t c = 0; c < shape.channels; ++c) static_cast<T*>(call.sums)[c] = from_scalar<T>(totals[c]);
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

template <template <int, class> class F>
const char* dispatch(int type, const Call& call) {
    return with_type(type, [&](auto t) -> const char* {
        using T = decltype(t);
        constexpr bool kLinearToo = F<kLeakyRelu, T>::kMakesMask || F<kLeakyRelu, T>::kTakesMask;
        Pass<T> pass{};
        switch (call.act) {
            case kLinear:
            case kRelu:
            case kLeakyRelu:
                // Their second derivative is zero, and there is no such pass.
                if constexpr (kLinearToo) pass = pass_of<T, F<kLeakyRelu, T>>(call.mask);
                break;
            case kTanh:
                pass = pass_of<T, F<kTanh, T>>(call.mask);
                break;
            case kSigmoid:
                pass = pass_of<T, F<kSigmoid, T>>(call.mask);
                break;
            case kSilu:
                pass = pass_of<T, F<kSilu, T>>(call.mask);
                break;
            case kGelu:
                pass = pass_of<T, F<kGelu, T>>(call.mask);
                break;
            case kSoftplus:
                pass = pass_of<T, F<kSoftplus, T>>(call.mask);
                break;
        }
        if (!pass.in) return "unknown activation";
        run_call(call, pass);
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
    const Shape shape{outer, channels, inner};
    return dispatch<Forward>(type, {shape, in, out, bias, nullptr, nullptr, mask, act, slope, gain, clamp, threads});
}
PF_EXPORT(bias_act);

// `at` is y for the piecewise-linear activations and x for the others, null where there is a mask; shift (added to dy)
// and dbias may be null.
static const char* bias_act_backward(const void* dy, const void* shift, const void* at, void* mask, const void* bias,
                                     void* dx, void* dbias, int type, int64_t outer, int64_t channels, int64_t inner,
                                     int act, double slope, double gain, double clamp, int threads) {
    const void* in[] = {dy, at};
    void* out[] = {dx};
    const Shape shape{outer, channels, inner};
    return dispatch<Backward>(type, {shape, in, out, bias, shift, dbias, mask, act, slope, gain, clamp, threads});
}
PF_EXPORT(bias_act_backward);

// For the smooth activations. shift, the cotangent of the bias gradient, and grad_bias may be null.
static const char* bias_act_backward_backward(const void* ddx, const void* shift, const void* dy, const void* x,
                                              const void* bias, void* grad_dy, void* grad_x, void* grad_bias, int type,
                                              int64_t outer, int64_t channels, int64_t inner, int act, double slope,
                                              double gain, double clamp, int threads) {
    const void* in[] = {ddx, dy, x};
    void* out[] = {grad_dy, grad_x};
    const Shape shape{outer, channels, inner};
    return dispatch<BackwardBackward>(
        type, {shape, in, out, bias, shift, grad_bias, nullptr, act, slope, gain, clamp, threads});
}
PF_EXPORT(bias_act_backward_backward);

}  // namespace PF_NAMESPACE
