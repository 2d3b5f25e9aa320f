// Reductions over the threads of a block, in one fixed order, and what is commonly reduced.
#pragma once

#include "cuda/core/product.cuh"

namespace msk::gpu {

// A value of each lane becomes that of all of them together, to the same bits in each.
template <typename V, typename Combine>
MSK_DEVICE V warp_reduce(V value, Combine combine) {
  for (int mask = 16; mask > 0; mask /= 2) value = combine(value, value.exchanged(mask));
  return value;
}

// A value of each thread becomes that of all of them together, known to all. `smem` is shared
// memory for one value a warp; calls that follow each other take different smem or a barrier.
template <int warps, typename V, typename Combine>
MSK_DEVICE V block_reduce(V value, V* smem, Combine combine) {
  value = warp_reduce(value, combine);
  if (lane() == 0) store_shared(smem + threadIdx.x / 32, value);
  __syncthreads();
  V total = load_shared(smem);
  for (int w = 1; w < warps; ++w) total = combine(total, load_shared(smem + w));
  return total;
}

template <typename T>
MSK_DEVICE T exchange(T value, int mask) {
  return __shfl_xor_sync(0xffffffffu, value, mask);
}

struct Any {
  int value;
  MSK_DEVICE Any exchanged(int mask) const { return {exchange(value, mask)}; }
  MSK_DEVICE static Any either(const Any& a, const Any& b) { return {a.value | b.value}; }
};

// NaN only if all of them are: what one row lost says nothing of the others.
template <typename T>
struct Greatest {
  T value;
  MSK_DEVICE Greatest exchanged(int mask) const { return {exchange(value, mask)}; }
  MSK_DEVICE static Greatest greater(const Greatest& a, const Greatest& b) {
    return {std::fmax(a.value, b.value)};
  }
};
// Of numbers that are none of them NaN.
template <typename T>
struct Most {
  T value;
  MSK_DEVICE Most exchanged(int mask) const { return {exchange(value, mask)}; }
  MSK_DEVICE static Most greater(const Most& a, const Most& b) { return a.value > b.value ? a : b; }
};
template <typename T>
struct Least {
  T value;
  MSK_DEVICE Least exchanged(int mask) const { return {exchange(value, mask)}; }
  MSK_DEVICE static Least lesser(const Least& a, const Least& b) {
    return {std::fmin(a.value, b.value)};
  }
};

template <typename T>
struct Sum {
  T value;
  MSK_DEVICE Sum exchanged(int mask) const { return {exchange(value, mask)}; }
  MSK_DEVICE static Sum plus(const Sum& a, const Sum& b) { return {a.value + b.value}; }
};

}  // namespace msk::gpu
