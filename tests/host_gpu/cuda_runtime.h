// Stands in for the CUDA runtime: csrc/ is compiled against it unchanged, its own launch.cuh
// included.
//
// A launch on device 0 is executed by the machine, one on another device is not. Each call is
// refused where the CUDA runtime documents an error, during the capture of a graph too, and tests
// read a record of them (runtime.py). Functions that wait for the device are here to be counted.
#pragma once

#include <cstddef>
#include <functional>

enum cudaError_t : int {
  cudaSuccess = 0,
  cudaErrorInvalidValue = 1,
  cudaErrorInvalidConfiguration = 9,
  cudaErrorInsufficientDriver = 35,
  cudaErrorInvalidDevice = 101,
  cudaErrorIllegalAddress = 700,
  cudaErrorCooperativeLaunchTooLarge = 720,
  cudaErrorStreamCaptureUnsupported = 900,
  cudaErrorStreamCaptureImplicit = 906,
};
enum cudaDeviceAttr { cudaDevAttrMultiProcessorCount = 16 };
enum cudaFuncAttribute { cudaFuncAttributeMaxDynamicSharedMemorySize = 8 };
enum cudaMemcpyKind { cudaMemcpyHostToDevice = 1, cudaMemcpyDeviceToHost = 2 };

using cudaStream_t = struct CUstream_st*;
using cudaEvent_t = struct CUevent_st*;

struct dim3 {
  unsigned x, y, z;
  dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};

namespace host_gpu {

struct LaunchCall {
  const char* function;
  bool cooperative;
  const void* kernel;
  dim3 grid, block;
  std::size_t shared;
  cudaStream_t stream;
};

cudaError_t launch_call(const LaunchCall& call, const std::function<void()>& kernel);
cudaError_t occupancy(int* blocks, const void* kernel, int threads, std::size_t shared);
cudaError_t set_attribute(const void* kernel, cudaFuncAttribute attribute, int value);

}  // namespace host_gpu

cudaError_t cudaSetDevice(int device);
cudaError_t cudaGetDevice(int* device);
cudaError_t cudaGetLastError();
const char* cudaGetErrorName(cudaError_t error);
const char* cudaGetErrorString(cudaError_t error);
cudaError_t cudaDriverGetVersion(int* version);
cudaError_t cudaRuntimeGetVersion(int* version);
cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int device);
cudaError_t cudaDeviceSynchronize();
cudaError_t cudaStreamSynchronize(cudaStream_t stream);
cudaError_t cudaEventSynchronize(cudaEvent_t event);
cudaError_t cudaMemcpy(void* to, const void* from, std::size_t bytes, cudaMemcpyKind kind);
cudaError_t cudaMalloc(void** to, std::size_t bytes);
cudaError_t cudaFree(void* what);

template <typename Argument>
cudaError_t cudaFuncSetAttribute(void (*kernel)(Argument), cudaFuncAttribute attribute, int value) {
  return host_gpu::set_attribute(reinterpret_cast<const void*>(kernel), attribute, value);
}

template <typename Argument>
cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessor(int* blocks, void (*kernel)(Argument),
                                                          int threads, std::size_t shared) {
  return host_gpu::occupancy(blocks, reinterpret_cast<const void*>(kernel), threads, shared);
}

template <typename Argument>
cudaError_t cudaLaunchKernel(void (*kernel)(Argument), dim3 grid, dim3 block, void** arguments,
                             std::size_t shared = 0, cudaStream_t stream = nullptr) {
  return host_gpu::launch_call({"cudaLaunchKernel", false, reinterpret_cast<const void*>(kernel),
                                grid, block, shared, stream},
                               [&] { kernel(*static_cast<Argument*>(arguments[0])); });
}

template <typename Argument>
cudaError_t cudaLaunchCooperativeKernel(void (*kernel)(Argument), dim3 grid, dim3 block,
                                        void** arguments, std::size_t shared = 0,
                                        cudaStream_t stream = nullptr) {
  return host_gpu::launch_call({"cudaLaunchCooperativeKernel", true,
                                reinterpret_cast<const void*>(kernel), grid, block, shared, stream},
                               [&] { kernel(*static_cast<Argument*>(arguments[0])); });
}
