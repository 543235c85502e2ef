// As much of the CUDA runtime as kernels without shared memory need, on the CPU, one thread after another. With this
// folder first on the include path a C++ compiler builds csrc/cuda/*.cu, and the launches run.
#pragma once

#define EMULATED_CUDA

#include <cstddef>
#include <utility>

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __launch_bounds__(...)

struct dim3 {
    unsigned x, y, z;
    dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};

inline dim3 gridDim, blockDim, blockIdx, threadIdx;

typedef void* cudaStream_t;
enum cudaError_t {
    cudaSuccess,
    cudaErrorInvalidConfiguration,
    cudaErrorNoKernelImageForDevice,
    cudaErrorUnsupportedPtxVersion
};
enum cudaDeviceAttr { cudaDevAttrComputeCapabilityMajor, cudaDevAttrComputeCapabilityMinor };

// What the next launch returns instead of running, so that a test can see what is made of it.
inline cudaError_t next_failure = cudaSuccess, last_error = cudaSuccess;

inline cudaError_t cudaGetLastError() { return std::exchange(last_error, cudaSuccess); }
inline const char* cudaGetErrorName(cudaError_t) { return "cudaErrorEmulated"; }
inline const char* cudaGetErrorString(cudaError_t) { return "an emulated error"; }
inline cudaError_t cudaGetDevice(int* device) { return *device = 3, cudaSuccess; }
inline cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int) {
    *value = attribute == cudaDevAttrComputeCapabilityMajor ? 5 : 2;
    return cudaSuccess;
}

struct cudaLaunchConfig_t {
    dim3 gridDim, blockDim;
    std::size_t dynamicSmemBytes;
    cudaStream_t stream;
};

template <class... Parameters, class... Arguments>
cudaError_t cudaLaunchKernelEx(const cudaLaunchConfig_t* shape, void (*kernel)(Parameters...),
                               Arguments&&... arguments) {
    if (next_failure != cudaSuccess) return last_error = std::exchange(next_failure, cudaSuccess);
    const dim3 grid = gridDim = shape->gridDim, block = blockDim = shape->blockDim;
    if (!grid.x || !block.x || block.x > 1024 || grid.y * grid.z * block.y * block.z != 1)
        return last_error = cudaErrorInvalidConfiguration;
    for (blockIdx.x = 0; blockIdx.x < grid.x; ++blockIdx.x)
        for (threadIdx.x = 0; threadIdx.x < block.x; ++threadIdx.x) kernel(arguments...);
    return cudaSuccess;
}
