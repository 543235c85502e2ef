// Element types as they lie in memory, and how a pack of the computing type is loaded from and stored to them.
// bfloat16 and float16 are computed in float32.
#pragma once

#include "simd.h"

#include "../math/elementary.h"

namespace PF_NAMESPACE {

// The numbers are shared with pyfastgan/ops/_native.py.
enum Type { kFloat32, kFloat64, kBfloat16, kFloat16 };

struct bfloat16 {
    uint16_t bits;
};
struct float16 {
    uint16_t bits;
};

// Round to nearest even; NaN keeps its sign and becomes quiet.
PF_FN uint16_t to_bfloat16(float x) {
    const uint32_t b = static_cast<uint32_t>(as_bits(x));
    if (x != x) return static_cast<uint16_t>((b >> 16) | 0x40u);
    return static_cast<uint16_t>((b + 0x7fffu + ((b >> 16) & 1u)) >> 16);
}

PF_FN float from_float16(uint16_t h) {
    const uint32_t sign = static_cast<uint32_t>(h & 0x8000u) << 16, rest = h & 0x7fffu;
    if (rest >= 0x7c00u) return from_bits(static_cast<int32_t>(sign | 0x7f800000u | ((rest & 0x3ffu) << 13)));
    // Shifting the fields gives the value times 2^-112, subnormals included.
    const float magnitude = from_bits(static_cast<int32_t>(rest << 13)) * 5.192296858534828e33f;
    return from_bits(as_bits(magnitude) | static_cast<int32_t>(sign));
}

PF_FN uint16_t to_float16(float x) {
    const uint32_t b = static_cast<uint32_t>(as_bits(x));
    const uint32_t sign = (b >> 16) & 0x8000u, a = b & 0x7fffffffu;
    if (a > 0x7f800000u) return static_cast<uint16_t>(sign | 0x7e00u);
    if (a >= 0x477ff000u) return static_cast<uint16_t>(sign | 0x7c00u);  // 65520 and above round to infinity
    if (a < 0x38800000u) {
        // Subnormal: adding 1/2 puts the last kept bit at the end of the fraction, and the addition rounds to even.
        const float shifted = from_bits(static_cast<int32_t>(a)) + 0.5f;
        return static_cast<uint16_t>(sign | (static_cast<uint32_t>(as_bits(shifted)) - 0x3f000000u));
    }
    return static_cast<uint16_t>(sign | ((a - 0x38000000u + 0xfffu + ((a >> 13) & 1u)) >> 13));
}

PF_FN float to_scalar(float x) { return x; }
PF_FN double to_scalar(double x) { return x; }
PF_FN float to_scalar(bfloat16 x) { return from_bits(static_cast<int32_t>(static_cast<uint32_t>(x.bits) << 16)); }
PF_FN float to_scalar(float16 x) { return from_float16(x.bits); }

template <class T, class S>
PF_FN T from_scalar(S x) {
    if constexpr (std::is_same_v<T, bfloat16>)
        return {to_bfloat16(x)};
    else if constexpr (std::is_same_v<T, float16>)
        return {to_float16(x)};
    else
        return x;
}

// For each storage type: the pack it is computed in, a full load and a full store.
template <class T>
struct Storage;

template <>
struct Storage<float> {
    using Pack = vfloat;
    static PF_FN Pack read(const float* p) { return load<vfloat>(p); }
    static PF_FN void write(float* p, Pack v) { store(p, v); }
};

template <>
struct Storage<double> {
    using Pack = vdouble;
    static PF_FN Pack read(const double* p) { return load<vdouble>(p); }
    static PF_FN void write(double* p, Pack v) { store(p, v); }
};

template <>
struct Storage<bfloat16> {
    using Pack = vfloat;
    static PF_FN Pack read(const bfloat16* p) { return from_bits(__builtin_convertvector(load<vhalf>(p), vint) << 16); }
    static PF_FN void write(bfloat16* p, Pack v) {
        const vint b = as_bits(v);
        const vint rounded = select(v != v, b | 0x400000, b + 0x7fff + ((b >> 16) & 1));
        store(p, __builtin_convertvector((rounded >> 16) & 0xffff, vhalf));
    }
};

template <>
struct Storage<float16> {
    using Pack = vfloat;
    static PF_FN Pack read(const float16* p) {
#if defined(__AVX512F__)
        return (vfloat)_mm512_cvtph_ps((__m256i)load<vhalf>(p));
#elif defined(__AVX2__) && defined(__F16C__)
        return (vfloat)_mm256_cvtph_ps((__m128i)load<vhalf>(p));
#else
        vfloat v;
        for (int k = 0; k < kLanes; ++k) v[k] = from_float16(p[k].bits);
        return v;
#endif
    }
    static PF_FN void write(float16* p, Pack v) {
#if defined(__AVX512F__)
        store(p, (vhalf)_mm512_cvtps_ph((__m512)v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
#elif defined(__AVX2__) && defined(__F16C__)
        store(p, (vhalf)_mm256_cvtps_ph((__m256)v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
#else
        for (int k = 0; k < kLanes; ++k) p[k].bits = to_float16(v[k]);
#endif
    }
};

template <class T>
using Pack = typename Storage<T>::Pack;

template <class T>
constexpr int lanes() {
    return static_cast<int>(sizeof(Pack<T>) / sizeof(Scalar<Pack<T>>));
}

// The first n elements (the rest zero), and the same for writing: the end of a row never touches what lies behind it.
template <class T>
PF_FN Pack<T> read_part(const T* p, int64_t n) {
    T buffer[lanes<T>()] = {};
    memcpy(buffer, p, static_cast<std::size_t>(n) * sizeof(T));
    return Storage<T>::read(buffer);
}
template <class T>
PF_FN void write_part(T* p, Pack<T> v, int64_t n) {
    T buffer[lanes<T>()];
    Storage<T>::write(buffer, v);
    memcpy(p, buffer, static_cast<std::size_t>(n) * sizeof(T));
}

// Calls f with a value of the storage type that `type` names.
template <class F>
const char* with_type(int type, F f) {
    switch (type) {
        case kFloat32:
            return f(float{});
        case kFloat64:
            return f(double{});
        case kBfloat16:
            return f(bfloat16{});
        case kFloat16:
            return f(float16{});
    }
    return "unknown element type";
}

}  // namespace PF_NAMESPACE
