// Counter-based random words, uniform and normal numbers, a block of four (noise.h) a thread.
//
// Floor: 4 bytes written a float32 element; about 70 integer and float operations a normal, half of them Philox.
#include "launch.h"
#include "noise.h"

#include "../export.h"

namespace PF_NAMESPACE {
namespace {

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
