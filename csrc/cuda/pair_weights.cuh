// Fourth phase: the weights of a panel of rows, as the left operand of the gradient's product.
#pragma once

#include "cuda/block_reduce.cuh"
#include "cuda/prepare.cuh"
#include "cuda/side.cuh"

namespace msk::gpu {

// One block a row. The weights include the scale of their column, so that they multiply copies.
// `finished`: the panel already holds similarities (row_statistics put them there).
template <class P>
MSK_PHASE void pair_weights(const Problem& p, std::int64_t first, bool finished) {
  const Pass<P> pass(p);
  const int terms = p.terms;
  using Scalar = typename P::Scalar;
  using Operand = typename P::Operand;
  Sum<Scalar>* const room = reinterpret_cast<Sum<Scalar>*>(shared_memory());
  for (std::int64_t r = blockIdx.x; r < pass.height(first); r += gridDim.x) {
    const std::int64_t i = first + r;
    const bool present = i < pass.rows.count;
    Scalar* const row = pass.similarities + r * pass.width;
    Operand* const out = pass.weights + r * pass.width;
    const auto weight = [&](std::int64_t j, Scalar s) {
      const bool same = pass.rows.labels[i] == pass.columns.labels[j], self = pass.self_pair(i, j);
      const bool positive = same && !self && s < pass.loss.max_positive_similarity;
      const bool negative = !same && !self;
      Scalar w = Scalar(0);
      if (terms & row_term) w += pass.rows.term(i).weight(pass.loss, s, positive, negative);
      if (terms & column_term) w += pass.columns.term(j).weight(pass.loss, s, positive, negative);
      return w;
    };
    const std::int64_t filled = present ? pass.columns.count : 0;
    // Half precision has few exponents: a row is brought to just below 2^15.
    Scalar magnify = Scalar(1);
    __syncthreads();  // the room may still be read for the row before
    if constexpr (std::is_same_v<Operand, Half>) {
      Sum<Scalar> most{Scalar(0)};
      for (std::int64_t j = threadIdx.x; j < filled; j += kThreads) {
        const Scalar s = finished ? row[j] : pass.similarity(first, i, j);
        const Scalar w = std::fabs(weight(j, s) * pass.columns.scale[j]);
        most.value = w > most.value ? w : most.value;
      }
      most = block_reduce(most, room, [](const Sum<Scalar>& a, const Sum<Scalar>& b) {
        return Sum<Scalar>{a.value > b.value ? a.value : b.value};
      });
      if (most.value > 0 && std::isfinite(most.value)) {
        int exponent = 14 - std::ilogb(most.value);
        exponent = exponent > 120 ? 120 : exponent;
        magnify = std::scalbn(Scalar(1), exponent);
      }
    }
    Sum<Scalar> dot{Scalar(0)};
    for (std::int64_t j = threadIdx.x; j < pass.width; j += kThreads) {
      if (j >= filled) {
        out[j] = narrow<Operand>(Scalar(0));
        continue;
      }
      const Scalar s = finished ? row[j] : pass.similarity(first, i, j);
      const Scalar scale = pass.columns.scale[j];
      out[j] = narrow<Operand>(weight(j, s) * scale * magnify);
      // Of the rounded weights: then the projection takes out exactly what they put in.
      dot.value += Scalar(widen(out[j])) * (s / scale);
    }
    dot = block_reduce(dot, room + kThreads / 32, [](const Sum<Scalar>& a, const Sum<Scalar>& b) {
      return Sum<Scalar>{a.value + b.value};
    });
    if (threadIdx.x != 0) continue;
    pass.unscale[r] = Scalar(1) / magnify;
    pass.dot[r] = dot.value / magnify;
  }
}

}  // namespace msk::gpu
