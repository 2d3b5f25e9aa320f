// Third phase for the triplet loss: lists, losses and terms of the rows of a panel.
#pragma once

#include "cuda/batch/ranks.cuh"
#include "cuda/batch/row_statistics.cuh"

namespace msk::gpu {

struct KeptNumbers {
  std::int32_t positive, negative;
  MSK_DEVICE KeptNumbers exchanged(int mask) const {
    return {exchange(positive, mask), exchange(negative, mask)};
  }
  MSK_DEVICE static KeptNumbers plus(const KeptNumbers& a, const KeptNumbers& b) {
    return {a.positive + b.positive, a.negative + b.negative};
  }
};

template <typename T>
struct Reach {
  T sum;
  std::int32_t number;
  MSK_DEVICE Reach exchanged(int mask) const {
    return {exchange(sum, mask), exchange(number, mask)};
  }
  MSK_DEVICE static Reach plus(const Reach& a, const Reach& b) {
    return {a.sum + b.sum, a.number + b.number};
  }
};

// One block a row: hardest pairs, then positives are listed, then negatives compared with each.
template <class P>
MSK_PHASE void ranked_statistics(const Problem& p, std::int64_t first) {
  const Pass<P> pass(p);
  using Scalar = typename P::Scalar;
  const RankedLoss<Scalar> loss(p);
  auto* const hardest_smem = reinterpret_cast<Hardest<Scalar>*>(shared_memory());
  auto* const reach_smem = reinterpret_cast<Reach<Scalar>*>(hardest_smem + kWarps<P>);
  auto* const kept_smem = reinterpret_cast<KeptNumbers*>(reach_smem + kWarps<P>);
  auto* const tied_smem = reinterpret_cast<Tied<Scalar>*>(kept_smem + kWarps<P>);
  const std::int64_t last = first + pass.height(first), stride = padded<P>(pass.rows.count);
  for (std::int64_t i = first + blockIdx.x; i < last && i < pass.rows.count; i += gridDim.x) {
    const Scalar* const row = pass.similarities + (i - first) * pass.width;
    const std::int64_t label = pass.rows.labels[i];
    Scalar* const threshold = pass.rows.threshold + i;
    for (int k = threadIdx.x; k < loss.ranks; k += kThreads<P>)
      threshold[k * stride] = kInfinity<Scalar>;
    Hardest<Scalar> hardest =  // its barrier is one for the thresholds too
        hardest_pairs(pass, first, i, loss.max_positive_similarity, hardest_smem);
    const Scalar most = hardest.negative;
    if (const int k = loss.mining.hardest_negatives(); k > 1)
      hardest.negative = kth_hardest_negative(pass, first, i, k, tied_smem);
    FamilyTerm<Scalar> term = bounds_of<Scalar>(loss, hardest.positive, hardest.negative);
    const auto keeps_negative = [&](std::int64_t j) {
      return pass.columns.labels[j] != label && !pass.self_pair(i, j) && row[j] > term.neg_above &&
             row[j] < term.neg_below;
    };
    KeptNumbers kept{0, 0};
    for (std::int64_t j = threadIdx.x; j < pass.columns.count; j += kThreads<P>) {
      kept.negative += keeps_negative(j);
      if (pass.columns.labels[j] != label || pass.self_pair(i, j)) continue;
      if (!(row[j] < loss.max_positive_similarity && -row[j] > term.pos_above &&
            -row[j] < term.pos_below))
        continue;
      ++kept.positive;
      const int rank = loss.rank(p.ordinals[j]);
      if (rank >= 0) threshold[rank * stride] = row[j] - loss.margin;
    }
    kept = block_reduce<kWarps<P>>(kept, kept_smem, KeptNumbers::plus);
    Scalar sum = Scalar(0), number = Scalar(0), least = kInfinity<Scalar>;
    for (int k = 0; k < loss.ranks; ++k) {
      const Scalar bound = threshold[k * stride];
      least = bound < least ? bound : least;
      Reach<Scalar> reach{Scalar(0), 0};
      if (most >= bound) {  // for all threads or for none
        for (std::int64_t j = threadIdx.x; j < pass.columns.count; j += kThreads<P>) {
          if (!(row[j] >= bound) || !keeps_negative(j)) continue;
          reach.sum += row[j] - bound;
          ++reach.number;
        }
        __syncthreads();  // the smem may still be read for the rank before
        reach = block_reduce<kWarps<P>>(reach, reach_smem, Reach<Scalar>::plus);
      }
      if (threadIdx.x == 0) pass.rows.reached[k * stride + i] = reach.number;
      sum += reach.sum;
      number += Scalar(reach.number);
    }
    if (threadIdx.x != 0) continue;
    RowSums<Scalar> sums{};
    sums.negative = sum;
    sums.moment = number;
    sums.pos_kept = Scalar(kept.positive);
    sums.neg_kept = Scalar(kept.negative);
    if (writes_statistics(p)) {
      Scalar neg_sum = sum, pos_moment = number;
      if (loss.passed) {
        neg_sum += static_cast<Scalar*>(p.statistics.neg_sum)[i];
        pos_moment += static_cast<Scalar*>(p.statistics.pos_moment)[i];
      }
      write_statistics<Scalar>(
          p.statistics, i,
          {hardest.positive, hardest.negative, kept.positive, kept.negative, hardest.finite},
          Scalar(0), neg_sum, pos_moment);
    }
    if (p.job == Job::statistics) continue;
    const RowTerm<Scalar> found = loss.finish(sums);
    const Scalar poison = hardest.finite ? Scalar(0) : kNaN<Scalar>;
    Scalar& row_loss = static_cast<Scalar*>(p.row_loss)[i];
    row_loss = (loss.passed ? row_loss : Scalar(0)) + found.loss + poison;
    p.kept[i] = hardest.finite ? std::int64_t(kept.positive) + kept.negative : 0;
    const Scalar dloss = (p.dloss ? static_cast<const Scalar*>(p.dloss)[i] : Scalar(1)) + poison;
    term.finish(found, dloss, hardest.finite);
    pass.rows.set_family_term(i, term);
    pass.rows.least_threshold[i] = least;
  }
}

}  // namespace msk::gpu
