// The hardest positive of each row, from the tiles whose labels overlap with it.
#pragma once

#include "cuda/block_reduce.cuh"
#include "cuda/prepare.cuh"
#include "cuda/similarity_tile.cuh"

namespace msk::gpu {

template <typename T>
struct HardestPositive {
  T hardest;
  bool finite;
};

template <typename T>
struct Least {
  T value;
  MSK_DEVICE Least exchanged(int mask) const { return {exchange(value, mask)}; }
  MSK_DEVICE static Least lesser(const Least& a, const Least& b) {
    return {a.value < b.value ? a.value : b.value};
  }
};

// One block a tile of rows. It also opens the sums of the negative scan: NaN where a similarity is
// not finite, for that scan never looks at tiles of one class.
template <class P>
MSK_KERNEL(kThreads, 2)
positive_scan_kernel(const MSK_PARAMETER Problem p) {
  using Scalar = typename P::Scalar;
  using Tile = SimilarityTile<P>;
  const OrderedPairs<P> pairs(p);
  auto* const room =
      reinterpret_cast<HardestPositive<Scalar>*>(shared_memory() + Tile::kStageBytes);
  auto* const reduce_room = reinterpret_cast<Least<Scalar>*>(room + kTile);
  const std::int64_t tile = blockIdx.x, i = tile * kTile + line();
  const Range columns = pairs.overlapping(tile);
  HardestPositive<Scalar> found{kInfinity<Scalar>, true};
  for (std::int64_t other = columns.first; other < columns.last; ++other) {
    if (!pairs.overlap(tile, other)) continue;
    Tile(pairs, tile, other).share();
    const std::int64_t first = other * kTile + half() * kHalf;
    for (int k = 0; k < kHalf && pairs.present(i, first + k); ++k) {
      const Scalar s = load_shared(Tile::shared(line(), half() * kHalf + k));
      found.finite = found.finite && std::isfinite(s);
      if (pairs.positive(i, first + k, s)) found.hardest = s < found.hardest ? s : found.hardest;
    }
  }
  if (half() == 1) store_shared(room + line(), found);
  __syncthreads();
  Least<Scalar> threshold{kInfinity<Scalar>};
  if (half() == 0) {
    const HardestPositive<Scalar> rest = load_shared(room + line());
    found.hardest = rest.hardest < found.hardest ? rest.hardest : found.hardest;
    static_cast<Scalar*>(p.row_room.hardest_positive)[i] = found.hardest;
    static_cast<Scalar*>(p.row_room.hardest_negative)[i] = -kInfinity<Scalar>;
    static_cast<Scalar*>(p.row_room.negative_sum)[i] =
        found.finite && rest.finite ? Scalar(0) : kNaN<Scalar>;
    p.row_room.neg_kept[i] = 0;
    if (i < pairs.rows.count) threshold.value = pairs.loss.negative_threshold(found.hardest);
  }
  threshold = block_reduce(threshold, reduce_room, Least<Scalar>::lesser);
  if (threadIdx.x == 0) static_cast<Scalar*>(p.row_room.least_threshold)[tile] = threshold.value;
}

}  // namespace msk::gpu
