// SIMD packs from the compiler's vector extensions, and the functions that csrc/math asks of a value type.
// Include it before any formula: built-in vector types are not found by argument-dependent lookup.
#pragma once

#include <cstddef>
#include <type_traits>
#include <utility>

#include "../math/value.h"

#if defined(__SSE2__)
#include <immintrin.h>
#endif

namespace PF_NAMESPACE {

#if defined(__AVX512F__)
constexpr int kVectorBytes = 64;
#elif defined(__AVX2__)
constexpr int kVectorBytes = 32;
#else
constexpr int kVectorBytes = 16;
#endif

constexpr int kLanes = kVectorBytes / 4;  // of 32 bits

typedef float vfloat __attribute__((vector_size(kVectorBytes)));
typedef int32_t vint __attribute__((vector_size(kVectorBytes)));
typedef uint32_t vuint __attribute__((vector_size(kVectorBytes)));
typedef double vdouble __attribute__((vector_size(kVectorBytes)));
typedef int64_t vlong __attribute__((vector_size(kVectorBytes)));
typedef uint64_t vword __attribute__((vector_size(kVectorBytes)));  // a 32-bit word in each 64-bit lane
typedef uint16_t vhalf __attribute__((vector_size(kVectorBytes / 2)));

template <class V>
PF_FN V load(const void* p) {
    V v;
    memcpy(&v, p, sizeof v);
    return v;
}
template <class V>
PF_FN void store(void* p, V v) {
    memcpy(p, &v, sizeof v);
}

// A store past the caches, to a multiple of the pack's size: its line is not fetched first only to be overwritten.
// `stream_done` orders such stores before what other threads are told.
template <class V>
PF_FN void stream(void* p, V v) {
#if defined(__AVX512F__)
    _mm512_stream_si512(static_cast<__m512i*>(p), (__m512i)v);
#elif defined(__AVX2__)
    _mm256_stream_si256(static_cast<__m256i*>(p), (__m256i)v);
#elif defined(__SSE2__)
    _mm_stream_si128(static_cast<__m128i*>(p), (__m128i)v);
#else
    store(p, v);
#endif
}
PF_FN void stream_done() {
#if defined(__SSE2__)
    _mm_sfence();
#endif
}

PF_FN float scalar_of(vfloat) { return 0; }
PF_FN double scalar_of(vdouble) { return 0; }

PF_FN vfloat select(vint c, vfloat a, vfloat b) { return c ? a : b; }
PF_FN vint select(vint c, vint a, vint b) { return c ? a : b; }
PF_FN vdouble select(vlong c, vdouble a, vdouble b) { return c ? a : b; }

PF_FN vfloat at_most(vfloat x, float bound) {
#if defined(__AVX512F__)
    return (vfloat)_mm512_min_ps((__m512)(vfloat{} + bound), (__m512)x);  // the second operand where one is NaN
#elif defined(__AVX2__)
    return (vfloat)_mm256_min_ps((__m256)(vfloat{} + bound), (__m256)x);
#else
    return (vfloat{} + bound) < x ? vfloat{} + bound : x;
#endif
}
PF_FN vfloat at_least(vfloat x, float bound) {
#if defined(__AVX512F__)
    return (vfloat)_mm512_max_ps((__m512)(vfloat{} + bound), (__m512)x);
#elif defined(__AVX2__)
    return (vfloat)_mm256_max_ps((__m256)(vfloat{} + bound), (__m256)x);
#else
    return (vfloat{} + bound) > x ? vfloat{} + bound : x;
#endif
}

#if defined(__AVX512F__)
// x * 2^k for whole k.
PF_FN vfloat times_power_of_two(vfloat x, vfloat k) { return (vfloat)_mm512_scalef_ps((__m512)x, (__m512)k); }
#endif

PF_FN vint as_bits(vfloat x) { return (vint)x; }
PF_FN vfloat from_bits(vint i) { return (vfloat)i; }
PF_FN vfloat to_float(vint i) { return __builtin_convertvector(i, vfloat); }
PF_FN vint to_signed(vuint w) { return (vint)w; }

PF_FN vfloat square_root(vfloat x) {
#if defined(__AVX512F__)
    return (vfloat)_mm512_sqrt_ps((__m512)x);
#elif defined(__AVX2__)
    return (vfloat)_mm256_sqrt_ps((__m256)x);
#elif defined(__SSE2__)
    return (vfloat)_mm_sqrt_ps((__m128)x);
#else
    for (int k = 0; k < kLanes; ++k) x[k] = ::sqrtf(x[k]);
    return x;
#endif
}

// a's low 32 bits times m; the product's low half keeps the high one above it, which the next round ignores.
PF_FN void multiply_wide(vword a, uint32_t m, vword& high, vword& low) {
    const vword b = vword{} + m;
#if defined(__AVX512F__)
    low = (vword)_mm512_mul_epu32((__m512i)a, (__m512i)b);
#elif defined(__AVX2__)
    low = (vword)_mm256_mul_epu32((__m256i)a, (__m256i)b);
#elif defined(__SSE2__)
    low = (vword)_mm_mul_epu32((__m128i)a, (__m128i)b);
#else
    low = (a & 0xffffffffu) * b;
#endif
    high = low >> 32;
}

template <std::size_t... I>
PF_FN vfloat interleave_low(vfloat a, vfloat b, std::index_sequence<I...>) {
    return __builtin_shufflevector(a, b, (I / 2 + (I % 2) * kLanes)...);
}
template <std::size_t... I>
PF_FN vfloat interleave_high(vfloat a, vfloat b, std::index_sequence<I...>) {
    return __builtin_shufflevector(a, b, (kLanes / 2 + I / 2 + (I % 2) * kLanes)...);
}
// a0 b0 a1 b1 ... : the first and the second half of the two vectors merged.
PF_FN vfloat interleave_low(vfloat a, vfloat b) { return interleave_low(a, b, std::make_index_sequence<kLanes>{}); }
PF_FN vfloat interleave_high(vfloat a, vfloat b) { return interleave_high(a, b, std::make_index_sequence<kLanes>{}); }

// The sum of all lanes in float64, by halves.
template <int kBy, std::size_t... I>
PF_FN vdouble rotate(vdouble x, std::index_sequence<I...>) {
    return __builtin_shufflevector(x, x, ((I + kBy) % sizeof...(I))...);
}
template <int kHalf = kLanes / 4>
PF_FN double sum_lanes(vdouble x) {
    if constexpr (kHalf == 0)
        return x[0];
    else
        return sum_lanes<kHalf / 2>(x + rotate<kHalf>(x, std::make_index_sequence<kLanes / 2>{}));
}
template <std::size_t... I>
PF_FN double sum_lanes(vfloat x, std::index_sequence<I...>) {
    return sum_lanes(__builtin_convertvector(__builtin_shufflevector(x, x, I...), vdouble) +
                     __builtin_convertvector(__builtin_shufflevector(x, x, (I + kLanes / 2)...), vdouble));
}
PF_FN double sum_lanes(vfloat x) { return sum_lanes(x, std::make_index_sequence<kLanes / 2>{}); }

// Row r, lane c to row c, lane r, for as many rows as a pack has lanes. Each round turns the bits of (r, c) by one.
PF_FN void transpose(vfloat* rows) {
    vfloat other[kLanes];
    vfloat *from = rows, *to = other;
#pragma GCC unroll 4
    for (int round = 1; round < kLanes; round *= 2) {
#pragma GCC unroll 8
        for (int k = 0; k < kLanes / 2; ++k) {
            to[2 * k] = interleave_low(from[k], from[k + kLanes / 2]);
            to[2 * k + 1] = interleave_high(from[k], from[k + kLanes / 2]);
        }
        vfloat* const swapped = from;
        from = to;
        to = swapped;
    }
    if (from != rows)
        for (int k = 0; k < kLanes; ++k) rows[k] = from[k];
}
PF_FN void transpose(vdouble* rows) {
    for (int r = 0; r < kLanes / 2; ++r)
        for (int c = 0; c < r; ++c) {
            const double above = rows[c][r];
            rows[c][r] = rows[r][c];
            rows[r][c] = above;
        }
}

// One bit a lane: whether it is above zero, lane 0 in bit 0.
PF_FN uint32_t positive_bits(vfloat x) {
#if defined(__AVX512F__)
    return _mm512_cmp_ps_mask((__m512)x, _mm512_setzero_ps(), _CMP_GT_OQ);
#elif defined(__AVX2__)
    return static_cast<uint32_t>(_mm256_movemask_ps((__m256)(x > 0.0f)));
#elif defined(__SSE2__)
    return static_cast<uint32_t>(_mm_movemask_ps((__m128)(x > 0.0f)));
#else
    uint32_t bits = 0;
    for (int k = 0; k < kLanes; ++k) bits |= static_cast<uint32_t>(x[k] > 0.0f) << k;
    return bits;
#endif
}
PF_FN uint32_t positive_bits(vdouble x) {
    uint32_t bits = 0;
    for (int k = 0; k < kLanes / 2; ++k) bits |= static_cast<uint32_t>(x[k] > 0.0) << k;
    return bits;
}

// 1 where the lane's bit is set, -1 elsewhere.
template <std::size_t... I>
PF_FN vint lane_bits(std::index_sequence<I...>) {
    return vint{(1 << I)...};
}
PF_FN vfloat signs_of(uint32_t bits, vfloat) {
    const vint set = (vint{} + static_cast<int32_t>(bits)) & lane_bits(std::make_index_sequence<kLanes>{});
    return select(set != 0, vfloat{} + 1.0f, vfloat{} - 1.0f);
}
PF_FN vdouble signs_of(uint32_t bits, vdouble x) {
    for (int k = 0; k < kLanes / 2; ++k) x[k] = bits >> k & 1u ? 1.0 : -1.0;
    return x;
}

// float64 goes through the standard library lane by lane: it is here to be right, not to be fast.
template <class F>
PF_FN vdouble each_lane(vdouble x, F f) {
    for (int k = 0; k < kLanes / 2; ++k) x[k] = f(x[k]);
    return x;
}
PF_FN vdouble exponential(vdouble x) {
    return each_lane(x, [](double v) { return ::exp(v); });
}
PF_FN vdouble exponential_of_unit(vdouble x) { return exponential(x); }
PF_FN vdouble log1p_unit(vdouble x) {
    return each_lane(x, [](double v) { return ::log1p(v); });
}
PF_FN vdouble square_root(vdouble x) {
    return each_lane(x, [](double v) { return ::sqrt(v); });
}
PF_FN vdouble arctangent(vdouble x) {
    return each_lane(x, [](double v) { return ::atan(v); });
}
PF_FN vdouble logarithm(vdouble x) {
    return each_lane(x, [](double v) { return ::log(v); });
}
PF_FN vdouble logistic(vdouble x) { return 1.0 / (1.0 + exponential(-x)); }
PF_FN vdouble hyperbolic_tangent(vdouble x) {
    return each_lane(x, [](double v) { return ::tanh(v); });
}
PF_FN vdouble normal_cdf(vdouble x) {
    return each_lane(x, [](double v) { return 0.5 * ::erfc(v * -0.70710678118654752440); });
}

}  // namespace PF_NAMESPACE
