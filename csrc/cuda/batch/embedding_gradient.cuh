// Last phase: weights times embeddings, and the gradient through the normalisation.
#pragma once

#include "cuda/batch/ranks.cuh"
#include "cuda/core/tile.cuh"
#include "cuda/pairs/pass.cuh"

namespace msk::gpu {

// A block owns a tile of the gradient. The gradient of a unit row u, times u, is the sum of weight
// * similarity: known without looking at the gradient. What only the store needs is read from the
// problem as it stores: registers of the product are scarce.
template <class P>
MSK_PHASE void embedding_gradient(const Problem& p, std::int64_t first) {
  const Pass<P> pass(p);
  using Scalar = typename P::Scalar;
  using Shape = typename P::Shape;
  using Product = TileProduct<P, Right::columns>;
  const Side<P>& rows = pass.rows;
  const std::int64_t down = pass.height(first) / Shape::kRows;
  const std::int64_t across = rows.stride / Shape::kColumns;
  for (std::int64_t item = blockIdx.x; item < down * across; item += gridDim.x) {
    const std::int64_t row = item / across * Shape::kRows;
    const std::int64_t column = item % across * Shape::kColumns;
    Product::run(pass.weights + row * pass.width, pass.width, pass.columns.copy + column,
                 pass.columns.stride, pass.width / Product::kStep, [&](int r, int c, Scalar value) {
                   const std::int64_t i = first + row + r, d = column + c;
                   if (i >= rows.count || d >= p.depth) return;
                   const Scalar found =
                       pass.through_normalisation(value * pass.inverse_weight_scales[row + r],
                                                  pass.dot[row + r], i, d, p.depth);
                   Scalar& out = static_cast<Scalar*>(p.d_rows)[i * p.depth + d];
                   out = first_round(p) ? found : out + found;
                 });
  }
}

}  // namespace msk::gpu
