// Weights of the pairs of listed tiles, as the left operand of the gradient's product.
#pragma once

#include "cuda/core/half_range.cuh"
#include "cuda/tiled/negative_scan.cuh"

namespace msk::gpu {

template <class P>
struct TileWeights {
  using Scalar = typename P::Scalar;
  using Tile = SimilarityTile<P>;
  static constexpr bool kLifted = kFewExponents<typename P::Operand>;
  // Weights replace the similarities; before they are lifted they lie beside them.
  static constexpr int kUnlifted = kLifted ? kTile * Tile::kStride : 0;
  static_assert(!kLifted || 2 * Tile::kTileBytes <= Tile::kStageBytes);
  static constexpr std::size_t kSharedBytes =
      Tile::kStageBytes + (kTile + (kLifted ? kThreads : 0)) * sizeof(Scalar);
};

// One block takes a tile of rows of the panel and some of its listed tiles. Weights include the
// scale of their column, so that they multiply copies, and the lift of their row of the tile.
template <class P>
MSK_KERNEL(kThreads, 2)
tile_weights_kernel(const MSK_PARAMETER Problem p) {
  using Scalar = typename P::Scalar;
  using Operand = typename P::Operand;
  using Tile = SimilarityTile<P>;
  using Weights = TileWeights<P>;
  const Tiled& t = p.tiled;
  const OrderedPairs<P> pairs(p);
  Scalar* const room = reinterpret_cast<Scalar*>(shared_memory() + Tile::kStageBytes);
  const std::int64_t local = blockIdx.x % t.count, tile = t.first + local;
  const std::int64_t first = t.slot + blockIdx.x / t.count * kListRun, listed = t.counts[local];
  if (first >= listed) return;
  const std::int64_t i = tile * kTile + line();
  const bool by_row = p.terms & row_term, by_column = p.terms & column_term;
  Term<Scalar> row{};
  if (by_row && i < pairs.rows.count) row = pairs.rows.term(i);
  for (std::int64_t slot = first; slot < first + kListRun && slot < listed; ++slot) {
    const std::int64_t column = t.tiles[local * t.width + slot];
    Tile(pairs, tile, column).share();
    const bool apart = !pairs.overlap(tile, column) && !pairs.rows.ids;
    // Of a pair that is present.
    const auto weight_of = [&](std::int64_t j, Scalar s) {
      const bool negative = apart || pairs.negative(i, j);
      const bool positive = !apart && pairs.positive(i, j, s);
      Scalar weight = Scalar(0);
      if (by_row) weight += row.weight(pairs.loss, s, positive, negative);
      if (by_column) weight += pairs.columns.term(j).weight(pairs.loss, s, positive, negative);
      return weight * pairs.columns.scale[j];
    };
    const int begin = half() * kHalf;
    Scalar lift = Scalar(1);
    if constexpr (Weights::kLifted) {
      Scalar most = Scalar(0);
      for (int k = begin; k < begin + kHalf; ++k) {
        const std::int64_t j = column * kTile + k;
        Scalar* const at = Tile::shared(line(), k);
        const Scalar weight = pairs.present(i, j) ? weight_of(j, load_shared(at)) : Scalar(0);
        store_shared(at + Weights::kUnlifted, weight);
        most = std::fmax(most, std::fabs(weight));
      }
      store_shared(room + kTile + threadIdx.x, most);
      __syncthreads();
      lift = lift_of(std::fmax(most, load_shared(room + kTile + (threadIdx.x ^ kTile))));
    }
    Scalar dot = Scalar(0);
    for (int k = begin; k < begin + kHalf; ++k) {
      const std::int64_t j = column * kTile + k;
      Scalar* const at = Tile::shared(line(), k);
      Scalar weight = Scalar(0);
      if (pairs.present(i, j)) {
        const Scalar s = load_shared(at);
        if constexpr (Weights::kLifted)
          weight = load_shared(at + Weights::kUnlifted) * lift;
        else
          weight = weight_of(j, s);
        // Of the rounded weights: then the projection takes out exactly what they put in.
        weight = P::as_read(narrow<Operand>(weight));
        dot += weight * (s / pairs.columns.scale[j]);
      }
      store_shared(at, weight);
    }
    if (half() == 1) store_shared(room + line(), dot);
    __syncthreads();
    if (half() == 0) {
      const std::int64_t at = ((slot - t.slot) * t.panel + local) * kTile + line();
      const Scalar unlift = Scalar(1) / lift;
      static_cast<Scalar*>(t.dots)[at] = (dot + load_shared(room + line())) * unlift;
      if (Weights::kLifted) static_cast<Scalar*>(t.unlifts)[at] = unlift;
    }
    // Neighbouring threads write neighbouring weights.
    Operand* const out =
        static_cast<Operand*>(t.weights) + (local * kTile * kSegment + slot - t.slot) * kTile;
    for (int k = threadIdx.x; k < kTile * kTile; k += kThreads)
      out[k / kTile * kSegment * kTile + k % kTile] =
          narrow<Operand>(load_shared(Tile::shared(k / kTile, k % kTile)));
  }
}

}  // namespace msk::gpu
