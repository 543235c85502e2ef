// Counter-based noise in a kernel: element j of a sample is lane j % 4 of block j / 4; the counter is (block, block
// high, sample, stream), the key the seed. A thread makes a block of four elements at a time.
#pragma once

#include <initializer_list>

#include "types.h"

#include "../math/normal.h"
#include "../math/philox.h"

namespace PF_NAMESPACE {
namespace {

enum Kind { kUniform, kNormal };

struct Noise {
    int64_t samples, elements;  // of a sample
    const int64_t* seeds;       // on the device, so that a seed drawn there costs no synchronisation
    bool per_sample;            // a seed for each sample
    uint32_t stream, sample_offset;
    PF_FN int64_t blocks() const { return (elements + 3) / 4; }
};

PF_FN void make_words(const Noise& n, int64_t sample, int64_t block, uint32_t words[4]) {
    const uint64_t seed = static_cast<uint64_t>(n.seeds[n.per_sample ? sample : 0]);
    uint32_t keys[kRounds][2];
    philox_keys(static_cast<uint32_t>(seed), static_cast<uint32_t>(seed >> 32), keys);
    words[0] = static_cast<uint32_t>(block);
    words[1] = static_cast<uint32_t>(block >> 32);
    words[2] = n.per_sample ? 0 : n.sample_offset + static_cast<uint32_t>(sample);
    words[3] = n.stream;
    philox4x32(words, keys);
}

// What is written for each output type and kind, from the words of a block.
template <int K, class T>
struct Maker {
    using Out = T;
    static PF_FN void make(const uint32_t words[4], T out[4]) {
        float z[4];
        if constexpr (K == kNormal) {
            box_muller(words[0], words[1], z[0], z[1]);
            box_muller(words[2], words[3], z[2], z[3]);
        } else {
            for (int k = 0; k < 4; ++k) z[k] = uniform_float(words[k]);
        }
        for (int k = 0; k < 4; ++k) {
            if constexpr (K == kUniform && std::is_same_v<T, bfloat16>) z[k] = round_down_bfloat16(z[k]);
            if constexpr (K == kUniform && std::is_same_v<T, float16>) z[k] = round_down_float16(z[k]);
            out[k] = from_scalar<T>(z[k]);
        }
    }
};

template <int K>
struct Maker<K, double> {
    using Out = double;
    static PF_FN void make(const uint32_t words[4], double out[4]) {
        if constexpr (K == kNormal) {
            box_muller_double(words[0], words[1], out[0], out[1]);
            box_muller_double(words[2], words[3], out[2], out[3]);
        } else {
            for (int k = 0; k < 4; ++k) out[k] = (words[k] + 0.5) * 2.3283064365386963e-10;
        }
    }
};

// A thread's four elements: the block of a sample, where it stands and how much of it there is.
struct Place {
    int64_t sample, start;
    int left;
};
PF_FN Place place_of(const Noise& n, int64_t sample, int64_t block) {
    const int64_t left = n.elements - 4 * block;
    return {sample, sample * n.elements + 4 * block, left < 4 ? static_cast<int>(left) : 4};
}

// Whether every block starts where four elements can be moved at once.
template <class T>
bool moves_whole(const Noise& n, std::initializer_list<const void*> pointers) {
    bool whole = n.samples == 1 || n.elements % 4 == 0;
    for (const void* p : pointers) whole = whole && reinterpret_cast<std::uintptr_t>(p) % alignof(Four<T>) == 0;
    return whole;
}

template <class T>
__device__ __forceinline__ Four<T> read_four(const T* p, const Place& at, bool whole) {
    if (whole && at.left == 4) return *reinterpret_cast<const Four<T>*>(p + at.start);
    Four<T> four;
    for (int k = 0; k < 4; ++k) four.of[k] = k < at.left ? p[at.start + k] : from_scalar<T>(0.0f);
    return four;
}
template <class T>
__device__ __forceinline__ void write_four(T* p, const Four<T>& four, const Place& at, bool whole) {
    if (whole && at.left == 4) {
        *reinterpret_cast<Four<T>*>(p + at.start) = four;
        return;
    }
    for (int k = 0; k < 4; ++k)
        if (k < at.left) p[at.start + k] = four.of[k];
}

// The noise of a block: given, or made from the seeds.
template <class T>
__device__ __forceinline__ Four<T> normals_of(const Noise& n, const T* given, const Place& at, int64_t block,
                                              bool whole) {
    if (given) return read_four(given, at, whole);
    uint32_t words[4];
    make_words(n, at.sample, block, words);
    Four<T> z;
    Maker<kNormal, T>::make(words, z.of);
    return z;
}

template <class T>
using Computed = std::conditional_t<std::is_same_v<T, double>, double, float>;

}  // namespace
}  // namespace PF_NAMESPACE
