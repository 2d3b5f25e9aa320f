#include <cstdint>
#include <cstdlib>
#include <map>
#include <sstream>

#include "cuda_runtime.h"
#include "machine.h"

namespace host_gpu {

namespace {

struct Device {
  int processors, blocks;  // multiprocessors, and blocks that each of them holds
};
// The machine; as many as an H100 has; the least there could be; one that the kernels do not fit.
constexpr Device kDevices[] = {{1, kResidentBlocks}, {132, 2}, {1, 1}, {132, 0}};
constexpr int kDeviceCount = sizeof kDevices / sizeof *kDevices;
// What a kernel has without asking, and at most: cudaFuncSetAttribute.
constexpr std::size_t kShared = 48 << 10, kMostShared = 227 << 10;

// Of the machine HOST_GPU_BLOCKS in the environment, for a test of grids of several sizes.
int blocks_of(int device) {
  const char* const wanted = std::getenv("HOST_GPU_BLOCKS");
  return device == 0 && wanted ? std::atoi(wanted) : kDevices[device].blocks;
}

int current = 0;
cudaError_t last = cudaSuccess;
bool records = false;
std::ostringstream record;
const void* captured = nullptr;  // the stream of a graph that is being captured
std::map<const void*, std::size_t> most_shared;
std::string failing;  // the function whose next call gives `failure`
cudaError_t failure = cudaSuccess;

cudaError_t give(cudaError_t status) {
  if (status != cudaSuccess) last = status;
  return status;
}

// Begins every call: it is recorded, and may have to fail.
cudaError_t called(const char* function, const std::string& details = "") {
  if (records) record << function << " device=" << current << details << '\n';
  if (failing != function) return cudaSuccess;
  failing.clear();
  return give(failure);
}

// Of a call that must not be made while any stream is captured: it waits, or may have to.
cudaError_t waits(const char* function) {
  const cudaError_t status = called(function);
  if (status != cudaSuccess) return status;
  return give(captured ? cudaErrorStreamCaptureUnsupported : cudaSuccess);
}

bool fits(const dim3& grid, const dim3& block) {
  constexpr unsigned kMostThreads = 1024;
  const auto within = [](unsigned n, unsigned most) { return n >= 1 && n <= most; };
  return within(grid.x, 0x7fffffff) && within(grid.y, 65535) && within(grid.z, 65535) &&
         within(block.x, kMostThreads) && within(block.y, kMostThreads) && within(block.z, 64) &&
         std::uint64_t(block.x) * block.y * block.z <= kMostThreads;
}

cudaError_t judged(const LaunchCall& call) {
  if (!fits(call.grid, call.block)) return cudaErrorInvalidConfiguration;
  const auto asked = most_shared.find(call.kernel);
  if (call.shared > (asked == most_shared.end() ? kShared : asked->second))
    return cudaErrorInvalidValue;
  const Device& device = kDevices[current];
  const std::uint64_t blocks = std::uint64_t(call.grid.x) * call.grid.y * call.grid.z;
  if (call.cooperative && blocks > std::uint64_t(device.processors) * blocks_of(current))
    return cudaErrorCooperativeLaunchTooLarge;
  // The legacy stream waits for all others.
  const auto number = reinterpret_cast<std::uintptr_t>(call.stream);
  if (captured && number <= 1) return cudaErrorStreamCaptureImplicit;
  return cudaSuccess;
}

}  // namespace

cudaError_t launch_call(const LaunchCall& call, const std::function<void()>& kernel) {
  std::ostringstream text;
  text << " kernel=" << call.kernel << " grid=" << call.grid.x << " threads=" << call.block.x
       << " shared=" << call.shared << " stream=" << reinterpret_cast<std::uintptr_t>(call.stream)
       << " captured=" << (captured && captured == call.stream);
  cudaError_t status = called(call.function, text.str());
  if (status == cudaSuccess) status = give(judged(call));
  if (status != cudaSuccess || current != 0) return status;
  launch("grid of " + std::to_string(call.grid.x) + ", " + std::to_string(call.shared) +
             " bytes of shared memory",
         call.cooperative ? Grid::cooperative : Grid::ordinary, call.grid.x, int(call.block.x),
         call.shared, kernel);
  return cudaSuccess;
}

cudaError_t occupancy(int* blocks, const void*, int, std::size_t) {
  *blocks = blocks_of(current);
  return called("cudaOccupancyMaxActiveBlocksPerMultiprocessor");
}

cudaError_t set_attribute(const void* kernel, cudaFuncAttribute, int value) {
  const cudaError_t status = called("cudaFuncSetAttribute", " value=" + std::to_string(value));
  if (status != cudaSuccess) return status;
  if (value < 0 || std::size_t(value) > kMostShared) return give(cudaErrorInvalidValue);
  most_shared[kernel] = std::size_t(value);
  return cudaSuccess;
}

// Tests call these through ctypes.
extern "C" {
#define MSK_EXPORT __attribute__((visibility("default")))

MSK_EXPORT int host_gpu_fault = 0;

MSK_EXPORT void host_gpu_record(int on) {
  records = on;
  record.str("");
}
MSK_EXPORT std::size_t host_gpu_recorded(char* to, std::size_t capacity) {
  const std::string text = record.str();
  if (text.size() < capacity) text.copy(to, text.size());
  return text.size();
}
MSK_EXPORT void host_gpu_capture(std::uintptr_t stream) {
  captured = reinterpret_cast<const void*>(stream);
}
MSK_EXPORT void host_gpu_fail(const char* function, int error) {
  failing = function;
  failure = cudaError_t(error);
}
}

}  // namespace host_gpu

