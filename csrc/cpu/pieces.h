// A batch cut into pieces of work by its samples, and sums over each sample that do not depend on the threads.
#pragma once

#include <memory>

#include "types.h"

namespace PF_NAMESPACE {
namespace {

struct Batch {
    int64_t samples, size;
};

// The samples of a piece, or the part of one sample where samples are large.
struct Piece {
    int64_t first, last, begin, count;  // samples [first, last), elements [begin, begin + count) of each
};

class Pieces {
public:
    // `most` is how many elements a piece has at most.
    Pieces(Batch b, int64_t most)
        : batch_(b), most_(most), parts_((b.size + most - 1) / most), group_(b.size > 0 ? most / b.size : most) {}
    int64_t parts() const { return parts_; }
    int64_t count() const { return parts_ > 1 ? batch_.samples * parts_ : (batch_.samples + group_ - 1) / group_; }
    Piece operator[](int64_t k) const {
        if (parts_ > 1) {
            const int64_t begin = k % parts_ * most_, rest = batch_.size - begin;
            return {k / parts_, k / parts_ + 1, begin, rest < most_ ? rest : most_};
        }
        const int64_t first = k * group_, last = first + group_;
        return {first, last < batch_.samples ? last : batch_.samples, 0, batch_.size};
    }

private:
    Batch batch_;
    int64_t most_, parts_, group_;
};

template <class V, class S>
double sum_of(const S* values, int64_t n) {
    constexpr int kStep = sizeof(V) / sizeof(S);
    V total = splat<V>(0), other = splat<V>(0);
    int64_t k = 0;
    for (; k + 2 * kStep <= n; k += 2 * kStep) {
        total += load<V>(values + k);
        other += load<V>(values + k + kStep);
    }
    double sum = k > 0 ? sum_lanes(total + other) : 0;
    for (; k < n; ++k) sum += values[k];
    return sum;
}

// One sum for each sample, from the terms that the pieces give.
template <class V>
class SampleSums {
    using S = Scalar<V>;

public:
    SampleSums(Batch batch, const Pieces& pieces, S* sums)
        : samples_(batch.samples),
          parts_(pieces.parts()),
          sums_(sums),
          partial_(parts_ > 1 ? new double[static_cast<std::size_t>(samples_ * parts_)] : nullptr) {}
    // Of piece number k, all elements of its samples one after the other.
    void add(int64_t k, const Piece& piece, const S* terms) {
        for (int64_t n = piece.first; n < piece.last; ++n) {
            const double sum = sum_of<V>(terms + (n - piece.first) * piece.count, piece.count);
            if (partial_)
                partial_[k] = sum;
            else
                sums_[n] = static_cast<S>(sum);
        }
    }
    void finish() {
        if (!partial_) return;
        for (int64_t n = 0; n < samples_; ++n) {
            double sum = 0;
            for (int64_t k = 0; k < parts_; ++k) sum += partial_[n * parts_ + k];
            sums_[n] = static_cast<S>(sum);
        }
    }

private:
    int64_t samples_, parts_;
    S* sums_;
    std::unique_ptr<double[]> partial_;
};

// A sample's number for each of its elements in a piece, and what fits into a pack behind the last.
template <class S>
PF_FN void repeat(const Piece& piece, const S* numbers, S* to) {
    for (int64_t n = piece.first; n < piece.last; ++n, to += piece.count) {
        const Pack<S> number = splat<Pack<S>>(numbers[n]);
        for (int64_t k = 0; k < piece.count; k += lanes<S>()) store(to + k, number);
    }
}

}  // namespace
}  // namespace PF_NAMESPACE
