// Packs that a formula takes side by side: the operators and functions that the formulas of csrc/math call.
#pragma once

#include "types.h"

namespace PF_NAMESPACE {
#if defined(__AVX512F__)
// Before the formulas, which do not find functions of built-in vectors later.
PF_FN void split(vfloat x, vfloat& m, vfloat& e) {
    m = (vfloat)_mm512_getmant_ps((__m512)x, _MM_MANT_NORM_1_2, _MM_MANT_SIGN_src);
    e = (vfloat)_mm512_getexp_ps((__m512)x);
}
// An estimate of 14 bits and a step of Newton's: to 2^-23, in half the time of the exact root.
PF_FN vfloat root_of_positive(vfloat x) {
    const vfloat y = (vfloat)_mm512_rsqrt14_ps((__m512)x), root = x * y;
    return root + (0.5f * root) * (1.0f - root * y);
}
#endif

// N packs that a formula takes through its steps side by side: what one waits for, another one fills.
template <class V, int N>
struct Several {
    V of[N];
};
#define PF_EACH _Pragma("GCC unroll 4") for (int k = 0; k < N; ++k)
#define PF_OPERATOR(op)                                                                   \
    template <class V, int N>                                                             \
    PF_FN auto operator op(Several<V, N> a, Several<V, N> b) {                            \
        Several<decltype(a.of[0] op b.of[0]), N> result;                                  \
        PF_EACH result.of[k] = a.of[k] op b.of[k];                                        \
        return result;                                                                    \
    }                                                                                     \
    template <class V, int N, class S, class = std::enable_if_t<std::is_arithmetic_v<S>>> \
    PF_FN auto operator op(Several<V, N> a, S b) {                                        \
        Several<decltype(a.of[0] op b), N> result;                                        \
        PF_EACH result.of[k] = a.of[k] op b;                                              \
        return result;                                                                    \
    }                                                                                     \
    template <class V, int N, class S, class = std::enable_if_t<std::is_arithmetic_v<S>>> \
    PF_FN auto operator op(S a, Several<V, N> b) {                                        \
        Several<decltype(a op b.of[0]), N> result;                                        \
        PF_EACH result.of[k] = a op b.of[k];                                              \
        return result;                                                                    \
    }
PF_OPERATOR(+)
PF_OPERATOR(-)
PF_OPERATOR(*)
PF_OPERATOR(&)
PF_OPERATOR(|)
PF_OPERATOR(^)
PF_OPERATOR(<<)
PF_OPERATOR(>>)
PF_OPERATOR(<)
PF_OPERATOR(>)
#undef PF_OPERATOR
#define PF_FUNCTION(f)                           \
    template <class V, int N>                    \
    PF_FN auto f(Several<V, N> a) {              \
        Several<decltype(f(a.of[0])), N> result; \
        PF_EACH result.of[k] = f(a.of[k]);       \
        return result;                           \
    }
PF_FUNCTION(as_bits)
PF_FUNCTION(from_bits)
PF_FUNCTION(to_float)
PF_FUNCTION(to_signed)
PF_FUNCTION(square_root)
#if defined(__AVX512F__)
PF_FUNCTION(root_of_positive)
#endif
#undef PF_FUNCTION
template <int N>
PF_FN float scalar_of(Several<vfloat, N>) {
    return 0;
}
template <class V, int N>
PF_FN Several<V, N> select(Several<vint, N> c, Several<V, N> a, Several<V, N> b) {
    PF_EACH a.of[k] = select(c.of[k], a.of[k], b.of[k]);
    return a;
}
#if defined(__AVX512F__)
template <int N>
PF_FN void split(Several<vfloat, N> x, Several<vfloat, N>& m, Several<vfloat, N>& e) {
    PF_EACH split(x.of[k], m.of[k], e.of[k]);
}
#endif
template <int N>
PF_FN void multiply_wide(Several<vword, N> a, uint32_t m, Several<vword, N>& high, Several<vword, N>& low) {
    PF_EACH multiply_wide(a.of[k], m, high.of[k], low.of[k]);
}
}  // namespace PF_NAMESPACE
