// Where all blocks of a cooperative launch meet. Its twin is in tests/host_gpu.
#pragma once

// Its grid.sync() needs none of libcu++, which takes longer to compile than the kernels: it is half
// of their build. The instructions are the same.
#define _CG_LIMIT_INCLUDED_DEPENDENCIES
#include <cooperative_groups.h>

namespace msk::gpu {

// All blocks of the launch, with their writes to global memory, are here before any goes on.
inline __device__ __noinline__ void grid_barrier() { cooperative_groups::this_grid().sync(); }

}  // namespace msk::gpu
