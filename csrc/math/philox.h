// Philox4x32-10 (Salmon, Moraes, Dror, Shaw 2011, "Parallel random numbers: as easy as 1, 2, 3").
// W is uint32_t, or on a CPU a pack whose 64-bit lanes hold a 32-bit word each: one multiplication then gives both
// halves of a product. Such a pack's upper halves are meaningless until the caller masks them.
#pragma once

#include "value.h"

namespace PF_NAMESPACE {

constexpr int kRounds = 10;
constexpr uint32_t kMultiplier0 = 0xD2511F53u, kMultiplier1 = 0xCD9E8D57u;

// Each round's keys. They depend on the seed alone, so that many blocks can share them.
template <class W>
PF_FN void philox_keys(W key0, W key1, W keys[kRounds][2]) {
#ifdef __CUDA_ARCH__
#pragma unroll
#endif
    for (int round = 0; round < kRounds; ++round) {
        keys[round][0] = key0;
        keys[round][1] = key1;
        key0 = key0 + 0x9E3779B9u;
        key1 = key1 + 0xBB67AE85u;
    }
}

template <class W>
PF_FN void philox_round(W counter[4], W key0, W key1) {
    W high0, low0, high1, low1;
    multiply_wide(counter[0], kMultiplier0, high0, low0);
    multiply_wide(counter[2], kMultiplier1, high1, low1);
    counter[0] = high1 ^ counter[1] ^ key0;
    counter[1] = low1;
    counter[2] = high0 ^ counter[3] ^ key1;
    counter[3] = low0;
}

template <class W>
PF_FN void philox4x32(W counter[4], const W keys[kRounds][2]) {
    // Unrolled, so that a processor can overlap the chains of several blocks.
#ifdef __CUDA_ARCH__
#pragma unroll
#elif !defined(__CUDACC__)
#pragma GCC unroll 10
#endif
    for (int round = 0; round < kRounds; ++round) philox_round(counter, keys[round][0], keys[round][1]);
}

}  // namespace PF_NAMESPACE
