// The loss of the batch from those of its rows.
#pragma once

#include "cuda/core/block_reduce.cuh"
#include "cuda/pairs/problem.h"

namespace msk::gpu {

// By one block, after a barrier of the grid, in an order that hangs on nothing but the number of
// rows. Gradients are those of the sum or of the mean over all rows; over those with kept pairs
// they are `factor` times what is written, for then no row knew their number.
template <class P, typename Input>
MSK_PHASE void reduced_loss(const Problem& p) {
  using Scalar = typename P::Scalar;
  const Scalar* const losses = static_cast<const Scalar*>(p.row_loss);
  Sum<Scalar> total{Scalar(0)};
  Sum<int> valid{0};
  for (int i = threadIdx.x; i < p.rows.count; i += kThreads<P>) {
    total.value += losses[i];
    valid.value += p.kept[i] > 0;
  }
  auto* const totals = reinterpret_cast<Sum<Scalar>*>(shared_memory());
  auto* const counts = reinterpret_cast<Sum<int>*>(totals + kWarps<P>);
  total = block_reduce<kWarps<P>>(total, totals, Sum<Scalar>::plus);
  valid = block_reduce<kWarps<P>>(valid, counts, Sum<int>::plus);
  if (threadIdx.x != 0) return;
  std::int64_t count = 1;
  if (p.small.reduction == Reduction::mean) count = p.rows.count;
  if (p.small.reduction == Reduction::mean_valid) count = valid.value;
  const Scalar parts = Scalar(count > 1 ? count : 1);
  const Scalar loss = total.value / parts;
  if (p.small.wide)
    *static_cast<Scalar*>(p.small.loss) = loss;
  else
    *static_cast<Input*>(p.small.loss) = narrow<Input>(loss);
  if (p.small.factor) *static_cast<Scalar*>(p.small.factor) = Scalar(1) / parts;
}

}  // namespace msk::gpu
