// Element types as they lie in memory, and how a computed number is stored in them.
// bfloat16 and float16 are computed in float32.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <type_traits>

#include "../math/value.h"

namespace PF_NAMESPACE {

// The numbers are shared with pyfastgan/ops/_common.py.
enum Type { kFloat32, kFloat64, kBfloat16, kFloat16 };

using bfloat16 = __nv_bfloat16;
using float16 = __half;

// Round to nearest even.
template <class T, class S>
PF_FN T from_scalar(S x) {
    if constexpr (std::is_same_v<T, bfloat16>)
        return __float2bfloat16_rn(x);
    else if constexpr (std::is_same_v<T, float16>)
        return __float2half_rn(x);
    else
        return x;
}

PF_FN float to_scalar(float x) { return x; }
PF_FN double to_scalar(double x) { return x; }
PF_FN float to_scalar(bfloat16 x) { return __bfloat162float(x); }
PF_FN float to_scalar(float16 x) { return __half2float(x); }

// Four elements that are stored in as few instructions as there can be: 16 bytes each, 8 for half types.
template <class T>
struct alignas(sizeof(T) < 4 ? 8 : 16) Four {
    T of[4];
};

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
