// What the weights of tiles add up to, where options learn.
#pragma once

#include "cuda/core/geometry.h"
#include "cuda/pairs/weight_sums.cuh"
#include "cuda/tiled/ordered_pairs.cuh"

namespace msk::gpu {

// What the weights of half a row of a tile add up to, as WeightSums.
template <typename T>
struct HalfRowSums {
  T positive, positive_beyond, negative, negative_beyond;

  // Of a pair, if its anchor keeps it.
  MSK_DEVICE void add(const MultiSimilarity<T>& loss, const Term<T>& anchor, T s, bool is_positive,
                      bool is_negative) {
    const bool pushed = is_negative && s > anchor.neg_threshold;
    const bool pulled = is_positive && s < anchor.pos_threshold;
    if (!pushed && !pulled) return;
    const T weight = anchor.weight(loss, s, is_positive, is_negative);
    const T beyond = weight == T(0) ? T(0) : weight * (s - loss.base);
    (pushed ? negative : positive) += weight;
    (pushed ? negative_beyond : positive_beyond) += beyond;
  }
  MSK_DEVICE WeightSums widened() const {
    return {double(positive), double(positive_beyond), double(negative), double(negative_beyond)};
  }
};

// One thread a tile of rows of the panel: adds what its blocks found, in their order. Where options
// learn every tile is listed.
template <class P>
MSK_KERNEL(kThreads<P>, 2)
tile_sums_kernel(const MSK_PARAMETER Problem p) {
  const Tiled& t = p.tiled;
  const std::int64_t local = std::int64_t(blockIdx.x) * kThreads<P> + threadIdx.x;
  if (local >= t.count) return;
  const std::int64_t left = OrderedPairs<P>(p).column_tiles - t.first_listed;
  WeightSums& total = static_cast<WeightSums*>(p.row_sums)[t.first + local];
  WeightSums sum{};
  if (t.first_listed > 0) sum = total;
  for (std::int64_t block = 0; block < divided(left < kSegment ? left : kSegment, kListedPerBlock);
       ++block)
    sum =
        WeightSums::plus(sum, static_cast<const WeightSums*>(t.list_sums)[block * t.panel + local]);
  total = sum;
}

// One block, when each tile of rows has its own.
template <class P>
MSK_KERNEL(kThreads<P>, 2)
weight_sums_kernel(const MSK_PARAMETER Problem p) {
  write_total<P>(p, OrderedPairs<P>(p).row_tiles);
}

}  // namespace msk::gpu
