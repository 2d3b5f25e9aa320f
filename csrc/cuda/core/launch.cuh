// The only place that launches. The CUDA runtime that tests/host_gpu puts under it has the CPU run
// the blocks.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <string>

#include "cuda/core/check.h"
#include "cuda/core/geometry.h"

namespace msk::gpu {

// The caller has made the device current in its own copy of the runtime; this one is linked
// statically and may still be at another. It stays: to go back could make a context on a GPU that
// the process never uses.
inline void go_to(int device) {
  check(cudaSetDevice(device), "cudaSetDevice(" + std::to_string(device) + ")");
}

// Blocks of a kernel that the device holds at once; the driver is queried once for each device, and
// asked for shared memory that a kernel does not have without asking.
template <auto kernel>
int resident_blocks(const char* name, int device, int threads, std::size_t shared) {
  constexpr int kDevices = 64;
  static std::atomic<int> known[kDevices];
  if (device < kDevices && known[device] > 0) return known[device];
  if (shared > kMostShared)
    check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, int(shared)),
          std::string("shared memory of ") + name);
  int per_processor = 0, processors = 0;
  check(cudaOccupancyMaxActiveBlocksPerMultiprocessor(&per_processor, kernel, threads, shared),
        std::string("occupancy of ") + name);
  check(cudaDeviceGetAttribute(&processors, cudaDevAttrMultiProcessorCount, device),
        "cudaDeviceGetAttribute");
  const int resident = per_processor * processors;
  if (device < kDevices) known[device] = resident;
  return resident;
}

inline std::string described(const char* name, std::int64_t grid, int threads, std::size_t shared) {
  return std::string("launch of ") + name + " with grid " + std::to_string(grid) + ", " +
         std::to_string(threads) + " threads, " + std::to_string(shared) +
         " bytes of shared memory";
}

// At most `blocks` blocks, all of them resident, so that they can wait for each other.
template <auto kernel, typename Argument>
void launch_cooperative(const char* name, int blocks, int threads, std::size_t shared, int device,
                        void* stream, const Argument& argument) {
  go_to(device);
  const int grid = std::min(blocks, resident_blocks<kernel>(name, device, threads, shared));
  void* arguments[] = {const_cast<Argument*>(&argument)};
  check(cudaLaunchCooperativeKernel(kernel, dim3(grid), dim3(threads), arguments, shared,
                                    static_cast<cudaStream_t>(stream)),
        described(name, grid, threads, shared));
}

// Blocks that come and go in any order; none waits for another.
template <auto kernel, typename Argument>
void launch_blocks(const char* name, std::int64_t blocks, int threads, std::size_t shared,
                   int device, void* stream, const Argument& argument) {
  if (blocks == 0) return;
  go_to(device);
  void* arguments[] = {const_cast<Argument*>(&argument)};
  check(cudaLaunchKernel(kernel, dim3(unsigned(blocks)), dim3(threads), arguments, shared,
                         static_cast<cudaStream_t>(stream)),
        described(name, blocks, threads, shared));
}

}  // namespace msk::gpu
