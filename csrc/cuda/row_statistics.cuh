// Third phase: hardest pairs, log-sum-exps, kept counts and loss of the rows of a panel.
#pragma once

#include "cuda/block_reduce.cuh"
#include "cuda/side.cuh"

namespace msk::gpu {

template <typename T>
struct Hardest {
  T positive, negative;
  bool finite;
  MSK_DEVICE Hardest exchanged(int mask) const {
    return {exchange(positive, mask), exchange(negative, mask), exchange(int(finite), mask) != 0};
  }
};

// Sums of exp(scale (S - hardest)): the hardest pair is kept when any is, so the greatest exponent
// of a kept pair is 0 and nothing overflows for any beta.
template <typename T>
struct KeptSums {
  T positive, negative;
  std::int32_t pos_kept, neg_kept;
  MSK_DEVICE KeptSums exchanged(int mask) const {
    return {exchange(positive, mask), exchange(negative, mask), exchange(pos_kept, mask),
            exchange(neg_kept, mask)};
  }
};

// One block a row; the sums of a row's depth parts replace the first part.
template <class P>
MSK_PHASE void row_statistics(const Problem& p, std::int64_t first) {
  const Pass<P> pass(p);
  using Scalar = typename P::Scalar;
  auto* const hardest_room = reinterpret_cast<Hardest<Scalar>*>(shared_memory());
  auto* const sums_room = reinterpret_cast<KeptSums<Scalar>*>(hardest_room + kThreads / 32);
  const MultiSimilarity<Scalar>& loss = pass.loss;
  const std::int64_t last = first + pass.height(first);
  for (std::int64_t i = first + blockIdx.x; i < last && i < pass.rows.count; i += gridDim.x) {
    Scalar* const row = pass.similarities + (i - first) * pass.width;
    const std::int64_t label = pass.rows.labels[i];
    Hardest<Scalar> hardest{kInfinity<Scalar>, -kInfinity<Scalar>, true};
    for (std::int64_t j = threadIdx.x; j < pass.columns.count; j += kThreads) {
      const Scalar s = pass.similarity(first, i, j);
      row[j] = s;
      hardest.finite = hardest.finite && std::isfinite(s);
      if (pass.self_pair(i, j)) continue;
      if (pass.columns.labels[j] != label)
        hardest.negative = s > hardest.negative ? s : hardest.negative;
      else if (s < loss.max_positive_similarity)
        hardest.positive = s < hardest.positive ? s : hardest.positive;
    }
    __syncthreads();  // both rooms may still be read for the row before
    hardest =
        block_reduce(hardest, hardest_room, [](const Hardest<Scalar>& a, const Hardest<Scalar>& b) {
          return Hardest<Scalar>{a.positive < b.positive ? a.positive : b.positive,
                                 a.negative > b.negative ? a.negative : b.negative,
                                 a.finite && b.finite};
        });
    const Scalar neg_threshold = loss.negative_threshold(hardest.positive);
    const Scalar pos_threshold = loss.positive_threshold(hardest.negative);
    KeptSums<Scalar> sums{Scalar(0), Scalar(0), 0, 0};
    for (std::int64_t j = threadIdx.x; j < pass.columns.count; j += kThreads) {
      if (pass.self_pair(i, j)) continue;
      const Scalar s = row[j];
      if (pass.columns.labels[j] != label) {
        if (!(s > neg_threshold)) continue;
        sums.negative += std::exp(loss.beta * (s - hardest.negative));
        ++sums.neg_kept;
      } else if (s < pos_threshold && s < loss.max_positive_similarity) {
        sums.positive += std::exp(loss.alpha * (hardest.positive - s));
        ++sums.pos_kept;
      }
    }
    sums = block_reduce(sums, sums_room, [](const KeptSums<Scalar>& a, const KeptSums<Scalar>& b) {
      return KeptSums<Scalar>{a.positive + b.positive, a.negative + b.negative,
                              a.pos_kept + b.pos_kept, a.neg_kept + b.neg_kept};
    });
    if (threadIdx.x != 0) continue;
    const Scalar poison = hardest.finite ? Scalar(0) : kNaN<Scalar>;
    const Scalar pos_lse =
        (sums.pos_kept ? loss.pos_lse(hardest.positive, sums.positive) : -kInfinity<Scalar>)+poison;
    const Scalar neg_lse =
        (sums.neg_kept ? loss.neg_lse(hardest.negative, sums.negative) : -kInfinity<Scalar>)+poison;
    if (p.job == Job::statistics) {
      static_cast<Scalar*>(p.statistics.hardest_positive)[i] = hardest.positive + poison;
      static_cast<Scalar*>(p.statistics.hardest_negative)[i] = hardest.negative + poison;
      static_cast<Scalar*>(p.statistics.pos_lse)[i] = pos_lse;
      static_cast<Scalar*>(p.statistics.neg_lse)[i] = neg_lse;
      p.statistics.pos_kept[i] = sums.pos_kept;
      p.statistics.neg_kept[i] = sums.neg_kept;
    } else {
      static_cast<Scalar*>(p.row_loss)[i] = loss.row_loss(pos_lse, neg_lse);
      p.kept[i] = std::int64_t(sums.pos_kept) + sums.neg_kept;
      pass.rows.set_term(i, loss, hardest.positive, hardest.negative, pos_lse, neg_lse, Scalar(1));
    }
  }
}

}  // namespace msk::gpu
