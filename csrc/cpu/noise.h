// Counter-based noise in any order and amount: element j of a sample is lane j % 4 of block j / 4; the counter is
// (block, block high, sample, stream), the key the seed. A step makes the blocks of kLanes consecutive (sample, block)
// pairs. Kernels that consume noise make it in pieces that stay in the nearest cache, and make it again in a backward.
#pragma once

#include "types.h"

#include "../math/normal.h"
#include "../math/philox.h"

namespace PF_NAMESPACE {

enum Kind { kUniform, kNormal };

struct Noise {
    int64_t samples, elements;  // of a sample
    const int64_t* seeds;
    bool per_sample;            // a seed for each sample
    uint32_t stream, sample_offset;
    int64_t blocks() const { return (elements + 3) / 4; }
};

// Round keys of one seed, or of the seeds of kLanes blocks. Even blocks stand in one pack and odd ones in the other, so
// that joining two 32-bit words in a 64-bit lane restores their order.
struct Keys {
    vword of[2][kRounds][2];
};

PF_FN void keys_of_seed(uint64_t seed, Keys& keys) {
#pragma GCC unroll 2
    for (int h = 0; h < 2; ++h) philox_keys(vword{} + (seed & 0xffffffffu), vword{} + (seed >> 32), keys.of[h]);
}

PF_FN uint64_t sample_word(const Noise& n, int64_t sample) {
    return n.per_sample ? 0 : (static_cast<uint64_t>(n.sample_offset) + static_cast<uint64_t>(sample)) & 0xffffffffu;
}

PF_FN vword even_odd(int which) {
    vword v{};
#pragma GCC unroll 8
    for (int k = 0; k < kLanes / 2; ++k) v[k] = static_cast<uint64_t>(2 * k + which);
    return v;
}

// Counters of kLanes blocks of one sample whose numbers do not wrap in their low word.
PF_FN void consecutive(const Noise& n, int64_t sample, int64_t block, vword counter[2][4]) {
#pragma GCC unroll 2
    for (int h = 0; h < 2; ++h) {
        counter[h][0] = even_odd(h) + (static_cast<uint64_t>(block) & 0xffffffffu);
        counter[h][1] = vword{} + (static_cast<uint64_t>(block) >> 32);
        counter[h][2] = vword{} + sample_word(n, sample);
        counter[h][3] = vword{} + static_cast<uint64_t>(n.stream);
    }
}

// Counters, and keys if each sample has its own, of any kLanes pairs from (sample, block) on; lanes past the last
// sample repeat it and are not stored.
PF_FN void mixed(const Noise& n, int64_t sample, int64_t block, vword counter[2][4], Keys& keys) {
    const int64_t blocks = n.blocks();
    uint64_t number[2][kLanes / 2], word[2][kLanes / 2], seed[2][kLanes / 2];
    for (int lane = 0; lane < kLanes; ++lane) {
        number[lane & 1][lane >> 1] = static_cast<uint64_t>(block);
        word[lane & 1][lane >> 1] = sample_word(n, sample);
        seed[lane & 1][lane >> 1] = n.per_sample ? static_cast<uint64_t>(n.seeds[sample]) : 0;
        if (++block == blocks) {
            block = 0;
            if (sample + 1 < n.samples) ++sample;
        }
    }
#pragma GCC unroll 2
    for (int h = 0; h < 2; ++h) {
        counter[h][0] = load<vword>(number[h]) & 0xffffffffu;
        counter[h][1] = load<vword>(number[h]) >> 32;
        counter[h][2] = load<vword>(word[h]);
        counter[h][3] = vword{} + static_cast<uint64_t>(n.stream);
        if (n.per_sample) philox_keys(load<vword>(seed[h]) & 0xffffffffu, load<vword>(seed[h]) >> 32, keys.of[h]);
    }
}

// words[k] holds word k of each of the kLanes blocks.
PF_FN void make_words(vword counter[2][4], const Keys& keys, vuint words[4]) {
    philox4x32(counter[0], keys.of[0]);
    philox4x32(counter[1], keys.of[1]);
#pragma GCC unroll 4
    for (int k = 0; k < 4; ++k) words[k] = (vuint)((counter[0][k] & 0xffffffffu) | (counter[1][k] << 32));
}

// Word-major to block-major: out holds the 4 kLanes elements in the order of memory.
PF_FN void in_order(const vfloat in[4], vfloat out[4]) {
    const vfloat low02 = interleave_low(in[0], in[2]), high02 = interleave_high(in[0], in[2]);
    const vfloat low13 = interleave_low(in[1], in[3]), high13 = interleave_high(in[1], in[3]);
    out[0] = interleave_low(low02, low13);
    out[1] = interleave_high(low02, low13);
    out[2] = interleave_low(high02, high13);
    out[3] = interleave_high(high02, high13);
}

// What is written for each output type and kind: 4 kLanes elements from the words of kLanes blocks.
template <int K, class T>
struct Maker {
    using Out = T;
    static PF_FN void make(const vuint words[4], T* out) {
        vfloat z[4], ordered[4];
        if constexpr (K == kNormal) {
            box_muller(words[0], words[1], z[0], z[1]);
            box_muller(words[2], words[3], z[2], z[3]);
        } else {
#pragma GCC unroll 4
            for (int k = 0; k < 4; ++k) z[k] = uniform_float(words[k]);
        }
        in_order(z, ordered);
#pragma GCC unroll 4
        for (int k = 0; k < 4; ++k) {
            if constexpr (K == kUniform && std::is_same_v<T, bfloat16>) ordered[k] = round_down_bfloat16(ordered[k]);
            if constexpr (K == kUniform && std::is_same_v<T, float16>) ordered[k] = round_down_float16(ordered[k]);
            Storage<T>::write(out + k * kLanes, ordered[k]);
        }
    }
};

template <int K>
struct Maker<K, double> {
    using Out = double;
    static PF_FN void make(const vuint words[4], double* out) {
        for (int b = 0; b < kLanes; ++b) {
            double* block = out + 4 * b;
            if constexpr (K == kNormal) {
                box_muller_double(words[0][b], words[1][b], block[0], block[1]);
                box_muller_double(words[2][b], words[3][b], block[2], block[3]);
            } else {
                for (int k = 0; k < 4; ++k) block[k] = (words[k][b] + 0.5) * 2.3283064365386963e-10;
            }
        }
    }
};

// The noise of the (sample, block) pairs from `begin` to `end`, pairs counted sample by sample; `out` is where the
// first element of the first pair stands.
template <class M>
void fill_blocks(const Noise& n, int64_t begin, int64_t end, typename M::Out* out) {
    using T = typename M::Out;
    const int64_t blocks = n.blocks();
    int64_t sample = begin / blocks, block = begin % blocks;
    const int64_t base = sample * n.elements + 4 * block;
    int64_t keyed = -1;  // the sample whose seed the keys hold; 0 where all share one
    Keys keys;
    vword counter[2][4];
    vuint words[4];
    T buffer[4 * kLanes];
    for (int64_t pair = begin; pair < end; pair += kLanes) {
        const bool together = block + kLanes <= blocks && (block & 0xffffffff) + kLanes <= 0x100000000;
        if (together || !n.per_sample) {
            const int64_t wanted = n.per_sample ? sample : 0;
            if (keyed != wanted) keys_of_seed(static_cast<uint64_t>(n.seeds[wanted]), keys);
            keyed = wanted;
        } else {
            keyed = -1;
        }
        if (together)
            consecutive(n, sample, block, counter);
        else
            mixed(n, sample, block, counter, keys);
        make_words(counter, keys, words);
        if (together && pair + kLanes <= end && 4 * (block + kLanes) <= n.elements) {
            M::make(words, out + (sample * n.elements + 4 * block - base));
            block += kLanes;
            if (block == blocks) {
                block = 0;
                ++sample;
            }
            continue;
        }
        M::make(words, buffer);
        for (int lane = 0; lane < kLanes && pair + lane < end; ++lane) {
            const int64_t left = n.elements - 4 * block;
            memcpy(out + (sample * n.elements + 4 * block - base), buffer + 4 * lane,
                   static_cast<std::size_t>(left < 4 ? left : 4) * sizeof(T));
            if (++block == blocks) {
                block = 0;
                ++sample;
            }
        }
    }
}

}  // namespace PF_NAMESPACE
