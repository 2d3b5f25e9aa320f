// Loss and gradient of a small batch in one cooperative launch.
#pragma once

#include "cuda/core/grid_barrier.cuh"
#include "cuda/core/launch.cuh"
#include "cuda/small/gradient_tiles.cuh"
#include "cuda/small/reduced_loss.cuh"
#include "cuda/small/row_losses.cuh"
#include "cuda/small/row_scales.cuh"
#include "cuda/small/row_weights.cuh"
#include "cuda/small/similarity_tiles.cuh"

namespace msk::gpu {

// Similarities before their scales, and those; returns whether the embeddings had to be copied.
// Most batches are read as they lie. Of others, or when a row turns out to be of a size that its
// products would not bear, rows are brought to a common size first.
template <class P, typename Input>
MSK_DEVICE bool products_and_scales(const Problem& p) {
  if constexpr (std::is_same_v<typename P::Operand, Input>) {
    if (p.small.direct) {
      similarity_tiles<P>(p, false);
      row_scales<P>(p, p.rows, p.row_buffers, p.small.uncommon_rows);
      if (!p.self) row_scales<P>(p, p.columns, p.column_buffers, p.small.uncommon_columns);
      grid_barrier();
      if (!any_uncommon<P>(p)) return false;
    }
  }
  prepare<P, Input>(p, p.rows, p.row_buffers);
  if (!p.self) prepare<P, Input>(p, p.columns, p.column_buffers);
  grid_barrier();
  similarity_tiles<P>(p, true);
  grid_barrier();
  return true;
}

template <class P, typename Input>
MSK_DEVICE void loss_and_gradient(const Passes& passes) {
  const Problem& p = passes.given;
  const bool copied = products_and_scales<P, Input>(p);
  if (p.columns.count <= 256)
    row_losses<P, 8>(p);
  else
    row_losses<P, small_rows(sizeof(typename P::Scalar)) / 32>(p);
  grid_barrier();
  if (p.d_rows) row_weights<P>(p, true);
  if (p.d_columns) row_weights<P>(passes.exchanged, false);
  if (p.d_rows || p.d_columns) grid_barrier();
  // The last block is the first without a tile of the gradient.
  if (p.small.loss && blockIdx.x == gridDim.x - 1) reduced_loss<P, Input>(p);
  if (p.d_rows) gradient_tiles<P>(p, copied);
  if (p.d_columns) gradient_tiles<P>(passes.exchanged, copied);
}

// Every number has one owner and one order of summation, so the bits do not depend on the grid.
template <class P, typename Input>
MSK_KERNEL(kThreads<P>, 1)
small_kernel(const MSK_PARAMETER Passes passes) {
  loss_and_gradient<P, Input>(passes);
}

namespace small {

template <class P>
constexpr std::size_t kSharedBytes =
    StagedProduct<P, Right::rows>::kSharedBytes > StagedProduct<P, Right::columns>::kSharedBytes
        ? StagedProduct<P, Right::rows>::kSharedBytes
        : StagedProduct<P, Right::columns>::kSharedBytes;

// The other side's pass has its own similarities and weights.
inline Problem other_pass(const Problem& problem) {
  Problem other = gpu::exchanged(problem);
  other.similarities = problem.small.similarities;
  other.weights = problem.small.weights;
  other.inverse_weight_scales = problem.small.inverse_weight_scales;
  other.dot = problem.small.dot;
  return other;
}

template <class P, typename Input>
void launch(const Problem& p, int device, void* stream) {
  launch_cooperative<small_kernel<P, Input>>("small_kernel", p.blocks, kThreads<P>, kSharedBytes<P>,
                                             device, stream, Passes{p, other_pass(p)});
}

}  // namespace small

}  // namespace msk::gpu
