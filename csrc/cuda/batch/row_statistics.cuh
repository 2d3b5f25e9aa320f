// Third phase: hardest pairs, log-sum-exps, kept counts and loss of the rows of a panel.
#pragma once

#include "cuda/core/block_reduce.cuh"
#include "cuda/pairs/pass.cuh"
#include "cuda/pairs/row_finish.cuh"

namespace msk::gpu {

template <typename T>
struct Hardest {
  T positive, negative;
  bool finite;
  MSK_DEVICE Hardest exchanged(int mask) const {
    return {exchange(positive, mask), exchange(negative, mask), exchange(int(finite), mask) != 0};
  }
};

template <typename T>
struct KeptSums {
  T positive, negative;
  std::int32_t pos_kept, neg_kept;
  MSK_DEVICE KeptSums exchanged(int mask) const {
    return {exchange(positive, mask), exchange(negative, mask), exchange(pos_kept, mask),
            exchange(neg_kept, mask)};
  }
};

// Of row i, to all its threads. The similarities, of which a row's depth parts are summed, replace
// the first part.
template <class P>
MSK_DEVICE Hardest<typename P::Scalar> hardest_pairs(const Pass<P>& pass, std::int64_t first,
                                                     std::int64_t i,
                                                     typename P::Scalar max_positive_similarity,
                                                     Hardest<typename P::Scalar>* smem) {
  using Scalar = typename P::Scalar;
  Scalar* const row = pass.similarities + (i - first) * pass.width;
  const std::int64_t label = pass.rows.labels[i];
  Hardest<Scalar> hardest{kInfinity<Scalar>, -kInfinity<Scalar>, true};
  for (std::int64_t j = threadIdx.x; j < pass.columns.count; j += kThreads<P>) {
    const Scalar s = pass.similarity(first, i, j);
    row[j] = s;
    hardest.finite = hardest.finite && std::isfinite(s);
    if (pass.self_pair(i, j)) continue;
    if (pass.columns.labels[j] != label)
      hardest.negative = s > hardest.negative ? s : hardest.negative;
    else if (s < max_positive_similarity)
      hardest.positive = s < hardest.positive ? s : hardest.positive;
  }
  return block_reduce<kWarps<P>>(
      hardest, smem, [](const Hardest<Scalar>& a, const Hardest<Scalar>& b) {
        return Hardest<Scalar>{a.positive < b.positive ? a.positive : b.positive,
                               a.negative > b.negative ? a.negative : b.negative,
                               a.finite && b.finite};
      });
}

// A similarity, and how many negatives of a row have it.
template <typename T>
struct Tied {
  T value;
  std::int32_t number;
  MSK_DEVICE Tied exchanged(int mask) const {
    return {exchange(value, mask), exchange(number, mask)};
  }
  MSK_DEVICE static Tied greater(const Tied& a, const Tied& b) {
    if (a.value == b.value) return {a.value, a.number + b.number};
    return a.value > b.value ? a : b;
  }
};

// After hardest_pairs, to all threads of row i: the k-th hardest negative, -inf of fewer. Each
// thread looks at the pairs that it wrote.
template <class P>
MSK_DEVICE typename P::Scalar kth_hardest_negative(const Pass<P>& pass, std::int64_t first,
                                                   std::int64_t i, int k,
                                                   Tied<typename P::Scalar>* smem) {
  using Scalar = typename P::Scalar;
  const Scalar* const row = pass.similarities + (i - first) * pass.width;
  const std::int64_t label = pass.rows.labels[i];
  Tied<Scalar> next{kInfinity<Scalar>, 0};
  for (int known = 0; known < k; known += next.number) {
    const Scalar bound = next.value;
    next = {-kInfinity<Scalar>, 0};
    for (std::int64_t j = threadIdx.x; j < pass.columns.count; j += kThreads<P>)
      if (row[j] < bound && pass.columns.labels[j] != label && !pass.self_pair(i, j))
        next = Tied<Scalar>::greater(next, {row[j], 1});
    __syncthreads();  // the smem may still be read for the one before
    next = block_reduce<kWarps<P>>(next, smem, Tied<Scalar>::greater);
    if (!next.number) break;
  }
  return next.value;
}

// One block a row.
template <class P>
MSK_PHASE void row_statistics(const Problem& p, std::int64_t first) {
  const Pass<P> pass(p);
  using Scalar = typename P::Scalar;
  auto* const hardest_smem = reinterpret_cast<Hardest<Scalar>*>(shared_memory());
  auto* const sums_smem = reinterpret_cast<KeptSums<Scalar>*>(hardest_smem + kWarps<P>);
  const MultiSimilarity<Scalar>& loss = pass.loss;
  const std::int64_t last = first + pass.height(first);
  for (std::int64_t i = first + blockIdx.x; i < last && i < pass.rows.count; i += gridDim.x) {
    const Scalar* const row = pass.similarities + (i - first) * pass.width;
    const std::int64_t label = pass.rows.labels[i];
    const Hardest<Scalar> hardest =
        hardest_pairs(pass, first, i, loss.max_positive_similarity, hardest_smem);
    const Scalar neg_threshold = loss.negative_threshold(hardest.positive);
    const Scalar pos_threshold = loss.positive_threshold(hardest.negative);
    KeptSums<Scalar> sums{Scalar(0), Scalar(0), 0, 0};
    for (std::int64_t j = threadIdx.x; j < pass.columns.count; j += kThreads<P>) {
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
    sums = block_reduce<kWarps<P>>(
        sums, sums_smem, [](const KeptSums<Scalar>& a, const KeptSums<Scalar>& b) {
          return KeptSums<Scalar>{a.positive + b.positive, a.negative + b.negative,
                                  a.pos_kept + b.pos_kept, a.neg_kept + b.neg_kept};
        });
    if (threadIdx.x != 0) continue;
    finish_row<P>(p, pass, loss, i,
                  {hardest.positive, hardest.negative, sums.positive, sums.negative, sums.pos_kept,
                   sums.neg_kept, hardest.finite});
  }
}

}  // namespace msk::gpu
