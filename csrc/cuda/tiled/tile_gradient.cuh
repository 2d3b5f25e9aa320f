// Weights of listed tiles times embeddings, and the gradient through the normalisation.
#pragma once

#include "cuda/tiled/tile_weights.cuh"

namespace msk::gpu {

template <class P>
constexpr std::size_t kGradientSharedBytes =
    TileProduct<P, Right::columns>::kSharedBytes + kTile<P> * 2 * sizeof(typename P::Scalar);

// One block owns a tile of the gradient and goes through a segment of its list. What earlier
// segments gave lies in the output; the last one takes it through the normalisation. Each tile is
// brought to the true size of its weights as it is added.
template <class P>
MSK_KERNEL(kThreads<P>, kResident<P>)
tile_gradient_kernel(const MSK_PARAMETER Problem p) {
  using Scalar = typename P::Scalar;
  using Operand = typename P::Operand;
  using Product = TileProduct<P, Right::columns>;
  constexpr int kSteps = kTile<P> / Product::kStep;  // of the depth of the product in a tile
  static_assert(kTile<P> % Product::kStep == 0, "whole stages in a tile");
  const Tiled& t = p.tiled;
  const Pairs<P> pairs(p);
  const Side<P>&rows = pairs.rows, &columns = pairs.columns;
  Scalar* const smem = reinterpret_cast<Scalar*>(shared_memory() + Product::kSharedBytes);
  const std::int64_t across = rows.stride / kTile<P>;
  const std::int64_t local = blockIdx.x / across, first = (t.first + local) * kTile<P>;
  const std::int64_t depth_first = blockIdx.x % across * kTile<P>;
  const std::int64_t left = t.counts[local] - t.first_listed;
  if (t.first_listed > 0 && left <= 0) return;
  const std::int64_t listed = left < kSegment ? left : kSegment;
  const bool first_segment = t.first_listed == 0, last_segment = left <= kSegment;

  const auto so_far = [&](std::int64_t segment) {
    return static_cast<Scalar*>(t.dots_so_far) + (segment % 2 * t.panel + local) * kTile<P> +
           tile_index<P>();
  };
  Scalar dot =
      tile_half<P>() == 0 && !first_segment ? *so_far(t.first_listed / kSegment) : Scalar(0);
  for (std::int64_t entry = tile_half<P>(); entry < listed; entry += kThreads<P> / kTile<P>)
    dot +=
        static_cast<const Scalar*>(t.dots)[(entry * t.panel + local) * kTile<P> + tile_index<P>()];
  store_shared(smem + threadIdx.x, dot);

  const std::int32_t* const tiles = t.tiles + local * t.width + t.first_listed;
  const auto right = [&](std::int64_t k) {
    const std::int64_t row =
        tiles[k / kSteps] * std::int64_t(kTile<P>) + k % kSteps * Product::kStep;
    return columns.copy + row * columns.stride + depth_first;
  };
  const auto multiply = [&](auto row_factor) {
    return Product::multiply(
        static_cast<const Operand*>(t.weights) + local * kTile<P> * kSegment * kTile<P>,
        kSegment * kTile<P>, right, columns.stride, listed * kSteps, row_factor);
  };
  typename P::Sums sums;
  if constexpr (kFewExponents<Operand>)
    sums = multiply([&](std::int64_t k, int r) {
      return static_cast<const Scalar*>(
          t.inverse_weight_scales)[(k / kSteps * t.panel + local) * kTile<P> + r];
    });
  else
    sums = multiply(Unscaled{});
  const auto dot_of = [&](int r) {
    return load_shared(smem + r) + load_shared(smem + kTile<P> + r);
  };
  if (!last_segment && depth_first == 0 && tile_half<P>() == 0)
    *so_far(t.first_listed / kSegment + 1) = dot_of(tile_index<P>());
  // A weight that is not a number reaches every row, also where its tile is not listed.
  const bool all = (p.terms & column_term) && *p.column_buffers.poisoned;
  Scalar* const dx = static_cast<Scalar*>(p.d_rows);
  Product::each(sums, [&](int r, int c, Scalar value) {
    const std::int64_t i = first + r, d = depth_first + c;
    if (i >= rows.count || d >= p.depth) return;
    Scalar& out = dx[p.rows.sample(i) * p.depth + d];
    if (!first_segment) value += out;
    if (!last_segment) {
      out = value;
      return;
    }
    const bool poisoned = all || ((p.terms & row_term) && std::isnan(rows.dloss[i]));
    const Scalar g = poisoned ? kNaN<Scalar> : value;
    out = pairs.through_normalisation(g, dot_of(r), i, d, p.depth);
  });
}

}  // namespace msk::gpu
