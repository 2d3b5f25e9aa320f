// Third phase: the weights of all pairs, as the left operand of the gradient's product.
#pragma once

#include "cuda/core/half_range.cuh"
#include "cuda/pairs/pass.cuh"
#include "cuda/small/warp_row.cuh"

namespace msk::gpu {

// The forms of both kinds, of which that of negatives, the many, has a shape known beforehand.
template <typename T>
struct Forms {
  Form<T> negative, positive;
};

// Columns that a lane looks at together: their loads are on their way before one is waited for.
template <typename T>
constexpr int kTogether = sizeof(T) == 8 ? 4 : 8;

// What the pairs of such columns are known by. Of what columns weigh there is what negatives, the
// many, need; the rest is read where it is asked for.
template <class P>
struct Columns {
  using Scalar = typename P::Scalar;
  static constexpr int kAtOnce = kTogether<Scalar>;
  Scalar s[kAtOnce], scale[kAtOnce];
  Scalar coefficient[kAtOnce], above[kAtOnce], below[kAtOnce], offset[kAtOnce];
  PairSet alike = 0, self = 0;

  // From column j on, every 32nd; beyond the last one j again, which no other lane writes.
  MSK_DEVICE Columns(const Pass<P>& pass, std::int64_t i, std::int64_t label, int j, bool weigh) {
    const auto column = [&](int k) { return j + k * 32 < pass.columns.count ? j + k * 32 : j; };
    const Side<P>& side = pass.columns;
    const Scalar* const row = pass.similarities + i * pass.width;
#pragma unroll
    for (int k = 0; k < kAtOnce; ++k) {
      const int at = column(k);
      s[k] = row[at];
      alike |= PairSet(side.labels[at] == label) << k;
      scale[k] = side.scale[at];
      coefficient[k] = weigh ? side.neg_coefficient[at] : Scalar(0);
      above[k] = weigh ? side.neg_above[at] : Scalar(0);
      below[k] = weigh ? side.neg_below[at] : Scalar(0);
      offset[k] = weigh ? side.neg_offset[at] : Scalar(0);
    }
    for (int k = 0; k < kAtOnce; ++k) self |= PairSet(pass.self_pair(i, column(k))) << k;
  }
};

// One warp a row. Weights include the scale of their column, so that they multiply embeddings.
template <class P>
struct RowWeights {
  using Scalar = typename P::Scalar;
  using Operand = typename P::Operand;
  const Pass<P>& pass;
  Forms<Scalar> forms;
  Scalar max_positive_similarity;
  bool by_row, by_column;

  // visit(column, similarity, scale, weight) for all columns of row i: for the many that are no
  // positives together, then for the others one by one.
  template <class Visit>
  MSK_DEVICE void each(std::int64_t i, const FamilyTerm<Scalar>& own, const Visit& visit) const {
    const std::int64_t label = pass.rows.labels[i];
    for (int j = lane(); j < pass.columns.count; j += 32 * Columns<P>::kAtOnce) {
      const Columns<P> columns(pass, i, label, j, by_column);
      PairSet positives = 0;
#pragma unroll
      for (int k = 0; k < Columns<P>::kAtOnce; ++k) {
        const int column = j + k * 32;
        if (column >= pass.columns.count) break;
        const Scalar s = columns.s[k];
        if ((columns.alike & ~columns.self) >> k & 1 && s < max_positive_similarity) {
          positives |= PairSet(1) << k;
          continue;
        }
        Scalar w = nothing(own.negative.coefficient) + nothing(columns.coefficient[k]);
        const bool negative = !((columns.alike | columns.self) >> k & 1);
        if (by_row && negative && s > own.neg_above && s < own.neg_below)
          w += weight_of(forms.negative, s, own.negative);
        if (by_column && negative && s > columns.above[k] && s < columns.below[k])
          w += weight_of(forms.negative, s, {columns.coefficient[k], columns.offset[k]});
        visit(column, s, columns.scale[k],
              through_distance(pass.distance, w, s) * columns.scale[k]);
      }
#pragma unroll 1
      for (int column = j; positives; column += 32, positives >>= 1)
        if (positives & 1) visit_positive(i, column, own, visit);
    }
  }

  template <class Visit>
  MSK_DEVICE void visit_positive(std::int64_t i, int j, const FamilyTerm<Scalar>& own,
                                 const Visit& visit) const {
    const Scalar s = pass.similarities[i * pass.width + j];
    const Scalar scale = pass.columns.scale[j], value = forms.positive.sign * s;
    Scalar w = Scalar(0);
#pragma unroll 1
    for (int side = 0; side < 2; ++side) {
      if (!(side ? by_column : by_row)) continue;
      const FamilyTerm<Scalar> term = side ? pass.columns.family_term(j) : own;
      w += nothing(term.negative.coefficient);
      if (value > term.pos_above && value < term.pos_below)
        w += forms.positive.sign *
             (weight_of(forms.positive, value, term.positive) + term.pos_constant);
    }
    visit(j, s, scale, through_distance(pass.distance, w, s) * scale);
  }

  // NaN of an anchor whose loss is NaN, whatever is kept.
  MSK_DEVICE static Scalar nothing(Scalar coefficient) { return coefficient - coefficient; }

  MSK_DEVICE void write(std::int64_t i) const {
    Operand* const out = pass.weights + i * pass.width;
    FamilyTerm<Scalar> own{};
    if (by_row) own = pass.rows.family_term(i);
    Scalar weight_scale = Scalar(1);
    if constexpr (kFewExponents<Operand>) {
      Greatest<Scalar> most{Scalar(0)};
      each(i, own, [&](int, Scalar, Scalar, Scalar weight) {
        most.value = std::fmax(most.value, std::fabs(weight));
      });
      weight_scale = weight_scale_of(warp_reduce(most, Greatest<Scalar>::greater).value);
    }
    Scalar dot = Scalar(0);
    each(i, own, [&](int j, Scalar s, Scalar scale, Scalar weight) {
      const Operand rounded = narrow<Operand>(weight * weight_scale);
      out[j] = rounded;
      // Of the rounded weights: then the projection takes out exactly what they put in.
      dot += P::as_read(rounded) * (s / scale);
    });
    dot = warp_sum(dot);
    if (lane() != 0) return;
    pass.inverse_weight_scales[i] = Scalar(1) / weight_scale;
    pass.dot[i] = dot / weight_scale;
  }
};

// Of row i, each by the lane that then looks at it.
template <class P>
MSK_DEVICE void finish_similarities(const Pass<P>& pass, std::int64_t i) {
  for (int j = lane(); j < pass.columns.count; j += 32)
    pass.similarities[i * pass.width + j] = pass.similarity(0, i, j);
}

// `finished`: the similarities are, by an earlier phase.
template <class P>
MSK_PHASE void row_weights(const Problem& p, bool finished) {
  using Scalar = typename P::Scalar;
  const Pass<P> pass(p);
  const PairLoss<Scalar> loss(p.rules, p.options.max_positive_similarity);
  with_shape(loss.negative, [&](const Form<Scalar>& negative) {
    const RowWeights<P> weights{pass,
                                {negative, loss.positive},
                                loss.max_positive_similarity,
                                (p.terms & row_term) != 0,
                                (p.terms & column_term) != 0};
    for (int i = threadIdx.x / 32 * gridDim.x + blockIdx.x; i < pass.rows.count;
         i += gridDim.x * kWarps<P>) {
      if (!finished) finish_similarities(pass, i);
      weights.write(i);
    }
  });
}

}  // namespace msk::gpu
