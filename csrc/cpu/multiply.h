// The one matrix product: C (+)= A B for a block of C that stays in cache; and what takes its place
// where rows are compared by their differences.
#pragma once

#include "simd.h"

namespace msk::MSK_ISA {

// Rows of A times vectors of B held in registers: 24 of 32 on AVX-512, 12 of 16 below.
constexpr int kRows = kVectorBytes == 64 ? 8 : 4;
constexpr int kVectors = 3;
template <typename T>
constexpr int kColumns = kVectors * kLanes<T>;

// What is summed over k: a b; (a - b)^2; a (b - own), with own(r, c) of C's own rows. The last two
// take twice as long as a product, and lose nothing where rows lie close together and far from 0.
enum class Sum { products, squared_differences, weighted_differences };

// a(r, k) = a[r * a_row + k * a_depth], b(k, c) = b[k * b_depth + c], c(r, c) = c[r * c_row + c],
// own(r, c) = own[r * own_row + c].
template <typename T>
struct Operands {
  const T* a;
  std::int64_t a_row, a_depth;
  const T* b;
  std::int64_t b_depth;
  T* c;
  std::int64_t c_row;
  const T* own = nullptr;
  std::int64_t own_row = 0;
};

// kRows rows of C, `vectors` vectors wide. Every element is one chain of fused multiply-adds in
// ascending k, whatever the block it is computed in. The chain starts at 0, not at C: so a long sum
// of products is one of short chains, and its error grows with their length and number apart.
template <typename T, int vectors, Sum of>
inline void multiply_block(Operands<T> o, int depth, bool accumulate) {
  Vec<T> sum[kRows][vectors];
#pragma GCC unroll 8
  for (int r = 0; r < kRows; ++r)
#pragma GCC unroll 3
    for (int v = 0; v < vectors; ++v) sum[r][v] = Vec<T>{};
  for (int k = 0; k < depth; ++k) {
    Vec<T> right[vectors];
#pragma GCC unroll 3
    for (int v = 0; v < vectors; ++v) right[v] = load(o.b + v * kLanes<T>);
#pragma GCC unroll 8
    for (int r = 0; r < kRows; ++r) {
      const Vec<T> left = broadcast(o.a[r * o.a_row]);
#pragma GCC unroll 3
      for (int v = 0; v < vectors; ++v) {
        if constexpr (of == Sum::products) {
          sum[r][v] = multiply_add<T>(left, right[v], sum[r][v]);
        } else if constexpr (of == Sum::squared_differences) {
          const Vec<T> apart = left - right[v];
          sum[r][v] = multiply_add<T>(apart, apart, sum[r][v]);
        } else {
          const Vec<T> apart = right[v] - load(o.own + r * o.own_row + v * kLanes<T>);
          sum[r][v] = multiply_add<T>(left, apart, sum[r][v]);
        }
      }
    }
    o.a += o.a_depth;
    o.b += o.b_depth;
  }
#pragma GCC unroll 8
  for (int r = 0; r < kRows; ++r)
#pragma GCC unroll 3
    for (int v = 0; v < vectors; ++v) {
      T* at = o.c + r * o.c_row + v * kLanes<T>;
      store(at, accumulate ? load(at) + sum[r][v] : sum[r][v]);
    }
}

// C of `rows` x `width`, both rounded up to whole blocks and vectors: operands are padded so far.
template <typename T, Sum of = Sum::products>
inline void multiply(Operands<T> o, int rows, int width, int depth, bool accumulate) {
  for (int column = 0; column < width; column += kColumns<T>) {
    Operands<T> block = o;
    block.b += column;
    block.c += column;
    if (of == Sum::weighted_differences) block.own += column;
    const int left = (width - column + kLanes<T> - 1) / kLanes<T>;
    for (int row = 0; row < rows; row += kRows) {
      if (left >= 3)
        multiply_block<T, 3, of>(block, depth, accumulate);
      else if (left == 2)
        multiply_block<T, 2, of>(block, depth, accumulate);
      else
        multiply_block<T, 1, of>(block, depth, accumulate);
      block.a += kRows * o.a_row;
      block.c += kRows * o.c_row;
      block.own += kRows * o.own_row;
    }
  }
}

}  // namespace msk::MSK_ISA