using namespace host_gpu;

cudaError_t cudaSetDevice(int device) {
  const cudaError_t status = called("cudaSetDevice", " to=" + std::to_string(device));
  if (status != cudaSuccess) return status;
  if (device < 0 || device >= kDeviceCount) return give(cudaErrorInvalidDevice);
  current = device;
  return cudaSuccess;
}
cudaError_t cudaGetDevice(int* device) {
  *device = current;
  return called("cudaGetDevice");
}
cudaError_t cudaGetLastError() {
  const cudaError_t status = last;
  last = cudaSuccess;
  return status;
}
cudaError_t cudaDriverGetVersion(int* version) {
  *version = 13000;
  return called("cudaDriverGetVersion");
}
cudaError_t cudaRuntimeGetVersion(int* version) {
  *version = 13000;
  return called("cudaRuntimeGetVersion");
}
cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr, int device) {
  const cudaError_t status = called("cudaDeviceGetAttribute");
  if (status != cudaSuccess) return status;
  if (device < 0 || device >= kDeviceCount) return give(cudaErrorInvalidDevice);
  *value = kDevices[device].processors;
  return cudaSuccess;
}
cudaError_t cudaDeviceSynchronize() { return waits("cudaDeviceSynchronize"); }
cudaError_t cudaStreamSynchronize(cudaStream_t) { return waits("cudaStreamSynchronize"); }
cudaError_t cudaEventSynchronize(cudaEvent_t) { return waits("cudaEventSynchronize"); }
cudaError_t cudaMemcpy(void*, const void*, std::size_t, cudaMemcpyKind) {
  return waits("cudaMemcpy");
}
cudaError_t cudaMalloc(void**, std::size_t) { return waits("cudaMalloc"); }
cudaError_t cudaFree(void*) { return waits("cudaFree"); }

const char* cudaGetErrorName(cudaError_t error) {
  switch (error) {
    case cudaSuccess:
      return "cudaSuccess";
    case cudaErrorInvalidValue:
      return "cudaErrorInvalidValue";
    case cudaErrorInvalidConfiguration:
      return "cudaErrorInvalidConfiguration";
    case cudaErrorInsufficientDriver:
      return "cudaErrorInsufficientDriver";
    case cudaErrorInvalidDevice:
      return "cudaErrorInvalidDevice";
    case cudaErrorIllegalAddress:
      return "cudaErrorIllegalAddress";
    case cudaErrorCooperativeLaunchTooLarge:
      return "cudaErrorCooperativeLaunchTooLarge";
    case cudaErrorStreamCaptureUnsupported:
      return "cudaErrorStreamCaptureUnsupported";
    case cudaErrorStreamCaptureImplicit:
      return "cudaErrorStreamCaptureImplicit";
  }
  return "unrecognized error code";
}
const char* cudaGetErrorString(cudaError_t error) {
  static thread_local std::string text;
  text = "error " + std::to_string(int(error));
  return text.c_str();
}
