// The words of the blocks of a step, by the counter: what is the same for blocks of a sample is computed once.
#pragma once

#include "several.h"

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

// The kLanes blocks of a step stand in two packs of 64-bit lanes; two 32-bit words side by side in such a lane, the
// second one from the second pack, make a pack of words. Each group of four of its lanes holds blocks that are
// kLanes / 4 apart: then a 4 x 4 transposition within the groups gives the order of memory.
PF_FN constexpr int block_of_lane(int lane) { return lane % 4 * (kLanes / 4) + lane / 4; }
PF_FN constexpr int lane_of_block(int block) { return block % (kLanes / 4) * 4 + block / (kLanes / 4); }

template <std::size_t... I>
PF_FN vword block_numbers(int half, std::index_sequence<I...>) {
    return half ? vword{static_cast<uint64_t>(block_of_lane(2 * I + 1))...}
                : vword{static_cast<uint64_t>(block_of_lane(2 * I))...};
}
PF_FN vword block_numbers(int half) { return block_numbers(half, std::make_index_sequence<kLanes / 2>{}); }

// The low, and the high, words of both packs.
PF_FN vuint join_low(vword first, vword second) {
#if defined(__AVX512F__)
    return (vuint)_mm512_mask_shuffle_epi32((__m512i)first, 0xaaaa, (__m512i)second, _MM_PERM_CCAA);
#else
    return (vuint)((first & 0xffffffffu) | (second << 32));
#endif
}
PF_FN vuint join_high(vword first, vword second) {
#if defined(__AVX512F__)
    return (vuint)_mm512_mask_shuffle_epi32((__m512i)second, 0x5555, (__m512i)first, _MM_PERM_DDBB);
#else
    return (vuint)((first >> 32) | (second & 0xffffffff00000000u));
#endif
}

// The last round, of both packs at once. words[k] then holds word k of each block.
PF_FN void last_round(const vword first[4], const vword second[4], vuint key0, vuint key1, vuint words[4]) {
    vword product0[2], product1[2], high;
    multiply_wide(first[0], kMultiplier0, high, product0[0]);
    multiply_wide(second[0], kMultiplier0, high, product0[1]);
    multiply_wide(first[2], kMultiplier1, high, product1[0]);
    multiply_wide(second[2], kMultiplier1, high, product1[1]);
    words[0] = join_high(product1[0], product1[1]) ^ join_low(first[1], second[1]) ^ key0;
    words[1] = join_low(product1[0], product1[1]);
    words[2] = join_high(product0[0], product0[1]) ^ join_low(first[3], second[3]) ^ key1;
    words[3] = join_low(product0[0], product0[1]);
}

PF_FN uint64_t sample_word(const Noise& n, int64_t sample) {
    return n.per_sample ? 0 : (static_cast<uint64_t>(n.sample_offset) + static_cast<uint64_t>(sample)) & 0xffffffffu;
}

// The keys of all rounds, in every lane; those of the last one are for a pack of words.
struct Keys {
    vword rounds[kRounds - 1][2];
    vuint last[2];
    Keys(const Noise& n, int64_t sample) {
        uint32_t keys[kRounds][2];
        const uint64_t seed = static_cast<uint64_t>(n.seeds[n.per_sample ? sample : 0]);
        philox_keys(static_cast<uint32_t>(seed), static_cast<uint32_t>(seed >> 32), keys);
        for (int round = 0; round < kRounds - 1; ++round)
            for (int k = 0; k < 2; ++k) rounds[round][k] = vword{} + keys[round][k];
        for (int k = 0; k < 2; ++k) last[k] = vuint{} + keys[kRounds - 1][k];
    }
};

// The words of any kLanes (sample, block) pairs from this one on, with a seed for all of them.
inline void mixed_words(const Noise& n, const Keys& keys, int64_t sample, int64_t block, Several<vuint, 1> words[4]) {
    const uint64_t blocks = static_cast<uint64_t>(n.blocks());
    vword counter[2][4];
#pragma GCC unroll 2
    for (int h = 0; h < 2; ++h) {
        vword number = block_numbers(h) + static_cast<uint64_t>(block), word = vword{} + sample_word(n, sample);
        for (int64_t reach = block + kLanes; reach > n.blocks(); reach -= n.blocks()) {
            const auto beyond = number >= blocks;
            number = beyond ? number - blocks : number;
            word = beyond ? word + 1u : word;
        }
        counter[h][0] = number & 0xffffffffu;
        counter[h][1] = number >> 32;
        counter[h][2] = word & 0xffffffffu;
        counter[h][3] = vword{} + static_cast<uint64_t>(n.stream);
        for (int round = 0; round < kRounds - 1; ++round)
            philox_round(counter[h], keys.rounds[round][0], keys.rounds[round][1]);
    }
    vuint made[4];
    last_round(counter[0], counter[1], keys.last[0], keys.last[1], made);
    for (int k = 0; k < 4; ++k) words[k].of[0] = made[k];
}

