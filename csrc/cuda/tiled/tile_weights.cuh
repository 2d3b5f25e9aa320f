// Weights of the pairs of listed tiles, as the left operand of the gradient's product.
#pragma once

#include "cuda/core/half_range.cuh"
#include "cuda/tiled/negative_scan.cuh"

namespace msk::gpu {

template <class P>
struct TileWeights {
  using Scalar = typename P::Scalar;
  using Tile = SimilarityTile<P>;
  static constexpr bool kScaled = kFewExponents<typename P::Operand>;
  // Weights replace the similarities; before they are scaled they lie beside them.
  static constexpr int kUnscaled = kScaled ? kTile<P> * Tile::kStride : 0;
  static constexpr std::size_t kSharedBytes =
      Tile::kStageBytes + (kTile<P> + (kScaled ? kThreads<P> : 0)) * sizeof(Scalar);
};

// One block takes a tile of rows of the panel and some of its listed tiles. Weights include the
// scale of their column, so that they multiply copies, and that of the weights of their row of the
// tile.
template <class P>
MSK_KERNEL(kThreads<P>, 2)
tile_weights_kernel(const MSK_PARAMETER Problem p) {
  using Scalar = typename P::Scalar;
  using Operand = typename P::Operand;
  using Tile = SimilarityTile<P>;
  using Weights = TileWeights<P>;
  const Tiled& t = p.tiled;
  const OrderedPairs<P> pairs(p);
  Scalar* const smem = reinterpret_cast<Scalar*>(shared_memory() + Tile::kStageBytes);
  const std::int64_t local = blockIdx.x % t.count, tile = t.first + local;
  const std::int64_t first = t.first_listed + blockIdx.x / t.count * kListedPerBlock;
  const std::int64_t listed = t.counts[local];
  if (first >= listed) return;
  const std::int64_t i = tile * kTile<P> + tile_index<P>();
  const bool by_row = p.terms & row_term, by_column = p.terms & column_term;
  Term<Scalar> row{};
  if (by_row && i < pairs.rows.count) row = pairs.rows.term(i);
  for (std::int64_t entry = first; entry < first + kListedPerBlock && entry < listed; ++entry) {
    const std::int64_t column = t.tiles[local * t.width + entry];
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
    const int begin = tile_half<P>() * kHalfTile<P>;
    Scalar weight_scale = Scalar(1);
    if constexpr (Weights::kScaled) {
      Scalar most = Scalar(0);
      for (int k = begin; k < begin + kHalfTile<P>; ++k) {
        const std::int64_t j = column * kTile<P> + k;
        Scalar* const at = Tile::shared(tile_index<P>(), k);
        const Scalar weight = pairs.present(i, j) ? weight_of(j, load_shared(at)) : Scalar(0);
        store_shared(at + Weights::kUnscaled, weight);
        most = std::fmax(most, std::fabs(weight));
      }
      store_shared(smem + kTile<P> + threadIdx.x, most);
      __syncthreads();
      weight_scale =
          weight_scale_of(std::fmax(most, load_shared(smem + kTile<P> + (threadIdx.x ^ kTile<P>))));
    }
    Scalar dot = Scalar(0);
    for (int k = begin; k < begin + kHalfTile<P>; ++k) {
      const std::int64_t j = column * kTile<P> + k;
      Scalar* const at = Tile::shared(tile_index<P>(), k);
      Scalar weight = Scalar(0);
      if (pairs.present(i, j)) {
        const Scalar s = load_shared(at);
        if constexpr (Weights::kScaled)
          weight = load_shared(at + Weights::kUnscaled) * weight_scale;
        else
          weight = weight_of(j, s);
        // Of the rounded weights: then the projection takes out exactly what they put in.
        weight = P::as_read(narrow<Operand>(weight));
        dot += weight * (s / pairs.columns.scale[j]);
      }
      store_shared(at, weight);
    }
    if (tile_half<P>() == 1) store_shared(smem + tile_index<P>(), dot);
    __syncthreads();
    if (tile_half<P>() == 0) {
      const std::int64_t at =
          ((entry - t.first_listed) * t.panel + local) * kTile<P> + tile_index<P>();
      const Scalar inverse_weight_scale = Scalar(1) / weight_scale;
      static_cast<Scalar*>(t.dots)[at] =
          (dot + load_shared(smem + tile_index<P>())) * inverse_weight_scale;
      if (Weights::kScaled)
        static_cast<Scalar*>(t.inverse_weight_scales)[at] = inverse_weight_scale;
    }
    // Neighbouring threads write neighbouring weights.
    Operand* const out = static_cast<Operand*>(t.weights) +
                         (local * kTile<P> * kSegment + entry - t.first_listed) * kTile<P>;
    for (int k = threadIdx.x; k < kTile<P> * kTile<P>; k += kThreads<P>)
      out[k / kTile<P> * kSegment * kTile<P> + k % kTile<P>] =
          narrow<Operand>(load_shared(Tile::shared(k / kTile<P>, k % kTile<P>)));
  }
}

}  // namespace msk::gpu
