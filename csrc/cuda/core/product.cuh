// How a warp multiplies its rows of one tile of shared memory with its columns of another, for one
// operand type and shape of a block's tile.
// as_read(x) is the number that a product takes a stored operand for.
//
// Left tiles are stored by rows. Right tiles are stored by columns (`rows_of_right`: both operands
// are embeddings) or by rows (`columns_of_right`: weights times embeddings). A tensor core cuts
// what does not fit its sum instead of rounding, and over a long depth that would show: its sums
// start from zero with each stage of a tile, and are added up outside of it.
#pragma once

#include <type_traits>

#include "cuda/core/geometry.h"
#include "cuda/core/ptx.cuh"

namespace msk::gpu {

MSK_DEVICE int lane() { return threadIdx.x % 32; }

template <class P>
constexpr int kThreads = P::Shape::kThreads;
template <class P>
constexpr int kWarps = P::Shape::kWarps;
// A whole number of tiles, of rows as of columns.
template <class P>
MSK_HOST_DEVICE inline std::int64_t padded(std::int64_t count) {
  return padded_to(P::Shape::kPadding, count);
}

template <int rows, int columns>
struct TensorSums {
  float total[rows][columns][4] = {};
  MSK_DEVICE void add(const TensorSums& other) {
    for (int m = 0; m < rows; ++m)
      for (int n = 0; n < columns; ++n)
        for (int e = 0; e < 4; ++e) total[m][n][e] += other.total[m][n][e];
  }
  MSK_DEVICE void settle() {}
  MSK_DEVICE float value(int m, int n, int e) const { return total[m][n][e]; }
};

// 16-bit operands.
template <typename T, class TheShape>
struct HalfProduct {
  using Operand = T;
  using Scalar = float;
  using Shape = TheShape;
  static constexpr int kDepth = 16, kElements = 4;
  static constexpr int kRowParts = Shape::kWarpRows / 16, kColumnParts = Shape::kWarpColumns / 8;
  // A pad of 16 bytes puts the rows that one ldmatrix reads into different banks.
  static constexpr int kPad = 8;

  struct Left {
    std::uint32_t part[kRowParts][4];
  };
  struct Right {
    std::uint32_t part[kColumnParts][2];
  };
  using Sums = TensorSums<kRowParts, kColumnParts>;

  MSK_DEVICE static float as_read(T x) { return widen(x); }
  MSK_DEVICE static void load_left(Left& out, const T* tile, int stride) {
    for (int m = 0; m < kRowParts; ++m)
      ldmatrix_x4(out.part[m], tile + (m * 16 + lane() % 16) * stride + lane() / 16 * 8);
  }
  MSK_DEVICE static void load_rows_of_right(Right& out, const T* tile, int stride) {
    for (int n = 0; n < kColumnParts; n += 2) {
      std::uint32_t r[4];
      ldmatrix_x4(r, tile + (n * 8 + lane() % 8 + lane() / 16 * 8) * stride + lane() / 8 % 2 * 8);
      put(out, n, r);
    }
  }
  MSK_DEVICE static void load_columns_of_right(Right& out, const T* tile, int stride) {
    for (int n = 0; n < kColumnParts; n += 2) {
      std::uint32_t r[4];
      ldmatrix_x4_transposed(r, tile + lane() % 16 * stride + n * 8 + lane() / 16 * 8);
      put(out, n, r);
    }
  }
  MSK_DEVICE static void multiply(Sums& sums, const Left& left, const Right& right) {
    for (int m = 0; m < kRowParts; ++m)
      for (int n = 0; n < kColumnParts; ++n) {
        float part[4] = {};
        mma_m16n8k16(part, left.part[m], right.part[n], T{});
        for (int e = 0; e < 4; ++e) sums.total[m][n][e] += part[e];
      }
  }
  using StageSums = Sums;
  MSK_DEVICE static void multiply_in_stage(Sums&, StageSums& stage, const Left& left,
                                           const Right& right) {
    for (int m = 0; m < kRowParts; ++m)
      for (int n = 0; n < kColumnParts; ++n)
        mma_m16n8k16(stage.total[m][n], left.part[m], right.part[n], T{});
  }
  MSK_DEVICE static void end_stage(Sums& sums, const StageSums& stage) { sums.add(stage); }
  // The same, each row times a power of two of its own.
  MSK_DEVICE static void end_stage(Sums& sums, const StageSums& stage,
                                   const float (&factor)[kRowParts][kElements]) {
    for (int m = 0; m < kRowParts; ++m)
      for (int n = 0; n < kColumnParts; ++n)
        for (int e = 0; e < 4; ++e) sums.total[m][n][e] += stage.total[m][n][e] * factor[m][e];
  }
  MSK_DEVICE static int row(int m, int e) { return m * 16 + lane() / 4 + e / 2 * 8; }
  MSK_DEVICE static int column(int n, int e) { return n * 8 + lane() % 4 * 2 + e % 2; }

