// Statistics that the caller gives, as terms of a side.
#pragma once

#include "cuda/pairs/side.cuh"

namespace msk::gpu {

// The term of row i; returns the incoming gradient of its loss, NaN if the loss is.
template <class P>
MSK_DEVICE typename P::Scalar read_term_of(const SideInput& input, const Side<P>& side,
                                           const TermInput& in, const Options& options,
                                           std::int64_t i) {
  using Scalar = typename P::Scalar;
  const std::int64_t sample = input.sample(i);
  const auto of = [&](const void* array) { return static_cast<const Scalar*>(array)[sample]; };
  side.set_term(i, loss_of<Scalar>(options), of(in.hardest_positive), of(in.hardest_negative),
                of(in.pos_lse), of(in.neg_lse), of(in.dloss));
  return side.dloss[i];
}

template <class P>
MSK_PHASE void read_term(const Problem& p, const SideInput& input, const SideBuffers& buffers,
                         const TermInput& in) {
  if (!in.dloss) return;
  const Side<P> side(input, buffers, p.padded_depth);
  const std::int64_t start = std::int64_t(blockIdx.x) * kThreads<P> + threadIdx.x;
  for (std::int64_t i = start; i < side.count; i += std::int64_t(gridDim.x) * kThreads<P>)
    read_term_of<P>(input, side, in, p.options, i);
}

}  // namespace msk::gpu
