// Last phase: weights times embeddings, and the gradient through the normalisation.
#pragma once

#include "cuda/pairs/pass.cuh"
#include "cuda/small/staged_product.cuh"

namespace msk::gpu {

// A block owns a tile of the gradient. The gradient of a unit row u, times u, is the sum of weight
// * similarity: known without looking at the gradient.
template <class P>
MSK_PHASE void gradient_tiles(const Problem& p, bool copied) {
  using Scalar = typename P::Scalar;
  using Shape = typename P::Shape;
  using Product = StagedProduct<P, Right::columns>;
  const Pass<P> pass(p);
  const auto own = embeddings_of<P>(p, p.rows, p.row_buffers, copied);
  const auto others = embeddings_of<P>(p, p.columns, p.column_buffers, copied);
  const Matrix<typename P::Operand> weights{pass.weights, pass.width, own.rows, others.rows};
  const int down = int(p.panel) / Shape::kRows, across = int(divided(p.depth, Shape::kColumns));
  const int steps = int(divided(others.rows, Product::Tile::kStep));
  Scalar* const out = static_cast<Scalar*>(p.d_rows);
  for (int item = blockIdx.x; item < down * across; item += gridDim.x) {
    const int row = item / across * Shape::kRows, column = item % across * Shape::kColumns;
    const typename P::Sums sums = Product::multiply(weights, others, row, column, 0, steps);
    Product::Tile::each(sums, [&](int r, int c, Scalar value) {
      const int i = row + r, d = column + c;
      if (i >= own.rows || d >= own.columns) return;
      Scalar g = value * pass.inverse_weight_scales[i];
      if (pass.normalize && own.columns == 1) {
        g -= g;  // a normalised number is its sign
      } else if (pass.normalize) {
        const Scalar unit = Scalar(widen(own.at[i * own.stride + d])) * pass.rows.scale[i];
        g = (g - pass.dot[i] * unit) * pass.rows.inverse[i];
      }
      out[i * p.depth + d] = g;
    });
  }
}

}  // namespace msk::gpu