 private:
  MSK_DEVICE static void put(Right& out, int n, const std::uint32_t (&r)[4]) {
    out.part[n][0] = r[0], out.part[n][1] = r[1];
    out.part[n + 1][0] = r[2], out.part[n + 1][1] = r[3];
  }
};

// float32 operands as tf32. With `split`, an operand is the sum of two tf32 numbers and the three
// larger of their products are taken: as accurate as float32, and the same bits when the operands
// change places, because low * high and high * low have sums of their own.
template <bool split, class TheShape>
struct Tf32Product {
  using Operand = float;
  using Scalar = float;
  using Shape = TheShape;
  static constexpr int kDepth = 8, kElements = 4;
  static constexpr int kRowParts = Shape::kWarpRows / 16, kColumnParts = Shape::kWarpColumns / 8;
  static constexpr int kPad = 4;
  static constexpr int kWords = split ? 2 : 1;

  struct Left {
    std::uint32_t part[kWords][kRowParts][4];
  };
  struct Right {
    std::uint32_t part[kWords][kColumnParts][2];
  };
  // The products with a low part are 2^-11 of the whole: there the cut does no harm. Over thousands
  // of products one chain of float32 additions would err more than the dense code's: it is settled
  // from time to time.
  struct SplitSums {
    float settled[kRowParts][kColumnParts][4] = {};
    float total[kRowParts][kColumnParts][4] = {};
    float low_high[kRowParts][kColumnParts][4] = {}, high_low[kRowParts][kColumnParts][4] = {};
    MSK_DEVICE void add(const TensorSums<kRowParts, kColumnParts>& high) {
      for (int m = 0; m < kRowParts; ++m)
        for (int n = 0; n < kColumnParts; ++n)
          for (int e = 0; e < 4; ++e) total[m][n][e] += high.total[m][n][e];
    }
    MSK_DEVICE void settle() {
      for (int m = 0; m < kRowParts; ++m)
        for (int n = 0; n < kColumnParts; ++n)
          for (int e = 0; e < 4; ++e) settled[m][n][e] += total[m][n][e], total[m][n][e] = 0;
    }
    MSK_DEVICE float value(int m, int n, int e) const {
      return (settled[m][n][e] + total[m][n][e]) + (low_high[m][n][e] + high_low[m][n][e]);
    }
  };
  using Sums = std::conditional_t<split, SplitSums, TensorSums<kRowParts, kColumnParts>>;

  // Rounded: a tensor core would cut it, and every product be too small.
  MSK_DEVICE static float as_read(float x) { return split ? x : round_to_tf32(x); }
  // ldmatrix moves 16-bit pairs: an 8 x 4 block of floats is its 8 x 8 matrix.
  MSK_DEVICE static void load_left(Left& out, const float* tile, int stride) {
    for (int m = 0; m < kRowParts; ++m) {
      std::uint32_t r[4];
      ldmatrix_x4(r, tile + (m * 16 + lane() % 16) * stride + lane() / 16 * 4);
      for (int e = 0; e < 4; ++e) separate(r[e], [&](int w) -> auto& { return out.part[w][m][e]; });
    }
  }
  MSK_DEVICE static void load_rows_of_right(Right& out, const float* tile, int stride) {
    for (int n = 0; n < kColumnParts; n += 2) {
      std::uint32_t r[4];
      ldmatrix_x4(r, tile + (n * 8 + lane() % 8 + lane() / 16 * 8) * stride + lane() / 8 % 2 * 4);
      for (int e = 0; e < 4; ++e)
        separate(r[e], [&](int w) -> auto& { return out.part[w][n + e / 2][e % 2]; });
    }
  }
  MSK_DEVICE static void load_columns_of_right(Right& out, const float* tile, int stride) {
    for (int n = 0; n < kColumnParts; ++n)
      for (int e = 0; e < 2; ++e) {
        const float* at = tile + (lane() % 4 + e * 4) * stride + n * 8 + lane() / 4;
        separate(float_bits(load_shared(at)), [&](int w) -> auto& { return out.part[w][n][e]; });
      }
  }
  MSK_DEVICE static void multiply(Sums& sums, const Left& left, const Right& right) {
    for (int m = 0; m < kRowParts; ++m)
      for (int n = 0; n < kColumnParts; ++n) {
        float high[4] = {};
        mma_m16n8k8_tf32(high, left.part[0][m], right.part[0][n]);
        for (int e = 0; e < 4; ++e) sums.total[m][n][e] += high[e];
        if constexpr (split) {
          mma_m16n8k8_tf32(sums.low_high[m][n], left.part[1][m], right.part[0][n]);
          mma_m16n8k8_tf32(sums.high_low[m][n], left.part[0][m], right.part[1][n]);
        }
      }
  }
  using StageSums = TensorSums<kRowParts, kColumnParts>;
  MSK_DEVICE static void multiply_in_stage(Sums& sums, StageSums& stage, const Left& left,
                                           const Right& right) {
    for (int m = 0; m < kRowParts; ++m)
      for (int n = 0; n < kColumnParts; ++n) {
        mma_m16n8k8_tf32(stage.total[m][n], left.part[0][m], right.part[0][n]);
        if constexpr (split) {
          mma_m16n8k8_tf32(sums.low_high[m][n], left.part[1][m], right.part[0][n]);
          mma_m16n8k8_tf32(sums.high_low[m][n], left.part[0][m], right.part[1][n]);
        }
      }
  }
  MSK_DEVICE static void end_stage(Sums& sums, const StageSums& stage) { sums.add(stage); }
  MSK_DEVICE static int row(int m, int e) { return m * 16 + lane() / 4 + e / 2 * 8; }
  MSK_DEVICE static int column(int n, int e) { return n * 8 + lane() % 4 * 2 + e % 2; }

