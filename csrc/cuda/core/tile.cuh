// One tile of a product, by one block, through a two-stage pipeline in shared memory.
#pragma once

#include "cuda/core/product.cuh"

namespace msk::gpu {

// How the right operand lies in memory.
enum class Right { rows, columns };

// Rows of the left operand are as they should be.
struct Unscaled {};

template <typename P>
struct RowFactors {
  typename P::Scalar of[P::kRowParts][P::kElements];
};

template <typename P, Right layout>
struct TileProduct {
  using T = typename P::Operand;
  using Shape = typename P::Shape;
  static constexpr int kStep = Shape::kStageBytes / sizeof(T);  // elements of depth in a stage
  static_assert(kStep % P::kDepth == 0, "whole instructions in a stage");
  static_assert(Shape::kPadding % kStep == 0, "whole stages in what is padded");
  static constexpr int kLeftStride = kStep + P::kPad;
  // The wider pad of direct loads: four rows of depth fall into different banks.
  static constexpr int kRightStride =
      layout == Right::rows ? kLeftStride
                            : Shape::kColumns + (sizeof(T) == 2 ? P::kPad : 32 / sizeof(T));
  static_assert(kLeftStride * sizeof(T) % 16 == 0 && kRightStride * sizeof(T) % 16 == 0,
                "ldmatrix and cp.async take 16 bytes that are aligned");
  // Stages after which sums are settled: a chain of so many additions loses little.
  static constexpr int kSettled = 512 / Shape::kStageBytes;
  static_assert(kSettled > 0, "a stage is no longer than a chain of additions");
  static constexpr int kLeft = Shape::kRows * kLeftStride;
  static constexpr int kRight = (layout == Right::rows ? Shape::kColumns : kStep) * kRightStride;
  static constexpr std::size_t kSharedBytes = 2 * (kLeft + kRight) * sizeof(T);
  static_assert(kSharedBytes <= kMostShared, "two stages fit shared memory");

  // left: kRows rows; right: kColumns rows, or `steps * kStep` rows of which kColumns columns are
  // taken. Calls out(row, column, value) for the thread's elements of the tile.
  template <typename Out>
  MSK_DEVICE static void run(const T* left, std::int64_t left_stride, const T* right,
                             std::int64_t right_stride, std::int64_t steps, Out out) {
    const int ahead = layout == Right::rows ? kStep : kStep * int(right_stride);
    const auto step = [right, ahead](int) mutable {
      const T* const now = right;
      right += ahead;
      return now;
    };
    each(multiply(left, left_stride, step, right_stride, steps), out);
  }

  // The same; the right operand of step k begins at right(k), and the sums stay where they are.
  // What row r adds in step k is multiplied by row_factor(k, r), unless that is Unscaled.
  template <typename At, typename RowFactor = Unscaled>
  MSK_DEVICE static typename P::Sums multiply(const T* left, std::int64_t left_stride, At right,
                                              std::int64_t right_stride, std::int64_t steps,
                                              RowFactor row_factor = {}) {
    typename P::Sums sums;
    T* const stages = reinterpret_cast<T*>(shared_memory());
    using LeftCopy = Copy<Shape::kRows, kStep, kLeftStride>;
    using RightCopy =
        std::conditional_t<layout == Right::rows, Copy<Shape::kColumns, kStep, kRightStride>,
                           Copy<kStep, Shape::kColumns, kRightStride>>;
    const LeftCopy of_left(left_stride);
    const RightCopy of_right(right_stride);
    const int count = int(steps);
    __syncthreads();  // the stages may still be read for the tile before
    left += of_left.first;
    if (count > 0) of_left(stages, left), of_right(stages + kLeft, right(0) + of_right.first);
#pragma unroll 1
    for (int k = 0; k < count; ++k) {
      const auto factors = factors_of(row_factor, k);
      cp_async_wait_all();
      __syncthreads();  // stage k is there for all, and all have left the other stage
      if (k + 1 < count) {
        left += kStep;
        T* const next = stages + (k + 1) % 2 * (kLeft + kRight);
        of_left(next, left), of_right(next + kLeft, right(k + 1) + of_right.first);
      }
      add(sums, stages + k % 2 * (kLeft + kRight), factors);
      if ((k + 1) % kSettled == 0) sums.settle();
    }
    return sums;
  }

