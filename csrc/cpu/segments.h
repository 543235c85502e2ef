// Elementwise loops over samples that have coefficients of their own, with noise or without, and sums over each sample.
#pragma once

#include <cstdint>
#include <memory>

#include "noise.h"
#include "threads.h"

namespace PF_NAMESPACE {
namespace {

// f(sample, begin, count) for each sample's part of the elements [begin, end).
template <class F>
PF_FN void parts_of_samples(int64_t begin, int64_t end, int64_t elements, F f) {
    for (int64_t sample = begin / elements; begin < end; ++sample) {
        const int64_t stop = (sample + 1) * elements < end ? (sample + 1) * elements : end;
        f(sample, begin, stop - begin);
        begin = stop;
    }
}

// A whole pack, or the first `count` lanes of one.
struct Whole {};
struct Part {
    int64_t count;
};

template <class T>
PF_FN Pack<T> take(const T* p, Whole) {
    return Storage<T>::read(p);
}
template <class T>
PF_FN Pack<T> take(const T* p, Part part) {
    return read_part(p, part.count);
}
template <class T>
PF_FN void put(T* p, Pack<T> v, Whole) {
    Storage<T>::write(p, v);
}
template <class T>
PF_FN void put(T* p, Pack<T> v, Part part) {
    write_part(p, v, part.count);
}
template <class V>
PF_FN void add(V& total, V v, Whole) {
    total += v;
}
template <class V>
PF_FN void add(V& total, V v, Part part) {
    for (int lane = 0; lane < part.count; ++lane) total[lane] += v[lane];
}
template <class V>
PF_FN double sum_of_lanes(V v) {
    double sum = 0;
    for (std::size_t lane = 0; lane < sizeof(V) / sizeof(Scalar<V>); ++lane) sum += v[lane];
    return sum;
}

// f(k, part) for the packs of n elements.
template <class T, class F>
PF_FN void each_pack(int64_t n, F f) {
    int64_t k = 0;
    for (; k + lanes<T>() <= n; k += lanes<T>()) f(k, Whole{});
    if (k < n) f(k, Part{n - k});
}

// Sums over each sample from fixed pieces of the elements: a piece puts its part of a sample's sum into a place of its
// own, and the parts are added in the order of the pieces.
class SampleSums {
public:
    SampleSums(int64_t pieces, int64_t samples)
        : pieces_(pieces), samples_(samples), parts_(new double[pieces + samples]()) {}
    // From one piece to the next part either number grows, so their sum names a part.
    double& part(int64_t piece, int64_t sample) { return parts_[piece + sample]; }
    // `start(piece)` is a piece's first element.
    template <class S, class F>
    void finish(int64_t elements, F start, S* out) const {
        for (int64_t sample = 0; sample < samples_; ++sample) out[sample] = 0;
        int64_t sample = 0;
        double sum = 0;
        for (int64_t piece = 0; piece < pieces_; ++piece) {
            const int64_t end = piece + 1 < pieces_ ? start(piece + 1) : samples_ * elements;
            for (;;) {
                sum += parts_[piece + sample];
                if ((sample + 1) * elements > end) break;
                out[sample++] = static_cast<S>(sum);
                sum = 0;
                if (sample * elements == end) break;
            }
        }
    }

private:
    int64_t pieces_, samples_;
    std::unique_ptr<double[]> parts_;
};

constexpr int64_t kNoisyPairs = 32 * kLanes;  // blocks of noise of a piece, which stay in the nearest cache

inline int64_t noisy_pieces(const Noise& n) { return (n.samples * n.blocks() + kNoisyPairs - 1) / kNoisyPairs; }

// The first element of a piece, or the end of the tensor.
inline int64_t noisy_start(const Noise& n, int64_t piece) {
    const int64_t sample = piece * kNoisyPairs / n.blocks(), block = piece * kNoisyPairs % n.blocks();
    return sample < n.samples ? sample * n.elements + 4 * block : n.samples * n.elements;
}

// Calls f(piece, begin, end, z) for fixed pieces of the elements [0, samples * elements), with z the normals of the
// elements from begin on: those that are given, or new ones, which go to `kept` unless that is null.
template <class T, class F>
void with_normals(const Noise& n, const T* given, T* kept, int threads, F f) {
    const int64_t few = given ? 32768 : 4096;  // elements below which a second thread costs more than it gives
    const int64_t pairs = n.samples * n.blocks();
    parallel_for(noisy_pieces(n), threads, n.samples * n.elements < few, [&](int64_t piece) {
        const int64_t begin = noisy_start(n, piece), end = noisy_start(n, piece + 1);
        if (given) return f(piece, begin, end, given + begin);
        T buffer[4 * kNoisyPairs];
        T* z = kept ? kept + begin : buffer;
        const int64_t first = piece * kNoisyPairs;
        fill_blocks<Maker<kNormal, T>>(n, first, first + kNoisyPairs < pairs ? first + kNoisyPairs : pairs, z);
        f(piece, begin, end, static_cast<const T*>(z));
    });
}

}  // namespace
}  // namespace PF_NAMESPACE
