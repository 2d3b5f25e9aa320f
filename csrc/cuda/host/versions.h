// Asks CUDA for its versions. Its twin in tests/host_gpu has no CUDA to ask.
#pragma once

#include <cuda_runtime.h>

#include <utility>

#include "cuda/core/check.h"

namespace msk::gpu {

// Starts nothing on a GPU, and needs none.
inline std::pair<int, int> ask_versions() {
  int driver = 0, runtime = 0;
  check(cudaDriverGetVersion(&driver), "cudaDriverGetVersion");
  check(cudaRuntimeGetVersion(&runtime), "cudaRuntimeGetVersion");
  return {driver, runtime};
}

}  // namespace msk::gpu
