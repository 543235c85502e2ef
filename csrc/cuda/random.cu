// Counter-based random words, uniform and normal numbers. Element j of a sample is lane j % 4 of block j / 4; the
// counter is (block, block high, sample, stream), the key the seed. A thread makes a block of four elements at a time.
//
// Floor: 4 bytes written a float32 element; about 70 integer and float operations a normal, half of them Philox.
#include "launch.h"
#include "types.h"

#include "../export.h"
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

struct WordMaker {
    using Out = int64_t;
    static PF_FN void make(const uint32_t words[4], int64_t out[4]) {
        for (int k = 0; k < 4; ++k) out[k] = words[k];
    }
};

// `whole`: every block starts where four elements can be stored at once.
template <class M>
__global__ void __launch_bounds__(kThreads) fill(Noise n, typename M::Out* out, bool whole) {
    using T = typename M::Out;
    const int64_t blocks = n.blocks(), total = n.samples * blocks;
    for (int64_t item = first_item(); item < total; item += item_stride()) {
        const int64_t sample = item / blocks, block = item % blocks, left = n.elements - 4 * block;
        uint32_t words[4];
        make_words(n, sample, block, words);
        Four<T> made;
        M::make(words, made.of);
        T* place = out + sample * n.elements + 4 * block;
        if (whole && left >= 4) {
            *reinterpret_cast<Four<T>*>(place) = made;
        } else {
            for (int k = 0; k < 4; ++k)
                if (k < left) place[k] = made.of[k];
        }
    }
}

template <class M>
const char* start(const Noise& n, void* out, void* queue) {
    using T = typename M::Out;
    const bool whole =
        (n.samples == 1 || n.elements % 4 == 0) && reinterpret_cast<std::uintptr_t>(out) % alignof(Four<T>) == 0;
    return launch(fill<M>, n.samples * n.blocks(), queue, n, static_cast<T*>(out), whole);
}

template <int K>
const char* numbers(const Noise& n, void* out, int type, void* queue) {
    return with_type(type, [&](auto t) { return start<Maker<K, decltype(t)>>(n, out, queue); });
}

}  // namespace

static const char* random_words(int64_t* out, int64_t samples, int64_t elements, const int64_t* seeds, int per_sample,
                                int64_t stream, int64_t sample_offset, void* queue) {
    return start<WordMaker>({samples, elements, seeds, per_sample != 0, static_cast<uint32_t>(stream),
                             static_cast<uint32_t>(sample_offset)},
                            out, queue);
}
PF_EXPORT(random_words);

static const char* random_uniform(void* out, int type, int64_t samples, int64_t elements, const int64_t* seeds,
                                  int per_sample, int64_t stream, int64_t sample_offset, void* queue) {
    return numbers<kUniform>({samples, elements, seeds, per_sample != 0, static_cast<uint32_t>(stream),
                              static_cast<uint32_t>(sample_offset)},
                             out, type, queue);
}
PF_EXPORT(random_uniform);

static const char* random_normal(void* out, int type, int64_t samples, int64_t elements, const int64_t* seeds,
                                 int per_sample, int64_t stream, int64_t sample_offset, void* queue) {
    return numbers<kNormal>({samples, elements, seeds, per_sample != 0, static_cast<uint32_t>(stream),
                             static_cast<uint32_t>(sample_offset)},
                            out, type, queue);
}
PF_EXPORT(random_normal);

}  // namespace PF_NAMESPACE
