// Reductions over the threads of a block, in one fixed order.
#pragma once

#include "cuda/product.cuh"

namespace msk::gpu {

// A value of each thread becomes that of all of them together, known to all. `room` is shared
// memory for one value a warp; calls that follow each other take different rooms or a barrier.
template <typename V, typename Combine>
MSK_DEVICE V block_reduce(V value, V* room, Combine combine) {
  for (int mask = 16; mask > 0; mask /= 2) value = combine(value, value.exchanged(mask));
  if (lane() == 0) store_shared(room + threadIdx.x / 32, value);
  __syncthreads();
  V total = load_shared(room);
  for (int w = 1; w < kThreads / 32; ++w) total = combine(total, load_shared(room + w));
  return total;
}

template <typename T>
MSK_DEVICE T exchange(T value, int mask) {
  return __shfl_xor_sync(0xffffffffu, value, mask);
}

}  // namespace msk::gpu
