#pragma once

#include <cstdint>
#include <cstring>

struct __half {
    uint16_t bits;
};

// Round to nearest even; NaN stays NaN.
inline __half __float2half_rn(float x) {
    uint32_t b;
    std::memcpy(&b, &x, sizeof b);
    const uint32_t sign = (b >> 16) & 0x8000u, a = b & 0x7fffffffu;
    if (a > 0x7f800000u) return {static_cast<uint16_t>(0x7e00u)};
    if (a >= 0x477ff000u) return {static_cast<uint16_t>(sign | 0x7c00u)};
    if (a >= 0x38800000u) return {static_cast<uint16_t>(sign | ((a - 0x38000000u + 0xfffu + ((a >> 13) & 1u)) >> 13))};
    float magnitude;
    std::memcpy(&magnitude, &a, sizeof a);
    magnitude += 0.5f;  // the last bit that is kept comes to stand at the end of the fraction
    std::memcpy(&b, &magnitude, sizeof b);
    return {static_cast<uint16_t>(sign | (b - 0x3f000000u))};
}

inline float __half2float(__half x) {
    const uint32_t sign = static_cast<uint32_t>(x.bits & 0x8000u) << 16, rest = x.bits & 0x7fffu;
    // Shifting the fields gives the value times 2^-112, subnormals included; infinity and NaN have their own exponent.
    const uint32_t b = rest >= 0x7c00u ? 0x7f800000u | (rest & 0x3ffu) << 13 : rest << 13;
    float value;
    std::memcpy(&value, &b, sizeof value);
    if (rest < 0x7c00u) value *= 5.192296858534828e33f;
    uint32_t bits;
    std::memcpy(&bits, &value, sizeof bits);
    bits |= sign;
    std::memcpy(&value, &bits, sizeof value);
    return value;
}
