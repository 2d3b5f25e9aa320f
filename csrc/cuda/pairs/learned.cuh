// Options of the weighting rule that learn: they lie on the device, where each phase that builds
// its rules reads them.
#pragma once

#include <type_traits>

#include "cuda/core/ptx.cuh"
#include "cuda/pairs/problem.h"
#include "rules/pair_loss.h"

namespace msk::gpu {

// The loss of any rules.
template <typename T>
MSK_DEVICE PairLoss<T> pair_loss_of(const Problem& p) {
  Rules rules = p.rules;
  if (const T* const values = static_cast<const T*>(p.option_values))
    for (int k = 0; k < kMostOptions; ++k)
      if (k < p.option_count) rules.weighting_options[k] = values[k];
  return PairLoss<T>(rules, p.options.max_positive_similarity);
}

template <typename T>
MSK_DEVICE const MultiSimilarity<T>& loss_of(const Problem& p) {
  if constexpr (std::is_same_v<T, float>)
    return p.loss_in_float;
  else
    return p.loss_in_double;
}

// The same where its options may learn.
template <typename T>
MSK_DEVICE MultiSimilarity<T> learned_loss_of(const Problem& p) {
  MultiSimilarity<T> loss = loss_of<T>(p);
  if (const T* const values = static_cast<const T*>(p.option_values))
    loss.alpha = values[0], loss.beta = values[1], loss.base = values[2];
  return loss;
}

// For a kernel of its own where options learn: who knows that they are numbers looks for no others.
template <typename T>
MSK_DEVICE const MultiSimilarity<T>& loss_in(const Problem& p, std::false_type) {
  return loss_of<T>(p);
}
template <typename T>
MSK_DEVICE MultiSimilarity<T> loss_in(const Problem& p, std::true_type) {
  return learned_loss_of<T>(p);
}

}  // namespace msk::gpu
