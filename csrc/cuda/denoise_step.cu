// One update of a sampler in one pass, four elements a thread. Floor: that of the CPU kernel.
#include "launch.h"
#include "noise.h"

#include "../export.h"
#include "../math/denoise.h"

namespace PF_NAMESPACE {
namespace {

template <class T>
struct Tensors {
    const T *x, *prediction, *unconditional, *variance, *history[kMostHistory], *noise;
    T *y, *x0;
};

template <class S>
struct Numbers {
    const S *guidance, *coefficients, *bound;
    int64_t guidance_stride, row_stride;  // between samples, 0 where all share
    S clip;  // NaN if there is none
};

// A thread has eight values of four elements each, and a row: as many registers as leave room for half the threads.
template <class T>
__global__ void __launch_bounds__(kThreads, sizeof(T) == 8 ? 2 : 4)
    update(Noise n, Tensors<T> p, Numbers<Computed<T>> s, bool whole) {
    using S = Computed<T>;
    const int64_t blocks = n.blocks(), total = n.samples * blocks;
    const bool noisy = p.noise || n.seeds;
    for (int64_t item = first_item(); item < total; item += item_stride()) {
        const int64_t block = item % blocks;
        const Place at = place_of(n, item / blocks, block);
        StepCoefficients<S> c;
        memcpy(&c, s.coefficients + at.sample * s.row_stride, sizeof c);
        const S w = p.unconditional ? s.guidance[at.sample * s.guidance_stride] : S(0);
        const S bound = s.bound ? s.bound[at.sample] : s.clip;
        const S scale = s.bound ? s.clip / bound : S(1);
        const Four<T> state = read_four(p.x, at, whole), said = read_four(p.prediction, at, whole);
        Four<T> without = said;
        if (p.unconditional) without = read_four(p.unconditional, at, whole);
        S sum[4];
        Four<T> out;
        for (int k = 0; k < 4; ++k) {
            const S x = to_scalar(state.of[k]);
            S m = to_scalar(said.of[k]);
            if (p.unconditional) m = guided(m, S(to_scalar(without.of[k])), w);
            S x0 = predicted_x0(x, m, c);
            if (s.clip == s.clip) x0 = bounded(x0, bound, scale);
            sum[k] = c.state * x + c.x0 * x0 + c.prediction * m;
            out.of[k] = from_scalar<T>(x0);
        }
        if (p.x0) write_four(p.x0, out, at, whole);
        for (int h = 0; h < kMostHistory; ++h) {
            if (!p.history[h]) continue;
            const Four<T> earlier = read_four(p.history[h], at, whole);
            for (int k = 0; k < 4; ++k) sum[k] += c.history[h] * to_scalar(earlier.of[k]);
        }
        if (noisy) {
            S deviation[4] = {c.noise, c.noise, c.noise, c.noise};
            if (p.variance) {
                const Four<T> v = read_four(p.variance, at, whole);
                for (int k = 0; k < 4; ++k) deviation[k] *= learned_deviation(S(to_scalar(v.of[k])), c);
            }
            const Four<T> z = normals_of(n, p.noise, at, block, whole);
            for (int k = 0; k < 4; ++k) sum[k] += deviation[k] * to_scalar(z.of[k]);
        }
        for (int k = 0; k < 4; ++k) out.of[k] = from_scalar<T>(sum[k]);
        write_four(p.y, out, at, whole);
    }
}

}  // namespace

// Which pointers may be null is said in csrc/cpu/denoise_step.cpp.
static const char* denoise_step(const void* x, const void* prediction, const void* unconditional, const void* guidance,
                                int64_t guidance_stride, const void* variance, const void* history1,
                                const void* history2, const void* history3, const void* coefficients,
                                int64_t row_stride, const void* bound, double clip, const void* noise, void* y,
                                void* x0, int type, int64_t samples, int64_t elements, const int64_t* seeds,
                                int per_sample, int64_t stream, int64_t sample_offset, void* queue) {
    const Noise n{
        samples, elements, seeds, per_sample != 0, static_cast<uint32_t>(stream), static_cast<uint32_t>(sample_offset)};
    return with_type(type, [&](auto t) {
        using T = decltype(t);
        using S = Computed<T>;
        const auto in = [](const void* p) { return static_cast<const T*>(p); };
        const auto numbers = [](const void* p) { return static_cast<const S*>(p); };
        const Tensors<T> p{
            in(x),     in(prediction),     in(unconditional),  in(variance), {in(history1), in(history2), in(history3)},
            in(noise), static_cast<T*>(y), static_cast<T*>(x0)};
        const Numbers<S> s{numbers(guidance), numbers(coefficients), numbers(bound), guidance_stride,
                           row_stride,        static_cast<S>(clip)};
        const bool whole =
            moves_whole<T>(n, {x, prediction, unconditional, variance, history1, history2, history3, noise, y, x0});
        return launch(update<T>, samples * n.blocks(), queue, n, p, s, whole);
    });
}
PF_EXPORT(denoise_step);

}  // namespace PF_NAMESPACE
