// y = act(weight (x - mean) / sqrt(var + eps) + bias), its backward and the backward of that; the formulas are derived
// in pyfastgan/ops/norm_act.py.
//
// Floor, n elements of s bytes: forward 2 n s, backward 3 n s, backward of the backward 5 n s over the copy bandwidth.
// Each has two phases over its inputs, sums and then results, so what shares a mean is taken through both while it is
// in a cache: a channel of contiguous batch norm, a group of a sample, a sample in channels-last. Only channels-last
// batch norm reads everything twice.
//
// Here is the forward pass; norm_act_derivatives.cpp has the others, norm_act_loops.h what they share.
#include "norm_act_loops.h"

#include "../export.h"

namespace PF_NAMESPACE {
namespace {

constexpr int64_t kEstimate = 16;  // a first estimate of a mean is that of every such part

// mean and var from sums of d = x - estimate and of d^2. The estimate is the mean of a 16th of the values or more, so
// that the square of its error is at most 15 var: the difference below keeps its digits.
template <class S>
PF_FN void finish(double estimate, double d, double square, double n, S* mean, S* var) {
    const double shift = d / n, spread = square / n - shift * shift;
    *mean = static_cast<S>(estimate + shift);
    *var = static_cast<S>(spread < 0 ? 0 : spread);  // NaN stays
}

template <class T>
PF_FN Scalar<Pack<T>> rounded(double x) {
    return to_scalar(from_scalar<T>(static_cast<Scalar<Pack<T>>>(x)));
}

template <class T, class S = Scalar<Pack<T>>>
struct ForwardCall {
    Shape shape;
    Parameters<S> given;
    Pass<T> statistics, results;
    S *mean, *var;
    int threads;

    bool small() const { return shape.size() < kSmall; }

    void rows() const {
        using V = Pack<T>;
        parallel_for(Unit::count(shape), threads, small(), [&](int64_t index) {
            const Unit unit(shape, index);
            double rstd = 1, middle = 0;
            if (shape.norm != kAffine) {
                // The lines of a group follow each other in memory.
                const int64_t n = unit.lines * shape.space;
                const int64_t rows = shape.norm == kBatch ? (unit.rows + kEstimate - 1) / kEstimate : 1;
                const int64_t part = shape.norm == kBatch ? n : (n + kEstimate - 1) / kEstimate;
                double sums[2];
                V estimate = splat<V>(0);
                sum_rows(statistics, unit.at, rows, unit.stride, part, &estimate, sums, 1);
                estimate = splat<V>(rounded<T>(sums[0] / static_cast<double>(rows * part)));
                sum_rows(statistics, unit.at, unit.rows, unit.stride, n, &estimate, sums, 1);
                finish(estimate[0], sums[0], sums[1], values(shape), mean + index, var + index);
                middle = mean[index];
                rstd = given.rstd(var[index]);
            }
            for (int64_t l = 0; l < unit.lines; ++l) {
                S coef[3];
                given.fill(unit.channel + l, 1, middle, rstd, coef, 1);
                const V k[3] = {splat<V>(coef[0]), splat<V>(coef[1]), splat<V>(coef[2])};
                results.run_rows(unit.at + l * shape.space, unit.rows, unit.stride, shape.space, k, nullptr);
            }
            if (results.t.past_caches) stream_done();
        });
    }

    // Samples in channels-last memory, several in a piece where they are small.
    void samples() const {
        const int64_t channels = shape.channels, lines = shape.group_channels(), each = channels * shape.space;
        const int64_t width = Columns<T>{channels}.width();
        const Samples pieces(shape);
        parallel_for(pieces.count(), threads, small(), [&](int64_t piece) {
            Scratch scratch(2 * width, 5 * width, sizeof(S));
            double* sums = scratch.take<double>(2 * width);
            S *coef = scratch.take<S>(3 * width), *held = scratch.take<S>(2 * width);
            for (int64_t n = pieces.first(piece); n < pieces.end(piece); ++n) {
                const int64_t rows = (shape.space + kEstimate - 1) / kEstimate;
                for (int64_t c = 0; c < width; ++c) coef[c] = 0;
                sum_columns(statistics, n * each, rows, channels, coef, width, held, sums);
                for (int64_t c = 0; c < channels; c += lines) {
                    double sum = 0;
                    for (int64_t l = 0; l < lines; ++l) sum += sums[c + l];
                    const S estimate = rounded<T>(sum / static_cast<double>(rows * lines));
                    for (int64_t l = 0; l < lines; ++l) coef[c + l] = estimate;
                }
                sum_columns(statistics, n * each, shape.space, channels, coef, width, held, sums);
                for (int64_t c = 0; c < channels; c += lines) {
                    double d = 0, square = 0;
                    for (int64_t l = 0; l < lines; ++l) {
                        d += sums[c + l];
                        square += sums[width + c + l];
                    }
                    const int64_t group = n * shape.groups + c / lines;
                    finish(coef[c], d, square, values(shape), mean + group, var + group);
                    given.fill(c, lines, mean[group], given.rstd(var[group]), coef + c, width);
                }
                run_columns(results, n * each, shape.space, channels, coef, width, held);
            }
        });
    }

