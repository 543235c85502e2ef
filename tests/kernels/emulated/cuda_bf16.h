#pragma once

#include <cstdint>
#include <cstring>

struct __nv_bfloat16 {
    uint16_t bits;
};

// Round to nearest even, for numbers.
inline __nv_bfloat16 __float2bfloat16_rn(float x) {
    uint32_t b;
    std::memcpy(&b, &x, sizeof b);
    return {static_cast<uint16_t>((b + 0x7fffu + ((b >> 16) & 1u)) >> 16)};
}

inline float __bfloat162float(__nv_bfloat16 x) {
    const uint32_t b = static_cast<uint32_t>(x.bits) << 16;
    float value;
    std::memcpy(&value, &b, sizeof value);
    return value;
}
