// y = x S + t or (x + t) S with its log-determinant a sample, and the backward, from x or from y. One pass each.
//
// Floor, n elements of s bytes: forward 4 n s (x, raw, shift, y), backward 5 n s (dy, x or y, raw, dx, draw) over the
// copy bandwidth.
//
// A tensor is (samples, size), the elements of a sample next to each other; samples may lie apart, as the halves of a
// network's output do.
#include "pieces.h"
#include "threads.h"

#include "../export.h"
#include "../math/affine_coupling.h"

namespace PF_NAMESPACE {
namespace {

constexpr int64_t kPiece = 4096;  // elements of a piece of work
constexpr int64_t kPastCaches = int64_t{12} << 20;  // bytes of an output that will not stay in a cache
constexpr int64_t kSmall = 16384;  // below this the calling thread does it all

template <class S>
struct Settings {
    S clamp;
    bool first, inverse;
};

template <class T>
struct Tensor {
    const T* data;
    int64_t stride;  // from sample to sample
};

// Calls run(sample, from, elements, done) for each run of elements that lie next to each other in every tensor; `done`
// is how many elements of the piece came before.
template <class F>
PF_FN void each_run(const Piece& p, bool together, F run) {
    if (together) {
        run(p.first, p.begin, (p.last - p.first) * p.count, int64_t{0});
    } else {
        for (int64_t n = p.first; n < p.last; ++n) run(n, p.begin, p.count, (n - p.first) * p.count);
    }
}

template <class T>
PF_FN void put(T* p, Pack<T> v, bool past_caches) {
    if (past_caches)
        stream(p, v);
    else
        Storage<T>::write(p, v);
}

template <class T>
bool streams(const Batch& b, const T* out) {
    return sizeof(T) == sizeof(Scalar<Pack<T>>) &&
           b.samples * b.size * static_cast<int64_t>(sizeof(T)) >= kPastCaches &&
           reinterpret_cast<uintptr_t>(out) % sizeof(Pack<T>) == 0;
}

template <int M, class T>
void forward(Batch batch, Tensor<T> x, Tensor<T> raw, Tensor<T> shift, T* y, Scalar<Pack<T>>* logdet,
             const Settings<Scalar<Pack<T>>> s, int threads) {
    using V = Pack<T>;
    using S = Scalar<V>;
    constexpr int64_t kStep = lanes<T>();
    const Pieces pieces(batch, kPiece);
    const bool together = x.stride == batch.size && raw.stride == batch.size && shift.stride == batch.size;
    const bool past_caches = streams(batch, y) && batch.size % kStep == 0;
    const S sign = s.inverse ? S(-1) : S(1);
    SampleSums<V> sums(batch, pieces, logdet);
    parallel_for(pieces.count(), threads, batch.samples * batch.size < kSmall, [&](int64_t k) {
        const Piece piece = pieces[k];
        S logs[kPiece + kStep];
        each_run(piece, together, [&](int64_t sample, int64_t from, int64_t count, int64_t done) {
            const T* px = x.data + sample * x.stride + from;
            const T* praw = raw.data + sample * raw.stride + from;
            const T* pshift = shift.data + sample * shift.stride + from;
            T* py = y + sample * batch.size + from;
            const auto step = [&](V vx, V vraw, V vshift, int64_t i) {
                const auto scale = scale_at<M>(vraw, s.clamp, s.inverse);
                store(logs + done + i, scale.log);
                return couple(vx, vshift * sign, scale, s.first);
            };
            int64_t i = 0;
            for (; i + kStep <= count; i += kStep)
                put(py + i, step(Storage<T>::read(px + i), Storage<T>::read(praw + i), Storage<T>::read(pshift + i), i),
                    past_caches);
            if (i < count) {
                const int64_t left = count - i;
                write_part(py + i,
                           step(read_part(px + i, left), read_part(praw + i, left), read_part(pshift + i, left), i),
                           left);
            }
        });
        sums.add(k, piece, logs);
        if (past_caches) stream_done();
    });
    sums.finish();
}

template <int M, class T>
void backward(Batch batch, Tensor<T> dy, const Scalar<Pack<T>>* dlogdet, Tensor<T> kept, Tensor<T> raw, T* dx, T* draw,
              const Settings<Scalar<Pack<T>>> s, int threads) {
    using V = Pack<T>;
    using S = Scalar<V>;
    constexpr int64_t kStep = lanes<T>();
    const Pieces pieces(batch, kPiece);
    const bool together = dy.stride == batch.size && kept.stride == batch.size && raw.stride == batch.size;
    const bool past_caches = streams(batch, dx) && streams(batch, draw) && batch.size % kStep == 0;
    parallel_for(pieces.count(), threads, batch.samples * batch.size < kSmall, [&](int64_t k) {
        const Piece piece = pieces[k];
        S dlogs[kPiece + kStep];  // of each element
        repeat(piece, dlogdet, dlogs);
        each_run(piece, together, [&](int64_t sample, int64_t from, int64_t count, int64_t done) {
            const T* pdy = dy.data + sample * dy.stride + from;
            const T* pkept = kept.data + sample * kept.stride + from;
            const T* praw = raw.data + sample * raw.stride + from;
            T* pdx = dx + sample * batch.size + from;
            T* pdraw = draw + sample * batch.size + from;
            const auto step = [&](V vdy, V vkept, V vraw, int64_t i, V& vdx, V& vdraw) {
                const auto scale = scale_at<M>(vraw, s.clamp, s.inverse);
                couple_backward(vdy, load<V>(dlogs + done + i), vkept, scale, s.first, vdx, vdraw);
            };
            V vdx, vdraw;
            int64_t i = 0;
            for (; i + kStep <= count; i += kStep) {
                step(Storage<T>::read(pdy + i), Storage<T>::read(pkept + i), Storage<T>::read(praw + i), i, vdx, vdraw);
                put(pdx + i, vdx, past_caches);
                put(pdraw + i, vdraw, past_caches);
            }
            if (i < count) {
                const int64_t left = count - i;
                step(read_part(pdy + i, left), read_part(pkept + i, left), read_part(praw + i, left), i, vdx, vdraw);
                write_part(pdx + i, vdx, left);
                write_part(pdraw + i, vdraw, left);
            }
        });
        if (past_caches) stream_done();
    });
}

// Calls f with a compile-time scale map.
template <class F>
const char* with_map(int map, F f) {
    switch (map) {
        case kScaleExp:
            f(std::integral_constant<int, kScaleExp>{});
            return nullptr;
        case kScaleTanh:
            f(std::integral_constant<int, kScaleTanh>{});
            return nullptr;
        case kScaleSigmoid:
            f(std::integral_constant<int, kScaleSigmoid>{});
            return nullptr;
        case kScaleSoftclamp:
            f(std::integral_constant<int, kScaleSoftclamp>{});
            return nullptr;
        case kScaleClampedTanh:
            f(std::integral_constant<int, kScaleClampedTanh>{});
            return nullptr;
    }
    return "unknown scale map";
}

}  // namespace

// logdet, and dlogdet below, is of the type that is computed in. The strides are in elements.
static const char* affine_coupling(const void* x, int64_t x_stride, const void* raw, int64_t raw_stride,
                                   const void* shift, int64_t shift_stride, void* y, void* logdet, int type,
                                   int64_t samples, int64_t size, int map, double clamp, int first, int inverse,
                                   int threads) {
    return with_type(type, [&](auto t) -> const char* {
        using T = decltype(t);
        using S = Scalar<Pack<T>>;
        return with_map(map, [&](auto m) {
            forward<m.value, T>({samples, size}, {static_cast<const T*>(x), x_stride},
                                {static_cast<const T*>(raw), raw_stride}, {static_cast<const T*>(shift), shift_stride},
                                static_cast<T*>(y), static_cast<S*>(logdet),
                                {static_cast<S>(clamp), first != 0, inverse != 0}, threads);
        });
    });
}
PF_EXPORT(affine_coupling);

// `kept` is y if the shift comes first, else x.
static const char* affine_coupling_backward(const void* dy, int64_t dy_stride, const void* dlogdet, const void* kept,
                                            int64_t kept_stride, const void* raw, int64_t raw_stride, void* dx,
                                            void* draw, int type, int64_t samples, int64_t size, int map, double clamp,
                                            int first, int inverse, int threads) {
    return with_type(type, [&](auto t) -> const char* {
        using T = decltype(t);
        using S = Scalar<Pack<T>>;
        return with_map(map, [&](auto m) {
            backward<m.value, T>({samples, size}, {static_cast<const T*>(dy), dy_stride},
                                 static_cast<const S*>(dlogdet), {static_cast<const T*>(kept), kept_stride},
                                 {static_cast<const T*>(raw), raw_stride}, static_cast<T*>(dx), static_cast<T*>(draw),
                                 {static_cast<S>(clamp), first != 0, inverse != 0}, threads);
        });
    });
}
PF_EXPORT(affine_coupling_backward);

}  // namespace PF_NAMESPACE
