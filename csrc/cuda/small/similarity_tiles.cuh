// First phase: products of all rows with all columns, before their scales.
#pragma once

#include "cuda/pairs/pass.cuh"
#include "cuda/small/staged_product.cuh"

namespace msk::gpu {

// A block takes whole tiles, each over one part of the depth: with few tiles the depth is what
// fills the chip. Of a batch against itself a tile above the diagonal also serves the one below;
// where candidates learn, their rows are written too.
template <class P>
MSK_PHASE void similarity_tiles(const Problem& p, bool copied) {
  using Scalar = typename P::Scalar;
  using Shape = typename P::Shape;
  using Product = StagedProduct<P, Right::rows>;
  static_assert(Shape::kSquare, "a tile serves the one below the diagonal");
  const auto left = embeddings_of<P>(p, p.rows, p.row_buffers, copied);
  const auto right = embeddings_of<P>(p, p.columns, p.column_buffers, copied);
  const int height = int(p.panel), width = int(padded<P>(p.columns.count));
  const int down = height / Shape::kRows, across = width / Shape::kColumns;
  const int tiles = p.self ? down * (down + 1) / 2 : down * across;
  const int steps = int(divided(p.depth, Product::Tile::kStep));
  Scalar* const similarities = static_cast<Scalar*>(p.similarities);
  Scalar* const transposed = static_cast<Scalar*>(p.self ? p.similarities : p.small.similarities);
  for (int item = blockIdx.x; item < tiles * p.splits; item += gridDim.x) {
    const int split = item % p.splits;
    int row = item / p.splits, column = 0;
    if (p.self)  // column by column: 0, 1 above the diagonal of 2, ...
      while (row > column) row -= ++column;
    else
      column = row % across, row /= across;
    const bool mirror = transposed && !(p.self && row == column);
    const typename P::Sums sums =
        Product::multiply(left, right, row * Shape::kRows, column * Shape::kColumns,
                          steps * split / p.splits, steps * (split + 1) / p.splits);
    const std::int64_t part = std::int64_t(split) * height * width;
    Product::Tile::each(sums, [&](int r, int c, Scalar value) {
      const int i = row * Shape::kRows + r, j = column * Shape::kColumns + c;
      similarities[part + i * width + j] = value;
      if (mirror) transposed[part + j * height + i] = value;
    });
  }
}

}  // namespace msk::gpu
