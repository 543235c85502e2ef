#pragma once

#include <cstdint>
#include <cstring>

struct __half {
    uint16_t bits;
};

// Round to nearest even, for finite numbers.
inline __half __float2half_rn(float x) {
    uint32_t b;
    std::memcpy(&b, &x, sizeof b);
    const uint32_t sign = (b >> 16) & 0x8000u, a = b & 0x7fffffffu;
    if (a >= 0x477ff000u) return {static_cast<uint16_t>(sign | 0x7c00u)};
    if (a >= 0x38800000u) return {static_cast<uint16_t>(sign | ((a - 0x38000000u + 0xfffu + ((a >> 13) & 1u)) >> 13))};
    float magnitude;
    std::memcpy(&magnitude, &a, sizeof a);
    magnitude += 0.5f;  // the last bit that is kept comes to stand at the end of the fraction
    std::memcpy(&b, &magnitude, sizeof b);
    return {static_cast<uint16_t>(sign | (b - 0x3f000000u))};
}
