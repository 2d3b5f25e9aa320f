// Second phase: similarities of a panel of rows with all columns, before their scales.
#pragma once

#include "cuda/core/tile.cuh"
#include "cuda/pairs/pass.cuh"

namespace msk::gpu {

// A block takes whole tiles, each over one part of the depth: with few tiles the depth is what
// fills the chip. When the panel is a whole batch against itself, a tile above the diagonal also
// serves the one below.
template <class P>
MSK_PHASE void similarities(const Problem& p, std::int64_t first) {
  const Pass<P> pass(p);
  using Scalar = typename P::Scalar;
  using Shape = typename P::Shape;
  using Product = TileProduct<P, Right::rows>;
  const std::int64_t down = pass.height(first) / Shape::kRows;
  const std::int64_t across = pass.width / Shape::kColumns;
  const bool mirror = Shape::kSquare && pass.self && pass.height(0) == padded<P>(pass.rows.count);
  const std::int64_t tiles = mirror ? down * (down + 1) / 2 : down * across;
  const std::int64_t steps = pass.rows.stride / Product::kStep;
  for (std::int64_t item = blockIdx.x; item < tiles * pass.splits; item += gridDim.x) {
    const std::int64_t split = item % pass.splits;
    std::int64_t tile = item / pass.splits, row = tile / across, column = tile % across;
    if (mirror) {  // column by column: 0, 1 above the diagonal of 2, ...
      row = tile, column = 0;
      while (row > column) row -= ++column;
    }
    const std::int64_t from = steps * split / pass.splits;
    const std::int64_t to = steps * (split + 1) / pass.splits;
    const std::int64_t at = from * Product::kStep;
    Scalar* const out = pass.similarities + split * pass.panel * pass.width;
    Product::run(pass.rows.copy + (first + row * Shape::kRows) * pass.rows.stride + at,
                 pass.rows.stride,
                 pass.columns.copy + column * Shape::kColumns * pass.columns.stride + at,
                 pass.columns.stride, to - from, [&](int r, int c, Scalar value) {
                   const std::int64_t i = row * Shape::kRows + r, j = column * Shape::kColumns + c;
                   out[i * pass.width + j] = value;
                   if (mirror && row != column) out[j * pass.width + i] = value;
                 });
  }
}

}  // namespace msk::gpu
