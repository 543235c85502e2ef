// Work split over threads in fixed pieces: what a piece computes never depends on how many threads there are.
#pragma once

#include "simd.h"

namespace PF_NAMESPACE {

// f(piece) for piece in [0, pieces); small work stays on the calling thread, since a fork and a join cost a
// microsecond.
template <class F>
inline void parallel_for(int64_t pieces, int threads, bool small, F f) {
#ifdef _OPENMP
    if (!small && threads > 1 && pieces > 1) {
#pragma omp parallel for schedule(static) num_threads(threads)
        for (int64_t k = 0; k < pieces; ++k) f(k);
        return;
    }
#endif
    (void)threads;
    (void)small;
    for (int64_t k = 0; k < pieces; ++k) f(k);
}

}  // namespace PF_NAMESPACE
