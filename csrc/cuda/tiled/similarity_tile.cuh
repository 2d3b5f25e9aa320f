// Similarities of one tile of rows with one of columns: in registers as the product leaves them,
// then in shared memory, where a thread finds a whole row or column.
#pragma once

#include "cuda/core/half_range.cuh"
#include "cuda/core/tile.cuh"
#include "cuda/tiled/ordered_pairs.cuh"

namespace msk::gpu {

// Thread t serves row, or column, t % kTile of the tile: the first or the second half of it.
template <class P>
MSK_DEVICE int tile_index() {
  return threadIdx.x % kTile<P>;
}
template <class P>
MSK_DEVICE int tile_half() {
  return threadIdx.x / kTile<P>;
}
template <class P>
constexpr int kHalfTile = kTile<P> / 2;

template <class P>
struct SimilarityTile {
  using Scalar = typename P::Scalar;
  using Product = TileProduct<P, Right::rows>;
  static_assert(P::Shape::kSquare, "a tile serves its rows and its columns");
  static_assert(kThreads<P> == 2 * kTile<P>, "two threads a row, or one a row and one a column");
  static_assert(kHalfTile<P> <= 32, "a word has a bit for each pair of a thread");
  // Lanes are at neighbouring rows or columns: an odd stride keeps both in different banks. That
  // of 5 more spreads the elements of a product too, which lie in eight rows.
  static constexpr int kStride = kTile<P> + 5;
  static constexpr std::size_t kTileBytes = kTile<P> * kStride * sizeof(Scalar);
  // What the stages leave to the tile, and where weights are scaled to a copy of it beside.
  static constexpr std::size_t kTilesBytes =
      kTileBytes * (kFewExponents<typename P::Operand> ? 2 : 1);
  // Where shared memory of other uses begins: past the stages, which warps leave one after the
  // other.
  static constexpr std::size_t kStageBytes =
      Product::kSharedBytes > kTilesBytes ? Product::kSharedBytes : kTilesBytes;

  Scalar value[P::kRowParts][P::kColumnParts][P::kElements];

  MSK_DEVICE SimilarityTile(const OrderedPairs<P>& pairs, std::int64_t row_tile,
                            std::int64_t column_tile) {
    const Side<P>&rows = pairs.rows, &columns = pairs.columns;
    const typename P::Operand* const right = columns.copy + column_tile * kTile<P> * columns.stride;
    const typename P::Sums sums = Product::multiply(
        rows.copy + row_tile * kTile<P> * rows.stride, rows.stride,
        [&](int k) { return right + k * Product::kStep; }, columns.stride,
        rows.stride / Product::kStep);
    const Scalar* const row_scale = rows.scale + row_tile * kTile<P>;
    const Scalar* const row_residue = rows.residue + row_tile * kTile<P>;
    const Scalar* const column_scale = columns.scale + column_tile * kTile<P>;
    const Scalar* const column_residue = columns.residue + column_tile * kTile<P>;
#pragma unroll
    for (int m = 0; m < P::kRowParts; ++m)
#pragma unroll
      for (int n = 0; n < P::kColumnParts; ++n)
#pragma unroll
        for (int e = 0; e < P::kElements; ++e) {
          const int i = Product::row(m, e), j = Product::column(n, e);
          value[m][n][e] = pairs.scaled(sums.value(m, n, e), row_scale[i], column_scale[j],
                                        row_residue[i] + column_residue[j]);
        }
  }

  template <typename Test>
  MSK_DEVICE bool any(Test test) const {
    bool found = false;
#pragma unroll
    for (int m = 0; m < P::kRowParts; ++m)
#pragma unroll
      for (int n = 0; n < P::kColumnParts; ++n)
#pragma unroll
        for (int e = 0; e < P::kElements; ++e) found = found || test(value[m][n][e]);
    return found;
  }

  MSK_DEVICE static Scalar* shared(int row, int column) {
    return reinterpret_cast<Scalar*>(shared_memory()) + row * kStride + column;
  }
  // Over the stages, once all threads have left them.
  MSK_DEVICE void store() const {
#pragma unroll
    for (int m = 0; m < P::kRowParts; ++m)
#pragma unroll
      for (int n = 0; n < P::kColumnParts; ++n)
#pragma unroll
        for (int e = 0; e < P::kElements; ++e)
          store_shared(shared(Product::row(m, e), Product::column(n, e)), value[m][n][e]);
  }
  MSK_DEVICE void share() const {
    __syncthreads();  // the stages are left
    store();
    __syncthreads();  // the tile is there
  }
};

}  // namespace msk::gpu
