// The backward pass of norm_act and the backward of that; norm_act.cpp has the forward pass and says what bounds them.
#include "norm_act_loops.h"

#include "../export.h"

namespace PF_NAMESPACE {
namespace {

// out[c] = the sum of parts[:, c].
template <class S>
void add_up(const S* parts, int64_t count, int64_t channels, S* out) {
    const std::unique_ptr<double[]> total(new double[channels]());
    for (int64_t k = 0; k < count; ++k)
        for (int64_t c = 0; c < channels; ++c) total[c] += parts[k * channels + c];
    for (int64_t c = 0; c < channels; ++c) out[c] = static_cast<S>(total[c]);
}

// The backward pass, or the backward of it, where p and q are the cotangents of dweight and dbias.
template <class T, class S = Scalar<Pack<T>>>
struct DerivativeCall {
    using V = Pack<T>;
    Shape shape;
    Parameters<S> given;
    Pass<T> sums, results;
    const S *mean, *var, *p, *q;
    S *dweight, *dbias;
    int threads;

    bool small() const { return shape.size() < kSmall; }

    // The first coefficients of lines that share a mean.
    void fill(int64_t channel, int64_t count, int64_t group, S* coef, int64_t pitch) const {
        const bool affine = shape.norm == kAffine;
        given.fill(channel, count, affine ? 0 : mean[group], affine ? 1 : given.rstd(var[group]), coef, pitch);
    }
    // And the others, which come from the sums, and the gradients.
    void solve(int64_t channel, int64_t count, int64_t group, const double* from, S* coef, int64_t pitch, S* to_weight,
               S* to_bias) const {
        const auto own = [&](const S* v) { return v ? v + channel : nullptr; };
        const double rstd = shape.norm == kAffine ? 1 : given.rstd(var[group]);
        const Lines<S> lines{count, values(shape), rstd, own(given.weight), own(p), own(q)};
        if (p)
            solve_second(lines, sums.sums > 5, from, coef, pitch, to_weight, to_bias);
        else
            solve_first(lines, from, coef, pitch, to_weight, to_bias);
    }

    void rows() const {
        const bool group = shape.norm == kGroup;
        const int64_t all = group ? shape.samples * shape.channels : 0;
        const std::unique_ptr<S[]> parts(new S[2 * all]);  // of the weight's and the bias's gradient
        parallel_for(Unit::count(shape), threads, small(), [&](int64_t index) {
            const Unit unit(shape, index);
            Scratch scratch(sums.sums * unit.lines, results.coef * unit.lines, sizeof(S));
            double* from = scratch.take<double>(sums.sums * unit.lines);
            S* coef = scratch.take<S>(results.coef * unit.lines);
            V k[kMostCoef];
            const auto numbers = [&](int count, int64_t l) {
                for (int j = 0; j < count; ++j) k[j] = splat<V>(coef[j * unit.lines + l]);
                return k;
            };
            const auto at = [&](int64_t l) { return unit.at + l * shape.space; };
            fill(unit.channel, unit.lines, index, coef, unit.lines);
            for (int64_t l = 0; l < unit.lines; ++l)
                sum_rows(sums, at(l), unit.rows, unit.stride, shape.space, numbers(sums.coef, l), from + l, unit.lines);
            const int64_t place = group ? index * unit.lines : unit.channel;
            solve(unit.channel, unit.lines, index, from, coef, unit.lines, (group ? parts.get() : dweight) + place,
                  (group ? parts.get() + all : dbias) + place);
            for (int64_t l = 0; l < unit.lines; ++l)
                results.run_rows(at(l), unit.rows, unit.stride, shape.space, numbers(results.coef, l), nullptr);
            if (results.t.past_caches) stream_done();
        });
        if (!group) return;
        add_up(parts.get(), shape.samples, shape.channels, dweight);
        add_up(parts.get() + all, shape.samples, shape.channels, dbias);
    }

    void samples() const {
        const int64_t channels = shape.channels, lines = shape.group_channels(), each = channels * shape.space;
        const int64_t width = Columns<T>{channels}.width();
        const Samples pieces(shape);
        const int64_t all = pieces.count() * channels;
        const std::unique_ptr<S[]> parts(new S[2 * all]);
        parallel_for(pieces.count(), threads, small(), [&](int64_t piece) {
            Scratch scratch((sums.sums + 2) * width, (results.coef + sums.sums + 2) * width, sizeof(S));
            double *from = scratch.take<double>(sums.sums * width), *total = scratch.take<double>(2 * width);
            S *coef = scratch.take<S>(results.coef * width), *held = scratch.take<S>(sums.sums * width);
            S* gradient = scratch.take<S>(2 * width);
            for (int64_t k = 0; k < 2 * width; ++k) total[k] = 0;
            for (int64_t n = pieces.first(piece); n < pieces.end(piece); ++n) {
                const auto group = [&](int64_t c) { return n * shape.groups + c / lines; };
                for (int64_t c = 0; c < channels; c += lines) fill(c, lines, group(c), coef + c, width);
                sum_columns(sums, n * each, shape.space, channels, coef, width, held, from);
                for (int64_t c = 0; c < channels; c += lines)
                    solve(c, lines, group(c), from + c, coef + c, width, gradient + c, gradient + width + c);
                for (int64_t c = 0; c < channels; ++c) {
                    total[c] += gradient[c];
                    total[width + c] += gradient[width + c];
                }
                run_columns(results, n * each, shape.space, channels, coef, width, held);
            }
            for (int64_t c = 0; c < channels; ++c) {
                parts[piece * channels + c] = static_cast<S>(total[c]);
                parts[all + piece * channels + c] = static_cast<S>(total[width + c]);
            }
        });
        add_up(parts.get(), pieces.count(), channels, dweight);
        add_up(parts.get() + all, pieces.count(), channels, dbias);
    }

