// How a problem is laid out in its workspace.
#pragma once

#include <utility>

#include "cuda/pairs/problem.h"

namespace msk::gpu {

// Enough blocks for any GPU of today; a constant, so that bits do not depend on the GPU's size.
constexpr std::int64_t kWantedBlocks = 264;

// Fills the plan of a problem, as if the workspace began at address 0; returns the bytes it needs.
std::int64_t plan(Problem& problem, std::int64_t budget);
// The same in the workspace that the caller took.
void place(Problem& problem, std::byte* workspace, std::int64_t budget);

// Of the tiled and of the small path, after what all have in common; plan.cpp has that of any batch
// in one launch. The pairs of a small batch are held whole,
// in 18 MiB at most.
std::int64_t layout_tiled(Problem& problem, std::byte* workspace, std::int64_t budget);
std::int64_t layout_small(Problem& problem, std::byte* workspace);

// Starts the work of a placed problem on a stream of a device.
void launch(const Problem& problem, int device, void* stream);

// The latest CUDA that the driver serves (0: there is no driver) and that of the runtime in this
// module, as 13000 for 13.0.
std::pair<int, int> versions();

}  // namespace msk::gpu
