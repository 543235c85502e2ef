// The kernels of csrc/cuda behind a C interface, for ctypes. Compiled by nvcc, or against the emulated runtime.
#include <cstring>

#include <cuda_runtime.h>

#include "../../csrc/export.h"
#include "../../csrc/math/philox.h"

static const pyfastgan::Export* find(const char* name) {
    for (const auto* e = pyfastgan::exports_head; e; e = e->next)
        if (!std::strcmp(e->name, name)) return e;
    return nullptr;
}

extern "C" const char* signature_of(const char* name) {
    const auto* e = find(name);
    return e ? e->signature : nullptr;
}

extern "C" const char* call(const char* name, const pyfastgan::Value* values) { return find(name)->call(values); }

// Ten rounds in place, as random.cu runs them.
extern "C" void philox(uint32_t counter[4], const uint32_t key[2]) {
    using namespace PF_NAMESPACE;
    uint32_t keys[kRounds][2];
    philox_keys(key[0], key[1], keys);
    philox4x32(counter, keys);
}

#ifdef EMULATED_CUDA
extern "C" void fail_next_launch(int error) { next_failure = static_cast<cudaError_t>(error); }
extern "C" int pending_error() { return last_error; }
#endif
