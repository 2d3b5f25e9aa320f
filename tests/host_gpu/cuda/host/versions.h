// Stands in for csrc/cuda/host/versions.h: the CPU has neither driver nor runtime.
#pragma once

#include <utility>

namespace msk::gpu {

inline std::pair<int, int> ask_versions() { return {0, 0}; }

}  // namespace msk::gpu
