// Fourth phase: the weights of a panel of rows, as the left operand of the gradient's product.
#pragma once

#include "cuda/batch/ranks.cuh"
#include "cuda/core/block_reduce.cuh"
#include "cuda/core/half_range.cuh"
#include "cuda/pairs/pass.cuh"

namespace msk::gpu {

// What anchor k adds to a pair with candidate j of the other side.
template <class P>
MSK_DEVICE Term<typename P::Scalar> term_for(const MultiSimilarity<typename P::Scalar>&,
                                             const Side<P>& side, std::int64_t k) {
  return side.term(k);
}
template <class P>
MSK_DEVICE FamilyTerm<typename P::Scalar> term_for(const PairLoss<typename P::Scalar>&,
                                                   const Side<P>& side, std::int64_t k) {
  return side.family_term(k);
}
template <class P>
MSK_DEVICE RankedTerm<typename P::Scalar> term_for(const RankedLoss<typename P::Scalar>&,
                                                   const Side<P>& side, std::int64_t k) {
  return ranked_term(side, k);
}
template <class AnyTerm, class Loss, typename T>
MSK_DEVICE T weight_for(const AnyTerm& term, const Loss& loss, T s, bool positive, bool negative,
                        const std::int64_t*, std::int64_t) {
  return term.weight(loss, s, positive, negative);
}
template <typename T>
MSK_DEVICE T weight_for(const RankedTerm<T>& term, const RankedLoss<T>& loss, T s, bool positive,
                        bool negative, const std::int64_t* ordinals, std::int64_t j) {
  return term.weight(loss, s, positive, negative, positive ? ordinals[j] : 0);
}

// One block a row. The weights include the scale of their column, so that they multiply copies.
// `finished`: the panel already holds similarities (row_statistics put them there).
template <class P, class Loss>
MSK_PHASE void pair_weights(const Problem& p, const Loss& loss, std::int64_t first, bool finished) {
  const Pass<P> pass(p);
  const bool by_row = p.terms & row_term, by_column = p.terms & column_term;
  using Scalar = typename P::Scalar;
  using Operand = typename P::Operand;
  auto* const greatest_smem = reinterpret_cast<Greatest<Scalar>*>(shared_memory());
  auto* const sum_smem = reinterpret_cast<Sum<Scalar>*>(greatest_smem + kWarps<P>);
  for (std::int64_t r = blockIdx.x; r < pass.height(first); r += gridDim.x) {
    const std::int64_t i = first + r;
    const bool present = i < pass.rows.count;
    const std::int64_t label = present ? pass.rows.labels[i] : 0;
    decltype(term_for(loss, pass.rows, i)) own{};
    if (by_row && present) own = term_for(loss, pass.rows, i);
    Scalar* const row = pass.similarities + r * pass.width;
    Operand* const out = pass.weights + r * pass.width;
    const auto weight = [&](std::int64_t j, Scalar s) {
      const bool same = label == pass.columns.labels[j], self = pass.self_pair(i, j);
      const bool positive = same && !self && s < loss.max_positive_similarity;
      const bool negative = !same && !self;
      Scalar w = Scalar(0);
      if (by_row) w += weight_for(own, loss, s, positive, negative, p.ordinals, j);
      if (by_column)
        w +=
            weight_for(term_for(loss, pass.columns, j), loss, s, positive, negative, p.ordinals, i);
      return through_distance(pass.distance, w, s) * pass.columns.scale[j];
    };
    const std::int64_t filled = present ? pass.columns.count : 0;
    Scalar weight_scale = Scalar(1);
    __syncthreads();  // the smem may still be read for the row before
    if constexpr (kFewExponents<Operand>) {
      Greatest<Scalar> most{Scalar(0)};
      for (std::int64_t j = threadIdx.x; j < filled; j += kThreads<P>) {
        const Scalar s = finished ? row[j] : pass.similarity(first, i, j);
        most.value = std::fmax(most.value, std::fabs(weight(j, s)));
      }
      weight_scale = weight_scale_of(
          block_reduce<kWarps<P>>(most, greatest_smem, Greatest<Scalar>::greater).value);
    }
    Sum<Scalar> dot{Scalar(0)};
    for (std::int64_t j = threadIdx.x; j < pass.width; j += kThreads<P>) {
      if (j >= filled) {
        out[j] = narrow<Operand>(Scalar(0));
        continue;
      }
      const Scalar s = finished ? row[j] : pass.similarity(first, i, j);
      out[j] = narrow<Operand>(weight(j, s) * weight_scale);
      // Of the rounded weights: then the projection takes out exactly what they put in.
      dot.value += P::as_read(out[j]) * (s / pass.columns.scale[j]);
    }
    dot = block_reduce<kWarps<P>>(dot, sum_smem, Sum<Scalar>::plus);
    if (threadIdx.x != 0) continue;
    pass.inverse_weight_scales[r] = Scalar(1) / weight_scale;
    pass.dot[r] = dot.value / weight_scale;
  }
}

template <class P>
MSK_PHASE void pair_weights(const Problem& p, std::int64_t first, bool finished) {
  using Scalar = typename P::Scalar;
  if (p.ranked)
    pair_weights<P>(p, RankedLoss<Scalar>(p), first, finished);
  else if (p.family)
    pair_weights<P>(p, pair_loss_of<Scalar>(p), first, finished);
  else
    pair_weights<P>(p, loss_of<Scalar>(p), first, finished);
}

}  // namespace msk::gpu
