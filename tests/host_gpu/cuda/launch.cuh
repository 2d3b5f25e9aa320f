// Stands in for csrc/cuda/launch.cuh: a launch runs on the CPU, in the calling thread.
#pragma once

#include <algorithm>
#include <cstdint>
#include <string>

#include "machine.h"

namespace msk::gpu {

inline void grid_barrier(const char* file = __builtin_FILE(), int line = __builtin_LINE()) {
  host_gpu::wait_for_grid(file, line);
}

template <auto kernel, typename Argument>
void launch_cooperative(const char* name, int blocks, int threads, std::size_t shared, int, void*,
                        const Argument& argument) {
  const int grid = std::min(blocks, host_gpu::kResidentBlocks);
  host_gpu::launch(std::string(name) + " with grid " + std::to_string(grid) + ", " +
                       std::to_string(shared) + " bytes of shared memory",
                   host_gpu::Grid::cooperative, grid, threads, shared, [&] { kernel(argument); });
}

template <auto kernel, typename Argument>
void launch_blocks(const char* name, std::int64_t blocks, int threads, std::size_t shared, int,
                   void*, const Argument& argument) {
  if (blocks == 0) return;
  host_gpu::launch(std::string(name) + " with grid " + std::to_string(blocks) + ", " +
                       std::to_string(shared) + " bytes of shared memory",
                   host_gpu::Grid::ordinary, blocks, threads, shared, [&] { kernel(argument); });
}

}  // namespace msk::gpu
