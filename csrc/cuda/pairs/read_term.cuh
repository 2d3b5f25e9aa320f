// Statistics that the caller gives, as terms of a side.
#pragma once

#include "cuda/pairs/side.cuh"

namespace msk::gpu {

// The term of row i of the MS loss; returns the incoming gradient of its loss, NaN if the loss is.
template <class P>
MSK_DEVICE typename P::Scalar read_term_of(const Problem& p, const SideInput& input,
                                           const Side<P>& side, const TermInput& in,
                                           std::int64_t i) {
  using Scalar = typename P::Scalar;
  const std::int64_t sample = input.sample(i);
  const auto of = [&](const void* array) { return static_cast<const Scalar*>(array)[sample]; };
  side.set_term(i, loss_of<Scalar>(p), of(in.hardest_positive), of(in.hardest_negative),
                of(in.pos_sum), of(in.neg_sum), of(in.dloss));
  if (p.weight_sums && (std::isnan(of(in.pos_sum)) || std::isnan(of(in.neg_sum))))
    side.keep_nothing(i);
  return side.dloss[i];
}

// The same of any other loss.
template <class P>
MSK_DEVICE void read_family_term_of(const Problem& p, const Side<P>& side, const TermInput& in,
                                    std::int64_t i) {
  using Scalar = typename P::Scalar;
  const PairLoss<Scalar> loss = pair_loss_of<Scalar>(p);
  const auto of = [&](const void* array) { return static_cast<const Scalar*>(array)[i]; };
  const RowSums<Scalar> sums{of(in.pos_sum), of(in.neg_sum), of(in.pos_moment),
                             Scalar(in.pos_kept[i]), Scalar(in.neg_kept[i])};
  FamilyTerm<Scalar> term = bounds_of(loss, of(in.hardest_positive), of(in.hardest_negative));
  const bool finite = !std::isnan(sums.negative);
  term.finish(loss.finish(sums), of(in.dloss), finite);
  // Its weights are no part of a sum: the loss says whether it counts.
  if (p.weight_sums && !finite) term.keep_nothing();
  side.set_family_term(i, term);
}

template <class P>
MSK_PHASE void read_term(const Problem& p, const SideInput& input, const SideBuffers& buffers,
                         const TermInput& in) {
  if (!in.dloss) return;
  const Side<P> side(input, buffers, p.padded_depth);
  const std::int64_t start = std::int64_t(blockIdx.x) * kThreads<P> + threadIdx.x;
  for (std::int64_t i = start; i < side.count; i += std::int64_t(gridDim.x) * kThreads<P>) {
    if (p.family)
      read_family_term_of<P>(p, side, in, i);
    else
      read_term_of<P>(p, input, side, in, i);
  }
}

}  // namespace msk::gpu
