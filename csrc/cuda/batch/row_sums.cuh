// What the weights of pairs add up to, where options learn: of the rows of a panel, and of all.
#pragma once

#include "cuda/pairs/pass.cuh"
#include "cuda/pairs/weight_sums.cuh"

namespace msk::gpu {

// One block a row. A phase of its own, so that the weights of others cost no register more.
template <class P>
MSK_PHASE void row_sums(const Problem& p, std::int64_t first) {
  const Pass<P> pass(p);
  using Scalar = typename P::Scalar;
  const PairLoss<Scalar> loss = pair_loss_of<Scalar>(p);
  const bool by_row = p.terms & row_term;
  // Of one side alone, read for each pair anew: of double numbers registers are few.
  const Side<P> anchors = by_row ? pass.rows : pass.columns;
  auto* const smem = reinterpret_cast<WeightSums*>(shared_memory());
  const std::int64_t last = first + pass.height(first);
  for (std::int64_t i = first + blockIdx.x; i < last && i < pass.rows.count; i += gridDim.x) {
    const std::int64_t label = pass.rows.labels[i];
    WeightSums sums{};
    for (std::int64_t j = threadIdx.x; j < pass.columns.count; j += kThreads<P>) {
      const Scalar s = pass.similarity(first, i, j);
      const bool negative = label != pass.columns.labels[j];
      if (pass.self_pair(i, j) || !(negative || s < loss.max_positive_similarity)) continue;
      sums.add(loss, anchors.family_term(by_row ? i : j), s, negative);
    }
    __syncthreads();  // the smem may still be read for the row before
    sums = block_reduce<kWarps<P>>(sums, smem, WeightSums::plus);
    if (threadIdx.x == 0) static_cast<WeightSums*>(p.row_sums)[i] = sums;
  }
}

// By the first block: each row had its own before the last barrier of the grid.
template <class P>
MSK_PHASE void add_row_sums(const Problem& p) {
  if (blockIdx.x != 0) return;
  __syncthreads();  // the smem may still be read for a product
  write_total<P>(p, p.rows.count);
}

}  // namespace msk::gpu