  template <typename Out>
  MSK_DEVICE static void each(const typename P::Sums& sums, Out out) {
#pragma unroll
    for (int m = 0; m < P::kRowParts; ++m)
#pragma unroll
      for (int n = 0; n < P::kColumnParts; ++n)
#pragma unroll
        for (int e = 0; e < P::kElements; ++e) out(row(m, e), column(n, e), sums.value(m, n, e));
  }

  // The products of one stage: its left tile, then its right one.
  template <typename Factors = Unscaled>
  MSK_DEVICE static void add(typename P::Sums& sums, const T* stage, const Factors& factors = {}) {
    typename P::StageSums of_stage;
#pragma unroll
    for (int k = 0; k < kStep; k += P::kDepth) {
      typename P::Left left;
      typename P::Right right;
      P::load_left(left, stage + warp_row() * kLeftStride + k, kLeftStride);
      if constexpr (layout == Right::rows)
        P::load_rows_of_right(right, stage + kLeft + warp_column() * kRightStride + k,
                              kRightStride);
      else
        P::load_columns_of_right(right, stage + kLeft + k * kRightStride + warp_column(),
                                 kRightStride);
      P::multiply_in_stage(sums, of_stage, left, right);
    }
    if constexpr (std::is_same_v<Factors, Unscaled>)
      P::end_stage(sums, of_stage);
    else
      P::end_stage(sums, of_stage, factors.of);
  }

  // Of the tile, where this thread holds element e of parts m and n.
  MSK_DEVICE static int row(int m, int e) { return warp_row() + P::row(m, e); }
  MSK_DEVICE static int column(int n, int e) { return warp_column() + P::column(n, e); }

 private:
  MSK_DEVICE static int warp_row() {
    return threadIdx.x / 32 / Shape::kWarpsAcross * Shape::kWarpRows;
  }
  MSK_DEVICE static int warp_column() {
    return threadIdx.x / 32 % Shape::kWarpsAcross * Shape::kWarpColumns;
  }

  // How a thread copies its share of a part of a stage: 16 bytes of each so many rows, all in one
  // column, so that what it knows is where the first are.
  template <int rows, int columns, int to_stride>
  struct Copy {
    static constexpr int kWidth = 16 / sizeof(T), kChunks = columns / kWidth;
    static constexpr int kThreadsOf = kThreads<P>, kCount = rows * kChunks;
    static constexpr bool kWhole = kThreadsOf % kChunks == 0 && kCount % kThreadsOf == 0;
    static constexpr int kDown = kWhole ? kThreadsOf / kChunks : 0;  // from a row to its next
    const int stride, first;  // the rows of a tile are less than 2^31 elements apart

    MSK_DEVICE explicit Copy(std::int64_t stride)
        : stride(int(stride)), first(at(threadIdx.x, int(stride))) {}
    MSK_DEVICE static int at(int c, int stride) {
      return c / kChunks * stride + c % kChunks * kWidth;
    }
    MSK_DEVICE void operator()(T* to, const T* from) const {
      if constexpr (kWhole) {
        to += at(threadIdx.x, to_stride);
#pragma unroll
        for (int c = 0; c < kCount / kThreadsOf; ++c, from += kDown * stride)
          cp_async_16(to + c * kDown * to_stride, from);
      } else {
        for (int c = threadIdx.x; c < kCount; c += kThreadsOf)
          cp_async_16(to + at(c, to_stride), from - first + at(c, stride));
      }
    }
  };

  MSK_DEVICE static Unscaled factors_of(Unscaled, std::int64_t) { return {}; }
  // Of the rows that this thread's elements are in.
  template <typename RowFactor>
  MSK_DEVICE static RowFactors<P> factors_of(RowFactor row_factor, std::int64_t k) {
    RowFactors<P> factors;
#pragma unroll
    for (int m = 0; m < P::kRowParts; ++m)
#pragma unroll
      for (int e = 0; e < P::kElements; ++e) factors.of[m][e] = row_factor(k, row(m, e));
    return factors;
  }
};

}  // namespace msk::gpu
