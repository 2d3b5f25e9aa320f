// Weights of listed tiles times embeddings, and the gradient through the normalisation.
#pragma once

#include "cuda/tile_weights.cuh"

namespace msk::gpu {

template <class P>
constexpr std::size_t kGradientSharedBytes =
    TileProduct<P, Right::columns>::kSharedBytes + kTile * 2 * sizeof(typename P::Scalar) +
    kThreads / 32 * sizeof(Greatest<typename P::Scalar>);

// One block owns 64 x 64 of the gradient and goes through the list of its tile of rows.
template <class P>
MSK_KERNEL(kThreads, 2)
tile_gradient_kernel(const MSK_PARAMETER Problem p) {
  using Scalar = typename P::Scalar;
  using Operand = typename P::Operand;
  using Product = TileProduct<P, Right::columns>;
  constexpr int kSteps = kTile / Product::kStep;  // of the depth of the product in a tile
  const Tiled& t = p.tiled;
  const Pairs<P> pairs(p);
  const Side<P>&rows = pairs.rows, &columns = pairs.columns;
  Scalar* const room = reinterpret_cast<Scalar*>(shared_memory() + Product::kSharedBytes);
  const std::int64_t across = rows.stride / kTile;
  const std::int64_t local = blockIdx.x / across, first = (t.first + local) * kTile;
  const std::int64_t depth_first = blockIdx.x % across * kTile, listed = t.counts[local];
  const std::int32_t* const tiles = t.tiles + local * t.width;

  Scalar dot = Scalar(0);
  for (std::int64_t slot = half(); slot < listed; slot += kThreads / kTile)
    dot += static_cast<const Scalar*>(t.dots)[(slot * t.panel + local) * kTile + line()];
  store_shared(room + threadIdx.x, dot);
  const Scalar unlift =
      Scalar(1) / weight_lift<P>(p, reinterpret_cast<Greatest<Scalar>*>(room + kThreads));

  const auto right = [&](std::int64_t k) {
    const std::int64_t row = tiles[k / kSteps] * std::int64_t(kTile) + k % kSteps * Product::kStep;
    return columns.copy + row * columns.stride + depth_first;
  };
  const typename P::Sums sums =
      Product::multiply(static_cast<const Operand*>(t.weights) + local * kTile * t.width * kTile,
                        t.width * kTile, right, columns.stride, listed * kSteps);
  // A weight that is not a number reaches every row, also where its tile is not listed.
  const bool all = (p.terms & column_term) && *p.column_room.poisoned;
  Scalar* const dx = static_cast<Scalar*>(p.d_rows);
  Product::each(sums, [&](int r, int c, Scalar value) {
    const std::int64_t i = first + r, d = depth_first + c;
    if (i >= rows.count || d >= p.depth) return;
    Scalar g = value * unlift;
    if (all || ((p.terms & row_term) && std::isnan(rows.dloss[i]))) g = kNaN<Scalar>;
    const Scalar dot = (load_shared(room + r) + load_shared(room + kTile + r)) * unlift;
    dx[p.rows.sample(i) * p.depth + d] = pairs.through_normalisation(g, dot, i, d, p.depth);
  });
}

}  // namespace msk::gpu