    void blocks() const {
        const int64_t channels = shape.channels, width = Columns<T>{channels}.width(), each = sums.sums * width;
        const Blocks blocks(shape);
        const bool affine = shape.norm == kAffine;
        const std::unique_ptr<S[]> coef(new S[results.coef * width]);
        const std::unique_ptr<double[]> total(new double[each]()), partial(new double[blocks.count() * each]);
        const auto solve_all = [&] {
            for (int64_t c = 0; c < channels; ++c)
                solve(c, 1, c, total.get() + c, coef.get() + c, width, dweight + c, dbias + c);
        };
        const auto write = [&](int64_t block) {
            run_columns(results, blocks.first(block) * channels, blocks.size(block), channels, coef.get(), width,
                        static_cast<S*>(nullptr));
        };
        for (int64_t c = 0; c < channels; ++c) fill(c, 1, c, coef.get() + c, width);
        if (affine) solve_all();  // there the coefficients do not come from the sums: one pass is enough
        parallel_for(blocks.count(), threads, small(), [&](int64_t block) {
            const std::unique_ptr<S[]> held(new S[each]);
            sum_columns(sums, blocks.first(block) * channels, blocks.size(block), channels, coef.get(), width,
                        held.get(), partial.get() + block * each);
            if (affine) write(block);
        });
        for (int64_t block = 0; block < blocks.count(); ++block)
            for (int64_t k = 0; k < each; ++k) total[k] += partial[block * each + k];
        solve_all();
        // The blocks that were read last are still in a cache.
        if (!affine) parallel_for(blocks.count(), threads, small(), [&](int64_t k) { write(blocks.count() - 1 - k); });
    }
};

// The derivative of every piecewise-linear activation is 1 or `slope`.
void as_leaky(int& act, double& slope) {
    if (act != kLinear && act != kRelu) return;
    slope = act == kLinear ? 1 : 0;
    act = kLeakyRelu;
}

}  // namespace

// weight, bias, mean, var and `last` as in norm_act.
static const char* norm_act_backward(const void* dy, const void* x, const void* mean, const void* var,
                                     const void* weight, const void* bias, void* dx, void* dweight, void* dbias,
                                     int type, int64_t samples, int64_t channels, int64_t space, int64_t groups,
                                     int norm, int last, double eps, int act, double slope, int threads) {
    const Shape shape{samples, channels, space, groups, norm, last != 0};
    if (const char* problem = wrong(shape)) return problem;
    as_leaky(act, slope);
    return with_type(type, [&](auto element) -> const char* {
        using T = decltype(element);
        using S = Scalar<Pack<T>>;
        return with_activation(act, [&](auto chosen) -> const char* {
            constexpr int A = decltype(chosen)::value;
            const Tensors<T> t = tensors<T>(shape, {x, dy}, {dx});
            const S s = static_cast<S>(slope);
            const Parameters<S> given{static_cast<const S*>(weight), static_cast<const S*>(bias), eps};
            run(DerivativeCall<T>{shape, given, Pass<T>::template of<BackwardSums<T, A>>(t, s),
                                  Pass<T>::template of<BackwardResults<T, A>>(t, s), static_cast<const S*>(mean),
                                  static_cast<const S*>(var), nullptr, nullptr, static_cast<S*>(dweight),
                                  static_cast<S*>(dbias), threads});
            return nullptr;
        });
    });
}
PF_EXPORT(norm_act_backward);

static const char* norm_act_backward_backward(const void* ddx, const void* ddweight, const void* ddbias, const void* dy,
                                              const void* x, const void* mean, const void* var, const void* weight,
                                              const void* bias, void* grad_dy, void* grad_x, void* grad_weight,
                                              void* grad_bias, int type, int64_t samples, int64_t channels,
                                              int64_t space, int64_t groups, int norm, int last, double eps, int act,
                                              double slope, int threads) {
    const Shape shape{samples, channels, space, groups, norm, last != 0};
    if (const char* problem = wrong(shape)) return problem;
    as_leaky(act, slope);
    return with_type(type, [&](auto element) -> const char* {
        using T = decltype(element);
        using S = Scalar<Pack<T>>;
        return with_activation(act, [&](auto chosen) -> const char* {
            constexpr int A = decltype(chosen)::value;
            const Tensors<T> t = tensors<T>(shape, {x, dy, ddx}, {grad_dy, grad_x});
            const S s = static_cast<S>(slope);
            const Parameters<S> given{static_cast<const S*>(weight), static_cast<const S*>(bias), eps};
            run(DerivativeCall<T>{shape, given, Pass<T>::template of<SecondSums<T, A>>(t, s),
                                  Pass<T>::template of<SecondResults<T, A>>(t, s), static_cast<const S*>(mean),
                                  static_cast<const S*>(var), static_cast<const S*>(ddweight),
                                  static_cast<const S*>(ddbias), static_cast<S*>(grad_weight),
                                  static_cast<S*>(grad_bias), threads});
            return nullptr;
        });
    });
}
PF_EXPORT(norm_act_backward_backward);

}  // namespace PF_NAMESPACE
