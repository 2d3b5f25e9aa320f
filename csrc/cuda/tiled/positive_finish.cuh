// Sums over the kept positives, and what follows for rows and tiles of them.
#pragma once

#include "cuda/pairs/row_finish.cuh"
#include "cuda/tiled/negative_scan.cuh"
#include "cuda/tiled/positive_scan.cuh"

namespace msk::gpu {

template <typename T>
struct PositiveSum {
  T sum = T(0);
  std::int32_t kept = 0;
};

// What the gradient's list of tiles needs to know of a tile of rows.
template <class P>
MSK_DEVICE void tile_bounds(const SideBuffers& buffers, std::int64_t tile,
                            typename P::Scalar neg_offset, bool present,
                            Least<typename P::Scalar>* least_smem,
                            Greatest<typename P::Scalar>* greatest_smem) {
  using Scalar = typename P::Scalar;
  Least<Scalar> least{present ? neg_offset : kInfinity<Scalar>};
  Greatest<Scalar> greatest{present ? neg_offset : -kInfinity<Scalar>};
  least = block_reduce<kWarps<P>>(least, least_smem, Least<Scalar>::lesser);
  greatest = block_reduce<kWarps<P>>(greatest, greatest_smem, Greatest<Scalar>::greater);
  if (threadIdx.x != 0) return;
  static_cast<Scalar*>(buffers.least_offset)[tile] = least.value;
  static_cast<Scalar*>(buffers.greatest_offset)[tile] = greatest.value;
}

// The kept positives of a part of the columns.
template <class P>
MSK_KERNEL(kThreads<P>, kResident<P>)
positive_sums_kernel(const MSK_PARAMETER Problem p) {
  using Scalar = typename P::Scalar;
  using Tile = SimilarityTile<P>;
  const OrderedPairs<P> pairs(p);
  const MultiSimilarity<Scalar>& loss = pairs.loss;
  auto* const smem = reinterpret_cast<PositiveSum<Scalar>*>(shared_memory() + Tile::kStageBytes);
  const PositivePart part(pairs, p.tiled);
  const Scalar hardest = static_cast<const Scalar*>(p.row_buffers.hardest_positive)[part.i];
  const Scalar threshold =
      loss.positive_threshold(static_cast<const Scalar*>(p.row_buffers.hardest_negative)[part.i]);
  PositiveSum<Scalar> found;
  for (std::int64_t other = part.columns.first; other < part.columns.last; ++other) {
    if (!pairs.overlap(part.tile, other)) continue;
    Tile(pairs, part.tile, other).share();
    const Scalar alpha = learned_loss_of<Scalar>(p).alpha;  // not kept while products are taken
    const std::int64_t first = other * kTile<P> + tile_half<P>() * kHalfTile<P>;
    for (int k = 0; k < kHalfTile<P> && pairs.present(part.i, first + k); ++k) {
      const Scalar s =
          load_shared(Tile::shared(tile_index<P>(), tile_half<P>() * kHalfTile<P> + k));
      if (!(s < threshold) || !pairs.positive(part.i, first + k, s)) continue;
      found.sum += std::exp(alpha * (hardest - s));
      ++found.kept;
    }
  }
  if (tile_half<P>() == 1) store_shared(smem + tile_index<P>(), found);
  __syncthreads();
  if (tile_half<P>() == 1) return;
  const PositiveSum<Scalar> rest = load_shared(smem + tile_index<P>());
  static_cast<Scalar*>(p.tiled.positives)[part.at] = found.sum + rest.sum;
  p.tiled.pos_kept[part.at] = found.kept + rest.kept;
}

// One block a tile of rows.
template <class P>
MSK_KERNEL(kThreads<P>, 2)
positive_finish_kernel(const MSK_PARAMETER Problem p) {
  using Scalar = typename P::Scalar;
  const OrderedPairs<P> pairs(p);
  auto* const least_smem = reinterpret_cast<Least<Scalar>*>(shared_memory());
  auto* const greatest_smem = reinterpret_cast<Greatest<Scalar>*>(least_smem + kWarps<P>);
  const std::int64_t tile = blockIdx.x, i = tile * kTile<P> + tile_index<P>();
  const SideBuffers& side = p.row_buffers;
  const bool owner = tile_half<P>() == 0 && i < pairs.rows.count;
  Scalar neg_lse = -kInfinity<Scalar>;
  if (owner) {
    PositiveSum<Scalar> found;
    for (std::int64_t part = 0; part < p.tiled.parts; ++part) {
      const std::int64_t at = part * pairs.row_tiles * kTile<P> + i;
      found.sum += static_cast<const Scalar*>(p.tiled.positives)[at];
      found.kept += p.tiled.pos_kept[at];
    }
    const NegativeSum<Scalar> negative =
        Partials<Scalar>(side.hardest_negative, side.negative_sum, side.neg_kept).read(i);
    const bool finite = !std::isnan(negative.sum);
    neg_lse = finish_row<P>(p, pairs, learned_loss_of<Scalar>(p), i,
                            {static_cast<const Scalar*>(side.hardest_positive)[i], negative.hardest,
                             found.sum, negative.sum, found.kept, negative.kept, finite});
    if (p.job != Job::statistics && std::isnan(pairs.rows.dloss[i])) raise_flag(side.poisoned);
  }
  if (p.job == Job::statistics) return;
  tile_bounds<P>(side, tile, softplus(neg_lse), owner, least_smem, greatest_smem);
}

}  // namespace msk::gpu
