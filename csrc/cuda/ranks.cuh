// The triplet loss compares every kept negative of an anchor with every kept positive: an anchor
// lists a threshold for each positive, and counts the negatives that reach it.
//
// kRankSlots positives of each anchor go at once. Only the GPU knows how many there are: launches
// for as many as there could be follow each other, and those without any return at once.
#pragma once

#include "cuda/block_reduce.cuh"
#include "cuda/side.cuh"

namespace msk::gpu {

// A rule of which one launch sees some of the positives.
template <typename T>
struct RankedLoss : PairLoss<T> {
  std::int64_t passed;  // candidates of each class that earlier launches had
  int slots;

  MSK_DEVICE explicit RankedLoss(const Problem& p)
      : PairLoss<T>(p.rules, p.options.max_positive_similarity),
        passed(std::int64_t(p.round) * p.rank_slots),
        slots(p.rank_slots) {}
  // Of a candidate; -1 if another launch has it.
  MSK_DEVICE int slot(std::int32_t ordinal) const {
    const std::int64_t slot = ordinal - passed;
    return slot >= 0 && slot < slots ? int(slot) : -1;
  }
};

// What an anchor adds to the weights of its pairs.
template <typename T>
struct RankedTerm {
  FamilyTerm<T> term;
  const T* threshold;  // of this anchor, the next slot at `stride`
  const std::int32_t* reached;
  std::int64_t stride;

  // `ordinal`: of the candidate within its class.
  MSK_DEVICE T weight(const RankedLoss<T>& loss, T s, bool is_positive, bool is_negative,
                      std::int32_t ordinal) const {
    std::int32_t number = 0;
    if (is_negative && s > term.neg_above && s < term.neg_below) {
      for (int k = 0; k < loss.slots; ++k) number += s >= threshold[k * stride];
      if (number) return T(number) * term.negative.coefficient;
    }
    if (is_positive && -s > term.pos_above && -s < term.pos_below) {
      const int slot = loss.slot(ordinal);
      if (slot >= 0) number = reached[slot * stride];
      if (number) return -T(number) * term.positive.coefficient;
    }
    // NaN for a row whose loss is NaN, whatever is kept.
    return term.negative.coefficient - term.negative.coefficient;
  }
};

// The side's anchors have their lists in `room`.
template <class P>
MSK_DEVICE RankedTerm<typename P::Scalar> ranked_term(const Side<P>& side, std::int64_t i) {
  return {side.family_term(i), side.threshold + i, side.reached + i, padded(side.count)};
}

// Number of each candidate among those of its class, and which launches have something to do.
template <class P>
MSK_PHASE void count_classes(const Problem& p) {
  const Side<P> side(p.columns, p.column_room, p.padded_depth);
  auto* const room = reinterpret_cast<Sum<std::int32_t>*>(shared_memory());
  for (std::int64_t j = blockIdx.x; j < side.count; j += gridDim.x) {
    Sum<std::int32_t> before{0};
    for (std::int64_t k = threadIdx.x; k < j; k += kThreads)
      before.value += side.labels[k] == side.labels[j];
    __syncthreads();  // the room may still be read for the candidate before
    before = block_reduce(before, room, Sum<std::int32_t>::plus);
    if (threadIdx.x != 0) continue;
    side.ordinal[j] = before.value;
    // Several blocks may write it: always a 1.
    p.wanted_rounds[before.value / p.rank_slots] = 1;
  }
}

template <class P>
MSK_PHASE void clear_rounds(const Problem& p) {
  const std::int64_t start = std::int64_t(blockIdx.x) * kThreads + threadIdx.x;
  for (std::int64_t r = start; r < p.rounds; r += std::int64_t(gridDim.x) * kThreads)
    p.wanted_rounds[r] = 0;
}

}  // namespace msk::gpu
