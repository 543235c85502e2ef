// An affine coupling of some channels of a tensor while the others pass, with an affine map and a permutation of all
// channels behind it, and the backward of all that. One pass each.
//
// Floor, n elements of s bytes of which a share c is coupled: forward (2 + 2 c) n s (x, out, y), backward (3 + 4 c) n s
// (dy, x, out, dx, dout) over the copy bandwidth.
//
// x is (samples, channels, inner), its first `kept` channels pass; out (samples, 2 (channels - kept), inner) holds the
// raw scales, then the shifts, both to be multiplied by `factor`. The elements of a sample lie next to each other;
// samples may lie apart.
#include <memory>

#include "samples.h"

#include "../export.h"
#include "../math/affine_coupling.h"

namespace PF_NAMESPACE {
namespace {

constexpr int64_t kPiece = 8192;  // elements of a piece of work
constexpr int64_t kSmall = 16384;  // below this the calling thread does it all

struct Shape {
    int64_t samples, channels, kept, inner;
    int64_t coupled() const { return channels - kept; }
};

template <class T>
struct Samples {
    const T* data;
    int64_t stride;  // from sample to sample
};

template <class S>
struct Settings {
    S clamp, factor;
    bool first;
};

// z scale + offset, and which channel of that is read for one of y, or for the backward of y for one of z; null for 1,
// 0 and the same channel.
template <class T>
struct Behind {
    const T *scale, *offset;
    const int64_t* from;
    int64_t source(int64_t channel) const { return from ? from[channel] : channel; }
};

// to[c] = row[from[c]] for as many rows as one likes; up to 64 floats are turned in registers.
template <class T>
class Permutation {
public:
    Permutation(const int64_t* from, int64_t size) : from_(from), size_(size) {
#if defined(__AVX512F__)
        alignas(64) int32_t lanes[64] = {};
        for (int64_t c = 0; from && c < size && size <= 64; ++c) {
            lanes[c] = static_cast<int32_t>(from[c]);
            above_ |= static_cast<uint64_t>(from[c] >= 32) << c;
        }
        for (int k = 0; k < 4; ++k) lane_[k] = _mm512_load_si512(lanes + 16 * k);
#endif
    }
    PF_FN void operator()(const T* row, T* to) const {
#if defined(__AVX512F__)
        if constexpr (std::is_same_v<T, float>) {
            if (size_ <= 64) {
                const uint64_t all = ~uint64_t{0} >> (64 - size_);
                __m512 part[4];
                for (int k = 0; k < 4; ++k)
                    part[k] = _mm512_maskz_loadu_ps(static_cast<__mmask16>(all >> (16 * k)), row + 16 * k);
                for (int k = 0; 16 * k < size_; ++k)  // a lane's number has five bits for two registers
                    _mm512_mask_storeu_ps(to + 16 * k, static_cast<__mmask16>(all >> (16 * k)),
                                          _mm512_mask_blend_ps(static_cast<__mmask16>(above_ >> (16 * k)),
                                                               _mm512_permutex2var_ps(part[0], lane_[k], part[1]),
                                                               _mm512_permutex2var_ps(part[2], lane_[k], part[3])));
                return;
            }
        }
#endif
        for (int64_t c = 0; c < size_; ++c) to[c] = row[from_[c]];
    }

private:
    const int64_t* from_;
    int64_t size_;
#if defined(__AVX512F__)
    __m512i lane_[4];
    uint64_t above_ = 0;
#endif
};

// A piece has whole units: a channel of a sample, or a sample whose channels are single numbers.
template <class F>
void each_unit(const Shape& d, int threads, F run) {
    const bool rows = d.inner != 1;
    const int64_t units = rows ? d.samples * d.channels : d.samples, size = rows ? d.inner : d.channels;
    if (units == 0 || size == 0) return;
    const int64_t group = size < kPiece ? kPiece / size : 1;
    parallel_for((units + group - 1) / group, threads, units * size < kSmall,
                 [&](int64_t k) { run(k * group, (k + 1) * group < units ? (k + 1) * group : units); });
}

// f(i, count, z) for each pack of `n` elements; returns the sum of the logarithms of their scales.
template <int M, class T, class F>
PF_FN double couple_run(const T* x, const T* raw, const T* shift, int64_t n, const Settings<T>& s, F f) {
    using V = Pack<T>;
    V total = splat<V>(0);
    for (int64_t i = 0; i < n; i += lanes<T>()) {
        const int64_t count = n - i < lanes<T>() ? n - i : lanes<T>();
        const auto at = scale_at<M>(read_some(raw + i, count) * s.factor, s.clamp, false);
        f(i, count, couple(read_some(x + i, count), read_some(shift + i, count) * s.factor, at, s.first));
        if (count < lanes<T>()) {  // a lane without an element has the logarithm of a raw scale of 0
            T logs[lanes<T>()];
            store(logs, at.log);
            total += read_part(logs, count);
        } else {
            total += at.log;
        }
    }
    return sum_lanes(total);
}

template <int M, class T>
void forward(const Shape& d, Samples<T> x, Samples<T> out, Behind<T> behind, T* y, T* logdet, const Settings<T>& s,
             int threads) {
    using V = Pack<T>;
    const int64_t size = d.channels * d.inner, coupled = d.coupled();
    double of_scale = 0;
    if (behind.scale) {
        for (int64_t c = 0; c < d.channels; ++c) of_scale += log(static_cast<double>(behind.scale[c]));
        of_scale *= static_cast<double>(d.inner);
    }
    if (d.inner == 1) {
        each_unit(d, threads, [&](int64_t begin, int64_t end) {
            const std::unique_ptr<T[]> row(new T[static_cast<std::size_t>(size)]);
            const Permutation<T> permute(behind.from, size);
            for (int64_t n = begin; n < end; ++n) {
                const T *px = x.data + n * x.stride, *raw = out.data + n * out.stride;
                T* to = behind.from ? row.get() : y + n * size;
                const auto put = [&](int64_t c, int64_t count, V z) {
                    if (behind.scale) z = z * read_some(behind.scale + c, count) + read_some(behind.offset + c, count);
                    write_some(to + c, z, count);
                };
                for (int64_t c = 0; c < d.kept; c += lanes<T>()) {
                    const int64_t count = d.kept - c < lanes<T>() ? d.kept - c : lanes<T>();
                    put(c, count, read_some(px + c, count));
                }
                const double sum = couple_run<M>(px + d.kept, raw, raw + coupled, coupled, s,
                                                 [&](int64_t i, int64_t count, V z) { put(d.kept + i, count, z); });
                logdet[n] = static_cast<T>(sum + of_scale);
                if (behind.from) permute(row.get(), y + n * size);
            }
        });
        return;
    }
    const std::unique_ptr<double[]> logs(new double[static_cast<std::size_t>(d.samples * coupled)]());
    each_unit(d, threads, [&](int64_t begin, int64_t end) {
        for (int64_t r = begin; r < end; ++r) {
            const int64_t n = r / d.channels, c = behind.source(r % d.channels), k = c - d.kept;
            const T* px = x.data + n * x.stride + c * d.inner;
            T* py = y + r * d.inner;
            const V scale = splat<V>(behind.scale ? behind.scale[c] : T(1));
            const V offset = splat<V>(behind.scale ? behind.offset[c] : T(0));
            const auto put = [&](int64_t i, int64_t count, V z) {
                write_some(py + i, behind.scale ? z * scale + offset : z, count);
            };
            if (k < 0) {
                for (int64_t i = 0; i < d.inner; i += lanes<T>()) {
                    const int64_t count = d.inner - i < lanes<T>() ? d.inner - i : lanes<T>();
                    put(i, count, read_some(px + i, count));
                }
            } else {
                const T* raw = out.data + n * out.stride + k * d.inner;
                logs[n * coupled + k] = couple_run<M>(px, raw, raw + coupled * d.inner, d.inner, s, put);
            }
        }
    });
    for (int64_t n = 0; n < d.samples; ++n) {
        double sum = of_scale;
        for (int64_t k = 0; k < coupled; ++k) sum += logs[n * coupled + k];
        logdet[n] = static_cast<T>(sum);
    }
}

// Gradients of z's kept channels, or of what a coupling was made of; f(i, count, dy, z) sees each pack of z.
template <class T>
struct Gradients {
    T *dx, *draw, *dshift;
};

template <int M, class T, class Scale, class F>
PF_FN void uncouple_run(const T* dy, T dlog, const T* x, const T* raw, const T* shift, Gradients<T> g, int64_t n,
                        const Settings<T>& s, Scale scale, F f) {
    using V = Pack<T>;
    for (int64_t i = 0; i < n; i += lanes<T>()) {
        const int64_t count = n - i < lanes<T>() ? n - i : lanes<T>();
        const V vx = read_some(x + i, count), vdy = read_some(dy + i, count);
        const auto at = scale_at<M>(read_some(raw + i, count) * s.factor, s.clamp, false);
        const V z = couple(vx, read_some(shift + i, count) * s.factor, at, s.first);
        const V dz = vdy * scale(i, count);
        V dx, draw;
        couple_backward(dz, splat<V>(dlog), s.first ? z : vx, at, s.first, dx, draw);
        write_some(g.dx + i, dx, count);
        write_some(g.draw + i, draw * s.factor, count);
        write_some(g.dshift + i, (s.first ? dx : dz) * s.factor, count);
        f(i, count, vdy, z);
    }
}

// The sums over a piece of dy z and of dy, of each channel, added up in float64 in the order of the pieces.
template <class T>
void finish_sums(const Shape& d, const double* sums, int64_t pieces, const T* dlogdet, const Behind<T>& behind,
                 T* dscale, T* doffset) {
    double by_log = 0;
    for (int64_t n = 0; n < d.samples; ++n) by_log += static_cast<double>(dlogdet[n]);
    for (int64_t c = 0; c < d.channels; ++c) {
        double of_scale = by_log * static_cast<double>(d.inner) / static_cast<double>(behind.scale[c]), of_offset = 0;
        for (int64_t k = 0; k < pieces; ++k) {
            of_scale += sums[(2 * k) * d.channels + c];
            of_offset += sums[(2 * k + 1) * d.channels + c];
        }
        dscale[c] = static_cast<T>(of_scale);
        doffset[c] = static_cast<T>(of_offset);
    }
}

template <int M, class T>
void backward(const Shape& d, Samples<T> dy, const T* dlogdet, Samples<T> x, Samples<T> out, Behind<T> behind, T* dx,
              T* dout, T* dscale, T* doffset, const Settings<T>& s, int threads) {
    using V = Pack<T>;
    const int64_t size = d.channels * d.inner, coupled = d.coupled();
    const int64_t group = d.inner != 1 || size >= kPiece ? 1 : kPiece / (size > 0 ? size : 1);
    const int64_t pieces = (d.samples + group - 1) / group;
    const std::unique_ptr<double[]> sums(behind.scale ? new double[static_cast<std::size_t>(2 * pieces * d.channels)]()
                                                      : nullptr);
    if (d.inner == 1) {
        each_unit(d, threads, [&](int64_t begin, int64_t end) {
            // A row of dy in z's order, and two rows of sums.
            const std::unique_ptr<T[]> row(new T[static_cast<std::size_t>(3 * size)]());
            const Permutation<T> permute(behind.from, size);
            T *of_scale = row.get() + size, *of_offset = of_scale + size;
            const auto add = [&](int64_t c, int64_t count, V g, V z) {
                if (!behind.scale) return;
                write_some(of_scale + c, read_some(of_scale + c, count) + g * z, count);
                write_some(of_offset + c, read_some(of_offset + c, count) + g, count);
            };
            const auto scale = [&](int64_t c, int64_t count) {
                return behind.scale ? read_some(behind.scale + c, count) : splat<V>(1);
            };
            for (int64_t n = begin; n < end; ++n) {
                const T *px = x.data + n * x.stride, *raw = out.data + n * out.stride, *g = dy.data + n * dy.stride;
                if (behind.from) {
                    permute(g, row.get());
                    g = row.get();
                }
                T *pdx = dx + n * size, *pdout = dout + n * 2 * coupled;
                for (int64_t c = 0; c < d.kept; c += lanes<T>()) {
                    const int64_t count = d.kept - c < lanes<T>() ? d.kept - c : lanes<T>();
                    const V v = read_some(g + c, count);
                    write_some(pdx + c, v * scale(c, count), count);
                    add(c, count, v, read_some(px + c, count));
                }
                uncouple_run<M>(
                    g + d.kept, dlogdet[n], px + d.kept, raw, raw + coupled,
                    Gradients<T>{pdx + d.kept, pdout, pdout + coupled}, coupled, s,
                    [&](int64_t i, int64_t count) { return scale(d.kept + i, count); },
                    [&](int64_t i, int64_t count, V v, V z) { add(d.kept + i, count, v, z); });
            }
            if (behind.scale)
                for (int64_t c = 0; c < 2 * size; ++c) sums[begin / group * 2 * size + c] = of_scale[c];
        });
    } else {
        each_unit(d, threads, [&](int64_t begin, int64_t end) {
            for (int64_t r = begin; r < end; ++r) {
                const int64_t n = r / d.channels, c = r % d.channels, k = c - d.kept;
                const T* px = x.data + n * x.stride + c * d.inner;
                const T* g = dy.data + n * dy.stride + behind.source(c) * d.inner;
                T* pdx = dx + r * d.inner;
                const V scale = splat<V>(behind.scale ? behind.scale[c] : T(1));
                V of_scale = splat<V>(0), of_offset = of_scale;
                const auto add = [&](int64_t, int64_t, V v, V z) {  // lanes without an element are zero in v
                    of_scale += v * z;
                    of_offset += v;
                };
                if (k < 0) {
                    for (int64_t i = 0; i < d.inner; i += lanes<T>()) {
                        const int64_t count = d.inner - i < lanes<T>() ? d.inner - i : lanes<T>();
                        const V v = read_some(g + i, count);
                        write_some(pdx + i, v * scale, count);
                        add(i, count, v, read_some(px + i, count));
                    }
                } else {
                    const T* raw = out.data + n * out.stride + k * d.inner;
                    T* pdraw = dout + (n * 2 * coupled + k) * d.inner;
                    uncouple_run<M>(
                        g, dlogdet[n], px, raw, raw + coupled * d.inner,
                        Gradients<T>{pdx, pdraw, pdraw + coupled * d.inner}, d.inner, s,
                        [&](int64_t, int64_t) { return scale; }, add);
                }
                if (behind.scale) {
                    sums[2 * n * d.channels + c] = sum_lanes(of_scale);
                    sums[(2 * n + 1) * d.channels + c] = sum_lanes(of_offset);
                }
            }
        });
    }
    if (behind.scale) finish_sums(d, sums.get(), pieces, dlogdet, behind, dscale, doffset);
}

// Calls f with a value of the type that `type` names and a compile-time scale map.
template <class F>
const char* with_type_and_map(int type, int map, F f) {
    const auto with_map = [&](auto t) -> const char* {
        switch (map) {
            case kScaleExp:
                f(t, std::integral_constant<int, kScaleExp>{});
                return nullptr;
            case kScaleTanh:
                f(t, std::integral_constant<int, kScaleTanh>{});
                return nullptr;
            case kScaleSigmoid:
                f(t, std::integral_constant<int, kScaleSigmoid>{});
                return nullptr;
            case kScaleSoftclamp:
                f(t, std::integral_constant<int, kScaleSoftclamp>{});
                return nullptr;
            case kScaleClampedTanh:
                f(t, std::integral_constant<int, kScaleClampedTanh>{});
                return nullptr;
        }
        return "unknown scale map";
    };
    return type == kFloat32 ? with_map(float{}) : type == kFloat64 ? with_map(double{}) : "float32 or float64 only";
}

}  // namespace

// The strides are in elements. scale, offset and order (channels), which channel of z each of y is, may be null; so may
// place (channels), which channel of y each of z is.
static const char* couple_channels(const void* x, int64_t x_stride, const void* out, int64_t out_stride,
                                   const void* scale, const void* offset, const int64_t* order, void* y, void* logdet,
                                   int type, int64_t samples, int64_t channels, int64_t kept, int64_t inner, int map,
                                   double clamp, double factor, int first, int threads) {
    return with_type_and_map(type, map, [&](auto t, auto m) {
        using T = decltype(t);
        forward<m.value, T>({samples, channels, kept, inner}, {static_cast<const T*>(x), x_stride},
                            {static_cast<const T*>(out), out_stride},
                            {static_cast<const T*>(scale), static_cast<const T*>(offset), order}, static_cast<T*>(y),
                            static_cast<T*>(logdet), {static_cast<T>(clamp), static_cast<T>(factor), first != 0},
                            threads);
    });
}
PF_EXPORT(couple_channels);

static const char* couple_channels_backward(const void* dy, int64_t dy_stride, const void* dlogdet, const void* x,
                                            int64_t x_stride, const void* out, int64_t out_stride, const void* scale,
                                            const int64_t* place, void* dx, void* dout, void* dscale, void* doffset,
                                            int type, int64_t samples, int64_t channels, int64_t kept, int64_t inner,
                                            int map, double clamp, double factor, int first, int threads) {
    return with_type_and_map(type, map, [&](auto t, auto m) {
        using T = decltype(t);
        backward<m.value, T>({samples, channels, kept, inner}, {static_cast<const T*>(dy), dy_stride},
                             static_cast<const T*>(dlogdet), {static_cast<const T*>(x), x_stride},
                             {static_cast<const T*>(out), out_stride}, {static_cast<const T*>(scale), nullptr, place},
                             static_cast<T*>(dx), static_cast<T*>(dout), static_cast<T*>(dscale),
                             static_cast<T*>(doffset), {static_cast<T>(clamp), static_cast<T>(factor), first != 0},
                             threads);
    });
}
PF_EXPORT(couple_channels_backward);

}  // namespace PF_NAMESPACE