 private:
  template <typename Place>
  MSK_DEVICE static void separate(std::uint32_t bits, Place place) {
    const float x = bits_float(bits);
    if constexpr (split) {
      // To nearest in whole numbers. A NaN that wraps around stays one in the low part, of which
      // the tensor core cuts no more than rounding would move: its sign is as random.
      const std::uint32_t high = (bits + 0x1000u) & ~0x1fffu;
      place(0) = high, place(1) = float_bits(x - bits_float(high));
    } else {
      const float high = round_to_tf32(x);
      place(0) = float_bits(high);
    }
  }
};

template <class TheShape>
struct DoubleProduct {
  using Operand = double;
  using Scalar = double;
  using Shape = TheShape;
  static constexpr int kDepth = 4, kElements = 2;
  static constexpr int kRowParts = Shape::kWarpRows / 8, kColumnParts = Shape::kWarpColumns / 8;
  static constexpr int kPad = 4;

  struct Left {
    double part[kRowParts];
  };
  struct Right {
    double part[kColumnParts];
  };
  struct Sums {
    double part[kRowParts][kColumnParts][2] = {};
    MSK_DEVICE void settle() {}
    MSK_DEVICE double value(int m, int n, int e) const { return part[m][n][e]; }
  };

  MSK_DEVICE static double as_read(double x) { return x; }
  MSK_DEVICE static void load_left(Left& out, const double* tile, int stride) {
    for (int m = 0; m < kRowParts; ++m)
      out.part[m] = load_shared(tile + (m * 8 + lane() / 4) * stride + lane() % 4);
  }
  MSK_DEVICE static void load_rows_of_right(Right& out, const double* tile, int stride) {
    for (int n = 0; n < kColumnParts; ++n)
      out.part[n] = load_shared(tile + (n * 8 + lane() / 4) * stride + lane() % 4);
  }
  MSK_DEVICE static void load_columns_of_right(Right& out, const double* tile, int stride) {
    for (int n = 0; n < kColumnParts; ++n)
      out.part[n] = load_shared(tile + lane() % 4 * stride + n * 8 + lane() / 4);
  }
  MSK_DEVICE static void multiply(Sums& sums, const Left& left, const Right& right) {
    for (int m = 0; m < kRowParts; ++m)
      for (int n = 0; n < kColumnParts; ++n)
        mma_m8n8k4_f64(sums.part[m][n], left.part[m], right.part[n]);
  }
  struct StageSums {};
  MSK_DEVICE static void multiply_in_stage(Sums& sums, StageSums&, const Left& left,
                                           const Right& right) {
    multiply(sums, left, right);
  }
  MSK_DEVICE static void end_stage(Sums&, const StageSums&) {}
  MSK_DEVICE static int row(int m, int) { return m * 8 + lane() / 4; }
  MSK_DEVICE static int column(int n, int e) { return n * 8 + lane() % 4 * 2 + e; }
};

}  // namespace msk::gpu