    // Batch norm's statistics: each block's mean and sum of squares about it, then those of all.
    void block_statistics() const {
        const int64_t channels = shape.channels, width = Columns<T>{channels}.width();
        const Blocks blocks(shape);
        const std::unique_ptr<double[]> partial(new double[2 * blocks.count() * channels]);
        parallel_for(blocks.count(), threads, small(), [&](int64_t block) {
            Scratch scratch(2 * width, 3 * width, sizeof(S));
            double* sums = scratch.take<double>(2 * width);
            S *estimate = scratch.take<S>(width), *held = scratch.take<S>(2 * width);
            const int64_t at = blocks.first(block) * channels, n = blocks.size(block);
            const int64_t rows = (n + kEstimate - 1) / kEstimate;
            for (int64_t c = 0; c < width; ++c) estimate[c] = 0;
            sum_columns(statistics, at, rows, channels, estimate, width, held, sums);
            for (int64_t c = 0; c < channels; ++c) estimate[c] = rounded<T>(sums[c] / static_cast<double>(rows));
            sum_columns(statistics, at, n, channels, estimate, width, held, sums);
            double* to = partial.get() + 2 * block * channels;
            for (int64_t c = 0; c < channels; ++c) {
                to[c] = estimate[c] + sums[c] / static_cast<double>(n);
                to[channels + c] = sums[width + c] - sums[c] * sums[c] / static_cast<double>(n);
            }
        });
        const std::unique_ptr<double[]> all(new double[2 * channels]());
        double *middle = all.get(), *square = middle + channels;
        for (int64_t block = 0; block < blocks.count(); ++block) {
            const double share = static_cast<double>(blocks.size(block)) / static_cast<double>(blocks.rows);
            for (int64_t c = 0; c < channels; ++c) middle[c] += share * partial[2 * block * channels + c];
        }
        for (int64_t block = 0; block < blocks.count(); ++block) {
            const double n = static_cast<double>(blocks.size(block));
            const double* from = partial.get() + 2 * block * channels;
            for (int64_t c = 0; c < channels; ++c) {
                const double d = from[c] - middle[c];
                square[c] += from[channels + c] + n * d * d;
            }
        }
        for (int64_t c = 0; c < channels; ++c) finish(middle[c], 0, square[c], values(shape), mean + c, var + c);
    }

    void blocks() const {
        const int64_t channels = shape.channels, width = Columns<T>{channels}.width();
        const Blocks blocks(shape);
        const std::unique_ptr<S[]> coef(new S[3 * width]);
        const bool affine = shape.norm == kAffine;
        if (!affine) block_statistics();
        for (int64_t c = 0; c < channels; ++c)
            given.fill(c, 1, affine ? 0 : mean[c], affine ? 1 : given.rstd(var[c]), coef.get() + c, width);
        // The blocks that were read last are still in a cache.
        parallel_for(blocks.count(), threads, small(), [&](int64_t k) {
            const int64_t block = affine ? k : blocks.count() - 1 - k;
            run_columns(results, blocks.first(block) * channels, blocks.size(block), channels, coef.get(), width,
                        static_cast<S*>(nullptr));
        });
    }
};

}  // namespace

// weight and bias may be null, and for kAffine mean and var. They are of the type that is computed in. `last`: channels
// lie innermost.
static const char* norm_act(const void* x, const void* weight, const void* bias, void* y, void* mean, void* var,
                            int type, int64_t samples, int64_t channels, int64_t space, int64_t groups, int norm,
                            int last, double eps, int act, double slope, int threads) {
    const Shape shape{samples, channels, space, groups, norm, last != 0};
    if (const char* problem = wrong(shape)) return problem;
    return with_type(type, [&](auto element) -> const char* {
        using T = decltype(element);
        using S = Scalar<Pack<T>>;
        const auto call = [&](auto chosen) -> const char* {
            const Tensors<T> t = tensors<T>(shape, {x}, {y});
            const S s = static_cast<S>(slope);
            const Parameters<S> given{static_cast<const S*>(weight), static_cast<const S*>(bias), eps};
            run(ForwardCall<T>{shape, given, Pass<T>::template of<Statistics<T>>(t, s),
                               Pass<T>::template of<Forward<T, decltype(chosen)::value>>(t, s), static_cast<S*>(mean),
                               static_cast<S*>(var), threads});
            return nullptr;
        };
        if (act == kLinear) return call(Chosen<kLinear>{});
        if (act == kRelu) return call(Chosen<kRelu>{});
        return with_activation(act, call);
    });
}
PF_EXPORT(norm_act);

}  // namespace PF_NAMESPACE
