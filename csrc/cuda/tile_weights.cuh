// Weights of the pairs of listed tiles, as the left operand of the gradient's product.
#pragma once

#include <type_traits>

#include "cuda/negative_scan.cuh"

namespace msk::gpu {

// What brings weights into the range of the operand type: half precision has few exponents. Of
// rows scaled to at most 1, a weight is at most 2 where no incoming gradient is above 1.
template <class P>
MSK_DEVICE typename P::Scalar weight_lift(const Problem& p, Greatest<typename P::Scalar>* room) {
  using Scalar = typename P::Scalar;
  if constexpr (!std::is_same_v<typename P::Operand, Half>) return Scalar(1);
  Greatest<Scalar> most{Scalar(0)};
  const auto consider = [&](const SideRoom& side, std::int64_t count) {
    for (std::int64_t k = threadIdx.x; k < padded(count) / kTile; k += kThreads)
      most = Greatest<Scalar>::greater(most, {static_cast<const Scalar*>(side.largest_dloss)[k]});
  };
  if (p.terms & row_term) consider(p.row_room, p.rows.count);
  if (p.terms & column_term) consider(p.column_room, p.columns.count);
  most = block_reduce(most, room, Greatest<Scalar>::greater);
  if (!(most.value > 0) || !std::isfinite(most.value)) return Scalar(1);
  // Two terms at most, each below 2^(exponent + 1): the sum stays below 2^15.
  const int exponent = 13 - std::ilogb(most.value);
  return std::scalbn(Scalar(1), exponent > 120 ? 120 : exponent);
}

template <class P>
struct TileWeights {
  using Scalar = typename P::Scalar;
  using Operand = typename P::Operand;
  using Tile = SimilarityTile<P>;
  static constexpr std::size_t kSharedBytes =
      Tile::kStageBytes + kTile * sizeof(Scalar) + kThreads / 32 * sizeof(Greatest<Scalar>);
};

// One block takes a tile of rows of the panel and some of its listed tiles. Weights include the
// scale of their column, so that they multiply copies, and the lift.
template <class P>
MSK_KERNEL(kThreads, 2)
tile_weights_kernel(const MSK_PARAMETER Problem p) {
  using Scalar = typename P::Scalar;
  using Operand = typename P::Operand;
  using Tile = SimilarityTile<P>;
  const Tiled& t = p.tiled;
  const OrderedPairs<P> pairs(p);
  Scalar* const room = reinterpret_cast<Scalar*>(shared_memory() + Tile::kStageBytes);
  const std::int64_t local = blockIdx.x % t.count, tile = t.first + local;
  const std::int64_t first = t.slot + blockIdx.x / t.count * kListRun, listed = t.counts[local];
  if (first >= listed) return;
  const Scalar lift = weight_lift<P>(p, reinterpret_cast<Greatest<Scalar>*>(room + kTile));
  const std::int64_t i = tile * kTile + line();
  const bool by_row = p.terms & row_term, by_column = p.terms & column_term;
  Term<Scalar> row{};
  if (by_row && i < pairs.rows.count) row = pairs.rows.term(i);
  for (std::int64_t slot = first; slot < first + kListRun && slot < listed; ++slot) {
    const std::int64_t column = t.tiles[local * t.width + slot];
    Tile(pairs, tile, column).share();
    const bool apart = !pairs.overlap(tile, column) && !pairs.rows.ids;
    Scalar dot = Scalar(0);
    for (int k = 0; k < kHalf; ++k) {
      const std::int64_t j = column * kTile + half() * kHalf + k;
      Scalar* const at = Tile::shared(line(), half() * kHalf + k);
      Scalar weight = Scalar(0);
      if (pairs.present(i, j)) {
        const Scalar s = load_shared(at), scale = pairs.columns.scale[j];
        const bool negative = apart || pairs.negative(i, j);
        const bool positive = !apart && pairs.positive(i, j, s);
        if (by_row) weight += row.weight(pairs.loss, s, positive, negative);
        if (by_column) weight += pairs.columns.term(j).weight(pairs.loss, s, positive, negative);
        // Of the rounded weights: then the projection takes out exactly what they put in.
        weight = Scalar(widen(narrow<Operand>(weight * scale * lift)));
        dot += weight * (s / scale);
      }
      store_shared(at, weight);
    }
    if (half() == 1) store_shared(room + line(), dot);
    __syncthreads();
    if (half() == 0)
      static_cast<Scalar*>(t.dots)[((slot - t.slot) * t.panel + local) * kTile + line()] =
          dot + load_shared(room + line());
    // Neighbouring threads write neighbouring weights.
    Operand* const out =
        static_cast<Operand*>(t.weights) + (local * kTile * kSegment + slot - t.slot) * kTile;
    for (int k = threadIdx.x; k < kTile * kTile; k += kThreads)
      out[k / kTile * kSegment * kTile + k % kTile] =
          narrow<Operand>(load_shared(Tile::shared(k / kTile, k % kTile)));
  }
}

}  // namespace msk::gpu
