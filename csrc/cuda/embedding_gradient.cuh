// Last phase: weights times embeddings, and the gradient through the normalisation.
#pragma once

#include "cuda/side.cuh"
#include "cuda/tile.cuh"

namespace msk::gpu {

// A block owns 64 x 64 of the gradient. The gradient of a unit row u, times u, is the sum of weight
// * similarity: known without looking at the gradient.
template <class P>
MSK_PHASE void embedding_gradient(const Problem& p, std::int64_t first) {
  const Pass<P> pass(p);
  using Scalar = typename P::Scalar;
  using Product = TileProduct<P, Right::columns>;
  Scalar* const dx = static_cast<Scalar*>(p.d_rows);
  const std::int64_t depth = p.depth;
  const Side<P>& rows = pass.rows;
  const std::int64_t down = pass.height(first) / kTile, across = rows.stride / kTile;
  for (std::int64_t item = blockIdx.x; item < down * across; item += gridDim.x) {
    const std::int64_t row = item / across * kTile, column = item % across * kTile;
    Product::run(pass.weights + row * pass.width, pass.width, pass.columns.copy + column,
                 pass.columns.stride, pass.width / Product::kStep, [&](int r, int c, Scalar value) {
                   const std::int64_t i = first + row + r, d = column + c;
                   if (i >= rows.count || d >= depth) return;
                   const Scalar found = pass.through_normalisation(value * pass.unscale[row + r],
                                                                   pass.dot[row + r], i, d, depth);
                   Scalar& out = dx[i * depth + d];
                   out = p.round ? out + found : found;
                 });
  }
}

}  // namespace msk::gpu
