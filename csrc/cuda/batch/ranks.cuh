// The triplet loss compares every kept negative of an anchor with every kept positive: an anchor
// lists a threshold for each positive, and counts the negatives that reach it.
//
// kRanksPerRound positives of each anchor go at once, in as many rounds as the largest class needs.
// Only the GPU knows how many that are, so the kernel itself begins another.
#pragma once

#include "cuda/core/block_reduce.cuh"
#include "cuda/core/grid_barrier.cuh"
#include "cuda/pairs/side.cuh"

namespace msk::gpu {

// A rule of which one round sees some of the positives.
template <typename T>
struct RankedLoss : PairLoss<T> {
  std::int64_t passed;  // candidates of each class that earlier rounds had
  int ranks;

  MSK_DEVICE explicit RankedLoss(const Problem& p)
      : PairLoss<T>(pair_loss_of<T>(p)),
        passed(*p.passed),
        ranks(int(*p.most_ranks - passed < p.ranks_per_round ? *p.most_ranks - passed
                                                             : p.ranks_per_round)) {}
  // Of a candidate; -1 if another round has it.
  MSK_DEVICE int rank(std::int64_t ordinal) const {
    const std::int64_t rank = ordinal - passed;
    return rank >= 0 && rank < ranks ? int(rank) : -1;
  }
};

// Later rounds add to what the first one wrote.
MSK_DEVICE bool first_round(const Problem& p) { return !p.ranked || *p.passed == 0; }

// Whether some class has candidates left; then it is their round. A barrier on either side: other
// blocks may still be in the last one.
inline MSK_PHASE bool next_round(const Problem& p) {
  grid_barrier();
  if (blockIdx.x == 0 && threadIdx.x == 0) *p.passed += p.ranks_per_round;
  grid_barrier();
  return *p.passed < *p.most_ranks;
}

// What an anchor adds to the weights of its pairs.
template <typename T>
struct RankedTerm {
  FamilyTerm<T> term;
  T least_threshold;
  const T* threshold;  // of this anchor, the next rank at `stride`
  const std::int32_t* reached;
  std::int64_t stride;

  // `ordinal`: of the candidate within its class.
  MSK_DEVICE T weight(const RankedLoss<T>& loss, T s, bool is_positive, bool is_negative,
                      std::int64_t ordinal) const {
    std::int32_t number = 0;
    if (is_negative && s >= least_threshold && s > term.neg_above && s < term.neg_below) {
      for (int k = 0; k < loss.ranks; ++k) number += s >= threshold[k * stride];
      if (number) return T(number) * term.negative.coefficient;
    }
    if (is_positive && -s > term.pos_above && -s < term.pos_below) {
      const int rank = loss.rank(ordinal);
      if (rank >= 0) number = reached[rank * stride];
      if (number) return -T(number) * term.positive.coefficient;
    }
    // NaN for a row whose loss is NaN, whatever is kept.
    return term.negative.coefficient - term.negative.coefficient;
  }
};

// Of anchor i, whose lists are in the buffers of the side.
template <class P>
MSK_DEVICE RankedTerm<typename P::Scalar> ranked_term(const Side<P>& side, std::int64_t i) {
  return {side.family_term(i), side.least_threshold[i], side.threshold + i, side.reached + i,
          padded<P>(side.count)};
}

}  // namespace msk::gpu
