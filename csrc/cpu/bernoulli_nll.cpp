// -ln of a Bernoulli mass by its logit, ln(1 + exp(l)) - x l, summed over each sample, and its gradients.
//
// Floor: 8 bytes an element forward, 12 backward; about 40 vector operations a pack forward, half of them the
// logarithm.
#include "per_sample.h"

#include "../export.h"

namespace PF_NAMESPACE {
namespace {

struct Bernoulli {
    static constexpr int kIn = 2;  // x, logit
    template <class V>
    static PF_FN V value(const V* in) {
        const V zero = splat<V>(0);
        // `< 0` is the side that changes, so that NaN goes through.
        const V positive = select(in[1] < Scalar<V>(0), zero, in[1]);
        return positive - in[0] * in[1] + log1p_unit(exponential(-absolute(in[1])));
    }
    template <class V>
    static PF_FN void slopes(const V* in, V* slope) {
        slope[0] = -in[1];
        slope[1] = logistic(in[1]) - in[0];
    }
};

}  // namespace

static const char* bernoulli_nll(const void* x, const void* logits, void* nll, int type, int64_t samples,
                                 int64_t elements, int threads) {
    const void* in[] = {x, logits};
    return per_sample_forward<Bernoulli>(in, nll, type, samples, elements, threads);
}
PF_EXPORT(bernoulli_nll);

// dx and dlogits may be null.
static const char* bernoulli_nll_backward(const void* dnll, const void* x, const void* logits, void* dx, void* dlogits,
                                          int type, int64_t samples, int64_t elements, int threads) {
    const void* in[] = {x, logits};
    void* out[] = {dx, dlogits};
    return per_sample_backward<Bernoulli>(dnll, in, out, type, samples, elements, threads);
}
PF_EXPORT(bernoulli_nll_backward);

}  // namespace PF_NAMESPACE
