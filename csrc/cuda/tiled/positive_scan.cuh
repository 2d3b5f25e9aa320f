// The hardest positive of each row, from the tiles whose labels overlap with it.
#pragma once

#include "cuda/core/block_reduce.cuh"
#include "cuda/pairs/prepare.cuh"
#include "cuda/tiled/similarity_tile.cuh"

namespace msk::gpu {

template <typename T>
struct HardestPositive {
  T hardest;
  bool finite;
};

// A tile of rows, and which part of the tiles of columns that overlap with it: a block each, so
// that few rows or large classes keep a GPU busy too.
struct PositivePart {
  std::int64_t tile, i, at;  // the thread's row, and its place among the partial results
  Range columns;

  template <class P>
  MSK_DEVICE PositivePart(const OrderedPairs<P>& pairs, const Tiled& t)
      : tile(blockIdx.x % pairs.row_tiles), i(tile * kTile<P> + tile_index<P>()) {
    const std::int64_t part = blockIdx.x / pairs.row_tiles;
    at = part * pairs.row_tiles * kTile<P> + i;
    columns = pairs.overlapping(tile).part(part, t.parts);
  }
};

// NaN where a similarity is not finite: the negative scan never looks at tiles of one class.
template <class P>
MSK_KERNEL(kThreads<P>, kResident<P>)
positive_scan_kernel(const MSK_PARAMETER Problem p) {
  using Scalar = typename P::Scalar;
  using Tile = SimilarityTile<P>;
  const OrderedPairs<P> pairs(p);
  auto* const smem =
      reinterpret_cast<HardestPositive<Scalar>*>(shared_memory() + Tile::kStageBytes);
  const PositivePart part(pairs, p.tiled);
  HardestPositive<Scalar> found{kInfinity<Scalar>, true};
  for (std::int64_t other = part.columns.first; other < part.columns.last; ++other) {
    if (!pairs.overlap(part.tile, other)) continue;
    Tile(pairs, part.tile, other).share();
    const std::int64_t first = other * kTile<P> + tile_half<P>() * kHalfTile<P>;
    for (int k = 0; k < kHalfTile<P> && pairs.present(part.i, first + k); ++k) {
      const Scalar s =
          load_shared(Tile::shared(tile_index<P>(), tile_half<P>() * kHalfTile<P> + k));
      found.finite = found.finite && std::isfinite(s);
      if (pairs.positive(part.i, first + k, s))
        found.hardest = s < found.hardest ? s : found.hardest;
    }
  }
  if (tile_half<P>() == 1) store_shared(smem + tile_index<P>(), found);
  __syncthreads();
  if (tile_half<P>() == 1) return;
  const HardestPositive<Scalar> rest = load_shared(smem + tile_index<P>());
  const Scalar hardest = rest.hardest < found.hardest ? rest.hardest : found.hardest;
  static_cast<Scalar*>(p.tiled.positives)[part.at] =
      found.finite && rest.finite ? hardest : kNaN<Scalar>;
}

// One block a tile of rows: the hardest of all parts, and sums of negatives to add to.
template <class P>
MSK_KERNEL(kThreads<P>, 2)
open_sums_kernel(const MSK_PARAMETER Problem p) {
  using Scalar = typename P::Scalar;
  const OrderedPairs<P> pairs(p);
  const Tiled& t = p.tiled;
  auto* const smem = reinterpret_cast<Least<Scalar>*>(shared_memory());
  const std::int64_t tile = blockIdx.x, i = tile * kTile<P> + tile_index<P>();
  Least<Scalar> threshold{kInfinity<Scalar>};
  if (tile_half<P>() == 0) {
    Scalar hardest = kInfinity<Scalar>, sum = Scalar(0);
    for (std::int64_t part = 0; part < t.parts; ++part) {
      const Scalar s =
          static_cast<const Scalar*>(t.positives)[part * pairs.row_tiles * kTile<P> + i];
      if (std::isnan(s)) sum = s;
      hardest = s < hardest ? s : hardest;
    }
    static_cast<Scalar*>(p.row_buffers.hardest_positive)[i] = hardest;
    static_cast<Scalar*>(p.row_buffers.hardest_negative)[i] = -kInfinity<Scalar>;
    static_cast<Scalar*>(p.row_buffers.negative_sum)[i] = sum;
    p.row_buffers.neg_kept[i] = 0;
    if (i < pairs.rows.count) threshold.value = pairs.loss.negative_threshold(hardest);
  }
  threshold = block_reduce<kWarps<P>>(threshold, smem, Least<Scalar>::lesser);
  if (threadIdx.x == 0)
    static_cast<Scalar*>(p.row_buffers.least_neg_threshold)[tile] = threshold.value;
}

}  // namespace msk::gpu
