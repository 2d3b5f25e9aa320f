// The tiles that blocks compute, and other sizes that the plan and the kernels share.
#pragma once

#include <cstddef>
#include <cstdint>

#include "rules/host_device.h"

namespace msk::gpu {

// Shared memory of one block; more must be requested, kernel by kernel.
constexpr std::size_t kMostShared = 48 << 10;

// A block computes M x N elements of a product, in stages of K bytes of depth. Each of its warps
// takes 32 rows and a share of the columns. Products add what depends on the type of an operand.
template <int M, int N, int K, int Warps>
struct TileShape {
  static constexpr int kRows = M, kColumns = N, kStageBytes = K;
  static constexpr int kWarps = Warps, kThreads = 32 * Warps;
  static constexpr int kWarpRows = 32, kWarpsDown = M / kWarpRows;
  static_assert(M > 0 && M % kWarpRows == 0, "a warp takes 32 rows");
  static_assert(kWarps > 0 && kThreads <= 1024, "a block has up to 1024 threads");
  static_assert(Warps % kWarpsDown == 0, "as many warps for each 32 rows");
  static constexpr int kWarpsAcross = Warps / kWarpsDown, kWarpColumns = N / kWarpsAcross;
  static_assert(N > 0 && N % (16 * kWarpsAcross) == 0, "ldmatrix takes 16 columns of a warp");
  static_assert(N % 32 == 0, "rows of the right operand begin in different banks");
  static_assert(K > 0 && K % 64 == 0, "rows of a stage begin in different banks");
  static constexpr bool kSquare = M == N;
  // Either side of the pairs may be rows or columns of a product: both are padded alike.
  static constexpr int kPadding = M > N ? M : N;
  static_assert(kPadding % M == 0 && kPadding % N == 0, "whole tiles both ways");
};

enum class Path { batch, small, tiled };

// The tiles that are in use: another one is another row here.
struct Tile {
  Path path;
  int operand_bytes;
  int rows, columns, stage_bytes, warps;
};
constexpr Tile kTiles[] = {
    {Path::batch, 2, 64, 64, 128, 4},  // float16 and bfloat16
    {Path::batch, 4, 64, 64, 128, 4},  // float32
    {Path::batch, 8, 64, 64, 128, 4},  // float64
    {Path::small, 2, 64, 64, 128, 8},  // float16 and bfloat16
    {Path::small, 4, 64, 64, 128, 8},  // float32
    {Path::small, 8, 64, 64, 128, 8},  // float64
    {Path::tiled, 2, 64, 64, 128, 4},  // float16 and bfloat16
    {Path::tiled, 4, 64, 64, 128, 4},  // float32
    {Path::tiled, 8, 64, 64, 128, 4},  // float64
};

constexpr Tile tile_of(Path path, int operand_bytes) {
  for (const Tile& tile : kTiles)
    if (tile.path == path && tile.operand_bytes == operand_bytes) return tile;
  return {};  // of which no TileShape compiles
}

template <Path path, typename Operand>
using ShapeOf =
    TileShape<tile_of(path, sizeof(Operand)).rows, tile_of(path, sizeof(Operand)).columns,
              tile_of(path, sizeof(Operand)).stage_bytes, tile_of(path, sizeof(Operand)).warps>;

// The tiled path lists the tiles whose weights count; one block takes the weights of so many.
constexpr int kListedPerBlock = 4;
// Listed tiles whose weights are held at a time. A constant, so that sums do not depend on the
// memory; few, so that a panel has rows enough to fill a GPU.
constexpr int kSegment = 32;
static_assert(kListedPerBlock > 0 && kSegment > 0 && kSegment % kListedPerBlock == 0,
              "the tiles of a block lie in one segment");

// The small path has a row of similarities in the registers of one warp: 32 of a lane.
MSK_HOST_DEVICE constexpr int small_rows(int scalar_bytes) { return 32 * 128 / scalar_bytes; }

constexpr int kRanksPerRound = 64;  // positives of an anchor that one launch compares
static_assert(kRanksPerRound > 0, "a round has positives");

MSK_HOST_DEVICE inline std::int64_t divided(std::int64_t a, std::int64_t b) {
  return (a + b - 1) / b;
}
MSK_HOST_DEVICE inline std::int64_t padded_to(std::int64_t multiple, std::int64_t count) {
  return divided(count, multiple) * multiple;
}

}  // namespace msk::gpu
