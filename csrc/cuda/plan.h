// How a problem is laid out in its workspace.
#pragma once

#include "cuda/problem.h"

namespace msk::gpu {

// Enough blocks for any GPU of today; a constant, so that bits do not depend on the GPU's size.
constexpr std::int64_t kWantedBlocks = 264;

// Fills the plan of a problem; returns the bytes of workspace it needs. The workspace is a multiple
// of 256 bytes from address 0 on until place() moves it.
std::int64_t plan(Problem& problem, std::int64_t budget);
void place(Problem& problem, std::byte* workspace, std::int64_t budget);

// The same for each path, after what they have in common.
std::int64_t layout_tiled(Problem& problem, std::byte* workspace, std::int64_t budget);

// Starts the work of a placed problem on a stream of a device.
void launch(const Problem& problem, int device, void* stream);

}  // namespace msk::gpu
