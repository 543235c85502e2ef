// Counter-based noise in any order and amount: element j of a sample is lane j % 4 of block j / 4; the counter is
// (block, block high, sample, stream), the key the seed. A step makes the blocks of kLanes consecutive (sample, block)
// pairs. Kernels that consume noise make it in pieces that stay in the nearest cache, and make it again in a backward.
#pragma once

#include "noise_words.h"

namespace PF_NAMESPACE {

template <std::size_t... I>
PF_FN vfloat low_of_groups(vfloat a, vfloat b, std::index_sequence<I...>) {
    return __builtin_shufflevector(a, b, (I / 4 * 4 + I % 4 / 2 + I % 2 * kLanes)...);
}
template <std::size_t... I>
PF_FN vfloat high_of_groups(vfloat a, vfloat b, std::index_sequence<I...>) {
    return __builtin_shufflevector(a, b, (I / 4 * 4 + 2 + I % 4 / 2 + I % 2 * kLanes)...);
}
template <std::size_t... I>
PF_FN vfloat low_pairs_of_groups(vfloat a, vfloat b, std::index_sequence<I...>) {
    return __builtin_shufflevector(a, b, (I / 4 * 4 + I % 2 + I % 4 / 2 * kLanes)...);
}
template <std::size_t... I>
PF_FN vfloat high_pairs_of_groups(vfloat a, vfloat b, std::index_sequence<I...>) {
    return __builtin_shufflevector(a, b, (I / 4 * 4 + 2 + I % 2 + I % 4 / 2 * kLanes)...);
}

// Word-major to block-major: out holds the 4 kLanes elements in the order of memory.
PF_FN void in_order(const vfloat in[4], vfloat out[4]) {
    constexpr std::make_index_sequence<kLanes> all{};
    const vfloat low01 = low_of_groups(in[0], in[1], all), high01 = high_of_groups(in[0], in[1], all);
    const vfloat low23 = low_of_groups(in[2], in[3], all), high23 = high_of_groups(in[2], in[3], all);
    out[0] = low_pairs_of_groups(low01, low23, all);
    out[1] = high_pairs_of_groups(low01, low23, all);
    out[2] = low_pairs_of_groups(high01, high23, all);
    out[3] = high_pairs_of_groups(high01, high23, all);
}

#if defined(__AVX512F__)
constexpr int kAtOnce = 2;  // times kLanes blocks; more than one where there are registers for it
#else
constexpr int kAtOnce = 1;
#endif

// What is written for each output type and kind: 4 kLanes elements from the words of kLanes blocks.
template <int K, class T>
struct Maker {
    using Out = T;
    // Of N times as many blocks.
    template <int N>
    static PF_FN void make(const Several<vuint, N> words[4], T* out) {
        if constexpr (K == kNormal) {
            Several<vuint, 2 * N> of_radius, of_turn;
            Several<vfloat, 2 * N> first, second;
#pragma GCC unroll 4
            for (int k = 0; k < 2 * N; ++k) {
                of_radius.of[k] = words[k % 2 * 2].of[k / 2];
                of_turn.of[k] = words[k % 2 * 2 + 1].of[k / 2];
            }
            box_muller(of_radius, of_turn, first, second);
#pragma GCC unroll 2
            for (int k = 0; k < N; ++k) {
                const vfloat z[4] = {first.of[2 * k], second.of[2 * k], first.of[2 * k + 1], second.of[2 * k + 1]};
                put(z, out + 4 * k * kLanes);
            }
        } else {
            for (int j = 0; j < N; ++j) {
                vfloat z[4];
#pragma GCC unroll 4
                for (int k = 0; k < 4; ++k) z[k] = uniform_float(words[k].of[j]);
                put(z, out + 4 * j * kLanes);
            }
        }
    }

private:
    static PF_FN void put(const vfloat z[4], T* out) {
        vfloat ordered[4];
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
    template <int N>
    static PF_FN void make(const Several<vuint, N> several[4], double* out) {
        for (int b = 0; b < N * kLanes; ++b) {
            double* block = out + 4 * b;
            const int lane = lane_of_block(b % kLanes);
            uint32_t words[4];
            for (int k = 0; k < 4; ++k) words[k] = several[k].of[b / kLanes][lane];
            if constexpr (K == kNormal) {
                box_muller_double(words[0], words[1], block[0], block[1]);
                box_muller_double(words[2], words[3], block[2], block[3]);
            } else {
                for (int k = 0; k < 4; ++k) block[k] = (words[k] + 0.5) * 2.3283064365386963e-10;
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
    Several<vuint, 1> words[4];
    Keys keys(n, sample);
    while (begin < end) {
        // Steps that stay within the sample, its last whole block, and a low word of the block's number.
        int64_t whole = n.elements / 4 - block;
        if (end - begin < whole) whole = end - begin;
        const int64_t wraps = 0x100000000 - (block & 0xffffffff);
        if (wraps < whole) whole = wraps;
        if (whole >= kLanes) {
            if (n.per_sample) keys = Keys(n, sample);
            Run run(n, keys, sample, block);
            const int64_t taken = whole / kLanes * kLanes;
            int64_t k = 0;
            for (; k + kAtOnce * kLanes <= taken; k += kAtOnce * kLanes) {
                Several<vuint, kAtOnce> words[4];
                run.next(words);
                M::make(words, out + 4 * k);
            }
            for (; k < taken; k += kLanes) {
                run.next(words);
                M::make(words, out + 4 * k);
            }
            out += 4 * taken;
            begin += taken;
            block += taken;
        } else {
            T buffer[4 * kLanes];
            if (n.per_sample)
                mixed_words_of_seeds(n, sample, block, words);
            else
                mixed_words(n, keys, sample, block, words);
            if (n.elements % 4 == 0 && end - begin >= kLanes) {  // there are no gaps between the blocks
                M::make(words, out);
                out += 4 * kLanes;
                begin += kLanes;
                sample = begin / blocks;
                block = begin % blocks;
                continue;
            }
            M::make(words, buffer);
            for (int k = 0; k < kLanes && begin < end; ++k, ++begin) {
                const int64_t left = n.elements - 4 * block, count = left < 4 ? left : 4;
                memcpy(out, buffer + 4 * k, static_cast<std::size_t>(count) * sizeof(T));
                out += count;
                if (++block == blocks) {
                    block = 0;
                    ++sample;
                }
            }
        }
        if (block == blocks) {
            block = 0;
            ++sample;
        }
    }
}

}  // namespace PF_NAMESPACE
