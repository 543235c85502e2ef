// Uniform and normal numbers from 32-bit words w. Both are defined by the real number u = (w + 1/2) / 2^32:
// uniform(w) is u rounded down in the output type, and the normals of a word pair are Box and Muller's (1958)
// sqrt(-2 ln u0) (cos 2 pi u1, sin 2 pi u1). u is never rounded before the logarithm, so that the tails are right.
// W is an unsigned 32-bit word (or a pack of them), V the matching float (or pack).
#pragma once

#include "elementary.h"

namespace PF_NAMESPACE {

// w + 1/2, rounded once.
template <class W>
PF_FN auto word_plus_half(W w) {
    return to_float(to_signed(w >> 8)) * 256.0f + (to_float(to_signed(w & 255u)) + 0.5f);
}

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

// ln((w + 1/2) / 2^32). Near u = 1 it starts from 1 - u, which has no cancellation.
template <class W>
PF_FN auto log_uniform(W w) {
    const auto near_one = w > 0xB504F333u;  // sqrt(1/2) * 2^32
    const auto complement = (to_float(to_signed(~w & 0x7fffffffu)) + 0.5f) * -2.3283064365386963e-10f;
    const auto x = word_plus_half(w);
    const auto exponent = (as_bits(x) - 0x3f3504f3) >> 23;
    const auto mantissa = from_bits(as_bits(x) - (exponent << 23)) - 1.0f;
    const auto f = select(near_one, complement, mantissa);
    const auto e = select(near_one, complement * 0.0f, to_float(exponent - 32));
    return e * kLn2High + (e * kLn2Low + log1p_near_zero(f));
}

// cos and sin of 2 pi (w + 1/2) / 2^32; the reduction to an eighth of a turn is exact, in integers.
template <class W, class V>
PF_FN void cos_sin_turn(W w, V& cosine, V& sine) {
    const auto quarter = (w + 0x20000000u) >> 30;
    const V t = (to_float(to_signed(w - (quarter << 30))) + 0.5f) * 1.46291807926715968e-9f;
    const V u = t * t;
    const V s = t + t * u * polynomial(u, -1.6666667e-01f, 8.333329e-03f, -1.9839335e-04f, 2.7183041e-06f);
    const V c = 1.0f - (0.5f * u - u * u * polynomial(u, 4.1666646e-02f, -1.3887367e-03f, 2.443838e-05f));
    const auto swapped = to_signed(quarter & 1u) == 1;
    cosine = from_bits(as_bits(select(swapped, s, c)) ^ to_signed(((quarter + 1u) & 2u) << 30));
    sine = from_bits(as_bits(select(swapped, c, s)) ^ to_signed((quarter & 2u) << 30));
}

template <class W, class V>
PF_FN void box_muller(W w0, W w1, V& z0, V& z1) {
    const V radius = square_root(-2.0f * log_uniform(w0));
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
