// What the formulas in this folder ask of their value type V: float or double on a GPU, a SIMD pack on a CPU
// (csrc/cpu/simd.h gives the same functions for packs). Branches are selects, so that both compute every lane.
//
// Everything lives in a namespace of its own for each instruction set: templates compiled twice under one name would be
// merged by the linker, and a portable build could end up with AVX-512 code.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

#ifndef PF_ISA
#error "PF_ISA must name the instruction set this file is compiled for"
#endif
#define PF_JOIN_(a, b) a##b
#define PF_JOIN(a, b) PF_JOIN_(a, b)
#define PF_NAMESPACE PF_JOIN(pyfastgan_, PF_ISA)

#ifdef __CUDACC__
#define PF_FN __host__ __device__ __forceinline__
#else
#define PF_FN inline __attribute__((always_inline))
#endif

namespace PF_NAMESPACE {

PF_FN float select(bool c, float a, float b) { return c ? a : b; }
PF_FN double select(bool c, double a, double b) { return c ? a : b; }
PF_FN int32_t select(bool c, int32_t a, int32_t b) { return c ? a : b; }

// The smaller and the larger of x and a bound; NaN stays NaN.
PF_FN float at_most(float x, float bound) { return bound < x ? bound : x; }
PF_FN float at_least(float x, float bound) { return bound > x ? bound : x; }

PF_FN int32_t as_bits(float x) {
    int32_t i;
    memcpy(&i, &x, sizeof i);
    return i;
}
PF_FN float from_bits(int32_t i) {
    float x;
    memcpy(&x, &i, sizeof x);
    return x;
}
PF_FN float square_root(float x) { return ::sqrtf(x); }
PF_FN double square_root(double x) { return ::sqrt(x); }
PF_FN float to_float(int32_t i) { return static_cast<float>(i); }
PF_FN int32_t to_signed(uint32_t w) { return static_cast<int32_t>(w); }

// The high and the low half of a 32 x 32 bit product.
PF_FN void multiply_wide(uint32_t a, uint32_t b, uint32_t& high, uint32_t& low) {
    const uint64_t product = static_cast<uint64_t>(a) * b;
    high = static_cast<uint32_t>(product >> 32);
    low = static_cast<uint32_t>(product);
}

// The scalar behind a value type, found by overload: float here, and for packs in simd.h.
PF_FN float scalar_of(float) { return 0; }
PF_FN double scalar_of(double) { return 0; }
}  // namespace PF_NAMESPACE
