// One tile of a product, by one block, with several stages of it on their way at a time: a small
// batch has a tile a block, and waits for the cache rather than for the tensor cores.
#pragma once

#include "cuda/core/tile.cuh"
#include "cuda/small/operand.cuh"

namespace msk::gpu {

template <class P, Right layout>
struct StagedProduct {
  using T = typename P::Operand;
  using Shape = typename P::Shape;
  using Tile = TileProduct<P, layout>;
  static constexpr int kStages = 4;
  static constexpr int kStageElements = Tile::kLeft + Tile::kRight;
  static constexpr std::size_t kSharedBytes = kStages * kStageElements * sizeof(T);
  static constexpr bool kRows = layout == Right::rows;

  // Rows of the left operand from `row` on; rows or columns of the right one from `column` on. Of
  // the depth, steps `from` up to `to`.
  MSK_DEVICE static typename P::Sums multiply(const Matrix<T>& left, const Matrix<T>& right,
                                              int row, int column, int from, int to) {
    typename P::Sums sums;
    T* const stages = reinterpret_cast<T*>(shared_memory());
    using Left = TileCopy<P, Shape::kRows, Tile::kStep>;
    using OfRight = std::conditional_t<kRows, TileCopy<P, Shape::kColumns, Tile::kStep>,
                                       TileCopy<P, Tile::kStep, Shape::kColumns>>;
    const int depth = from * Tile::kStep;
    Left of_left(left, row, depth);
    OfRight of_right(right, kRows ? column : depth, kRows ? depth : column);
    // Stages are loaded in turn.
    const auto load = [&](int k) {
      if (k < to) {
        T* const stage = stages + (k - from) % kStages * kStageElements;
        of_left.copy(stage, Tile::kLeftStride);
        of_right.copy(stage + Tile::kLeft, Tile::kRightStride);
        of_left.go_right();
        if constexpr (kRows)
          of_right.go_right();
        else
          of_right.go_down();
      }
      cp_async_commit();  // also without a copy: groups are counted
    };
    __syncthreads();  // shared memory may still be read for what came before
    for (int k = 0; k < kStages - 1; ++k) load(from + k);
    for (int k = from; k < to; ++k) {
      cp_async_wait_all_but<kStages - 2>();
      __syncthreads();  // stage k is there for all, and all have left the one before
      load(k + kStages - 1);
      Tile::add(sums, stages + (k - from) % kStages * kStageElements);
      if ((k - from + 1) % Tile::kSettled == 0) sums.settle();
    }
    return sums;
  }
};

}  // namespace msk::gpu
