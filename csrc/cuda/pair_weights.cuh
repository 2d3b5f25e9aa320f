// Fourth phase: the weights of a panel of rows, as the left operand of the gradient's product.
#pragma once

#include "cuda/block_reduce.cuh"
#include "cuda/half_range.cuh"
#include "cuda/side.cuh"

namespace msk::gpu {

// One block a row. The weights include the scale of their column, so that they multiply copies.
// `finished`: the panel already holds similarities (row_statistics put them there). `loss` and
// terms are those of the MS loss or, if `family`, of any rules.
template <class P, bool family, class Loss>
MSK_PHASE void pair_weights(const Problem& p, const Loss& loss, std::int64_t first, bool finished) {
  const Pass<P> pass(p);
  const bool by_row = p.terms & row_term, by_column = p.terms & column_term;
  using Scalar = typename P::Scalar;
  using Operand = typename P::Operand;
  auto* const greatest_room = reinterpret_cast<Greatest<Scalar>*>(shared_memory());
  auto* const sum_room = reinterpret_cast<Sum<Scalar>*>(greatest_room + kThreads / 32);
  for (std::int64_t r = blockIdx.x; r < pass.height(first); r += gridDim.x) {
    const std::int64_t i = first + r;
    const bool present = i < pass.rows.count;
    const std::int64_t label = present ? pass.rows.labels[i] : 0;
    const auto term_of = [](const Side<P>& side, std::int64_t k) {
      if constexpr (family)
        return side.family_term(k);
      else
        return side.term(k);
    };
    decltype(term_of(pass.rows, i)) own{};
    if (by_row && present) own = term_of(pass.rows, i);
    Scalar* const row = pass.similarities + r * pass.width;
    Operand* const out = pass.weights + r * pass.width;
    const auto weight = [&](std::int64_t j, Scalar s) {
      const bool same = label == pass.columns.labels[j], self = pass.self_pair(i, j);
      const bool positive = same && !self && s < loss.max_positive_similarity;
      const bool negative = !same && !self;
      Scalar w = Scalar(0);
      if (by_row) w += own.weight(loss, s, positive, negative);
      if (by_column) w += term_of(pass.columns, j).weight(loss, s, positive, negative);
      return w * pass.columns.scale[j];
    };
    const std::int64_t filled = present ? pass.columns.count : 0;
    Scalar lift = Scalar(1);
    __syncthreads();  // the rooms may still be read for the row before
    if constexpr (kFewExponents<Operand>) {
      Greatest<Scalar> most{Scalar(0)};
      for (std::int64_t j = threadIdx.x; j < filled; j += kThreads) {
        const Scalar s = finished ? row[j] : pass.similarity(first, i, j);
        most.value = std::fmax(most.value, std::fabs(weight(j, s)));
      }
      lift = lift_of(block_reduce(most, greatest_room, Greatest<Scalar>::greater).value);
    }
    Sum<Scalar> dot{Scalar(0)};
    for (std::int64_t j = threadIdx.x; j < pass.width; j += kThreads) {
      if (j >= filled) {
        out[j] = narrow<Operand>(Scalar(0));
        continue;
      }
      const Scalar s = finished ? row[j] : pass.similarity(first, i, j);
      out[j] = narrow<Operand>(weight(j, s) * lift);
      // Of the rounded weights: then the projection takes out exactly what they put in.
      dot.value += Scalar(widen(out[j])) * (s / pass.columns.scale[j]);
    }
    dot = block_reduce(dot, sum_room, Sum<Scalar>::plus);
    if (threadIdx.x != 0) continue;
    pass.unscale[r] = Scalar(1) / lift;
    pass.dot[r] = dot.value / lift;
  }
}

template <class P>
MSK_PHASE void pair_weights(const Problem& p, std::int64_t first, bool finished) {
  using Scalar = typename P::Scalar;
  if (p.family)
    pair_weights<P, true>(p, PairLoss<Scalar>(p.rules, p.options.max_positive_similarity), first,
                          finished);
  else
    pair_weights<P, false>(p, loss_of<Scalar>(p.options), first, finished);
}

}  // namespace msk::gpu
