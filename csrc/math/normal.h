// Uniform and normal numbers from 32-bit words w. Both are defined by the real number u = (w + 1/2) / 2^32:
// uniform(w) is u rounded down in the output type, and the normals of a word pair are Box and Muller's (1958)
// sqrt(-2 ln u0) (cos 2 pi u1, sin 2 pi u1). u is never rounded before the logarithm, so that the tails are right.
// W is an unsigned 32-bit word (or a pack of them), V the matching float (or pack).
#pragma once

#include <type_traits>

#include "elementary.h"

namespace PF_NAMESPACE {

// (w + 1/2) / 2^32 rounded down to float32.
template <class W>
PF_FN auto uniform_float(W w) {
    const auto top = to_float(to_signed(w >> 8)) * 256.0f;
    const auto rest = to_float(to_signed(w & 255u)) + 0.5f;
    const auto sum = top + rest;
    // sum - top is exact, so this is true just where the sum was rounded up; the number below has the bits less one.
    const auto bits = as_bits(sum);
    return from_bits(select((sum - top) > rest, bits - 1, bits)) * 2.3283064365386963e-10f;
}

// v in [0, 1) rounded down to the numbers that bfloat16, and float16, can hold: a uniform number stays below 1 in every
// type. Rounding down twice is rounding down once.
template <class V>
PF_FN V round_down_bfloat16(V v) {
    return from_bits(as_bits(v) & static_cast<int32_t>(0xffff0000));
}
template <class V>
PF_FN V round_down_float16(V v) {
    // Ten fraction bits down to 2^-14. Below, the spacing is 2^-24, as it is of float32 between 1/2 and 1.
    const V normal = from_bits(as_bits(v) & static_cast<int32_t>(0xffffe000));
    const V nearest = (v + 0.5f) - 0.5f;
    const V subnormal = select(nearest > v, nearest - 5.9604644775390625e-8f, nearest);
    return select(v < 6.103515625e-5f, subnormal, normal);
}

// Of a number that is neither zero nor subnormal.
template <class V>
PF_FN V root_of_positive(V x) {
    return square_root(x);
}

// x > 0, not subnormal, as m 2^e with m in [1, 2).
template <class V>
PF_FN void split(V x, V& m, V& e) {
    const auto bits = as_bits(x);
    m = from_bits((bits & 0x7fffff) | 0x3f800000);
    e = to_float((bits >> 23) - 127);
}

// -2 ln u. A conversion of w as a signed number gives u below 1/2, and above it u - 1 with no cancellation. Both sides
// end in ln(1 + g / 2) with g in [-1, 0], and no two terms of a sum differ in sign.
template <class W>
PF_FN auto minus_two_log_uniform(W w) {
    const auto x = to_float(to_signed(w)) * 4.656612873077393e-10f + 2.3283064365386963e-10f;  // 2u or 2 (u - 1)
    using V = std::remove_const_t<decltype(x)>;
    V m, e;
    split(x, m, e);
    const auto below = x > 0.0f;
    const V g = select(below, m - 2.0f, x), halvings = select(below, e, splat<V>(0.0f));
    return g * polynomial(g, -1.0f, 2.49996424e-01f, -8.34251568e-02f, 3.03506348e-02f, -1.68507956e-02f,
                          -6.36058953e-03f, -1.96510889e-02f, -1.32485302e-02f, -5.62932761e-03f) +
           halvings * -1.38629436f;
}

// cos and sin of 2 pi u; the reduction to an eighth of a turn is exact, in integers.
template <class W, class V>
PF_FN void cos_sin_turn(W w, V& cosine, V& sine) {
    // The two upper bits of `turned` are the nearest quarter, and w's others, signed, what is left.
    const W turned = w + 0x20000000u, ahead = turned + 0x40000000u;
    const V t = to_float(to_signed(w << 2)) * 3.65729520e-10f + 7.31459040e-10f;
    const V u = t * t;
    const V s = t + t * u * polynomial(u, -1.66666552e-01f, 8.332178e-03f, -1.95172994e-04f);
    const V c = 1.0f + u * polynomial(u, -0.5f, 4.16666232e-02f, -1.38867635e-03f, 2.43904506e-05f);
    const auto swapped = to_signed(turned << 1) < 0;
    cosine = from_bits(as_bits(select(swapped, s, c)) ^ to_signed(ahead & 0x80000000u));
    sine = from_bits(as_bits(select(swapped, c, s)) ^ to_signed(turned & 0x80000000u));
}

template <class W, class V>
PF_FN void box_muller(W w0, W w1, V& z0, V& z1) {
    const V radius = root_of_positive(minus_two_log_uniform(w0));
    V cosine, sine;
    cos_sin_turn(w1, cosine, sine);
    z0 = radius * cosine;
    z1 = radius * sine;
}

// The same two numbers in float64.
PF_FN void box_muller_double(uint32_t w0, uint32_t w1, double& z0, double& z1) {
    const double radius = ::sqrt(-2.0 * ::log((w0 + 0.5) * 2.3283064365386963e-10));
    const uint32_t quarter = (w1 + 0x20000000u) >> 30;
    const double t = (static_cast<int32_t>(w1 - (quarter << 30)) + 0.5) * 1.46291807926715968e-9;
    const double s = ::sin(t), c = ::cos(t);
    const double cosine = quarter & 1u ? s : c, sine = quarter & 1u ? c : s;
    z0 = radius * ((quarter + 1u) & 2u ? -cosine : cosine);
    z1 = radius * (quarter & 2u ? -sine : sine);
}

}  // namespace PF_NAMESPACE