// The same with a seed for each sample; lanes past the last sample repeat it.
inline void mixed_words_of_seeds(const Noise& n, int64_t sample, int64_t block, Several<vuint, 1> words[4]) {
    const int64_t blocks = n.blocks();
    uint64_t number[2][kLanes / 2], seed[2][kLanes / 2];
    for (int k = 0; k < kLanes; ++k) {
        const int lane = lane_of_block(k), half = lane & 1, place = lane >> 1;
        number[half][place] = static_cast<uint64_t>(block);
        seed[half][place] = static_cast<uint64_t>(n.seeds[sample]);
        if (++block == blocks) {
            block = 0;
            if (sample + 1 < n.samples) ++sample;
        }
    }
    vword counter[2][4], keys[2][kRounds][2];
#pragma GCC unroll 2
    for (int h = 0; h < 2; ++h) {
        counter[h][0] = load<vword>(number[h]) & 0xffffffffu;
        counter[h][1] = load<vword>(number[h]) >> 32;
        counter[h][2] = vword{};
        counter[h][3] = vword{} + static_cast<uint64_t>(n.stream);
        philox_keys(load<vword>(seed[h]) & 0xffffffffu, load<vword>(seed[h]) >> 32, keys[h]);
        for (int round = 0; round < kRounds - 1; ++round)
            philox_round(counter[h], keys[h][round][0], keys[h][round][1]);
    }
    constexpr int kLast = kRounds - 1;
    vuint made[4];
    last_round(counter[0], counter[1], join_low(keys[0][kLast][0], keys[1][kLast][0]),
               join_low(keys[0][kLast][1], keys[1][kLast][1]), made);
    for (int k = 0; k < 4; ++k) words[k].of[0] = made[k];
}

// Consecutive blocks of a sample. All words of the counter but the first, and so half of the first two rounds, are the
// same for them; the product of the first is kept, and grows by a constant from step to step.
class Run {
public:
    Run(const Noise& n, const Keys& keys, int64_t sample, int64_t block) : keys_(keys) {
        const uint32_t key00 = static_cast<uint32_t>(keys.rounds[0][0][0]);
        const uint32_t key01 = static_cast<uint32_t>(keys.rounds[0][1][0]);
        const uint32_t key10 = static_cast<uint32_t>(keys.rounds[1][0][0]);
        const uint32_t key11 = static_cast<uint32_t>(keys.rounds[1][1][0]);
        uint32_t high0, low0, high1, low1;
        multiply_wide(static_cast<uint32_t>(sample_word(n, sample)), kMultiplier1, high1, low1);
        const uint32_t block_high = static_cast<uint32_t>(static_cast<uint64_t>(block) >> 32);
        multiply_wide(high1 ^ block_high ^ key00, kMultiplier0, high0, low0);
        after_first_ = vword{} + (n.stream ^ key01);
        after_second_[0] = vword{} + (low1 ^ key10);
        after_second_[1] = vword{} + (high0 ^ key11);
        after_second_[2] = vword{} + low0;
#pragma GCC unroll 2
        for (int h = 0; h < 2; ++h) {
            vword high;
            multiply_wide(block_numbers(h) + (static_cast<uint64_t>(block) & 0xffffffffu), kMultiplier0, high,
                          product_[h]);
        }
    }
    // The words of the next N times kLanes blocks.
    template <int N>
    PF_FN void next(Several<vuint, N> words[4]) {
        constexpr uint64_t kStep = static_cast<uint64_t>(kMultiplier0) * kLanes;
        using W = Several<vword, 2 * N>;
        const auto all = [](vword v) {
            W w;
#pragma GCC unroll 4
            for (int k = 0; k < 2 * N; ++k) w.of[k] = v;
            return w;
        };
        W product, counter[4], high, low;
#pragma GCC unroll 4
        for (int k = 0; k < 2 * N; ++k) product.of[k] = product_[k & 1] + (k / 2) * kStep;
#pragma GCC unroll 2
        for (int h = 0; h < 2; ++h) product_[h] += N * kStep;
        multiply_wide((product >> 32) ^ all(after_first_), kMultiplier1, high, low);
        counter[0] = high ^ all(after_second_[0]);
        counter[1] = low;
        counter[2] = product ^ all(after_second_[1]);
        counter[3] = all(after_second_[2]);
#pragma GCC unroll 10
        for (int round = 2; round < kRounds - 1; ++round)
            philox_round(counter, all(keys_.rounds[round][0]), all(keys_.rounds[round][1]));
#pragma GCC unroll 2
        for (int k = 0; k < N; ++k) {
            vword first[4], second[4];
            vuint out[4];
#pragma GCC unroll 4
            for (int j = 0; j < 4; ++j) {
                first[j] = counter[j].of[2 * k];
                second[j] = counter[j].of[2 * k + 1];
            }
            last_round(first, second, keys_.last[0], keys_.last[1], out);
#pragma GCC unroll 4
            for (int j = 0; j < 4; ++j) words[j].of[k] = out[j];
        }
    }

private:
    const Keys& keys_;
    vword after_first_, after_second_[3], product_[2];
};

}  // namespace PF_NAMESPACE
