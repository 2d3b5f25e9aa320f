// An operand of a product as it lies in global memory, and its way to shared memory.
#pragma once

#include "cuda/pairs/side.cuh"

namespace msk::gpu {

// Elements outside of it are 0. Its rows begin at multiples of 16 bytes.
template <typename T>
struct Matrix {
  const T* at;
  std::int64_t stride;
  int rows, columns;
};

// The embeddings of a side: as they were given where the product can read them, else their copy.
template <class P>
MSK_DEVICE Matrix<typename P::Operand> embeddings_of(const Problem& p, const SideInput& in,
                                                     const SideBuffers& buffers, bool copied) {
  const void* const at = copied ? buffers.copy : in.x;
  return {static_cast<const typename P::Operand*>(at), copied ? p.padded_depth : in.row_stride,
          int(in.count), int(p.depth)};
}

// What one thread copies of tiles of kRows x kColumns elements that follow each other: pieces of 16
// bytes of one column of pieces, kRowsApart apart. What lies outside of the matrix becomes 0.
template <class P, int kRows, int kColumns>
class TileCopy {
  using T = typename P::Operand;
  static constexpr int kBytes = sizeof(T), kWidth = 16 / kBytes, kAcross = kColumns / kWidth;
  static constexpr int kRowsApart = kThreads<P> / kAcross;
  static_assert(kThreads<P> % kAcross == 0 && kRows % kRowsApart == 0, "threads copy equally much");

 public:
  // Of the tile whose first element is (row, column).
  MSK_DEVICE TileCopy(const Matrix<T>& from, int row, int column) {
    const int r = threadIdx.x / kAcross, c = threadIdx.x % kAcross * kWidth;
    at_ = from.at + (row + r) * from.stride + column + c;
    stride_ = from.stride;
    rows_ = from.rows - row - r;
    bytes_ = (from.columns - column - c) * kBytes;
  }
  MSK_DEVICE void copy(T* to, int to_stride) const {
    to += threadIdx.x / kAcross * to_stride + threadIdx.x % kAcross * kWidth;
    const int bytes = bytes_ < 0 ? 0 : bytes_ > 16 ? 16 : bytes_;
#pragma unroll
    for (int r = 0; r < kRows; r += kRowsApart)
      cp_async_16_or_zeros(to + r * to_stride, at_ + r * stride_, r < rows_ ? bytes : 0);
  }
  // To the next tile of the same rows, or of the same columns.
  MSK_DEVICE void go_right() { at_ += kColumns, bytes_ -= kColumns * kBytes; }
  MSK_DEVICE void go_down() { at_ += kRows * stride_, rows_ -= kRows; }

 private:
  const T* at_;
  std::int64_t stride_;
  int rows_, bytes_;  // that the matrix has from here on
};

}  // namespace msk::gpu
