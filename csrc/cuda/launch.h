// One thread an item: how a kernel finds its items, how it is launched, and what is said when that fails.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>
#include <cstdio>

#include "../math/value.h"

namespace PF_NAMESPACE {

constexpr int kThreads = 256;
// Four waves of the largest GPUs; a longer range is walked in strides, so that what a thread sets up is used again.
constexpr int64_t kMostBlocks = 4096;

__device__ __forceinline__ int64_t first_item() { return static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x; }
__device__ __forceinline__ int64_t item_stride() { return static_cast<int64_t>(gridDim.x) * kThreads; }

// nullptr, or what went wrong. The text is the calling thread's own, and lives until its next failure.
inline const char* failure(cudaError_t error) {
    if (error == cudaSuccess) return nullptr;
    cudaGetLastError();  // takes the error back, or torch would report it as its own at its next check
    thread_local char text[320];
    if (error == cudaErrorNoKernelImageForDevice || error == cudaErrorUnsupportedPtxVersion) {
        int device = 0, major = 0, minor = 0;
        cudaGetDevice(&device);
        cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device);
        cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, device);
        std::snprintf(text, sizeof text,
                      "GPU %d has architecture sm_%d%d and this build holds code for %s, which its driver cannot run "
                      "there (%s); build again with CUDAARCHS=%d%d in the environment",
                      device, major, minor, PF_ARCHITECTURES, cudaGetErrorString(error), major, minor);
    } else {
        std::snprintf(text, sizeof text, "%s (%s)", cudaGetErrorString(error), cudaGetErrorName(error));
    }
    return text;
}

// Starts `kernel` with a thread for each of `items` items on a stream of the current device.
template <class... Parameters, class... Arguments>
const char* launch(void (*kernel)(Parameters...), int64_t items, void* queue, Arguments... arguments) {
    if (items <= 0) return nullptr;
    const int64_t blocks = (items + kThreads - 1) / kThreads;
    cudaLaunchConfig_t shape = {};
    shape.gridDim = dim3(static_cast<unsigned>(blocks < kMostBlocks ? blocks : kMostBlocks));
    shape.blockDim = dim3(kThreads);
    shape.stream = static_cast<cudaStream_t>(queue);
    return failure(cudaLaunchKernelEx(&shape, kernel, arguments...));
}

}  // namespace PF_NAMESPACE
