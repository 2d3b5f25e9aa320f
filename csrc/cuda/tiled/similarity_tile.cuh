// Similarities of one tile of rows with one of columns: in registers as the product leaves them,
// then in shared memory, where a thread finds a whole row or column.
#pragma once

#include "cuda/core/tile.cuh"
#include "cuda/tiled/ordered_pairs.cuh"

namespace msk::gpu {

// Thread t serves row, or column, t % 64 of the tile: the first or the second half of it.
MSK_DEVICE int line() { return threadIdx.x % kTile; }
MSK_DEVICE int half() { return threadIdx.x / kTile; }
constexpr int kHalf = kTile / (kThreads / kTile);

template <class P>
struct SimilarityTile {
  using Scalar = typename P::Scalar;
  using Product = TileProduct<P, Right::rows>;
  // Lanes are at neighbouring rows or columns: an odd stride keeps both in different banks. That
  // of 5 more spreads the elements of a product too, which lie in eight rows.
  static constexpr int kStride = kTile + 5;
  static constexpr std::size_t kTileBytes = kTile * kStride * sizeof(Scalar);
  // Where rooms of other uses begin: past the stages, which warps leave one after the other.
  static constexpr std::size_t kStageBytes =
      Product::kSharedBytes > kTileBytes ? Product::kSharedBytes : kTileBytes;

  Scalar value[P::kRowParts][P::kColumnParts][P::kElements];

  MSK_DEVICE SimilarityTile(const OrderedPairs<P>& pairs, std::int64_t row_tile,
                            std::int64_t column_tile) {
    const Side<P>&rows = pairs.rows, &columns = pairs.columns;
    const typename P::Operand* const right = columns.copy + column_tile * kTile * columns.stride;
    const typename P::Sums sums = Product::multiply(
        rows.copy + row_tile * kTile * rows.stride, rows.stride,
        [&](std::int64_t k) { return right + k * Product::kStep; }, columns.stride,
        rows.stride / Product::kStep);
#pragma unroll
    for (int m = 0; m < P::kRowParts; ++m)
#pragma unroll
      for (int n = 0; n < P::kColumnParts; ++n)
#pragma unroll
        for (int e = 0; e < P::kElements; ++e) {
          const std::int64_t i = row_tile * kTile + Product::row(m, e);
          const std::int64_t j = column_tile * kTile + Product::column(n, e);
          value[m][n][e] = pairs.scaled(sums.value(m, n, e), rows.scale[i], columns.scale[j],
                                        rows.residue[i] + columns.residue[j]);
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
