// All that follows for a row from sums over its kept pairs: statistics, loss and term.
#pragma once

#include "cuda/pairs/write_statistics.cuh"

namespace msk::gpu {

// Sums of exp(scale (S - hardest)): the hardest pair is kept when any is, so the greatest exponent
// of a kept pair is 0 and nothing overflows for any beta.
template <typename T>
struct KeptPairs {
  T hardest_positive, hardest_negative, positive, negative;
  std::int32_t pos_kept, neg_kept;
  bool finite;  // every similarity is
};

// By the thread that owns row i; returns its neg_lse. A row that is not finite keeps nothing.
template <class P>
MSK_DEVICE typename P::Scalar finish_row(const Problem& p, const Pairs<P>& pairs,
                                         const MultiSimilarity<typename P::Scalar>& loss,
                                         std::int64_t i,
                                         const KeptPairs<typename P::Scalar>& found) {
  using Scalar = typename P::Scalar;
  const Scalar poison = found.finite ? Scalar(0) : kNaN<Scalar>;
  Scalar pos_lse = -kInfinity<Scalar>, neg_lse = -kInfinity<Scalar>;
  if (found.pos_kept) pos_lse = loss.pos_lse(found.hardest_positive, found.positive);
  if (found.neg_kept) neg_lse = loss.neg_lse(found.hardest_negative, found.negative);
  pos_lse += poison, neg_lse += poison;
  const std::int64_t sample = p.rows.sample(i);
  if (writes_statistics(p))
    write_statistics<Scalar>(p.statistics, sample,
                             {found.hardest_positive, found.hardest_negative, found.pos_kept,
                              found.neg_kept, found.finite},
                             pos_lse, neg_lse, Scalar(0));
  if (p.job == Job::statistics) return neg_lse;
  static_cast<Scalar*>(p.row_loss)[sample] = loss.row_loss(pos_lse, neg_lse);
  p.kept[sample] = found.finite ? std::int64_t(found.pos_kept) + found.neg_kept : 0;
  const Scalar dloss = p.dloss ? static_cast<const Scalar*>(p.dloss)[sample] : Scalar(1);
  pairs.rows.set_term(i, loss, found.hardest_positive, found.hardest_negative, pos_lse, neg_lse,
                      dloss);
  return neg_lse;
}

}  // namespace msk::gpu
