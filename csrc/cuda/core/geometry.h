// Sizes that the plan and the kernels share.
#pragma once

#include <cstddef>
#include <cstdint>

#include "math/host_device.h"

namespace msk::gpu {

constexpr int kTile = 64;      // rows and columns of a block's tile
constexpr int kThreads = 128;  // four warps, each of 32 x 32 of the tile
constexpr int kWarpTile = 32;
constexpr int kStepBytes = 128;  // of depth in one stage of the pipeline

constexpr int kListRun = 4;  // listed tiles whose weights one block takes
// Listed tiles whose weights are held at a time. A constant, so that sums do not depend on the
// memory; few, so that a panel has rows enough to fill a GPU.
constexpr int kSegment = 32;
static_assert(kSegment % kListRun == 0, "a block's tiles lie in one segment");

constexpr int kRankSlots = 64;  // positives of an anchor that one launch compares

constexpr int kListStep = kThreads;  // tiles of columns that may enter a list at a time

// Of one block; more must be asked for, kernel by kernel.
constexpr std::size_t kMostShared = 48 << 10;

MSK_HOST_DEVICE inline std::int64_t divided(std::int64_t a, std::int64_t b) {
  return (a + b - 1) / b;
}
// A whole number of tiles.
MSK_HOST_DEVICE inline std::int64_t padded(std::int64_t count) {
  return divided(count, kTile) * kTile;
}

}  // namespace msk::gpu
