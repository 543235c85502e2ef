// y = clamp(gain * act(x + bias)), its backward and the backward of that. One pass each.
//
// Floor, n elements of s bytes: forward 2 n s, backward 3 n s, backward of the backward 4 n s (piecewise linear: 3 n s)
// over the copy bandwidth; the arithmetic of the piecewise-linear ones hides under it.
//
// The piecewise-linear ones can keep a bit an element, whether x + bias > 0, instead of y: the backward pass then moves
// 2 n s bytes, and so does the backward of the backward. Bit k of the mask belongs to element k as it lies in memory.
#include "bias_act_loops.h"

#include "../export.h"
#include "../math/activation.h"

namespace PF_NAMESPACE {
namespace {

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
